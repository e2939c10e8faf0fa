"""What all plots share: figures of their own, colours, and files (PNG, SVG, PDF) that repeat to the byte."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from vitbench.reports.palette import LIGHT, MARKERS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: The formats of plots by the suffix of their file, with what would name the library, its version or the date.
FORMATS: dict[str, dict[str, None]] = {
    ".svg": dict.fromkeys(("Creator", "Date", "Format", "Type")),
    ".png": dict.fromkeys(("Software",)),
    ".pdf": dict.fromkeys(("Creator", "Producer", "CreationDate")),
}
#: Text stays text, and ids are the same each time.
_SETTINGS: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "vitbench", "pdf.fonttype": 42}
_PROLOG = b'<?xml version="1.0" encoding="utf-8"?>\n'
#: One for each turn of the palette.
_DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)))
#: A reader cannot distinguish more than these.
MOST_SERIES = len(LIGHT) * len(_DASHES)


def series_style(index: int) -> dict[str, Any]:
    """Colour, marker and line of the series with this number."""
    turn, place = divmod(index, len(LIGHT))
    return {"color": LIGHT[place], "marker": MARKERS[place][0], "ls": _DASHES[turn % len(_DASHES)]}


def new_figure(size: tuple[float, float], dpi: int) -> Figure:
    """A figure of ``size`` inches that touches neither pyplot's state nor a window."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def render(figure: Figure, suffix: str, *, tight: bool = False) -> bytes:
    """The figure in the format of ``suffix`` (of ``FORMATS``): the same results give the same bytes."""
    from matplotlib import rc_context

    buffer = io.BytesIO()
    with rc_context(_SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*")  # names in scripts that the font lacks: boxes
        box = "tight" if tight else None
        figure.savefig(buffer, format=suffix.removeprefix("."), bbox_inches=box, metadata=FORMATS[suffix])
    content = buffer.getvalue()
    # without the reference to a DTD elsewhere, and the name of the library
    return _PROLOG + content[content.index(b"<svg") :] if suffix == ".svg" else content


def open_frame(axes: Axes) -> None:
    """A light grid, and no line above or to the right."""
    axes.grid(True, which="major", color="0.92", zorder=0)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def log_axis(axes: Axes, which: Literal["x", "y"], values: Sequence[float]) -> None:
    """Logarithmic, with plain numbers; under a decade powers of ten alone would leave an axis without one."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    fine = (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if max(values) / min(values) > 8 else fine))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.10g}"))
    axis.set_minor_formatter(NullFormatter())


def add_legend(figure: Any) -> None:
    """Below the axes, where it covers no point; names may hold dollar signs."""
    legend = figure.legend(loc="outside lower center", fontsize=8, frameon=False, ncols=2, handlelength=3.5)
    for text in legend.get_texts():
        text.set_parse_math(False)
