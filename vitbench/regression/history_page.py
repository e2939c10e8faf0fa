"""A History to what a person reads: a table of steps for a terminal, ``history.md``, a picture a series, JSON."""

from __future__ import annotations

import io
import itertools
import json as encoder
import math
import re
import statistics
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitbench.core.errors import RunFolderError
from vitbench.core.run_folder import write_atomically
from vitbench.core.text import one_line
from vitbench.regression.change import Change
from vitbench.regression.change_page import shown_value
from vitbench.regression.history import History, Moment, Series, Step
from vitbench.reports.format import NOT_ASKED, cell_text, number, percent, table, without_paths
from vitbench.reports.plots.tradeoffs import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKDOWN = "history.md"

#: Of the JSON output.
SCHEMA = 1

#: More pictures than anybody looks at; those with steps come first.
MOST_PICTURES = 200
#: So many runs are named on an axis; of more, every second, third, ... one.
_MOST_TICKS = 14
_LONGEST_LABEL = 70

_SCALES = {"s": (1e3, "ms"), "byte": (1e-6, "MB"), "FLOP": (1e-9, "GFLOP"), "MAC": (1e-9, "GMAC")}
_SILENT = ("1", "parameter", "element", "")

HOW_TO_READ = (
    "A step is where a figure changes its level; it begins at the run named, so that the change was made after the run "
    "before it. Exact figures (parameters, FLOPs, tensor bytes, statuses) step whenever they differ. Times over those "
    "of the reference and measured memory scatter: there `false alarm` is an upper bound of the chance that a history "
    "in which nothing changes shows a step as clear as this one in any of its series; none above {:.0%} is told. It "
    "takes runs to differ by 4 % (times) beyond what the processes of each run show, and by the series' own spread the "
    "more runs there are. "
    "A step that only the last run shows is not confirmed before the next one. Absolute times, throughput, energy and "
    "accuracies are shown and not judged. History is advice: it fails nothing."
)

_HEADINGS = ("begins", "commit", "cell", "metric", "before", "after", "change", "runs", "false alarm", "note")
_TEXTS = ("begins", "commit", "cell", "metric", "note")


@dataclass(frozen=True)
class StepLine:
    """Steps that are one change: the same figure of one model in several cells."""

    step: Step
    cells: int


def step_lines(steps: Sequence[Step]) -> list[StepLine]:
    """The steps, equal ones of a model's cells (its parameters at each batch) as one line."""
    found: dict[object, list[Step]] = {}
    for step in steps:
        one = step.series
        same: object = (one.model, one.metric, step.before, step.after, step.begins.run)
        found.setdefault(same if one.kind == "exact" else id(step), []).append(step)
    return [StepLine(group[0], len({step.series.cell for step in group})) for group in found.values()]


def headline(history: History) -> str:
    """What the history comes to: ``2 steps in 12 series of 9 runs, 2026-01-01 to 2026-02-01``."""
    lines, runs = len(step_lines(history.steps)), len(history.moments)
    several = [one for one in history.series if len(one.points) > 1]
    judged = sum(one.kind != "shown" for one in several)
    rest = {
        "shown, not judged": len(several) - judged,
        "with one run only": len(history.series) - len(several),
    }
    more = "".join(f"; {count} more {what}" for what, count in rest.items() if count)
    text = f"{_count(lines, 'step')} in {judged} series of {_count(runs, 'run')}, {_span(history.moments)}{more}."
    return text[0].upper() + text[1:]


def render_terminal(history: History) -> str:
    """The steps as a table for a terminal with what they come to above and what was passed over below."""
    from tabulate import tabulate

    parts = [headline(history)]
    lines = step_lines(history.steps)
    if lines:
        notes = _Notes(one_line)
        align = ["left" if heading in _TEXTS else "right" for heading in _HEADINGS]
        rows = [_row(line, one_line, notes) for line in lines]
        parts.append(tabulate(rows, _HEADINGS, tablefmt="simple", colalign=align, disable_numparse=True))
        parts += [notes.text("[{}] {}")] if notes else []
    return "\n\n".join(parts)


def render_markdown(history: History, pictures: Sequence[Picture]) -> str:
    """The whole page; pictures are linked by their file names."""
    parts = ["# vitbench history", headline(history), _runs_table(history), "## Steps"]
    lines = step_lines(history.steps)
    if lines:
        notes = _Notes(lambda text: cell_text(text, 1000))
        parts.append(table(_HEADINGS, [_row(line, cell_text, notes) for line in lines], _TEXTS))
        parts += [notes.text("- \\[{}\\] {}")] if notes else []
    else:
        parts.append("None.")
    parts += ["### How to read it", HOW_TO_READ.format(history.false_alarms), "## Series", *_series_section(history)]
    if history.problems:
        parts += ["## Passed over", "\n".join(f"- {cell_text(text, 500)}" for text in history.problems)]
    if pictures:
        parts.append("## Pictures")
        parts += [f"![{cell_text(one.series.name)}]({one.file_name})" for one in pictures]
        left_out = _left_out(history, pictures)
        parts += [left_out] if left_out else []
    return "\n\n".join(parts) + "\n"


