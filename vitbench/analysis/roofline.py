"""The machine's roof: attainable compute by dtype, bandwidth by working-set size, and the time of a dispatch.

An operator of F FLOPs that moves Q bytes takes at least max(F / P, Q / B): the roofline model (Williams, Waterman and
Patterson 2009, "Roofline: an insightful visual performance model for multicore architectures", CACM 52(4)). P and B are
what torch attains here, not what the processor's maker promises. Each is the median of rounds, which a fresh process
each measures; a value whose rounds spread is refused. Loads torch only in ``measure_round``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field

from vitbench.core.errors import Unsupported
from vitbench.core.validation import Count, Number, Positive

if TYPE_CHECKING:
    import torch

    from vitbench.devices import Device

#: A value is refused if its rounds spread by more. Spread: the median distance of the rounds from their median, over
#: that median. Half of the rounds lie within it; up to half of them may be disturbed.
MOST_SPREAD = 0.1
#: With fewer undisturbed rounds nothing is known of their spread.
FEWEST_ROUNDS = 5
METHOD = (
    "compute: best of products of square matrices (torch.mm, 2 n^3 FLOPs), by n; bandwidth: triad a = b + s c in fp32 "
    "(torch.add, three arrays, 12 bytes an element), by their size; dispatch: a chain of linear layers of one feature, "
    "over its operators, two a layer; each the median of rounds in fresh processes, of the median call of a round; "
    "spread: the median distance of rounds from their median"
)
#: How a refused value is obtained after all.
WAY_OUT = "Stop other programs and repeat it, or give fewer --threads"

#: Caches where the system does not report any (bytes).
_USUAL_CACHES = (1 << 20, 1 << 26)
#: The largest working set is so many times the last cache, but no more than this share of the free memory.
_TIMES_THE_CACHE = 4
_SHARE_OF_MEMORY = 8
#: A product that would take longer (s), by the rate of the next smaller one, is left out.
_LONGEST_PRODUCT_S = 0.06
TINY_LAYERS = 8
#: A sample is of as many calls as take so long (s), so that neither the clock nor a synchronisation counts.
_SAMPLE_S = 2e-3

#: Per second, or the seconds of a dispatch.
Rate = Annotated[float, Field(strict=True, gt=0, le=1e30, allow_inf_nan=False)]


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What is measured: products of n x n matrices for ``sizes`` n, triads of ``working_sets`` (bytes; by default from
    the second-level cache to four times the last), ``rounds`` at least and ``most_rounds`` or ``seconds`` at most, each
    kernel for ``kernel_s`` a round.
    """

    sizes: tuple[int, ...] = (256, 512, 1024, 2048, 4096, 8192)
    working_sets: tuple[int, ...] = ()
    rounds: int = 7
    most_rounds: int = 25
    seconds: float = 45.0
    kernel_s: float = 0.1


@dataclass(frozen=True, kw_only=True)
class Ceiling:
    """One limit as measured: FLOP/s, byte/s, or the seconds of a dispatch.

    ``at`` is the n of the products, the bytes of the working set, or 0. ``value`` is None where it is refused or
    unavailable; ``reason`` says why. ``spread`` is a fraction, None without enough rounds.
    """

    at: Count
    value: Rate | None
    spread: Number | None
    rounds: Count
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class MachineRoof:
    """The roof of one device with so many threads. ``compute`` by dtype, ``bandwidth`` by ascending working set."""

    device: str
    threads: Positive
    torch: str
    compute: dict[str, Ceiling]
    bandwidth: tuple[Ceiling, ...]
    dispatch: Ceiling

    def flops_per_s(self, dtype: str) -> float:
        """Attainable FLOP/s. Raises Unsupported if it was refused or not measured."""
        found = self.compute.get(dtype)
        if found is None:
            raise Unsupported(f"the roof of {dtype} was not measured")
        if found.value is None:
            raise Unsupported(f"the roof of {dtype} is unknown: {found.reason}")
        return found.value

    def bytes_per_s(self, working_set: float) -> float:
        """Attainable byte/s of a working set (bytes): between two measured sizes interpolated on logarithmic scales,
        outside them that of the nearest. Refused sizes are left out; raises Unsupported if all were.
        """
        known = sorted((one.at, one.value) for one in self.bandwidth if one.value and one.at)
        if not known:
            reason = next((one.reason for one in self.bandwidth), "it was not measured")
            raise Unsupported(f"the bandwidth is unknown: {reason}")
        sizes, rates = np.log(np.array(known, dtype=float).T)
        return float(np.exp(np.interp(math.log(max(working_set, 1.0)), sizes, rates)))

    @property
    def refused(self) -> dict[str, str]:
        """What has no value, and why: ``fp32``, ``4.19 MB triad``, ``dispatch``."""
        triads = {f"{one.at / 1e6:.3g} MB triad": one for one in self.bandwidth}
        everything = {**self.compute, **triads, "dispatch": self.dispatch}
        return {name: one.reason for name, one in everything.items() if one.value is None}


def spread_of(values: Sequence[float]) -> float:
    """The median distance of ``values`` from their median, over that median."""
    middle = median(values)
    return median(abs(value - middle) for value in values) / middle


