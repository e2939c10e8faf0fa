"""What a metric receives: one cell's model, its inputs and the ways to run them."""

from __future__ import annotations

import contextlib
import gc
import itertools
import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from vitbench.core.errors import Unsupported, VitbenchError
from vitbench.core.records import Cell
from vitbench.models.cards import Claim

if TYPE_CHECKING:
    import torch

    from vitbench.devices import Device


class NotFiniteError(VitbenchError):
    """An output or a loss is not finite: the measurement would not be of the intended computation."""

    cause = "not_finite"


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How long one process of a timed metric samples.

    It stops after ``seconds`` or ``max_samples``, whichever comes first, but not before ``min_samples`` steady ones.
    The first call of the process is not a sample, and the first sample of a turn is not steady.
    """

    seconds: float = 1.0
    min_samples: int = 10
    max_samples: int = 1000


class Trainer(Protocol):
    """Trains and tests a model for the accuracy metric; supplied by the worker."""

    def train(self, model: torch.nn.Module) -> Mapping[str, Any]:
        """Train ``model`` in place; returns images_seen, steps, duration_s, losses, recipe, budget (in words),
        class_sizes (training images of each class).
        """

    def evaluate(self, model: torch.nn.Module) -> Mapping[str, Any]:
        """Test it on held-out images; returns correct, total, loss, macro_f1, macro_f1_present (None where it is the
        same mean), classes_present, classes_without_images, num_classes (of the data), class_names, and class_f1,
        class_precision and class_recall with one value a class.
        """

    def save(self, model: torch.nn.Module) -> str:
        """Keep the checkpoint; returns its name inside the run folder, empty if none is kept."""


class Turns(Protocol):
    """Turns of a timed process with others; supplied by the worker."""

    #: The reference: its version, batch, threads and cores.
    reference_name: str
    #: For a measurement's method: how turns are taken with the reference, and without it.
    method: str
    method_without_reference: str

    def wait(self, *, last: bool = False, samples: Sequence[float] = ()) -> Mapping[str, Any]:
        """Give the turn up, in which ``samples`` (s) were taken, and wait for the next; with ``last``, wait only for
        the reference's turn after it.

        Returns what this turn lasts at least (``seconds`` and ``calls``), ``before`` (the reference's last turn) and
        ``after_last`` (its first one after this process's last turn), each with ``samples`` and ``cpu_seconds`` of its
        steps, or None. Of the turn that was given up: ``replay``, whether it is to be taken again, so that the budget
        does not pay for it, and its ``other_load`` (cores that other programs used, None if unknown).
        """


#: So many batches are timed in rotation, within this many bytes: a real input is not in the cache from the last call.
ROTATION = 8
ROTATION_BYTES = 64e6
#: Steps that a loss scaler may skip; it starts at 65,536 and halves its scale each time.
MOST_SKIPPED = 20


@dataclass(kw_only=True)
class Subject:
    """One cell in this process.

    ``build`` makes the model on the current device (``with torch.device("meta"): build()``); ``attention`` is the
    context of the cell's attention implementation; ``claims`` are the values that the model's library publishes for the
    cell's size and classes; ``rotates`` says whether calls take several batches in turn. Models, inputs and optimizer
    are made on first use and kept.
    """

    cell: Cell
    device: Device
    build: Callable[[], torch.nn.Module]
    attention: Callable[[torch.nn.Module], AbstractContextManager[Any]]
    budget: Budget = field(default_factory=Budget)
    trainer: Trainer | None = None
    claims: tuple[Claim, ...] = ()
    turns: Turns | None = None
    rotates: bool = False
    timing: Any = None  # kept by timing.forward_durations
    allocator: str = "ordinary allocator"
    memory_cap: str = ""  # what enforces the cell's memory limit; empty without one
    weights_note: str = ""  # how loaded weights differ from the file; known once the model is built
    _open: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def close(self) -> None:
        """Leave the attention context that the model runs in."""
        self._open.close()

    # on meta: shapes without data

    @cached_property
    def meta_model(self) -> torch.nn.Module:
        """The model on ``meta``."""
        import torch

        with torch.device("meta"):
            return empty_copies(self.build(), "meta")  # a caller's own module is moved to meta

    def meta_images(self, batch_size: int) -> torch.Tensor:
        """Images (batch_size, C, H, W) on ``meta``, of the type of numbers that the model takes there."""
        import torch

        from vitbench.models.outputs import input_dtype

        size = (batch_size, self.cell.in_channels, *self.cell.image_size)
        return torch.empty(*size, device="meta", dtype=input_dtype(self.meta_model))

    @contextlib.contextmanager
    def on_meta(self, batch_size: int, *, train: bool = False) -> Iterator[tuple[torch.nn.Module, torch.Tensor]]:
        """The model on ``meta`` and an input (batch_size, C, H, W), inside the attention context."""
        import torch

        model = self.meta_model.train(train)
        images = self.meta_images(batch_size)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not train:
            model.requires_grad_(False)  # an inference pass builds no graph
        try:
            with torch.device("meta"), self.attention(model):
                yield model, images
        finally:
            for parameter in trained:
                parameter.requires_grad_(True)
                parameter.grad = None

    # on the device

    @cached_property
    def model(self) -> torch.nn.Module:
        """The model on the cell's device, in the cell's dtype and mode.

        A model that takes images of the cell's dtype stays as it is, also where some of its parts have another one.
        """
        from vitbench.models.outputs import input_dtype

        model, dtype = self.build(), torch_dtype(self.cell.dtype)
        if input_dtype(model) != dtype:
            model = model.to(dtype)
        model = model.to(self.device.torch_device)
        # entered once for all calls: switching takes time that would be charged to a sample
        self._open.enter_context(self.attention(model))
        return model.train(self.cell.mode == "train")

    @cached_property
    def runner(self) -> Callable[[torch.Tensor], Any]:
        """``model``, compiled if the cell asks for it."""
        import torch

        runner: Callable[[torch.Tensor], Any] = torch.compile(self.model) if self.cell.compile else self.model
        return runner

    @property
    def images(self) -> torch.Tensor:
        """The first batch."""
        return self.batches[0]

    @cached_property
    def batches(self) -> tuple[torch.Tensor, ...]:
        """Batches (B, C, H, W) of normal numbers on the device by the cell's seed: several if it rotates."""
        import torch

        generator = torch.Generator().manual_seed(self.cell.seed)
        shape = (self.cell.batch_size, self.cell.in_channels, *self.cell.image_size)
        fitting = int(ROTATION_BYTES // (4 * math.prod(shape)))
        count = max(min(ROTATION, fitting), 1) if self.rotates else 1
        dtype = torch_dtype(self.cell.dtype)
        return tuple(torch.randn(*shape, generator=generator).to(self.device.torch_device, dtype) for _ in range(count))

    @cached_property
    def _rotation(self) -> Iterator[torch.Tensor]:
        return itertools.cycle(self.batches)

    @cached_property
    def labels(self) -> torch.Tensor:
        """Random classes (B,) on the device."""
        import torch

        generator = torch.Generator().manual_seed(self.cell.seed)
        labels = torch.randint(max(self.cell.num_classes, 1), (self.cell.batch_size,), generator=generator)
        return labels.to(self.device.torch_device)

    @cached_property
    def optimizer(self) -> torch.optim.Optimizer:
        """AdamW with torch's defaults, as in most ViT recipes. Raises Unsupported for weights in fp16, and for none."""
        import torch

        check_trains(self.cell.dtype)
        if not any(parameter.requires_grad for parameter in self.model.parameters()):
            raise Unsupported("the model has no parameter that requires a gradient, so that nothing is trained")
        return torch.optim.AdamW(self.model.parameters(), lr=1e-4)

    @cached_property
    def scaler(self) -> torch.amp.GradScaler:
        """The loss scaler for fp16 autocast; disabled for every other dtype."""
        import torch

        enabled = self.cell.dtype == "amp" and self.device.amp_dtype == "fp16"
        return torch.amp.GradScaler(self.device.kind, enabled=enabled)

    def prepare(self) -> None:
        """Make everything that a call needs, so that no call pays for it."""
        _ = self.runner, self.batches
        if self.cell.mode == "train":
            _ = self.optimizer, self.scaler, self.labels

    def forward(self) -> Any:
        """One forward pass of one batch without gradients; returns the model's output."""
        import torch

        with torch.inference_mode(), self.device.autocast(self.cell.dtype):
            return self.runner(next(self._rotation))

    def step(self) -> torch.Tensor:
        """One training step (zero_grad, forward, loss, backward, AdamW); returns the loss on the device."""
        from vitbench.models.outputs import training_loss

        self.optimizer.zero_grad(set_to_none=True)
        with self.device.autocast(self.cell.dtype):
            loss = training_loss(self.model, self.runner(next(self._rotation)), self.labels)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss

    def run_once(self) -> None:
        """One forward pass or training step, by the cell's mode. Raises NotFiniteError if the result is not finite."""
        import torch

        from vitbench.models.outputs import named_tensors

        if self.cell.mode == "train":
            loss = float(self.step().detach())
            if not torch.isfinite(torch.tensor(loss)):
                raise NotFiniteError(f"the loss of a training step is {loss}, not a finite number")
            return
        output = self.forward()
        tensors = [tensor for _, tensor in named_tensors(output)]
        if not tensors:
            raise Unsupported(f"the model returns {type(output).__name__}, which holds no tensors")
        for tensor in tensors:
            bad = int((~torch.isfinite(tensor)).sum())
            if bad:
                raise NotFiniteError(f"{bad} of {tensor.numel()} output values are not finite")

    def warm_up(self) -> None:
        """``run_once``; with a loss scaler (fp16) until the optimizer takes a step: the first scales may make gradients
        overflow, and such steps are skipped.

        Raises NotFiniteError as ``run_once`` does, or if no step is taken.
        """
        for _ in range(MOST_SKIPPED):
            self.run_once()
            if self.cell.mode != "train" or not self.scaler.is_enabled() or self.optimizer.state:
                return
        raise NotFiniteError(f"{MOST_SKIPPED} training steps were skipped, as their gradients overflow in fp16")

    def resident_bytes(self) -> int:
        """Bytes kept between calls: weights, buffers, batches, and in training labels and optimizer state."""
        tensors = [*self.model.parameters(), *self.model.buffers(), *self.batches]
        if self.cell.mode == "train":
            tensors.append(self.labels)
            for state in self.optimizer.state.values():
                tensors += [value for value in state.values() if hasattr(value, "element_size")]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@contextlib.contextmanager
def without_garbage_collection(*, collect: bool = True) -> Iterator[None]:
    """Collect no garbage inside, as that would be charged to the model; ``collect`` it once before."""
    if collect:
        gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def check_trains(dtype: str) -> None:
    """Raises Unsupported for fp16 weights: squares of gradients below about 0.005 and AdamW's eps are 0 in fp16, so
    that its first step divides by 0.
    """
    if dtype == "fp16":
        raise Unsupported("training with weights in fp16 overflows at AdamW's first step: amp trains in fp16 and fp32")


def empty_copies(model: torch.nn.Module, device: str, dtype: torch.dtype | None = None) -> torch.nn.Module:
    """The model with empty tensors on ``device`` instead of its own: parameters, buffers, and other attributes of its
    modules. Shared tensors stay shared. ``dtype`` is that of floating-point parameters and buffers. Raises Unsupported
    for a module of TorchScript, whose tensors cannot be replaced.
    """
    import torch

    if isinstance(model, torch.jit.ScriptModule):
        raise Unsupported("a TorchScript module cannot be counted on meta. Give the module that it was made from")

    moved: dict[int, torch.Tensor] = {}
    kept: list[Any] = []  # an id() must not come again

    def empty(tensor: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
        if device == "meta" and tensor.is_meta:
            return tensor
        if id(tensor) not in moved:
            kept.append(tensor)
            wanted = dtype if tensor.is_floating_point() else None
            new = torch.empty_like(tensor, device=device, dtype=wanted, requires_grad=False)
            if isinstance(tensor, torch.nn.Parameter):
                new = torch.nn.Parameter(new, requires_grad=tensor.requires_grad)
            moved[id(tensor)] = new
        return moved[id(tensor)]

    def empty_unless_scalar(tensor: torch.Tensor) -> torch.Tensor:
        # a CPU scalar combines with tensors of every device, and the model may read it
        known = id(tensor) in moved
        return tensor if device == "meta" and tensor.dim() == 0 and tensor.is_cpu and not known else empty(tensor)

    modules = list(model.modules())
    for module in modules:
        tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for table in tables:
            table.update({name: empty(one, dtype) for name, one in table.items() if one is not None})
    own_tables = vars(torch.nn.Module())  # hooks and the like, and the two handled above
    for module in modules:
        for name, value in list(vars(module).items()):
            if name not in own_tables:
                vars(module)[name] = _replaced(value, empty_unless_scalar)
    return model


def _replaced(value: Any, empty: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """A plain attribute with its tensors replaced: a tensor, or lists, tuples and dicts of them. Without a tensor it is
    ``value`` itself, which several modules may share.
    """
    import torch

    if isinstance(value, torch.Tensor):
        return empty(value)
    if type(value) in (list, tuple):
        several = [_replaced(one, empty) for one in value]
        return value if all(map(operator.is_, several, value)) else type(value)(several)
    if type(value) is dict:
        named = {key: _replaced(one, empty) for key, one in value.items()}
        return value if all(named[key] is value[key] for key in value) else named
    return value


def torch_dtype(name: str) -> torch.dtype:
    """The type of numbers of a cell's weights and images: ``amp`` has fp32; only a module of one's own is fp64."""
    import torch

    names = {"fp32": "float32", "amp": "float32", "bf16": "bfloat16", "fp16": "float16", "fp64": "float64"}
    dtype: torch.dtype = getattr(torch, names[name])
    return dtype


def dtype_of(model: torch.nn.Module) -> str:
    """The cell's dtype of a module as it is: ``fp32``, ``bf16``, ``fp16`` or ``fp64``, what it takes as images."""
    from vitbench.models.outputs import input_dtype

    taken = input_dtype(model)
    return next(name for name in ("fp32", "bf16", "fp16", "fp64") if torch_dtype(name) == taken)
