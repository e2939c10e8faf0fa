"""What a gate does with each value by default, and how [[thresholds]] and options change it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.reports.fabricate import cell
from vitbench.core.errors import SuiteError, UsageError
from vitbench.core.registry import METRICS
from vitbench.devices.host.load import GPU_SLOWED, OTHER_LOAD, LoadWatch, load_measurements
from vitbench.suites import Threshold, load_suite, make_suite, make_thresholds, to_toml
from vitbench.suites.thresholds import known_metrics, parse_option, parse_tolerance, threshold_for, yields_of

SUITE: dict[str, Any] = {"name": "mine", "models": ["vit_layer6_32", "cifar_vit_tiny"]}


def rules(*tables: dict[str, Any]) -> tuple[Threshold, ...]:
    return make_thresholds(list(tables), "mine.toml")


def test_every_value_of_ours_declares_its_kind_and_direction() -> None:
    for name, value in METRICS.values.items():
        assert value.kind != "unknown", name
        assert value.better is not None or value.kind == "condition", name


def test_the_load_of_the_machine_is_never_compared() -> None:
    measured = [one.metric for one in load_measurements([LoadWatch().stop()])]
    for name in (*measured, OTHER_LOAD, GPU_SLOWED):
        assert yields_of(name).kind == "condition"


def test_counts_gate_exactly_and_absolute_times_never_by_default() -> None:
    for name in ("params", "flops", "macs", "tensor_peak_activations", "status"):
        assert yields_of(name).gates
        assert yields_of(name).tolerance == 0
    for name in ("throughput", "energy_per_image", "accuracy", "relative_latency_cpu_time"):
        assert not yields_of(name).gates
    for name in ("latency", "training_step"):
        assert yields_of(name).kind == "time"  # which gates relative to the reference
    assert yields_of("relative_latency").gates


def test_a_metric_of_another_package_is_unknown_and_does_not_gate() -> None:
    assert yields_of("their_metric").kind == "unknown"
    assert not yields_of("their_metric").gates


@pytest.mark.parametrize(
    ("given", "fraction"),
    [("5%", 0.05), ("0.05", 0.05), (0.05, 0.05), (0, 0.0), ("0%", 0.0), (" 7.5% ", 0.075), ("150%", 1.5)],
)
def test_tolerances_are_read(given: Any, fraction: float) -> None:
    assert parse_tolerance(given) == pytest.approx(fraction)


@pytest.mark.parametrize(
    "given", ["five", "", "%", -0.1, "-5%", "nan", "inf", "1e400", True, None, [5], "5 % %", "9999%"]
)
def test_what_is_no_tolerance_is_refused(given: Any) -> None:
    with pytest.raises(ValueError, match="tolerance"):
        parse_tolerance(given)


def test_a_bare_five_is_refused_with_both_meanings() -> None:
    with pytest.raises(ValueError, match="'5%', or '500%'"):
        parse_tolerance(5)


def test_the_last_rule_that_covers_a_figure_counts_alone() -> None:
    given = rules(
        {"metric": "relative_*", "tolerance": "40%"},
        {"metric": "relative_latency", "cells": "vit_*", "tolerance": "30%"},
        {"metric": "relative_latency", "cells": "vit_big", "gate": False},
    )
    micro, big, other = cell("vit_micro"), cell("vit_big"), cell("cifar_x")
    assert threshold_for(given, micro, "relative_latency").tolerance == pytest.approx(0.3)
    assert threshold_for(given, other, "relative_latency").tolerance == pytest.approx(0.4)
    last = threshold_for(given, big, "relative_latency")
    assert (last.gate, last.tolerance) == (False, None)
    silent = threshold_for(given, big, "params")
    assert (silent.gate, silent.tolerance) == (None, None)


def test_a_rule_can_be_about_some_conditions_only() -> None:
    given = rules({"metric": "*", "batch_sizes": [32], "modes": "train", "image_sizes": ["32x48"], "gate": False})
    met = cell("vit_micro", 32, mode="train", image_size=(32, 48))
    assert threshold_for(given, met, "params").gate is False
    for other in (
        cell("vit_micro", 1, mode="train", image_size=(32, 48)),
        cell("vit_micro", 32, image_size=(32, 48)),
        cell("vit_micro", 32, mode="train"),
    ):
        assert threshold_for(given, other, "params").gate is None


def test_a_suite_keeps_its_thresholds_when_it_is_written(tmp_path: Path) -> None:
    tables = [
        {"metric": "relative_latency", "cells": ["vit_*", "cifar_*"], "tolerance": "30%", "image_sizes": [32, "32x48"]},
        {"metric": "params", "gate": False},
    ]
    suite = make_suite({**SUITE, "thresholds": tables, "exclude": [{"image_sizes": [64]}]}, "mine.toml")
    path = tmp_path / "suite.toml"
    path.write_text(to_toml(suite), encoding="utf-8")
    again = load_suite(str(path))
    assert again == suite
    assert again.thresholds[0].tolerance == pytest.approx(0.3)
    assert again.exclude[0].image_sizes == ((64, 64),)


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ({"metric": "relative_latncy"}, "Did you mean 'relative_latency'?"),
        ({"metric": "nothing like it"}, "Known: accuracy"),
        ({"metric": "memory_limit"}, "there is no metric 'memory_limit' to compare"),
        (
            {"metric": "params", "cells": "vit_foo*"},
            "no model is called 'vit_foo*' here: vit_layer6_32, cifar_vit_tiny",
        ),
        ({"metric": "params", "tolerance": 5}, "'5%', or '500%'"),
        ({"metric": "params", "tolerance": "much"}, "is not a valid tolerance"),
        ({"metric": "params", "tolerence": 0.1}, "Did you mean 'tolerance'?"),
        ({"metric": "params", "image_sizes": "native"}, "in pixels"),
        ({"metric": "params", "dtypes": "fp23"}, "Did you mean 'fp32'?"),
        ({"cells": "*"}, "the key 'thresholds.metric' is missing"),
    ],
)
def test_a_wrong_threshold_fails_with_one_line_before_anything_runs(table: dict[str, Any], told: str) -> None:
    with pytest.raises(SuiteError) as failed:
        make_suite({**SUITE, "thresholds": [table]}, "mine.toml")
    assert told in str(failed.value)
    assert "mine.toml" in str(failed.value)
    assert "\n" not in str(failed.value)


def test_a_pattern_over_other_libraries_models_may_be_met_by_a_threshold() -> None:
    suite = make_suite(
        {"name": "m", "models": ["timm:vit_tiny*"], "thresholds": [{"metric": "params", "cells": "timm:vit_t*"}]}, "m"
    )
    assert threshold_for(suite.thresholds, cell("timm:vit_tiny_patch16_224"), "params").gate is True


def test_options_are_read_as_tables() -> None:
    assert parse_option("relative_latency=30%") == {"metric": "relative_latency", "cells": "*", "tolerance": "30%"}
    assert parse_option("params@cifar_*=off") == {"metric": "params", "cells": "cifar_*", "gate": False}
    assert parse_option("accuracy@hf:a@b=c=on") == {"metric": "accuracy", "cells": "hf:a@b=c", "gate": True}


@pytest.mark.parametrize("text", ["params", "=5%", "params=", "params@=5%", "a\nb=5%", "params=x", "params=5"])
def test_a_wrong_option_is_told_in_one_line(text: str) -> None:
    with pytest.raises(UsageError, match="Option --threshold") as failed:
        parse_option(text)
    assert "\n" not in str(failed.value)


def test_thresholds_can_be_about_metrics_that_only_the_records_have() -> None:
    assert "their_metric" in known_metrics(["their_metric"])
    assert "other_load" not in known_metrics()
    (rule,) = make_thresholds([{"metric": "their_metric"}], "mine.toml", metrics=["their_metric"])
    assert rule.covers(cell(), "their_metric")
