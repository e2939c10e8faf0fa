"""Published figures against what is computed: a claim of a model's card and known counts in, a verdict out. No torch.

Counts (parameters, FLOPs, ratios of them) are judged by what the architecture gives at its own image size and classes.
Accuracies and losses are judged only by a completed run of the claim's own recipe on its data, latencies only by a run
on the claim's own device: else a verdict would compare two different things.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

from vitbench.errors import Unsupported, UsageError
from vitbench.models.closed_form import closed_form
from vitbench.records import Measurement, Record, format_image_size
from vitbench.registry import CHANGE, PRETRAINED, QUANTITIES, Claim, ModelCard, is_external, model_registry
from vitbench.statistics import estimate, wilson_interval
from vitbench.suites import TRAIN_IMAGES
from vitbench.training.recipes import list_recipes, load_recipe

Verdict = Literal["agrees", "agrees as multiply-adds", "contradicted", "not checkable here"]

#: The prefix of the measurements that carry the claims of models which only their library knows.
PUBLISHED = "published_"

#: What a run's metric is called that a claim's quantity is judged by.
_MEASURED = {"top1": "accuracy", "loss": "test_loss", "macro_f1": "macro_f1"}


@dataclass(frozen=True)
class Counts:
    """What one model has at its card's image size and classes; FLOPs of one image, a multiply-add is two."""

    params: int
    flops: int
    method: str


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """One claim judged. ``computed`` is in the claim's unit (of FLOPs that agree as multiply-adds: multiply-adds);
    ``difference`` is relative to the claim, of a change (-58 %) the difference of the two fractions; None where nothing
    was computed.
    """

    model: str
    claim: Claim
    verdict: Verdict
    computed: float | None = None
    difference: float | None = None
    reason: str = ""


#: Counts of a model by its name; raises Unsupported where nothing is known of it.
Counter = Callable[[str], Counts]


def count_by_formula(name: str) -> Counts:
    """Counts of a model of our own by its closed form. Raises Unsupported for any other."""
    if is_external(name):
        raise Unsupported(f"nothing has counted {name}")
    card = model_registry().get(name)
    found = closed_form(card, card.image_size, card.num_classes)
    return Counts(found.params, found.flops, "closed form")


def judge_card(card: ModelCard, count: Counter, records: Iterable[Record] = ()) -> list[Judgement]:
    """Every claim of a card, in its order. ``records`` are those of given runs, of any model."""
    own = [record for record in _of_size(records, card) if record.cell.model == card.name]
    return [judge(card, claim, count, own) for claim in card.claims]


def judge(card: ModelCard, claim: Claim, count: Counter, records: Sequence[Record]) -> Judgement:
    """One claim of ``card``; ``records`` are those of this model."""
    undecided = Judgement(model=card.name, claim=claim, verdict="not checkable here")
    change = CHANGE.match(claim.quantity)
    try:
        if claim.quantity in ("params", "flops"):
            counts = count(card.name)
            return _judge_count(undecided, counts, getattr(counts, claim.quantity))
        if change:
            own, other = count(card.name), count(change["other"])
            fraction = getattr(own, change["count"]) / getattr(other, change["count"]) - 1
            return _decide(undecided, fraction, fraction - claim.value, f"{own.method}, against {change['other']}")
    except (Unsupported, UsageError) as error:
        return dataclasses.replace(undecided, reason=str(error))
    if claim.quantity == "latency":
        return _judge_latency(undecided, records)
    if claim.quantity in ("top1", "macro_f1", "loss"):
        return _judge_training(undecided, records)
    kind = claim.quantity.replace("_", " ")
    return dataclasses.replace(
        undecided, reason=f"{kind}: says nothing without its device, which the source leaves out"
    )