def history_json(history: History) -> str:
    """One JSON object: ``schema``, ``runs`` by time, ``series`` with their points and steps in base units."""
    runs = [_moment(one) for one in history.moments]
    by_series: dict[int, list[dict[str, Any]]] = {}
    for step in history.steps:
        by_series.setdefault(id(step.series), []).append(
            {
                "run": step.begins.run,
                "commit": step.begins.commit,
                "last_before": step.last_before.run,
                **{key: getattr(step, key) for key in ("index", "before", "after", "ratio", "low", "high")},
                **{key: getattr(step, key) for key in ("chance", "runs_before", "runs_after")},
                "also_changed": list(step.also_changed),
            }
        )
    series = [
        {
            **{key: getattr(one, key) for key in ("cell", "model", "metric", "unit", "kind", "machine")},
            "points": [
                {"run": point.moment.run, "value": point.value, "low": point.low, "high": point.high}
                for point in one.points
            ],
            "steps": by_series.get(id(one), []),
        }
        for one in history.series
    ]
    content = {
        "schema": SCHEMA,
        "false_alarms": history.false_alarms,
        "runs": runs,
        "series": series,
        "problems": list(history.problems),
    }
    # halves of characters come as which file names have bytes that are no text
    return encoder.dumps(content, indent=2, allow_nan=False) + "\n"


