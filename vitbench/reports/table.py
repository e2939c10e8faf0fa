"""Tables for programs: the tidy frame (one row a measurement) and report.csv (one line a row and batch)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from vitbench.analysis.claims import PUBLISHED
from vitbench.core.records import Cell, Record, format_image_size
from vitbench.core.stats.estimates import BY_CLASS
from vitbench.core.stats.intervals import Estimate
from vitbench.core.text import csv_text
from vitbench.reports.format import without_paths
from vitbench.reports.model.lines import batch_of, lines_of
from vitbench.reports.model.noise import busy_beside, has_few_samples, turns_used
from vitbench.reports.model.rows import Row, build_rows
from vitbench.reports.model.runs import Run
from vitbench.reports.model.values import MetricValue, value_of
from vitbench.suites.thresholds import yields_of

if TYPE_CHECKING:
    import pandas as pd

#: metric -> (column, how a base unit is scaled), in order. A metric that is not here gets its name and base unit as its
#: column, after the call that it was measured in: ``inference_tensor_peak_byte``.
FACTS: dict[str, tuple[str, float]] = {
    "params": ("params", 1),
    "trainable_params": ("trainable_params", 1),
    "params_without_gradient": ("params_without_gradient", 1),
    "buffers": ("buffers", 1),
    "params_bytes": ("params_mb", 1e-6),
    "buffers_bytes": ("buffers_mb", 1e-6),
    "flops": ("gflops", 1e-9),
    "macs": ("gmacs", 1e-9),
    "activations": ("activations", 1),
    "flops_fvcore": ("gflops_fvcore", 1e-9),
    "flops_thop": ("gflops_thop", 1e-9),
    "weights_memory": ("weights_memory_mb", 1e-6),
}
INFERENCE: dict[str, tuple[str, float]] = {
    "inference_peak_memory": ("inference_peak_memory_mb", 1e-6),
    "latency": ("latency_ms", 1e3),
    "latency_cpu_time": ("latency_cpu_time_ms", 1e3),
    "throughput": ("throughput_images_per_s", 1),
}
TRAINING_STEP: dict[str, tuple[str, float]] = {
    "training_peak_memory": ("training_peak_memory_mb", 1e-6),
    "training_step": ("training_step_ms", 1e3),
    "training_step_cpu_time": ("training_step_cpu_time_ms", 1e3),
    "training_throughput": ("training_throughput_images_per_s", 1),
}
TRAINING: dict[str, tuple[str, float]] = {
    "accuracy": ("accuracy", 1),
    "macro_f1": ("macro_f1", 1),
    "test_loss": ("test_loss_nat", 1),
    "test_images": ("test_images", 1),
    "training_images": ("training_images", 1),
    "training_steps": ("training_steps", 1),
    "training_loss": ("training_loss_nat", 1),
    "training_duration": ("training_duration_s", 1),
}
COLUMNS = {**FACTS, **INFERENCE, **TRAINING_STEP, **TRAINING}
#: Metrics with an interval beside the times.
RATES = frozenset({"throughput", "training_throughput"})
SAMPLED = frozenset({*RATES, "accuracy"})
#: Units of what is counted, not measured: every digit is written. What was measured has this many.
COUNTED = frozenset({"byte", "parameter", "element", "FLOP", "MAC", "image", "step"})
MEASURED_DIGITS = 10
#: Measured in inference and in training steps alike: the columns say where.
IN_BOTH = "process_peak_memory"


class Extra(NamedTuple):
    """A metric that is not in ``COLUMNS``: ``name`` with the call, ``inference_tensor_peak``, ``column`` with the unit.

    ``where`` it is from: ``inference``, ``training`` (the step), ``any`` cell of the row, or, empty, its training.
    """

    where: str
    metric: str
    name: str
    column: str


Field = str | float | int | bool | None


def tidy_frame(runs: Sequence[Run]) -> pd.DataFrame:
    """One row a measurement, its cell's fields beside it; a cell without measurements has one row, without a metric.

    ``value``, ``low``, ``high`` are in the base ``unit``, ``relative`` and its interval over what the reference took.
    ``turns_used`` says which turns count of what took turns with it: ``quiet``, ``slow`` or ``all``. These have
    ``n_samples`` of ``n_processes`` processes; ``n_left_out`` do not count (warm-up, disturbed turns, the first call of
    a turn). ``samples`` holds all of them as tuples, one a process, as do ``reference_samples``, ``turns`` and
    ``other_load`` their values.
    ``status``, ``detail`` are the measurement's, ``cell_status``, ``cell_detail`` its cell's.
    """
    import pandas as pd

    lines = [line for run in runs for record in run.records for line in _tidy_lines(run.name, record)]
    return pd.DataFrame.from_records(lines, columns=list(_TIDY)).astype(_DTYPES)


#: Columns with a tuple a process.
_SAMPLES = ("samples", "reference_samples", "turns", "other_load")
#: All columns, and the dtypes that pandas would guess wrongly from missing values.
_TIDY = (
    *("run", "cell", "model", "image_size", "height", "width", "num_classes", "batch_size", "device", "dtype", "mode"),
    *("attention", "compile", "threads", "memory_limit", "weights", "data", "recipe_hash", "seed", "options"),
    *("metric", "unit", "value", "low", "high", "relative", "relative_low", "relative_high", "relative_interval_kind"),
    *("interval_kind", "turns_used", "n_samples", "n_processes", "n_left_out", "lower_bound", "status", "detail"),
    "method",
    *("cell_status", "cause", "cell_detail", "environment", "started_at", "duration_s"),
    *_SAMPLES,
)
_DTYPES: dict[str, str] = {
    **dict.fromkeys(("height", "width", "num_classes", "batch_size", "threads", "seed"), "int64"),
    **dict.fromkeys(("n_samples", "n_processes", "n_left_out"), "int64"),
    **dict.fromkeys(("value", "low", "high", "relative", "relative_low", "relative_high", "duration_s"), "float64"),
    "compile": "bool",
    "lower_bound": "bool",
    "memory_limit": "Int64",
}


_WHOLE_NUMBERS = frozenset(
    {
        *("batch_size", "threads", "memory_limit_bytes", "training_batch_size", "latency_samples", "latency_processes"),
        *("params", "trainable_params", "params_without_gradient", "buffers", "activations"),
        *("test_images", "training_images", "training_steps"),
    }
)


def render_csv(runs: Sequence[Run]) -> str:
    """The text of report.csv: one line for each row and batch size, with everything that is known at that batch.

    Rows have the order of the Markdown tables. What does not depend on the batch (parameters, FLOPs, accuracy) stands
    on each line of its row, so that the lines of one batch size are a complete table. Every measured column ``x`` has
    ``x_status`` (empty: not asked for) and is empty where the status is not ``ok``; sampled ones have ``x_low``,
    ``x_high``, ``x_interval``, times and rates ``x_turns_used`` (``quiet``, ``slow``, ``all``) and ``x_note``
    (``busy: ...``). Lower bounds have ``x_lower_bound``: the operators that they leave out. Where a run has the
    machine's roof, ``latency_of_roof`` is the share of it that is reached, ``latency_bound_by`` what bounds the cell.
    Units are in the names (1 MB is 10^6 bytes). Counts are exact. No text is a formula to a spreadsheet.
    """
    import pandas as pd

    lines = lines_of(build_rows(runs))
    extra = _extra_columns(lines)
    content = [_report_line(line, extra) for line in lines]
    frame = pd.DataFrame(content) if content else pd.DataFrame(columns=["run", "device", "image_size", "model"])
    frame = frame.astype({name: "Int64" for name in frame if name in _WHOLE_NUMBERS})
    for name in frame.columns:
        if not pd.api.types.is_numeric_dtype(frame[name]):
            frame[name] = frame[name].map(lambda value: csv_text(value) if isinstance(value, str) else value)
    frame.columns = frame.columns.map(csv_text)
    return frame.to_csv(index=False, lineterminator="\n", float_format="%.15g")  # what a float holds for certain


def cell_fields(cell: Cell) -> dict[str, Any]:
    """The cell's fields as columns: the image size as text and as height and width in px, options as ``key=value``."""
    height, width = cell.image_size
    options = " ".join(f"{key}={value}" for key, value in cell.options)
    size = {"image_size": format_image_size(cell.image_size), "height": height, "width": width}
    return {**vars(cell), **size, "options": options}


