"""Judge published values (claims) by computed ones: a claim and known counts in, a verdict out. Loads no torch.

Counts (parameters, FLOPs, ratios of them) are judged by the architecture at its own image size and classes. Accuracies
and losses are judged only by completed trainings with the claim's recipe on its data, allowing for the choice of the
seed (see ``_decide_trained``); latencies only by a run on the claim's device.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

from vitbench.analysis.closed_form import closed_form
from vitbench.core.errors import Unsupported, UsageError
from vitbench.core.records import RGB, Cell, Record, format_image_size
from vitbench.core.stats.intervals import estimate, prediction_interval, wilson_interval
from vitbench.core.validation import is_number
from vitbench.models.cards import CHANGE, PRETRAINED, QUANTITIES, Claim, ModelCard, is_external, model_registry
from vitbench.suites import TRAIN_IMAGES
from vitbench.training.data.datasets import DATASETS
from vitbench.training.data.downloads import DOWNLOADS
from vitbench.training.recipes import list_recipes, load_recipe

Verdict = Literal["agrees", "agrees as multiply-adds", "contradicted", "not checkable here"]

#: The prefix of the measurements that hold the claims of a model's library.
PUBLISHED = "published_"

#: The metric that judges a claim's quantity.
_MEASURED = {"top1": "accuracy", "loss": "test_loss", "macro_f1": "macro_f1"}

#: The fewest trainings that show their spread.
MIN_SEEDS = 3

#: Options of a training's cell: its initial weights if not random (``pretrained``: the published ones), its frozen
#: part, and the number of test images.
BEGAN_WITH, FROZEN, TEST_IMAGES = "began_with", "freeze", "test_images"

_IMAGENET = "ImageNet-1K"
_FOLDER = re.compile(r"folder:(?P<name>[^:]+):")
#: Other names for the folder of a claim's data.
_ALSO_CALLED = {"imagenet-1k": ("imagenet", "imagenet1k")}


@dataclass(frozen=True)
class Counts:
    """Counts of a model at its card's image size and classes; FLOPs of one image, a multiply-add is two.

    FLOPs are a lower bound if ``left_out`` names operators without a formula; None if ``unavailable`` says why.
    """

    params: int
    flops: int | None
    method: str
    left_out: str = ""
    unavailable: str = ""

    def exact(self, quantity: str) -> int:
        """``params`` or ``flops``. Raises Unsupported for FLOPs that are unavailable or a lower bound."""
        if quantity == "params":
            return self.params
        if self.flops is None:
            raise Unsupported(self.unavailable)
        if self.left_out:
            raise Unsupported(f"{self.method}, a lower bound without {self.left_out}: {self.flops / 1e9:.4g} GFLOPs")
        return self.flops


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """One claim judged. ``computed`` is in the claim's unit (multiply-adds for FLOPs that agree as such).

    ``difference`` is relative to the claim; of a change (-58 %) it is that of the two fractions. Both are None if
    nothing was computed.
    """

    model: str
    claim: Claim
    verdict: Verdict
    computed: float | None = None
    difference: float | None = None
    reason: str = ""


#: Counts of a model by its name; raises Unsupported if there are none.
Counter = Callable[[str], Counts]


def count_by_formula(name: str) -> Counts:
    """Counts of one of our models by its closed form. Raises Unsupported for any other."""
    if is_external(name):
        raise Unsupported(f"nothing has counted {name}")
    card = model_registry().get(name)
    found = closed_form(card, card.image_size, card.num_classes)
    return Counts(found.params, found.flops, "closed form")


def judge_card(card: ModelCard, count: Counter, records: Iterable[Record] = ()) -> list[Judgement]:
    """Every claim of a card, in its order. ``records`` may be of any model."""
    shape = card.image_size, card.num_classes
    own = [record for record in records if (record.cell.model, _shape(record)) == (card.name, shape)]
    return [judge(card.name, claim, count, own) for claim in card.claims]


def judge(model: str, claim: Claim, count: Counter, records: Sequence[Record]) -> Judgement:
    """One claim of a model by its ``records``."""
    undecided = Judgement(model=model, claim=claim, verdict="not checkable here")
    change = CHANGE.match(claim.quantity)
    try:
        if claim.quantity in ("params", "flops"):
            counts = count(model)
            if claim.quantity == "flops" and _exceeds(claim, counts):
                assert counts.flops is not None
                how = f"{counts.method}, a lower bound without {counts.left_out}"
                return _decide(undecided, counts.flops, counts.flops / claim.value - 1, how)
            return _judge_count(undecided, counts, counts.exact(claim.quantity))
        if change:
            own, other = count(model), count(change["other"])
            fraction = own.exact(change["count"]) / other.exact(change["count"]) - 1
            return _decide(undecided, fraction, fraction - claim.value, f"{own.method}, against {change['other']}")
    except (Unsupported, UsageError) as error:
        return dataclasses.replace(undecided, reason=str(error))
    if claim.quantity == "latency":
        return _judge_latency(undecided, records)
    if claim.quantity in ("top1", "macro_f1", "loss"):
        return _judge_training(undecided, records)
    kind = claim.quantity.replace("_", " ")
    reason = f"{kind}: says nothing without its device, which the source leaves out"
    return dataclasses.replace(undecided, reason=reason)


def agrees_as_printed(claim: Claim, computed: float) -> bool:
    """Whether ``computed``, rounded or truncated to the printed digits, equals what was printed.

    A claim with ``low`` and ``high`` agrees from one to the other. Digits are those of the first number in ``printed``
    (``6.0M`` has two).
    """
    if claim.low is not None and claim.high is not None:
        return claim.low <= computed <= claim.high
    step = printed_step(claim)
    value = abs(claim.value)
    # 1e-9: the rounding of floats at exactly half a digit
    return value - step * (0.5 + 1e-9) <= abs(computed) < value + step and (computed >= 0) == (claim.value >= 0)


def printed_step(claim: Claim) -> float:
    """One unit of the last printed digit: 0.1e6 for ``6.0M``. Raises ValueError if ``printed`` holds no number."""
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
    """The claims in a run's measurements (of torchvision's models, from its metadata); each once."""
    found: dict[str, Claim] = {}
    for record in records:
        for one in record.measurements:
            if one.metric.startswith(PUBLISHED) and one.status == "ok":
                quantity = one.metric.removeprefix(PUBLISHED)
                # the accuracies that libraries publish are of this data (models/zoo.py)
                data = _IMAGENET if quantity == "top1" else ""
                with contextlib.suppress(ValueError):  # a record from elsewhere may hold an invalid claim
                    found[quantity] = Claim(
                        quantity=quantity, value=one.value, printed=one.detail, source=one.method, data=data
                    )
    return tuple(found.values())


def judge_runs(records: Sequence[Record]) -> list[Judgement]:
    """The claims of all models of some runs, in order of first appearance."""
    judged: list[Judgement] = []
    for name in dict.fromkeys(record.cell.model for record in records):
        own = [record for record in records if record.cell.model == name]
        if name in model_registry():
            card = model_registry().get(name)
            claims = card.claims
            shape: tuple[tuple[int, int], int] | None = (card.image_size, card.num_classes)
        else:
            published = [record for record in own if claims_of_records([record])]
            claims, shape = claims_of_records(own), _shape((published or own)[0])  # published for one shape only
        count = _counter_of([record for record in records if _shape(record) == shape])
        judged += [judge(name, claim, count, [one for one in own if _shape(one) == shape]) for claim in claims]
    return judged


def _shape(record: Record) -> tuple[tuple[int, int], int] | None:
    """The image size and the number of classes; None for images of other channels, for which nothing is published."""
    cell = record.cell
    return (cell.image_size, cell.num_classes) if cell.in_channels == RGB else None


def to_dict(judgement: Judgement) -> dict[str, Any]:
    """The judgement as JSON."""
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


def _exceeds(claim: Claim, counts: Counts) -> bool:
    """Whether a lower bound of the FLOPs exceeds the claim, even one of multiply-adds."""
    macs = (counts.flops or 0) / 2
    return counts.left_out != "" and macs > claim.value and not agrees_as_printed(claim, macs)


def _judge_count(undecided: Judgement, counts: Counts, computed: int) -> Judgement:
    claim, macs = undecided.claim, computed / 2
    as_macs = claim.quantity == "flops" and agrees_as_printed(claim, macs) and not agrees_as_printed(claim, computed)
    if not as_macs:
        return _decide(undecided, computed, computed / claim.value - 1, counts.method)
    reason = f"{counts.method}; {computed / 1e9:.4g} GFLOPs are {macs / 1e9:.4g} GMACs"
    difference = macs / claim.value - 1
    return dataclasses.replace(
        undecided, verdict="agrees as multiply-adds", computed=macs, difference=difference, reason=reason
    )


def _decide(undecided: Judgement, computed: float, difference: float, how: str) -> Judgement:
    verdict: Verdict = "agrees" if agrees_as_printed(undecided.claim, computed) else "contradicted"
    return dataclasses.replace(undecided, verdict=verdict, computed=computed, difference=difference, reason=how)


def _judge_training(undecided: Judgement, records: Sequence[Record]) -> Judgement:
    """By the cells that trained this model with the claim's whole recipe on the claim's data."""
    claim = undecided.claim
    if not claim.recipe and claim.data:
        return _judge_published(undecided, records)
    tested = ""
    if not claim.recipe:
        reason = "the source does not say how it was trained"
    elif claim.recipe not in list_recipes():
        reason = f"needs a completed run of the recipe {claim.recipe} on {claim.data}; it is not built in"
    else:
        own = load_recipe(claim.recipe).hash
        trainings = [record for record in records if record.cell.recipe_hash == own and _is_whole(record.cell, claim)]
        if claim.quantity != "top1":  # the interval of top-1 allows for a choice of test images
            whole = [record for record in trainings if _is_tested_whole(record)]
            tested = ", tested on all test images," if len(whole) < len(trainings) else ""
            trainings = whole
        found = _of_most_seeds([record for record in trainings if is_data_of(claim, record.cell.data)], claim)
        if found:
            return _decide_trained(undecided, found)
        began = ", from the published weights," if claim.pretrained else ""
        reason = f"no completed run of the recipe {claim.recipe} on {_where(claim.data)}{began}{tested} was given"
    return dataclasses.replace(undecided, reason=reason)


def _is_whole(cell: Cell, claim: Claim) -> bool:
    """Whether a training used all images, and the claim's trainable parameters and initial weights."""
    options = dict(cell.options)
    if claim.pretrained:
        begun = options.get(BEGAN_WITH) == PRETRAINED and options.get(FROZEN, "backbone") == "backbone"
    else:
        begun = BEGAN_WITH not in options and FROZEN not in options
    return begun and TRAIN_IMAGES not in options