def write_history(history: History, out: Path) -> list[Path]:
    """Write the pictures and ``history.md`` into ``out``; returns their paths.

    Raises RunFolderError if ``out`` cannot be made, StorageError if the disk does not take a file.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFolderError(f"Cannot write into {out}: {error.strerror}. Choose another folder with --out") from error
    pictures = plan_pictures(history)
    paths = []
    for picture in pictures:
        paths.append(out / picture.file_name)
        write_atomically(paths[-1], render_png(picture))
    page = render_markdown(history, pictures).encode("utf-8", errors="backslashreplace")
    write_atomically(out / MARKDOWN, page)  # last: it links the others
    return [*paths, out / MARKDOWN]


# lines


def _row(line: StepLine, escape: Callable[[str], str], notes: _Notes) -> list[str]:
    step, series = line.step, line.step.series
    cell = series.cell if line.cells == 1 else f"{series.model} ({line.cells} cells)"
    change = _as_change(step)
    return [
        escape(f"{_day(step.begins)} {step.begins.run}"),
        escape(step.begins.short_commit or NOT_ASKED),
        escape(cell),
        escape(series.metric.replace("_", " ")),
        escape(shown_value(step.before, change)),
        escape(shown_value(step.after, change)),
        escape(_difference(step)),
        f"{step.runs_before} + {step.runs_after}",
        _chance(step),
        notes.number(_note(step)),
    ]


def _as_change(step: Step) -> Change:
    """As the gates show a figure."""
    one = step.series
    return Change(
        cell=one.cell,
        metric=one.metric,
        unit=one.unit,
        base=step.before,
        head=step.after,
        verdict="not comparable",
        exact=one.kind == "exact",
    )


def _difference(step: Step) -> str:
    if step.ratio is None:
        return ""
    if step.low is None or step.high is None:
        share = step.ratio - 1
        return f"{percent(share)} %" if abs(share) >= 5e-4 else f"{100 * share:+.2g} %"
    return f"{percent(step.ratio - 1)} % [{percent(step.low - 1)}, {percent(step.high - 1)}]"


def _chance(step: Step) -> str:
    if step.series.kind == "exact":
        return "none: exact"
    return "< 0.01 %" if step.chance < 1e-4 else f"{number(100 * step.chance, 2)} %"


def _note(step: Step) -> str:
    """What may explain it, and what to bear in mind."""
    parts = [f"after {step.last_before.run}" + (f" ({commit})" if (commit := step.last_before.short_commit) else "")]
    if step.also_changed:
        some = step.also_changed[:6]
        more = f" and {len(step.also_changed) - len(some)} more" if len(step.also_changed) > len(some) else ""
        parts.append(f"changed as well: {', '.join(some)}{more}")
    if step.series.kind != "exact" and step.runs_after == 1:
        parts.append("only the last run shows it: not confirmed yet")
    if step.series.machine:
        parts.append(f"on {step.series.machine}")
    return "; ".join(parts)


class _Notes:
    """Notes, each once, with the numbers by which lines of a table refer to them."""

    def __init__(self, escape: Callable[[str], str]) -> None:
        self._escape = escape
        self._found: dict[str, int] = {}

    def number(self, text: str) -> str:
        return f"[{self._found.setdefault(text, len(self._found) + 1)}]"

    def __bool__(self) -> bool:
        return bool(self._found)

    def text(self, line: str) -> str:
        return "\n".join(line.format(count, self._escape(without_paths(text))) for text, count in self._found.items())


def _runs_table(history: History) -> str:
    lines = [
        [_day(one), cell_text(one.run), cell_text(one.short_commit or NOT_ASKED), cell_text(_versions(one))]
        for one in history.moments
    ]
    heading = ("date", "run", "commit", "versions")
    return f"<details><summary>{_count(len(lines), 'run')}</summary>\n\n{table(heading, lines, heading)}\n\n</details>"


def _versions(moment: Moment) -> str:
    names = ("torch", "timm", "python", "vitbench")
    return ", ".join(f"{name} {moment.conditions[name]}" for name in names if moment.conditions.get(name))


def _series_section(history: History) -> list[str]:
    """A line a series; exact ones that never changed are counted."""
    steps = Counter(id(step.series) for step in history.steps)
    still = [one for one in history.series if one.kind == "exact" and not steps[id(one)]]
    told = [one for one in history.series if one not in still]
    lines = []
    for one in told:
        change = Change(
            cell=one.cell,
            metric=one.metric,
            unit=one.unit,
            base=None,
            head=None,
            verdict="not comparable",
            exact=one.kind == "exact",
        )
        judged = str(steps[id(one)]) if one.kind != "shown" else "not judged"
        lines.append(
            [
                cell_text(one.cell),
                cell_text(one.metric.replace("_", " ")),
                cell_text(one.machine or NOT_ASKED),
                str(len(one.points)),
                cell_text(shown_value(one.points[0].value, change)),
                cell_text(shown_value(one.points[-1].value, change)),
                f"{100 * scatter:.1f}" if (scatter := _scatter(one)) is not None else NOT_ASKED,
                judged,
            ]
        )
    headings = ("cell", "metric", "machine", "runs", "first", "last", "differs from run to run (%)", "steps")
    parts = [table(headings, lines, ("cell", "metric", "machine"))] if lines else []
    if still:
        metrics = ", ".join(dict.fromkeys(cell_text(one.metric.replace("_", " ")) for one in still))
        parts.append(f"{len(still)} exact series never changed ({metrics}).")
    return parts


def _scatter(series: Series) -> float | None:
    """The coefficient of variation between runs that follow each other: a step counts once, not for each run."""
    values = series.numbers
    if series.kind == "exact" or len(values) < 3 or len(values) < len(series.points) or min(values) <= 0:
        return None
    logs = [math.log(value) for value in values]
    squares = [(b - a) ** 2 / 2 for a, b in itertools.pairwise(logs)]
    # the median of squares, as a step is one large one; 0.455 is that of a normal variable's
    return math.sqrt(statistics.median(squares) / 0.455)


def _moment(one: Moment) -> dict[str, Any]:
    return {"run": one.run, "at": one.at.isoformat(), "commit": one.commit, "conditions": dict(one.conditions)}


def _day(moment: Moment) -> str:
    return f"{moment.at:%Y-%m-%d}"


def _span(moments: Sequence[Moment]) -> str:
    days = list(dict.fromkeys(_day(one) for one in (*moments[:1], *moments[-1:])))
    return " to ".join(days)


def _count(number_of: int, what: str) -> str:
    return f"{number_of or 'no'} {what}{'s' if number_of != 1 else ''}"


# pictures


@dataclass(frozen=True)
class Picture:
    """One series as a picture."""

    file_name: str
    series: Series
    steps: tuple[Step, ...]


def plan_pictures(history: History) -> list[Picture]:
    """A picture of each series with two figures or more; exact ones only where they changed, as a level line says
    nothing. Those with steps come first.
    """
    steps: dict[int, list[Step]] = {}
    for step in history.steps:
        steps.setdefault(id(step.series), []).append(step)
    wanted = [one for one in history.series if len(one.numbers) == len(one.points) > 1 and _worth_a_picture(one, steps)]
    wanted.sort(key=lambda one: id(one) not in steps)
    return [
        Picture(f"history-{count:03}-{_slug(one)}.png", one, tuple(steps.get(id(one), ())))
        for count, one in enumerate(wanted[:MOST_PICTURES], start=1)
    ]


def _worth_a_picture(series: Series, steps: dict[int, list[Step]]) -> bool:
    return series.kind != "exact" or id(series) in steps


def _left_out(history: History, pictures: Sequence[Picture]) -> str:
    wanted = {id(step.series): [step] for step in history.steps}
    count = sum(len(one.numbers) == len(one.points) > 1 and _worth_a_picture(one, wanted) for one in history.series)
    missing = count - len(pictures)
    return f"{missing} more series have no picture: choose with --metric and --models." if missing > 0 else ""


def _slug(series: Series) -> str:
    text = f"{series.metric}-{series.cell}"
    return re.sub(r"[^A-Za-z0-9_.]+", "-", text)[:100].strip("-.")


def render_png(picture: Picture) -> bytes:
    """Draw it. Uses a figure of its own: neither pyplot's state nor a window is touched."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Drawing

    drawing = Drawing(figsize=(9, 4.4), dpi=130, layout="constrained")
    FigureCanvasAgg(drawing)
    axes = drawing.add_subplot()
    _draw_points(axes, picture)
    _draw_steps(axes, picture)
    _draw_frame(axes, picture)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*")  # names in scripts that the font lacks: boxes
        # Without the library's name and version: the same records give the same bytes.
        drawing.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _scale(series: Series) -> tuple[float, str]:
    scale, unit = _SCALES.get(series.unit, (1.0, "" if series.unit in _SILENT else series.unit))
    return scale, unit


