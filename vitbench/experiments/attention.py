"""A trained model's attention over an image: open the model, read the image, watch one pass, write the figures.

Nothing is written before everything is drawn. Importing this module loads no torch, its functions do.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from vitbench.core.errors import DataError, Unsupported, UsageError
from vitbench.core.records import format_image_size
from vitbench.core.run_folder import cannot_write, write_atomically
from vitbench.core.text import printable
from vitbench.experiments.attention_figures import (
    Head,
    Scene,
    drops,
    layers_gif,
    layers_png,
    rollout_png,
    tokens_png,
)
from vitbench.experiments.images import images_of_data, read_image
from vitbench.experiments.open_model import DataRequest, ModelRequest, TrainedModel, explain_oom, open_trained

if TYPE_CHECKING:
    import torch

    from vitbench.analysis.attention import AttentionMap


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What is drawn: the maps of ``layer`` (from 1; None: all) and ``head`` (from 1, ``mean`` or ``all``), the rollout
    (None: where the model allows it), the animation through all layers; ``save_maps`` saves all weights.
    """

    layer: int | None = None
    head: Head = "mean"
    rollout: bool | None = None
    gif: bool = False
    save_maps: bool = False

    @classmethod
    def parse(cls, layer: str | None, head: str | None, *, rollout: bool, gif: bool, save_maps: bool) -> Choice:
        """From the options of the command line. Raises UsageError for a layer or head that is not a number from 1."""
        chosen_layer = _number_or_word(layer or "all", "--layer", "all")
        chosen_head = _number_or_word(head or "mean", "--head", "mean", "all")
        by_default = None if layer is None and head is None else False
        return cls(
            layer=None if chosen_layer == "all" else int(chosen_layer),
            head=cast("Head", chosen_head),
            rollout=rollout or by_default,
            gif=gif,
            save_maps=save_maps,
        )


@dataclass(frozen=True, kw_only=True)
class LayerSummary:
    """One layer in numbers: ``layer`` counts from 1, ``on_itself`` is the part (0 to 1) of CLS's attention that goes
    to CLS (None without CLS), ``largest_entropy_nat`` is ln of the tokens.
    """

    layer: int
    name: str
    kind: str
    heads: int
    tokens: int
    patches: int
    on_itself: float | None
    entropy_nat: float
    largest_entropy_nat: float


@dataclass(frozen=True, kw_only=True)
class AttentionReport:
    """What was looked at and what was written; ``picture`` is the image's name for people, ``grid`` is in patches."""

    model: str
    weights: str
    device: str
    picture: str
    image_size: tuple[int, int]
    grid: tuple[int, int]
    layers: tuple[LayerSummary, ...]
    notes: tuple[str, ...]
    written: tuple[Path, ...]


def draw_attention(
    request: ModelRequest,
    choice: Choice,
    *,
    image: Path | None = None,
    data: DataRequest | None = None,
    index: int = 0,
    out: Path = Path("attention"),
) -> AttentionReport:
    """Draw what a trained model attends to in one image, into the folder ``out``.

    The image is a file, or number ``index`` (from 0) of a split of ``data``. Written are ``layers.png`` (each layer's
    map, mean over heads), ``rollout.png``, and ``tokens.png`` if the model drops patches; with a layer or head chosen
    its maps, under a name that says which; on demand ``layers.gif`` and ``maps.npz``: float32 ``layer_01`` of shape
    (heads, tokens, tokens), and where patches are dropped int64 ``kept_01``, their positions in the grid.

    Raises:
        UsageError: a choice that does not exist, an image that cannot be read (DataError), a model without attention
            over the whole image, a folder that cannot be written (RunFolderError).
        VitbenchError: memory or disk space runs out.
    """
    trained = open_trained(request)
    if image is not None:
        pixels, label = read_image(image, trained.image_size)[0], image.name
    else:
        assert data is not None
        [source], _ = images_of_data(data, [index])
        pixels, label = source.read(trained.image_size)[0], f"{source.name} ({source.truth})"
    maps = look(trained, pixels)
    _check_choice(choice, request.model, maps)
    scene = Scene.of(pixels, maps, f"{request.model}, {trained.weights}")
    notes = [*trained.notes, *_notes_on(maps)]
    files = {_file_name(choice): layers_png(scene, choice.layer, choice.head)}
    if choice.rollout is not False:
        try:
            files["rollout.png"] = rollout_png(scene)
        except Unsupported as error:
            if choice.rollout:
                raise UsageError(f"{request.model}: {error}. Leave out --rollout") from error
            notes.append(f"No rollout: {error}.")
    if drops(maps):
        files["tokens.png"] = tokens_png(scene)
    if choice.gif:
        files["layers.gif"] = layers_gif(scene, choice.head)
    if choice.save_maps:
        files["maps.npz"] = _maps_npz(maps)
    return AttentionReport(
        model=request.model,
        weights=trained.weights,
        device=trained.device.name,
        picture=printable(label),
        image_size=trained.image_size,
        grid=maps[0].grid,
        layers=tuple(_summarise(number, one) for number, one in enumerate(maps, start=1)),
        notes=tuple(notes),
        written=_write(out, files),
    )


def attention_png(trained: TrainedModel, pixels: torch.Tensor) -> bytes:
    """``layers.png`` of one image (3, H, W) uint8: each layer's map, mean over heads. Raises as ``look`` does."""
    return layers_png(Scene.of(pixels, look(trained, pixels), f"{trained.name}, {trained.weights}"))


