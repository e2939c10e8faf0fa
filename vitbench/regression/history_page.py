"""Render a history: a table of steps for a terminal, ``history.md``, and JSON."""

from __future__ import annotations

import itertools
import json as encoder
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from vitbench.core.errors import RunFolderError
from vitbench.core.run_folder import write_atomically
from vitbench.core.text import one_line
from vitbench.regression.change_text import Footnotes, shown_value
from vitbench.regression.history import History, Step
from vitbench.regression.history_plots import Plot, day_of, plan_plots, ratio_text, render_png
from vitbench.regression.series import Series
from vitbench.reports.format import NOT_ASKED, cell_text, number, table, without_paths

MARKDOWN = "history.md"

#: The schema of the JSON output.
SCHEMA = 1

HOW_TO_READ = (
    "A step is a change of a value's level. It begins at the run named: the change was made after the run before it. "
    "Exact values (parameters, FLOPs, tensor bytes, statuses) step whenever they differ. Times relative to the "
    "reference, and measured memory, vary between runs. For them `false alarm` is an upper bound: the chance that a "
    "history without any change shows a step as clear as this one in any of its series. Steps above {:.0%} are not "
    "listed. Runs are expected to differ by 4 % (times) beyond what the processes of each run show. The more runs "
    "there are, the more the series' own spread counts. "
    "A step that only the last run shows is not confirmed yet. Absolute times, throughput, energy and accuracies are "
    "shown but not judged. History is advice: it fails nothing."
)

_HEADINGS = ("begins", "commit", "cell", "metric", "before", "after", "change", "runs", "false alarm", "note")
_TEXTS = ("begins", "commit", "cell", "metric", "note")
_MOST_CONDITIONS = 6
#: At most this many plots are drawn; series with steps come first.
_MOST_PLOTS = 200


def step_lines(steps: Sequence[Step]) -> list[tuple[Step, int]]:
    """The steps, and in how many cells. Equal exact steps of a model (its parameters at each batch size) are one."""
    found: dict[object, list[Step]] = {}
    for step in steps:
        one = step.series
        same: object = (one.model, one.metric, step.before, step.after, step.begins.run)
        found.setdefault(same if one.kind == "exact" else id(step), []).append(step)
    return [(group[0], len({step.series.cell for step in group})) for group in found.values()]


def headline(history: History) -> str:
    """Sum up the history: ``2 steps in 12 series of 9 runs, 2026-01-01 to 2026-02-01.``"""
    several = [one for one in history.series if len(one.points) > 1]
    judged = sum(one.kind != "shown" for one in several)
    rest = {
        "shown, not judged": len(several) - judged,
        "with one run only": len(history.series) - len(several),
    }
    more = "".join(f"; {count} more {what}" for what, count in rest.items() if count)
    days = list(dict.fromkeys(day_of(one) for one in (*history.moments[:1], *history.moments[-1:])))
    steps, runs = _count(len(step_lines(history.steps)), "step"), _count(len(history.moments), "run")
    text = f"{steps} in {judged} series of {runs}, {' to '.join(days)}{more}."
    return text[0].upper() + text[1:]


def render_terminal(history: History) -> str:
    """The headline and a table of the steps for a terminal."""
    from tabulate import tabulate

    parts = [headline(history)]
    lines = step_lines(history.steps)
    if lines:
        notes = Footnotes(lambda text: one_line(without_paths(text)))
        align = ["left" if heading in _TEXTS else "right" for heading in _HEADINGS]
        rows = [_row(*line, one_line, notes) for line in lines]
        parts.append(tabulate(rows, _HEADINGS, tablefmt="simple", colalign=align, disable_numparse=True))
        parts += notes.lines("[{}] {}")
    return "\n\n".join(parts)


def render_markdown(history: History, plots: Sequence[Plot]) -> str:
    """The whole page; it links the first of ``plots`` by their file names, and counts the others."""
    parts = ["# vitbench history", headline(history), _runs_table(history), "## Steps"]
    lines = step_lines(history.steps)
    if lines:
        notes = Footnotes(lambda text: cell_text(without_paths(text), 1000))
        rows = [_row(*line, cell_text, notes) for line in lines]
        parts += [table(_HEADINGS, rows, _TEXTS), *notes.lines("- \\[{}\\] {}")]
    else:
        parts.append("None.")
    parts += ["### How to read it", HOW_TO_READ.format(history.false_alarms), "## Series", *_series_section(history)]
    if history.problems:
        parts += ["## Skipped", "\n".join(f"- {cell_text(text, 500)}" for text in history.problems)]
    if plots:
        parts.append("## Plots")
        parts += [f"![{cell_text(one.series.name)}]({one.file_name})" for one in plots[:_MOST_PLOTS]]
        if len(plots) > _MOST_PLOTS:
            parts.append(f"{len(plots) - _MOST_PLOTS} more series have no plot: choose with --metric and --models.")
    return "\n\n".join(parts) + "\n"


