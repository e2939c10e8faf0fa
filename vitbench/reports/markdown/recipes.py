"""Trainings side by side: what came of each, class by class, beside what was published of it. Loads no torch."""

from __future__ import annotations

from collections.abc import Sequence

from vitbench.analysis.claims import is_data_of
from vitbench.core.records import Record, format_image_size
from vitbench.models.cards import Claim, model_registry
from vitbench.reports.format import NOT_ASKED, cell_text, table
from vitbench.reports.model.columns import show
from vitbench.reports.model.rows import DEFAULT_OPTION, Figure, figure
from vitbench.reports.model.runs import Run
from vitbench.training.recipes import list_recipes, load_recipe

#: More classes than these, or more trainings, make no table by class that a person reads.
_MOST_CLASSES = 20
_MOST_TRAININGS = 16
#: What a claim can be of that a training is compared with.
_TRAINED = ("top1", "macro_f1", "loss")
#: Tables with a column a class; a class's recall is the share of its pictures that are found.
_CLASS_TABLES = {"class_f1": "F1", "class_precision": "Precision", "class_recall": "Recall"}

Training = tuple[Run, Record]


def training_section(runs: Sequence[Run]) -> list[str]:
    """The section's heading, texts and tables; nothing unless the runs have trainings by more than one recipe, by one
    that something was published of, or with figures by class: all else stands in the main tables.
    """
    trainings = _trainings(runs)
    by_class = [one for one in trainings if any(figure(one[1], metric).status == "ok" for metric in _CLASS_TABLES)]
    if not (by_class or _are_compared(trainings)):
        return []
    published = any(_published(record) != NOT_ASKED for _, record in trainings)
    text = _HOW_TO_READ + (_HOW_PUBLISHED_IS_READ if published else "")
    parts = ["## Training", text, _comparison(trainings)]
    if len(by_class) > _MOST_TRAININGS:
        names = ", ".join(f"`{metric}`" for metric in _CLASS_TABLES)
        return [*parts, f"F1, precision and recall by class of {len(by_class)} trainings are in the records ({names})."]
    for metric, what in _CLASS_TABLES.items():
        parts += _by_class(trainings, metric, what)
    return parts


def training_summary(runs: Sequence[Run]) -> list[str]:
    """Heading and first table alone, for a terminal: of what the main tables do not say as well."""
    trainings = _trainings(runs)
    return ["## Training", _comparison(trainings)] if _are_compared(trainings) else []


_HOW_TO_READ = (
    "One line a training, in the order of the suite. Accuracy is top-1 on held-out pictures with its Wilson 95 % "
    "interval, which covers the choice of pictures, not that of the seed; macro F1 is the mean over classes of F1. "
    "A training that was shortened (*budget*) says what trainings differ by after that many pictures, no more."
)
_HOW_PUBLISHED_IS_READ = (
    " *Published* is what the model's source prints for that recipe (with its data in brackets, where they are not "
    "these). It is judged, under Published figures, only by a training with the recipe's own budget on all training "
    "pictures of its data."
)


def _trainings(runs: Sequence[Run]) -> list[Training]:
    return [(run, record) for run in runs for record in run.records if record.cell.trains]


def _are_compared(trainings: Sequence[Training]) -> bool:
    """Whether they stand beside those of another recipe or beside a published figure."""
    recipes = {(record.cell.weights, record.cell.recipe_hash) for _, record in trainings}
    return len(recipes) > 1 or any(_published(record) != NOT_ASKED for _, record in trainings)


