"""A trained model's attention over a picture: open the model, read the picture, watch one pass, draw, write the files.

Nothing is written before everything is drawn. Importing this module loads no torch, its functions do.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vitbench.core.errors import DataError, Unsupported, UsageError
from vitbench.core.records import format_image_size
from vitbench.core.run_folder import cannot_write, write_atomically
from vitbench.core.text import one_line
from vitbench.experiments.open_model import TrainedModel, explain_oom, open_trained, printable, read_image
from vitbench.experiments.request import ModelRequest

if TYPE_CHECKING:
    import numpy as np
    import torch
    from matplotlib.figure import Figure

    from vitbench.analysis.attention import AttentionMap

    Array = np.ndarray[Any, Any]

#: How much of a drawn pixel is the colour of its weight; the rest is the picture in gray.
OPACITY = 0.7
#: How much of a dropped patch is white.
FADED = 0.85
#: The part of the weights that the colour scale spans: single tokens that take nearly everything would darken the rest.
SPANNED = 0.99
FRAME_MS, LAST_FRAME_MS = 700, 2000
_COLUMNS = 7  # tiles in a row, unless heads ask for more

Head = int | Literal["mean", "all"]


@dataclass(frozen=True, kw_only=True)
class LayerSummary:
    """One layer in figures: ``layer`` counts from 1, ``on_itself`` is the part (0 to 1) of CLS's attention that goes
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
    """What was looked at and what was written; ``picture`` is its name for people, ``grid`` is in patches."""

    model: str
    weights: str
    device: str
    picture: str
    image_size: tuple[int, int]
    grid: tuple[int, int]
    layers: tuple[LayerSummary, ...]
    notes: tuple[str, ...]
    written: tuple[Path, ...]


@dataclass(frozen=True, eq=False)
class Tile:
    """One picture of several: ``values`` (rows, columns) of weights over it, none for the picture itself; patches where
    ``dropped`` (rows, columns) fade. The grid lies on ``covered`` (height, width) px from the top left.
    """

    title: str
    values: Array | None = None
    dropped: Array | None = None
    covered: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Scale:
    """Colours from 0 to ``top``; ``largest`` is the largest weight drawn."""

    top: float
    largest: float

    @property
    def clipped(self) -> bool:
        """Whether larger weights have the last colour, too."""
        return self.largest > self.top


