"""How a model's FLOPs and memory grow with the image: counts at several sizes, and the exact polynomials behind them.

N is the number of patches of an image, the variable of every polynomial here; the blocks see N + e tokens, e for CLS
and the like. Nothing is measured: FLOPs are counted on ``meta``, memory is traced on fake tensors.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from vitbench.analysis.flops import count_training_step
from vitbench.analysis.latency_scaling import TimedPoint
from vitbench.analysis.layers import tokens_per_block
from vitbench.analysis.polynomials import Fit, exponents, fit
from vitbench.core.errors import Unsupported, UsageError
from vitbench.core.records import Cell, format_image_size, parse_image_size
from vitbench.metrics import Subject
from vitbench.metrics.support.in_process import make_subject, run_metric
from vitbench.metrics.support.memory_trace import BatchTrace, Peak
from vitbench.models import describe_model

Size = tuple[int, int]  # height and width in px

#: The px that sides of models without a visible patch are multiples of: what their stages divide images by.
_USUAL_STEP = 32
#: The batch of a counted training step: batch norm needs two images.
_TRAINING_BATCH = 2


@dataclass(frozen=True, kw_only=True)
class Point:
    """One image size of a model: N, the tokens into the first block (None where blocks are not one list), FLOPs of one
    image (of its training step, in training), and the peak of memory by batch size.
    """

    image_size: Size
    n: int
    tokens: int | None
    flops: int
    lower_bound: bool
    peaks: Mapping[int, Peak] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Piece:
    """The (N, bytes) of sizes at which memory has its peak at one ``place`` (operator and phase). ``fit`` is None with
    fewer than four N: nothing would check it.
    """

    place: str
    points: Sequence[tuple[int, int]]
    fit: Fit | None


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """A model at several image sizes, by N. ``cell`` says under which conditions, ``patch`` is the side of a patch in
    px, ``counted`` says how FLOPs were obtained, ``no_memory`` why memory was not traced, if so. ``times`` are by batch
    size, measured on ``machine`` ("cpu, 1 thread").
    """

    cell: Cell
    batches: tuple[int, ...]
    patch: int
    points: tuple[Point, ...] = ()
    counted: str = ""
    no_memory: str = ""
    times: Mapping[int, Sequence[TimedPoint]] = field(default_factory=dict)
    machine: str = ""

    def with_sizes(self, sizes: Sequence[Size], note: Callable[[str], None]) -> Scaling:
        """Further sizes, counted and traced; ``note`` receives a line on each. Raises what the model raises."""
        found, counted, no_memory = list(self.points), self.counted, self.no_memory
        for size in sizes:
            note(f"{self.cell.model}: counting at {format_image_size(size)} px ...")
            cell = replace(self.cell, image_size=size, batch_size=1)
            subject = make_subject(cell)
            flops, lower_bound, counted = count_flops(subject)
            peaks = {}
            try:
                if not no_memory:
                    trace = BatchTrace(make_subject(cell))
                    peaks = {batch: trace.direct(batch) for batch in self.batches}
            except Unsupported as reason:
                no_memory = str(reason)
            n = (size[0] // self.patch) * (size[1] // self.patch)
            tokens = count_tokens(subject)
            found.append(Point(image_size=size, n=n, tokens=tokens, flops=flops, lower_bound=lower_bound, peaks=peaks))
        found.sort(key=lambda point: point.n)
        return replace(self, points=tuple(found), counted=counted, no_memory=no_memory)

    @property
    def extra_tokens(self) -> int | None:
        """The tokens of the blocks that are no patches (CLS, ...); None if that is not one number at all sizes."""
        extra = {None if point.tokens is None else point.tokens - point.n for point in self.points}
        only = extra.pop()
        return only if not extra and only is not None and only >= 0 else None

    @property
    def flops(self) -> Fit:
        """FLOPs of an image as a polynomial in N."""
        return fit([(point.n, point.flops) for point in self.points])

    def flops_exponents(self) -> list[float | None]:
        """The local exponent at each size: of the polynomial; without one, from the size before."""
        return exponents([(point.n, point.flops) for point in self.points], self.flops)

    def memory(self, batch: int) -> list[Piece]:
        """The bytes of a batch in pieces, from one change of the peak's place to the next."""

        def place_of(point: Point) -> str:
            return f"{point.peaks[batch].operator}, {point.peaks[batch].phase}"

        found = []
        for place, some in itertools.groupby(self.points, key=place_of):
            points = [(point.n, point.peaks[batch].bytes) for point in some]
            polynomial = fit(points) if len(dict(points)) > 3 else None
            found.append(Piece(place=place, points=points, fit=polynomial))
        return found

    def memory_exponents(self, batch: int) -> list[float | None]:
        """The local exponent at each size, likewise, piece by piece."""
        return [one for piece in self.memory(batch) for one in exponents(piece.points, piece.fit)]


