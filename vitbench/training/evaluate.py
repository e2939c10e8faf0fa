"""Test a model on images. Loads torch."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from vitbench.models.outputs import check_classes, input_dtype, mean_logits
from vitbench.training.augmentation.augment import OWN_MEAN, OWN_STD, normalise
from vitbench.training.data.images import ImageSet


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """``correct`` of ``total`` images right (top-1); ``loss`` is the mean cross entropy in nat."""

    correct: int
    total: int
    loss: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers:
    """``logits`` (N, K) in float32, on the CPU, in the order of the images.

    ``duration_s``: how long the pass over all of them took, from images in memory to logits on the device.
    """

    logits: torch.Tensor
    duration_s: float


def evaluate(
    model: torch.nn.Module,
    dataset: ImageSet,
    *,
    device: str,
    autocast: Callable[[], AbstractContextManager[Any]],
    batch_size: int,
    mean: Sequence[float] = OWN_MEAN,
    std: Sequence[float] = OWN_STD,
) -> Evaluation:
    """Test ``model``, which is on ``device``, on every image, ``batch_size`` at a time (the last batch may be
    smaller).

    ``autocast`` makes the context of each forward pass. Outputs of several heads are averaged. The model is in eval
    mode meanwhile, and afterwards in its mode of before. ``mean`` and ``std`` of each channel (0 to 1) are those of the
    weights' training. Raises DataError if it has fewer classes than the data.
    """
    # Sums stay on the device: reading them after every batch would make it wait.
    correct = torch.zeros((), dtype=torch.int64, device=device)
    loss = torch.zeros((), dtype=torch.float32, device=device)
    with _answering(model, dataset.num_classes, device, autocast, mean, std) as answer:
        for some, classes in zip(dataset.images.split(batch_size), dataset.labels.split(batch_size), strict=True):
            logits, labels = answer(some), classes.to(device)
            correct += (logits.argmax(-1) == labels).sum()
            loss += F.cross_entropy(logits, labels, reduction="sum")
    total = len(dataset)
    return Evaluation(correct=int(correct), total=total, loss=float(loss) / total)


def collect_answers(
    model: torch.nn.Module,
    dataset: ImageSet,
    *,
    device: str,
    autocast: Callable[[], AbstractContextManager[Any]],
    batch_size: int,
    synchronize: Callable[[], None],
    mean: Sequence[float] = OWN_MEAN,
    std: Sequence[float] = OWN_STD,
) -> Answers:
    """The logits of every image; arguments, mode and errors are those of ``evaluate``.

    ``synchronize`` waits for the device, before and after the timed pass. One untimed batch goes before it: the first
    one prepares kernels. Images on disk are timed batch by batch, without their decoding.
    """
    with _answering(model, dataset.num_classes, device, autocast, mean, std) as answer:
        answer(dataset.images[:batch_size])
        found, duration_s = [], 0.0
        in_memory = isinstance(dataset.images, torch.Tensor)
        parts = iter(dataset.images.split(batch_size))
        while some := list(parts if in_memory else itertools.islice(parts, 1)):
            synchronize()
            begin = time.perf_counter()
            # the logits stay on the device: copying each batch would make it wait
            found += [answer(one) for one in some]
            synchronize()
            duration_s += time.perf_counter() - begin
        logits = torch.cat(found).cpu()
    return Answers(logits=logits, duration_s=duration_s)


@contextlib.contextmanager
def _answering(
    model: torch.nn.Module,
    num_classes: int,
    device: str,
    autocast: Callable[[], AbstractContextManager[Any]],
    mean: Sequence[float],
    std: Sequence[float],
) -> Iterator[Callable[[torch.Tensor], torch.Tensor]]:
    """Inside, in eval mode and without gradients, a function from images (B, 3, H, W) uint8 to logits (B, K), in
    float32 on the device; afterwards the mode of before.
    """

    def answer(images: torch.Tensor) -> torch.Tensor:
        inputs = normalise(images.to(device), input_dtype(model), mean, std)
        with autocast():
            output = model(inputs)
        check_classes(output, num_classes)
        return mean_logits(output)

    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield answer
    finally:
        model.train(was_training)
