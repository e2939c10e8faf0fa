"""Render the answers of ``vitbench analyze`` as text of 100 columns, one block a model."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from vitbench.analysis.costs import COUNTS, sum_costs
from vitbench.analysis.rendering import shape_words
from vitbench.core.records import format_image_size

WIDTH = 100
#: The modules with the largest own costs that are listed, and the rows of a tree that is folded by itself.
_HOT, _TREE = 10, 40
_GAP = "  "
#: What a table shows: a row without any of these is left out.
_SHOWN = ("params", "flops_forward", "flops_backward", "saved_bytes", "bytes_forward")
#: The index of a module among its siblings: ``blocks.3.fc1``, ``encoder_layer_3.mlp``.
_INDEX = re.compile(r"((?:^|(?<=[._]))\d+(?=\.|$))")

#: The columns of each list.
_COLUMNS = {
    "module": ("params", "fwd", "bwd", "saved", "moved", "FLOP/B", "share"),
    "op": ("fwd calls", "fwd", "moved", "FLOP/B", "share", "bwd calls", "bwd", "bwd moved"),
    "block": ("tokens", "params", "fwd", "bwd", "saved", "moved", "FLOP/B", "share"),
    "times": ("params", "fwd", "moved", "FLOP/B", "share", "ms", "% time", "rate"),
}

Row = tuple[str, Mapping[str, Any]]  # a label, and the costs in base units
Column = tuple[str, Callable[[Mapping[str, Any]], str]]


def costs_to_text(answers: Sequence[dict[str, Any]], *, depth: int | None = None) -> str:
    """The answers without those that failed; modules down to ``depth`` levels, by default as many as fit a screen."""
    return "\n\n".join(_answer_to_text(answer, depth) for answer in answers if "error" not in answer)


def _answer_to_text(answer: dict[str, Any], depth: int | None) -> str:
    columns = _columns(answer)
    legend = _legend(answer)
    if "modules" in answer:
        what = "time" if "times" in answer else "forward FLOPs"
        rows, folded = _Tree(answer["modules"]).rows(depth)
        legend += [f"Levels below {folded} are folded: --depth shows more."] if folded is not None else []
        hot = _hot_rows(answer["modules"])
        tables = [_table("module", rows, columns), *([_table(f"most {what} of its own", hot, columns)] if hot else [])]
    elif "operators" in answer:
        tables = [_table("operator", _op_rows(answer["operators"]), columns)]
    else:
        tables = [_table("block", list(_block_rows(answer["blocks"])), columns)]
    return "\n\n".join([_heading(answer), *tables, _wrapped(legend)])


def _wrapped(lines: Iterable[str]) -> str:
    return "\n".join(textwrap.fill(line, WIDTH, initial_indent="  ", subsequent_indent="  ") for line in lines)


def _heading(answer: Mapping[str, Any]) -> str:
    total = answer["total"]
    (flops, word), least = _flop_unit(total), _least(total)
    size = format_image_size((answer["image_size"][0], answer["image_size"][1]))
    error = answer["training_error"]
    forward = f"{word} forward {least}{_scaled(total['flops_forward'], flops)}"
    moved = f"moved {_scaled(total['bytes_forward'], 1e6)} MB forward"
    notes = [f"a batch of {answer['batch_size']} in {answer['dtype']}, {total['params']:,} parameters"]
    if error:
        of_one = "per channel" in error and answer["batch_size"] == 1  # a batch norm's
        notes += [f"{forward}; {moved}", f"no backward pass: {error}{'. Use --batch-size 2' if of_one else ''}"]
    else:
        backward = (
            f"backward {least}{_scaled(total['flops_backward'], flops)}; saved {_scaled(total['saved_bytes'], 1e6)} MB"
        )
        notes.append(f"{forward}, {backward}; {moved}, {_scaled(total['bytes_backward'], 1e6)} MB backward")
    if answer["training_forward_flops"] not in (None, total["flops_forward"]):
        notes.append(f"in training the forward pass takes {_scaled(answer['training_forward_flops'], flops)} {word}")
    if answer["executed"]:
        notes.append(f"executed: its costs depend on the image ({answer['executed']})")
    if answer["left_out"]:
        notes.append(f"≥: a lower bound, no formula covers {answer['left_out']}")
    return f"{answer['model']}  ({size} px, {shape_words(answer)}, {answer['attention']} attention)\n{_wrapped(notes)}"


def _legend(answer: Mapping[str, Any]) -> list[str]:
    saved = "" if "operators" in answer or "times" in answer else " saved: kept for the backward pass."
    words = (
        f"FLOPs: products, a multiply-add is two.{saved} moved: the least that the forward pass reads and writes. "
        "FLOP/B: FLOPs over these bytes. FLOPs %: of forward FLOPs."
    )
    lines = [words + (" bwd MB: the least that the backward pass moves." if "operators" in answer else "")]
    if "modules" in answer:
        lines.append("Rows contain the modules inside them; equal ones are one row, which is their sum.")
    if times := answer.get("times"):
        low, middle, high = times["hook_ratio"]
        lines.append(
            f"ms: median of {times['rounds']} rounds ({times['device']}). A call takes "
            f"{_scaled(times['call_s'], 1e-3)} ms; with these hooks {middle:.2f} times that (quartiles {low:.2f} to "
            f"{high:.2f}). The modules sum to {times['sum_over_call']:.2f} of a call without hooks."
        )
    return [*lines, f"Method: {answer['method']}."]


# columns


def _columns(answer: Mapping[str, Any]) -> list[Column]:
    """The columns of an answer's tables; the total decides the units of parameters and FLOPs."""
    total = answer["total"]
    flops, word = _flop_unit(total)
    params, letter = (1e6, "M") if total["params"] >= 1e7 else (1e3, "k")
    columns: dict[str, Column] = {
        "tokens": ("tokens", lambda one: str(one["tokens"] or "")),
        "params": (f"params\n{letter}", lambda one: _scaled(one["params"], params)),
        "fwd calls": ("fwd\ncalls", lambda one: str(one["calls_forward"])),
        "fwd": (f"fwd\n{word}", lambda one: _least(one) + _scaled(one["flops_forward"], flops)),
        "moved": ("moved\nMB", lambda one: _scaled(one["bytes_forward"], 1e6)),
        "FLOP/B": ("FLOP/B", lambda one: "" if one["intensity"] is None else _scaled(one["intensity"], 1)),
        "share": ("FLOPs\n%", lambda one: _percent(one["flops_forward"], total["flops_forward"])),
        "bwd calls": ("bwd\ncalls", lambda one: "-" if one["calls_backward"] is None else str(one["calls_backward"])),
        "bwd": (f"bwd\n{word}", lambda one: _least(one) + _scaled(one["flops_backward"], flops)),
        "bwd moved": ("bwd\nMB", lambda one: _scaled(one["bytes_backward"], 1e6)),
        "saved": ("saved\nMB", lambda one: _scaled(one["saved_bytes"], 1e6)),
        "ms": ("time\nms", lambda one: _scaled(one["seconds"], 1e-3)),
        "% time": ("time\n%", lambda one: _percent(one["seconds"], total["seconds"])),
        "rate": ("GFLOPs\n/s", lambda one: _scaled(one["flops_forward"] / (one["seconds"] or 1), 1e9)),
    }
    return [columns[name] for name in _COLUMNS["times" if "times" in answer else answer["by"]]]