def _tidy_lines(run: str, record: Record) -> list[dict[str, Any]]:
    of_cell = {
        **{name: getattr(record, name) for name in ("cause", "environment", "started_at", "duration_s")},
        **cell_fields(record.cell),
        "run": run,
        "cell": record.cell.id,
        "cell_status": record.status,
        "cell_detail": record.detail,
    }
    if not record.measurements:
        nothing = {
            **dict.fromkeys(("n_samples", "n_processes", "n_left_out"), 0),
            **dict.fromkeys(_SAMPLES, ()),
            "lower_bound": False,
            **dict.fromkeys(("interval_kind", "turns_used", "method"), ""),
        }
        return [{**of_cell, **nothing, "status": record.status, "detail": record.detail}]
    lines = []
    copied = ("metric", "unit", "lower_bound", "status", "detail", "method", *_SAMPLES)
    for one in record.measurements:
        found = MetricValue(record, one, one.status)
        result, relative = found.estimate_between_runs, found.relative_between_runs
        lines.append(
            {
                **of_cell,
                **{name: getattr(one, name) for name in copied},
                **{name: getattr(result, name, None) for name in ("value", "low", "high")},
                "interval_kind": result.kind if result else "",
                "relative": relative.value if relative else None,
                **{f"relative_{name}": getattr(relative, name, None) for name in ("low", "high")},
                "relative_interval_kind": relative.kind if relative else "",
                "turns_used": turns_used(found),
                "n_samples": result.n_samples if result else 0,
                "n_processes": result.n_processes if result else 0,
                "n_left_out": sum(map(len, one.samples)) - result.n_samples if result else 0,
            }
        )
    return lines