def _is_tested_whole(record: Record) -> bool:
    """Whether all test images were used, as far as their number is known."""
    tested = _value(record, "test_images")
    known = DOWNLOADS.get(record.cell.data or "")
    whole = TEST_IMAGES not in dict(record.cell.options)
    return whole and (tested is None or known is None or tested >= known.test_images)


def is_data_of(claim: Claim, label: str | None) -> bool:
    """Whether a cell's data ``label`` is the claim's: the same data set, or, for a data set unknown to vitbench,
    a folder of that name, ignoring case and ``-`` against ``_``.
    """
    if label == claim.data:
        return label is not None
    folder = _FOLDER.match(label or "")
    if folder is None or claim.data in DATASETS:
        return False
    name = _plain(claim.data)
    return _plain(folder["name"]) in (name, *_ALSO_CALLED.get(name, ()))


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.casefold())


def _where(data: str) -> str:
    return data if data in DATASETS else f"an image folder named {_plain(data)}"


def _of_most_seeds(records: Sequence[Record], claim: Claim) -> list[tuple[Record, float]]:
    """Trainings that differ only in the seed, one a seed, each with its value; of several such sets the first of those
    with the most seeds. Device and threads may differ: they change no more than a seed does.
    """
    sets: dict[Any, dict[int, tuple[Record, float]]] = {}
    for record in records:
        value = _value(record, _MEASURED[claim.quantity])
        if value is not None:
            alike = dataclasses.replace(record.cell, seed=0, device="", threads=1)
            which = sets.setdefault((alike, _value(record, "test_images")), {})
            which.setdefault(record.cell.seed, (record, value))
    return list(max(sets.values(), key=len, default={}).values())


