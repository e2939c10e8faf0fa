"""Measure a cell in this process: prepare it, make the metrics' subject, run a metric, classify what it raises.

Loads torch only when it is called: the runner imports the types.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vitbench.core.errors import Unsupported
from vitbench.core.records import RGB, Cell, Measurement
from vitbench.core.registry import METRICS
from vitbench.devices import Failure, open_device
from vitbench.devices.failures import LIMIT
from vitbench.metrics.support.subject import Budget, Subject
from vitbench.models.cards import PRETRAINED, Claim, is_external
from vitbench.models.tracebacks import model_places, with_places
from vitbench.models.weights.claimed import RANDOM_HEAD

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class WeightsFile:
    """A checkpoint to load. ``replace_head``: a head with other classes is left out, a random one takes its place;
    ``entry``: which weights of a file that has several; ``grid``: rows and columns of its patches, ``4x16``.
    """

    path: str
    replace_head: bool = False
    entry: str | None = None
    grid: str | None = None


def prepare_process(cell: Cell, process: str) -> tuple[str, str]:
    """Set threads, seeds, memory limit and allocator for a cell, before the first operator of its process.

    Returns descriptions of the allocator and of what enforces the memory limit; empty without one.
    """
    import numpy as np
    import torch

    torch.set_num_threads(cell.threads)
    random.seed(cell.seed)
    np.random.seed(cell.seed % 2**32)
    torch.manual_seed(cell.seed)
    if process in ("static", "prediction"):
        return "", ""  # nothing is allocated
    if process == "counters":
        open_device("cpu").limit_memory(None)  # a real model on the CPU, whatever the cell's device and limit
        return "", ""
    device = open_device(cell.device)
    allocator = device.steady_allocator() if process == "memory" else ""
    return allocator, device.limit_memory(cell.memory_limit)


def make_subject(cell: Cell, weights: WeightsFile | None = None) -> Subject:
    """The cell as its metrics see it. Building its model raises CheckpointError if ``weights`` do not fit it."""
    import torch

    from vitbench.models import build_model, describe_model

    def build() -> torch.nn.Module:
        torch.manual_seed(cell.seed)  # the same weights in each process of a cell
        real = torch.get_default_device().type != "meta"  # on meta there is nothing to load weights into
        published = cell.weights.startswith(f"{PRETRAINED}:")
        model = build_model(
            cell.model,
            image_size=cell.image_size,
            num_classes=cell.num_classes,
            in_channels=cell.in_channels,
            pretrained=published and real,
        )
        if real and weights is not None:
            subject.weights_note = _load(model, cell, weights)
        elif real and published and describe_model(cell.model).published_classes != cell.num_classes != 0:
            subject.weights_note = RANDOM_HEAD
        return model

    subject = subject_of(cell, build)
    return subject


def subject_of(cell: Cell, build: Callable[[], torch.nn.Module], budget: Budget | None = None) -> Subject:
    """The subject of a cell. ``build`` makes a new module or copies the caller's, as measuring changes it."""
    from vitbench.models import use_attention

    return Subject(
        cell=cell,
        device=open_device(cell.device),
        build=build,
        attention=lambda copied: use_attention(copied, cell.attention),
        budget=budget or Budget(),
    )


@contextlib.contextmanager
def caller_state_kept(cell: Cell) -> Iterator[None]:
    """Use ``cell``'s threads and seed inside; restore threads and random generators afterwards, also the device's."""
    import torch

    kind = cell.device.partition(":")[0]
    threads = torch.get_num_threads()
    on_mps = torch.mps.get_rng_state() if kind == "mps" else None
    torch.set_num_threads(cell.threads)
    try:
        with torch.random.fork_rng(devices=[cell.device] if kind == "cuda" else []):
            torch.manual_seed(cell.seed)
            yield
    finally:
        torch.set_num_threads(threads)
        if on_mps is not None:
            torch.mps.set_rng_state(on_mps)


def run_metric(name: str, subject: Subject) -> Iterator[Measurement]:
    """The measurements of a metric. Those missing when it raises Unsupported become absent, with its reason; also where
    torch refuses the batch or the images of the cell (one value a channel for a batch norm in training).
    """
    metric = METRICS.get(name)
    missing = metric.yields_in(subject.cell.mode)
    try:
        for measurement in metric.measure(subject):
            missing.pop(measurement.metric, None)
            yield measurement
    except Exception as error:
        failure = subject.device.explain(error)
        if failure is None or not (isinstance(error, Unsupported) or failure.cause == LIMIT):
            raise
        for absent, unit in missing.items():
            yield Measurement.absent(absent, unit, "unsupported", failure.detail)


def failure_of(error: BaseException, cell: Cell) -> Failure:
    """The status and cause of an exception on the cell's device.

    The cause is ``model_bug``, with the place, for an exception that the device cannot explain and that the model's
    own code raised while it was built or run.
    """
    device = open_device(cell.device)
    explained = device.explain(error)
    # a file or a network that refuses is no bug of the model
    places = () if explained or isinstance(error, OSError) else model_places(error)
    failure = explained or device.classify(error)
    return replace(failure, cause="model_bug", detail=with_places(failure.detail, places)) if places else failure


def library_claims(cell: Cell) -> tuple[Claim, ...]:
    """The claims that only the model's library knows, if they are for the cell's image size and classes."""
    from vitbench.models import describe_model

    if not is_external(cell.model):
        return ()
    card = describe_model(cell.model)
    fits = (card.image_size, card.num_classes, RGB) == (cell.image_size, cell.num_classes, cell.in_channels)
    return card.claims if fits else ()


def _load(model: nn.Module, cell: Cell, weights: WeightsFile) -> str:
    """Returns how ``model`` differs from the file. Raises CheckpointError if it does not fit or has changed."""
    from vitbench.models.weights.checkpoints import CheckpointError, load_checkpoint

    report = load_checkpoint(
        model, weights.path, replace_head=weights.replace_head, entry=weights.entry, grid=weights.grid
    )
    if report.digest != cell.weights.partition(":")[0]:
        raise CheckpointError(f"{report.path} has changed since the run began ({cell.weights} is now {report.digest})")
    return ", ".join(report.notes)