def _comparison(trainings: Sequence[Training]) -> str:
    varying = _varying(trainings)
    lines = []
    for index, (_, record) in enumerate(trainings):
        lines.append(
            [
                cell_text(record.cell.model),
                cell_text(_recipe(record)),
                *(cell_text(values[index]) for values in varying.values()),
                _accuracy(record),
                _rounded(record, "macro_f1", 3),
                show(figure(record, "test_loss"), 1),
                _rounded(record, "training_images", 0),
                _rounded(record, "training_steps", 0),
                show(figure(record, "training_duration"), 1),
                cell_text(_published(record)),
                cell_text(_budget(record)),
            ]
        )
    tested = {found.value for _, record in trainings if (found := figure(record, "test_images")).value is not None}
    same = f" (n = {next(iter(tested)):.0f})" if len(tested) == 1 else ""
    axes = [cell_text(heading) for heading in varying]
    texts = ["model", "recipe", *axes, "published", "budget"]
    headings = ["model", "recipe", *axes, f"accuracy % [95 %]{same}", "macro F1", "test loss (nat)"]
    headings += ["pictures seen", "steps", "duration (s)", "published", "budget"]
    return table(headings, lines, texts)


def _by_class(trainings: Sequence[Training], metric: str, what: str) -> list[str]:
    """A table of ``metric`` for each set of classes."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for index, (_, record) in enumerate(trainings):
        found = figure(record, metric)
        if found.status == "ok":
            groups.setdefault(_class_names(found), []).append(index)
    varying = _varying(trainings)
    parts = []
    for names, indices in groups.items():
        if len(names) > _MOST_CLASSES:
            parts.append(
                f"{what} of each of the {len(names)} classes is in the records (`{metric}`), not in a table here."
            )
            continue
        lines = []
        for index in indices:
            record = trainings[index][1]
            which = [cell_text(record.cell.model), cell_text(_recipe(record))]
            which += [cell_text(values[index]) for values in varying.values()]
            lines.append([*which, *(f"{value:.3f}" for value in _values(figure(record, metric)))])
        texts = ["model", "recipe", *(cell_text(heading) for heading in varying)]
        parts.append(table([*texts, *(cell_text(name) for name in names)], lines, texts))
    return [f"### {what} by class", *parts] if parts else []


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


def _accuracy(record: Record) -> str:
    found = figure(record, "accuracy")
    estimate = found.estimate
    if estimate is None or estimate.low is None or estimate.high is None:
        return show(found, 100)
    return f"{100 * estimate.value:.1f} [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


def _rounded(record: Record, metric: str, decimals: int) -> str:
    """The figure with so many decimals, or what became of it."""
    found = figure(record, metric)
    return show(found, 1) if found.value is None else f"{found.value:.{decimals}f}"


def _published(record: Record) -> str:
    """What the model's card says of this recipe, as it was printed."""
    cell = record.cell
    if cell.model not in model_registry():
        return NOT_ASKED
    card = model_registry().get(cell.model)
    claims = [claim for claim in card.claims if claim.recipe == _recipe(record) and claim.quantity in _TRAINED]
    # two tables of one source may print the same figure
    return "; ".join(dict.fromkeys(_printed(claim, cell.data) for claim in claims)) or NOT_ASKED


def _printed(claim: Claim, data: str | None) -> str:
    notes = [] if is_data_of(claim, data) else [claim.data]
    notes += ["from published weights"] if claim.pretrained else []
    return f"{claim.printed} ({', '.join(notes)})" if notes else claim.printed


def _budget(record: Record) -> str:
    """What the record says of it; where it says nothing, whether its recipe is the built-in one."""
    found = record.measurement("training_images")
    if found is not None and found.status == "ok" and found.detail:
        return found.detail
    name = _recipe(record)
    if name not in list_recipes():
        return NOT_ASKED
    return "the recipe's own" if load_recipe(name).hash == record.cell.recipe_hash else "not the recipe's own"


def _class_names(found: Figure) -> tuple[str, ...]:
    """The classes as the record names them; numbers where names do not fit."""
    count = len(_values(found))
    names = tuple(found.measurement.detail.split(", ")) if found.measurement else ()
    return names if len(names) == count else tuple(map(str, range(count)))


def _values(found: Figure) -> tuple[float, ...]:
    return found.measurement.samples[0] if found.measurement else ()
