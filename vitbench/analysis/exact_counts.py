"""The exact values of a model, for the baseline file and the pytest plugin: counted without allocating any tensor data.

On ``meta``: parameters, the state dict, FLOPs, parameters without a gradient. On fake CPU tensors, which have the
shapes and types of real ones: output, operators, tensor bytes, graph breaks of ``torch.compile``. All are equal on
every machine with the same torch.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch._dynamo
import torch._dynamo.backends.debugging
import torch.fx.experimental.symbolic_shapes
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode

from vitbench.core.errors import Unsupported, VitbenchError
from vitbench.core.records import Cell
from vitbench.core.text import one_line
from vitbench.devices import open_device
from vitbench.devices.failures import OF_THE_HOST, describe_error
from vitbench.metrics.params import parameters_without_gradient
from vitbench.metrics.support.fake_models import (
    build_on_meta,
    fake_mode,
    fake_model,
    fake_subject,
    needs_real_tensors,
    reads_data,
)
from vitbench.metrics.support.operator_counter import OperatorCounter, describe_uncounted
from vitbench.metrics.support.subject import Subject
from vitbench.metrics.support.tensor_memory import follow_call
from vitbench.models.outputs import describe_output, describe_tensor, input_dtype

#: The batch of a trace: batch norm needs two images.
_TRACED_BATCH = 2
#: Libraries of torch's own bookkeeping operators.
_BOOKKEEPING = ("prim", "profiler")
_LONGEST_REASON = 240
_DEPENDS = "its forward pass depends on the numbers in the picture"
#: The folders in front of a file name in torch's messages.
_FOLDERS = re.compile(r"""(?<![\w./:])(?:[A-Za-z]:)?[\\/](?:[^\s'"<>|:\\/]+[\\/])+""")
_ADDRESS = re.compile(r"\b0x[0-9a-fA-F]+")

Answer = dict[str, Any]

#: How ``uncounted`` marks the operators of a training step.
IN_TRAINING = " in training"


def count_model(subject: Subject, runs: Sequence[Cell], *, bound: bool = True) -> Iterator[Answer]:
    """An answer for the model, then one for each of ``runs`` (cells of the same model that differ in dtype, batch and
    mode), in order.

    An answer has ``figures`` and ``absent`` (why a value is unavailable), or ``failed``, the reason why a run fails.
    ``bound`` adds the values that depend on torch's version: operators and tensor bytes. Raises what the model raises
    while it is built or run on ``meta``, except where it reads tensor data or has an operator without a kernel there.
    """
    figures, absent = _on_meta(subject)
    yield {"figures": figures, "absent": absent}
    for run in runs:
        yield _count_run(subject, run, bound)


def exact_values(subject: Subject) -> dict[str, Any]:
    """The values of ``subject``'s model and of its own cell by name, as the pytest plugin stores them; a value that
    is unavailable is left out.

    ``output`` is like ``float32 1x1000``, ``state_dict`` a digest of its keys, shapes and types, ``tensor_peak`` the
    peak bytes of live tensors in a call on the subject's device. A lower bound of the FLOPs is words that name what it
    leaves out. Raises what the model raises, VitbenchError if the
    cell fails.
    """
    model, run = count_model(subject, [subject.cell], bound=False)
    if "failed" in run:
        raise VitbenchError(f"The model does not run: {run['failed']}")
    values = {**model["figures"], **run["figures"]}
    state = json.dumps(values["state_dict"], sort_keys=True).encode()
    digest = hashlib.sha256(state).hexdigest()[:12]
    values["state_dict"] = f"{len(values['state_dict'])} entries, digest {digest}"
    uncounted = {name: calls for name, calls in values["uncounted"].items() if not name.endswith(IN_TRAINING)}
    if "flops" in values and uncounted:
        values["flops"] = f"at least {values['flops']:,} (no formula covers {describe_uncounted(uncounted)})"
    subject.run_once()  # some models cache tensors in their first call; this also checks that the output is finite
    if not subject.cell.compile:
        values["tensor_peak"] = sum(follow_call(subject).peak().values())
    return values


def _on_meta(subject: Subject) -> tuple[dict[str, Any], dict[str, str]]:
    model = _meta_model(subject)
    parameters, buffers = list(model.parameters()), list(model.buffers())
    figures: dict[str, Any] = {
        "params": sum(one.numel() for one in parameters),
        "trainable_params": sum(one.numel() for one in parameters if one.requires_grad),
        "buffers": sum(one.numel() for one in buffers),
        "state_dict": describe_state(model),
        "uncounted": {},
    }
    absent: dict[str, str] = {}
    with subject.on_meta(1) as (model, images):
        try:
            with OperatorCounter() as counter, torch.no_grad():
                output = model(images)
        except Exception as error:
            if not needs_real_tensors(error):
                raise
            absent |= dict.fromkeys(("output", "flops"), _reason(error))
        else:
            figures |= {"output": describe_output(output), "uncounted": dict(counter.counts.without_formula)}
            try:
                figures["flops"] = counter.counts.flops
            except Unsupported as reason:
                absent["flops"] = str(reason)
    try:
        with OperatorCounter() as training:
            without = parameters_without_gradient(subject)
    except Exception as error:  # an inference-only model keeps its other values
        _raise_if_of_the_host(error)
        absent |= dict.fromkeys(("training_flops", "without_gradient"), _reason(error))
        return figures, absent
    figures["without_gradient"] = without
    figures["uncounted"] |= {f"{name}{IN_TRAINING}": n for name, n in training.counts.without_formula.items()}
    try:
        figures["training_flops"] = training.counts.flops
    except Unsupported as reason:
        absent["training_flops"] = str(reason)
    return figures, absent


def _count_run(subject: Subject, run: Cell, bound: bool) -> Answer:
    """The values of one dtype, batch and mode."""
    try:
        with fake_mode():
            fake = fake_subject(subject, run)
            with fake.attention(fake.model):
                figures = _count_calls(fake, bound)
    except Exception as error:  # a model may run in one mode or dtype only
        _raise_if_of_the_host(error)
        names = ("output", "operators", "tensor_peak") if bound else ("output",)
        if needs_real_tensors(error):
            return {"figures": {}, "absent": dict.fromkeys(names, _reason(error))}
        return {"failed": _reason(error)}
    return {"figures": figures, "absent": {}}


def _count_calls(subject: Subject, bound: bool) -> dict[str, Any]:
    """The output; with ``bound`` the calls of each operator (in a forward pass without gradients, or in the forward
    and backward pass of a training step) and the peak of tensor bytes.
    """
    trains = subject.cell.mode == "train"
    outputs: list[str] = []
    hook = subject.model.register_forward_hook(lambda *call: outputs.append(describe_output(call[-1])))
    # the first call is not counted: some models cache tensors in it
    if trains:
        subject.step()
    else:
        subject.forward()
    hook.remove()
    figures: dict[str, Any] = {"output": outputs[0]}
    if not bound:
        return figures
    tally = OperatorTally()
    if trains:
        # the optimizer's operators are torch's, a dozen for each parameter
        subject.optimizer.register_step_pre_hook(lambda *_: tally.pause())
        with tally:
            peak = follow_call(subject).peak()
    else:
        peak = follow_call(subject).peak()
        # a call of its own: in inference mode composite operators hide their parts
        with tally, torch.no_grad(), subject.device.autocast(subject.cell.dtype):
            subject.model(subject.images)
    return {**figures, "operators": dict(sorted(tally.counts.items())), "tensor_peak": sum(peak.values())}


class OperatorTally(TorchDispatchMode):
    """Counts the operators dispatched inside the context by name (``aten.clone``) in ``counts``."""

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
            if name.partition(".")[0] not in _BOOKKEEPING:
                self.counts[name] += 1
        return func(*args, **(kwargs or {}))


def count_graph_breaks(subject: Subject, *, train: bool) -> dict[str, int]:
    """The reasons for which ``torch.compile`` breaks its graph of the forward pass, with their counts. Nothing is
    compiled. torch's tracer counts a break inside an inlined call once more for the caller. Where the tracer fails, its
    frame evaluation stays installed: later calls in this process free their arguments late, and their tensor bytes are
    too many.

    A model that reads tensor data is traced with real random images. Raises Unsupported if it cannot be traced.
    """
    try:
        with fake_mode():
            shape = (_TRACED_BATCH, subject.cell.in_channels, *subject.cell.image_size)
            model = fake_model(subject)
            return _trace(subject, model, torch.empty(*shape, dtype=input_dtype(model)), train)
    except Exception as error:
        _raise_if_of_the_host(error)
        if not reads_data(error):
            raise Unsupported(_reason(error)) from error
    try:
        generator = torch.Generator().manual_seed(subject.cell.seed)
        with torch.device("cpu"):
            model = subject.build().to("cpu")
            images = torch.randn(_TRACED_BATCH, subject.cell.in_channels, *subject.cell.image_size, generator=generator)
            return _trace(subject, model, images.to(input_dtype(model)), train)
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
        if not reasons:  # torch reports a branch on a tensor at the top of the model only here
            reasons.update(_first_words(one.reason) for one in found.break_reasons)
    finally:
        counters.clear()
        torch._dynamo.reset()
    return dict(sorted(reasons.items()))


def _first_words(text: str) -> str:
    """The first line of a reason and torch's explanation if there is one, on one line without folders."""
    first, *rest = text.strip().splitlines() or ["unknown"]
    found = next((line.strip() for line in rest if line.strip().startswith("Explanation:")), "")
    explained = found.removeprefix("Explanation:").strip()
    return _shortened(f"{first}: {explained}" if explained else first)


def describe_state(model: nn.Module) -> dict[str, str]:
    """The state dict without its data: ``float32 192x64`` by key, and ``buffer`` or ``frozen`` for untrained ones."""
    described = {}
    for key, value in model.state_dict(keep_vars=True).items():
        if not isinstance(value, Tensor):
            described[key] = type(value).__name__
            continue
        kind = " buffer" if not isinstance(value, nn.Parameter) else "" if value.requires_grad else " frozen"
        described[key] = describe_tensor(value) + kind
    return dict(sorted(described.items()))


def _meta_model(subject: Subject) -> nn.Module:
    """The subject's model on ``meta``; built on the CPU and moved there if building it needs real tensors."""
    if "meta_model" not in vars(subject):
        vars(subject)["meta_model"] = build_on_meta(subject)
    return subject.meta_model


# why a value is unavailable


def _raise_if_of_the_host(error: Exception) -> None:
    """Out of memory or a full disk is not a property of the model."""
    failure = open_device("cpu").explain(error)
    if failure is not None and failure.cause in OF_THE_HOST:
        raise error


def _reason(error: Exception) -> str:
    return _DEPENDS if reads_data(error) else _shortened(describe_error(error).splitlines()[0])


def _shortened(text: str) -> str:
    return one_line(_ADDRESS.sub("0x", _FOLDERS.sub("", text)), _LONGEST_REASON)
