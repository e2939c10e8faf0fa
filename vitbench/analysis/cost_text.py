"""Render the answers of ``vitbench analyze`` as text of 100 columns, one block a model."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from vitbench.analysis.rendering import shape_words
from vitbench.core.records import format_image_size

WIDTH = 100
#: The modules with the largest own costs that are listed.
_HOT = 10
_GAP = "  "
_WORK = ("flops", "bytes")
#: What a table shows: a row without any of these is left out, unless it took time.
_SHOWN = ("params", "flops_forward", "flops_backward", "saved_bytes", "bytes_forward")
_LEAST_TIME = 0.005
#: The index of a module among its siblings: ``blocks.3.fc1``, ``encoder_layer_3.mlp``.
_INDEX = re.compile(r"(?:^|(?<=[._]))\d+(?=\.|$)")

#: The columns of each list.
_COLUMNS = {
    "module": ("params", "fwd", "bwd", "saved", "moved", "FLOP/B", "share"),
    "op": ("fwd calls", "fwd", "moved", "FLOP/B", "share", "bwd calls", "bwd", "bwd moved"),
    "block": ("tokens", "params", "fwd", "bwd", "saved", "moved", "FLOP/B", "share"),
    "times": ("params", "fwd", "moved", "FLOP/B", "share", "ms", "% time", "rate"),
}

Row = tuple[str, Mapping[str, Any]]  # a label, and the costs in base units
Column = tuple[str, Callable[[Mapping[str, Any]], str]]


def costs_to_text(answers: Sequence[dict[str, Any]], *, depth: int) -> str:
    """The answers without those that failed; modules down to ``depth`` levels."""
    return "\n\n".join(_answer_to_text(answer, depth) for answer in answers if "error" not in answer)


def _answer_to_text(answer: dict[str, Any], depth: int) -> str:
    columns = _columns(answer)
    if "modules" in answer:
        what = "time" if "times" in answer else "forward FLOPs"
        tables = [
            _table("module", list(_tree_rows(_tree(answer["modules"]), depth)), columns),
            _table(f"most {what} of its own", _hot_rows(answer["modules"]), columns),
        ]
    elif "operators" in answer:
        tables = [_table("operator", _op_rows(answer["operators"]), columns)]
    else:
        tables = [_table("block", list(_block_rows(answer["blocks"])), columns)]
    return "\n\n".join([_heading(answer), *tables, _legend(answer)])


def _heading(answer: Mapping[str, Any]) -> str:
    total = answer["total"]
    (flops, word), least = _flop_unit(total), _least(total)
    size = format_image_size((answer["image_size"][0], answer["image_size"][1]))
    notes = [
        f"a batch of {answer['batch_size']} in {answer['dtype']}, {total['params']:,} parameters",
        f"{word} forward {least}{_scaled(total['flops_forward'], flops)}, "
        f"backward {least}{_scaled(total['flops_backward'], flops)}; "
        f"saved {_scaled(total['saved_bytes'], 1e6)} MB; moved {_scaled(total['bytes_forward'], 1e6)} MB",
    ]
    if answer["training_error"]:
        of_one = "per channel" in answer["training_error"] and answer["batch_size"] == 1  # a batch norm's
        notes.append(f"no backward pass: {answer['training_error']}{'. Use --batch-size 2' if of_one else ''}")
    elif answer["training_forward_flops"] != total["flops_forward"]:
        notes.append(f"in training the forward pass takes {_scaled(answer['training_forward_flops'], flops)} {word}")
    if answer["executed"]:
        notes.append(f"executed: its costs depend on the image ({answer['executed']})")
    if answer["left_out"]:
        notes.append(f"≥: a lower bound, no formula covers {answer['left_out']}")
    lines = [f"{answer['model']}  ({size} px, {shape_words(answer)}, {answer['attention']} attention)"]
    for note in notes:
        lines += textwrap.wrap(note, WIDTH, initial_indent="  ", subsequent_indent="  ")
    return "\n".join(lines)


def _legend(answer: Mapping[str, Any]) -> str:
    lines = [
        "FLOPs: products, a multiply-add is two. saved: kept for the backward pass. moved: the least that",
        "the forward pass reads and writes. FLOP/B: its FLOPs over these bytes. %: of its FLOPs.",
    ]
    if "modules" in answer:
        lines.append("Rows contain the modules inside them; equal ones are one row, which is their sum.")
    if times := answer.get("times"):
        low, middle, high = times["hook_ratio"]
        lines += [
            f"ms: median of {times['rounds']} rounds on {times['device']}. A call takes "
            f"{_scaled(times['call_s'], 1e-3)} ms; with these hooks",
            f"{middle:.2f} times that (quartiles {low:.2f} to {high:.2f}). "
            f"The modules sum to {times['sum_over_call']:.2f} of a call without hooks.",
        ]
    if answer["fused_backward"]:
        lines.append("Fused attention's backward pass counts as run: it computes the scores again (2.5 x forward).")
    return "\n".join(f"  {line}" for line in lines)


# columns


def _columns(answer: Mapping[str, Any]) -> list[Column]:
    """The columns of an answer's tables; the total decides the units of parameters and FLOPs."""
    total = answer["total"]
    flops, word = _flop_unit(total)
    params, letter = (1e6, "M") if total["params"] >= 1e7 else (1e3, "k")
    whole = total["flops_forward"] or 1
    columns: dict[str, Column] = {
        "tokens": ("tokens", lambda one: str(one["tokens"] or "")),
        "params": (f"params\n{letter}", lambda one: _scaled(one["params"], params)),
        "fwd calls": ("fwd\ncalls", lambda one: str(one["calls_forward"])),
        "fwd": (f"fwd\n{word}", lambda one: _least(one) + _scaled(one["flops_forward"], flops)),
        "moved": ("moved\nMB", lambda one: _scaled(one["bytes_forward"], 1e6)),
        "FLOP/B": ("FLOP/B", _intensity),
        "share": ("FLOPs\n%", lambda one: f"{100 * one['flops_forward'] / whole:.1f}"),
        "bwd calls": ("bwd\ncalls", lambda one: "-" if one["calls_backward"] is None else str(one["calls_backward"])),
        "bwd": (f"bwd\n{word}", lambda one: _least(one) + _scaled(one["flops_backward"], flops)),
        "bwd moved": ("bwd\nMB", lambda one: _scaled(one["bytes_backward"], 1e6)),
        "saved": ("saved\nMB", lambda one: _scaled(one["saved_bytes"], 1e6)),
    }
    if "times" in answer:
        whole_s = answer["times"]["sum_s"]
        columns |= {
            "ms": ("time\nms", lambda one: _scaled(one["seconds"], 1e-3)),
            "% time": ("time\n%", lambda one: f"{100 * one['seconds'] / whole_s:.1f}"),
            "rate": ("GFLOPs\n/s", lambda one: _scaled(one["flops_forward"] / (one["seconds"] or 1), 1e9)),
        }
    return [columns[name] for name in _COLUMNS["times" if "times" in answer else answer["by"]]]


