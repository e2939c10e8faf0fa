"""A model's card: its counts, where its parameters and FLOPs are, its layers, and its claims judged."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vitbench.analysis.claims import Counts, Judgement, count_by_formula, judge_card, to_dict
from vitbench.core.errors import USAGE_CAUSES, Unsupported, UsageError
from vitbench.core.records import Cell, Record, parse_image_size
from vitbench.core.registry import ModelCard, find_models, is_external, is_pattern, model_registry
from vitbench.metrics import Subject
from vitbench.metrics.support.in_process import failure_of, make_subject, run_metric

#: The metrics that a card shows.
_SHOWN = ("params", "params_without_gradient", "flops")
#: torchvision's ViTs, whose metadata hold published figures; a pattern's models are looked up when it is asked for.
TORCHVISION_VITS = ("vit_", "swin_", "maxvit_")


def show_models(
    names: Sequence[str],
    *,
    image_size: str | None = None,
    num_classes: int | None = None,
    layers: bool = False,
    weights: str | None = None,
    replace_head: bool = False,
) -> list[dict[str, Any]]:
    """A card a model: parameters and FLOPs for a batch of one image, counted on ``meta``; with ``layers`` each layer's.

    With ``weights``, the path of a checkpoint, the card says what it is and how it fits; that one needs memory.
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
    names = expand_names(names)
    if replace_head and weights is None:
        raise UsageError("--replace-head goes with --weights PATH")
    if weights is not None and len(names) > 1:
        raise UsageError(f"A checkpoint fits one model, not {len(names)}: give one name with --weights")
    cards = []
    for name in names:
        card = _show_model(name, size, num_classes, layers, weights)
        if weights is not None and "error" not in card:
            card["weights"] = _check_weights(card, weights, replace_head)
        cards.append(card)
    return cards


def _show_model(
    name: str, size: tuple[int, int] | None, num_classes: int | None, layers: bool, weights: str | None
) -> dict[str, Any]:
    """The card at the size and with the classes that are given, else those of the ``weights``, else the model's own."""
    from vitbench.models import describe_model

    facts: Mapping[str, Any] = {}
    shapes: Mapping[str, tuple[int, ...]] = {}
    if weights is not None:  # a file that is none is no answer about the model: it is raised
        from vitbench.models.weights.checkpoints import read_facts
        from vitbench.models.weights.claimed import shapes_in_file

        facts, shapes = read_facts(weights), shapes_in_file(Path(weights))
    try:
        card = describe_model(name)
        chosen, classes = size or card.image_size, num_classes or card.num_classes
        if weights is not None:
            from vitbench.models.weights.claimed import chosen_size, classes_of

            chosen = size or chosen_size(card, None, facts, shapes)
            classes = num_classes or classes_of(card, shapes, facts)
        card.check_image_size(chosen)
    except UsageError as error:
        return {"model": name, "error": str(error), "usage": True}
    cell = Cell(
        model=name,
        image_size=chosen,
        num_classes=classes,
        batch_size=1,
        device="cpu",
        threads=1,
    )
    shown: dict[str, Any] = {"model": name, "image_size": list(chosen), "num_classes": cell.num_classes}
    try:
        subject = make_subject(cell)
        found = {one.metric: one for metric in _SHOWN for one in run_metric(metric, subject)}
    except Exception as error:  # a model that fails is an answer; the others are still asked for
        failure = failure_of(error, cell)
        return {**shown, "error": failure.detail.splitlines()[0], "usage": failure.cause in USAGE_CAUSES}
    shown |= {key: int(found[key].value) for key in ("params", "trainable_params", "macs", "flops", "params_bytes")}
    shown |= {key: int(found[key].value) for key in ("buffers", "buffers_bytes")}
    dead = found["params_without_gradient"]
    shown["params_without_gradient"] = int(dead.value) if dead.status == "ok" else None
    shown |= {"summary": card.summary, "source": card.source, "method": found["flops"].method}
    shown |= {"patch": card.patch if not is_external(name) else None, "config": dict(card.config)}
    shown |= _inside(subject, layers)
    shown["claims"] = [to_dict(one) for one in _judge_shown(card, cell, Counts(shown["params"], shown["flops"], ""))]
    shown["recipes"] = sorted({claim.recipe for claim in card.claims if claim.recipe})
    return shown


