"""Names beside points, placed so that they cover neither points nor each other where there is room."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg

FONT_SIZE = 8
#: Where a label may go: directions by preference (right, left, above, ...) and distances in px from its point.
DIRECTIONS = (0, 180, 45, 135, -45, -135, 90, -90, 20, 160, -20, -160)
DISTANCES = (9, 20, 34, 52, 74)
#: What a label that is further away than this many px needs: a line back to its point.
LEADER_BEYOND = 15
#: How much a covered px of each costs, against one px of distance.
LABEL_COST, POINT_COST, OUTSIDE_COST = 1.0, 1.5, 5.0

Box = tuple[float, float, float, float]  # left, bottom, right, top


@dataclass(frozen=True)
class Label:
    """A text and the point (data coordinates) that it names."""

    text: str
    x: float
    y: float
    colour: str


def place_labels(axes: Axes, canvas: FigureCanvasAgg, labels: Sequence[Label], lines: Sequence[Box]) -> None:
    """Write ``labels`` beside their points, off the level and upright ``lines`` (x0, y0, x1, y1) where there is room.

    All in data coordinates. Call it last: limits and scales must stand. Greedy, the most crowded points first; the same
    input gives the same picture.
    """
    from matplotlib.patheffects import withStroke

    to_pixels = axes.transData.transform
    pixels = [tuple(map(float, to_pixels((label.x, label.y)))) for label in labels]
    sizes = [_text_size(axes, canvas, label.text) for label in labels]
    frame = axes.get_window_extent(canvas.get_renderer())
    inside = (frame.x0 + 2, frame.y0 + 2, frame.x1 - 2, frame.y1 - 2)
    obstacles = [(x - 6, y - 6, x + 6, y + 6) for x, y in pixels]
    for x0, y0, x1, y1 in lines:
        (left, bottom), (right, top) = to_pixels((x0, y0)), to_pixels((x1, y1))
        obstacles.append((float(left) - 2, float(bottom) - 2, float(right) + 2, float(top) + 2))
    taken: list[Box] = []
    for index in sorted(range(len(labels)), key=lambda i: (_room(pixels, i), i)):
        label = labels[index]
        box = _best_box(pixels[index], sizes[index], inside, obstacles, taken)
        taken.append(box)
        x, y = pixels[index]
        centre = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        away = math.hypot(x - min(max(x, box[0]), box[2]), y - min(max(y, box[1]), box[3]))
        scale = 72 / axes.figure.dpi
        axes.annotate(
            label.text,
            xy=(label.x, label.y),
            xytext=((centre[0] - x) * scale, (centre[1] - y) * scale),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=FONT_SIZE,
            color=label.colour,
            path_effects=[withStroke(linewidth=2, foreground="white")],
            zorder=5,
            arrowprops={"arrowstyle": "-", "lw": 0.5, "color": "0.6", "shrinkB": 4} if away > LEADER_BEYOND else None,
            parse_math=False,
        )


def _text_size(axes: Axes, canvas: FigureCanvasAgg, text: str) -> tuple[float, float]:
    drawn = axes.text(0, 0, text, fontsize=FONT_SIZE, parse_math=False)
    extent = drawn.get_window_extent(canvas.get_renderer())
    drawn.remove()
    return extent.width, extent.height


def _room(pixels: Sequence[tuple[float, ...]], index: int) -> float:
    return min((math.dist(pixels[index], other) for i, other in enumerate(pixels) if i != index), default=math.inf)


def _best_box(
    point: tuple[float, ...], size: tuple[float, float], inside: Box, obstacles: Sequence[Box], taken: Sequence[Box]
) -> Box:
    best, lowest = (0.0, 0.0, 0.0, 0.0), math.inf
    width, height = size
    for distance in DISTANCES:
        for rank, degrees in enumerate(DIRECTIONS):
            across, up = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
            x = point[0] + across * (distance + width / 2)
            y = point[1] + up * (distance + height / 2)
            box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
            cost = distance + 0.5 * rank
            cost += LABEL_COST * sum(_overlap(box, other) for other in taken)
            cost += POINT_COST * sum(_overlap(box, other) for other in obstacles)
            cost += OUTSIDE_COST * (width * height - _overlap(box, inside))
            if cost < lowest:
                best, lowest = box, cost
    return best


def _overlap(a: Box, b: Box) -> float:
    """The area that two boxes share, px^2."""
    return max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
