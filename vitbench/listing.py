"""What there is: models, suites, data sets, devices, metrics, and a model's card."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from vitbench.errors import UnknownNameError, Unsupported, UsageError
from vitbench.records import Cell, format_image_size, parse_image_size
from vitbench.registry import METRICS, ModelCard, model_registry


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
    from vitbench.models.closed_form import closed_form

    try:
        return closed_form(card, card.image_size, card.num_classes).params
    except Unsupported:
        return None


def list_suites() -> list[dict[str, Any]]:
    """The built-in suites."""
    from vitbench.suites import list_suites, load_suite

    suites = [load_suite(name) for name in list_suites()]
    return [{"suite": suite.name, "models": len(suite.models), "description": suite.description} for suite in suites]


def list_datasets() -> list[dict[str, Any]]:
    """The data sets that models can be trained on."""
    from vitbench.training.data import list_datasets

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
            "yields": dict(metric.yields),
            "summary": metric.summary,
        }
        for _, metric in METRICS.items()
    ]


LISTS: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "models": list_models,
    "suites": list_suites,
    "datasets": list_datasets,
    "devices": list_devices,
    "metrics": list_metrics,
}


def things(what: str) -> list[dict[str, Any]]:
    """One of LISTS. Raises UnknownNameError for anything else."""
    if what not in LISTS:
        raise UnknownNameError("list", what, LISTS, "vitbench list --help")
    return LISTS[what]()


def to_json(what: str) -> str:
    """A JSON array of objects."""
    return json.dumps(things(what), indent=2, ensure_ascii=False)


def to_text(what: str) -> str:
    """A plain table."""
    from tabulate import tabulate

    rows = [
        {key.replace("_", " "): _plain(key, value) for key, value in row.items() if key != "family"}
        for row in things(what)
    ]
    text = tabulate(rows, headers="keys", tablefmt="plain")
    if what == "models":
        text += "\n\nand any of timm (timm:vit_tiny_patch16_224) and torchvision (torchvision:vit_b_16)"
    return text


def _plain(key: str, value: Any) -> str:
    if key == "params" and value is None:
        return "see vitbench show"
    if key == "params":
        return f"{value / 1e6:.2f} M"
    if isinstance(value, dict):
        return ", ".join(value)
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)


def show_models(names: Sequence[str], *, image_size: str | None, num_classes: int | None) -> list[dict[str, Any]]:
    """A card a model: parameters and FLOPs for a batch of one image, counted on ``meta``.

    A model that fails has ``error`` (one line) and ``usage`` (whether the request was wrong rather than the model).
    Raises UsageError for an image size or class count that no model could take.
    """
    size = None
    if image_size is not None:
        try:
            size = parse_image_size(image_size)
        except ValueError as error:
            raise UsageError(str(error)) from error
    if num_classes is not None and num_classes < 1:
        raise UsageError(f"--num-classes {num_classes} is not positive: a head needs at least one class")
    return [_show_model(name, size, num_classes) for name in names]


def _show_model(name: str, size: tuple[int, int] | None, num_classes: int | None) -> dict[str, Any]:
    from vitbench.models import describe_model
    from vitbench.worker import failure_of, make_subject, run_metric

    try:
        card = describe_model(name)
        chosen = size or card.image_size
        card.check_image_size(chosen)
    except UsageError as error:
        return {"model": name, "error": str(error), "usage": True}
    cell = Cell(
        model=name,
        image_size=chosen,
        num_classes=num_classes or card.num_classes,
        batch_size=1,
        device="cpu",
        threads=1,
    )
    shown: dict[str, Any] = {"model": name, "image_size": list(chosen), "num_classes": cell.num_classes}
    try:
        subject = make_subject(cell, {}, lambda event: None)
        found = {one.metric: one for metric in ("params", "flops") for one in run_metric(metric, subject)}
    except Exception as error:  # a model that fails is an answer; the others are still asked for
        failure = failure_of(error, cell)
        return {**shown, "error": failure.detail.splitlines()[0], "usage": failure.cause == "usage"}
    shown |= {key: int(found[key].value) for key in ("params", "trainable_params", "macs", "flops", "params_bytes")}
    shown |= {key: int(found[key].value) for key in ("buffers", "buffers_bytes")}
    dead = found["params_without_gradient"]
    shown["params_without_gradient"] = int(dead.value) if dead.status == "ok" else None
    shown |= {"summary": card.summary, "source": card.source, "method": found["flops"].method}
    return shown


def cards_to_json(cards: Sequence[dict[str, Any]]) -> str:
    """A JSON array, one object a model."""
    return json.dumps([{key: value for key, value in card.items() if key != "usage"} for card in cards], indent=2)


def cards_to_text(cards: Sequence[dict[str, Any]]) -> str:
    """What a person reads, one block a model; failed ones are left to stderr."""
    return "\n\n".join(_card_to_text(card) for card in cards if "error" not in card)


def _card_to_text(card: dict[str, Any]) -> str:
    height, width = card["image_size"]
    dead = card["params_without_gradient"]
    lines = [
        f"{card['model']}  ({height}x{width} px, {card['num_classes']} classes)",
        f"  {card['summary']}" if card["summary"] else "",
        f"  source        {card['source']}" if card["source"] else "",
        f"  parameters    {card['params']:,} ({card['params_bytes'] / 1e6:.1f} MB), "
        f"trainable {card['trainable_params']:,}",
        f"  no gradient   {'not known here' if dead is None else f'{dead:,} parameters get none in a training step'}",
        f"  buffers       {card['buffers']:,} elements ({card['buffers_bytes'] / 1e6:.1f} MB)",
        f"  GFLOPs        {card['flops'] / 1e9:.4g} for one image (a multiply-add is two)",
        f"  GMACs         {card['macs'] / 1e9:.4g}",
        f"  counted by    {card['method']}",
    ]
    return "\n".join(line for line in lines if line)
