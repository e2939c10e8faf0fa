"""Trainings side by side: the results of each, class by class, beside what was published."""

from __future__ import annotations

from collections.abc import Sequence

from vitbench.analysis.claims import is_data_of
from vitbench.core.records import Record, format_image_size
from vitbench.models.cards import Claim, model_registry
from vitbench.reports.model.columns import PERCENT, WHOLE, empty_classes
from vitbench.reports.model.rows import DEFAULT_OPTION
from vitbench.reports.model.runs import Run
from vitbench.reports.model.tables import Column, Display, Table, Value, metric_value, number_value, text_value
from vitbench.reports.model.values import MetricValue, value_of
from vitbench.training.recipes import list_recipes, load_recipe

#: A table by class of more classes, or of more trainings, is not readable.
MOST_CLASSES = 20
MOST_TRAININGS = 16
#: What a claim can be of that a training is compared with.
_TRAINED = ("top1", "macro_f1", "loss")
#: Metrics with a table of a column a class.
BY_CLASS = {"class_f1": "F1", "class_precision": "Precision", "class_recall": "Recall"}

_SHARE = Display(precision="thousandths")

Training = tuple[Run, Record]


def trainings_of(runs: Sequence[Run]) -> list[Training]:
    """The trainings of all runs, in the order of their suites."""
    return [(run, record) for run in runs for record in run.records if record.cell.trains]


def is_published(trainings: Sequence[Training]) -> bool:
    """Whether anything was published of one of them."""
    return any(_published(record) for _, record in trainings)


def are_compared(trainings: Sequence[Training]) -> bool:
    """Whether they stand beside those of another recipe or beside a published value."""
    recipes = {(record.cell.weights, record.cell.recipe_hash) for _, record in trainings}
    return len(recipes) > 1 or is_published(trainings)


def with_classes(trainings: Sequence[Training]) -> int:
    """How many have values by class."""
    return sum(any(value_of(record, metric).status == "ok" for metric in BY_CLASS) for _, record in trainings)


def comparison_table(trainings: Sequence[Training]) -> Table:
    """One line a training."""
    varying = _varying(trainings)
    tested = {n for _, record in trainings if (n := value_of(record, "test_images").value) is not None}
    images = round(tested.pop()) if len(tested) == 1 else None
    metrics = [
        (Column(name="accuracy", display=PERCENT, images=images), "accuracy"),
        (Column(name="macro F1", display=_SHARE), "macro_f1"),
        (Column(name="macro F1 of classes present", display=_SHARE), "macro_f1_present"),
        (Column(name="test loss", display=Display("nat")), "test_loss"),
        (Column(name="images seen", display=WHOLE), "training_images"),
        (Column(name="steps", display=WHOLE), "training_steps"),
        (Column(name="duration", display=Display("s")), "training_duration"),
    ]
    if all(value_of(record, "macro_f1_present").value is None for _, record in trainings):
        metrics = [one for one in metrics if one[1] != "macro_f1_present"]
    lines = tuple(
        (
            *_names(record, varying, index),
            *(metric_value(found := value_of(record, metric), empty_classes(found)) for _, metric in metrics),
            *(text_value(text) if text else Value() for text in (_published(record), _budget(record))),
        )
        for index, (_, record) in enumerate(trainings)
    )
    columns = [*_name_columns(varying), *(column for column, _ in metrics), Column(name="published")]
    return Table((*columns, Column(name="budget")), lines)


def _name_columns(varying: dict[str, list[str]]) -> list[Column]:
    return [Column(name="model"), Column(name="recipe"), *(Column(name=heading) for heading in varying)]


def _names(record: Record, varying: dict[str, list[str]], index: int) -> list[Value]:
    return [text_value(text) for text in (record.cell.model, _recipe(record), *(v[index] for v in varying.values()))]


def class_tables(trainings: Sequence[Training], metric: str) -> list[Table | int]:
    """A table of ``metric`` for each set of classes; of more than ``MOST_CLASSES`` their number alone."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for index, (_, record) in enumerate(trainings):
        found = value_of(record, metric)
        if found.status == "ok":
            groups.setdefault(_class_names(found), []).append(index)
    varying = _varying(trainings)
    tables: list[Table | int] = []
    for names, indices in groups.items():
        lines = []
        for index in indices:
            record = trainings[index][1]
            values = [number_value(value) for value in _values(value_of(record, metric))]
            lines.append((*_names(record, varying, index), *values))
        columns = [*_name_columns(varying), *(Column(name=name, display=_SHARE) for name in names)]
        tables.append(len(names) if len(names) > MOST_CLASSES else Table(tuple(columns), tuple(lines)))
    return tables


def _varying(trainings: Sequence[Training]) -> dict[str, list[str]]:
    """What else the trainings differ in: heading to one text a training."""
    options = dict.fromkeys(key for _, record in trainings for key, _ in record.cell.options)
    found: dict[str, list[str]] = {}
    for run, record in trainings:
        cell = record.cell
        texts = {
            "run": run.name,
            "data": cell.data or "",
            "image size (px)": format_image_size(cell.image_size),
            "device": cell.device,
            "dtype": cell.dtype,
            "threads": str(cell.threads),
            "seed": str(cell.seed),
            **{key: dict(cell.options).get(key, DEFAULT_OPTION) for key in options},
        }
        for heading, text in texts.items():
            found.setdefault(heading, []).append(text)
    hashes: dict[str, set[str | None]] = {}
    for _, record in trainings:
        hashes.setdefault(record.cell.weights, set()).add(record.cell.recipe_hash)
    if any(len(ones) > 1 for ones in hashes.values()):
        found["recipe hash"] = [(record.cell.recipe_hash or "")[:8] for _, record in trainings]
    return {heading: texts for heading, texts in found.items() if len(set(texts)) > 1}


def _recipe(record: Record) -> str:
    return record.cell.weights.removeprefix("train:")


def _published(record: Record) -> str:
    """What the model's card says of this recipe, as it was printed; empty if it says nothing."""
    cell = record.cell
    if cell.model not in model_registry():
        return ""
    card = model_registry().get(cell.model)
    claims = [claim for claim in card.claims if claim.recipe == _recipe(record) and claim.quantity in _TRAINED]
    # two tables of one source may print the same value
    return "; ".join(dict.fromkeys(_printed(claim, cell.data) for claim in claims))


def _printed(claim: Claim, data: str | None) -> str:
    notes = [] if is_data_of(claim, data) else [claim.data]
    notes += ["from published weights"] if claim.pretrained else []
    return f"{claim.printed} ({', '.join(notes)})" if notes else claim.printed


def _budget(record: Record) -> str:
    """What the record says of it, else whether its recipe is the built-in one; empty if that is not known."""
    found = record.measurement("training_images")
    if found is not None and found.status == "ok" and found.detail:
        return found.detail
    name = _recipe(record)
    if name not in list_recipes():
        return ""
    return "the recipe's own" if load_recipe(name).hash == record.cell.recipe_hash else "not the recipe's own"


def _class_names(found: MetricValue) -> tuple[str, ...]:
    """The classes as the record names them; numbers where names do not fit."""
    count = len(_values(found))
    names = tuple(found.measurement.detail.split(", ")) if found.measurement else ()
    return names if len(names) == count else tuple(map(str, range(count)))


def _values(found: MetricValue) -> tuple[float, ...]:
    return found.measurement.samples[0] if found.measurement else ()
