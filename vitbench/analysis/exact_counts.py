"""What a lock holds of a model, counted in this process without a device and without a number: tensors are shapes here.

On ``meta``: parameters, the state dict, FLOPs, which parameters get no gradient. On fake CPU tensors, which behave as
the CPU's own without holding any numbers: output, operators, tensor bytes, and where ``torch.compile`` breaks its
graph. All are the same on each machine that has the same torch.
"""

from __future__ import annotations

import contextlib
import copy
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch._dynamo
import torch._dynamo.backends.debugging
import torch.fx.experimental.symbolic_shapes
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from vitbench.analysis.flops import OperatorCounter
from vitbench.core.errors import Unsupported
from vitbench.core.records import Cell
from vitbench.core.text import one_line
from vitbench.devices import open_device
from vitbench.devices.failures import OF_THE_HOST, describe_error
from vitbench.metrics.flops import needs_values
from vitbench.metrics.memory import account_call
from vitbench.metrics.support.subject import CHANNELS, Subject, empty_copies
from vitbench.models.outputs import training_loss

#: Two pictures: a norm over the batch can do with no less in training.
_FEW = 2
#: Bookkeeping of torch's own, by the library that an operator belongs to.
_NO_OPERATORS = ("prim", "profiler")
_LONGEST_REASON = 240
_DEPENDS = "its forward pass depends on the numbers in the picture"
#: The folders before a file in one of torch's texts.
_FOLDERS = re.compile(r"""(?<![\w./:])(?:[A-Za-z]:)?[\\/](?:[^\s'"<>|:\\/]+[\\/])+""")
#: Where an object lies in this process.
_ADDRESS = re.compile(r"\b0x[0-9a-fA-F]+")

Answer = dict[str, Any]


def count_model(subject: Subject, runs: Sequence[Cell], *, bound: bool = True) -> Iterator[Answer]:
    """An answer for the model, then one for each of ``runs`` (cells of the same model that differ in dtype, batch and
    mode), in order.

    An answer has ``figures`` and ``absent`` (the reasons for what cannot be told), or of a run that fails ``failed``,
    why. ``bound``: also what depends on torch's version: operators, tensor bytes, graph breaks (of the model as it
    infers, or trains if no run infers: a trace takes more than all the rest). Raises whatever the model raises while it
    is built or run on ``meta``, unless that is for want of numbers.
    """
    figures, absent = _on_meta(subject)
    if bound:
        infers = not runs or any(run.mode == "infer" for run in runs)
        try:
            figures["graph_breaks"] = count_graph_breaks(subject, train=not infers)
        except Unsupported as reason:
            absent["graph_breaks"] = str(reason)
    yield {"figures": figures, "absent": absent}
    for run in runs:
        yield _run(subject, run, bound)


def _on_meta(subject: Subject) -> tuple[dict[str, Any], dict[str, str]]:
    model = _meta_model(subject)
    parameters, buffers = list(model.parameters()), list(model.buffers())
    figures: dict[str, Any] = {
        "params": sum(one.numel() for one in parameters),
        "trainable_params": sum(one.numel() for one in parameters if one.requires_grad),
        "buffers": sum(one.numel() for one in buffers),
        "state_dict": describe_state(model),
    }
    absent: dict[str, str] = {}
    with subject.on_meta(1) as (model, images):
        counter = FlopCounterMode(display=False)
        try:
            with counter, torch.no_grad():
                output = model(images)
        except Exception as error:
            if not _for_want_of_numbers(error):
                raise
            absent |= dict.fromkeys(("output", "flops"), _reason(error))
        else:
            figures |= {"output": describe_output(output), "flops": counter.get_total_flops()}
    try:
        with subject.on_meta(_FEW, train=True) as (model, images):
            labels = torch.empty(_FEW, dtype=torch.long, device="meta")
            with OperatorCounter() as training:
                training_loss(model, model(images), labels).backward()
            # read inside: on_meta puts the model back as it was
            without = {key: p.numel() for key, p in model.named_parameters() if p.requires_grad and p.grad is None}
        figures |= {"training_flops": training.counts.flops, "without_gradient": without}
    except Exception as error:  # a model that is for inference alone: the other figures stand
        _raise_if_of_the_host(error)
        absent |= dict.fromkeys(("training_flops", "without_gradient"), _reason(error))
    return figures, absent


def _run(subject: Subject, run: Cell, bound: bool) -> Answer:
    """The figures of one dtype, batch and mode."""
    try:
        with _fake():
            fake = _fake_subject(subject, run)
            with fake.attention(fake.model):
                figures = _figures_of_run(fake, bound)
    except Exception as error:  # a model that runs in one mode or dtype may not in another
        _raise_if_of_the_host(error)
        names = ("output", "operators", "tensor_peak") if bound else ("output",)
        if _for_want_of_numbers(error) or _is_unknown_to_fakes(error):
            return {"figures": {}, "absent": dict.fromkeys(names, _reason(error))}
        return {"failed": _reason(error)}
    return {"figures": figures, "absent": {}}


