"""What a user asks for, as values that every command on one model shares. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vitbench.core.errors import UsageError
from vitbench.core.validation import Flag, Positive, Whole

if TYPE_CHECKING:
    from vitbench.training.data.images import DataInfo, Split


@dataclass(frozen=True, kw_only=True)
class ModelRequest:
    """A model with weights, as the user named it; ``open_model.open_trained`` opens it.

    Args:
        model: a name of the registry, ``timm:NAME`` or ``torchvision:NAME``.
        weights: the path of a checkpoint; either this or ``pretrained``.
        pretrained: load the weights that the model's library publishes.
        replace_head: leave out a head of other classes; a random one, the same each time, takes its place.
        device: ``auto`` is the first accelerator found, else the CPU.
        image_size: ``224`` or ``231x240`` px; None takes that of the weights, else the model's own.
        num_classes: of the head; None takes those of the weights, else the model's own.
    """

    model: str
    weights: str | None = None
    pretrained: Flag = False
    replace_head: Flag = False
    device: str = "auto"
    image_size: str | Positive | None = None
    num_classes: Whole | None = None


@dataclass(frozen=True, kw_only=True)
class DataRequest:
    """A data set, as the user named it.

    Args:
        data: ``digits``, ``cifar10``, ``cifar100``, ``fashion-mnist``, or the path of an image folder.
        data_dir: the folder of the downloaded data sets.
        download: download the data set if it is missing.
        split: ``test`` or ``train``.
    """

    data: str
    data_dir: Path | None = None
    download: bool = False
    split: str = "test"

    def describe(self) -> DataInfo:
        """What the data set is. Raises UsageError, DataError (see ``describe_data``)."""
        from vitbench.training.data.datasets import describe_data

        return describe_data(self.data, root=self.data_dir, download=self.download)

    def checked_split(self) -> Split:
        """The split's name. Raises UsageError for a split that does not exist."""
        from vitbench.training.data.images import SPLITS

        for split in SPLITS:
            if self.split == split:
                return split
        raise UsageError(f"Unknown split {self.split!r}: give {' or '.join(SPLITS)}")
