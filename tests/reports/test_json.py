"""``vitbench report --format json``: strict, in base units, with methods and statuses."""

from __future__ import annotations

import json
import shlex
from typing import Any

import pytest

from tests.reports.fabricate import cell, failed, full_run, infer, ok, size, trained, training_cell
from vitbench.core.records import Measurement, Record
from vitbench.reports.json import render_json
from vitbench.reports.model.runs import Run


def refuse(constant: str) -> None:
    pytest.fail(f"{constant} is no JSON")


def content(*runs: Run) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(render_json(runs), parse_constant=refuse)
    return found


def lines(*records: Record) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = content(Run(name="run", records=records))["lines"]
    return found


def test_values_are_in_base_units_with_method_and_status() -> None:
    found = content(full_run(processes=3))
    units = {one["id"]: (one["unit"], one["kind"]) for one in found["columns"]}
    assert units["latency"] == ("s", "main")
    assert units["memory"] == ("byte", "main")
    assert units["test_loss"] == ("nat", "detail")
    assert units["batch"] == ("", "condition")
    assert units["image_size"] == ("px", "condition")
    assert "status" not in units
    first = found["lines"][0]
    assert json.dumps(first["values"]["params"]["value"]) == "412106"
    latency = first["values"]["latency"]
    assert 0.001 < latency["low"] < latency["value"] < latency["high"] < 0.01
    assert latency["status"] == "ok"
    assert latency["method"].startswith("time.perf_counter")
    assert (first["conditions"]["batch"], first["conditions"]["image_size"], first["status"]) == (1, 32, "ok")
    assert shlex.split(first["repeat"])[:4] == ["vitbench", "run", "--suite", "first/suite.toml"]


def test_a_failure_has_its_status_and_reason_in_the_place_of_a_value() -> None:
    _, second = lines(infer(cell(batch=1)), failed(cell(batch=32), "oom", "out_of_memory", "no memory"))
    assert second["values"]["latency"] == {
        **dict.fromkeys(("value", "low", "high")),
        "status": "oom",
        "reason": "no memory",
        "marks": [],
        "method": "",
    }
    assert second["status"] == "OOM at batch 32"


def test_what_nobody_asked_for_is_left_out_and_conditions_that_do_not_apply_are_null() -> None:
    timed, alone = lines(infer(cell()), trained(training_cell("vit_nano"), 90))
    assert "accuracy" not in timed["values"]
    assert "latency" not in alone["values"]
    assert (timed["conditions"]["recipe"], alone["conditions"]["batch"]) == (None, None)


def test_what_is_not_finite_is_null() -> None:
    latency = Measurement(metric="latency", unit="s", samples=((1.7e308, 1.7e308),), method="clock")
    (line,) = lines(ok(cell(), [*size(cell()), latency]))
    assert line["values"]["latency"]["value"] in (None, 1.7e308)


def test_hostile_names_survive() -> None:
    names = ["</script>", "__proto__", "a\u202eb", "\udc80", "=1+1"]
    found = lines(*(infer(cell(name, options=((name, "1"),))) for name in names))
    assert sorted(one["conditions"]["model"] for one in found) == sorted(names)


def test_several_runs_and_none() -> None:
    assert {one["conditions"]["run"] for one in content(full_run("a"), full_run("b"))["lines"]} == {"a", "b"}
    assert content(Run(name="empty", records=[]))["lines"] == []
