"""Models on fake CPU tensors, which have shapes and types but no data; and which errors come from that."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import Optimizer

from vitbench.core.records import Cell
from vitbench.devices import open_device
from vitbench.metrics.flops import must_execute, needs_values
from vitbench.metrics.support.subject import Subject, empty_copies, torch_dtype
from vitbench.models.outputs import input_dtype

#: A custom operator does not state the shapes that it returns.
_NO_FAKE_KERNEL = (fake_tensor.UnsupportedOperatorException, fake_tensor.UnsupportedFakeTensorException)


def fake_mode() -> FakeTensorMode:
    """The mode that everything here runs in."""
    # fake tensors may mix with real ones that a model computed while it was built
    return FakeTensorMode(allow_non_fake_inputs=True)


def build_on_meta(subject: Subject) -> nn.Module:
    """The subject's model on ``meta``; built on the CPU and moved there if building it needs real tensors."""
    try:
        with torch.device("meta"):
            model = subject.build()
    except Exception as error:
        if not needs_real_tensors(error):
            raise
        with torch.device("cpu"):
            model = subject.build()
    return empty_copies(model, "meta")


def fake_model(subject: Subject, dtype: str | None = None) -> nn.Module:
    """A model of fake tensors on the CPU, cast to a cell's ``dtype`` as ``Subject.model`` is; inside ``fake_mode``."""
    with fake_tensor.unset_fake_temporarily():
        model = build_on_meta(subject)  # faster than a copy
        if model is vars(subject).get("meta_model"):  # a caller's own module exists only once
            model = copy.deepcopy(model)
    wanted = None if dtype is None else torch_dtype(dtype)
    return empty_copies(model, "cpu", None if wanted == input_dtype(model) else wanted)


def fake_subject(
    subject: Subject, run: Cell, make_optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None = None
) -> Subject:
    """The subject of a run with a fake model, batch, labels and optimizer (``LargestAdamW`` unless ``make_optimizer``
    makes another one); call it inside ``fake_mode`` only.
    """
    model = fake_model(subject, run.dtype).train(run.mode == "train")
    device = subject.device if subject.device.kind == "cpu" else open_device("cpu")
    fake = replace(subject, cell=run, device=device, build=lambda: model, _open=contextlib.ExitStack())
    # Subject cannot make these itself: fake parameters cannot be moved, and its generator draws real numbers
    vars(fake)["model"] = model
    if run.mode == "train":
        vars(fake)["optimizer"] = (make_optimizer or LargestAdamW)(model.parameters())
    return with_batch(fake, run.batch_size)


def with_batch(fake: Subject, batch_size: int) -> Subject:
    """A fake subject's model and optimizer with another batch; call it inside ``fake_mode`` only."""
    cell = replace(fake.cell, batch_size=batch_size)
    images = torch.empty(batch_size, cell.in_channels, *cell.image_size, dtype=torch_dtype(cell.dtype))
    other = replace(fake, cell=cell)
    made = {name: value for name, value in vars(fake).items() if name in ("model", "optimizer")}
    vars(other).update({**made, "batches": (images,), "labels": torch.empty(batch_size, dtype=torch.long)})
    return other


class LargestAdamW(torch.optim.AdamW):
    """AdamW reduced to the moment of its largest peak, with its state from the start.

    AdamW updates one parameter after the other. Each update holds a root and a quotient of the parameter's size beside
    the previous parameter's quotient. Only the two parameters with the largest sum are updated, which saves a thousand
    operators. The first step drops the state of parameters without a gradient.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        super().__init__(parameters)
        for parameter in self.param_groups[0]["params"]:
            if parameter.requires_grad:
                moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
                self.state[parameter] = {"step": torch.tensor(0.0), **moments}

    def step(self, closure: Any = None) -> Any:
        (group,) = self.param_groups
        everything = group["params"]
        with_grad = [one for one in everything if one.grad is not None]
        for parameter in everything:
            if parameter.grad is None:
                self.state.pop(parameter, None)
        if not with_grad:
            return None
        sizes = [one.numel() * one.element_size() for one in with_grad]
        most = max(range(len(with_grad)), key=lambda index: 2 * sizes[index] + (sizes[index - 1] if index else 0))
        group["params"] = with_grad[max(most - 1, 0) : most + 1]
        try:
            return super().step(closure)
        finally:
            group["params"] = everything


def reads_data(error: Exception) -> bool:
    """Whether the call failed because it reads the data of a tensor without data, or a shape that depends on it."""
    asked = (fake_tensor.DataDependentOutputException, fake_tensor.DynamicOutputShapeException)
    inside = getattr(error, "inner_exception", None) or error.__cause__
    return (
        isinstance(error, asked)
        or needs_values(error)
        or (isinstance(inside, Exception) and inside is not error and reads_data(inside))
    )


def needs_real_tensors(error: Exception) -> bool:
    """Whether the call failed only because its tensors have no data: it reads them, or an operator has no kernel."""
    return reads_data(error) or isinstance(error, _NO_FAKE_KERNEL) or must_execute(error)