def _flop_unit(total: Mapping[str, Any]) -> tuple[float, str]:
    return (1e9, "GFLOPs") if total["flops_forward"] >= 1e9 else (1e6, "MFLOPs")


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f}" if whole else ""


def _least(one: Mapping[str, Any]) -> str:
    return "≥ " if one["uncovered_calls"] else ""


def _scaled(value: float | None, unit: float) -> str:
    """About four digits of ``value / unit``; ``-`` without a value."""
    if not value:
        return "-" if value is None else "0"
    number = value / unit
    if number < 0.0005:
        return "<0.001"
    return f"{number:,.0f}" if number >= 1000 else f"{number:.{3 - (number >= 10) - (number >= 100)}f}"


# rows


class _Tree:
    """The modules without those that cost nothing. What belongs to no module stands behind the model."""

    def __init__(self, modules: Sequence[Mapping[str, Any]]) -> None:
        self._costs = {row["path"]: row["total"] for row in modules}
        self._children: dict[str, list[str]] = {path: [] for path in self._costs}
        self._top: list[str] = []
        for row in modules:
            path = row["path"]
            if not path or any(row["total"][key] for key in _SHOWN):
                inside = path and row["class"]
                (self._children[path.rpartition(".")[0]] if inside else self._top).append(path)

    def rows(self, depth: int | None) -> tuple[list[Row], int | None]:
        """Indented rows, and the level below which they are folded, if they are."""
        rows = list(self._rows([[path] for path in self._top]))
        levels = [level for level, _ in rows]
        if depth is None:
            depth = max([1, *(level for level in levels if sum(one <= level for one in levels) <= _TREE)])
        return [row for level, row in rows if level <= depth], depth if depth < max(levels) else None

    def _rows(self, siblings: Iterable[Sequence[str]], level: int = 0) -> Iterator[tuple[int, Row]]:
        """Neighbours that cost the same become one. Each of ``siblings`` is one module of each equal parent."""
        for _, some in groupby(siblings, key=lambda paths: self._same(paths[0])):
            equal = list(some)
            paths = [path for one in equal for path in one]
            first, last = (paths[place].rpartition(".")[2] or "(model)" for place in (0, -1))
            label = f"{first} ... {last} (x{len(equal)}, equal)" if len(equal) > 1 else first
            yield level, ("  " * level + label, sum_costs(self._costs[path] for path in paths))
            yield from self._rows(zip(*(self._children[path] for path in paths), strict=True), level + 1)

    def _same(self, path: str) -> tuple[Any, ...]:
        """Equal for modules that cost the same, with all that is inside them."""
        name = _INDEX.sub("*", path.rpartition(".")[2])
        return name, *_counts(self._costs[path]), *(self._same(child) for child in self._children[path])


