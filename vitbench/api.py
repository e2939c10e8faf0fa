"""Measure one model in one line of Python: ``vitbench.measure("vit_basic")``, or a module of your own."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from vitbench.core.errors import Unsupported, UsageError
from vitbench.core.records import Cell, Measurement, Record, channel_options, parse_image_size
from vitbench.core.registry import METRICS
from vitbench.devices.host.environment import capture_environment, default_threads, describe_libraries, hash_environment

if TYPE_CHECKING:
    import torch

    from vitbench.core.registry import Metric
    from vitbench.devices import Failure
    from vitbench.executors.conversation import Outcome
    from vitbench.metrics import Subject
    from vitbench.suites import Suite


def measure(
    model: str | torch.nn.Module,
    *,
    image_size: int | str | tuple[int, int] | None = None,
    num_classes: int | None = None,
    in_channels: int = 3,
    batch_size: int = 1,
    device: str = "cpu",
    dtype: str | None = None,
    mode: str = "infer",
    attention: str = "fused",
    compile: bool = False,
    threads: int | None = None,
    memory_limit: int | str | None = None,
    metrics: Sequence[str] | None = None,
    seed: int = 0,
    processes: int = 5,
    precision: float = 0.0,
    seconds: float = 1.0,
    min_samples: int = 10,
    timeout_s: float = 300.0,
) -> Record:
    """Measure one cell and return its Record; the arguments are a cell's fields and a suite's budget.

    ``num_classes`` 0 is a model without a head; images have ``in_channels``, which models of timm are built for.

    A model's name is measured as in a suite, in fresh processes: ``processes`` for its times, each ``seconds`` long,
    and from five on as many more as a ``precision`` such as 0.05 takes (0: no more). A module of your own is measured
    on a copy in the calling process, and each method says so. It needs ``image_size``; ``num_classes`` is read from its
    output, and ``dtype`` is that of its weights unless you give another. ``processes``, ``precision`` and ``timeout_s``
    have no effect. Times of one process vary less than those of several, and its CPU memory is that of an ordinary
    allocator.

    Raises UsageError for wrong arguments. If the model fails, the record's status says so; if a value cannot be
    counted, the status of that measurement does.
    """
    size = None if image_size is None else _pair(image_size)
    content: dict[str, Any] = {
        "name": "measure",
        "batch_sizes": [batch_size],
        "devices": [device],
        "dtypes": ["fp32" if dtype is None else dtype],
        "modes": [mode],
        "attention": [attention],
        "compile": [compile],
        "threads": ["auto" if threads is None else threads],
        "seeds": [seed],
        "in_channels": in_channels,
        "timeout_s": timeout_s,
        "metrics": _choose_metrics(metrics),
        "image_sizes": ["native" if size is None else size],
        "measure": {"processes": processes, "precision": precision, "seconds": seconds, "min_samples": min_samples},
    }
    content["measure"]["max_samples"] = max(1000, min_samples)
    content |= {} if memory_limit is None else {"memory_limit": memory_limit}
    content |= {} if num_classes is None else {"num_classes": num_classes}
    if isinstance(model, str):
        return _measure_name(model, content)
    if size is None:
        raise UsageError("A module of your own does not state its image size. Give image_size=, in pixels")
    return _measure_module(model, size, content, as_it_is=dtype is None)


def _choose_metrics(asked: Sequence[str] | None) -> list[str]:
    """The given names, or the default ones that do not train. Raises UsageError for a name that trains a model."""
    from vitbench.suites import default_metrics

    if asked is None:
        return [name for name in default_metrics() if METRICS.get(name).process != "training"]
    names = [asked] if isinstance(asked, str) else list(asked)
    if not names:
        raise UsageError(f"metrics={asked!r} is empty. Give names (vitbench list metrics), or leave it out")
    training = next((name for name in names if METRICS.get(name).process == "training"), None)
    if training is not None:
        raise UsageError(
            f"metrics: {training!r} trains a model, which measure() does not. Use run_suite() with data, or train()"
        )
    return names


def _measure_name(name: str, content: dict[str, Any]) -> Record:
    from vitbench.executors.launcher import make_launcher
    from vitbench.runner.measure import CellMeasurer
    from vitbench.runner.plan import check_before_loading, make_plan
    from vitbench.runner.progress import Progress
    from vitbench.runner.run import modules_of
    from vitbench.suites import make_suite

    suite = check_before_loading(make_suite({**content, "models": [name]}, "measure()", content))
    with make_launcher(modules_of(suite)) as launcher:
        plan = make_plan(suite, launcher, lambda text: None)
        if len(plan.cells) != 1:
            raise UsageError(f"measure() takes one model on one device, not {len(plan.cells)} cells. Use run_suite()")
        with CellMeasurer(plan, launcher, None, Progress()) as measurer:
            (record,) = measurer.measure(plan.cells)
            return record


def _measure_module(
    model: torch.nn.Module, size: tuple[int, int], content: dict[str, Any], *, as_it_is: bool
) -> Record:
    """``as_it_is``: in the dtype that the module has."""
    from vitbench.metrics import Budget
    from vitbench.metrics.support.in_process import caller_state_kept, subject_of
    from vitbench.runner.outcomes import metrics_by_process
    from vitbench.suites import make_suite

    suite = make_suite({**content, "models": ["*"]}, "measure()", content)  # checks every value but the model
    if suite.memory_limit is not None:
        raise UsageError(
            "A memory limit would stay on the calling process. Give the name of a model to measure under one"
        )
    cell = _module_cell(model, size, suite, as_it_is)
    groups = metrics_by_process(cell, suite.metrics)
    if not groups:
        asked = ", ".join(suite.metrics)
        raise UsageError(f"metrics: nothing of {asked} applies to mode={cell.mode!r}. Give the other mode")
    budget = Budget(**suite.measure.model_dump(include={"seconds", "min_samples", "max_samples"}))
    subject = subject_of(cell, lambda: copy.deepcopy(model), budget)
    environment = capture_environment(describe_libraries(), {cell.device: subject.device.describe()})
    started_at, begin = datetime.now().astimezone().isoformat(timespec="milliseconds"), time.perf_counter()
    with caller_state_kept(cell), contextlib.closing(subject):
        measurements, failure = _take(subject, groups)
    return Record(
        cell=cell,
        status=failure.status if failure else "ok",
        cause=failure.cause if failure else "",
        detail=failure.detail if failure else "",
        measurements=tuple(measurements),
        environment=hash_environment(environment),
        started_at=started_at,
        duration_s=round(time.perf_counter() - begin, 3),
    )


def _module_cell(model: torch.nn.Module, size: tuple[int, int], suite: Suite, as_it_is: bool) -> Cell:
    from vitbench.devices import find_device
    from vitbench.metrics.support.subject import dtype_of

    classes, channels = suite.num_classes, suite.in_channels
    count = suite.threads[0]
    return Cell(
        model=f"{type(model).__module__}.{type(model).__qualname__}",
        image_size=size,
        num_classes=_count_classes(model, size, channels) if classes is None else classes,
        options=channel_options(channels),
        batch_size=suite.batch_sizes[0],
        device=find_device(suite.devices[0]).name,
        threads=default_threads() if count == "auto" else count,
        dtype=dtype_of(model) if as_it_is else suite.dtypes[0],
        mode=suite.modes[0],
        attention=suite.attention[0],
        compile=suite.compile[0],
        seed=suite.seeds[0],
        weights="given",
    )


def _take(subject: Subject, groups: Mapping[str, Sequence[Metric]]) -> tuple[list[Measurement], Failure | None]:
    """The measurements of ``groups`` (kind of process to metrics), in a suite's order, and the failure of the cell.

    As in a suite: a value that cannot be counted is absent and does not affect the others. After a metric that runs the
    model has failed, the rest are not tried, and their measurements say so.
    """
    from vitbench.runner.outcomes import ESSENTIAL, complete, not_tried

    found: list[Measurement] = []
    failure: Failure | None = None
    runs = [process for process in ESSENTIAL if process in groups]
    for process in ("static", "prediction", "counters"):
        for metric in groups.get(process, ()):
            outcome = _run(metric, subject)
            found += complete(subject.cell, [metric], outcome)
            if process == "static" and not runs:
                failure = failure or outcome.failure
    for process in runs:
        for metric in groups[process]:
            outcome = not_tried(failure, "what came before it") if failure else _run(metric, subject)
            found += complete(subject.cell, [metric], outcome)
            failure = failure or outcome.failure
    return found, failure


def _run(metric: Metric, subject: Subject) -> Outcome:
    """The outcome of one metric in this process."""
    from vitbench.executors.conversation import Outcome
    from vitbench.metrics.support.in_process import failure_of, run_metric

    outcome = Outcome()
    try:
        for measurement in run_metric(metric.name, subject):
            method = "; ".join(filter(None, (measurement.method, "in the calling process")))
            outcome.measurements.append(replace(measurement, method=method))
    except Exception as error:  # the edge, as in a worker: a failure of the model is a status
        outcome.failure = failure_of(error, subject.cell)
    return outcome


def _count_classes(model: torch.nn.Module, size: tuple[int, int], channels: int) -> int:
    """The length of the model's logits for one image; 0 if it returns none."""
    from vitbench.models.inputs import output_for_one_image
    from vitbench.models.outputs import heads_of

    try:
        return int(heads_of(output_for_one_image(model, size, channels))[0].shape[-1])
    except Unsupported:  # a backbone, or a model that fails for a reason which its measurement states
        return 0


def _pair(size: int | str | tuple[int, int]) -> tuple[int, int]:
    try:
        return parse_image_size("x".join(str(side) for side in size) if isinstance(size, tuple) else size)
    except ValueError as error:
        raise UsageError(str(error)) from error