def look(trained: TrainedModel, pixels: torch.Tensor) -> list[AttentionMap]:
    """The maps of one image (3, H, W) uint8. Raises UsageError if the model has none, OutOfMemory."""
    from vitbench.analysis.attention import attention_maps
    from vitbench.models.outputs import input_dtype
    from vitbench.training.augmentation.augment import normalise

    with explain_oom(trained.device, "Give a smaller --image-size, or --device cpu"):
        images = normalise(pixels[None], input_dtype(trained.module), trained.mean, trained.std)
        try:
            maps = attention_maps(trained.module, images.to(trained.device.torch_device))
        except Unsupported as error:
            raise UsageError(
                f"No attention to draw for {trained.name}: {error}. Give a model whose patches all attend to each other"
            ) from error
        bad = next((one for one in maps if not one.weights.isfinite().all()), None)
        if bad is not None:
            raise DataError(
                f"The attention of {trained.name} is not finite in {bad.name}: the weights ({trained.weights}) are "
                "damaged, or too large for its type of numbers"
            )
        return maps


def to_text(report: AttentionReport) -> str:
    """For people: what was looked at, a line a layer, notes, and what was written."""
    from tabulate import tabulate

    rows = [
        (
            one.layer,
            one.name,
            one.heads,
            one.tokens,
            "-" if one.on_itself is None else f"{100 * one.on_itself:.1f} %",
            f"{one.entropy_nat:.2f}",
            f"{one.largest_entropy_nat:.2f}",
        )
        for one in report.layers
    ]
    headings = ("layer", "module", "heads", "tokens", "CLS on itself", "mean entropy (nat)", "of at most")
    align = ("right", "left", *["right"] * 5)
    lines = [
        f"{report.model}, {report.weights}, on {report.device}",
        f"{report.picture}: {format_image_size(report.image_size)} px in {report.grid[0]}x{report.grid[1]} patches",
        tabulate(rows, headings, tablefmt="plain", colalign=align, disable_numparse=True),
        *report.notes,
        *(f"Wrote {path}" for path in report.written),
    ]
    return "\n".join(lines)


def to_dict(report: AttentionReport) -> dict[str, Any]:
    """For JSON."""
    return {**asdict(report), "written": [str(path) for path in report.written]}


def _number_or_word(text: str, option: str, *words: str) -> int | str:
    word = text.strip().lower()
    if word in words:
        return word
    if not word.isdecimal() or int(word) < 1:
        raise UsageError(
            f"Option {option}: {printable(text)!r} is not a number from 1 on. Give one, {' or '.join(words)}"
        )
    return int(word)


def _check_choice(choice: Choice, model: str, maps: Sequence[AttentionMap]) -> None:
    """Raises UsageError for a layer or head that the model does not have."""
    layer, head = choice.layer, choice.head
    if layer is not None and layer > len(maps):
        raise UsageError(
            f"Option --layer: {model} has no layer {layer}, only {len(maps)} that attend. Give 1 to {len(maps)}, or all"
        )
    if not isinstance(head, int):
        return
    for number in range(1, len(maps) + 1) if layer is None else [layer]:
        heads = maps[number - 1].heads
        if head > heads:
            raise UsageError(
                f"Option --head: layer {number} of {model} has no head {head}, only {heads}. Give 1 to {heads}, mean "
                "or all"
            )
    fewest = min(one.heads for one in maps)
    if choice.gif and head > fewest:
        raise UsageError(
            f"Option --gif: head {head} is not in each layer of {model}, one of which has {fewest}. "
            f"Give --head 1 to {fewest}, mean or all, or leave out --gif"
        )


def _file_name(choice: Choice) -> str:
    base = "layers" if choice.layer is None else f"layer_{choice.layer:02}"
    if isinstance(choice.head, int):
        return f"{base}_head_{choice.head:02}.png"
    return f"{base}.png" if choice.head == "mean" else f"{base}_heads.png"


def _summarise(number: int, one: AttentionMap) -> LayerSummary:
    return LayerSummary(
        layer=number,
        name=one.name,
        kind=one.kind,
        heads=one.heads,
        tokens=one.tokens,
        patches=one.kept.shape[1],
        on_itself=one.on_itself(),
        entropy_nat=one.entropy_nat(),
        largest_entropy_nat=math.log(one.tokens),
    )


def _notes_on(maps: Sequence[AttentionMap]) -> list[str]:
    """What a reader of the maps must know."""
    from vitbench.analysis.attention import kept_stages

    notes = []
    if any(one.kind == "effective" for one in maps):
        notes.append("This attention has no softmax: the weights are effective ones, what it takes from each token.")
    if any(one.readout == "mean" for one in maps):
        notes.append("No CLS gives the answer: maps are the mean over all tokens.")
    if maps[0].extra > 1 and maps[0].readout == "CLS":
        notes.append(f"{maps[0].extra} tokens stand before the patches; maps are those of the first, CLS.")
    if drops(maps):
        counts = [str(kept.shape[1]) for _, _, kept in kept_stages(maps)]
        notes.append(f"It drops patches: {', '.join(counts)} of {maps[0].patches} attend, one number a stage.")
    return notes


def _maps_npz(maps: Sequence[AttentionMap]) -> bytes:
    arrays = {f"layer_{number:02}": one.weights[0].numpy() for number, one in enumerate(maps, start=1)}
    if drops(maps):
        arrays |= {f"kept_{number:02}": one.kept[0].numpy() for number, one in enumerate(maps, start=1)}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]  # its stub takes a name for a keyword of its own
    return buffer.getvalue()


def _write(out: Path, files: Mapping[str, bytes]) -> tuple[Path, ...]:
    """Raises RunFolderError, StorageError."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(out, error) from error
    for name, content in files.items():
        write_atomically(out / name, content)
    return tuple(out / name for name in files)
