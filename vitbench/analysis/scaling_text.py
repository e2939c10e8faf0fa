"""Render how models scale and where they cross: text for a terminal, and dictionaries for JSON."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from fractions import Fraction
from typing import Any

from tabulate import tabulate

from vitbench.analysis.crossover import Crossover
from vitbench.analysis.latency_scaling import TimedPoint, fixed_costs_up_to
from vitbench.analysis.polynomials import Fit
from vitbench.analysis.scaling import Scaling
from vitbench.core.records import format_image_size


def study_to_text(models: Sequence[Scaling], crossovers: Sequence[Crossover]) -> str:
    """Every model, then where the first two cross, if that was asked; at most 100 columns wide."""
    blocks = [_model_lines(one) for one in models]
    if crossovers:
        blocks.append(_crossover_lines(models[0], models[1], crossovers))
    return "\n\n".join("\n".join(lines) for lines in blocks)


def _model_lines(one: Scaling) -> list[str]:
    cell, extra = one.cell, one.extra_tokens
    what = f"N {'squares' if extra is None else 'patches'} of {one.patch} px"
    what += f" and {extra} token{'s' if extra > 1 else ''}" if extra else ""
    lines = [
        cell.model,
        f"  {what}; {cell.num_classes} classes, {cell.mode}, {cell.dtype}, {cell.attention} attention",
        *_flops_lines(one),
        *_wrapped(f"counted: {one.counted}", 4),
    ]
    for batch in one.batches:
        times = one.times.get(batch, ())
        lines += ["", *_memory_lines(one, batch), "", *_table(one, batch, times)]
        if times:
            lines += ["", *_time_lines(times, one, batch)]
    return lines


def _flops_lines(one: Scaling) -> list[str]:
    found, least = one.flops, "at least " if any(point.lower_bound for point in one.points) else ""
    kind = "FLOPs of an image" + ("'s training step" if one.cell.mode == "train" else "")
    if found.off is not None:
        text = f"{kind}: {least}no polynomial of degree 2 in N: one through three sizes is "
        text += f"{100 * found.off[1]:+.2g} % off at N = {found.off[0]:,}"
        return [*_wrapped(text, 2), "    exponents are from the size before"]
    polynomial = found.polynomial
    rows = [
        ["c", _exact(polynomial.c), "whatever the image"],
        ["a", _exact(polynomial.a), "for each patch"],
        ["b", _exact(polynomial.b), "for each pair of patches"],
    ]
    checked = f"equal at {found.checked} more" if found.checked else "no other size checks it"
    lines = _wrapped(f"{kind} = {least}c + a N + b N^2, solved in fractions from three sizes: {checked}", 2)
    lines += _indented(tabulate(rows, tablefmt="plain", disable_numparse=True, colalign=("left", "right", "left")))
    equal = polynomial.equal_terms
    if equal is not None:
        lines.append(f"    a N = b N^2 at N = {_exact(equal)} ({_px(equal, one.patch)})")
    elif polynomial.b == 0:
        lines.append("    linear in N: no pair of patches is compared")
    return lines


def _memory_lines(one: Scaling, batch: int) -> list[str]:
    if one.no_memory:
        return _wrapped(f"memory: unavailable, {one.no_memory}", 2)
    step = "training step (AdamW), " if one.cell.mode == "train" else ""
    rows = []
    for piece in one.memory(batch):
        first, last = piece.points[0][0], piece.points[-1][0]
        if piece.fit is None:
            text = "too few sizes for a checked polynomial"
        elif piece.fit.off is not None:
            text = f"no polynomial of degree 2 (N = {piece.fit.off[0]:,})"
        else:
            c, a, b = (_exact(getattr(piece.fit.polynomial, name)) for name in "cab")
            terms = [c, f"{a} N" if a != "0" else "", f"{b} N^2" if b != "0" else ""]
            text = " + ".join(filter(None, terms)).replace("+ -", "- ") + f"  (equal at {piece.fit.checked} more)"
        rows.append([f"N {first:,}" + (f" to {last:,}" if last > first else ""), text, f"in {piece.place}"])
    title = f"  tensor bytes at their peak, {step}batch of {batch}, in pieces (traced on fake CPU tensors)"
    lines = [title, *_indented(tabulate(rows, tablefmt="plain", disable_numparse=True))]
    if any(piece.fit is None or piece.fit.off for piece in one.memory(batch)):
        lines.append("    exponents without a polynomial are from the size before")
    return lines


def _table(one: Scaling, batch: int, times: Sequence[TimedPoint]) -> list[str]:
    """One line a size: N, FLOPs, memory and time with their local exponents."""
    points = one.points
    columns: dict[str, list[str]] = {
        "size": [format_image_size(point.image_size) for point in points],
        "N": [f"{point.n:,}" for point in points],
        "GFLOPs": [_significant(point.flops / 1e9) for point in points],
        "exponent": _shown(one.flops_exponents()),
    }
    if not one.no_memory:
        columns["MB"] = [_significant(point.peaks[batch].bytes / 1e6) for point in points]
        columns["exponent "] = _shown(one.memory_exponents(batch))
    if times:
        timed = {time.image_size: time for time in times}
        found = [timed.get(point.image_size) for point in points]
        columns["ms"] = [_time_text(time) if time else "" for time in found]
        steps = [time and time.step for time in found]
        columns["elasticity"] = [f"{x.value:.2f} [{x.low:.2f}, {x.high:.2f}]" if x else "" for x in steps]
    rows = list(zip(*columns.values(), strict=True))
    return _indented(tabulate(rows, list(columns), tablefmt="plain", disable_numparse=True, stralign="right"))


def _shown(values: Sequence[float | None]) -> list[str]:
    return ["" if value is None else f"{value:.3f}" for value in values]


def _time_text(one: TimedPoint) -> str:
    if one.estimate is None:
        return one.status
    value, *ends = (x and _significant(1e3 * x, 3) for x in (one.estimate.value, one.estimate.low, one.estimate.high))
    return f"{value} [{', '.join(map(str, ends))}]" if all(ends) else str(value)


def _time_lines(times: Sequence[TimedPoint], scaling: Scaling, batch: int) -> list[str]:
    lines = [
        f"  ms: a batch of {batch} on {scaling.machine}. Elasticity: by which power of N time grows from the size",
        "    before. 95 % t intervals between fresh processes; sizes took turns with each other and a reference.",
    ]
    bound = fixed_costs_up_to(times)
    if bound is None:
        text = "no size is clearly bound by fixed costs: time grows, or may grow, by half of the FLOPs' exponent"
    else:
        text = (
            f"time grows by less than half of the FLOPs' exponent up to N = {bound:,} ({_px(bound, scaling.patch)}): "
            "if the rest grows as FLOPs do, fixed costs take most of it, launching operators (launch-bound) or reading "
            "weights; efficiency that grows with size looks the same"
        )
    lines += _wrapped(text, 4)
    failed = [point for point in times if point.estimate is None]
    return lines + [
        f"    {format_image_size(time.image_size)} px: {time.status}: {time.detail}"[:100] for time in failed
    ]


def _crossover_lines(one: Scaling, other: Scaling, found: Sequence[Crossover]) -> list[str]:
    whose = ", of A" if one.patch != other.patch else ""
    lines = [f"Crossover of A = {one.cell.model}", f"         and B = {other.cell.model}"]
    lines.append(f"  (N patches of {one.patch} px{whose})")
    width = max(len(crossover.quantity) for crossover in found)
    for crossover in found:
        first, *more = [*crossing_words(crossover, one), *_wrapped(f"({crossover.method})", 0, 96 - width)]
        lines.append(f"  {crossover.quantity.ljust(width)}  {first}")
        lines += [f"  {' ' * width}  {text}" for text in more]
    return lines


def crossing_words(crossover: Crossover, one: Scaling) -> list[str]:
    """The crossings of one quantity in words, or "no crossover" from the smallest to the largest size."""
    signs, texts = crossover.signs, []
    if not signs:
        return ["unknown: at no size are there values of both"]
    extra = one.extra_tokens or 0
    for bracket in crossover.brackets:
        if bracket.low == bracket.high:
            tokens = f", {_exact(bracket.low + extra)} tokens" if extra else ""
            place = f"at N = {_exact(bracket.low)} ({_px(bracket.low, one.patch)}{tokens})"
        else:
            px = " and ".join(_px(end, one.patch) for end in (bracket.low, bracket.high))
            place = f"between N = {bracket.low:,} and {bracket.high:,} ({px})"
        words = "below B before, above it after" if bracket.below else "above B before, below it after"
        texts.append(f"{place}: A is {words}")
    by_sign = {sign: [n for n in sorted(signs) if signs[n] == sign] for sign in (-1, 1, 0)}
    if not texts and not by_sign[0]:
        side = "below" if by_sign[-1] else "above"
        texts.append(f"no crossover from N = {min(signs):,} to {max(signs):,}: A is {side} B at every size")
    elif by_sign[0]:
        sides = {-1: "A is below B", 1: "A is above B", 0: crossover.neither}
        shown = {sign: some for sign, some in by_sign.items() if some and (sign == 0 or not texts)}
        texts += [f"{sides[sign]} at N = {', '.join(f'{n:,}' for n in some)}" for sign, some in shown.items()]
    return texts + [f"by the polynomials at N = {_exact(n)}, outside of these sizes" for n in crossover.outside]


def _exact(value: float | Fraction) -> str:
    """A whole number in full; others to six digits."""
    return f"{int(value):,}" if value == int(value) else f"{float(value):,.6g}"


def _px(n: float | Fraction, patch: int) -> str:
    """The side of a square of so many patches."""
    return f"{math.sqrt(n) * patch:,.0f} px"


def _wrapped(text: str, by: int, width: int = 100) -> list[str]:
    return textwrap.wrap(text, width, initial_indent=" " * by, subsequent_indent=" " * (by + 2))


def _significant(value: float, digits: int = 4) -> str:
    """So many digits, also those that are 0, and whole numbers in full."""
    return f"{value:,.0f}" if value >= 10**digits - 0.5 else f"{value:#.{digits}g}".rstrip(".")


def _indented(text: str) -> list[str]:
    return [f"    {line}".rstrip() for line in text.splitlines()]


# JSON


def answers_of(models: Sequence[Scaling], crossovers: Sequence[Crossover]) -> list[dict[str, Any]]:
    """The same for JSON, in base units: an object a model, and one for the crossovers, in N of the first model."""
    answers = [_model_to_dict(one) for one in models]
    if crossovers:
        names = [one.cell.model for one in models]
        found = [asdict(one) | {"signs": sorted(one.signs.items())} for one in crossovers]
        answers.append({"crossover_of": names, "crossovers": found})
    return answers


def _model_to_dict(one: Scaling) -> dict[str, Any]:
    names = ("model", "num_classes", "in_channels", "mode", "attention", "dtype")
    equal = one.flops.polynomial.equal_terms
    rows = zip(one.points, one.flops_exponents(), strict=True)
    return {
        **{name: getattr(one.cell, name) for name in names},
        "patch": one.patch,
        "flops": _fit_to_dict(one.flops) | {"method": one.counted},
        "terms_equal_at": None if equal is None or one.flops.off else float(equal),
        "sizes": [asdict(point) | {"flops_exponent": exponent} for point, exponent in rows],
        "memory_error": one.no_memory,
        "machine": one.machine,
        "batches": {batch: _batch_to_dict(one, batch) for batch in one.batches},
    }


def _batch_to_dict(one: Scaling, batch: int) -> dict[str, Any]:
    pieces, times = [] if one.no_memory else one.memory(batch), one.times.get(batch, ())
    return {
        "memory": [asdict(piece) | {"fit": piece.fit and _fit_to_dict(piece.fit)} for piece in pieces],
        "memory_exponents": one.memory_exponents(batch) if pieces else [],
        "times": [asdict(point) for point in times],
        "fixed_costs_up_to": fixed_costs_up_to(times),
    }


def _fit_to_dict(one: Fit) -> dict[str, Any]:
    """The coefficients if the polynomial holds at every size, else by how much it does not."""
    if one.off is not None:
        return {"holds": False, "off_at": one.off[0], "off_by": one.off[1]}
    return {"holds": True, **{name: float(getattr(one.polynomial, name)) for name in "cab"}, "checked_on": one.checked}
