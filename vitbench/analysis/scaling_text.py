"""Render how models scale and where they cross: text for a terminal, and dictionaries for JSON."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from typing import Any

from tabulate import tabulate

from vitbench.analysis.crossover import Crossover
from vitbench.analysis.latency_scaling import TimedPoint, launch_bound_up_to
from vitbench.analysis.polynomials import Fit, Polynomial
from vitbench.analysis.scaling import Scaling
from vitbench.core.records import format_image_size


@dataclass(frozen=True, kw_only=True)
class ModelScaling:
    """A model's counts, and its times by batch size where they were measured, on ``machine`` ("cpu, 1 thread")."""

    scaling: Scaling
    times: Mapping[int, Sequence[TimedPoint]] = field(default_factory=dict)
    machine: str = ""


def exponents(points: Sequence[tuple[int, int]], found: Fit | None) -> list[float | None]:
    """The local exponent at each N: of the polynomial, or where there is none from the size before to this one."""
    if found is not None and found.off is None:
        return [found.polynomial.exponent(n) for n, _ in points]
    pairs = itertools.pairwise(points)
    return [None, *(math.log(v / u) / math.log(m / n) if m > n and u and v else None for (n, u), (m, v) in pairs)]


def memory_exponents(scaling: Scaling, batch: int) -> list[float | None]:
    """The same of a batch's memory, piece by piece; None in pieces without a polynomial."""
    found: list[float | None] = []
    for piece in scaling.memory(batch):
        inside = [point.n for point in scaling.points if piece.first <= point.n <= piece.last]
        exact = piece.fit.polynomial if piece.fit is not None and piece.fit.off is None else None
        found += [exact.exponent(n) if exact else None for n in inside]
    return found


def study_to_text(models: Sequence[ModelScaling], crossovers: Sequence[Crossover]) -> str:
    """Every model, then where the first two cross, if that was asked."""
    blocks = [scaling_to_text(one) for one in models]
    if crossovers:
        blocks.append(crossovers_to_text(models[0].scaling, models[1].scaling, crossovers))
    return "\n\n".join(blocks)


def answers_of(models: Sequence[ModelScaling], crossovers: Sequence[Crossover]) -> list[dict[str, Any]]:
    """The same for JSON: an object a model, and one for the crossovers."""
    answers = [scaling_to_dict(one) for one in models]
    if crossovers:
        names = [one.scaling.cell.model for one in models]
        answers.append({"crossover_of": names, "crossovers": [crossover_to_dict(one) for one in crossovers]})
    return answers


# Text


def scaling_to_text(one: ModelScaling) -> str:
    """A block of lines a model, at most 100 columns wide."""
    scaling, cell = one.scaling, one.scaling.cell
    extra = scaling.extra_tokens
    what = f"N squares of {scaling.patch} px" if extra is None else f"N patches of {scaling.patch} px"
    what += f" and {extra} token{'s' if extra > 1 else ''}" if extra else ""
    lines = [
        cell.model,
        f"  {what}; {cell.num_classes} classes, {cell.mode}, {cell.attention} attention",
        *_flops_lines(scaling),
    ]
    for batch in scaling.batches:
        times = one.times.get(batch, ())
        lines += ["", *_memory_lines(scaling, batch), "", _table(scaling, batch, times)]
        if times:
            lines += ["", *_time_lines(times, scaling, f"a batch of {batch} on {one.machine}")]
    return "\n".join(lines)


def _flops_lines(scaling: Scaling) -> list[str]:
    found, least = scaling.flops, "at least " if any(point.lower_bound for point in scaling.points) else ""
    kind = "FLOPs of an image" + ("'s training step" if scaling.cell.mode == "train" else "")
    how = _wrapped(f"counted: {scaling.counted}", 4)
    if found.off is not None:
        n, difference = found.off
        text = f"  {kind}: {least}no polynomial of degree 2 in N: one through three sizes is "
        return [f"{text}{-100 * difference:+.2g} % off at N = {n:,}", "    exponents are from the size before", *how]
    polynomial = found.polynomial
    rows = [
        ["c", _exact(polynomial.c), "whatever the image"],
        ["a", _exact(polynomial.a), "for each patch"],
        ["b", _exact(polynomial.b), "for each pair of patches"],
    ]
    lines = [f"  {kind} = {least}c + a N + b N^2, solved in fractions from three sizes: {_checked(found)}"]
    lines += _indented(tabulate(rows, tablefmt="plain", disable_numparse=True, colalign=("left", "right", "left")), 4)
    equal = polynomial.equal_terms
    if equal is not None:
        lines.append(f"    a N = b N^2 at N = {_exact(equal)} ({_px(equal, scaling.patch)})")
    elif polynomial.b == 0:
        lines.append("    linear in N: no pair of patches is compared")
    return [*lines, *how]


