"""Names beside points of a plot, placed so that they cover neither points nor each other where there is room."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FONT_SIZE = 8
#: Where a label may go: directions by preference (right, left, above, ...) and distances in px from its point.
DIRECTIONS = (0, 180, 45, 135, -45, -135, 90, -90, 20, 160, -20, -160)
DISTANCES = (9, 20, 34, 52, 74)
#: A label further away than this many px gets a line back to its point.
LEADER_BEYOND = 15
#: What a covered px of each costs, against one px of distance.
LABEL_COST, POINT_COST, OUTSIDE_COST = 1.0, 1.5, 5.0

Box = tuple[float, float, float, float]  # left, bottom, right, top


@dataclass(frozen=True)
class Label:
    """A text and the point (data coordinates) that it names."""

    text: str
    x: float
    y: float
    colour: str


def place_labels(
    axes: Axes, labels: Sequence[Label], points: Sequence[tuple[float, float]], lines: Sequence[Box]
) -> None:
    """Write ``labels`` beside their points, off all ``points`` and level or upright ``lines`` where there is room.

    All in data coordinates. Call it last: limits, scales and layout must stand. Greedy, the most crowded points first;
    the same input gives the same plot.
    """
    to_pixels = axes.transData.transform
    pixels = [tuple(map(float, to_pixels((label.x, label.y)))) for label in labels]
    sizes = [_text_size(axes, label.text) for label in labels]
    frame = axes.get_window_extent()
    inside = (frame.x0 + 2, frame.y0 + 2, frame.x1 - 2, frame.y1 - 2)
    obstacles = [np.hstack([to_pixels(np.array(points)) - 6, to_pixels(np.array(points)) + 6])]
    if lines:
        ends = np.array(lines)
        obstacles.append(np.hstack([to_pixels(ends[:, :2]) - 2, to_pixels(ends[:, 2:]) + 2]))
    covered, taken = np.vstack(obstacles), np.zeros((len(labels), 4))
    for done, index in enumerate(sorted(range(len(labels)), key=lambda i: (_room(pixels, i), i))):
        label = labels[index]
        box = _best_box(pixels[index], sizes[index], inside, covered, taken[:done])
        taken[done] = box
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
            bbox={"boxstyle": "square,pad=0", "fc": "white", "alpha": 0.7, "lw": 0},
            zorder=5,
            arrowprops={"arrowstyle": "-", "lw": 0.5, "color": "0.6", "shrinkB": 4} if away > LEADER_BEYOND else None,
            parse_math=False,
        )


def _text_size(axes: Axes, text: str) -> tuple[float, float]:
    drawn = axes.text(0, 0, text, fontsize=FONT_SIZE, parse_math=False)
    extent = drawn.get_window_extent()
    drawn.remove()
    return extent.width, extent.height


def _room(pixels: Sequence[tuple[float, ...]], index: int) -> float:
    return min((math.dist(pixels[index], other) for i, other in enumerate(pixels) if i != index), default=math.inf)


def _best_box(
    point: tuple[float, ...], size: tuple[float, float], inside: Box, obstacles: np.ndarray, taken: np.ndarray
) -> Box:
    width, height = size
    distances = np.repeat(np.array(DISTANCES, dtype=float), len(DIRECTIONS))
    angles = np.tile(np.radians(DIRECTIONS), len(DISTANCES))
    x = point[0] + np.cos(angles) * (distances + width / 2)
    y = point[1] + np.sin(angles) * (distances + height / 2)
    boxes = np.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], axis=1)
    cost = distances + 0.5 * np.tile(np.arange(len(DIRECTIONS)), len(DISTANCES))
    cost += LABEL_COST * _overlaps(boxes, taken).sum(axis=1)
    cost += POINT_COST * _overlaps(boxes, obstacles).sum(axis=1)
    cost += OUTSIDE_COST * (width * height - _overlaps(boxes, np.array([inside]))[:, 0])
    left, bottom, right, top = map(float, boxes[np.argmin(cost)])
    return left, bottom, right, top


def _overlaps(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The area (px^2) that each of ``some`` (n x 4) shares with each of ``others`` (m x 4), n x m."""
    low = np.maximum(some[:, None, :2], others[None, :, :2])
    high = np.minimum(some[:, None, 2:], others[None, :, 2:])
    return np.prod(np.clip(high - low, 0, None), axis=2)