def _report_line(line: Row, extra: Sequence[Extra]) -> dict[str, Field]:
    facts = {name: value for metric in FACTS for name, value in _columns(metric, line.fact(metric)).items()}
    trained = {name: value for metric in TRAINING for name, value in _columns(metric, line.trained(metric)).items()}
    return _conditions(line) | facts | _at_batch(line) | trained | _extra(line, extra) | _of_roof(line)


def _calls(line: Row) -> tuple[Record | None, Record | None]:
    """The inference and the training step of a line."""
    return next(iter(line.infer), None), next(iter(line.train), None)


def _conditions(line: Row) -> dict[str, Field]:
    fields = cell_fields(line.cell)
    training = line.training.cell if line.training else None
    return {
        "run": line.run,
        **{name: fields[name] for name in ("device", "image_size", "height", "width", "model", "batch_size")},
        "batch_size": batch_of(line),
        **{name: fields[name] for name in ("dtype", "attention", "compile", "threads")},
        "memory_limit_bytes": fields["memory_limit"],
        "num_classes": fields["num_classes"],
        "weights": line.axes["weights"],
        "data": line.axes["data"] or None,
        "recipe": line.axes["recipe"] or None,
        "recipe_hash": training.recipe_hash if training else None,
        "training_image_size": format_image_size(training.image_size) if training else None,
        "training_device": training.device if training else None,
        "training_batch_size": training.batch_size if training else None,
        "seed": line.cell.seed,
        "options": " ".join(f"{key}={value}" for key, value in line.options.items()),
        "row_status": (line.whole or line).status,
    }


def _at_batch(line: Row) -> dict[str, Field]:
    infer, train = _calls(line)
    found: dict[str, Field] = {}
    for name, record in (("inference", infer), ("training_step", train)):
        texts = (record.status, record.cause, without_paths(record.detail)) if record else ("", "", "")
        found |= zip((f"{name}_cell_{what}" for what in ("status", "cause", "detail")), texts, strict=True)
    for metric in INFERENCE:
        found |= _columns(metric, value_of(infer, metric))
        if metric == "inference_peak_memory":
            found |= _process_peak("inference", infer)
        if metric == "latency":
            found |= _latency_extras(value_of(infer, metric))
    for metric in TRAINING_STEP:
        found |= _columns(metric, value_of(train, metric))
        if metric == "training_peak_memory":
            found |= _process_peak("training", train)
    return found


def _process_peak(where: str, record: Record | None) -> dict[str, Field]:
    name = f"{where}_{IN_BOTH}"
    return _column(f"{name}_mb", 1e-6, value_of(record, IN_BOTH), f"{name}_status")


def _latency_extras(found: MetricValue) -> dict[str, Field]:
    quantiles = {f"latency_p{100 * q:.0f}_ms": found.percentile(q) for q in (0.9, 0.99)}
    return {
        **{name: None if value is None else _rounded(1e3 * value) for name, value in quantiles.items()},
        "latency_samples": found.estimate.n_samples if found.estimate else None,
        "latency_processes": found.estimate.n_processes if found.estimate else None,
    }