def _figures_of_run(subject: Subject, bound: bool) -> dict[str, Any]:
    """What the model returns, how often each operator is called (in a forward pass without gradients, or in the forward
    and backward pass of a training step), and the tensor bytes.

    The first call only tells what is returned: some models prepare in it what they keep.
    """
    outputs: list[str] = []
    hook = subject.model.register_forward_hook(lambda *call: outputs.append(describe_output(call[-1])))
    if subject.cell.mode == "train":
        subject.step()
    else:
        subject.forward()
    hook.remove()
    figures: dict[str, Any] = {"output": outputs[0]}
    if not bound:
        return figures
    tally = OperatorTally()
    if subject.cell.mode == "train":
        # the optimizer's operators are torch's, a dozen for each parameter
        subject.optimizer.register_step_pre_hook(lambda *_: tally.pause())
        with tally:
            peak = account_call(subject)
    else:
        peak = account_call(subject)
        # not in the same call: in inference mode composite operators would hide what they are made of
        with tally, torch.no_grad(), subject.device.autocast(subject.cell.dtype):
            subject.model(subject.images)
    return {**figures, "operators": dict(sorted(tally.counts.items())), "tensor_peak": peak.total}


class LargestAdamW(torch.optim.AdamW):
    """AdamW where live bytes are most, with the state of all that have a gradient.

    It goes from one parameter to the next, each with a root and a quotient of its size beside the quotient that the one
    before has left. Only the two for which that is most are updated: the thousand operators for the others are spared,
    and a first step, which makes the state.
    """

    def step(self, closure: Any = None) -> Any:
        (group,) = self.param_groups
        having = [one for one in group["params"] if one.grad is not None]
        new = [one for one in having if one not in self.state]
        for parameter in new:
            self.state[parameter] = {
                "step": torch.tensor(0.0),
                **{name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")},
            }
        if new or not having:
            return None
        everything = group["params"]
        sizes = [one.numel() * one.element_size() for one in having]
        most = max(range(len(having)), key=lambda index: 2 * sizes[index] + (sizes[index - 1] if index else 0))
        group["params"] = having[max(most - 1, 0) : most + 1]
        try:
            return super().step(closure)
        finally:
            group["params"] = everything


class OperatorTally(TorchDispatchMode):
    """Counts the operators that are dispatched inside the context by name (``aten.clone``) into ``counts``."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self._counting = True

    def pause(self) -> None:
        """Count nothing from now on."""
        self._counting = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._counting:
            name = str(func._overloadpacket)
            if name.partition(".")[0] not in _NO_OPERATORS:
                self.counts[name] += 1
        return func(*args, **(kwargs or {}))


def count_graph_breaks(subject: Subject, *, train: bool) -> dict[str, int]:
    """Why ``torch.compile`` breaks its graph of the model's forward pass, and how often for each reason, as its tracer
    counts it: within a call that is inlined a break may count once more for the caller. Nothing is compiled.

    A model that depends on the numbers in the picture is traced with a picture of random ones, for real. Raises
    Unsupported if it cannot be traced.
    """
    try:
        with _fake():
            shape = (_FEW, CHANNELS, *subject.cell.image_size)
            return _trace(subject, _fake_model(subject), torch.empty(*shape), train)
    except Exception as error:
        _raise_if_of_the_host(error)
        if not _for_want_of_numbers(error):
            raise Unsupported(_reason(error)) from error
    try:
        generator = torch.Generator().manual_seed(subject.cell.seed)
        with torch.device("cpu"):
            model = subject.build().to("cpu")
            images = torch.randn(_FEW, CHANNELS, *subject.cell.image_size, generator=generator)
            return _trace(subject, model, images, train)
    except Exception as error:
        _raise_if_of_the_host(error)
        raise Unsupported(_reason(error)) from error


def _trace(subject: Subject, model: nn.Module, images: Tensor, train: bool) -> dict[str, int]:
    torch._dynamo.reset()
    counters.clear()
    try:
        with subject.attention(model), torch.set_grad_enabled(train):
            found = torch._dynamo.explain(model.train(train))(images)
        reasons: Counter[str] = Counter()
        for text, count in counters["graph_break"].items():
            reasons[_first_words(text)] += count
        if not reasons:  # a branch on a tensor at the top of the model is told of here alone
            reasons.update(_first_words(one.reason) for one in found.break_reasons)
    finally:
        counters.clear()
        torch._dynamo.reset()
    return dict(sorted(reasons.items()))


def _first_words(text: str) -> str:
    """What a reason begins with and, where torch explains it, the explanation; without folders, on one line."""
    first, *rest = text.strip().splitlines() or ["unknown"]
    found = next((line.strip() for line in rest if line.strip().startswith("Explanation:")), "")
    explained = found.removeprefix("Explanation:").strip()
    return _shortened(f"{first}: {explained}" if explained else first)


def describe_state(model: nn.Module) -> dict[str, str]:
    """The state dict without its numbers: key to ``float32 192x64``, with ``buffer`` or ``frozen`` behind it where it
    is no parameter that is trained.
    """
    described = {}
    for key, value in model.state_dict(keep_vars=True).items():
        if not isinstance(value, Tensor):
            described[key] = type(value).__name__
            continue
        kind = " buffer" if not isinstance(value, nn.Parameter) else "" if value.requires_grad else " frozen"
        described[key] = describe_tensor(value) + kind
    return dict(sorted(described.items()))


def describe_tensor(tensor: Tensor) -> str:
    """``float32 192x64``; ``int64 scalar`` for one without dimensions."""
    shape = "x".join(map(str, tensor.shape)) or "scalar"
    return f"{str(tensor.dtype).removeprefix('torch.')} {shape}"


def describe_output(output: Any) -> str:
    """What a model returns, without numbers: ``float32 32x10``, ``(float32 1x10, float32 1x10)``, ``{logits: ...}``."""
    if isinstance(output, Tensor):
        return describe_tensor(output)
    if isinstance(output, Mapping):
        return "{" + ", ".join(f"{key}: {describe_output(value)}" for key, value in output.items()) + "}"
    if isinstance(output, tuple | list):
        return "(" + ", ".join(map(describe_output, output)) + ")"
    return type(output).__name__


# models without numbers


@contextlib.contextmanager
def _fake() -> Iterator[None]:
    """Tensors made inside are fake. Real ones that a model computed while it was built may mix with them."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def _meta_model(subject: Subject) -> nn.Module:
    """The subject's model on ``meta``; where building it reads numbers, built for real and moved there."""
    if "meta_model" not in vars(subject):
        vars(subject)["meta_model"] = _build_on_meta(subject)
    return subject.meta_model


def _build_on_meta(subject: Subject) -> nn.Module:
    try:
        with torch.device("meta"):
            model = subject.build()
    except Exception as error:
        if not _for_want_of_numbers(error):
            raise
        with torch.device("cpu"):
            model = subject.build()
    return empty_copies(model, "meta")


def _fake_model(subject: Subject, dtype: torch.dtype | None = None) -> nn.Module:
    """A model of fake tensors on the CPU, those that hold fractions in ``dtype``; inside of ``_fake`` only."""
    with fake_tensor.unset_fake_temporarily():  # on meta nothing is to become fake
        model = _build_on_meta(subject)  # faster than a copy
        if model is _meta_model(subject):  # of a module that somebody hands over there is only one
            model = copy.deepcopy(model)
    return empty_copies(model, "cpu", dtype)


def _fake_subject(subject: Subject, run: Cell) -> Subject:
    """The subject of a run whose model, batch and labels are fake; inside of ``_fake`` only."""
    reduced = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(run.dtype)
    model = _fake_model(subject, reduced).train(run.mode == "train")
    fake = replace(subject, cell=run, device=open_device("cpu"), build=lambda: model, _open=contextlib.ExitStack())
    images = torch.empty(run.batch_size, CHANNELS, *run.image_size, dtype=reduced)
    labels = torch.empty(run.batch_size, dtype=torch.long)
    # what it would make itself: fake parameters cannot be moved, nor random numbers be drawn by a real generator
    vars(fake).update(model=model, batches=(images,), labels=labels)
    if run.mode == "train":
        vars(fake)["optimizer"] = LargestAdamW(model.parameters(), lr=1e-4)
    return fake


# why there is no figure


def _for_want_of_numbers(error: Exception) -> bool:
    """Whether a tensor was asked for its numbers, or for a shape that follows from them, where it has none."""
    asked = (fake_tensor.DataDependentOutputException, fake_tensor.DynamicOutputShapeException)
    inside = getattr(error, "inner_exception", None) or error.__cause__
    return (
        isinstance(error, asked)
        or needs_values(error)
        or (isinstance(inside, Exception) and inside is not error and _for_want_of_numbers(inside))
    )


def _is_unknown_to_fakes(error: Exception) -> bool:
    """Whether an operator of somebody's own says nothing of the shapes that it returns."""
    return isinstance(error, fake_tensor.UnsupportedOperatorException | fake_tensor.UnsupportedFakeTensorException)


def _raise_if_of_the_host(error: Exception) -> None:
    """Want of memory or a full disk says nothing of the model: what it raised here is no figure of it."""
    failure = open_device("cpu").explain(error)
    if failure is not None and failure.cause in OF_THE_HOST:
        raise error


def _reason(error: Exception) -> str:
    if _for_want_of_numbers(error):
        return _DEPENDS
    return _shortened(describe_error(error).splitlines()[0])


def _shortened(text: str) -> str:
    return one_line(_ADDRESS.sub("0x", _FOLDERS.sub("", text)), _LONGEST_REASON)
