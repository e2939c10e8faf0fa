"""Fresh processes of the same cell agree on its peak memory: at most 0.5 % or 0.5 MB apart, whichever is larger."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from vitbench.core.records import Cell
from vitbench.executors.conversation import converse, finish
from vitbench.executors.launcher import Launcher, make_launcher
from vitbench.executors.protocol import Measure

PROCESSES = 10
CELLS = [("vit_layer6_32", 32, 1), ("vit_layer6_32", 32, 32), ("cifar_vit_tiny", 32, 8), ("vit_base16", 224, 1)]


@pytest.fixture(scope="module")
def launcher() -> Iterator[Launcher]:
    with make_launcher() as launcher:
        launcher.wait_until_ready()
        yield launcher


@pytest.mark.parametrize("mode", ["infer", "train"])
@pytest.mark.parametrize(("model", "size", "batch"), CELLS)
def test_peak_memory_repeats(
    say: Callable[[str], None], launcher: Launcher, model: str, size: int, batch: int, mode: str
) -> None:
    cell = Cell(
        model=model, image_size=(size, size), num_classes=10, batch_size=batch, device="cpu", threads=1, mode=mode
    )
    name = "training_peak_memory" if mode == "train" else "inference_peak_memory"
    peaks = []
    for _ in range(PROCESSES):
        worker = launcher.start()
        outcome = finish(
            worker, converse(worker, Measure(process="memory", metrics=("memory",), cell=cell), timeout_s=300), "cpu"
        )
        assert outcome.failure is None, outcome.failure
        peaks += [one.value for one in outcome.measurements if one.metric == name]
    spread = max(peaks) - min(peaks)
    say(
        f"{cell.label}: {min(peaks) / 1e6:.2f} to {max(peaks) / 1e6:.2f} MB in {PROCESSES} processes, "
        f"{spread / 1e6:.2f} MB or {100 * spread / min(peaks):.2f} % apart"
    )
    assert spread <= max(0.005 * min(peaks), 0.5e6)