def _flop_unit(total: Mapping[str, Any]) -> tuple[float, str]:
    return (1e9, "GFLOPs") if total["flops_forward"] >= 1e9 else (1e6, "MFLOPs")


def _intensity(one: Mapping[str, Any]) -> str:
    return _scaled(one["flops_forward"] / one["bytes_forward"], 1) if one["bytes_forward"] else ""


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


@dataclass(kw_only=True)
class _Node:
    label: str
    kind: str
    costs: dict[str, Any]
    children: list[_Node] = field(default_factory=list)

    def same(self) -> tuple[Any, ...]:
        """Equal for nodes that cost the same, with all that is inside them."""
        costs = tuple(value for key, value in self.costs.items() if key != "seconds")
        return self.kind, costs, tuple((child.label, child.same()) for child in self.children)


def _tree(modules: Iterable[Mapping[str, Any]]) -> list[_Node]:
    """The model, and behind it what belongs to no module, without what costs nothing."""
    nodes: dict[str, _Node] = {}
    top: list[_Node] = []
    for row in modules:
        path = row["path"]
        costs = _summed([row["total"]]) | ({"seconds": row["total_s"]} if "total_s" in row else {})
        parent, _, name = path.rpartition(".")
        nodes[path] = _Node(label=name or "(model)", kind=row["class"] or "", costs=costs)
        if top and not _is_shown(nodes[path], top[0]):
            continue
        siblings = nodes[parent].children if path and row["class"] else top
        siblings.append(nodes[path])
    return top


