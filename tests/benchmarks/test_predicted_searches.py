"""What is said of searches with and without a prediction is computed right."""

from benchmarks.predicted_searches import DOUBLED, PREDICTED, OneRun, tables
from tests.reports import test_searches
from tests.reports.paired import tables as read_tables
from vitbench.reports.model.runs import Run
from vitbench.reports.model.searches import find_searches


def one_run(wall_s: float, limit: int, predicted: int | None = None) -> OneRun:
    records = test_searches.search(limit, predicted=predicted)
    return OneRun(wall_s, find_searches([Run(name="r", records=records)]))


def test_attempts_and_seconds_of_both_ways_are_compared() -> None:
    runs = {PREDICTED: [one_run(20.0, 12, 13), one_run(30.0, 13, 13)], DOUBLED: [one_run(40.0, 12), one_run(20.0, 12)]}
    whole, total = tables(runs)
    (line,) = read_tables(whole)[0]
    assert line["predicted"] == "13"
    assert line["found"] == "12, 13"
    assert line["attempts"] == "2"
    assert line["doubled"] == "8"
    assert line["seconds, of doubled"] == "0.25 [0.25, 0.25]"  # each attempt takes one second
    assert total.startswith("4 attempts instead of 16. Seconds of the whole program: 1.00 [0.50, 1.50]")
