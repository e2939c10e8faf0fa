"""Render model summaries and FLOP audits as text for a terminal, one block a model."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

from vitbench.core.records import RGB, format_image_size


def cards_to_text(cards: Sequence[dict[str, Any]]) -> str:
    """The cards of ``show_models`` without those that failed."""
    return "\n\n".join(_card_to_text(card) for card in cards if "error" not in card)


def _card_to_text(card: dict[str, Any]) -> str:
    height, width = card["image_size"]
    dead = card["params_without_gradient"]
    config = ", ".join(f"{key} {value}" for key, value in card["config"].items())
    lines = [
        f"{card['model']}  ({height}x{width} px, {shape_words(card)})",
        f"  {card['summary']}" if card["summary"] else "",
        f"  source        {card['source']}" if card["source"] else "",
        f"  parameters    {card['params']:,} ({card['params_bytes'] / 1e6:.1f} MB), "
        f"trainable {card['trainable_params']:,}",
        f"  no gradient   {'unavailable' if dead is None else f'{dead:,} parameters get none in a training step'}",
        f"  buffers       {card['buffers']:,} elements ({card['buffers_bytes'] / 1e6:.1f} MB)",
        *_flops_lines(card),
        f"  tokens        {_tokens_text(card['tokens_per_block'])}" if card["tokens_per_block"] else "",
        f"  recipe        {', '.join(card['recipes'])}" if card["recipes"] else "",
        f"  configuration {config}" if card["config"] else "",
        _weights_text(card["weights"]) if "weights" in card else "",
    ]
    text = "\n".join(line for line in lines if line)
    text += _parts_text(card)
    if card["claims"]:
        shown = ("quantity", "condition", "printed", "verdict", "reason")
        claims = [[claim[key] for key in shown] for claim in card["claims"]]
        text += "\n\n  claims\n" + _indented(_table(claims), 4)
    if "layers" in card:
        text += "\n\n  layers\n" + _indented(_layers_text(card["layers"]), 4)
    return text


def _flops_lines(card: dict[str, Any]) -> list[str]:
    if card["flops"] is None:
        return [f"  GFLOPs        unavailable: {card['flops_error']}"]
    least = "at least " if card["lower_bound"] else ""
    return [
        f"  GFLOPs        {least}{card['flops'] / 1e9:.4g} for one image (a multiply-add is two)",
        f"  GMACs         {least}{card['macs'] / 1e9:.4g}",
        f"  lower bound   no formula covers {card['left_out']}" if card["lower_bound"] else "",
        f"  counted by    {card['method']}",
    ]


def _tokens_text(tokens: Sequence[int]) -> str:
    """``197 into each of 12 blocks``, or one number a block where they differ."""
    if len(set(tokens)) == 1:
        return f"{tokens[0]} into each of {len(tokens)} blocks"
    return f"{', '.join(map(str, tokens))} into blocks 0 to {len(tokens) - 1}"


def _weights_text(weights: dict[str, Any]) -> str:
    notes = [f"{weights['tensors']} tensors", weights["dtype"], f"layout of {weights['layout']}", *weights["notes"]]
    return f"  weights       {weights['file']} ({weights['digest']}): {', '.join(notes)}"


def _parts_text(card: dict[str, Any]) -> str:
    if not card["parts"]:
        return f"\n  parts         unavailable: {card['parts_error']}" if card.get("parts_error") else ""
    rows = []
    for part, sums in card["parts"].items():
        params, flops = (f"{100 * sums[key] / max(card[key] or 0, 1):.1f}" for key in ("params", "flops"))
        if card["lower_bound"]:
            flops = ""  # the whole is unknown
        least = "at least " if sums["lower_bound"] else ""
        rows.append([part, f"{sums['params']:,}", params, f"{least}{_giga(sums['flops'])}", flops])
    headings = ["part", "parameters", "%", "GFLOPs", "%"]
    return "\n\n" + _indented(_table(rows, headings, stralign="right"), 4)


def _layers_text(layers: Sequence[dict[str, Any]]) -> str:
    rows = []
    for layer in layers:
        shape = "x".join(map(str, layer["output_shape"]))
        least = "at least " if layer["lower_bound"] else ""
        counts = [f"{layer['params']:,}", f"{least}{layer['flops']:,}"]
        rows.append([layer["path"], layer["kind"], layer["part"], shape, *counts])
    headings = ["layer", "class", "part", "output", "parameters", "FLOPs"]
    align = ("left", "left", "left", "right", "right", "right")
    return _table(rows, headings, colalign=align)


def audits_to_text(audits: Sequence[Mapping[str, Any]]) -> str:
    """The audits of ``audit_flops`` without those that failed."""
    return "\n\n".join(_audit_to_text(audit) for audit in audits if "error" not in audit)


def _audit_to_text(audit: Mapping[str, Any]) -> str:
    size = format_image_size((audit["image_size"][0], audit["image_size"][1]))
    parts = [
        f"{audit['model']}  ({size} px, {shape_words(audit)}, {audit['attention']} attention), one image",
        _indented(_counters_text(audit), 2),
        _executed_text(audit.get("executed")),
        "  products, which is what FLOPs means here (a multiply-add is two)\n"
        + _indented(_operators_text(audit["operators"], formulas=False), 4),
        f"  element-wise work, not in the above: {_giga(audit['elementwise_flops'])} GFLOPs\n"
        + _indented(_operators_text(audit["elementwise"], formulas=True), 4),
        _training_text(audit["training"]),
    ]
    for tool in ("fvcore", "thop"):
        parts += _differences_text(tool, audit.get(tool, {}))
    parts += [f"  WARNING: {text}" for text in audit["warnings"]]
    return "\n\n".join(part for part in parts if part)


def _counters_text(audit: Mapping[str, Any]) -> str:
    where = "dispatcher, executed" if "executed" in audit else "dispatcher, on meta"
    least = "at least " if audit["lower_bound"] else ""
    counts = [f"{least}{_giga(audit[name])}" for name in ("flops", "macs")]
    rows = [[where, *counts, "", audit["method"]]]
    closed = audit["closed_form"]
    if "flops" in closed:
        difference = f"{100 * closed['difference']:+.3f} %"
        rows.append(["closed form", _giga(closed["flops"]), _giga(closed["flops"] / 2), difference, ""])
    else:
        rows.append(["closed form", "", "", "", closed["reason"]])
    for tool in ("fvcore", "thop"):
        other = audit.get(tool)
        if other and "flops" in other:
            difference = f"{100 * other['difference']:+.1f} %" if "difference" in other else ""
            rows.append([tool, _giga(other["flops"]), _giga(other["flops"] / 2), difference, other["tool"]])
        elif other:
            rows.append([tool, "", "", "", other["reason"]])
    return _table(rows, ["counter", "GFLOPs", "GMACs", "difference", ""])


def _executed_text(executed: Mapping[str, Any] | None) -> str:
    if executed is None:
        return ""
    least, mean, most = (_giga(executed[which]) for which in ("min", "mean", "max"))
    return (
        f"  FLOPs depend on the image: min {least}, mean {mean}, max {most} GFLOPs of {executed['pictures']} random "
        f"images\n  (means below; it does not run on meta: {executed['reason']})"
    )


def _operators_text(operators: Mapping[str, Mapping[str, Any]], *, formulas: bool) -> str:
    ordered = sorted(operators.items(), key=lambda item: -item[1]["flops"])
    rows = [[name, one["calls"], f"{one['flops']:,}", *([one["formula"]] if formulas else [])] for name, one in ordered]
    headings = ["operator", "calls", "FLOPs", *(["formula"] if formulas else [])]
    align = ("left", "right", "right", *(("left",) if formulas else ()))
    return _table(rows, headings, colalign=align) if rows else "none"


def _training_text(training: Mapping[str, Any]) -> str:
    if "reason" in training:
        return f"  training step: unavailable, {training['reason']}"
    least = "at least " if training["lower_bound"] else ""
    exact = f"; closed form {100 * training['difference']:+.3f} %" if "difference" in training else ""
    return (
        f"  training step, an image of a batch of {training['batch_size']}: "
        f"forward {_giga(training['forward_flops'])} + backward {_giga(training['backward_flops'])} "
        f"= {least}{_giga(training['step_flops'])} GFLOPs{exact}\n"
        f"  (element-wise work beside it: {_giga(training['elementwise_flops'])} GFLOPs, without the optimizer's)"
    )


def _differences_text(tool: str, other: Mapping[str, Any]) -> list[str]:
    if "flops" not in other:
        return []
    lines = [f"  {tool} misses {_giga(flops)} GFLOPs: {what}" for what, flops in other["missed"].items()]
    added = {name: flops for name, flops in other["added"].items() if flops}
    if added:
        listed = ", ".join(f"{name} {_giga(flops)}" for name, flops in added.items())
        lines.append(f"  {tool} adds (GFLOPs): {listed}")
    return ["\n".join(lines)] if lines else []


def fits_to_text(fits: Sequence[Mapping[str, Any]]) -> str:
    """The answers of ``fit_models`` without those that failed: one as a block, several as a table."""
    found = [one for one in fits if "error" not in one]
    if len(found) == 1:
        return _fit_to_text(found[0])
    rows = [
        [
            one["model"],
            format_image_size(one["image_size"]),
            _largest_text(one),
            *(_size_text(size) for size in (one["peak"]["bytes"], one["image_bytes"], one["fixed_bytes"])),
        ]
        for one in found
    ]
    headings = ["model", "px", "largest batch", "peak", "one image", "fixed"]
    align = ("left", "right", "right", "right", "right", "right")
    parts = [_setting_text(found[0]), _indented(_table(rows, headings, colalign=align), 2), _beside_text(found[0])]
    if any(_compared(one) for one in found):
        options = list(dict.fromkeys(name for one in found for name in one["changes"]))
        changed = [[one["model"], *(_change_text(one["changes"].get(name)) for name in options)] for one in found]
        short = [re.sub("--(dtype |optimizer |attention )?", "", name) for name in options]
        columns = ("left", *["right"] * len(options))
        parts += ["largest batch with", _indented(_table(changed, ["model", *short], colalign=columns), 2)]
    return "\n".join([*filter(None, parts), _wrapped("method  ", _common_method(found))])


def _fit_to_text(one: Mapping[str, Any]) -> str:
    peak = one["peak"]
    parts = [
        [kind, _size_text(size), f"{100 * size / peak['bytes']:.1f} %"] for kind, size in peak["parts"].items() if size
    ]
    at = f"{peak['phase']}{' pass' if peak['phase'] != 'optimizer' else ''}, in {peak['operator']}"
    memory = _size_text(one["memory_bytes"])
    fits = f"{_largest_text(one)} in {memory}" if one["largest_batch"] else f"0: not even one image fits in {memory}"
    lines = [
        f"{one['model']}  ({format_image_size(one['image_size'])} px, {shape_words(one)})",
        f"  {_setting_text(one)}",
        f"  largest batch  {fits}",
        f"  peak           {_size_text(peak['bytes'])} at batch {peak['batch']}, "
        f"{_size_text(peak['bytes'] + one['image_bytes'])} at {peak['batch'] + 1}",
        f"  one image      {_size_text(one['image_bytes'])}, and {_size_text(one['fixed_bytes'])} for every batch",
        f"  {_beside_text(one)}" if one["beside_bytes"] else "",
        f"  peak in        {at}",
        _indented(_table(parts, colalign=("left", "right", "right")), 17),
        _wrapped("  method         ", one["method"]),
    ]
    if _compared(one):
        rows = [[options, _change_text(batch)] for options, batch in one["changes"].items()]
        lines.append("  with           " + _indented(_table(rows, colalign=("left", "right")), 17).lstrip())
    elif one["changes"]:
        lines.append(_wrapped("  more may fit   ", f"with {', '.join(one['changes'])}; --compare tells how many"))
    return "\n".join(line for line in lines if line)


def _compared(one: Mapping[str, Any]) -> bool:
    return any(batch is not None for batch in one["changes"].values())


def _setting_text(one: Mapping[str, Any]) -> str:
    words = [one["mode"], one["dtype"], f"{one['attention']} attention"]
    if one["mode"] == "train":
        words += [one["optimizer"], *(["checkpointing"] if one["checkpointing"] else [])]
    return ", ".join([*words, f"{_size_text(one['memory_bytes'])} on {one['device']}"])


def _beside_text(one: Mapping[str, Any]) -> str:
    beside = one["beside_bytes"]
    return f"beside tensors {_size_text(beside)} for CUDA's context, cuBLAS and rounding" if beside else ""


def _common_method(found: Sequence[Mapping[str, Any]]) -> str:
    return found[0]["method"].partition(";")[0]


def _largest_text(one: Mapping[str, Any]) -> str:
    next_bytes = one["peak"]["bytes"] + one["image_bytes"] + one["beside_bytes"]
    bounded = one["largest_batch"] and next_bytes <= one["memory_bytes"]
    return f"{'at least ' if bounded else ''}{one['largest_batch']:,}"


def _change_text(batch: int | str | None) -> str:
    return "" if batch is None else f"{batch:,}" if isinstance(batch, int) else batch


def _size_text(count: float) -> str:
    """Bytes as ``1.50 GiB``, ``12.0 MiB`` or ``3.5 KiB``."""
    for unit, power, digits in (("GiB", 3, 2), ("MiB", 2, 1)):
        if abs(count) >= 1024**power:
            return f"{count / 1024**power:.{digits}f} {unit}"
    return f"{count / 1024:.1f} KiB"


def _wrapped(label: str, text: str) -> str:
    return textwrap.fill(text, 98, initial_indent=label, subsequent_indent=" " * len(label))


def _giga(flops: float) -> str:
    return f"{flops / 1e9:.4g}"


def _indented(text: str, by: int) -> str:
    return "\n".join(f"{' ' * by}{line}" for line in text.splitlines())


def _table(rows: Sequence[Sequence[Any]], headings: Sequence[str] = (), **alignment: Any) -> str:
    return tabulate(rows, headings, tablefmt="plain", disable_numparse=True, **alignment)


def shape_words(answer: Mapping[str, Any]) -> str:
    """``1000 classes``, also ``4 channels`` where the images have others than three."""
    channels = answer["in_channels"]
    other = f", {channels} channel{'s' if channels > 1 else ''}" if channels != RGB else ""
    return f"{answer['num_classes']} classes{other}"
