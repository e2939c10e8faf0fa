"""What is asked of a training, and how it can end before its time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitbench.core.errors import UsageError, VitbenchError
from vitbench.core.run_folder import TRAINING
from vitbench.experiments.request import ModelRequest

#: Of training.json and last.pt.
SCHEMA = 1
REQUEST = TRAINING
SUMMARY = "summary.json"
LAST = "checkpoints/last.pt"
#: A copy of the file of indices that ``imbalance`` named.
INDICES = "indices.txt"


class TrainingOutOfMemory(VitbenchError):  # noqa: N818  (what happened, not what is wrong with the code)
    """The device's memory does not suffice for a step."""

    cause = "out_of_memory"


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM came, and what there was has been saved."""


@dataclass(frozen=True, kw_only=True)
class TrainingRequest(ModelRequest):
    """A training: everything that a run folder needs to resume it. ``weights`` and ``pretrained`` are where it starts;
    neither means random weights.

    Args:
        recipe: a Recipe's keys.
        amp: ``off``, ``bf16`` or ``fp16``.
        freeze: see training.freezing.
        save_every: epochs between kept checkpoints, 0 for none.
    """

    data: str
    recipe: dict[str, Any]
    data_dir: str | None = None
    download: bool = False
    amp: str = "off"
    train_images: int | None = None
    test_images: int | None = None
    freeze: str = "none"
    seed: int = 0
    deterministic: bool = False
    compile: bool = False
    channels_last: bool = False
    threads: int | None = None
    save_every: int = 0
    tensorboard: bool = True
    allow_import: bool = False


def check_beginning(request: TrainingRequest) -> None:
    """Raises UsageError for weights of two kinds to start from, or a head that none would leave out."""
    if request.weights and request.pretrained:
        raise UsageError("--weights and --pretrained are two beginnings: give one of them")
    if request.replace_head and not request.weights:
        raise UsageError("--replace-head leaves out the head of a checkpoint: give it together with --weights")


@dataclass(frozen=True, kw_only=True)
class TrainingSummary:
    """What came of a training: the folder, the epochs' history, and the figures of summary.json."""

    folder: Path
    history: tuple[dict[str, Any], ...]
    figures: dict[str, Any]
