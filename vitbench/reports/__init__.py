"""What people read of a run, made from its records alone; never imports torch.

``records.jsonl`` -> ``Run`` -> rows -> tables of values (``model/``) -> ``markdown/``, ``plots/``, CSV, a tidy frame.
Imports analysis (claims), suites, training (recipes), devices and core. Start with ``model/rows.py`` and
``model/tables.py``: no digit is rounded and nothing escaped there. ``value_text.py`` decides on digits and brackets,
``sections.py`` on what pages fold, with the texts of ``explanations.py``, and each format escapes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vitbench.core.errors import VitbenchError

if TYPE_CHECKING:
    import pandas as pd

    from vitbench.reports.model.runs import Run

__all__ = ["FORMATS", "load_records", "render", "summary", "write_report"]

MARKDOWN = "report.md"
CSV = "report.csv"
HTML = "report.html"

#: The module and the function that render a format.
_RENDERERS = {
    "html": ("html.page", "render_html"),
    "markdown": ("markdown.page", "render_markdown"),
    "latex": ("latex", "render_latex"),
    "csv": ("table", "render_csv"),
    "json": ("json", "render_json"),
}
#: What ``render`` knows.
FORMATS = (*_RENDERERS, "terminal")


def load_records(*folders: Path | str) -> pd.DataFrame:
    """The measurements of one or several run folders as a tidy frame: one row a measurement.

    Beside the fields of its cell a row has ``run``, ``metric``, ``unit``, ``value`` (the point estimate), ``low`` and
    ``high`` (95 %, NaN if there is no interval), ``interval_kind``, ``turns_used``, ``n_samples``, ``n_processes``,
    ``n_left_out``, ``status``, ``cause``, ``detail``, ``method`` and all ``samples``, in base units (s, byte, FLOP,
    image/s). A cell that failed before anything was measured has one row without a metric. So
    ``load_records(run).query("metric == 'latency' and batch_size == 1")``.

    Raises RunFolderError for a folder without a run; warns of damaged records.
    """
    from vitbench.reports.model.runs import read_runs
    from vitbench.reports.table import tidy_frame

    return tidy_frame(read_runs(folders))


def summary(folders: Sequence[Path | str], width: int = 120, *, styled: bool = False) -> str:
    """What a terminal shows of one or several run folders, in lines of at most ``width`` characters, with ANSI styles
    if ``styled``. Raises RunFolderError for a folder without a run.
    """
    from vitbench.reports.model.runs import read_runs
    from vitbench.reports.terminal import render_terminal

    return render_terminal(read_runs(folders), width, folders, styled=styled)


def render(folders: Sequence[Path | str], format: str) -> str:
    """One or several run folders as one of ``FORMATS``. Raises RunFolderError for a folder without a run."""
    from vitbench.reports.model.runs import read_runs

    return summary(folders) + "\n" if format == "terminal" else _render(read_runs(folders), format)


def _render(runs: Sequence[Run], format: str) -> str:
    from importlib import import_module

    module, function = _RENDERERS[format]
    return str(getattr(import_module(f"vitbench.reports.{module}"), function)(runs))


def write_report(folders: Sequence[Path | str], out: Path | str) -> list[Path]:
    """Write ``report.csv``, ``report.md``, ``report.html`` and, if there are accuracies, plots into ``out``; returns
    their paths.

    ``out`` is made if need be; each file is replaced in one step, as soon as it is rendered. If a mistake of ours ends
    one, the others are written, and then its exception is raised with a note on what is there. Raises RunFolderError if
    a folder holds no run or ``out`` cannot be made, StorageError if the disk does not take a file.
    """
    from vitbench.core.run_folder import write_atomically
    from vitbench.reports.files import make_folder
    from vitbench.reports.model.rows import build_rows
    from vitbench.reports.model.runs import read_runs
    from vitbench.reports.model.tradeoffs import report_tradeoffs
    from vitbench.reports.plots.pareto import draw_tradeoff

    runs, folder = read_runs(folders), Path(out)
    make_folder(folder)
    steps: dict[str, Callable[[], dict[str, bytes]]] = {
        "the plots": lambda: {
            name: draw_tradeoff(plot, ".png") for name, plot in report_tradeoffs(build_rows(runs)).items()
        },
        CSV: lambda: {CSV: _render(runs, "csv").encode()},
        MARKDOWN: lambda: {MARKDOWN: _render(runs, "markdown").encode()},  # the pages last: they link the others
        HTML: lambda: {HTML: _render(runs, "html").encode()},
    }
    written: list[Path] = []
    failed: list[tuple[str, Exception]] = []
    for what, files_of in steps.items():
        try:
            files = files_of()
        except VitbenchError:
            raise
        except Exception as error:  # a bug of ours, raised below: it must not cost the other files
            failed.append((what, error))
            continue
        for name, content in files.items():
            write_atomically(folder / name, content)
            written.append(folder / name)
    if failed:
        _, first = failed[0]
        missing, there = " and ".join(what for what, _ in failed), ", ".join(path.name for path in written)
        first.add_note(f"Rendering {missing} failed in vitbench itself. The records are complete. Written: {there}")
        raise first
    return written
