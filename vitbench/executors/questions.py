"""What a worker answers before anything is measured: questions about devices, models, weights and data."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vitbench.core.errors import UsageError
from vitbench.devices import find_devices, open_device
from vitbench.executors.protocol import Answer, Calibrate, Describe, Digest, Emit, Fetch, Inspect, Match, TryWeights
from vitbench.metrics.support.in_process import make_subject

Values = dict[str, Any]


def describe(question: Describe) -> Iterator[Values]:
    from vitbench.devices.host.environment import describe_libraries

    devices = {name: open_device(name).describe() for name in find_devices()}
    yield {"devices": devices, "libraries": describe_libraries()}


def match(question: Match) -> Iterator[Values]:
    from vitbench.models.zoo import match_external

    for pattern in question.patterns:
        yield {"pattern": pattern, "models": match_external(pattern)}


def inspect(question: Inspect) -> Iterator[Values]:
    from vitbench.models import describe_model

    for name in question.models:
        card = describe_model(name)
        yield {
            "model": name,
            "image_size": list(card.image_size),
            "num_classes": card.num_classes,
            "published_weights": card.published_weights,
            "published_classes": card.published_classes,
        }


def digest(question: Digest) -> Iterator[Values]:
    from vitbench.models.weights.checkpoints import digest_of
    from vitbench.models.weights.claimed import size_in_file

    path = question.weights.path
    size = {"image_size": list(size_in_file(question.model, path))} if question.model else {}
    yield {"digest": digest_of(path)[:16], **size}


def try_weights(question: TryWeights) -> Iterator[Values]:
    make_subject(question.cell, question.weights).build()
    yield {}


def fetch(question: Fetch) -> Iterator[Values]:
    from vitbench.training.data.datasets import describe_data, load_images

    info = describe_data(question.data, root=Path(question.data_dir) if question.data_dir else None, download=True)
    load_images(info, "test", image_size=(8, 8), images=info.num_classes, download=True)
    yield {}


def calibrate(question: Calibrate) -> Iterator[Values]:
    """On a small transformer encoder layer."""
    import torch

    torch.set_num_threads(question.threads)
    device = open_device(question.device)
    batch, tokens, width, hidden = 8, 65, 256, 1024
    layer = torch.nn.TransformerEncoderLayer(width, 4, hidden, batch_first=True, norm_first=True).to(
        device.torch_device
    )
    inputs = torch.randn(batch, tokens, width, device=device.torch_device)
    flops = 2 * batch * (tokens * (4 * width**2 + 2 * width * hidden) + 2 * tokens**2 * width)
    with torch.no_grad():
        for _ in range(5):  # the first calls prepare kernels
            layer(inputs)
        device.synchronize()
        begin, calls = time.perf_counter(), 0
        while calls < 3 or time.perf_counter() - begin < 0.2:
            layer(inputs)
            device.synchronize()
            calls += 1
        yield {"flops_per_s": flops * calls / (time.perf_counter() - begin)}


ANSWERS: dict[type, Callable[[Any], Iterator[Values]]] = {
    Describe: describe,
    Match: match,
    Inspect: inspect,
    Digest: digest,
    TryWeights: try_weights,
    Fetch: fetch,
    Calibrate: calibrate,
}


def answer(question: Any, emit: Emit) -> bool:
    """Emit the answers to a question; a UsageError becomes the last one. The process may take another task."""
    try:
        for values in ANSWERS[type(question)](question):
            emit(Answer(values=values))
    except UsageError as error:
        emit(Answer(error=str(error)))
    return True