def _inside(subject: Subject, layers: bool) -> dict[str, Any]:
    """Parts, tokens and layers of a model; a model that hooks break has the reason instead."""
    from dataclasses import asdict

    from vitbench.analysis.layers import describe_layers, sum_parts, tokens_per_block

    try:
        with subject.on_meta(1) as (model, images):
            found = describe_layers(model, images)
            tokens = tokens_per_block(model, images)
    except Exception as error:  # the counts stand without it
        return {"parts": {}, "tokens_per_block": [], "parts_error": f"{type(error).__name__}: {error}".splitlines()[0]}
    inside: dict[str, Any] = {"parts": sum_parts(found), "tokens_per_block": list(tokens)}
    if layers:
        inside["layers"] = [{**asdict(layer), "output_shape": list(layer.output_shape)} for layer in found]
    return inside


def _judge_shown(card: ModelCard, cell: Cell, counts: Counts) -> list[Judgement]:
    """The card's claims, which are for its own size and classes, by what was counted if the cell is of those."""
    own = (card.image_size, card.num_classes) == (cell.image_size, cell.num_classes)

    def count(name: str) -> Counts:
        if name == card.name and own:
            return Counts(counts.params, counts.flops, "counted on meta")
        return count_model(name)

    return judge_card(card, count)


def _check_weights(card: dict[str, Any], path: str, replace_head: bool) -> dict[str, Any]:
    """Loads a checkpoint into the model that a card shows. Raises CheckpointError if it does not fit."""
    from vitbench.models import build_model
    from vitbench.models.weights.checkpoints import load_checkpoint

    height, width = card["image_size"]
    model = build_model(card["model"], image_size=(height, width), num_classes=card["num_classes"])
    report = load_checkpoint(model, path, replace_head=replace_head)
    return {
        "file": report.path,
        "layout": report.layout,
        "digest": report.digest,
        "tensors": report.tensors,
        "dtype": report.dtype,
        "resampled": report.resampled,
        "replaced_head": report.replaced_head,
        "facts": dict(report.facts),
    }


def count_model(name: str) -> Counts:
    """Parameters and FLOPs of any model at its own size: by closed form, or else counted on ``meta``.

    Raises Unsupported if the model fails, UsageError if there is none.
    """
    if not is_external(name):
        with contextlib.suppress(Unsupported):  # a package's model may have no formula
            return count_by_formula(name)
    from vitbench.models import describe_model

    card = describe_model(name)
    cell = Cell(
        model=name, image_size=card.image_size, num_classes=card.num_classes, batch_size=1, device="cpu", threads=1
    )
    try:
        subject = make_subject(cell)
        found = {one.metric: one for metric in ("params", "flops") for one in run_metric(metric, subject)}
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        raise Unsupported(f"{name} fails on meta: {type(error).__name__}: {error}".splitlines()[0]) from error
    return Counts(int(found["params"].value), int(found["flops"].value), "counted on meta")


def judge_models(patterns: Sequence[str] | None, records: Sequence[Record] = ()) -> list[Judgement]:
    """The claims of models (by default all of ours and torchvision's ViTs), accuracies and latencies by ``records``.

    Raises UnknownNameError for a model that there is not.
    """
    known: dict[str, Counts] = {}

    def count(name: str) -> Counts:
        if name not in known:
            known[name] = count_model(name)
        return known[name]

    judged: list[Judgement] = []
    for card in _cards(patterns):
        judged += judge_card(card, count, records)
    return judged