def agrees_as_printed(claim: Claim, computed: float) -> bool:
    """Whether ``computed``, rounded or cut off to the digits that were printed, gives what was printed.

    A claim with ``low`` and ``high`` agrees from one to the other. Digits are those of the first number in ``printed``
    (``6.0M`` has two), whatever multiple it is of.
    """
    if claim.low is not None and claim.high is not None:
        return claim.low <= computed <= claim.high
    step = printed_step(claim)
    value = abs(claim.value)
    # 1e-9: what a float cannot tell from the half is the half
    return value - step * (0.5 + 1e-9) <= abs(computed) < value + step and (computed >= 0) == (claim.value >= 0)


def printed_step(claim: Claim) -> float:
    """One unit of the last digit that was printed, in the claim's base unit: 0.1e6 for ``6.0M``.

    Raises ValueError if there is no number in what was printed.
    """
    found = re.search(r"\d[\d,]*(?:\.\d+)?|\.\d+", claim.printed)
    if found is None:
        raise ValueError(f"{claim.printed!r} holds no number")
    number = Decimal(found[0].replace(",", ""))
    exponent = number.as_tuple().exponent
    assert isinstance(exponent, int)
    # the multiple that makes 6.0 of 6.0e6
    multiple = abs(claim.value) / float(number) if number else 1.0
    return float(10**exponent) * multiple


def claims_of_records(records: Sequence[Record]) -> tuple[Claim, ...]:
    """The claims that a run's measurements carry (of torchvision's models, from its metadata); each once."""
    found: dict[str, Claim] = {}
    for record in records:
        for one in record.measurements:
            if one.metric.startswith(PUBLISHED) and one.status == "ok":
                quantity = one.metric.removeprefix(PUBLISHED)
                with contextlib.suppress(ValueError):  # a record from elsewhere may claim what cannot be judged
                    found[quantity] = Claim(quantity=quantity, value=one.value, printed=one.detail, source=one.method)
    return tuple(found.values())


def judge_runs(records: Sequence[Record]) -> list[Judgement]:
    """The claims of all models of some runs, in order of first appearance."""
    judged: list[Judgement] = []
    for name in dict.fromkeys(record.cell.model for record in records):
        own = [record for record in records if record.cell.model == name]
        if name in model_registry():
            card = model_registry().get(name)
        else:
            published = [record for record in own if claims_of_records([record])]
            first = (published or own)[0].cell  # figures are published for one size only
            card = ModelCard(
                name=name,
                builder="",
                summary="",
                family="",
                source="",
                image_size=first.image_size,
                num_classes=first.num_classes,
                patch=1,
                claims=claims_of_records(own),
            )
        judged += judge_card(card, _counter_of(_of_size(records, card)), own)
    return judged


def to_dict(judgement: Judgement) -> dict[str, Any]:
    """As JSON has it."""
    claim = judgement.claim
    return {
        "model": judgement.model,
        "quantity": claim.quantity,
        "condition": claim.condition,
        "printed": claim.printed,
        "claimed": claim.value,
        "computed": judgement.computed,
        "unit": QUANTITIES.get(claim.quantity, "1" if CHANGE.match(claim.quantity) else ""),
        "difference": judgement.difference,
        "verdict": judgement.verdict,
        "reason": judgement.reason,
        "source": claim.source,
    }


def _judge_count(undecided: Judgement, counts: Counts, computed: int) -> Judgement:
    claim = undecided.claim
    if claim.quantity == "flops" and not agrees_as_printed(claim, computed):
        macs = computed / 2
        if agrees_as_printed(claim, macs):
            reason = f"{counts.method}; {computed / 1e9:.4g} GFLOPs are {macs / 1e9:.4g} GMACs"
            return dataclasses.replace(
                undecided,
                verdict="agrees as multiply-adds",
                computed=macs,
                difference=macs / claim.value - 1,
                reason=reason,
            )
    return _decide(undecided, computed, computed / claim.value - 1, counts.method)


def _decide(undecided: Judgement, computed: float, difference: float, how: str) -> Judgement:
    verdict: Verdict = "agrees" if agrees_as_printed(undecided.claim, computed) else "contradicted"
    return dataclasses.replace(undecided, verdict=verdict, computed=computed, difference=difference, reason=how)