def scale_model(base: Cell, sizes: Sequence[Size], batches: Sequence[int], note: Callable[[str], None]) -> Scaling:
    """Count and trace the model of ``base`` at ``sizes``; ``note`` receives a line on each.

    Raises UsageError for sizes with fewer than three numbers of patches, and what the model raises.
    """
    found = Scaling(cell=base, batches=tuple(batches), patch=side_of_patches(base)).with_sizes(sizes, note)
    count = len({point.n for point in found.points})
    if count < 3:
        raise UsageError(
            f"Option --image-sizes: {count} number{'s' if count != 1 else ''} of patches for {base.model}, whose FLOPs "
            "have three coefficients. Give at least three sizes, such as 32:1024"
        )
    return found


def count_flops(subject: Subject) -> tuple[int, bool, str]:
    """FLOPs of one image (of its training step, in training), whether they are a lower bound, and the method.

    Raises Unsupported if a product has none that its shapes tell.
    """
    if subject.cell.mode == "infer":
        found = next(one for one in run_metric("flops", subject) if one.metric == "flops")
        if found.status != "ok":
            raise Unsupported(found.detail)
        return int(found.value), found.lower_bound, found.method
    with subject.on_meta(_TRAINING_BATCH, train=True) as (model, images):
        passes = count_training_step(model, images)
    method = (
        f"forward and backward operators dispatched on meta, batch of {_TRAINING_BATCH} divided by it, torch "
        f"{torch.__version__}; matrix products, convolutions and attention, without the optimizer"
    )
    return sum(one.flops for one in passes) // _TRAINING_BATCH, any(one.without_formula for one in passes), method


def count_tokens(subject: Subject) -> int | None:
    """The tokens into the first block, by a pass on ``meta``; None if there is no such number."""
    try:
        with subject.on_meta(1) as (model, images):
            return next(iter(tokens_per_block(model, images)), None)
    except (RuntimeError, TypeError):  # a model that must be executed to be counted
        return None


def side_of_patches(base: Cell) -> int:
    """The side of a model's patches in px: its card's; of a model of another library that of its first convolution, if
    that does not overlap, else a usual step. Raises UnknownNameError.
    """
    card = describe_model(base.model)
    if card.patch > 1:
        return card.patch
    model = make_subject(replace(base, image_size=card.image_size)).meta_model
    first = next((one for one in model.modules() if isinstance(one, nn.Conv2d)), None)
    return first.stride[0] if first is not None and first.kernel_size == first.stride else _USUAL_STEP


def choose_sizes(text: str, step: int) -> list[Size]:
    """``32:1024`` -> about ten sizes in that range whose sides are multiples of ``step`` px, or the listed ones.

    Raises UsageError for a text that is neither.
    """
    if ":" not in text:
        try:
            return list(dict.fromkeys(parse_image_size(word.strip()) for word in text.split(",")))
        except ValueError as error:
            raise UsageError(f"Option --image-sizes: {error}") from error
    low, _, high = text.partition(":")
    if not (low.strip().isdecimal() and high.strip().isdecimal() and 0 < int(low) < int(high)):
        raise UsageError(
            f"Option --image-sizes: {text!r} is not a range of sides in px. Give the smaller one first, such as 32:1024"
        )
    first, last = -(-int(low) // step), int(high) // step
    if last - first < 2:
        raise UsageError(
            f"Option --image-sizes: {text} holds {max(last - first + 1, 0)} multiples of the patch of {step} px, and "
            f"three are needed. Give a wider range, such as {low}:{int(low) + 8 * step}"
        )
    return [(side * step, side * step) for side in _spread(first, last)]


def _spread(first: int, last: int) -> list[int]:
    """Whole numbers from ``first`` to ``last``, about evenly on a logarithmic scale: doubled, and in between."""
    doubled = {first * 2**power for power in range((last // first).bit_length())}
    chosen = doubled | {3 * one // 2 for one in doubled if one % 2 == 0 and 3 * one // 2 <= last} | {last}
    if not 6 <= len(chosen) <= 12:
        chosen = {round(first * (last / first) ** (step / 8)) for step in range(9)}
    return sorted(chosen)
