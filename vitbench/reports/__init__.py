"""What people read of a run, made from its records alone; never imports torch.

``records.jsonl`` -> ``Run`` -> rows -> tables of values (``model/``) -> ``markdown/``, ``plots/``, CSV, a tidy frame.
Imports analysis (claims), suites, training (recipes), devices and core. Start with ``model/rows.py`` and
``model/tables.py``: no digit is rounded and nothing escaped there. ``value_text.py`` decides on digits and brackets,
and each format escapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["load_records", "summary_tables", "write_report"]

MARKDOWN = "report.md"
CSV = "report.csv"


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


def summary_tables(folders: Sequence[Path | str]) -> str:
    """The main tables of one or several run folders as Markdown, and a line on what disturbed each run, where
    anything did. Raises RunFolderError for a folder without a run.
    """
    from vitbench.reports.markdown.page import disturbance_lines, render_summary
    from vitbench.reports.model.runs import read_runs

    runs = read_runs(folders)
    return "\n\n".join([render_summary(runs), *disturbance_lines(runs, folders)])


def write_report(folders: Sequence[Path | str], out: Path | str) -> list[Path]:
    """Write ``report.md``, ``report.csv`` and, if there are accuracies, two plots into ``out``; returns their paths.

    ``out`` is made if need be; each file is replaced in one step. Raises RunFolderError if a folder holds no run or
    ``out`` cannot be made, StorageError if the disk does not take a file.
    """
    from vitbench.reports.files import write_files
    from vitbench.reports.markdown.page import render_markdown
    from vitbench.reports.model.rows import build_rows
    from vitbench.reports.model.runs import read_runs
    from vitbench.reports.plots.tradeoffs import draw_plot, plan_plots
    from vitbench.reports.table import render_csv

    runs = read_runs(folders)
    files = {plot.file_name: draw_plot(plot) for plot in plan_plots(build_rows(runs))}
    files |= {
        CSV: render_csv(runs).encode(),
        MARKDOWN: render_markdown(runs).encode(),
    }  # the page last: it links the others
    return write_files(Path(out), files)