def _decide_trained(undecided: Judgement, trainings: Sequence[tuple[Record, float]]) -> Judgement:
    """By the range of one further training: the prediction interval from ``MIN_SEEDS`` seeds on, and for an accuracy
    the Wilson intervals of its test images, whichever reaches further. Without either nothing is decided.
    """
    claim, values = undecided.claim, [value for _, value in trainings]
    record = trainings[0][0]
    computed = math.fsum(values) / len(values)
    judged = dataclasses.replace(undecided, computed=computed, difference=computed / claim.value - 1)
    found = record.measurement(_MEASURED[claim.quantity])
    how = f"seed {record.cell.seed}, {found.method if found else ''}"
    if len(values) > 1:
        how = f"mean of seeds {', '.join(str(one.cell.seed) for one, _ in trainings)}; the first: {how}"
    how += _data_note(claim, record)
    intervals = [prediction_interval(values)] if len(values) >= MIN_SEEDS else []
    tested = _value(record, "test_images")
    if claim.quantity == "top1" and tested is not None:
        shares = [computed] if intervals else values
        intervals += [wilson_interval(round(share * tested), round(tested)) for share in shares]
    if not intervals:
        known = "one training; its" if len(values) == 1 else f"{len(values)} trainings; their"
        reason = f"{known} spread over seeds is not known: give runs of three seeds; {how}"
        return dataclasses.replace(judged, reason=reason)
    return _decide_within(judged, intervals, how)


