"""The time at the roof against counts by hand: which bound an operator has, and what bounds a cell."""

from __future__ import annotations

from typing import Any

import pytest

from tests.analysis.roofs import known, machine, refused
from vitbench.analysis.roof_shares import Work, roof_time, trace_work
from vitbench.core.errors import Unsupported
from vitbench.core.records import Cell
from vitbench.metrics.support.in_process import make_subject, run_metric
from vitbench.metrics.support.subject import Subject

#: One bandwidth for all sizes: 10 GB/s.
FLAT = machine(bandwidth=(known(10e9, 10**6),))


def product(n: int, dtype: str = "fp32", calls: int = 1) -> Work:
    """(n, n) @ (n, n): 2 n^3 FLOPs, three matrices."""
    size = {"fp32": 4, "bf16": 2}[dtype]
    return Work(name="mm", dtype=dtype, calls=calls, flops=2 * n**3, bytes=3 * n * n * size)


def test_a_product_is_bound_by_compute_from_the_ridge_on() -> None:
    """Its intensity is n / 6 FLOP/byte in fp32; the ridge is 100 GFLOP/s over 10 GB/s: n = 60."""
    below, above = roof_time([product(59)], FLAT), roof_time([product(61)], FLAT)
    assert (below.compute_s, below.bandwidth_s) == (0, pytest.approx(3 * 59**2 * 4 / 10e9))
    assert (above.compute_s, above.bandwidth_s) == (pytest.approx(2 * 61**3 / 100e9), 0)
    assert below.bound(below.roof_s) == "bandwidth"
    assert above.bound(above.roof_s) == "compute"


def test_each_operator_has_the_roof_of_its_dtype_and_of_its_working_set() -> None:
    time = roof_time([product(2000, "bf16")], machine())
    assert time.roof_s == pytest.approx(2 * 2000**3 / 1000e9)
    small, large = (Work(name="add", dtype="fp32", calls=1, flops=0, bytes=size) for size in (10**6, 10**8))
    assert roof_time([small], machine()).roof_s == pytest.approx(10**6 / 100e9)
    assert roof_time([large], machine()).roof_s == pytest.approx(10**8 / 10e9)


def test_by_operator_the_roof_takes_longer_than_for_the_whole_model() -> None:
    """One product at 0.02 s of compute, one addition at 0.02 s of bandwidth: 0.04 s, and 0.0212 s as a whole."""
    work = [product(1000), Work(name="add", dtype="fp32", calls=1, flops=0, bytes=2 * 10**8)]
    whole = max(2 * 1000**3 / 100e9, (12 * 10**6 + 2 * 10**8) / 10e9)
    assert roof_time(work, FLAT).roof_s == pytest.approx(0.04)
    assert whole == pytest.approx(0.0212)


def test_calls_of_one_name_are_one_line_the_longest_first() -> None:
    work = [product(100, calls=2), product(200), Work(name="add", dtype="fp32", calls=3, flops=0, bytes=10**8)]
    add, mm = roof_time(work, FLAT).operators
    assert (add.name, add.calls, add.bytes) == ("add", 3, 3 * 10**8)
    assert (mm.name, mm.calls, mm.flops) == ("mm", 3, 2 * 2 * 100**3 + 2 * 200**3)
    assert mm.roof_s == pytest.approx((2 * 2 * 100**3 + 2 * 200**3) / 100e9)


@pytest.mark.parametrize(
    ("moved", "measured_ms", "bound"),
    [
        (10**4, 3.9, "overhead"),  # 1 ms at the roof
        (10**4, 4.1, "unexplained"),
        (10**4, 100, "unexplained"),  # though its operators take longer to dispatch than at the roof
        (10**4, 1.5, "overhead"),  # dispatched while kernels run, as on a GPU
        (3 * 10**4, 5.9, "bandwidth"),  # 3 ms at the roof
        (3 * 10**4, 6.1, "unexplained"),
    ],
)
def test_what_bounds_a_cell_takes_half_of_its_time(moved: int, measured_ms: float, bound: str) -> None:
    """A thousand operators that take 2 ms to dispatch."""
    time = roof_time([Work(name="add", dtype="fp32", calls=1000, flops=0, bytes=moved)], FLAT)
    assert time.dispatch_s == pytest.approx(2e-3)
    assert time.bound(1e-3 * measured_ms) == bound


