"""Measure one side of ``vitbench ab``. This one file runs for both sides, whatever code they have.

From vitbench it takes only the models of its side, so an old commit is measured like a new one. It uses the standard
library and torch.

Each process is started by itself. None is forked from a process that has torch loaded: such children share the
addresses of their libraries, and would differ from the other side's by the same one per cent in every pair.

Its input is one line, a request: ``runner`` (the process id of the session), ``port``, ``token``, ``role`` (``probe``
or ``measure``), ``installed`` (whether this side has an environment of its own) and ``cell`` (the fields of a Cell, of
which this file reads ``model``, ``image_size``, ``num_classes``, ``batch_size``, ``device``, ``dtype``, ``mode``,
``attention``, ``compile``, ``threads`` and ``seed``). It connects to the local port, sends the token, builds the model,
warms up, and then runs only in its turns. It ends when the runner does.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import signal
import socket
import statistics
import sys
import time
from typing import Any

MODULE = "module:"
#: This file, and modules that every fresh environment loads from its own folder.
ENVIRONMENTS_OWN = ("__main__", "_distutils_hack", "pip", "setuptools", "pkg_resources")
#: A process is warm after at least this many calls and seconds.
WARM_CALLS = 3
WARM_SECONDS = 0.25
#: How long a process waits for the runner's connection.
CONNECT_S = 30.0
#: How long idle threads of OpenMP may spin: GNU's some 3 ms, LLVM's and Intel's 1 ms, as KMP_BLOCKTIME is set for them.
SPINNING_S = 0.006
_PR_SET_PDEATHSIG = 1


class Line:
    """A connection that carries one JSON object a line. The runner uses it as well."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection = connection
        self._rest = b""  # received behind the last line

    def send(self, **message: object) -> None:
        """Send a message. Raises OSError if the connection has ended."""
        self._connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, limit_s: float | None = None) -> Any:
        """The next message; None at the end of the connection. Raises TimeoutError after ``limit_s``."""
        deadline = None if limit_s is None else time.monotonic() + limit_s
        while b"\n" not in self._rest:
            self._connection.settimeout(None if deadline is None else max(deadline - time.monotonic(), 0.001))
            part = self._connection.recv(65536)
            if not part:
                return None
            self._rest += part
        text, _, self._rest = self._rest.partition(b"\n")
        return json.loads(text)

    def close(self) -> None:
        """End the connection."""
        self._connection.close()


def build(cell: dict[str, Any]) -> Any:
    """The cell's model, from this side's code, on the default device."""
    name, size, classes = cell["model"], tuple(cell["image_size"]), cell["num_classes"]
    if name.startswith(MODULE):
        module, _, function = name[len(MODULE) :].partition(":")
        return getattr(importlib.import_module(module), function)(image_size=size, num_classes=classes)
    from vitbench.models import build_model

    return build_model(name, image_size=size, num_classes=classes)


def probe(cell: dict[str, Any], line: Line, installed: bool = False) -> None:
    """Build the model once, and report on it. ``installed``: whether this side has an environment of its own."""
    import torch

    try:
        with torch.device("meta") if not cell["model"].startswith(MODULE) else contextlib.nullcontext():
            model = build(cell)
    except Exception:  # some builders read values of tensors, which meta tensors do not have
        if cell["model"].startswith(MODULE):
            raise
        model = build(cell)
    line.send(
        event="probed",
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        source=file_of(sys.modules.get(type(model).__module__)),
        own=loads_own_files(installed),
        torch=torch.__version__,
    )


def file_of(module: Any) -> str:
    """Where a module was loaded from; empty without a file of its own, as for modules that torch makes up."""
    file = str(vars(module).get("__file__") or "") if hasattr(module, "__dict__") else ""
    return file if os.path.isabs(file) else ""