def _decide_within(judged: Judgement, intervals: Sequence[tuple[float, float]], how: str) -> Judgement:
    """By the span of ``intervals``, plus or minus half of the last printed digit."""
    claim = judged.claim
    low, high = max(min(low for low, _ in intervals), 0.0), max(high for _, high in intervals)
    step = printed_step(claim)
    lowest, highest = claim.value - step / 2, claim.value + step / 2
    if claim.low is not None and claim.high is not None:
        lowest, highest = claim.low, claim.high
    verdict: Verdict = "agrees" if low <= highest and lowest <= high else "contradicted"
    span = f"[{low:.4g}, {high:.4g}]"
    if claim.quantity in ("top1", "macro_f1"):
        high = min(high, 1.0)
        span = f"[{100 * low:.1f}, {100 * high:.1f}] %" if claim.quantity == "top1" else f"[{low:.3f}, {high:.3f}]"
    return dataclasses.replace(judged, verdict=verdict, reason=f"95 % {span}; {how}")


def _judge_published(undecided: Judgement, records: Sequence[Record]) -> Judgement:
    """By the test of the published weights on the most images of the claim's data."""
    claim = undecided.claim
    tests = [
        (tested, value, record)
        for record in records
        if record.cell.weights.startswith(f"{PRETRAINED}:") and is_data_of(claim, record.cell.data)
        if (value := _value(record, _MEASURED[claim.quantity])) is not None
        if (tested := _value(record, "test_images")) is not None
    ]
    if claim.quantity != "top1" or not tests:
        reason = f"needs a test of the published weights on {_where(claim.data)}; none was given"
        return dataclasses.replace(undecided, reason=reason)
    tested, value, record = max(tests, key=lambda one: one[0])
    found = record.measurement("accuracy")
    how = f"{found.method if found else ''}{_data_note(claim, record)}"
    judged = dataclasses.replace(undecided, computed=value, difference=value / claim.value - 1)
    judged = _decide_within(judged, [wilson_interval(round(value * tested), round(tested))], how)
    if judged.verdict == "contradicted":
        # cropping moves an accuracy by some tenths of a percent, another order of the classes by everything
        reason = f"{judged.reason}; outside, but images are cropped differently here"
        return dataclasses.replace(judged, verdict="not checkable here", reason=reason)
    return judged


def _data_note(claim: Claim, record: Record) -> str:
    """A note for data that only the name of its folder identifies."""
    note = f"; only the name of their folder says that the images are {claim.data}"
    return "" if record.cell.data == claim.data else note


def _value(record: Record, metric: str) -> float | None:
    """The single value of a metric; None without a finite one."""
    found = record.measurement(metric)
    if found is None or found.status != "ok" or [len(samples) for samples in found.samples] != [1]:
        return None
    return found.value if is_number(found.value) else None


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


def _counter_of(records: Sequence[Record]) -> Counter:
    """Counts by closed form, for other models by the records."""
    counted: Mapping[str, Record] = {
        record.cell.model: record
        for record in records
        if all((one := record.measurement(name)) is not None and one.status == "ok" for name in ("params", "flops"))
    }

    def count(name: str) -> Counts:
        if name in model_registry():
            with contextlib.suppress(Unsupported):  # a model of another package may have no formula
                return count_by_formula(name)
        if name not in counted:
            raise Unsupported(f"parameters and FLOPs of {name} are not among the records")
        record = counted[name]
        params, flops = record.measurement("params"), record.measurement("flops")
        assert params is not None
        assert flops is not None
        where = f"{format_image_size(record.cell.image_size)} px, {record.cell.num_classes} classes"
        return Counts(round(params.value), round(flops.value), f"{flops.method}, at {where}", flops.left_out)

    return count
