"""What is said of runs beside timm's benchmark.py is computed right."""

from pathlib import Path

from benchmarks import against_timm_benchmark
from benchmarks.against_timm_benchmark import OneRun
from tests.reports.paired import tables

#: Takes the arguments of ``benchmark.py`` and writes such a file, with the number of threads as the time.
STAND_IN = """
import argparse, csv, os
parser = argparse.ArgumentParser()
for name in ("model-list", "bench", "results-file", "batch-size", "device"):
    parser.add_argument("--" + name)
given = parser.parse_args()
assert (given.bench, given.batch_size, given.device) == ("inference", "1", "cpu")
with open(given.results_file, "w") as file:
    writer = csv.DictWriter(file, ["model", "infer_step_time"])
    writer.writeheader()
    for model in open(given.model_list):
        writer.writerow({"model": model.strip(), "infer_step_time": os.environ["OMP_NUM_THREADS"]})
"""


def test_times_of_benchmark_py_are_read_from_its_results(tmp_path: Path) -> None:
    program = tmp_path / "benchmark.py"
    program.write_text(STAND_IN)
    found = against_timm_benchmark.run_timm(tmp_path / "out" / "0", program, ["a", "b"], threads=2)
    assert found.ms == {"a": 2.0, "b": 2.0}


def test_wall_times_are_compared_within_a_round_with_and_without_pauses() -> None:
    runs = {
        "benchmark.py": [OneRun(60.0, {"a": 10.0}), OneRun(70.0, {"a": 13.0})],
        "run": [OneRun(30.0, {"a": 10.0}), OneRun(70.0, {"a": 10.5})],
        "quick": [OneRun(15.0, {"a": 10.0}), OneRun(15.0, {})],
    }
    walls, spread = tables(against_timm_benchmark.page(runs, pause_s=50.0))
    assert [line["program"] for line in walls] == ["benchmark.py", "benchmark.py without its pauses", "run", "quick"]
    assert [line["wall time, median, s"] for line in walls] == ["65", "15", "50", "15"]
    assert walls[2]["over benchmark.py"] == "0.75"
    assert walls[2]["over it without its pauses"] == "3.25"
    assert [line["slowest / fastest"] for line in spread] == ["1.300", "1.050", "1.000"]
    assert spread[2]["CV, %"] == "–"
