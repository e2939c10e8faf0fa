"""The section of a report on the largest batch that fits, and what it leaves of searches for the other tables."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest

from tests.reports.fabricate import ENVIRONMENT, cell, full_run, infer, ok, size
from tests.reports.paired import section as section_of
from tests.reports.paired import tables
from vitbench.core.records import Cell, Measurement, Record
from vitbench.reports.markdown.page import render_markdown, search_section
from vitbench.reports.model.runs import Run
from vitbench.reports.model.searches import find_searches, without_bounds
from vitbench.reports.table import render_csv
from vitbench.reports.terminal import render_terminal
from vitbench.suites.batch_search import BOUND, PREDICTED, expected_attempts

CAP = "RLIMIT_DATA beyond the worker's size after imports"
LIMIT = 512 * 2**20


def attempt(
    of: Cell,
    status: str = "ok",
    cause: str = "",
    *,
    bound: int = 1024,
    predicted: int | None = None,
    cap: str = CAP,
    **changes: Any,
) -> Record:
    """An attempt whose peak is 100 MB and 7 MB an image."""
    peak = "training_peak_memory" if of.mode == "train" else "inference_peak_memory"
    found = [Measurement.single(BOUND, "image", bound, "doubling, then bisection")]
    if predicted is not None:
        found.append(Measurement.single(PREDICTED, "image", predicted, "made up"))
    if of.memory_limit is not None and cap:
        found.append(Measurement.single("memory_limit", "byte", of.memory_limit, cap))
    if status == "ok":
        found.append(Measurement.single(peak, "byte", 100e6 + 7e6 * of.batch_size, "bytes + rise of VmHWM"))
    else:
        found.append(Measurement.absent(peak, "byte", status, "too much"))  # type: ignore[arg-type]
    record = ok(of, [*size(of), *found])
    return dataclasses.replace(
        record, status=status, cause=cause, detail="" if status == "ok" else f"too much at {of.batch_size}", **changes
    )


def search(
    limit: int,
    bound: int = 1024,
    ending: tuple[str, str] = ("oom", "out_of_memory"),
    model: str = "vit_micro",
    predicted: int | None = None,
    **fields: Any,
) -> list[Record]:
    """All attempts of a search where ``limit`` images fit; ``ending`` is what becomes of larger ones."""
    fields = {"memory_limit": LIMIT, "image_size": (224, 224), **fields}
    records = []
    for batch in expected_attempts(limit, bound, predicted):
        status, cause = ("ok", "") if batch <= limit else ending
        records.append(attempt(cell(model, batch, **fields), status, cause, bound=bound, predicted=predicted))
        if status not in ("ok", "oom", "killed"):
            break
    return records


def section(*records: Sequence[Record], environment: Any = ENVIRONMENT) -> list[list[dict[str, str]]]:
    run = Run(name="first", records=[one for some in records for one in some], environment=environment)
    return [
        *tables("\n\n".join(search_section([run]))),
        *tables(section_of(render_markdown([run]), "What ended each search")),
    ]


def test_models_stand_against_sizes_for_each_device_call_and_dtype() -> None:
    records = [
        *search(12, model="vit_big"),
        *search(3, model="vit_big", image_size=(384, 384)),
        *search(2000, model="vit_nano"),
        *search(0, model="vit_big", mode="train"),
        *search(5, model="vit_nano", dtype="bf16"),
        *search(7, model="vit_nano", device="cuda", memory_limit=None),
    ]
    parts = search_section([Run(name="first", records=records)])
    assert [part for part in parts if part.startswith("#")] == [
        "## Largest batch that fits",
        "### cpu, inference, fp32",
        "### cpu, training step, fp32",
        "### cpu, inference, bf16",
        "### cuda, inference, fp32",
    ]
    fp32, step, bf16, cuda = tables("\n\n".join(parts))
    names = ["model", "memory limit", "224 px", "384 px"]
    assert list(fp32[0]) == names
    assert [tuple(line.values()) for line in fp32] == [
        ("vit_big", "536.9 MB", "12", "3"),
        ("vit_nano", "536.9 MB", ">=1024", "–"),
    ]
    assert [tuple(line.values()) for line in step] == [("vit_big", "536.9 MB", "OOM@1")]
    assert [tuple(line.values()) for line in bf16] == [("vit_nano", "536.9 MB", "5")]
    assert [tuple(line.values()) for line in cuda] == [("vit_nano", "none", "7")]


@pytest.mark.parametrize(
    ("records", "text"),
    [
        (search(12), "12"),
        (search(5000), ">=1024"),
        (search(100, bound=100), ">=100"),
        (search(0), "OOM@1"),
        (search(0, ending=("killed", "probable_oom")), "killed@1"),
        (search(12, ending=("killed", "probable_oom")), "12"),
        (search(8, ending=("timeout", "timeout")), "8 (timeout@16)"),
        (search(0, ending=("unsupported", "operator")), "unsupported@1"),
        (search(12)[:3], "4 or more (unfinished)"),
        (search(12)[:5], "8 to 15 (unfinished)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_ending_has_its_spelling(records: list[Record], text: str) -> None:
    (line,), _ = section(records)
    assert line == {"model": "vit_micro", "224 px": text}


def test_each_search_tells_its_peak_how_it_failed_and_the_cap() -> None:
    _, (line,) = section(search(12))
    assert line == {
        "model": "vit_micro",
        "image size (px)": "224",
        "device": "cpu",
        "call": "inference",
        "dtype": "fp32",
        "largest batch": "12",
        "peak memory at it (MB)": "184",
        "fails at": "13",
        "how it fails": "OOM, out_of_memory",
        "limit": f"{LIMIT} bytes: {CAP}",
        "attempts": "8",
    }


def test_a_search_that_began_at_a_prediction_tells_it_beside_its_attempts() -> None:
    _, (line, other) = section(search(12, predicted=11), search(12, model="vit_big"))
    assert list(line)[-2:] == ["attempts", "predicted"]
    assert (line["largest batch"], line["attempts"], line["predicted"]) == ("12", "4", "11")
    assert (other["largest batch"], other["attempts"], other["predicted"]) == ("12", "8", "–")
    _, (nothing,) = section(search(0, predicted=0))
    assert (nothing["largest batch"], nothing["attempts"], nothing["predicted"]) == ("0", "1", "0")


def test_a_kill_tells_its_signal_and_a_failure_its_cause_once() -> None:
    killed = search(12, ending=("killed", "probable_oom"))
    killed = [one if one.status == "ok" else dataclasses.replace(one, signal=9) for one in killed]
    _, (line,) = section(killed)
    assert line["how it fails"] == "killed, probable_oom (signal 9)"
    _, (line,) = section(search(8, ending=("timeout", "timeout")))
    assert (line["how it fails"], line["fails at"]) == ("timeout", "16")
    assert line["limit"] == "none: memory did not cause the failure"


@pytest.mark.parametrize(
    ("fields", "environment", "text"),
    [
        ({}, ENVIRONMENT, "the machine's free memory (safe share)"),
        ({}, {}, "the machine's free memory (safe share)"),
        ({}, {"environments": {"e1": {"system": {"os": "Darwin 24.0"}}}}, "the machine's free memory"),
        ({"device": "cuda:0"}, ENVIRONMENT, "the device's memory (25000000000 bytes)"),
        ({"device": "mps"}, {}, "the device's memory"),
    ],
)
def test_without_a_cap_the_limit_is_the_devices_memory(fields: dict[str, Any], environment: Any, text: str) -> None:
    _, (line,) = section(search(12, memory_limit=None, **fields), environment=environment)
    assert line["limit"] == text


def test_a_search_whose_bound_fits_was_stopped_by_it() -> None:
    _, (line,) = section(search(64, bound=64))
    assert (line["fails at"], line["how it fails"]) == ("–", "–")
    assert line["limit"] == "the search's own bound of 64"
    assert line["peak memory at it (MB)"] == "548"


def test_a_search_in_which_nothing_fits_has_no_peak() -> None:
    _, (line,) = section(search(0))
    assert (line["largest batch"], line["peak memory at it (MB)"], line["fails at"]) == ("0", "–", "1")


def test_a_limit_that_nothing_measured_is_still_told() -> None:
    records = [attempt(cell(memory_limit=LIMIT), "killed", "probable_oom", cap="")]
    _, (line,) = section(records)
    assert line["limit"] == f"{LIMIT} bytes"


def test_searches_that_differ_otherwise_have_a_column_for_it() -> None:
    table, _ = section(search(12), search(9, threads=4))
    assert [(line["threads"], line["224 px"]) for line in table] == [("2", "12"), ("4", "9")]


def test_models_with_classes_of_their_own_need_no_column_for_them() -> None:
    table, _ = section(search(12), search(9, model="vit_nano", num_classes=1000))
    assert list(table[0]) == ["model", "224 px"]
    table, _ = section(search(12), search(9, num_classes=1000))
    assert [(line["classes"], line["224 px"]) for line in table] == [("10", "12"), ("1000", "9")]


def test_searches_of_two_runs_stay_two_lines() -> None:
    runs = [Run(name="laptop", records=search(12)), Run(name="server", records=search(40))]
    (table,) = tables("\n\n".join(search_section(runs)))
    limits = tables(section_of(render_markdown(runs), "What ended each search"))[0]
    assert [(line["run"], line["224 px"]) for line in table] == [("laptop", "12"), ("server", "40")]
    assert [line["run"] for line in limits] == ["laptop", "server"]


def test_names_and_causes_cannot_break_the_table() -> None:
    records = search(1, model="module:evil|name", ending=("oom", "a|b\nc"))
    (line,), (limit,) = section(records)
    assert line["model"] == "module:evil|name"
    assert limit["how it fails"] == "OOM, a|b c"


def test_cells_that_are_no_attempts_are_no_searches() -> None:
    run = full_run()
    assert find_searches([run]) == []
    assert search_section([run]) == []
    assert [list(one.records) for one in without_bounds([run])] == [run.records]


def test_other_tables_show_what_fits_and_the_smallest_batch_if_nothing_does() -> None:
    records = [*search(12), *search(0, mode="train"), *search(8, ending=("timeout", "timeout"), model="vit_big")]
    (left,) = without_bounds([Run(name="first", records=records)])
    kept = [(one.cell.model, one.cell.mode, one.cell.batch_size, one.status) for one in left.records]
    assert kept == [
        *[("vit_micro", "infer", batch, "ok") for batch in (1, 2, 4, 8, 12)],
        ("vit_micro", "train", 1, "oom"),
        *[("vit_big", "infer", batch, "ok") for batch in (1, 2, 4, 8)],
        ("vit_big", "infer", 16, "timeout"),
    ]


def test_the_page_begins_with_the_frontier_and_counts_every_attempt() -> None:
    records = [*search(12), *search(8, ending=("timeout", "timeout"), model="vit_big")]
    page = render_markdown([Run(name="first", records=records, environment=ENVIRONMENT)])
    headings = [line for line in page.splitlines() if line.startswith("## ")]
    assert headings == ["## Largest batch that fits"]
    assert "13 cells (9 ok, 3 OOM, 1 timeout)" in page
    rest = tables(section_of(page, "All columns, and the batches of searches"))[1]
    assert {line["model"]: line["status"] for line in rest} == {"vit_micro": "ok", "vit_big": "timeout at batch 16"}
    failures = section_of(page, "Failures, each with its cause")
    assert "too much at 16" in failures  # the timeout
    assert "too much at 13" not in failures
    assert f"`memory_limit`: {CAP}" in page


def test_the_csv_has_a_line_for_every_attempt() -> None:
    text = render_csv([Run(name="first", records=[*search(12), *search(2, mode="train")])])
    lines = list(csv.DictReader(text.splitlines()))
    assert [line["batch_size"] for line in lines] == ["1", "2", "3", "4", "8", "12", "13", "14", "16"]
    found = {line["batch_size"]: line for line in lines}
    assert {batch: found[batch]["inference_peak_memory_status"] for batch in ("12", "13")} == {"12": "ok", "13": "oom"}
    assert found["12"]["inference_peak_memory_mb"] == "184"
    assert found["3"]["training_step_cell_status"] == "oom"
    assert {line["memory_limit_bytes"] for line in lines} == {str(LIMIT)}
    for call, attempt in (("inference", "inference_cell_status"), ("training", "training_step_cell_status")):
        bounds = {(bool(line[attempt]), line[f"{call}_frontier_bound_image"]) for line in lines}
        assert bounds == {(True, "1024"), (False, "")}
    assert not [name for name in lines[0] if name.startswith("memory_limit") and name != "memory_limit_bytes"]


def test_a_terminal_shows_the_frontier_and_the_cells_beside_it() -> None:
    searches = Run(name="searches", records=search(12))
    assert "Largest batch that fits: cpu, inference, fp32" in render_terminal([searches], 100)
    both = render_terminal([searches, Run(name="cells", records=[infer(cell("vit_nano"))])], 100)
    assert both.index("Largest batch that fits") < both.index("cpu, 32 px")
    assert "No cell" not in both