def _is_shown(node: _Node, root: _Node) -> bool:
    slow = node.costs.get("seconds", 0.0) > _LEAST_TIME * root.costs.get("seconds", 0.0)
    return slow or any(node.costs[key] for key in _SHOWN)


def _tree_rows(nodes: Sequence[_Node], depth: int, level: int = 0) -> Iterator[Row]:
    """Indented rows; neighbours that cost the same become one."""
    for _, some in groupby(nodes, key=lambda node: (_INDEX.sub("*", node.label), node.same())):
        equal = list(some)
        one = _merged(equal)
        if len(equal) > 1:
            one.label = f"{equal[0].label} ... {equal[-1].label} (x{len(equal)}, equal)"
        yield "  " * level + one.label, one.costs
        if level < depth:
            yield from _tree_rows(one.children, depth, level + 1)


def _merged(equal: Sequence[_Node]) -> _Node:
    children = [_merged(some) for some in zip(*(node.children for node in equal), strict=True)]
    costs = _summed([node.costs for node in equal])
    return _Node(label=equal[0].label, kind=equal[0].kind, costs=costs, children=children)


def _hot_rows(modules: Iterable[Mapping[str, Any]]) -> list[Row]:
    """The largest own costs, by time where it was measured; modules of one name and cost in several blocks are one."""
    found: dict[Any, list[Mapping[str, Any]]] = {}
    for row in modules:
        path = row["path"]
        found.setdefault((_INDEX.sub("*", path), tuple(row["own"].values())), []).append(row)
    rows = []
    for (pattern, _), some in found.items():
        label = some[0]["path"] or "(model)" if len(some) == 1 else f"{pattern} (x{len(some)})"
        seconds = {"seconds": sum(one["own_s"] for one in some)} if "own_s" in some[0] else {}
        rows.append((label, _summed([one["own"] for one in some]) | seconds))
    key = "seconds" if rows and "seconds" in rows[0][1] else "flops_forward"
    rows.sort(key=lambda row: -row[1][key])
    return [row for row in rows[:_HOT] if row[1][key]]


def _op_rows(operators: Sequence[Mapping[str, Any]]) -> list[Row]:
    """The operators by descending FLOPs, then bytes; those that move nothing are one row."""
    free = [one for one in operators if not (one["bytes_forward"] or one["bytes_backward"])]
    rows = [(one["name"], one) for one in operators if one not in free]
    rows.sort(key=lambda row: [-(row[1][f"{what}_forward"] + (row[1][f"{what}_backward"] or 0)) for what in _WORK])
    return [*rows, *([(f"views and the like ({len(free)})", _summed(free))] if free else [])]


def _block_rows(blocks: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    """Neighbours that cost the same become one row."""
    for _, some in groupby(blocks, key=lambda one: [value for key, value in one.items() if key != "path"]):
        equal = list(some)
        first, last = equal[0]["path"], equal[-1]["path"]
        label = first or "outside of the blocks"
        if len(equal) > 1:
            label = f"{first} ... {last.rpartition('.')[2]} (x{len(equal)}, equal)"
        yield label, _summed(equal) | {"tokens": equal[0]["tokens"]}


def _summed(several: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The sums of all counts; None where one is unknown."""
    keys = [key for key in several[0] if key not in ("name", "path", "tokens", "intensity")]
    values = {key: [one[key] for one in several] for key in keys}
    return {key: None if None in some else sum(some) for key, some in values.items()}


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
