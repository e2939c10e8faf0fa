"""The machine's roof: medians of rounds, what is refused, and bandwidth by working set."""

from __future__ import annotations

import math

import pytest
import torch

from tests.analysis.roofs import known, machine, refused
from vitbench.analysis.roofline import best_of, ceiling_of, measure_round, spread_of, working_sets
from vitbench.core.errors import Unsupported
from vitbench.devices import open_device
from vitbench.metrics.support.operator_trace import trace_operators

#: Two-thread products (GFLOP/s) in a minute in which another program had one of two cores now and then.
DISTURBED = (317e9, 320e9, 150e9, 96e9, 214e9, 301e9, 60e9)
QUIET = (317e9, 320e9, 312e9, 96e9, 314e9, 301e9, 318e9)


def test_half_of_the_rounds_lie_within_the_spread() -> None:
    assert spread_of([8, 9, 10, 11, 12]) == pytest.approx(0.1)
    assert spread_of([10, 10, 10, 1, 1000]) == 0  # two of five may be anything


def test_a_value_is_the_median_of_its_rounds_or_refused() -> None:
    assert ceiling_of(512, QUIET).value == 314e9
    found = ceiling_of(512, DISTURBED)
    assert (found.value, found.rounds) == (None, 7)
    assert found.spread == pytest.approx(103 / 214)
    assert "spread by 48 % (at most 10 %). Stop other programs" in found.reason


def test_four_rounds_say_nothing_of_their_spread() -> None:
    found = ceiling_of(1, (1.0, 1.0, 1.0, 1.0))
    assert found.value is None
    assert found.reason.startswith("other programs left 4 of 5 quiet rounds. Stop other programs")
    assert ceiling_of(1, (), "no kernel").reason == "no kernel"


def test_the_best_size_counts_even_where_it_is_refused() -> None:
    assert best_of({256: (50e9,) * 5, 512: QUIET}) == ceiling_of(512, QUIET)
    assert best_of({256: (50e9,) * 5, 512: DISTURBED}).value is None
    assert best_of({256: (50e9,) * 5, 512: (900e9,)}).at == 256  # one round is no value


def test_bandwidth_between_two_working_sets_is_interpolated_on_logarithmic_scales() -> None:
    roof = machine()
    assert roof.bytes_per_s(10**6) == pytest.approx(100e9)
    assert roof.bytes_per_s(10**7) == pytest.approx(math.sqrt(100e9 * 10e9))
    assert roof.bytes_per_s(10**8) == pytest.approx(10e9)
    assert (roof.bytes_per_s(1), roof.bytes_per_s(10**12)) == (pytest.approx(100e9), pytest.approx(10e9))


def test_a_refused_size_is_left_out_and_a_refused_dtype_has_no_roof() -> None:
    roof = machine(bandwidth=(refused(10**6), known(10e9, 10**8)), compute={"fp32": refused(1024)})
    assert roof.bytes_per_s(10**6) == pytest.approx(10e9)
    with pytest.raises(Unsupported, match="the roof of fp32 is unknown: its rounds spread by 14 %"):
        roof.flops_per_s("fp32")
    with pytest.raises(Unsupported, match="the roof of fp16 was not measured$"):
        roof.flops_per_s("fp16")
    with pytest.raises(Unsupported, match="the bandwidth is unknown"):
        machine(bandwidth=(refused(10**6),)).bytes_per_s(10**6)
    assert list(roof.refused) == ["fp32", "1 MB triad"]


def test_working_sets_reach_from_the_second_level_cache_to_four_times_the_last() -> None:
    mib = 2**20
    assert working_sets((mib, 32 * mib), 64e9) == (mib, 4 * mib, 16 * mib, 64 * mib, 128 * mib)
    assert working_sets((48 * mib,), 64e9)[0] == 6 * mib  # a GPU's only cache
    assert working_sets((mib, 32 * mib), 64 * mib)[-1] == 8 * mib  # at most an eighth of the free memory
    assert working_sets((), 64e9)[-1] == 4 * 64 * mib


@pytest.mark.integration
def test_a_round_counts_what_the_kernels_do() -> None:
    """Of a product of n x n matrices 2 n^3 FLOPs, of a triad three arrays, in time that a clock has seen."""
    products = [("fp32", 32), ("bf16", 32)]
    answers = list(measure_round(open_device("cpu"), products, [12 * 4096], dispatch=True, kernel_s=0.001))
    assert [(one["kind"], one["dtype"], one["at"]) for one in answers] == [
        ("compute", "fp32", 32),
        ("compute", "bf16", 32),
        ("bandwidth", "fp32", 12 * 4096),
        ("dispatch", "fp32", 0),
    ]
    assert all(one["value"] > 0 and one["reason"] == "" for one in answers)
    assert 1e-9 < answers[3]["value"] < 1  # seconds


def test_a_tiny_layer_is_two_operators() -> None:
    """A view and a product: what the time of a dispatch is divided by."""
    layer = torch.nn.Linear(1, 1).requires_grad_(False)
    assert [one.name for one in trace_operators(layer, torch.ones(1, 1)).calls] == ["t", "addmm"]


@pytest.mark.integration
def test_a_product_that_would_take_too_long_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitbench.analysis.roofline._LONGEST_PRODUCT_S", 0.0)
    answers = list(measure_round(open_device("cpu"), [("fp32", 16), ("fp32", 32)], [], dispatch=False, kernel_s=0.001))
    assert [one["at"] for one in answers] == [16]
