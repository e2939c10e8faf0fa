"""``vitbench list``: models, suites, recipes, data sets, devices, metrics."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from typing import Annotated, Any

from typer import Argument

from vitbench.commands import options
from vitbench.commands.output import print_json
from vitbench.core.errors import UnknownNameError, Unsupported
from vitbench.core.records import format_image_size
from vitbench.core.registry import METRICS
from vitbench.models.cards import ModelCard, model_registry

EXAMPLES = """
vitbench list models
vitbench list models 'timm:vit_tiny*'
vitbench list suites --json
"""


def list_(
    what: Annotated[str, Argument(help="models, suites, recipes, datasets, devices or metrics.")],
    pattern: Annotated[
        str | None, Argument(help="Only names that match: cifar_*, timm:vit_tiny*, torchvision:swin*.")
    ] = None,
    json: options.JsonArray = False,
) -> int:
    """List models, suites, recipes, data sets, devices or metrics."""
    from vitbench.core.text import printable_lines

    if json:
        print_json(things(what, pattern))
    else:
        print(printable_lines(to_text(what, pattern)))
    return 0


def list_models() -> list[dict[str, Any]]:
    """Our own models, by family, with their parameters by the closed form (no torch)."""
    return [
        {
            "model": card.name,
            "family": card.family,
            "image_size": format_image_size(card.image_size),
            "patch": card.patch,
            "num_classes": card.num_classes,
            "params": _params(card),
            "summary": card.summary,
        }
        for _, card in model_registry().items()
    ]


def _params(card: ModelCard) -> int | None:
    """By the closed form; None for a model that has none."""
    from vitbench.analysis.closed_form import closed_form

    try:
        return closed_form(card, card.image_size, card.num_classes).params
    except Unsupported:
        return None


def list_suites() -> list[dict[str, Any]]:
    """The built-in suites."""
    from vitbench.suites import list_suites, load_suite

    suites = [load_suite(name) for name in list_suites()]
    return [{"suite": suite.name, "models": len(suite.models), "description": suite.description} for suite in suites]


def list_recipes() -> list[dict[str, Any]]:
    """The built-in training recipes."""
    from vitbench.training.recipes import list_recipes, load_recipe

    found = [load_recipe(name) for name in list_recipes()]
    return [
        {
            "recipe": one.name,
            "optimizer": one.optimizer,
            "learning_rate": one.learning_rate,
            "batch_size": one.batch_size,
            "budget": f"{getattr(one, one.budget):g} {one.budget}",
            "description": one.description,
        }
        for one in found
    ]


def list_datasets() -> list[dict[str, Any]]:
    """The data sets that models can be trained on."""
    from vitbench.training.data.datasets import list_datasets

    return [dict(entry) for entry in list_datasets()]


def list_devices() -> list[dict[str, Any]]:
    """The devices of this machine. Loads torch."""
    from vitbench.devices import find_devices, open_device

    return [{"device": name, **open_device(name).describe()} for name in find_devices()]


def list_metrics() -> list[dict[str, Any]]:
    """The metrics, what each yields, and the modes of the cells that it applies to."""
    return [
        {
            "metric": metric.name,
            "modes": list(metric.modes),
            "yields": {value.name: value.unit for value in metric.yields if not value.optional},
            "summary": metric.summary,
        }
        for _, metric in METRICS.items()
    ]


LISTS: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "models": list_models,
    "suites": list_suites,
    "recipes": list_recipes,
    "datasets": list_datasets,
    "devices": list_devices,
    "metrics": list_metrics,
}


def things(what: str, pattern: str | None = None) -> list[dict[str, Any]]:
    """One of LISTS, those whose name matches ``pattern`` (a shell pattern); ``timm:*`` and ``torchvision:*`` patterns
    list the models of these libraries.

    Raises UnknownNameError for anything else, or if nothing matches.
    """
    if what not in LISTS:
        raise UnknownNameError("list", what, LISTS, "vitbench list --help")
    if pattern is None:
        return LISTS[what]()
    if what == "models" and pattern.startswith(("timm:", "torchvision:")):
        return _list_external(pattern)
    rows = LISTS[what]()
    key = next(iter(rows[0]))
    found = [row for row in rows if fnmatch.fnmatchcase(row[key], pattern)]
    if not found:
        raise UnknownNameError(key, pattern, [row[key] for row in rows], f"vitbench list {what}")
    return found


def _list_external(pattern: str) -> list[dict[str, Any]]:
    """Names and native sizes only: parameters would take building each. Loads the library."""
    from vitbench.models import describe_model
    from vitbench.models.zoo import match_external

    rows = []
    for name in match_external(pattern):
        card = describe_model(name)
        rows.append(
            {
                "model": name,
                "family": card.family,
                "image_size": format_image_size(card.image_size),
                "patch": None,
                "num_classes": card.num_classes,
                "params": None,
                "summary": card.summary,
            }
        )
    return rows


def to_text(what: str, pattern: str | None = None) -> str:
    """A plain table; of models one a family."""
    rows = things(what, pattern)
    if what != "models":
        return _table(rows)
    families: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        families.setdefault(row["family"], []).append(row)
    parts = [f"{family}\n{_indented(_table(members))}" for family, members in families.items()]
    if pattern is None:
        parts.append(
            "Any of timm (timm:vit_tiny_patch16_224) and torchvision (torchvision:vit_b_16), too: "
            "vitbench list models 'timm:vit_*'"
        )
    return "\n\n".join(parts)


def _table(rows: list[dict[str, Any]]) -> str:
    from tabulate import tabulate

    plain = [
        {key.replace("_", " "): _plain(key, value) for key, value in row.items() if key != "family"} for row in rows
    ]
    return tabulate(plain, headers="keys", tablefmt="plain", disable_numparse=True)


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())


def _plain(key: str, value: Any) -> str:
    if value is None:
        return "see vitbench show"
    if key == "params":
        return f"{value / 1e6:.2f} M"
    if isinstance(value, dict):
        return ", ".join(value)
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)