def test_a_product_at_a_twentieth_of_the_roof_is_unexplained() -> None:
    time = roof_time([product(1000)], FLAT)
    assert time.bound(1.9 * time.roof_s) == "compute"
    assert time.bound(20 * time.roof_s) == "unexplained"


def test_what_is_faster_than_the_roof_shows_that_this_is_too_low() -> None:
    """Beyond the 10 % by which its rounds may spread."""
    time = roof_time([product(1000)], FLAT)
    assert time.bound(time.roof_s / 1.09) == "compute"
    assert time.bound(time.roof_s / 1.11) is None


def test_without_the_time_of_a_dispatch_overhead_is_not_told_from_the_rest() -> None:
    time = roof_time([product(1000)], machine(dispatch=refused()))
    assert time.bound(time.roof_s * 1.5) == "compute"
    assert time.bound(time.roof_s * 3) is None


def test_operators_without_a_formula_are_named() -> None:
    work = [product(10), Work(name="mine::op", dtype="fp32", calls=2, flops=0, bytes=8, lower_bound=True)]
    assert roof_time(work, FLAT).left_out == "mine::op x2"


def test_a_roof_that_an_operator_lacks_is_no_time() -> None:
    with pytest.raises(Unsupported, match="fp64 was not measured"):
        roof_time([Work(name="mm", dtype="fp64", calls=1, flops=1, bytes=1)], FLAT)
    assert roof_time([Work(name="eq", dtype="", calls=1, flops=0, bytes=10)], FLAT).roof_s > 0


def traced(mode: str = "infer", batch: int = 1, **fields: Any) -> tuple[list[Work], Subject]:
    cell = Cell(
        model="vit_layer6_32", image_size=(32, 32), num_classes=10, batch_size=batch, device="cpu", threads=2, mode=mode,
        **fields,
    )  # fmt: skip
    subject = make_subject(cell)
    return trace_work(subject), subject


@pytest.mark.integration
def test_the_operators_of_a_cell_have_its_flops_and_each_weight_is_read() -> None:
    work, subject = traced(batch=3)
    (flops,) = (one.value for one in run_metric("flops", subject) if one.metric == "flops")
    (params,) = (one.value for one in run_metric("params", subject) if one.metric == "params")
    assert sum(one.calls * one.flops for one in work) == 3 * flops
    assert sum(one.calls * one.bytes for one in work) > 4 * params
    assert {one.dtype for one in work if one.flops} == {"fp32"}


@pytest.mark.integration
def test_a_training_step_ends_with_seven_passes_of_adamw() -> None:
    work, subject = traced("train")
    (params,) = (one.value for one in run_metric("params", subject) if one.metric == "trainable_params")
    assert work[-1] == Work(name="AdamW", dtype="fp32", calls=1, flops=0, bytes=7 * 4 * int(params))
    assert sum(one.flops * one.calls for one in work) > 2 * sum(one.flops * one.calls for one in traced()[0])


@pytest.mark.integration
def test_products_of_an_amp_cell_are_in_the_lower_precision() -> None:
    work, _ = traced(dtype="amp")
    assert {one.dtype for one in work if one.name == "addmm"} == {"bf16"}
    assert {one.dtype for one in traced(dtype="bf16")[0] if one.flops} == {"bf16"}


def test_a_compiled_cell_has_no_operators() -> None:
    with pytest.raises(Unsupported, match="a compiled cell dispatches no operators"):
        traced(compile=True)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("cell", "less"),
    [
        ({}, 0.12),
        ({"mode": "train"}, 0.37),
        ({"mode": "train", "dtype": "amp", "batch": 32}, 0.20),
        ({"attention": "explicit"}, 0.17),
    ],
)
def test_the_roof_of_a_whole_model_takes_less_time(cell: dict[str, Any], less: float) -> None:
    """So that its share is too low, with the roof of two cores of an EPYC. Torch's versions differ a little."""
    roof = machine(
        compute={"fp32": known(317e9), "bf16": known(1790e9)}, bandwidth=(known(60e9, 10**6), known(22.8e9, 10**8))
    )
    work, _ = traced(**cell)
    compute_s = sum(one.calls * one.flops / roof.flops_per_s(one.dtype) for one in work if one.flops)
    bandwidth_s = sum(one.calls * one.bytes / roof.bytes_per_s(one.bytes) for one in work)
    assert 1 - max(compute_s, bandwidth_s) / roof_time(work, roof).roof_s == pytest.approx(less, abs=0.03)
