"""FLOPs of one forward pass of one image, counted in torch's dispatcher, and by fvcore and thop.

A multiply-add is two FLOPs. Counted are matrix products, convolutions and attention; norms, softmax and activations
are not. A value without the work of an operator that no formula covers is a lower bound.

A model whose operators read the image's values (it keeps tokens above a threshold, exits early, calls
``tensor.item()``) cannot run on ``meta``. It is executed on the CPU with several images.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vitbench.core.errors import Unsupported
from vitbench.core.records import LOWER_BOUND, Cell, Measurement
from vitbench.core.registry import METRICS, Column, Yields
from vitbench.metrics.support.fvcore_thop import OtherCount, count_by_fvcore, count_by_thop
from vitbench.metrics.support.subject import Subject
from vitbench.models.cards import PRETRAINED

if TYPE_CHECKING:
    import torch

    from vitbench.metrics.support.operator_counter import Counts

#: Images for a model whose FLOPs depend on the image.
PICTURES = 16

#: torch's errors for reading the values of a tensor on ``meta``, or a shape that depends on them.
_ASKS_FOR_VALUES = re.compile(
    r"Tensor\.item\(\) cannot be called on meta tensors"  # also bool(), int(), float(), a tensor as an index
    r"|Cannot copy out of meta tensor"  # .cpu(), .tolist()
    r"|can't convert meta device type tensor to numpy"
    r"|register_meta function for torch\.nonzero\(\)"  # also x[mask] and torch.where(mask)
    r"|cannot repeat_interleave a meta tensor without output_size"
    r"|output Tensor with data dependent shape"  # torchvision::nms
    r"|Could not guard on data-dependent expression"
)
#: An operator without a kernel on ``meta``; its tags tell whether it depends on data.
_HAS_NO_KERNEL = re.compile(r"(?P<library>\w+)::(?P<name>\w+)\S* attempted to run this operator with Meta tensors")

#: An operator that has a kernel for some device, but none for tensors without data.
_NOT_ON_META = re.compile(
    r"attempted to run this operator with Meta tensors|could not find the fake impl|There was no fake impl registered"
    r"|with arguments from the '(Sparse\w*|Quantized)?Meta' backend"
)


def needs_values(error: Exception) -> bool:
    """Whether a forward pass on ``meta`` failed because it reads the image's values, or a shape that needs them."""
    if not isinstance(error, RuntimeError | TypeError):  # NotImplementedError is a RuntimeError
        return False
    text = str(error)
    if _ASKS_FOR_VALUES.search(text):
        return True
    missing = _HAS_NO_KERNEL.search(text)
    return missing is not None and _depends_on_data(missing["library"], missing["name"])


def must_execute(error: Exception) -> bool:
    """Whether a forward pass on ``meta`` failed for a reason that a run on the CPU does not have: it needs values, or
    an operator has no kernel there (a custom one, or one of sparse or quantised tensors).
    """
    return needs_values(error) or (isinstance(error, RuntimeError) and bool(_NOT_ON_META.search(str(error))))


def _depends_on_data(library: str, name: str) -> bool:
    import torch

    packet = getattr(getattr(torch.ops, library), name, None)
    tags = {tag for overload in packet.overloads() for tag in getattr(packet, overload).tags} if packet else set()
    return bool(tags & {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape})


def executed_method(flops: Sequence[int]) -> str:
    """How the FLOPs of several images were counted, with their minimum and maximum."""
    return (
        f"executed on the CPU, mean of {len(flops)} pictures of random numbers, from {min(flops)} to {max(flops)} FLOPs"
    )


def execute(subject: Subject) -> list[Counts]:
    """Run the cell's model on the CPU, one image at a time; returns the counts of each.

    The images (1, C, H, W) are standard normal numbers drawn one after the other from the cell's seed; the weights are
    those that the cell builds. Raises what the model raises.
    """
    import torch

    from vitbench.metrics.support.operator_counter import LeavesTorch, OperatorCounter

    model, images = real_model(subject)
    generator = torch.Generator().manual_seed(subject.cell.seed)
    counts = []
    with torch.device("cpu"), torch.no_grad(), subject.attention(model), _same_operators_as_on_meta():
        for _ in range(PICTURES):
            image = torch.randn(1, subject.cell.in_channels, *subject.cell.image_size, generator=generator)
            image = image.to(images.dtype)
            with OperatorCounter() as counter, LeavesTorch(counter):
                model(image)
            counts.append(counter.counts)
    return counts