def _draw_points(axes: Axes, picture: Picture) -> None:
    scale, _ = _scale(picture.series)
    for place, point in enumerate(picture.series.points):
        if point.low is not None and point.high is not None:
            axes.plot([place, place], [point.low * scale, point.high * scale], color=COLOURS[0], lw=1, alpha=0.45)
    values = [value * scale for value in picture.series.numbers]
    style = "o" if picture.series.kind != "shown" else "o-"
    axes.plot(range(len(values)), values, style, color=COLOURS[0], ms=4.5, lw=0.8, zorder=3)


def _draw_steps(axes: Axes, picture: Picture) -> None:
    """The levels, and at each step the commit that it begins with."""
    if picture.series.kind == "shown":
        return
    scale, _ = _scale(picture.series)
    ends = [0, *(step.index for step in picture.steps), len(picture.series.points)]
    levels = [float(step.before) for step in picture.steps]
    levels += [float(picture.steps[-1].after)] if picture.steps else [statistics.median(picture.series.numbers)]
    for (start, end), level in zip(itertools.pairwise(ends), levels, strict=False):
        axes.plot([start - 0.4, end - 0.6], [level * scale] * 2, color=COLOURS[2], lw=2, alpha=0.8, zorder=2)
    for count, step in enumerate(picture.steps):
        axes.axvline(step.index - 0.5, color=COLOURS[1], lw=1, ls=(0, (4, 3)), zorder=1)
        text = f"{step.begins.short_commit or step.begins.run}\n{_difference(step)}"
        left = step.index < 0.7 * len(picture.series.points)
        axes.annotate(
            "\n".join(one_line(line, 40) for line in text.split("\n")),
            xy=(step.index - 0.5, 1),
            xycoords=("data", "axes fraction"),
            xytext=(4 if left else -4, -4 - 26 * (count % 3)),
            textcoords="offset points",
            va="top",
            ha="left" if left else "right",
            fontsize=8,
            color=COLOURS[1],
            parse_math=False,
        )


def _draw_frame(axes: Axes, picture: Picture) -> None:
    series, (_, unit) = picture.series, _scale(picture.series)
    points = series.points
    every = math.ceil(len(points) / _MOST_TICKS)
    places = list(range(0, len(points), every))
    names = [
        "\n".join(filter(None, (_day(points[i].moment), one_line(points[i].moment.commit[:8], 10)))) for i in places
    ]
    axes.set_xticks(places, names, fontsize=7, rotation=35 if len(places) > 7 else 0)
    for tick in axes.get_xticklabels():
        tick.set_parse_math(False)
    axes.set_xlim(-0.7, len(points) - 0.3)
    low, high = axes.get_ylim()
    # room for the words on top
    axes.set_ylim(low, high + (high - low) * (0.25 if picture.steps else 0.05))
    axes.ticklabel_format(axis="y", style="plain", useOffset=False)
    label = series.metric.replace("_", " ") + (f" ({unit})" if unit else "")
    axes.set_ylabel(one_line(label, _LONGEST_LABEL), parse_math=False)
    judged = {"exact": "exact", "shown": "not judged"}.get(series.kind, "95 % intervals of each run")
    where = f"; {series.machine}" if series.machine else ""
    title = f"{one_line(series.cell, _LONGEST_LABEL)}\n{one_line(f'{judged}{where}', _LONGEST_LABEL)}"
    axes.set_title(title, fontsize=10, parse_math=False)
    axes.grid(True, axis="y", color="0.92", zorder=0)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
