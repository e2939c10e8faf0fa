"""Find the largest batch that fits into memory without allocating it, and say what the peak is made of."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from vitbench.analysis.layers import blocks_of
from vitbench.analysis.memory_cuda import BESIDE_BYTES, BLOCK_BYTES, LABEL, ForeachAdamW, ModelledCuda, cuda_operators
from vitbench.analysis.model_summary import check_request, expand_names, inspect_model, open_subject
from vitbench.core.errors import Unsupported, UsageError, VitbenchError
from vitbench.core.records import ATTENTIONS, DTYPES, MODES, RGB, parse_image_size
from vitbench.devices import canonical_device_name, find_devices, open_device
from vitbench.devices.base import split_name
from vitbench.metrics import Subject
from vitbench.metrics.support.fake_models import LargestAdamW
from vitbench.metrics.support.in_process import subject_of
from vitbench.metrics.support.memory_trace import BatchTrace, Peak
from vitbench.models import describe_model, use_attention
from vitbench.models.cards import ModelCard
from vitbench.suites.schema import parse_bytes

#: On the CPU and on CUDA, where torch updates all parameters at once. Adam's tensors are those of AdamW; SGD, with its
#: momentum, works in place.
#: A smaller number lacks its unit: nobody has 16 bytes.
_LEAST_BYTES = 1024
_SGD = functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9)
_OPTIMIZERS: dict[str, tuple[Callable[..., torch.optim.Optimizer], Callable[..., torch.optim.Optimizer]]] = {
    "adamw": (LargestAdamW, ForeachAdamW),
    "adam": (LargestAdamW, ForeachAdamW),
    "sgd": (_SGD, _SGD),
}

#: What may make a batch larger, by mode: options and the fields of a Setting that they change.
_CHANGES: dict[str, dict[str, dict[str, Any]]] = {
    "train": {
        "--dtype amp": {"dtype": "amp"},
        "--checkpointing": {"checkpointing": True},
        "--dtype amp --checkpointing": {"dtype": "amp", "checkpointing": True},
        "--optimizer sgd": {"optimizer": "sgd"},
        "--attention fused": {"attention": "fused"},
    },
    "infer": {
        "--dtype amp": {"dtype": "amp"},
        "--dtype bf16": {"dtype": "bf16"},
        "--attention fused": {"attention": "fused"},
    },
}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How a model runs; ``device`` is ``cpu`` or a CUDA device. Raises UsageError for an unknown value, and for options
    of training in inference.
    """

    mode: str = "train"
    dtype: str = "fp32"
    attention: str = "fused"
    optimizer: str = "adamw"
    checkpointing: bool = False
    device: str = "cpu"

    def __post_init__(self) -> None:
        known = {"mode": MODES, "dtype": DTYPES, "attention": ATTENTIONS, "optimizer": _OPTIMIZERS}
        for name, values in known.items():
            if getattr(self, name) not in values:
                raise UsageError(f"--{name} {getattr(self, name)!r} is not known: give {', '.join(values)}")
        if self.mode == "infer" and self.checkpointing:
            raise UsageError("--checkpointing is for training, which alone keeps activations: give --mode train")

    @property
    def on_cuda(self) -> bool:
        """Whether the memory is that of a CUDA device."""
        return split_name(self.device)[0] == "cuda"


@dataclass(frozen=True, kw_only=True)
class Fit:
    """The largest batch within ``memory_bytes``; 0 if not even one image fits.

    ``peak`` is that of the largest batch, or of one image; one image more adds ``image_bytes``, and ``fixed_bytes`` is
    the peak without as many for each image. ``beside_bytes`` of the memory are left to what is no tensor (CUDA).
    ``changes``: options and the largest batch with them, or the reason why it is unavailable; None: not asked.
    """

    memory_bytes: int
    setting: Setting
    largest_batch: int
    peak: Peak
    image_bytes: int
    fixed_bytes: int
    beside_bytes: int
    changes: Mapping[str, int | str | None]
    method: str


def fit(
    model: str | nn.Module,
    *,
    memory: int | str,
    image_size: int | str | None = None,
    num_classes: int | None = None,
    in_channels: int = RGB,
    device: str = "auto",
    check: bool = True,
    **setting: Any,
) -> Fit:
    """The largest batch of a model that fits into ``memory`` (``16GiB`` or bytes), without allocating it.

    ``model`` is a name or a module of your own, which needs ``image_size``. ``device``: see ``choose_device``;
    ``setting``: the other fields of ``Setting`` (mode, dtype, attention, optimizer, checkpointing). ``check`` False
    leaves out the direct trace that confirms the answer.

    Raises UsageError for wrong arguments, Unsupported for a model that no trace without data can follow.
    """
    check_request(image_size, num_classes)
    size = None if image_size is None else parse_image_size(image_size)
    if isinstance(model, str):
        card = describe_model(model)
        classes = card.num_classes if num_classes is None else num_classes
        subject = open_subject(model, size or card.image_size, classes, in_channels)
    elif size is None:
        raise UsageError("A module of your own does not state its image size. Give image_size=, in pixels")
    else:
        subject = open_subject(type(model).__qualname__, size, num_classes or 0, in_channels)
        subject = replace(subject, build=lambda: copy.deepcopy(model))
    return _fit(subject, _memory(memory), Setting(device=choose_device(device), **setting), check=check)


