"""What the evidence for the timing gate is computed with, on pairs whose truth is known."""

import math
import random
from pathlib import Path

import pytest

from benchmarks.gate_power import clopper_pearson, judge, judge_in_a_row, others_table, row, table
from vitbench.regression.ab.pairs import BASE, CONTROL, HEAD, Pair
from vitbench.regression.ab.sequential import LOOKS, Rule

COMMITTED = Path(__file__).parents[2] / "results" / "amd-epyc-2-cores" / "gate-power"


def pairs_of(count: int, *, slow: float, spread: float, seed: int = 0) -> list[Pair]:
    """Pairs whose processes differ by ``spread`` (of the logarithm), with a head that takes ``slow`` more."""
    draw = random.Random(seed)
    found = []
    for number in range(count):
        times = {
            role: tuple([math.exp(draw.gauss(0, spread)) * factor * 0.01] * 3)
            for role, factor in ((BASE, 1), (CONTROL, 1), (HEAD, 1), ("slow5", 1 + slow))
        }
        found.append(Pair(cell="quiet", number=number, wall=times, cpu=times))
    return found


def columns(line: str) -> list[str]:
    return [part.strip() for part in line.strip("| \n").split("|")]


def test_a_clear_change_is_judged_at_the_first_look_and_too_few_pairs_are_not() -> None:
    slow = {clock: [0.10 + 0.001 * (i % 3) for i in range(40)] for clock in ("cpu", "wall")}
    assert judge(slow, Rule()) == ("worse", LOOKS[0])
    same = {clock: [0.001 * (i % 3) for i in range(40)] for clock in ("cpu", "wall")}
    assert judge(same, Rule()) == ("same", LOOKS[0])
    assert judge({clock: values[:2] for clock, values in slow.items()}, Rule()) == ("open", 2)
    # at 3.5 % neither is so: beyond the margin, below what is to be detected, and too noisy to tell
    noisy = {clock: [0.035 + 0.06 * (-1) ** i for i in range(40)] for clock in ("cpu", "wall")}
    assert judge(noisy, Rule()) == ("inconclusive", LOOKS[-1])


def test_runs_in_a_row_share_no_pair() -> None:
    pairs = pairs_of(3 * LOOKS[0] + 2, slow=0.5, spread=0.001)
    assert judge_in_a_row(pairs, "slow5", 0.0) == ["worse"] * 3
    assert judge_in_a_row(pairs, HEAD, 0.0) == ["same"] * 3
    assert judge_in_a_row(pairs, HEAD, math.log(1.5)) == ["worse"] * 3


@pytest.mark.integration
@pytest.mark.parametrize(("slow", "verdict"), [(0.0, "same"), (0.10, "worse")])
def test_a_row_of_the_table_says_what_is_true_of_its_pairs(slow: float, verdict: str) -> None:
    found = columns(row("quiet", "slow5", [pairs_of(80, slow=slow, spread=0.01)], random.Random(0)))
    worse, same = float(found[6].removesuffix(" %")), float(found[8].removesuffix(" %"))
    assert found[2] == "80"
    assert found[5] == "2000"
    assert abs(float(found[3].split(" %")[0]) - 100 * slow) < 0.5
    # one process of sd s against the mean of two: s * sqrt(1.5)
    assert float(found[4].removesuffix(" %")) == pytest.approx(1.2, abs=0.25)
    assert (worse, same) == ((100, 0) if verdict == "worse" else (0, 100))


@pytest.mark.integration
def test_at_the_margin_alarms_stay_within_the_promised_rate() -> None:
    # many independent histories: the row's draws from one short history overlap
    alarms = sum(
        judge_in_a_row(pairs_of(40, slow=0.0, spread=0.01, seed=seed), HEAD, math.log1p(Rule().margin))[:1] == ["worse"]
        for seed in range(400)
    )
    assert alarms <= 10  # 1 % of 400 is 4; 11 or more have a chance of 0.3 %


@pytest.mark.parametrize(
    ("count", "total", "upper", "limit"),
    # closed forms: nothing of n, all of n; and one of 20 (Clopper and Pearson's own tables give 0.216)
    [(0, 300, True, 1 - 0.05 ** (1 / 300)), (20, 20, False, 0.05 ** (1 / 20)), (1, 20, True, 0.2161)],
)
def test_limits_of_shares(count: int, total: int, upper: bool, limit: float) -> None:
    assert clopper_pearson(count, total, upper=upper) == pytest.approx(limit, abs=1e-4)
    assert clopper_pearson(total, total, upper=True) == 1
    assert clopper_pearson(0, total, upper=False) == 0


@pytest.mark.integration
def test_other_gates_are_judged_on_the_same_processes() -> None:
    lines = others_table(pairs_of(60, slow=0.10, spread=0.0001))
    assert columns(lines[0])[-1] == "finds 10 %"
    single, medians, t_test = (columns(line)[1:] for line in lines[2:])
    assert single == medians == ["0 %", "100 %"]
    assert int(t_test[0].removesuffix(" %")) <= 20  # its own rate is 5 %, of stretches that overlap
    assert t_test[1] == "100 %"


@pytest.mark.slow
def test_the_committed_table_is_what_its_pairs_give() -> None:
    assert table(COMMITTED) == (COMMITTED / "gate_power.md").read_text(encoding="utf-8")