def draw_attention(
    request: ModelRequest,
    *,
    picture: Path | None = None,
    data: str | None = None,
    index: int | None = None,
    data_dir: Path | None = None,
    download: bool = False,
    layer: str | None = None,
    head: str | None = None,
    rollout: bool = False,
    gif: bool = False,
    save_maps: bool = False,
    out: Path = Path("attention"),
) -> AttentionReport:
    """Draw what a trained model attends to in one picture, into the folder ``out``.

    Written are ``layers.png`` (each layer's map, mean over heads) and ``rollout.png``; with ``layer`` or ``head`` the
    maps asked for, under a name that says which, and the rollout only if it is asked for; ``tokens.png`` if the model
    drops patches; ``layers.gif`` and ``maps.npz`` (float32 ``layer_01`` of shape (heads, tokens, tokens), and where
    patches are dropped int64 ``kept_01``, their places in the grid) on demand.

    Args:
        request: the model and its weights.
        picture: a file; or else ``data``, a data set, of whose test pictures ``index`` (from 0) is taken.
        data_dir: where data sets are that are downloaded; ``download`` fetches one that is not there.
        layer: a number from 1, or ``all`` (default).
        head: a number from 1, ``mean`` (default) or ``all``.

    Raises:
        UsageError: a choice that does not exist, a picture that cannot be read (DataError), a model without attention
            over the whole picture, a folder that cannot be written (RunFolderError).
        VitbenchError: memory or disk space runs out.
    """
    from vitbench.analysis.attention import kept_stages

    chosen_layer, chosen_head = _parse_layer(layer), _parse_head(head)
    if (picture is None) == (data is None):
        both = "both an image and --data" if data is not None else "neither an image nor --data"
        raise UsageError(f"There is {both}: give the path of one image, or --data NAME --index N")
    if index is not None and data is None:
        raise UsageError(f"--index {index} goes with --data NAME: an image is given as its path alone")
    if (data_dir is not None or download) and data is None:
        option = "--download" if data_dir is None else "--data-dir"
        raise UsageError(f"{option} goes with --data NAME: an image is given as its path alone")
    model, trained = request.model, open_trained(request)
    if picture is not None:
        pixels, label = read_image(picture, trained.image_size)[0], printable(picture.name)
    else:
        assert data is not None
        pixels, label = read_indexed(data, index or 0, trained.image_size, root=data_dir, download=download)
    maps = look(trained, pixels)
    notes = [*trained.notes, *_notes_on(maps)]
    scene = pixels.permute(1, 2, 0).numpy() / 255  # (H, W, 3)
    title = f"{model}, {trained.weights}"
    name, rows = _chosen_tiles(model, maps, chosen_layer, chosen_head)
    fewest = min(one.heads for one in maps)
    if gif and isinstance(chosen_head, int) and chosen_head > fewest:
        raise UsageError(
            f"Option --gif: head {chosen_head} is not in each layer of {model}, one of which has {fewest}. "
            f"Give --head 1 to {fewest}, mean or all, or leave out --gif"
        )
    shown = maps if chosen_layer is None else [maps[chosen_layer - 1]]
    files = {f"{name}.png": _weights_png(scene, rows, shown, chosen_head, title)}
    if rollout or (layer is None and head is None):
        try:
            files["rollout.png"] = _rollout_png(scene, maps, title)
        except Unsupported as error:
            if rollout:
                raise UsageError(f"{model}: {error}. Leave out --rollout") from error
            notes.append(f"No rollout: {error}.")
    stages = kept_stages(maps)
    if _drops(maps):
        files["tokens.png"] = _tokens_png(scene, maps, stages, title)
    if gif:
        files["layers.gif"] = _layers_gif(scene, maps, chosen_head, title)
    if save_maps:
        files["maps.npz"] = _maps_npz(maps)
    return AttentionReport(
        model=model,
        weights=trained.weights,
        device=trained.device.name,
        picture=label,
        image_size=trained.image_size,
        grid=maps[0].grid,
        layers=tuple(_summarise(number, one) for number, one in enumerate(maps, start=1)),
        notes=tuple(notes),
        written=_write(out, files),
    )


def attention_png(trained: TrainedModel, pixels: torch.Tensor) -> bytes:
    """``layers.png`` of one picture (3, H, W) uint8: each layer's map, mean over heads. Raises as ``look`` does."""
    maps = look(trained, pixels)
    scene = pixels.permute(1, 2, 0).numpy() / 255  # (H, W, 3)
    _, rows = _chosen_tiles(trained.name, maps, None, "mean")
    return _weights_png(scene, rows, maps, "mean", f"{trained.name}, {trained.weights}")


def look(trained: TrainedModel, pixels: torch.Tensor) -> list[AttentionMap]:
    """The maps of one picture (3, H, W) uint8. Raises UsageError if the model has none, OutOfMemory."""
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