def history_json(history: History) -> str:
    """One JSON object: ``schema``, ``runs`` by time, ``series`` with their points and steps in base units."""
    step_keys = ("index", "before", "after", "ratio", "low", "high", "chance", "runs_before", "runs_after")
    content = {
        "schema": SCHEMA,
        "false_alarms": history.false_alarms,
        "runs": [
            {"run": one.run, "at": one.at.isoformat(), "commit": one.commit, "conditions": dict(one.conditions)}
            for one in history.moments
        ],
        "series": [
            {
                **{key: getattr(one, key) for key in ("cell", "model", "metric", "unit", "kind", "machine")},
                "points": [
                    {"run": point.moment.run, "value": point.value, "low": point.low, "high": point.high}
                    for point in one.points
                ],
                "steps": [
                    {
                        "run": step.begins.run,
                        "commit": step.begins.commit,
                        "last_before": step.last_before.run,
                        **{key: getattr(step, key) for key in step_keys},
                        "also_changed": list(step.also_changed),
                    }
                    for step in history.steps_of(one)
                ],
            }
            for one in history.series
        ],
        "problems": list(history.problems),
    }
    # ASCII only, as file names with bytes that are not text become lone surrogates
    return encoder.dumps(content, indent=2, allow_nan=False) + "\n"


def write_history(history: History, out: Path) -> list[Path]:
    """Write the plots and ``history.md`` into ``out``, and return their paths.

    Raises RunFolderError if ``out`` cannot be made, StorageError if the disk does not take a file.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFolderError(f"Cannot write into {out}: {error.strerror}. Choose another folder with --out") from error
    plots = plan_plots(history)
    drawn = plots[:_MOST_PLOTS]
    for plot in drawn:
        write_atomically(out / plot.file_name, render_png(plot))
    page = render_markdown(history, plots).encode("utf-8", errors="backslashreplace")
    write_atomically(out / MARKDOWN, page)  # last, as it links the others
    return [*(out / plot.file_name for plot in drawn), out / MARKDOWN]


def _row(step: Step, cells: int, escape: Callable[[str], str], notes: Footnotes) -> list[str]:
    series = step.series
    cell = series.cell if cells == 1 else f"{series.model} ({cells} cells)"
    texts = (
        f"{day_of(step.begins)} {step.begins.run}",
        step.begins.short_commit or NOT_ASKED,
        cell,
        series.metric.replace("_", " "),
        *(_shown(value, series) for value in (step.before, step.after)),
        ratio_text(step),
    )
    runs = f"{step.runs_before} + {step.runs_after}"
    chance = "< 0.01 %" if step.chance < 1e-4 else f"{number(100 * step.chance, 2)} %"
    if series.kind == "exact":
        chance = "none: exact"
    return [*map(escape, texts), runs, chance, notes.reference(_note(step))]


def _shown(value: float | str, series: Series) -> str:
    return shown_value(value, series.unit, exact=series.kind == "exact")


def _note(step: Step) -> str:
    """What may explain the step, and how far to trust it."""
    parts = [f"after {step.last_before.run}" + (f" ({commit})" if (commit := step.last_before.short_commit) else "")]
    if step.also_changed:
        some = step.also_changed[:_MOST_CONDITIONS]
        more = f" and {len(step.also_changed) - len(some)} more" if len(step.also_changed) > len(some) else ""
        parts.append(f"changed as well: {', '.join(some)}{more}")
    if step.series.kind != "exact" and step.runs_after == 1:
        parts.append("only the last run shows it: not confirmed yet")
    if step.series.machine:
        parts.append(f"on {step.series.machine}")
    return "; ".join(parts)


def _runs_table(history: History) -> str:
    names = ("torch", "timm", "python", "vitbench")
    rows = []
    for one in history.moments:
        versions = ", ".join(f"{name} {one.conditions[name]}" for name in names if one.conditions.get(name))
        texts = (one.run, one.short_commit or NOT_ASKED, versions)
        rows.append([day_of(one), *map(cell_text, texts)])
    headings = ("date", "run", "commit", "versions")
    return f"<details><summary>{_count(len(rows), 'run')}</summary>\n\n{table(headings, rows, headings)}\n\n</details>"


def _series_section(history: History) -> list[str]:
    """A row for each series; exact ones that never changed are counted."""
    still = [one for one in history.series if one.kind == "exact" and not history.steps_of(one)]
    rows = []
    for one in (one for one in history.series if one.kind != "exact" or history.steps_of(one)):
        scatter = run_to_run_variation(one)
        rows.append(
            [
                cell_text(one.cell),
                cell_text(one.metric.replace("_", " ")),
                cell_text(one.machine or NOT_ASKED),
                str(len(one.points)),
                cell_text(_shown(one.points[0].value, one)),
                cell_text(_shown(one.points[-1].value, one)),
                f"{100 * scatter:.1f}" if scatter is not None else NOT_ASKED,
                str(len(history.steps_of(one))) if one.kind != "shown" else "not judged",
            ]
        )
    headings = ("cell", "metric", "machine", "runs", "first", "last", "run-to-run variation (%)", "steps")
    parts = [table(headings, rows, ("cell", "metric", "machine"))] if rows else []
    if still:
        metrics = ", ".join(dict.fromkeys(cell_text(one.metric.replace("_", " ")) for one in still))
        parts.append(f"{len(still)} exact series never changed ({metrics}).")
    return parts


def run_to_run_variation(series: Series) -> float | None:
    """The coefficient of variation between successive runs, in which a step counts only once."""
    values = series.numbers
    if series.kind == "exact" or len(values) < 3 or len(values) < len(series.points) or min(values) <= 0:
        return None
    logs = [math.log(value) for value in values]
    squares = [(b - a) ** 2 / 2 for a, b in itertools.pairwise(logs)]
    # The median, as a step is one large square. For normal values the median of squares is 0.455 of their mean.
    return math.sqrt(statistics.median(squares) / 0.455)


def _count(number_of: int, what: str) -> str:
    return f"{number_of or 'no'} {what}{'s' if number_of != 1 else ''}"