def ceiling_of(at: int, values: Sequence[float], reason: str = "") -> Ceiling:
    """The median of the rounds' ``values``, unless they are too few or spread too much. ``reason``: why a round has no
    value.
    """
    if len(values) < FEWEST_ROUNDS:
        few = f"other programs left {len(values)} of {FEWEST_ROUNDS} quiet rounds. {WAY_OUT}"
        return Ceiling(at=at, value=None, spread=None, rounds=len(values), reason=reason or few)
    spread = spread_of(values)
    if spread > MOST_SPREAD:
        reason = f"its rounds spread by {100 * spread:.0f} % (at most {100 * MOST_SPREAD:.0f} %). {WAY_OUT}"
        return Ceiling(at=at, value=None, spread=spread, rounds=len(values), reason=reason)
    return Ceiling(at=at, value=median(values), spread=spread, rounds=len(values))


def best_of(values: Mapping[int, Sequence[float]], reason: str = "") -> Ceiling:
    """The ceiling of the size whose median is highest: a faster one that spreads is not replaced by a slower one."""
    known = {size: found for size, found in values.items() if len(found) >= FEWEST_ROUNDS}
    if not known:
        return ceiling_of(0, max(values.values(), key=len, default=()), reason)
    best = max(known, key=lambda size: median(known[size]))
    return ceiling_of(best, known[best])


def working_sets(caches: Sequence[int], free_bytes: float) -> tuple[int, ...]:
    """Bytes, in steps of four, of caches (bytes, ascending): from the first, or an eighth of the last if that is less,
    to four times the last.
    """
    found = caches or _USUAL_CACHES
    smallest = min(found[0], found[-1] // 8)
    largest = max(min(_TIMES_THE_CACHE * found[-1], int(free_bytes / _SHARE_OF_MEMORY)), smallest)
    count = math.ceil(math.log(largest / smallest, 4) - 1e-9)
    return (*(smallest * 4**step for step in range(count)), largest)


def measure_round(
    device: Device, products: Sequence[tuple[str, int]], sets: Sequence[int], *, dispatch: bool, kernel_s: float
) -> Iterator[dict[str, Any]]:
    """One round in this process, whose threads are set: of each kernel its ``kind`` (compute, bandwidth, dispatch),
    ``dtype`` and ``at``, its ``value`` or None with the ``reason``, and ``other_load``, the cores that other programs
    used.
    """
    import torch

    kernels = [("compute", dtype, n, partial(_product, device, dtype, n), 2 * n**3) for dtype, n in products]
    kernels += [("bandwidth", "fp32", size, partial(_triad, device, size // 12), size // 12 * 12) for size in sets]
    if dispatch:
        kernels.append(("dispatch", "fp32", 0, partial(tiny_layers, device), 2 * TINY_LAYERS))
    rates: dict[str, float] = {}
    with torch.inference_mode():
        for kind, dtype, at, make, amount in kernels:
            if kind == "compute" and amount > rates.get(dtype, math.inf) * _LONGEST_PRODUCT_S:
                continue
            found = _measured(make, device, kernel_s)
            if (seconds := found["value"]) is not None:
                found["value"] = seconds / amount if kind == "dispatch" else amount / seconds
                if kind == "compute":
                    rates[dtype] = found["value"]
            yield {"kind": kind, "dtype": dtype, "at": at, **found}


def _measured(make: Callable[[], Callable[[], object]], device: Device, kernel_s: float) -> dict[str, Any]:
    """``value``: the median seconds of a call of what ``make`` makes."""
    from vitbench.devices.host.load import UseWatch, cores_used
    from vitbench.metrics.support.subject import Budget
    from vitbench.metrics.support.timing import sample_durations

    def several() -> None:
        for _ in range(calls):
            call()

    try:
        call, calls = make(), 1
        several()  # chooses a kernel and fills the caches
        device.synchronize()
        begin = time.perf_counter()
        several()
        device.synchronize()
        calls = max(round(_SAMPLE_S / max(time.perf_counter() - begin, 1e-9)), 1)
        watch = UseWatch()
        timing = sample_durations(several, device, Budget(seconds=kernel_s, min_samples=1))
    except Exception as error:
        failure = device.explain(error)
        if failure is None or failure.status not in ("unsupported", "oom"):
            raise
        return {"value": None, "other_load": 0.0, "reason": failure.detail}
    return {"value": median(timing.samples) / calls, "other_load": cores_used([watch.stop()]), "reason": ""}


def _product(device: Device, dtype: str, size: int) -> Callable[[], object]:
    import torch

    from vitbench.metrics.support.subject import torch_dtype

    left, right, out = (_filled(device, size * size).to(torch_dtype(dtype)).view(size, size) for _ in range(3))
    return lambda: torch.mm(left, right, out=out)


def _triad(device: Device, elements: int) -> Callable[[], object]:
    import torch

    left, right, out = (_filled(device, elements) for _ in range(3))
    return lambda: torch.add(left, right, alpha=3.0, out=out)


def tiny_layers(device: Device) -> Callable[[], object]:
    """``TINY_LAYERS`` linear layers of one feature, each a view and a product: what they take is overhead."""
    import torch

    layers = torch.nn.Sequential(*(torch.nn.Linear(1, 1) for _ in range(TINY_LAYERS))).to(device.torch_device)
    one = torch.ones(1, 1, device=device.torch_device)
    return lambda: layers(one)


def _filled(device: Device, elements: int) -> torch.Tensor:
    """Numbers in every page: what was never written to is not read from memory."""
    import torch

    some = torch.randn(4099, device=device.torch_device)  # a prime, so that the rows of a matrix differ
    return some.repeat(-(-elements // len(some)))[:elements]