def _cards(patterns: Sequence[str] | None) -> list[ModelCard]:
    from vitbench.models import describe_model

    if patterns is None:
        from torchvision import models

        vits = [name for name in models.list_models(module=models) if name.startswith(TORCHVISION_VITS)]
        names = [*model_registry(), *(f"torchvision:{name}" for name in vits)]
    else:
        names = [name for pattern in patterns for name in _names(pattern)]
    return [describe_model(name) for name in dict.fromkeys(names)]


def expand_names(names: Sequence[str]) -> list[str]:
    """Patterns replaced by what they mean; names stay as they are, also unknown ones, which are answered one by one."""
    return [one for name in names for one in (_names(name) if is_pattern(name) else [name])]


def _names(pattern: str) -> list[str]:
    """What a name or a pattern means, those of timm and torchvision included."""
    if pattern.startswith(("timm:", "torchvision:")) and is_pattern(pattern):
        from vitbench.models.zoo import match_external

        return match_external(pattern)
    return find_models(pattern)


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
        f"  tokens        {_tokens_text(card['tokens_per_block'])}" if card["tokens_per_block"] else "",
        f"  recipe        {', '.join(card['recipes'])}" if card["recipes"] else "",
        f"  configuration {_config_text(card)}" if card["config"] else "",
        _weights_text(card["weights"]) if "weights" in card else "",
    ]
    text = "\n".join(line for line in lines if line)
    text += _parts_text(card)
    if card["claims"]:
        text += "\n\n  claims\n" + _indented(_claims_text(card["claims"]))
    if "layers" in card:
        text += "\n\n  layers\n" + _indented(_layers_text(card["layers"]))
    return text


def _tokens_text(tokens: Sequence[int]) -> str:
    """``197 into each of 12 blocks``, or one number a block where they differ."""
    if len(set(tokens)) == 1:
        return f"{tokens[0]} into each of {len(tokens)} blocks"
    return f"{', '.join(map(str, tokens))} into blocks 0 to {len(tokens) - 1}"


def _config_text(card: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in card["config"].items())


def _weights_text(weights: dict[str, Any]) -> str:
    notes = [f"{weights['tensors']} tensors", weights["dtype"], f"layout of {weights['layout']}"]
    if weights["resampled"]:
        old, new = (f"{grid[0]}x{grid[1]}" for grid in weights["resampled"])
        notes.append(f"positions resampled from {old} to {new}")
    if weights["replaced_head"]:
        notes.append("its head left out: this one is random")
    return f"  weights       {weights['file']} ({weights['digest']}): {', '.join(notes)}"


def _parts_text(card: dict[str, Any]) -> str:
    if not card["parts"]:
        return f"\n  parts         not known here: {card['parts_error']}" if card.get("parts_error") else ""
    from tabulate import tabulate

    rows = [
        [
            part,
            f"{sums['params']:,}",
            f"{100 * sums['params'] / max(card['params'], 1):.1f}",
            f"{sums['flops'] / 1e9:.4g}",
            f"{100 * sums['flops'] / max(card['flops'], 1):.1f}",
        ]
        for part, sums in card["parts"].items()
    ]
    headings = ["part", "parameters", "%", "GFLOPs", "%"]
    return "\n\n" + _indented(tabulate(rows, headings, tablefmt="plain", stralign="right", disable_numparse=True))


def _claims_text(claims: Sequence[dict[str, Any]]) -> str:
    from tabulate import tabulate

    rows = [[one["quantity"], one["condition"], one["printed"], one["verdict"], one["reason"]] for one in claims]
    return tabulate(rows, tablefmt="plain", disable_numparse=True)


def _layers_text(layers: Sequence[dict[str, Any]]) -> str:
    from tabulate import tabulate

    rows = [
        [
            layer["path"],
            layer["kind"],
            layer["part"],
            "x".join(map(str, layer["output_shape"])),
            f"{layer['params']:,}",
            f"{layer['flops']:,}",
        ]
        for layer in layers
    ]
    headings = ["layer", "class", "part", "output", "parameters", "FLOPs"]
    align = ("left", "left", "left", "right", "right", "right")
    return tabulate(rows, headings, tablefmt="plain", colalign=align, disable_numparse=True)


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())
