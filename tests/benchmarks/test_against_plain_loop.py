"""What is said of runs against plain loops is computed right."""

import dataclasses
from pathlib import Path

import pytest

from benchmarks import against_plain_loop
from tests.reports.fabricate import cell, write_run
from tests.reports.paired import paired, tables
from vitbench.reports.model.runs import Run


def test_a_model_is_within_the_bounds_of_its_way_by_the_median_of_its_repeats() -> None:
    close, far = [0.98, 1.0, 1.3], [1.06, 1.08, 1.09]
    page = against_plain_loop.page({(1, "run", "a"): close, (1, "run", "b"): far, (1, "quick", "b"): far})
    assert "- run, threads 1: the median of 1 of 2 models is between 0.95 and 1.05." in page
    assert "- quick, threads 1: the median of 1 of 1 models is between 0.9 and 1.1." in page
    (lines,) = tables(page)
    assert [line["ms over the loop's, median"] for line in lines] == ["1.000", "1.080", "1.080"]
    assert [line["quartiles"] for line in lines] == ["0.990 to 1.150", "1.070 to 1.085", "1.070 to 1.085"]


def test_a_run_of_another_image_size_than_the_loops_is_refused(tmp_path: Path) -> None:
    record = paired(cell("vit_layer6_32"), [2.0] * 3)
    same = write_run(tmp_path / "same", Run(name="run", records=[record]))
    assert against_plain_loop.milliseconds(same) == {"vit_layer6_32": pytest.approx(20.0)}
    larger = dataclasses.replace(record, cell=dataclasses.replace(record.cell, image_size=(64, 64)))
    other = write_run(tmp_path / "other", Run(name="run", records=[larger]))
    with pytest.raises(ValueError, match="has another size than 32 px"):
        against_plain_loop.milliseconds(other)
