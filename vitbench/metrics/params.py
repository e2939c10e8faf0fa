"""Parameters and buffers, and the parameters that get no gradient in a training step."""

from __future__ import annotations

from collections.abc import Iterator

from vitbench.core.records import Measurement
from vitbench.core.registry import METRICS, Column, Yields
from vitbench.metrics.support.subject import Subject


@METRICS.measured(
    "params",
    process="static",
    modes=("infer", "train"),
    yields=[
        Yields("params", "parameter", "exact", "less", gates=True, column=Column("params", "M", 1e-6, main=True)),
        Yields("trainable_params", "parameter", "exact", "less", gates=True, column=Column("trainable", "M", 1e-6)),
        Yields("params_bytes", "byte", "exact", "less", gates=True),
        Yields("buffers", "element", "exact", "less", gates=True, column=Column("buffers", "elements")),
        Yields("buffers_bytes", "byte", "exact", "less", gates=True),
    ],
    summary="parameters (total, trainable, bytes) and buffers",
)
def measure_params(subject: Subject) -> Iterator[Measurement]:
    """Counts over ``parameters()`` and ``buffers()`` (shared tensors once) of the model on ``meta``."""
    import torch

    method = f"sum over parameters() and buffers() of the model on meta, torch {torch.__version__}"
    model = subject.meta_model
    parameters, buffers = list(model.parameters()), list(model.buffers())
    yield Measurement.single("params", "parameter", sum(p.numel() for p in parameters), method)
    trainable = sum(p.numel() for p in parameters if p.requires_grad)
    yield Measurement.single("trainable_params", "parameter", trainable, method)
    params_bytes = sum(p.numel() * p.element_size() for p in parameters)
    yield Measurement.single("params_bytes", "byte", params_bytes, f"{method}, in the dtype that it is built in")
    yield Measurement.single("buffers", "element", sum(b.numel() for b in buffers), method)
    yield Measurement.single("buffers_bytes", "byte", sum(b.numel() * b.element_size() for b in buffers), method)


@METRICS.measured(
    "params_without_gradient",
    process="static",
    modes=("infer", "train"),
    yields=[
        Yields("params_without_gradient", "parameter", "exact", "less", gates=True, column=Column("without gradient"))
    ],
    summary="trainable parameters that receive no gradient in a training step",
)
def measure_params_without_gradient(subject: Subject) -> Iterator[Measurement]:
    """A backward pass on ``meta``; ``unsupported``, with the reason, for a model that has none there."""
    import torch

    name, unit = "params_without_gradient", "parameter"
    method = f"parameters whose .grad is None after a backward of the training loss on meta, torch {torch.__version__}"
    try:
        dead = parameters_without_gradient(subject)
    except Exception as error:  # an inference-only model keeps its other counts
        reason = f"a training step of this model does not run on meta: {type(error).__name__}: {error}"
        yield Measurement.absent(name, unit, "unsupported", reason.splitlines()[0], method)
        return
    detail = ", ".join(list(dead)[:4]) + (f" and {len(dead) - 4} more tensors" if len(dead) > 4 else "")
    yield Measurement.single(name, unit, sum(dead.values()), method, detail)


def parameters_without_gradient(subject: Subject) -> dict[str, int]:
    """The sizes of the trainable parameters that have no gradient after one backward pass on ``meta``, by name."""
    import torch

    from vitbench.models.outputs import training_loss

    with subject.on_meta(2, train=True) as (model, images):  # two images: batch norm needs them
        labels = torch.empty(2, dtype=torch.long, device="meta")
        training_loss(model, model(images), labels).backward()
        # read inside: on_meta resets the gradients when it ends
        return {name: p.numel() for name, p in model.named_parameters() if p.requires_grad and p.grad is None}