def read_indexed(
    data: str, index: int, image_size: tuple[int, int], *, root: Path | None = None, download: bool = False
) -> tuple[torch.Tensor, str]:
    """Picture ``index`` (from 0) of the test pictures of a data set, (3, H, W) uint8 as ``load_images`` makes it, and
    its name for people. Raises UsageError for an index that is none, and what ``describe_data`` raises.
    """
    import torch

    from vitbench.training.data.datasets import describe_data
    from vitbench.training.data.digits import NAME, read_digits
    from vitbench.training.data.downloads import DOWNLOADS, read_download
    from vitbench.training.data.folder import decode_image, read_listing
    from vitbench.training.data.images import from_arrays

    info = describe_data(data, root=root, download=download)
    if not 0 <= index < info.test_images:
        raise UsageError(
            f"Option --index: {index} is no test picture of {printable(data)}, which has {info.test_images:,}. "
            f"Give 0 to {info.test_images - 1}"
        )
    if data == NAME or data in DOWNLOADS:
        arrays, labels = read_digits("test") if data == NAME else read_download(info, "test", download=download)
        pixels, label = from_arrays(arrays[index : index + 1], image_size)[0], labels[index]
        return pixels, f"test picture {index} of {data} ({info.class_names[label]})"
    listing = read_listing(info)  # one of perhaps many files: the others are not decoded
    file = listing.files["test"][index]
    decoded = torch.from_numpy(decode_image(listing.root, file, image_size))
    return decoded.permute(2, 0, 1).contiguous(), printable(file.relative)


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


# --- what is asked for


def _parse_layer(text: str | None) -> int | None:
    """A number from 1; None for all."""
    if text is None or text.strip().lower() == "all":
        return None
    return _positive(text, "--layer", "or all")


def _parse_head(text: str | None) -> Head:
    word = "mean" if text is None else text.strip().lower()
    if word == "mean":
        return "mean"
    return "all" if word == "all" else _positive(word, "--head", "mean or all")


