"""Test a model on pictures. Loads torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from vitbench.outputs import check_classes, input_dtype, mean_logits
from vitbench.training.augment import OWN_MEAN, OWN_STD, normalise
from vitbench.training.pictures import PictureSet


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """``correct`` of ``total`` pictures right (top-1); ``loss`` is the mean cross entropy in nat."""

    correct: int
    total: int
    loss: float


def evaluate(
    model: torch.nn.Module,
    pictures: PictureSet,
    *,
    device: str,
    autocast: Callable[[], AbstractContextManager[Any]],
    batch_size: int,
    mean: Sequence[float] = OWN_MEAN,
    std: Sequence[float] = OWN_STD,
) -> Evaluation:
    """Test ``model``, which is on ``device``, on every picture, ``batch_size`` at a time (the last batch may be
    smaller).

    ``autocast`` makes the context of each forward pass. Outputs of several heads are averaged. The model is in eval
    mode meanwhile, and afterwards in the mode that it was in. ``mean`` and ``std`` of each channel (0 to 1) are those
    that the weights were trained with. Raises DataError if it has fewer classes than the data.
    """
    was_training = model.training
    dtype = input_dtype(model)
    # Sums stay on the device: reading them after every batch would make it wait.
    correct = torch.zeros((), dtype=torch.int64, device=device)
    loss = torch.zeros((), dtype=torch.float32, device=device)
    model.eval()
    try:
        with torch.inference_mode():
            for some, classes in zip(pictures.images.split(batch_size), pictures.labels.split(batch_size), strict=True):
                images, labels = normalise(some.to(device), dtype, mean, std), classes.to(device)
                with autocast():
                    output = model(images)
                check_classes(output, pictures.num_classes)
                logits = mean_logits(output)
                correct += (logits.argmax(-1) == labels).sum()
                loss += F.cross_entropy(logits, labels, reduction="sum")
    finally:
        model.train(was_training)
    total = len(pictures)
    return Evaluation(correct=int(correct), total=total, loss=float(loss) / total)
