"""What all plots share: colours, figures of their own, and PNG files that repeat to the byte."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Okabe and Ito's colours without the yellow, which people with colour vision deficiency can distinguish.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
#: A marker for each of them.
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def new_figure(size: tuple[float, float], dpi: int) -> Figure:
    """A figure of ``size`` inches that touches neither pyplot's state nor a window."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def render_png(figure: Figure, *, tight: bool = False) -> bytes:
    """The figure as PNG, without the library's name and version: the same results give the same bytes."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*")  # names in scripts that the font lacks: boxes
        figure.savefig(buffer, format="png", bbox_inches="tight" if tight else None, metadata={"Software": None})
    return buffer.getvalue()


def open_frame(axes: Axes) -> None:
    """A light grid, and no line above or to the right."""
    axes.grid(True, which="major", color="0.92", zorder=0)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