def loads_own_files(installed: bool) -> bool:
    """Whether any module other than this file comes from the process's working folder or, with ``installed``, from the
    environment made for this side.
    """
    own = [os.path.join(os.path.realpath(os.getcwd()), "")]
    own += [os.path.join(os.path.realpath(sys.prefix), "")] if installed else []
    loaded = [(name.partition(".")[0], file_of(module)) for name, module in list(sys.modules.items())]
    files = [os.path.realpath(file) for name, file in loaded if file and name not in ENVIRONMENTS_OWN]
    return any(file.startswith(tuple(own)) for file in files)


def measure(cell: dict[str, Any], line: Line) -> None:
    """Build, warm up, and run the cell's call in each turn."""
    import torch

    torch.set_num_threads(cell["threads"])
    with contextlib.suppress(RuntimeError):  # another library has set it already
        torch.set_num_interop_threads(1)
    call, shape = make_call(cell)
    began = time.perf_counter()
    calls = 0
    while calls < WARM_CALLS or time.perf_counter() - began < WARM_SECONDS:
        call()
        calls += 1
        if time.perf_counter() - began > 20 * WARM_SECONDS and calls:
            break  # a call of many seconds need not run three times
    line.send(event="ready", seconds=(time.perf_counter() - began) / calls, shape=shape)
    gc.collect()
    gc.disable()
    while (turn := line.receive()) is not None:
        times = take_turn(call, turn["turn"])
        if cell["threads"] > 1:
            time.sleep(SPINNING_S)  # its idle threads still spin, which would disturb the other side's turn
        line.send(event="turn", **times)


def take_turn(call: Any, seconds: float) -> dict[str, Any]:
    """Call for about ``seconds``: the medians of the calls' wall time and of their CPU time of all threads, in s."""
    wall, cpu = [], []
    begin = time.perf_counter()
    while True:
        cpu_start, start = time.process_time(), time.perf_counter()
        call()
        end, cpu_end = time.perf_counter(), time.process_time()
        wall.append(end - start)
        cpu.append(cpu_end - cpu_start)
        if end - begin >= seconds:
            break
    return {"wall": statistics.median(wall), "cpu": statistics.median(cpu), "calls": len(wall)}


