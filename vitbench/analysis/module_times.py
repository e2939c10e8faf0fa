"""Time the modules of a model by hooks, in turns with calls without hooks, which say what the hooks cost."""

from __future__ import annotations

import contextlib
import operator
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from vitbench.devices import Device
from vitbench.metrics.support.subject import Subject, without_garbage_collection

#: Rounds of one call with hooks and one without: until these seconds have passed, within these limits.
ROUND_SECONDS, FEWEST_ROUNDS, MOST_ROUNDS = 4.0, 5, 50
_WARM_UP = 2


def time_modules(subject: Subject) -> tuple[dict[str, float], dict[str, Any]]:
    """Median seconds of each module's own work in one forward pass of the subject's batch, by path; and of the whole:
    ``call_s`` without hooks, ``hook_ratio`` (quartiles of a call with hooks over one without), the modules' ``sum_s``.

    The device is synchronised wherever a module begins or ends.
    """
    for hooks in (True, False) * _WARM_UP:
        _call(subject, hooks=hooks)
    calls: dict[bool, list[float]] = {True: [], False: []}  # seconds with and without hooks
    own: dict[str, list[float]] = {}
    began = time.perf_counter()
    with without_garbage_collection():
        for index in range(MOST_ROUNDS):
            if index >= FEWEST_ROUNDS and time.perf_counter() - began > ROUND_SECONDS:
                break
            for hooks in (True, False) if index % 2 else (False, True):
                seconds, by_module = _call(subject, hooks=hooks)
                calls[hooks].append(seconds)
                for path, one in by_module.items():
                    own.setdefault(path, []).append(one)
    own_s = {path: statistics.median(seconds) for path, seconds in own.items()}
    call_s, sum_s = statistics.median(calls[False]), sum(own_s.values())
    device, threads = subject.cell.device, subject.cell.threads
    return own_s, {
        "device": f"cpu, {threads} thread{'s' if threads > 1 else ''}" if device == "cpu" else device,
        "rounds": len(calls[False]),
        "call_s": call_s,
        "hook_ratio": statistics.quantiles(map(operator.truediv, calls[True], calls[False]), n=4),
        "sum_s": sum_s,
        "sum_over_call": sum_s / call_s,
    }


def _call(subject: Subject, *, hooks: bool) -> tuple[float, dict[str, float]]:
    """The seconds of a forward pass and, with hooks, of each module."""
    own: dict[str, float] = {}
    with _hooks(subject.model, subject.device, own) if hooks else contextlib.nullcontext():
        subject.device.synchronize()
        began = time.perf_counter()
        subject.forward()
        subject.device.synchronize()
        return time.perf_counter() - began, own


@contextlib.contextmanager
def _hooks(model: nn.Module, device: Device, own: dict[str, float]) -> Iterator[None]:
    """Add the seconds of each module, without those of the modules inside it, to ``own``."""
    running: list[list[float]] = []  # of each running module: its start, the seconds of the modules inside it

    def begin(_: nn.Module, __: Any) -> None:
        device.synchronize()
        running.append([time.perf_counter(), 0.0])

    def end_of(path: str) -> Callable[..., None]:
        def end(_: nn.Module, __: Any, ___: Any) -> None:
            device.synchronize()
            started, inside = running.pop()
            seconds = time.perf_counter() - started
            own[path] = own.get(path, 0.0) + seconds - inside
            if running:
                running[-1][1] += seconds

        return end

    handles = [module.register_forward_pre_hook(begin) for module in model.modules()]
    handles += [module.register_forward_hook(end_of(path)) for path, module in model.named_modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
