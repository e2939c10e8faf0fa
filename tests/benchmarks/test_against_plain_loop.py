"""What is said of runs against plain loops is computed right."""

from pathlib import Path

import pytest

from benchmarks import against_plain_loop
from benchmarks.against_plain_loop import Ratios
from benchmarks.loops_in_turn import Burst, write_bursts
from tests.reports.fabricate import cell, write_run
from tests.reports.paired import REFERENCE_S, TURNS, paired, tables
from vitbench.reports.model.runs import Run


def test_a_model_is_within_the_bounds_of_its_way_by_the_median_of_its_repeats() -> None:
    close = [Ratios(ratio, ratio, loops) for ratio, loops in ((0.98, 1.0), (1.0, 0.8), (1.3, 1.1))]
    far = [Ratios(1.08, 1.0, 1.0)]
    page = against_plain_loop.page({(1, "run", "a"): close, (1, "run", "b"): far, (1, "quick", "b"): far})
    assert "- run, threads 1: the median of 1 of 2 models is between 0.95 and 1.05; 2 of 2 in quiet turns." in page
    assert "- quick, threads 1: the median of 1 of 1 models is between 0.9 and 1.1; 1 of 1 in quiet turns." in page
    (lines,) = tables(page)
    assert [line["ms over the loop's, median"] for line in lines] == ["1.000", "1.080", "1.080"]
    assert [line["least to most"] for line in lines] == ["0.980 to 1.300", "–", "–"]
    assert lines[0]["the loops' own: median, most"] == "1.100, 1.250"


@pytest.mark.parametrize("processes", [2, 3])
def test_a_loop_in_a_slow_phase_counts_only_among_all_its_calls(tmp_path: Path, processes: int) -> None:
    slow = [1.7 if turn % 2 else 1.0 for turn in range(TURNS)]  # of the machine
    record = paired(cell("vit_nano"), [2.0] * processes, reference=[REFERENCE_S * factor for factor in slow])
    run = write_run(tmp_path / "run", Run(name="run", records=[record]))
    by_loop = 1.0, 1.1  # the second loop is slower: it has the turns of the slow phase
    bursts = [Burst(turn % 2, [2.0 * REFERENCE_S * by_loop[turn % 2] * factor] * 5) for turn, factor in enumerate(slow)]
    write_bursts(run, {"vit_nano": [bursts] * processes})
    found = against_plain_loop.ratios_of(run)["vit_nano"]
    assert found.loops == pytest.approx(1 / (1.1 * 1.7))
    if processes < 3:
        assert found.over_quiet is None
    else:
        assert found.over_quiet == pytest.approx(1.0)
        assert found.over_loop == pytest.approx(1 / (1.1 * 1.7) ** 0.5)
