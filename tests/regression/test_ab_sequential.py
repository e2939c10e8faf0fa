"""The rule of ``vitbench ab`` on simulated pairs whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vitbench.regression.ab.sequential import LOOKS, Rule, is_decided, reject, weigh


def verdicts(effect: float, spread: float, *, draws: int, tails: bool = False, tests: int = 1) -> dict[str, int]:
    """How many of ``draws`` simulated cells end how, each looked at as it would be live."""
    generator = np.random.default_rng(7)
    rule, counts = Rule(), {"worse": 0, "same": 0, "inconclusive": 0}
    for _ in range(draws):
        noise = generator.standard_t(3, LOOKS[-1]) / math.sqrt(3) if tails else generator.standard_normal(LOOKS[-1])
        differences = (math.log1p(effect) + spread * noise).tolist()
        for look in LOOKS:
            found = weigh(differences[:look], rule, tests=tests)
            if is_decided(found, [], rule, tests=tests):
                break
        if found.slower <= rule.alpha / tests:
            counts["worse"] += 1
        else:
            counts["same" if found.passed else "inconclusive"] += 1
    return counts


@pytest.mark.integration
@pytest.mark.parametrize("spread", [0.002, 0.02, 0.05])
@pytest.mark.parametrize("tails", [False, True])
def test_a_slow_down_of_the_margin_itself_is_alarmed_once_in_a_hundred(spread: float, tails: bool) -> None:
    # the worst of what is promised: equal programs lie further off
    found = verdicts(0.02, spread, draws=3000, tails=tails)
    assert found["worse"] <= 30 + 3 * math.sqrt(30)


def test_equal_programs_are_passed_and_not_alarmed() -> None:
    found = verdicts(0.0, 0.015, draws=2000)
    assert found["worse"] <= 2
    assert found["same"] >= 1990


def test_a_slow_down_of_five_per_cent_is_found() -> None:
    found = verdicts(0.05, 0.015, draws=1000, tests=2)
    assert found["worse"] >= 930
    assert found["same"] <= 60


def test_a_slow_down_of_ten_per_cent_is_found_in_noise() -> None:
    assert verdicts(0.10, 0.04, draws=500, tests=2)["worse"] >= 495


@pytest.mark.integration
def test_a_slow_down_to_detect_is_passed_at_most_as_often_as_promised() -> None:
    found = verdicts(0.05, 0.03, draws=3000)
    assert found["same"] <= 150 + 3 * math.sqrt(150)


def test_what_is_told_to_be_visible_is_found_nine_times_in_ten() -> None:
    rule, spread = Rule(looks=(10,), shares=(1.0,)), 0.01
    generator = np.random.default_rng(1)
    pairs = generator.standard_normal((4000, 10))
    centred = pairs - pairs.mean(axis=1, keepdims=True)
    visible = [weigh((spread * row).tolist(), rule).visible or 0.0 for row in centred[:400]]
    # of the typical spread that such pairs show
    effect = float(np.median(visible))
    found = [weigh((math.log1p(effect) + spread * row).tolist(), rule).slower <= rule.alpha for row in pairs]
    assert np.mean(found) == pytest.approx(0.9, abs=0.04)


def test_p_values_keep_the_rate_over_all_looks() -> None:
    generator = np.random.default_rng(3)
    margin = math.log1p(0.02)
    p_values = [weigh((margin + 0.02 * row).tolist(), Rule()).slower for row in generator.standard_normal((3000, 40))]
    for rate in (0.01, 0.05, 0.2):
        assert np.mean(np.array(p_values) <= rate) <= rate + 3 * math.sqrt(rate / 3000)


@pytest.mark.integration
def test_holm_keeps_the_rate_of_a_suite() -> None:
    generator = np.random.default_rng(5)
    alarms = 0
    for _ in range(600):
        p_values = {
            str(cell): weigh((math.log1p(0.02) + 0.02 * generator.standard_normal(10)).tolist(), Rule()).slower
            for cell in range(10)
        }
        alarms += bool(reject(p_values, 0.05))
    assert alarms <= 30 + 3 * math.sqrt(30)


def test_holm_rejects_more_than_bonferroni_and_stops_at_the_first_that_holds() -> None:
    # 0.05 / 3, 0.05 / 2, 0.05: the second falls only because the first did
    assert reject({"a": 0.01, "b": 0.02, "c": 0.06}, 0.05) == {"a", "b"}
    assert reject({"a": 0.03, "b": 0.02, "c": 0.04}, 0.05) == set()


def test_a_cell_goes_on_while_holm_could_still_reject_it() -> None:
    rule = Rule()
    found = weigh([0.035, 0.0351, 0.0349, 0.0353, 0.0347], rule, tests=1)
    assert found.slower < rule.alpha
    assert is_decided(found, [], rule, tests=1)
    many = int(rule.alpha / found.slower) + 2
    assert found.passed
    assert not is_decided(found, [], rule, tests=many)  # passed, but not past being rejected


def test_two_pairs_decide_nothing() -> None:
    found = weigh([0.5, 0.5], Rule())
    assert (found.slower, found.passed, found.visible) == (1.0, False, None)


def test_pairs_that_are_equal_to_the_last_digit_are_not_believed_to_be_without_noise() -> None:
    found = weigh([0.0] * 40, Rule())
    assert found.visible is not None
    assert 0.02 < found.visible < 0.03