def _extra_columns(rows: Sequence[Row]) -> list[Extra]:
    """What this module does not know: inference and the training step of one batch share a line, so that what both
    measured has a column for each.
    """
    known = {*COLUMNS, *BY_CLASS, IN_BOTH, "memory_limit"}  # the limit is a column of the cell's conditions
    units: dict[tuple[str, str], str] = {}
    for row in rows:
        for where, records in (("inference", row.infer), ("training", row.train), ("", (row.training,))):
            for one in (one for record in records if record for one in record.measurements):
                # published values are the model's, whatever was measured beside them
                of = "any" if one.metric.startswith(PUBLISHED) else where
                if one.metric not in known:
                    units[of, one.metric] = one.unit
    found = []
    for (where, metric), unit in sorted(units.items()):
        name = f"{where}_{metric}" if where in ("inference", "training") else metric
        spelled = f"_{re.sub(r'[^a-z]+', '_per_', unit.lower())}" if unit.isascii() and not unit.isdigit() else ""
        found.append(Extra(where, metric, name, name + spelled))
    return found


def _extra(line: Row, columns: Sequence[Extra]) -> dict[str, Field]:
    """The metrics of ``columns``, each from its own cell of the line; not the other's where that has none."""
    whole = (line.whole or line).records
    records = {"inference": line.infer, "training": line.train, "any": whole, "": (line.training,)}
    fields: dict[str, Field] = {}
    for one in columns:
        found = [record for record in records[one.where] if record and record.measurement(one.metric)]
        fields |= _column(one.column, 1, value_of(found[0] if found else None, one.metric), f"{one.name}_status")
    return fields


def _of_roof(line: Row) -> dict[str, Field]:
    """The shares of the machine's roof, where the run has one."""
    fields: dict[str, Field] = {}
    if line.roof is None:
        return fields
    for metric, record in zip(("latency", "training_step"), _calls(line), strict=True):
        found = line.roof.of(record.cell.id) if record else None
        for name, ending in (("share", ""), ("low", "_low"), ("high", "_high")):
            fields[f"{metric}_of_roof{ending}"] = _rounded(getattr(found, name, None))
        fields[f"{metric}_bound_by"] = found.bound if found else None
    return fields


def _columns(metric: str, found: MetricValue) -> dict[str, Field]:
    name, scale = COLUMNS[metric]
    line = _column(name, scale, found, f"{metric}_status")
    if found.measurement is not None and found.measurement.left_out:
        line[f"{metric}_lower_bound"] = f"without {found.measurement.left_out}"
    is_time = yields_of(metric).kind == "time"
    if is_time or metric in SAMPLED:
        line |= _interval(found.estimate_between_runs, scale, metric, name.removeprefix(metric))
    if is_time or metric in RATES:
        line |= {f"{metric}_turns_used": turns_used(found), f"{metric}_note": _note(found)}
    if is_time:
        relative = found.relative_between_runs
        line[f"relative_{metric}"] = _rounded(relative.value) if relative else None
        line |= _interval(relative, 1, f"relative_{metric}")
    return line


def _note(found: MetricValue) -> str:
    """What makes a time or rate doubtful."""
    others = busy_beside(found)
    busy = f"busy: other programs used {others.text(whose='its')}" if others else ""
    few = found.detail if has_few_samples(found) else ""
    return "; ".join(filter(None, [busy, few]))


def _column(name: str, scale: float, found: MetricValue, status_name: str) -> dict[str, Field]:
    value = None if found.value is None else found.value * scale
    counted = found.measurement is not None and found.measurement.unit in COUNTED
    return {name: value if counted else _rounded(value), status_name: found.status or ""}


def _interval(found: Estimate | None, scale: float, name: str, unit: str = "") -> dict[str, Field]:
    """The unit stays last: ``latency_low_ms``."""
    low, high = (found.low, found.high) if found else (None, None)
    return {
        f"{name}_low{unit}": None if low is None else _rounded(low * scale),
        f"{name}_high{unit}": None if high is None else _rounded(high * scale),
        f"{name}_interval": found.kind if found else "",
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{MEASURED_DIGITS}g}")