def make_call(cell: dict[str, Any]) -> tuple[Any, list[int]]:
    """The timed call, which waits for the device, and the shape of the first output."""
    import torch

    torch.manual_seed(cell["seed"])
    device = torch.device(cell["device"])
    kinds = {"fp32": torch.float32, "amp": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    dtype, training = kinds[cell["dtype"]], cell["mode"] == "train"
    model = build(cell).to(device=device, dtype=dtype).train(training)
    images = torch.randn(
        (cell["batch_size"], 3, *cell["image_size"]), generator=torch.Generator().manual_seed(cell["seed"])
    ).to(device=device, dtype=dtype)
    run = torch.compile(model) if cell["compile"] else model
    amp, half = cell["dtype"] == "amp", getattr(torch, amp_dtype(device.type))

    def autocast() -> Any:
        return torch.autocast(device.type, half) if amp else contextlib.nullcontext()

    wait = {"cuda": lambda: torch.cuda.synchronize(device), "mps": torch.mps.synchronize}.get(device.type, lambda: None)
    use_explicit_attention(model, cell["attention"] == "explicit")
    if not training:

        def forward() -> None:
            with torch.inference_mode(), autocast():
                run(images)
            wait()

        with torch.inference_mode(), autocast():
            _, first = named_tensors(run(images))[0]
        return forward, list(first.shape)

    # scaling the loss is part of a step in fp16; a disabled scaler does nothing
    scaler = torch.amp.GradScaler(device.type, enabled=amp and half == torch.float16)
    labels = torch.zeros(cell["batch_size"], dtype=torch.long, device=device)
    return make_training_step(model, lambda: run(images), labels, autocast, scaler, wait)


def make_training_step(
    model: Any, forward: Any, labels: Any, autocast: Any, scaler: Any, wait: Any
) -> tuple[Any, list[int]]:
    """The call that trains ``model`` for one step, and the shape of its first output."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters())
    shape: list[int] = []

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast():
            heads = heads_of(forward())
            losses = [torch.nn.functional.cross_entropy(head.float(), labels) for head in heads]
            loss = torch.stack(losses).mean()
            # models with token pruning have one; in older commits no model may have it
            own = getattr(model, "auxiliary_loss", lambda: None)()
            if own is not None:
                loss = loss + own
        shape[:] = heads[0].shape
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        wait()

    step()
    return step, shape


def amp_dtype(kind: str) -> str:
    """The lower precision of ``amp`` on a kind of device: torch's default."""
    return "bfloat16" if kind == "cpu" else "float16"


def use_explicit_attention(model: Any, wanted: bool) -> None:
    """Switch to explicit attention (matrix product, softmax, matrix product), in this process from now on."""
    if not wanted:
        return
    import torch

    for module in model.modules():
        if getattr(module, "fused_attn", False):
            module.fused_attn = False
    torch.backends.mha.set_fastpath_enabled(False)
    torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    with contextlib.suppress(AttributeError):
        torch.backends.cuda.enable_cudnn_sdp(False)
    torch.backends.cuda.enable_math_sdp(True)


def named_tensors(output: Any, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    """The tensors that a model returns, alone or in a tuple, list, mapping or dataclass, with the names before them."""
    if hasattr(output, "shape"):
        return [(path, output)]
    if hasattr(output, "_asdict"):
        output = output._asdict()
    fields = output if hasattr(output, "items") else getattr(output, "__dict__", None)
    if fields is not None:
        return [one for name, value in fields.items() for one in named_tensors(value, (*path, str(name)))]
    return [one for value in output for one in named_tensors(value, path)] if isinstance(output, (tuple, list)) else []


def heads_of(output: Any) -> list[Any]:
    """The logits (B, classes) of each head, by the rule of ``heads_of`` in vitbench/models/outputs.py; an older commit
    of vitbench may have another.
    """
    found = [(path, tensor) for path, tensor in named_tensors(output) if len(tensor.shape) == 2]
    found = [(path, tensor) for path, tensor in found if any("logits" in name for name in path)] or found
    if len({tensor.shape for _, tensor in found}) > 1:
        found = [(path, tensor) for path, tensor in found if "logits" in path] or found
    if len({tensor.shape for _, tensor in found}) != 1:
        shapes = " and ".join(str(tuple(tensor.shape)) for _, tensor in named_tensors(output))
        raise ValueError(f"the model returns tensors of {shapes}: which are logits (images x classes)?")
    return [tensor for _, tensor in found]


def run_request(request: dict[str, Any]) -> None:
    """Connect and do what the request asks; report a failure in one line."""
    with socket.create_connection(("127.0.0.1", request["port"]), timeout=CONNECT_S) as connection:
        line = Line(connection)
        line.send(event="hello", token=request["token"], pid=os.getpid())
        try:
            import torch  # noqa: F401
        except Exception as error:
            line.send(event="failed", reason=f"torch cannot be imported: {error}"[:500], infrastructure=True)
            return
        try:
            if request["role"] == "probe":
                probe(request["cell"], line, request["installed"])
            else:
                measure(request["cell"], line)
        except Exception as error:  # the edge: models may raise anything
            import traceback

            traceback.print_exc()
            text = (str(error).splitlines() or [""])[0]
            with contextlib.suppress(OSError):
                line.send(event="failed", reason=f"{type(error).__name__}: {text}"[:500])


def die_with_parent(parent: int) -> None:
    """Ask Linux to end this process when ``parent`` ends."""
    if not sys.platform.startswith("linux"):
        return  # elsewhere it ends at its next turn, as the connection has ended
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the runner's to handle
    wanted = json.loads(sys.stdin.readline())
    die_with_parent(wanted["runner"])
    run_request(wanted)
