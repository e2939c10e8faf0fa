"""Judged claims as a table: what was published, what is computed here, whether the two agree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from vitbench.analysis.claims import Judgement
from vitbench.models.cards import CHANGE
from vitbench.reports.model.tables import Column, Display, Table, Value, number_value, text_value

_NAMES = {"params": "parameters", "flops": "FLOPs", "top1": "top-1", "macro_f1": "macro F1"}
#: How the computed value of each quantity is shown; all others are numbers without a unit.
_DISPLAYS = {"flops": Display("GFLOPs", 1e-9), "latency": Display("ms", 1e3), "top1": Display("%", 100, "tenths")}
_CHANGE = Display("%", 100, "change")


def count_verdicts(judgements: Sequence[Judgement]) -> str:
    """``3 agree, 2 contradicted, ...`` in a fixed order."""
    counts = Counter(one.verdict for one in judgements)
    order = ("agrees", "agrees as multiply-adds", "contradicted", "not checkable here")
    return ", ".join(f"{counts[verdict]} {verdict}" for verdict in order if counts[verdict])  # type: ignore[index]


def claims_table(judgements: Sequence[Judgement]) -> Table:
    """One line a claim; ``difference`` is relative to what was published."""
    columns = (
        *(Column(name=name) for name in ("model", "quantity", "published")),
        Column(name="computed", display=Display()),
        Column(name="difference", display=_CHANGE),
        *(Column(name=name) for name in ("verdict", "how, or why not", "source")),
    )
    lines = tuple(
        (
            text_value(one.model),
            text_value(quantity_text(one)),
            text_value(one.claim.printed),
            computed_value(one),
            _difference(one),
            *(text_value(text) for text in (one.verdict, one.reason, one.claim.source)),
        )
        for one in judgements
    )
    return Table(columns, lines)


def quantity_text(judgement: Judgement) -> str:
    """``FLOPs``, ``params against cifar_vit_base``, ``top-1 (imbalanced, baseline)``."""
    quantity, condition = judgement.claim.quantity, judgement.claim.condition
    change = CHANGE.match(quantity)
    if change:
        text = f"{_NAMES[change['count']]} against {change['other']}"
    else:
        text = _NAMES.get(quantity, quantity.replace("_", " "))
    return f"{text} ({condition})" if condition else text


def computed_value(judgement: Judgement) -> Value:
    """The computed value with a unit of its own, scaled like the published one."""
    number, quantity = judgement.computed, judgement.claim.quantity
    display = _DISPLAYS.get(quantity, Display(precision="counted"))
    if quantity == "params" and number is not None:
        display = Display("M", 1e-6, "counted") if number >= 1e5 else Display(precision="grouped")
    if judgement.verdict == "agrees as multiply-adds":
        display = replace(display, unit="GMACs")
    if CHANGE.match(quantity):
        display = _CHANGE
    return number_value(number, display)


def _difference(one: Judgement) -> Value:
    points = CHANGE.match(one.claim.quantity)
    return number_value(one.difference, replace(_CHANGE, unit="points") if points else None)
