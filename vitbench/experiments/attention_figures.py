"""Draw attention maps over an image: each layer's map, rollout, the patches that are left, an animation.

Everything is drawn from ``AttentionMap`` values (analysis/attention.py); ``attention.py`` computes them. Importing this
module loads no torch, its functions do.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from vitbench.core.text import one_line

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure

    from vitbench.analysis.attention import AttentionMap


Array = np.ndarray[Any, Any]

#: How much of a drawn pixel is the colour of its weight; the rest is the image in gray.
OPACITY = 0.7
#: How much of a dropped patch is white.
FADED = 0.85
#: The part of the weights that the colour scale spans: single tokens that take nearly everything would darken the rest.
SPANNED = 0.99
FRAME_MS, LAST_FRAME_MS = 700, 2000
_COLUMNS = 7  # tiles in a row, unless heads ask for more

Head = int | Literal["mean", "all"]


@dataclass(frozen=True, eq=False)
class Scene:
    """What is drawn: the ``image`` (H, W, 3) from 0 to 1, one map a layer, and the title of the figures."""

    image: Array
    maps: Sequence[AttentionMap]
    title: str

    @classmethod
    def of(cls, pixels: torch.Tensor, maps: Sequence[AttentionMap], title: str) -> Scene:
        """``pixels`` (3, H, W) are uint8."""
        return cls(pixels.permute(1, 2, 0).numpy() / 255, maps, title)


@dataclass(frozen=True, eq=False)
class Tile:
    """One of the images side by side: ``values`` (rows, columns) of weights over it, None for the image itself; patches
    where ``dropped`` (rows, columns) fade. The grid lies on ``covered`` (height, width) px from the top left.
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


# --- figures


def layers_png(scene: Scene, layer: int | None = None, head: Head = "mean") -> bytes:
    """The map of ``layer`` (from 1; None: of each layer) and ``head``, side by side; all heads of all layers have a row
    a layer. The layer and the head must exist.
    """
    rows = _rows_of_tiles(scene.maps, layer, head)
    maps = scene.maps if layer is None else [scene.maps[layer - 1]]
    scale = scale_of((tile for row in rows for tile in row), _even(maps))
    caption = f"{_caption(maps, head)} {_scale_text(scale)}"
    image = Tile("image")
    if len(rows) == 1:
        return _png(draw_tiles(scene, [image, *rows[0]], caption=caption, scale=scale))
    widest = max(len(row) for row in rows)
    tiles: list[Tile | None] = []
    for row in rows:
        tiles += [None if tiles else image, *row, *[None] * (widest - len(row))]
    return _png(draw_tiles(scene, tiles, caption=caption, scale=scale, columns=widest + 1))


def rollout_png(scene: Scene) -> bytes:
    """The attention rollout. Raises Unsupported if the layers' grids differ."""
    from vitbench.analysis.attention import rollout_over_patches

    first, last = scene.maps[0], scene.maps[-1]
    values = rollout_over_patches(scene.maps)[0].view(first.grid).numpy()
    tiles = [Tile("rollout", values, None, first.covered)]
    scale = scale_of(tiles, 1 / first.tokens)
    where = "CLS" if last.readout == "CLS" else "the mean of the tokens that are left"
    layers = f"through {len(scene.maps)} layers" if len(scene.maps) > 1 else "of one layer"
    caption = (
        f"How much of each patch is in {where} at the end, by attention rollout {layers} "
        f"(mean of the heads; Abnar and Zuidema, 2020). {_scale_text(scale, 'Colours')}"
    )
    label = "share of CLS (%)" if where == "CLS" else "share of the mean (%)"
    return _png(draw_tiles(scene, [Tile("image"), *tiles], caption=caption, scale=scale, label=label, inches=2.2))


def tokens_png(scene: Scene) -> bytes:
    """Which patches are left, an image for each number of them."""
    from vitbench.analysis.attention import kept_stages

    tiles = [Tile("image")]
    for first, last, kept in kept_stages(scene.maps):
        layers = f"layer {first + 1}" if first == last else f"layers {first + 1} to {last + 1}"
        one = scene.maps[first]
        tiles.append(Tile(f"{layers}: {kept.shape[1]} of {one.patches}", None, _dropped(one), one.covered))
    caption = "The patches that attend in each layer. White: dropped before it."
    return _png(draw_tiles(scene, tiles, caption=caption, scale=None))


def layers_gif(scene: Scene, head: Head = "mean") -> bytes:
    """The image beside each layer's map in turn; for ``all`` heads their mean."""
    which: Head = "mean" if head == "all" else head
    tiles = []
    for number, one in enumerate(scene.maps, start=1):
        left = f" ({one.kept.shape[1]} of {one.patches} patches)" if drops(scene.maps) else ""
        tiles.append(_tile(f"layer {number} of {len(scene.maps)}{left}", one, which))
    scale = scale_of(tiles, _even(scene.maps))
    caption = f"{_caption(scene.maps, which)} {_scale_text(scale)}"
    return encode_gif(
        [_frame(draw_tiles(scene, [Tile("image"), tile], caption=caption, scale=scale, inches=2.2)) for tile in tiles]
    )


def drops(maps: Sequence[AttentionMap]) -> bool:
    """Whether a layer lacks patches of the image."""
    return any(one.kept.shape[1] < one.patches for one in maps)


# --- tiles


