"""``vitbench list``: models, suites, recipes, data sets, devices, metrics."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from textwrap import indent
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument

from vitbench.commands import options
from vitbench.commands.output import print_json
from vitbench.core.errors import UnknownNameError, Unsupported

if TYPE_CHECKING:
    from vitbench.models.cards import ModelCard

EXAMPLES = """
vitbench list models
vitbench list models 'timm:vit_tiny*'
vitbench list suites --json
"""


def list_(
    what: Annotated[str, Argument(help="models, suites, recipes, datasets, devices or metrics.")],
    pattern: Annotated[str | None, Argument(help="Only names that match: cifar_*, timm:vit_tiny*.")] = None,
    json: options.JsonArray = False,
) -> int:
    """List models, suites, recipes, data sets, devices or metrics."""
    from vitbench.core.text import printable_lines

    if json:
        print_json(things(what, pattern))
    else:
        print(printable_lines(to_text(what, pattern)))
    return 0


def _model_row(card: ModelCard, name: str, patch: int | None, params: int | None) -> dict[str, Any]:
    from vitbench.core.records import format_image_size

    return {
        "model": name,
        "family": card.family,
        "image_size": format_image_size(card.image_size),
        "patch": patch,
        "num_classes": card.num_classes,
        "params": params,
        "summary": card.summary,
    }


def _models() -> list[dict[str, Any]]:
    """Our own models, with their parameters by the closed form where there is one; loads no torch."""
    from vitbench.analysis.closed_form import closed_form
    from vitbench.models.cards import model_registry

    rows = []
    for _, card in model_registry().items():
        try:
            params = closed_form(card, card.image_size, card.num_classes).params
        except Unsupported:
            params = None
        rows.append(_model_row(card, card.name, card.patch, params))
    return rows


def _suites() -> list[dict[str, Any]]:
    from vitbench.suites import list_suites, load_suite

    suites = [load_suite(name) for name in list_suites()]
    return [{"suite": suite.name, "models": len(suite.models), "description": suite.description} for suite in suites]


def _recipes() -> list[dict[str, Any]]:
    from vitbench.training.recipes import list_recipes, load_recipe

    return [
        {
            "recipe": one.name,
            "optimizer": one.optimizer,
            "learning_rate": one.learning_rate,
            "batch_size": one.batch_size,
            "budget": f"{getattr(one, one.budget):g} {one.budget}",
            "description": one.description,
        }
        for one in map(load_recipe, list_recipes())
    ]


def _datasets() -> list[dict[str, Any]]:
    from vitbench.training.data.datasets import list_datasets

    return [dict(entry) for entry in list_datasets()]


def _devices() -> list[dict[str, Any]]:
    from vitbench.devices import find_devices, open_device

    return [{"device": name, **open_device(name).describe()} for name in find_devices()]


def _metrics() -> list[dict[str, Any]]:
    from vitbench.core.registry import METRICS

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
    "models": _models, "suites": _suites, "recipes": _recipes, "datasets": _datasets, "devices": _devices,
    "metrics": _metrics,
}  # fmt: skip


def things(what: str, pattern: str | None = None) -> list[dict[str, Any]]:
    """The rows of one of LISTS whose name matches a shell pattern; ``timm:*`` and ``torchvision:*`` list the models of
    these libraries.

    Raises UnknownNameError for anything else, or if nothing matches.
    """
    if what not in LISTS:
        raise UnknownNameError("list", what, LISTS, "vitbench list --help")
    if pattern is None:
        return LISTS[what]()
    if what == "models" and pattern.startswith(("timm:", "torchvision:")):
        from vitbench.models import describe_model
        from vitbench.models.zoo import match_external

        # without parameters, for which each would have to be built
        return [_model_row(describe_model(name), name, None, None) for name in match_external(pattern)]
    rows = LISTS[what]()
    key = next(iter(rows[0]))
    found = [row for row in rows if fnmatch.fnmatchcase(row[key], pattern)]
    if not found:
        raise UnknownNameError(key, pattern, [row[key] for row in rows], f"vitbench list {what}")
    return found


def to_text(what: str, pattern: str | None = None) -> str:
    """A plain table; of models one a family."""
    rows = things(what, pattern)
    if what != "models":
        return _table(rows)
    families: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        families.setdefault(row["family"], []).append(row)
    parts = [f"{family}\n{indent(_table(members), '  ')}" for family, members in families.items()]
    if pattern is None:
        parts.append(
            "Any of timm (timm:vit_tiny_patch16_224) and torchvision (torchvision:vit_b_16), too: "
            "vitbench list models 'timm:vit_*'"
        )
    return "\n\n".join(parts)


def _table(rows: list[dict[str, Any]]) -> str:
    from tabulate import tabulate

    texts = [{key.replace("_", " "): _text(key, row[key]) for key in row if key != "family"} for row in rows]
    return tabulate(texts, headers="keys", tablefmt="plain", disable_numparse=True)


def _text(key: str, value: Any) -> str:
    if value is None:
        return "see vitbench show"
    if key == "params":
        return f"{value / 1e6:.2f} M"
    return ", ".join(map(str, value)) if isinstance(value, dict | list) else str(value)