def _positive(text: str, option: str, also: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise UsageError(f"Option {option}: {printable(text)!r} is no number from 1 on. Give one, {also}")
    return number


def _chosen_tiles(
    model: str, maps: Sequence[AttentionMap], layer: int | None, head: Head
) -> tuple[str, list[list[Tile]]]:
    """The file's name and the maps asked for: in one row, or all heads of all layers, a row a layer.

    Raises UsageError for a layer or head that the model does not have.
    """
    if layer is not None and layer > len(maps):
        raise UsageError(
            f"Option --layer: {layer} is no layer of {model}, in which {len(maps)} attend. "
            f"Give 1 to {len(maps)}, or all"
        )
    numbers = range(1, len(maps) + 1) if layer is None else [layer]
    base = "layers" if layer is None else f"layer_{layer:02}"
    rows: list[list[Tile]] = []
    for number in numbers:
        one = maps[number - 1]
        if isinstance(head, int) and head > one.heads:
            raise UsageError(
                f"Option --head: {head} is no head of layer {number} of {model}, which has {one.heads}. "
                f"Give 1 to {one.heads}, mean or all"
            )
        left = f" ({one.kept.shape[1]} patches)" if _drops(maps) else ""
        heads: Sequence[Head] = range(1, one.heads + 1) if head == "all" else [head]
        rows.append([])
        for which in heads:
            if head != "all":
                title = f"layer {number}{left}"
            else:
                title = f"head {which}{left}" if layer is not None else f"layer {number}, head {which}"
            rows[-1].append(_tile(title, one, which))
    if head == "all":
        return f"{base}_heads", rows
    return base if head == "mean" else f"{base}_head_{head:02}", [[tile for row in rows for tile in row]]


def _tile(title: str, one: AttentionMap, head: Head) -> Tile:
    """A layer's map of one head (from 1), or the mean of all."""
    found = one.over_patches()[0]  # (h, N)
    values = found[head - 1] if isinstance(head, int) else found.mean(dim=0)
    array = values.view(one.grid).numpy()
    return Tile(title, array, _dropped(one), one.covered)


def _dropped(one: AttentionMap) -> Array:
    """Which patches the layer does not have: (rows, columns) of truth values."""
    import torch

    dropped = torch.ones(one.patches, dtype=torch.bool)
    dropped[one.kept[0]] = False
    return dropped.view(one.grid).numpy()


def _drops(maps: Sequence[AttentionMap]) -> bool:
    return any(one.kept.shape[1] < one.patches for one in maps)


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
    if _drops(maps):
        counts = [str(kept.shape[1]) for _, _, kept in kept_stages(maps)]
        notes.append(f"It drops patches: {', '.join(counts)} of {maps[0].patches} attend, one number a stage.")
    return notes


# --- pictures


def scale_of(tiles: Iterable[Tile], even: float) -> Scale:
    """One scale for all tiles: from 0 to the 99th percentile of their weights (of fewer than 100 to the largest), and
    to twice ``even`` at least, so that attention that is nearly even has a colour from the middle.
    """
    import numpy as np

    values = np.concatenate([tile.values.ravel() for tile in tiles if tile.values is not None])
    values = values[np.isfinite(values)]
    largest = float(values.max())
    return Scale(max(float(np.quantile(values, SPANNED, method="higher")), 2 * even), largest)


def paint(scene: Array, tile: Tile, top: float) -> Array:
    """The picture (H, W, 3), 0 to 1, with the tile over it: each patch has one colour, what no patch covers is gray."""
    import numpy as np

    height, width = scene.shape[:2]
    gray = np.repeat((scene @ np.array([0.299, 0.587, 0.114]))[..., None], 3, axis=2)
    grid = tile.values if tile.values is not None else tile.dropped
    if grid is None:
        return scene
    painted = gray.copy() if tile.values is not None else scene.copy()
    rows = np.arange(height) * grid.shape[0] // tile.covered[0]
    columns = np.arange(width) * grid.shape[1] // tile.covered[1]
    seen = np.ix_(np.flatnonzero(rows < grid.shape[0]), np.flatnonzero(columns < grid.shape[1]))
    patch = np.ix_(rows[rows < grid.shape[0]], columns[columns < grid.shape[1]])
    if tile.values is not None:
        colours = _colours(np.clip(np.nan_to_num(tile.values) / top, 0, 1))
        painted[seen] = OPACITY * colours[patch] + (1 - OPACITY) * painted[seen]
    if tile.dropped is not None:
        faded = FADED + (1 - FADED) * gray[seen]
        painted[seen] = np.where(tile.dropped[patch][..., None], faded, painted[seen])
    return painted


def _colours(levels: Array) -> Array:
    """Weights from 0 to 1 to RGB, 0 to 1."""
    import numpy as np
    from matplotlib import colormaps

    return np.asarray(colormaps["inferno"](levels))[..., :3]


def draw_tiles(
    scene: Array,
    tiles: Sequence[Tile | None],
    *,
    title: str,
    caption: str,
    scale: Scale | None,
    label: str = "attention weight (%)",
    inches: float = 1.6,
    columns: int = _COLUMNS,
) -> Figure:
    """The tiles (None: a gap) in rows under their titles, the colour scale under its ``label`` beside them, ``caption``
    below. ``inches``: the longer side of a tile.
    """
    import numpy as np
    from matplotlib.figure import Figure

    columns = min(len(tiles), columns)
    rows = -(-len(tiles) // columns)
    height, width = scene.shape[:2]
    above, between = max(round(0.2 * height), 1), max(round(0.06 * width), 1)  # px: for a title; to the right
    # of bytes: the maps of all heads of a large model would take gigabytes as floats
    board = np.full((rows * (height + above), columns * (width + between) - between, 3), 255, dtype=np.uint8)
    unit = inches / max(height, width)
    size = (board.shape[1] * unit + (1.1 if scale is not None else 0.2), board.shape[0] * unit + 0.8)
    size = (max(size[0], 5.0), size[1])
    drawing = Figure(figsize=size, dpi=150, layout="constrained")
    axes = drawing.add_subplot()
    for place, tile in enumerate(tiles):
        if tile is None:
            continue
        top = (place // columns) * (height + above) + above
        left = (place % columns) * (width + between)
        painted = paint(scene, tile, 1.0 if scale is None else scale.top)
        board[top : top + height, left : left + width] = (np.clip(painted, 0, 1) * 255).round()
        axes.text(left + width / 2 - 0.5, top - 0.04 * height - 0.5, tile.title, ha="center", va="bottom", fontsize=7)
    axes.imshow(board)
    axes.set_axis_off()
    if scale is not None:
        _draw_scale(drawing, axes, scale, label, rows)
    letters = int(size[0] * 14)
    drawing.suptitle(textwrap.fill(one_line(title, 300), letters), fontsize=8, parse_math=False)
    unbroken = caption.replace(" %", "\N{NO-BREAK SPACE}%")
    drawing.supxlabel(textwrap.fill(unbroken, int(letters * 1.15)), fontsize=7)
    return drawing


def _draw_scale(drawing: Figure, axes: Any, scale: Scale, label: str, rows: int) -> None:
    """The colours as they look over a middle gray."""
    import numpy as np
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize

    shown = OPACITY * _colours(np.linspace(0, 1, 256)) + (1 - OPACITY) * 0.5
    mappable = ScalarMappable(Normalize(0, 100 * scale.top), ListedColormap(shown))
    bar = drawing.colorbar(
        mappable, ax=axes, extend="max" if scale.clipped else "neither", fraction=0.05, aspect=25 * rows
    )
    bar.ax.tick_params(labelsize=6)
    bar.set_label(label, fontsize=7)


def _caption(maps: Sequence[AttentionMap], head: Head) -> str:
    who = "CLS takes" if maps[0].readout == "CLS" else "all tokens take, on average,"
    which = {"mean": ", mean of the heads", "all": ""}.get(str(head), f", head {head}")
    kind = "effective weights of linear attention" if maps[0].kind == "effective" else "softmax weights"
    dropped = " White: dropped patches." if _drops(maps) else ""
    return f"What {who} from each patch ({kind}{which}).{dropped} {_even_text(maps)}"


def _scale_text(scale: Scale, what: str = "One colour scale for all") -> str:
    largest = f", larger ones up to {100 * scale.largest:.3g} % are as bright" if scale.clipped else ""
    return f"{what}: 0 to {100 * scale.top:.3g} %{largest}."


def _even(maps: Sequence[AttentionMap]) -> float:
    """The weight of a token where all have the same, in the layer with the fewest."""
    return 1 / min(one.tokens for one in maps)


def _even_text(maps: Sequence[AttentionMap]) -> str:
    tokens = sorted({one.tokens for one in maps})
    if len(tokens) > 1:
        return f"Even attention: {100 / tokens[-1]:.3g} to {100 / tokens[0]:.3g} % a token."
    return f"Even attention: {100 / tokens[0]:.3g} % a token."


def _weights_png(
    scene: Array, rows: Sequence[Sequence[Tile]], maps: Sequence[AttentionMap], head: Head, title: str
) -> bytes:
    scale = scale_of((tile for row in rows for tile in row), _even(maps))
    text = f"{_caption(maps, head)} {_scale_text(scale)}"
    picture = Tile("picture")
    if len(rows) == 1:
        return _png(draw_tiles(scene, [picture, *rows[0]], title=title, caption=text, scale=scale))
    widest = max(len(row) for row in rows)
    tiles: list[Tile | None] = []
    for row in rows:
        tiles += [None if tiles else picture, *row, *[None] * (widest - len(row))]
    return _png(draw_tiles(scene, tiles, title=title, caption=text, scale=scale, columns=widest + 1))


def _rollout_png(scene: Array, maps: Sequence[AttentionMap], title: str) -> bytes:
    """Raises Unsupported if the layers' grids differ."""
    from vitbench.analysis.attention import rollout_over_patches

    values = rollout_over_patches(maps)[0].view(maps[0].grid).numpy()
    tiles = [Tile("rollout", values, None, maps[0].covered)]
    scale = scale_of(tiles, 1 / maps[0].tokens)
    where = "CLS" if maps[-1].readout == "CLS" else "the mean of the tokens that are left"
    layers = f"through {len(maps)} layers" if len(maps) > 1 else "of one layer"
    caption = (
        f"How much of each patch is in {where} at the end, by attention rollout {layers} "
        f"(mean of the heads; Abnar and Zuidema, 2020). {_scale_text(scale, 'Colours')}"
    )
    drawing = draw_tiles(
        scene,
        [Tile("picture"), *tiles],
        title=title,
        caption=caption,
        scale=scale,
        label="share of CLS (%)" if where == "CLS" else "share of the mean (%)",
        inches=2.2,
    )
    return _png(drawing)


def _tokens_png(
    scene: Array, maps: Sequence[AttentionMap], stages: Sequence[tuple[int, int, torch.Tensor]], title: str
) -> bytes:
    tiles = [Tile("picture")]
    for first, last, kept in stages:
        layers = f"layer {first + 1}" if first == last else f"layers {first + 1} to {last + 1}"
        one = maps[first]
        tiles.append(Tile(f"{layers}: {kept.shape[1]} of {one.patches}", None, _dropped(one), one.covered))
    caption = "The patches that attend in each layer. White: dropped before it."
    return _png(draw_tiles(scene, tiles, title=title, caption=caption, scale=None))


def _layers_gif(scene: Array, maps: Sequence[AttentionMap], head: Head, title: str) -> bytes:
    """The picture beside each layer's map in turn; of ``all`` heads the mean."""
    which: Head = "mean" if head == "all" else head
    tiles = []
    for number, one in enumerate(maps, start=1):
        left = f" ({one.kept.shape[1]} of {one.patches} patches)" if _drops(maps) else ""
        tiles.append(_tile(f"layer {number} of {len(maps)}{left}", one, which))
    scale = scale_of(tiles, _even(maps))
    caption = f"{_caption(maps, which)} {_scale_text(scale)}"
    frames = [
        _frame(draw_tiles(scene, [Tile("picture"), tile], title=title, caption=caption, scale=scale, inches=2.2))
        for tile in tiles
    ]
    return encode_gif(frames)


def encode_gif(frames: Sequence[Array]) -> bytes:
    """Frames (H, W, 3) uint8 of one size as an endless GIF. They share one palette, or colours would flicker; rare
    colours have their place in it, or the scale would lose some of its own.
    """
    import numpy as np
    from PIL import Image

    pixels = np.concatenate(frames).reshape(-1, 3)
    rare = np.unique(pixels @ np.array([1 << 16, 1 << 8, 1]))  # each colour once
    rare = np.stack([rare >> 16, rare >> 8 & 255, rare & 255], axis=1).astype(np.uint8)
    both = np.concatenate([pixels, np.resize(rare, pixels.shape)])  # as many of one kind as of the other
    palette = Image.fromarray(both[None]).quantize(256, dither=Image.Dither.NONE)
    first, *others = [Image.fromarray(one).quantize(palette=palette, dither=Image.Dither.NONE) for one in frames]
    buffer = io.BytesIO()
    durations = [FRAME_MS] * len(others) + [LAST_FRAME_MS]
    first.save(buffer, "GIF", save_all=True, append_images=others, duration=durations, loop=0, disposal=1)
    return buffer.getvalue()


def _png(drawing: Figure) -> bytes:
    buffer = io.BytesIO()
    # Without the library's name and version: the same maps give the same bytes.
    drawing.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _frame(drawing: Figure) -> Array:
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    drawing.set_dpi(110)
    canvas = FigureCanvasAgg(drawing)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


# --- files


def _maps_npz(maps: Sequence[AttentionMap]) -> bytes:
    import numpy as np

    arrays = {f"layer_{number:02}": one.weights[0].numpy() for number, one in enumerate(maps, start=1)}
    if _drops(maps):
        arrays |= {f"kept_{number:02}": one.kept[0].numpy() for number, one in enumerate(maps, start=1)}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]  # its stub takes a name for a keyword of its own
    return buffer.getvalue()


def _write(out: Path, files: Mapping[str, bytes]) -> tuple[Path, ...]:
    """Each file whole or not at all. Raises RunFolderError, StorageError."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(out, error) from error
    for name, content in files.items():
        write_atomically(out / name, content)
    return tuple(out / name for name in files)