def _checked(found: Fit) -> str:
    return f"equal at {found.checked} more" if found.checked else "unchecked"


def _memory_lines(scaling: Scaling, batch: int) -> list[str]:
    if scaling.no_memory:
        return _wrapped(f"memory: unavailable, {scaling.no_memory}", 2)
    lines = [f"  tensor bytes of a batch of {batch} at their peak, in pieces (traced on fake CPU tensors)"]
    rows = []
    for piece in scaling.memory(batch):
        span = f"N {piece.first:,}" + (f" to {piece.last:,}" if piece.last > piece.first else "")
        if piece.fit is None:
            text = "too few sizes for a polynomial"
        elif piece.fit.off is not None:
            text = f"no polynomial of degree 2 (N = {piece.fit.off[0]:,})"
        else:
            text = f"{_polynomial_text(piece.fit.polynomial)}  ({_checked(piece.fit)})"
        rows.append([span, text, f"in {piece.place}"])
    return [*lines, *_indented(tabulate(rows, tablefmt="plain", disable_numparse=True), 4)]


def _table(scaling: Scaling, batch: int, times: Sequence[TimedPoint]) -> str:
    """One line a size: N, FLOPs, memory and time with their local exponents."""
    points = scaling.points
    columns: dict[str, list[str]] = {
        "size": [format_image_size(point.image_size) for point in points],
        "N": [f"{point.n:,}" for point in points],
        "GFLOPs": [_significant(point.flops / 1e9) for point in points],
        "exponent": _shown(exponents([(point.n, point.flops) for point in points], scaling.flops)),
    }
    if not scaling.no_memory:
        columns["MB"] = [_significant(point.memory[batch] / 1e6) for point in points]
        columns["exponent "] = _shown(memory_exponents(scaling, batch))
    if times:
        timed = {one.image_size: one for one in times}
        found = [timed.get(point.image_size) for point in points]
        columns["ms"] = [_time_text(one) for one in found]
        columns["elasticity"] = [_step_text(one) for one in found]
    rows = list(zip(*columns.values(), strict=True))
    return "\n".join(
        _indented(tabulate(rows, list(columns), tablefmt="plain", disable_numparse=True, stralign="right"), 4)
    )


def _shown(values: Sequence[float | None]) -> list[str]:
    return ["" if value is None else f"{value:.3f}" for value in values]


def _time_text(one: TimedPoint | None) -> str:
    if one is None or one.estimate is None:
        return "" if one is None else one.status
    value, *ends = (x and _significant(1e3 * x, 3) for x in (one.estimate.value, one.estimate.low, one.estimate.high))
    return f"{value} [{', '.join(map(str, ends))}]" if all(ends) else str(value)


def _step_text(one: TimedPoint | None) -> str:
    if one is None or one.step is None:
        return ""
    return f"{one.step.value:.2f} [{one.step.low:.2f}, {one.step.high:.2f}]"


def _time_lines(times: Sequence[TimedPoint], scaling: Scaling, what: str) -> list[str]:
    lines = [
        f"  ms: {what}. Elasticity: by which power of N time grows from the size before.",
        "    95 % t intervals between fresh processes; sizes took turns with each other and a reference.",
    ]
    bound = launch_bound_up_to(times)
    if bound is not None:
        place = f"N = {bound:,} ({_px(bound, scaling.patch)})"
        lines.append(f"    launch-bound up to {place}: time grows by less than half of the FLOPs' exponent,")
        lines.append("    so that launching operators, and what else costs the same for every image, takes most of it")
    else:
        lines.append("    no size is clearly launch-bound: time grows, or may grow, by half of the FLOPs' exponent")
    failed = [one for one in times if one.estimate is None]
    return lines + [f"    {format_image_size(one.image_size)} px: {one.status}: {one.detail}"[:100] for one in failed]


def crossovers_to_text(one: Scaling, other: Scaling, found: Sequence[Crossover]) -> str:
    """Where two models cross, a line or two for each quantity."""
    whose = ", of A" if one.patch != other.patch else ""
    lines = [f"Crossover of A = {one.cell.model}", f"         and B = {other.cell.model}"]
    lines.append(f"  (N patches of {one.patch} px{whose})")
    width = max(len(crossover.quantity) for crossover in found)
    for crossover in found:
        texts = crossing_words(crossover, one)
        lines.append(f"  {crossover.quantity.ljust(width)}  {texts[0]}")
        lines += [f"  {' ' * width}  {text}" for text in texts[1:]]
    return "\n".join(lines)