def _judge_training(undecided: Judgement, records: Sequence[Record]) -> Judgement:
    """By the record of a cell that trained this model by the claim's recipe, unshortened, on the claim's data."""
    claim = undecided.claim

    def not_checkable(reason: str) -> Judgement:
        return dataclasses.replace(undecided, reason=reason)

    metric = _MEASURED[claim.quantity]
    if not claim.recipe and not claim.data:
        return not_checkable("the source does not say how it was trained")
    if not claim.recipe:
        for record in records:
            found = record.measurement(metric)
            published = record.cell.weights.startswith(f"{PRETRAINED}:")
            if published and record.cell.data == claim.data and found is not None and found.status == "ok":
                return _decide_measured(undecided, record, found)
        return not_checkable(f"needs a test of the published weights on {claim.data}; none was given")
    if claim.recipe not in list_recipes():
        return not_checkable(f"needs a completed run of the recipe {claim.recipe} on {claim.data}; it is not built in")
    recipe = load_recipe(claim.recipe)
    for record in records:
        cell = record.cell
        found = record.measurement(metric)
        whole = cell.recipe_hash == recipe.hash and TRAIN_IMAGES not in dict(cell.options)
        if whole and cell.data == claim.data and found is not None and found.status == "ok":
            return _decide_measured(undecided, record, found)
    return not_checkable(f"no completed run of the recipe {claim.recipe} on {claim.data} was given")


def _decide_measured(undecided: Judgement, record: Record, found: Measurement) -> Judgement:
    """An accuracy agrees if the claim, give or take its last digit, lies in the Wilson interval of the run."""
    claim, value = undecided.claim, found.value
    how = f"seed {record.cell.seed}, {found.method}"
    tested = record.measurement("test_images")
    if claim.quantity == "top1" and tested is not None:
        total = round(tested.value)
        low, high = wilson_interval(round(value * total), total)
        step = printed_step(claim)
        verdict: Verdict = "agrees" if low - step / 2 <= claim.value <= high + step / 2 else "contradicted"
        how = f"95 % [{100 * low:.1f}, {100 * high:.1f}] %; {how}"
        return dataclasses.replace(
            undecided, verdict=verdict, computed=value, difference=value / claim.value - 1, reason=how
        )
    return _decide(undecided, value, value / claim.value - 1, how)


def _judge_latency(undecided: Judgement, records: Sequence[Record]) -> Judgement:
    claim = undecided.claim
    if not claim.device:
        return dataclasses.replace(undecided, reason="the source does not say on which device and at which batch")
    for record in records:
        found = record.measurement("latency")
        if record.cell.device == claim.device and found is not None and found.status == "ok" and any(found.samples):
            value = estimate([process for process in found.samples if process]).value
            return _decide(undecided, value, value / claim.value - 1, found.method)
    return dataclasses.replace(undecided, reason=f"no run on {claim.device} was given")


def _of_size(records: Iterable[Record], card: ModelCard) -> list[Record]:
    """Those of the size and classes that the card's figures are for."""
    own = (card.image_size, card.num_classes)
    return [record for record in records if (record.cell.image_size, record.cell.num_classes) == own]


def _counter_of(records: Sequence[Record]) -> Counter:
    """Closed forms, and for other models what the records counted."""
    counted: Mapping[str, Record] = {
        record.cell.model: record
        for record in records
        if all((one := record.measurement(name)) is not None and one.status == "ok" for name in ("params", "flops"))
    }

    def count(name: str) -> Counts:
        if name in model_registry():
            with contextlib.suppress(Unsupported):  # a package's model may have no formula
                return count_by_formula(name)
        if name not in counted:
            raise Unsupported(f"parameters and FLOPs of {name} are not among the records")
        record = counted[name]
        params, flops = record.measurement("params"), record.measurement("flops")
        assert params is not None
        assert flops is not None
        where = f"{format_image_size(record.cell.image_size)} px, {record.cell.num_classes} classes"
        return Counts(round(params.value), round(flops.value), f"{flops.method}, at {where}")

    return count
