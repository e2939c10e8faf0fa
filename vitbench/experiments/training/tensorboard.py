"""TensorBoard logs of a training, where tensorboard is installed. Loads torch."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vitbench.experiments.training.progress import TrainingProgress


class Board:
    """Writes values and figures by the number of images seen."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def add_epoch(self, row: Mapping[str, Any]) -> None:
        """A row of the history."""
        for key in row:
            if key not in ("epoch", "step", "images"):
                self._writer.add_scalar(key.replace("_", "/", 1), row[key], row["images"])
        self._writer.flush()

    def add_figures(self, figures: Mapping[str, bytes], images: int) -> None:
        """PNGs by their names."""
        for name, content in figures.items():
            pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))  # (H, W, 3)
            self._writer.add_image(name, pixels, images, dataformats="HWC")

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


def open_board(folder: Path, images: int, progress: TrainingProgress) -> Board | None:
    """The logs of a training that has seen ``images``: what an earlier process logged after them is dropped. None
    without tensorboard.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        progress.note("No TensorBoard logs: pip install 'vitbench[tensorboard]' for them")
        return None
    return Board(SummaryWriter(str(folder / "tensorboard"), purge_step=images + 1))