def crossing_words(crossover: Crossover, one: Scaling) -> list[str]:
    """The crossings of one quantity in words, or that there is none between the smallest and the largest size."""
    sizes, texts = sorted(crossover.signs), []
    extra = one.extra_tokens or 0
    for bracket in crossover.brackets:
        ends = [_exact(end) for end in dict.fromkeys((bracket.low, bracket.high))]
        place = f"between N = {' and '.join(ends)}" if len(ends) > 1 else f"at N = {ends[0]} exactly"
        tokens = f", {_exact(bracket.low + extra)} tokens" if extra and len(ends) == 1 else ""
        px = " and ".join(_px(end, one.patch) for end in dict.fromkeys((bracket.low, bracket.high)))
        words = "below B before, above it after" if bracket.below else "above B before, below it after"
        texts.append(f"{place} ({px}{tokens}): A is {words}")
    by_sign = {sign: [n for n in sizes if crossover.signs[n] == sign] for sign in (-1, 1, 0)}
    if not texts and not by_sign[0]:
        side = "below" if by_sign[-1] else "above"
        texts.append(f"no crossover from N = {sizes[0]:,} to {sizes[-1]:,}: A is {side} B at every size")
    elif by_sign[0]:
        sides = {-1: "A is below B", 1: "A is above B", 0: crossover.neither}
        shown = {sign: some for sign, some in by_sign.items() if some and (sign == 0 or not texts)}
        texts += [f"{sides[sign]} at N = {', '.join(f'{n:,}' for n in some)}" for sign, some in shown.items()]
    for root in crossover.roots or ():
        if not sizes[0] <= root.low <= sizes[-1]:
            texts.append(f"(by the polynomials at N = {_exact(root.low)}, outside of these sizes)")
    return texts


def _polynomial_text(one: Polynomial) -> str:
    terms = [f"{_exact(one.c)}", f"{_exact(one.a)} N" if one.a else "", f"{_exact(one.b)} N^2" if one.b else ""]
    return " + ".join(term for term in terms if term).replace("+ -", "- ")


def _exact(value: int | Fraction) -> str:
    """A whole number in full; a fraction as decimal."""
    return f"{value.numerator:,}" if value.denominator == 1 else f"{float(value):,.6g}"


def _px(n: int | Fraction, patch: int) -> str:
    return f"{math.sqrt(n) * patch:,.0f} px"


def _wrapped(text: str, by: int) -> list[str]:
    return textwrap.wrap(text, 100, initial_indent=" " * by, subsequent_indent=" " * (by + 2))


def _significant(value: float, digits: int = 4) -> str:
    """So many digits, also those that are 0, and whole numbers in full."""
    return f"{value:,.0f}" if value >= 10**digits - 0.5 else f"{value:#.{digits}g}".rstrip(".")


def _indented(text: str, by: int) -> list[str]:
    return [f"{' ' * by}{line}".rstrip() for line in text.splitlines()]


# JSON


def scaling_to_dict(one: ModelScaling) -> dict[str, Any]:
    """Everything in base units: FLOPs, bytes, seconds, patches, px; what depends on the batch size by batch size."""
    scaling, points = one.scaling, one.scaling.points
    names = ("model", "num_classes", "in_channels", "mode", "attention", "dtype")
    traced = () if scaling.no_memory else scaling.batches
    equal = scaling.flops.polynomial.equal_terms
    local = exponents([(point.n, point.flops) for point in points], scaling.flops)
    return {
        **{name: getattr(scaling.cell, name) for name in names},
        "patch": scaling.patch,
        "flops": _fit_to_dict(scaling.flops) | {"method": scaling.counted},
        "terms_equal_at": None if equal is None or scaling.flops.off else float(equal),
        "sizes": [asdict(point) | {"flops_exponent": each} for point, each in zip(points, local, strict=True)],
        "memory": {
            batch: [asdict(piece) | {"fit": piece.fit and _fit_to_dict(piece.fit)} for piece in scaling.memory(batch)]
            for batch in traced
        },
        "memory_exponents": {batch: memory_exponents(scaling, batch) for batch in traced},
        "memory_error": scaling.no_memory,
        "machine": one.machine,
        "times": {batch: [asdict(point) for point in times] for batch, times in one.times.items()},
        "launch_bound_up_to": {batch: launch_bound_up_to(times) for batch, times in one.times.items()},
    }


def crossover_to_dict(one: Crossover) -> dict[str, Any]:
    """A crossover in patches of the first model: signs at the tried sizes, and the ends of each crossing."""
    crossings = [{"low": float(x.low), "high": float(x.high), "first_is_below_before": x.below} for x in one.brackets]
    signs = sorted(one.signs.items())
    return {"quantity": one.quantity, "method": one.method, "signs": signs, "crossings": crossings}


def _fit_to_dict(one: Fit) -> dict[str, Any]:
    """The coefficients if the polynomial holds at every size, else by how much it does not."""
    if one.off is not None:
        return {"holds": False, "off_at": one.off[0], "off_by": one.off[1]}
    values = {name: getattr(one.polynomial, name) for name in ("c", "a", "b")}
    whole = {name: int(value) if value.denominator == 1 else float(value) for name, value in values.items()}
    return {"holds": True, **whole, "checked_on": one.checked}