def _rows_of_tiles(maps: Sequence[AttentionMap], layer: int | None, head: Head) -> list[list[Tile]]:
    """One row, or for all heads a row a layer."""
    rows: list[list[Tile]] = []
    for number in range(1, len(maps) + 1) if layer is None else [layer]:
        one = maps[number - 1]
        left = f" ({one.kept.shape[1]} patches)" if drops(maps) else ""
        if head != "all":
            row = [_tile(f"layer {number}{left}", one, head)]
        else:
            titles = (
                f"head {which}{left}" if layer is not None else f"layer {number}, head {which}"
                for which in range(1, one.heads + 1)
            )
            row = [_tile(title, one, which) for which, title in enumerate(titles, start=1)]
        rows.append(row)
    return rows if head == "all" else [[tile for row in rows for tile in row]]


def _tile(title: str, one: AttentionMap, head: Head) -> Tile:
    """A layer's map of one head (from 1), or the mean of all."""
    found = one.over_patches()[0]  # (h, N)
    values = found[head - 1] if isinstance(head, int) else found.mean(dim=0)
    return Tile(title, values.view(one.grid).numpy(), _dropped(one), one.covered)


def _dropped(one: AttentionMap) -> Array:
    """Which patches the layer does not have: (rows, columns) bool."""
    import torch

    dropped = torch.ones(one.patches, dtype=torch.bool)
    dropped[one.kept[0]] = False
    return dropped.view(one.grid).numpy()


def scale_of(tiles: Iterable[Tile], even: float) -> Scale:
    """One scale for all tiles: from 0 to the 99th percentile of their weights (of fewer than 100 to the largest),
    and to at least twice ``even``: attention that is nearly even has a colour from the middle.
    """
    values = np.concatenate([tile.values.ravel() for tile in tiles if tile.values is not None])
    values = values[np.isfinite(values)]
    largest = float(values.max())
    return Scale(max(float(np.quantile(values, SPANNED, method="higher")), 2 * even), largest)


def paint(image: Array, tile: Tile, top: float) -> Array:
    """The image (H, W, 3), 0 to 1, with the tile over it: each patch has one colour, what no patch covers is gray."""
    height, width = image.shape[:2]
    gray = np.repeat((image @ np.array([0.299, 0.587, 0.114]))[..., None], 3, axis=2)
    grid = tile.values if tile.values is not None else tile.dropped
    if grid is None:
        return image
    painted = gray.copy() if tile.values is not None else image.copy()
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
    from matplotlib import colormaps

    return np.asarray(colormaps["inferno"](levels))[..., :3]


def draw_tiles(
    scene: Scene,
    tiles: Sequence[Tile | None],
    *,
    caption: str,
    scale: Scale | None,
    label: str = "attention weight (%)",
    inches: float = 1.6,
    columns: int = _COLUMNS,
) -> Figure:
    """The tiles (None: a gap) in rows under their titles, the colour scale under its ``label`` beside them, ``caption``
    below. ``inches``: the longer side of a tile.
    """
    from matplotlib.figure import Figure

    columns = min(len(tiles), columns)
    rows = -(-len(tiles) // columns)
    height, width = scene.image.shape[:2]
    above, between = max(round(0.2 * height), 1), max(round(0.06 * width), 1)  # px: for a title; to the right
    # of bytes: the maps of all heads of a large model would take gigabytes as floats
    board = np.full((rows * (height + above), columns * (width + between) - between, 3), 255, dtype=np.uint8)
    unit = inches / max(height, width)
    size = (board.shape[1] * unit + (1.1 if scale is not None else 0.2), board.shape[0] * unit + 0.8)
    size = (max(size[0], 5.0), size[1])
    drawing = Figure(figsize=size, dpi=150, layout="constrained")
    axes = drawing.add_subplot()
    for index, tile in enumerate(tiles):
        if tile is None:
            continue
        top = (index // columns) * (height + above) + above
        left = (index % columns) * (width + between)
        painted = paint(scene.image, tile, 1.0 if scale is None else scale.top)
        board[top : top + height, left : left + width] = (np.clip(painted, 0, 1) * 255).round()
        axes.text(left + width / 2 - 0.5, top - 0.04 * height - 0.5, tile.title, ha="center", va="bottom", fontsize=7)
    axes.imshow(board)
    axes.set_axis_off()
    if scale is not None:
        _draw_scale(drawing, axes, scale, label, rows)
    letters = int(size[0] * 14)
    drawing.suptitle(textwrap.fill(one_line(scene.title, 300), letters), fontsize=8, parse_math=False)
    unbroken = caption.replace(" %", "\N{NO-BREAK SPACE}%")
    drawing.supxlabel(textwrap.fill(unbroken, int(letters * 1.15)), fontsize=7)
    return drawing


def _draw_scale(drawing: Figure, axes: Any, scale: Scale, label: str, rows: int) -> None:
    """The colours as they look over a middle gray."""
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
    dropped = " White: dropped patches." if drops(maps) else ""
    tokens = sorted({one.tokens for one in maps})
    even = f"{100 / tokens[-1]:.3g} to {100 / tokens[0]:.3g}" if len(tokens) > 1 else f"{100 / tokens[0]:.3g}"
    return f"What {who} from each patch ({kind}{which}).{dropped} Even attention: {even} % a token."


def _scale_text(scale: Scale, what: str = "One colour scale for all") -> str:
    largest = f", larger ones up to {100 * scale.largest:.3g} % are as bright" if scale.clipped else ""
    return f"{what}: 0 to {100 * scale.top:.3g} %{largest}."


def _even(maps: Sequence[AttentionMap]) -> float:
    """The weight of a token where all have the same, in the layer with the fewest."""
    return 1 / min(one.tokens for one in maps)


def encode_gif(frames: Sequence[Array]) -> bytes:
    """Frames (H, W, 3) uint8 of one size as an endless GIF. They share one palette, or colours would flicker; rare
    colours have their place in it, or the scale would lose some of its own.
    """
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
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    drawing.set_dpi(110)
    canvas = FigureCanvasAgg(drawing)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