def fit_models(
    names: Sequence[str],
    *,
    memory: str,
    image_size: str | None = None,
    num_classes: int | None = None,
    in_channels: int = RGB,
    check: bool = True,
    compare: bool = False,
    **setting: Any,
) -> list[dict[str, Any]]:
    """``fit`` for each model, as dicts; ``compare`` adds the largest batch with other options. A model that fails has
    ``error`` and ``usage`` (see ``inspect_model``). Raises UsageError for what no model could take.
    """
    check_request(image_size, num_classes)
    memory_bytes, asked = _memory(memory), Setting(**setting)

    def inspect(_: ModelCard, subject: Subject) -> dict[str, Any]:
        found = asdict(_fit(subject, memory_bytes, asked, check=check, compare=compare))
        return {**found.pop("setting"), **found}

    return [
        inspect_model(name, inspect, image_size=image_size, num_classes=num_classes, in_channels=in_channels)
        for name in expand_names(names)
    ]


def choose_device(name: str) -> str:
    """The device whose memory is asked for; ``auto`` is this machine's GPU, else the CPU. It need not be there.

    Raises UsageError for a device that no trace models.
    """
    name = canonical_device_name(name)
    if name == "auto":
        return next((one for one in find_devices() if split_name(one)[0] == "cuda"), "cpu")
    if split_name(name)[0] not in ("cpu", "cuda"):
        raise UsageError(f"--device {name!r}: nothing models its memory. Give cpu or cuda")
    return name


def _fit(subject: Subject, memory: int, setting: Setting, *, check: bool, compare: bool = False) -> Fit:
    trace, beside_bytes = _trace(subject, setting)
    largest = trace.largest(memory - beside_bytes)
    peak = trace.peak(max(largest, 1))
    image_bytes = trace.peak(peak.batch + 1).bytes - peak.bytes
    method = f"live tensor bytes, affine in the batch by traces on fake tensors at 2 and 3, torch {torch.__version__}"
    method = f"{LABEL}: {method}" if setting.on_cuda else method
    if check and largest:
        direct = trace.direct(largest)
        if direct.bytes != peak.bytes:
            raise VitbenchError(
                f"The peak of {largest} images is {peak.bytes:,} bytes by arithmetic and {direct.bytes:,} bytes in a "
                "direct trace: its tensors do not grow evenly with the batch. Use vitbench frontier"
            )
        method += f"; a direct trace at {largest} confirms it"
    others = {options: replace(setting, **change) for options, change in _CHANGES[setting.mode].items()}
    changes: dict[str, int | str | None] = {options: None for options, other in others.items() if other != setting}
    for options in changes if compare else ():
        try:
            other, beside = _trace(subject, others[options])
            changes[options] = other.largest(memory - beside)
        except Unsupported as reason:
            changes[options] = str(reason)
    return Fit(
        memory_bytes=memory,
        setting=setting,
        largest_batch=largest,
        peak=peak,
        image_bytes=image_bytes,
        fixed_bytes=peak.bytes - peak.batch * image_bytes,
        beside_bytes=beside_bytes,
        changes=changes,
        method=method,
    )


def _trace(subject: Subject, setting: Setting) -> tuple[BatchTrace, int]:
    """The trace of a model in a setting, and the bytes that are left beside its tensors."""

    def build() -> nn.Module:
        model = subject.build()
        if setting.checkpointing:
            checkpoint_blocks(model)
        return model

    @contextlib.contextmanager
    def operators(model: nn.Module) -> Iterator[None]:
        fused = setting.attention == "fused"
        on_cuda = cuda_operators(fused=fused) if setting.on_cuda else contextlib.nullcontext()
        with use_attention(model, setting.attention), on_cuda:
            yield

    cell = replace(subject.cell, mode=setting.mode, dtype=setting.dtype, attention=setting.attention)
    device = ModelledCuda(cell.device) if setting.on_cuda else open_device("cpu")
    one = replace(subject_of(cell, build), device=device, attention=operators)
    trace = BatchTrace(one, _OPTIMIZERS[setting.optimizer][setting.on_cuda])
    return trace, BESIDE_BYTES + BLOCK_BYTES * trace.storages if setting.on_cuda else 0


def checkpoint_blocks(model: nn.Module) -> None:
    """Let a model recompute the activations of its blocks in the backward pass.

    timm's own ``set_grad_checkpointing`` where there is one, else torch.utils.checkpoint (``use_reentrant=False``)
    around each block. Raises Unsupported for a model whose blocks are not one list.
    """
    enable: Any = getattr(model, "set_grad_checkpointing", None)
    if enable is not None:
        with contextlib.suppress(AssertionError):  # timm's answer for a model that does without
            enable(True)
            return
    blocks = list(blocks_of(model).values())
    if not blocks:
        raise Unsupported("--checkpointing: the model has no list of blocks to recompute")
    from torch.utils.checkpoint import checkpoint

    for block in blocks:
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)


def _memory(text: int | str) -> int:
    try:
        amount = parse_bytes(text)
    except ValueError as error:
        raise UsageError(f"--memory: {error}") from error
    if amount < _LEAST_BYTES:
        raise UsageError(f"--memory: {text!r} is {amount} bytes. Give a unit, such as 16GiB")
    return amount