@contextlib.contextmanager
def _same_operators_as_on_meta() -> Iterator[None]:
    """Inside, nn.MultiheadAttention, oneDNN's recurrent layers and fused attention run in parts, as on ``meta``, unless
    the model selects a kernel.
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from vitbench.models import without_fast_path

    onednn: Any = torch.backends.mkldnn
    before = onednn.enabled
    try:
        onednn.enabled = False
        with without_fast_path(), sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        onednn.enabled = before


@METRICS.measured(
    "flops",
    process="static",
    modes=("infer", "train"),
    yields=[
        Yields("flops", "FLOP", "exact", "less", gates=True, column=Column("GFLOPs", "", 1e-9, main=True)),
        Yields("macs", "MAC", "exact", "less", gates=True, column=Column("GMACs", "", 1e-9, main=True)),
        Yields("activations", "element", "exact", "less", column=Column("activations", "M", 1e-6)),
    ],
    summary="FLOPs, multiply-adds and activations of one image's forward pass, counted on meta, or executed",
)
def measure_flops(subject: Subject) -> Iterator[Measurement]:
    """Counted on ``meta``; if the forward pass reads the image's values, or an operator has no kernel there, the mean
    over images on the CPU, see ``execute``. ``activations`` are the elements that products output (``Counts``).

    Raises Unsupported if a product among the operators has no FLOPs that its shapes tell.
    """
    import torch

    from vitbench.metrics.support.operator_counter import OperatorCounter, describe_uncounted, sum_uncounted

    depends = False
    with subject.on_meta(1) as (model, images):
        try:
            with OperatorCounter() as on_meta, torch.no_grad():
                model(images)
        except (RuntimeError, TypeError) as error:
            if not must_execute(error):
                raise
            depends = True
    counted = execute(subject) if depends else [on_meta.counts]
    each = [counts.flops for counts in counted]
    flops = round(sum(each) / len(each))
    outputs = round(sum(counts.activations for counts in counted) / len(counted))
    details = [f"min {min(each)}, max {max(each)} FLOPs, {_weights_of(subject.cell)}"] if depends else []
    uncounted = {name: calls / len(counted) for name, calls in sum_uncounted(counted).items()}
    if uncounted:
        details.append(LOWER_BOUND + describe_uncounted(uncounted))
    how = executed_method(each) if depends else "dispatched on meta"
    method = f"operators {how}, batch of 1, torch {torch.__version__}"
    for metric, unit, value, what in (
        ("flops", "FLOP", flops, "matrix products, convolutions and attention"),
        ("macs", "MAC", flops // 2, "FLOPs / 2"),
        ("activations", "element", outputs, "elements that these output, the scores of attention included"),
    ):
        one = Measurement.single(metric, unit, value, f"{method}; {what}", "; ".join(details), executed=depends)
        yield replace(one, lower_bound=bool(uncounted))


def _weights_of(cell: Cell) -> str:
    """The weights of an executed count; those of a checkpoint are not loaded for counting."""
    if cell.weights == "given":
        return "with the module's own weights"
    if cell.weights.startswith(f"{PRETRAINED}:"):
        return "with the published weights"
    return f"with the weights as built, seed {cell.seed}"


@METRICS.measured(
    "fvcore",
    process="counters",
    modes=("infer", "train"),
    yields=[Yields("flops_fvcore", "FLOP", "tool", "less")],
    summary="the same as fvcore counts it (misses fused attention; adds norms)",
)
def measure_fvcore(subject: Subject) -> Iterator[Measurement]:
    """fvcore traces a real run and counts multiply-adds, doubled here. Its failures are ``unsupported``."""
    method = f"2 x fvcore {importlib.metadata.version('fvcore')} FlopCountAnalysis on the CPU, batch of 1"
    yield _count_by(count_by_fvcore, subject, "flops_fvcore", method)


@METRICS.measured(
    "thop",
    process="counters",
    modes=("infer", "train"),
    yields=[Yields("flops_thop", "FLOP", "tool", "less")],
    summary="the same as thop counts it (modules only; misses @, F.linear and bare parameters)",
)
def measure_thop(subject: Subject) -> Iterator[Measurement]:
    """thop hooks modules in a real run and counts multiply-adds, doubled here. Its failures are ``unsupported``."""
    method = f"2 x thop {importlib.metadata.version('thop')} profile on the CPU, batch of 1"
    yield _count_by(count_by_thop, subject, "flops_thop", method)


def _count_by(count: Callable[..., OtherCount], subject: Subject, metric: str, method: str) -> Measurement:
    model, images = real_model(subject)
    try:
        with subject.attention(model):
            found = count(model, images)
    except Unsupported as reason:
        return Measurement.absent(metric, "FLOP", "unsupported", str(reason), method)
    detail = ""
    if found.missed is not None:
        missed = ", ".join(f"{name} x{calls}" for name, calls in sorted(found.missed.items()))
        detail = f"operators without a formula: {missed or 'none'}"
    return Measurement.single(metric, "FLOP", found.total, method, detail)


def real_model(subject: Subject) -> tuple[torch.nn.Module, torch.Tensor]:
    """The cell's model in eval mode on the CPU, and one image of zeros (1, C, H, W)."""
    import torch

    from vitbench.models.outputs import input_dtype

    with torch.device("cpu"):  # neither tool depends on the device, and the GPU's memory stays untouched
        # gradients stay on, as users of these tools leave them: without them nn.MultiheadAttention takes its fast path,
        # which fvcore does not see
        model = subject.build().to("cpu").eval()
        return model, torch.zeros(1, subject.cell.in_channels, *subject.cell.image_size, dtype=input_dtype(model))
