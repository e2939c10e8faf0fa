"""What the pytest fixture does with a model: check the arguments, count its exact values, and time its forward pass."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vitbench.core.errors import UsageError
from vitbench.core.records import ATTENTIONS, DTYPES, RGB, Cell, channel_options, format_image_size, parse_image_size
from vitbench.regression.expected_values import EXACT

if TYPE_CHECKING:
    import torch

    from vitbench.metrics import Subject

#: The arguments of a call, which the marker may also give.
ARGUMENTS = ("image_size", "in_channels", "batch_size", "device", "dtype", "attention", "threads", "warmup_s", "exact")

WARMUP_S = 0.2
#: Warm-up lasts until the samples are steady, but at most this many times the requested seconds.
_LONGEST_WARMUP = 10


def check_arguments(arguments: Mapping[str, Any]) -> tuple[str, ...]:
    """Check the arguments of a call, and return the names of the values that it compares. Raises UsageError."""
    _check_known("", arguments, ARGUMENTS)
    for key in ("in_channels", "batch_size", "threads"):
        value = arguments.get(key, 1)
        if not isinstance(value, int) or value < 1:
            raise UsageError(f"vitbench(..., {key}={value!r}): give a whole number of 1 or more")
    _check_known("dtype=", [arguments.get("dtype", "fp32")], DTYPES)
    _check_known("attention=", [arguments.get("attention", "fused")], ATTENTIONS)
    names = arguments.get("exact")
    names = EXACT if names is None else tuple(names)
    _check_known("exact=", names, EXACT)
    return names


def _check_known(key: str, values: Mapping[str, Any] | Sequence[Any], known: Sequence[str]) -> None:
    for value in values:
        if value not in known:
            given = f"{key}{value!r}" if key else f"{value}=..."
            raise UsageError(f"vitbench(..., {given}): known are {', '.join(known)}")


@contextlib.contextmanager
def open_subject(model: torch.nn.Module | str, arguments: Mapping[str, Any]) -> Iterator[Subject]:
    """The subject of a call with ``check_arguments``, until the context ends. Threads and random numbers of the test
    are then as before. Raises UsageError for a missing or wrong size, an unknown model or device.
    """
    from vitbench.devices import find_device
    from vitbench.metrics.support.in_process import caller_state_kept, subject_of
    from vitbench.metrics.support.subject import dtype_of
    from vitbench.models import build_model
    from vitbench.models.cards import is_external, model_registry

    size = arguments.get("image_size")
    name = model if isinstance(model, str) else f"{type(model).__module__}.{type(model).__qualname__}"
    if isinstance(model, str) and not is_external(model):
        card = model_registry().get(model)
        size = card.image_size if size is None else size
    if size is None:
        raise UsageError("vitbench(model) needs image_size=, in pixels: 224, or (231, 240) for height and width")
    try:
        pair = parse_image_size("x".join(map(str, size)) if isinstance(size, tuple | list) else size)
    except ValueError as error:
        raise UsageError(str(error)) from error
    channels = arguments.get("in_channels", RGB)
    cell = Cell(
        model=name,
        image_size=pair,
        num_classes=1,
        batch_size=arguments.get("batch_size", 1),
        device=find_device(str(arguments.get("device", "cpu"))).name,
        threads=arguments.get("threads", 1),
        dtype=arguments.get("dtype") or ("fp32" if isinstance(model, str) else dtype_of(model)),
        attention=arguments.get("attention", "fused"),
        weights="given",
        options=channel_options(channels),
    )

    def build() -> torch.nn.Module:
        if isinstance(model, str):
            return build_model(model, image_size=pair, in_channels=channels)
        return copy.deepcopy(model)

    with caller_state_kept(cell), contextlib.closing(subject_of(cell, build)) as subject:
        yield subject


def count_exactly(subject: Subject) -> dict[str, Any]:
    """The exact values of ``subject`` by name; a value that is unavailable is left out."""
    from vitbench.analysis.exact_counts import exact_values

    values = exact_values(subject)
    return {name: values[name] for name in EXACT if name in values}


def describe_conditions(cell: Cell) -> dict[str, Any]:
    """What the values depend on, for pytest-benchmark's ``extra_info``."""
    import torch

    keys = ("model", "batch_size", "device", "dtype", "attention", "threads")
    size = format_image_size(cell.image_size)
    return {**{key: getattr(cell, key) for key in keys}, "image_size": size, "torch": torch.__version__}


def timed_call(subject: Subject) -> Callable[[], Any]:
    """One forward pass, which has ended when the call returns."""
    subject.prepare()
    device = subject.device

    def forward() -> Any:
        output = subject.forward()
        device.synchronize()  # a GPU returns before its kernels have run
        return output

    device.synchronize()
    return forward


def warm_up(call: Callable[[], Any], seconds: float) -> int:
    """Call until the times are steady, for at least ``seconds``; returns the number of calls.

    A fixed number cannot be trusted: the times of the calls show when they are steady (``statistics.warmup_length``).
    """
    from vitbench.core.stats.intervals import MIN_SAMPLES_FOR_WARMUP, warmup_length

    samples: list[float] = []
    begin = time.perf_counter()
    while True:
        start = time.perf_counter()
        call()
        end = time.perf_counter()
        samples.append(end - start)
        if end - begin >= max(seconds, 0) * _LONGEST_WARMUP:
            return len(samples)
        if end - begin < seconds or len(samples) < MIN_SAMPLES_FOR_WARMUP:
            continue
        # steady: the part to cut lies in the first third
        if warmup_length(samples) <= len(samples) // 3:
            return len(samples)