def _counts(cost: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(cost[name] for name in COUNTS)


def _hot_rows(modules: Iterable[Mapping[str, Any]]) -> list[Row]:
    """The largest own costs, by time where it was measured; modules of one name and cost in several blocks are one."""
    found: dict[Any, list[Mapping[str, Any]]] = {}
    for row in modules:
        found.setdefault((_INDEX.sub("*", row["path"]), _counts(row["own"])), []).append(row)
    rows = []
    for some in found.values():
        parts = zip(*(_INDEX.split(row["path"]) for row in some), strict=True)
        label = "".join(one[0] if len(set(one)) == 1 else "*" for one in parts) or "(model)"
        rows.append((label if len(some) == 1 else f"{label} (x{len(some)})", sum_costs(row["own"] for row in some)))
    key = "seconds" if "seconds" in rows[0][1] else "flops_forward"
    rows.sort(key=lambda row: -row[1][key])
    return [row for row in rows[:_HOT] if row[1][key]]


def _op_rows(operators: Sequence[Mapping[str, Any]]) -> list[Row]:
    """The operators by descending FLOPs, then bytes; those that move nothing are one row."""
    free = [one for one in operators if not (one["bytes_forward"] or one["bytes_backward"])]
    rows = [(one["name"], one) for one in operators if one not in free]
    works = ("flops", "bytes")
    rows.sort(key=lambda row: [-(row[1][f"{what}_forward"] + (row[1][f"{what}_backward"] or 0)) for what in works])
    return [*rows, *([(f"views and the like ({len(free)})", sum_costs(free))] if free else [])]


def _block_rows(blocks: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    """Neighbours that cost the same become one row."""
    for _, some in groupby(blocks, key=lambda one: (one["tokens"], _counts(one))):
        equal = list(some)
        first, last = equal[0]["path"], equal[-1]["path"]
        label = first or "outside of the blocks"
        if len(equal) > 1:
            label = f"{first} ... {last.rpartition('.')[2]} (x{len(equal)}, equal)"
        yield label, sum_costs(equal) | {"tokens": equal[0]["tokens"]}


def _table(heading: str, rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """Headings of two lines; labels to the left, shortened to what room is left, numbers to the right."""
    cells = [[part.split("\n")[line] for part in ("\n" + name for name, _ in columns)] for line in (-2, -1)]
    cells += [[text(costs) for _, text in columns] for _, costs in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    room = WIDTH - 2 - sum(widths) - len(_GAP) * len(widths)
    labels = [_shortened(label, room) for label in ("", heading, *(label for label, _ in rows))]
    room = max(map(len, labels))
    return "\n".join(
        f"  {label.ljust(room)}" + "".join(_GAP + cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for label, line in zip(labels, cells, strict=True)
    )


def _shortened(text: str, room: int) -> str:
    if len(text) <= room:
        return text
    kept = room - 3
    return f"{text[: kept // 2]}...{text[len(text) - (kept - kept // 2) :]}"
