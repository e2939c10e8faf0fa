"""The page that a person reads, as golden files, and the facts that a glance at a golden file might miss."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.reports.fabricate import (
    ENVIRONMENT,
    MODELS,
    cell,
    counters,
    failed,
    full_run,
    infer,
    ok,
    size,
    train_step,
    trained,
    training_cell,
    wobble,
)
from tests.reports.paired import section, tables
from vitbench.core.records import STATUSES, Measurement
from vitbench.reports.markdown.page import render_markdown
from vitbench.reports.markdown.tables import paragraph_text
from vitbench.reports.model.failures import merge_numbers
from vitbench.reports.model.runs import Run, read_runs
from vitbench.reports.table import render_csv
from vitbench.suites.batch_search import shown_status

FAILURES = "Failures, each with its cause"

Golden = Callable[[str, str], None]


def failing_run() -> Run:
    """Each status once in the latency column, and failures of training, of one measurement, of larger batches."""
    names = list(MODELS)
    printed = 'Traceback (most recent call last):\n  File "/home/somebody/model.py", line 1\nKeyError: "a|b"'
    explicit = cell(names[3], 1, image_size=(48, 48), attention="explicit")
    partly = infer(cell(names[3], 8, image_size=(48, 48)))
    measurements = tuple(
        Measurement.absent("inference_peak_memory", "byte", "timeout", "no answer within 10 s")
        if one.metric == "inference_peak_memory"
        else one
        for one in partly.measurements
    )
    records = [
        infer(cell(names[0])),
        failed(
            cell(names[0], 32),
            "oom",
            "out_of_memory",
            "RuntimeError: can't allocate memory: you tried to allocate 5 bytes",
        ),
        train_step(cell(names[0], 8, mode="train")),
        failed(cell(names[0], 32, mode="train"), "oom", "out_of_memory", "out of memory"),
        failed(training_cell(names[0]), "timeout", "timeout", "no answer within 600 s"),
        failed(cell(names[1]), "killed", "probable_oom", "ended by SIGKILL", signal=9),
        failed(cell(names[1], 32), "killed", "probable_oom", "ended by SIGKILL", signal=9),
        failed(cell(names[2]), "timeout", "timeout", "no answer within 10 s"),
        failed(cell(names[3]), "error", "exception", 'KeyError: "a|b" in /home/somebody/model.py', stderr_tail=printed),
        failed(
            cell(names[0], 1, image_size=(48, 48)),
            "unsupported",
            "operator",
            "operator 'aten::x' is not implemented",
        ),
        failed(cell(names[1], image_size=(48, 48)), "oom", "oom_single_buffer", "Invalid buffer size: 19.45 GB"),
        dataclasses.replace(
            failed(cell(names[2], 1, image_size=(48, 48)), "killed", "crash", signal=11), measurements=()
        ),
        dataclasses.replace(partly, measurements=measurements),
        ok(explicit, [*size(explicit), *counters(None, 2.9e9)]),
    ]
    return Run(name="failing", records=records)


def varying_run() -> Run:
    """Several devices, sizes and conditions."""
    records = [
        infer(cell("vit_micro", batch, device=device, image_size=image_size, dtype=dtype), speed=speed, processes=5)
        for device, speed in (("cpu", 1.0), ("cuda:0", 30.0))
        for image_size in ((32, 32), (231, 240))
        for dtype in (("fp32",) if device == "cpu" else ("fp32", "bf16"))
        for batch in (1, 16)
    ]
    changes = [
        {"attention": "explicit"},
        {"compile": True},
        {"threads": 1},
        {"memory_limit": 256 * 2**20},
        {"num_classes": 100},
        {"seed": 7},
        {"weights": "sha256:1234"},
        {"options": (("keep_rate", "0.7"),)},
    ]
    records += [infer(cell("vit_micro", 1, **change)) for change in changes]
    records += [
        trained(training_cell("vit_micro"), 280),
        trained(training_cell("vit_micro", dtype="bf16", device="cuda:0"), 281),
    ]
    return Run(name="varying", records=records, environment=ENVIRONMENT)


def test_a_run_without_failures(golden: Golden) -> None:
    golden("all_ok.md", render_markdown([full_run()]))
    golden("all_ok.csv", render_csv([full_run()]))


def test_each_failure_in_its_place(golden: Golden) -> None:
    golden("failures.md", render_markdown([failing_run()]))
    golden("failures.csv", render_csv([failing_run()]))


def test_two_runs_merged(golden: Golden) -> None:
    golden("two_runs.md", render_markdown([full_run(), full_run("second", speed=1.4, processes=5)]))


def test_axes_that_vary(golden: Golden) -> None:
    golden("varying.md", render_markdown([varying_run()]))
    golden("varying.csv", render_csv([varying_run()]))


def test_batches_other_than_one_and_no_accuracy(golden: Golden) -> None:
    records = [infer(cell("vit_nano", 8)), infer(cell("vit_nano", 64)), infer(cell("vit_micro", 16), n=5)]
    golden("no_batch_1.md", render_markdown([Run(name="throughput only", records=records)]))


def test_a_run_without_records(golden: Golden) -> None:
    golden("empty.md", render_markdown([Run(name="empty", records=[])]))


@pytest.mark.parametrize("status", [status for status in STATUSES if status != "ok"])
def test_a_status_stands_where_the_number_would_be(status: str) -> None:
    record = failed(cell(), status, "a cause", "a detail", stderr_tail="printed last")
    page = render_markdown([Run(name="r", records=[record])])
    shown = shown_status(status)
    headings, _, line = [cells(text) for text in page.splitlines() if text.startswith("|")][:3]
    row = dict(zip(headings, line, strict=True))
    for heading in ("latency b1 (ms)", "peak memory b1 (MB)", "best throughput (image/s)"):
        assert row[heading] == shown
    assert row["params (M)"] == "1.213"
    assert f"- **{shown} at batch 1**: vit_micro\n" in page
    failures = section(page, FAILURES)
    assert all(text in failures for text in (shown, "a cause", "a detail", "printed last"))


def test_a_training_of_another_size_than_its_row_failed_at_its_own() -> None:
    training = failed(training_cell("vit_micro", image_size=(16, 16)), "timeout", "timeout", "no answer within 600 s")
    runs = [Run(name="r", records=[infer(cell()), failed(cell(batch=8), "oom", "out_of_memory"), training])]
    failures = tables(section(render_markdown(runs), FAILURES))[0]
    assert {line["cell"]: line["image size (px)"] for line in failures} == {"inference b8": "32", "training b64": "16"}


def test_no_private_name_reaches_the_page() -> None:
    runs = [failing_run(), full_run()]
    for text in (render_markdown(runs), render_csv(runs)):
        assert "somebody" not in text
        assert "/home" not in text


def test_the_page_is_the_same_for_the_same_records() -> None:
    assert render_markdown([varying_run()]) == render_markdown([varying_run()])


def test_every_line_of_a_table_has_as_many_cells_as_its_heading() -> None:
    widths: set[int] = set()
    for text in [*render_markdown([failing_run(), varying_run()]).splitlines(), ""]:
        if text.startswith("|"):
            widths.add(len(cells(text)))
        else:
            assert len(widths) <= 1, text
            widths = set()


def test_sorted_by_latency() -> None:
    page = render_markdown([full_run()])
    table = page.split("## cpu, 32 px")[1].split("##")[0]
    assert [line for model in MODELS for line in table.splitlines() if f"| {model} " in line] == [
        line for line in table.splitlines() if line.startswith("| vit_")
    ]


def test_unknown_metrics_are_kept_out_of_the_page_but_in_the_csv() -> None:
    new = Measurement(metric="energy", unit="J", samples=wobble(0.2), method="RAPL")
    runs = [Run(name="r", records=[infer(cell(), extra=[new])])]
    assert "inference_energy_j" in render_csv(runs).splitlines()[0]
    assert "`energy`: RAPL" in render_markdown(runs)


def joules(energy: float, power: float, idle: float) -> list[Measurement]:
    figures = (("energy_per_image", "J/image", energy), ("power", "W", power), ("idle_power", "W", idle))
    return [Measurement.single(name, unit, value, "RAPL") for name, unit, value in figures]


def test_joules_an_image_stand_in_the_main_table_and_power_among_the_details() -> None:
    step = train_step(cell(batch=32, mode="train"))
    step = dataclasses.replace(step, measurements=(*step.measurements, *joules(0.75, 120, 41)))
    run = Run(name="r", records=[infer(cell(), extra=joules(0.25, 90, 40)), step])
    page = render_markdown([run])
    rest, details = (tables(section(page, title))[0] for title in ("More columns of the tables above", "Details"))
    assert rest[0]["energy b1 (J/image)"] == "0.250"
    assert rest[0]["training energy b32 (J/image)"] == "0.750"
    assert (details[0]["power b1 (W)"], details[0]["power at rest before b1 (W)"]) == ("90.0", "40.0")
    assert details[0]["training power b32 (W)"] == "120"
    assert details[0]["power at rest before training b32 (W)"] == "41.0"


def test_a_device_that_counts_no_energy_says_so() -> None:
    none = Measurement.absent("energy_per_image", "J/image", "unsupported", "no counter")
    page = render_markdown([Run(name="r", records=[infer(cell(), extra=[none])])])
    (line,) = tables(section(page, "More columns of the tables above"))[0]
    assert line["energy b1 (J/image)"] == "unsupported"


def test_methods_that_differ_in_numbers_become_one() -> None:
    assert merge_numbers(["1 images, torch 2.15", "32 images, torch 2.15", "else"]) == [
        "1/32 images, torch 2.15",
        "else",
    ]


def cells(line: str) -> list[str]:
    """The cells of a line of a Markdown table; an escaped pipe separates nothing."""
    return [text.strip() for text in line.replace("\\|", "\0").strip("|").split("|")]


def test_a_run_that_is_not_whole_says_how_much_of_it_is_there() -> None:
    def extent(*planned: int | None) -> str:
        sessions = [{} if count is None else {"planned_cells": count} for count in planned]
        run = Run(name="cut", records=[infer(cell("vit_nano")), infer(cell("vit_nano", 8))])
        page = render_markdown([dataclasses.replace(run, environment={**ENVIRONMENT, "sessions": sessions})])
        return page.split("**cut**: ")[1].split(",")[0]

    assert extent(8) == "2 of 8 cells (2 ok)"
    assert extent(8, 3) == extent(8, 3, None) == "2 of 3 cells (2 ok)"  # the last session that knows
    assert extent(2) == extent(None) == extent() == "2 cells (2 ok)"


RESULTS = Path(__file__).parents[2] / "results" / "amd-epyc-2-cores"


@pytest.mark.integration
@pytest.mark.parametrize("name", ["lightweight-digits", "lightweight-cifar10", "frontier-vit_base16-2GiB"])
def test_a_default_runs_page_is_short_before_the_folds(name: str) -> None:
    page = render_markdown(read_runs([RESULTS / name]))
    shown, folded, _ = page.partition("<details>")
    assert folded
    assert len(shown.splitlines()) <= 120
    assert all(len(table[0]) <= 9 for table in tables(shown))
    assert page.count("\n<details>\n") == page.count("\n</details>\n")


def test_values_by_class_are_folded_inside_the_training() -> None:
    run = Run(name="r", records=[trained(training_cell("vit_micro"), 180, f1=(0.5, 0.6))])
    outer = section(render_markdown([run]), "Trainings in detail")
    assert tables(section(outer, "Recall by class"))[0][0]["model"] == "vit_micro"
    assert "Recall by class" in outer


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("`a_b` <b> | $x$", "`a_b` &lt;b&gt; \\| \\$x\\$"),
        ("one ` only <b>", "one \\` only &lt;b&gt;"),
        ("`<b>` in /home/somebody/run", "`<b>` in …/run"),
    ],
)
def test_paragraphs_are_escaped_but_for_code(text: str, shown: str) -> None:
    assert paragraph_text(text) == shown
