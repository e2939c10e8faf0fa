"""What a user asks of a training, what it returns, and how it can end early."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ConfigDict

from vitbench.core.errors import UsageError, VitbenchError
from vitbench.core.run_folder import TRAINING
from vitbench.core.validation import Count, Flag, Whole
from vitbench.experiments.open_model import ModelRequest
from vitbench.models.weights.claimed import check_no_file

#: Of training.json and last.pt.
SCHEMA = 1
REQUEST = TRAINING
SUMMARY = "summary.json"
LAST = "checkpoints/last.pt"
#: A copy of the file of indices that ``imbalance`` named.
INDICES = "indices.txt"


class TrainingOutOfMemory(VitbenchError):  # noqa: N818  (what happened, not what is wrong with the code)
    """The device has not enough memory for a step."""

    cause = "out_of_memory"


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM; the training has been saved."""


@dataclass(frozen=True, kw_only=True)
class TrainingRequest(ModelRequest):
    """A training: everything that a run folder needs to resume it. Without ``weights`` or ``pretrained`` it starts
    from random weights. ``recipe`` has a Recipe's keys; ``amp``: ``off``, ``bf16`` or ``fp16``; ``freeze``: see
    training.freezing; ``save_every``: epochs between kept checkpoints, 0 for none.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    data: str
    recipe: dict[str, Any]
    data_dir: str | None = None
    download: Flag = False
    amp: str = "off"
    train_images: Whole | None = None
    test_images: Whole | None = None
    freeze: str = "none"
    seed: Whole = 0
    deterministic: Flag = False
    compile: Flag = False
    channels_last: Flag = False
    threads: Whole | None = None
    save_every: Count = 0
    tensorboard: Flag = True
    allow_import: Flag = False


def check_beginning(request: TrainingRequest) -> None:
    """Raises UsageError for two starting points, or a head or a grid of no weights."""
    if request.weights and request.pretrained:
        raise UsageError("--weights and --pretrained are two starting points: give one of them")
    if not request.weights:
        check_no_file(request.entry, request.grid)
    if request.replace_head and not request.weights:
        raise UsageError("--replace-head leaves out the head of a checkpoint: give it together with --weights")


@dataclass(frozen=True, kw_only=True)
class TrainingSummary:
    """The result of a training: its folder, its history (a row an epoch), and the values of summary.json."""

    folder: Path
    history: tuple[dict[str, Any], ...]
    figures: dict[str, Any]
