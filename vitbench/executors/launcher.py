"""Start workers, send them tasks, and learn how they ended: forked (Linux) or spawned (elsewhere)."""

from __future__ import annotations

import contextlib
import fnmatch
import io
import itertools
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from typing import IO, TYPE_CHECKING, cast

from vitbench.core.errors import WorkerError
from vitbench.executors import lifeline, stacks
from vitbench.executors.protocol import Event, Task, Turn, from_line, to_line
from vitbench.models.cards import model_registry

if TYPE_CHECKING:
    import psutil

#: How much of a worker's stderr is kept: its end.
STDERR_TAIL_BYTES = 16384
#: How long a worker that has done its tasks may take to end before it is killed, in seconds.
ENDING_S = 10.0
#: How often a silent worker is checked for being alive, in seconds.
LOOK_S = 1.0
#: How long the fork server may take to load its libraries on a slow disk, in seconds.
SERVER_START_S = 300.0
#: How long a worker that is asked for its stack may take to print it, and how long it is silent then, in seconds.
STACK_S = 1.0
_STACK_SILENCE_S = 0.1


class WorkerTimeoutError(Exception):
    """A worker sent nothing in time."""


class Worker:
    """One worker process: tasks in, events out, the end of its stderr kept.

    ``pid`` leads a process group of its own. ``kill`` reaches everything that the worker started, in that group or not.
    """

    def __init__(self, pid: int, tasks: IO[str], events: IO[str], errors: IO[bytes]) -> None:
        self.pid = pid
        self._tasks = tasks
        self._events: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._stderr = bytearray()
        self._heard = 0  # bytes of stderr, of which the end is kept
        self._readers = [
            threading.Thread(target=self._read_events, args=(events,), daemon=True),
            threading.Thread(target=self._read_errors, args=(errors,), daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def send(self, message: Task | Turn) -> None:
        """Hand over a task or a turn; a worker that is gone already is noticed when its events are read."""
        with contextlib.suppress(OSError):  # EPIPE, and EINVAL on Windows
            self._tasks.write(to_line(message))
            self._tasks.flush()

    def close_input(self) -> None:
        """No more tasks: the worker ends when it is done."""
        with contextlib.suppress(OSError):
            self._tasks.close()

    def next_event(self, deadline: float) -> Event | None:
        """The next event, or None after the last. Raises WorkerTimeoutError at ``deadline`` (time.monotonic)."""
        while True:
            was_alive = self.alive()
            try:
                line = self._events.get(timeout=min(max(deadline - time.monotonic(), 0), LOOK_S))
            except queue.Empty:
                if not was_alive:
                    return None  # dead, although a child of its own may still hold its end of the pipe
                if time.monotonic() >= deadline:
                    raise WorkerTimeoutError from None
            else:
                try:
                    event: Event | None = from_line(line) if line else None
                except json.JSONDecodeError:
                    event = None  # cut off by the worker's death
                return event

    def stderr_tail(self) -> str:
        """The end of what the worker printed."""
        self._readers[1].join(timeout=1.0)
        return self._stderr.decode("utf-8", errors="replace").strip()

    def ask_for_stack(self) -> str:
        """The stack that the process prints on stderr when it gets a signal; it is in ``stderr_tail``, too.

        Empty where there is no such signal (Windows), and if nothing is printed within STACK_S. A process that has not
        installed its handler yet is ended by the signal: ask only a process that is to be killed.
        """
        if stacks.ASK is None:
            return ""
        before = self._heard
        try:
            os.kill(self.pid, stacks.ASK)
        except (ProcessLookupError, PermissionError):
            return ""
        deadline = time.monotonic() + STACK_S
        stack, printed = "", ""
        while time.monotonic() < deadline and not (stack == printed and stacks.is_whole(stack)):
            time.sleep(_STACK_SILENCE_S)
            kept, new = bytes(self._stderr), self._heard - before
            printed, stack = stack, kept[-new:].decode("utf-8", errors="replace") if new > 0 else ""
        return stack

    def alive(self) -> bool:
        """Whether the process still runs."""
        return self.wait(0) is None

    def wait(self, timeout: float) -> int | None:
        """The exit code (minus the signal that ended it), or None if it still runs after ``timeout`` seconds."""
        raise NotImplementedError

    def kill(self) -> None:
        """End it and everything below it at once."""
        # looked up before: afterwards nobody knows whose they were
        below = self._descendants() if self.alive() else []
        if os.name == "posix":
            # a worker that has just been forked leads no group of its own yet
            for end in (os.killpg, os.kill):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    end(self.pid, signal.SIGKILL)
        else:
            import psutil

            with contextlib.suppress(psutil.Error):
                psutil.Process(self.pid).kill()
        _kill_each(below)

    def end(self) -> int | None:
        """Close its input, wait for it a little, kill it if it will not end; returns the exit code."""
        self.close_input()
        code = self.wait(ENDING_S)
        self.kill()  # if it will not end; and what it started and left behind, which would run beside the next cell
        return self.wait(ENDING_S) if code is None else code

    def _descendants(self) -> list[psutil.Process]:
        """What it started, and what those started, also in sessions of their own."""
        import psutil

        try:
            return psutil.Process(self.pid).children(recursive=True)
        except psutil.Error:
            return []

    def _read_events(self, events: IO[str]) -> None:
        with events:
            for line in events:
                self._events.put(line)
        self._events.put(None)

    def _read_errors(self, errors: IO[bytes]) -> None:
        with errors:
            while chunk := errors.read1(4096):  # type: ignore[attr-defined]
                self._stderr += chunk
                del self._stderr[:-STDERR_TAIL_BYTES]
                self._heard += len(chunk)


class SpawnedWorker(Worker):
    """A worker in an interpreter of its own, which ends when this process does."""

    def __init__(self, arguments: Sequence[str] = ()) -> None:
        environment = worker_environment()
        theirs: tuple[int, ...] = ()
        if os.name == "posix":
            end, ours = os.pipe()
            self._lifeline = open(ours, "wb", buffering=0)  # noqa: SIM115  (closed with this object)
            theirs = (end,)
            environment[lifeline.VARIABLE] = str(end)
        else:
            environment[lifeline.VARIABLE] = str(os.getpid())
        try:
            self._process = subprocess.Popen(
                [*_interpreter(arguments), "-m", "vitbench.executors.worker", *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment,
                start_new_session=os.name == "posix",
                pass_fds=theirs,
            )
        finally:
            for file in theirs:
                os.close(file)
        pipes = (self._process.stdin, self._process.stdout, self._process.stderr)
        stdin, stdout, stderr = (cast("IO[bytes]", pipe) for pipe in pipes)
        tasks, events = io.TextIOWrapper(stdin, encoding="utf-8"), io.TextIOWrapper(stdout, encoding="utf-8")
        super().__init__(self._process.pid, tasks, events, stderr)

    def wait(self, timeout: float) -> int | None:
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None

    def end(self) -> int | None:
        # nobody inherits what it leaves behind, as a fork server does
        below = self._descendants()
        code = super().end()
        _kill_each(below)
        return code


class ForkedWorker(Worker):
    """A worker that the fork server forked; its exit ``code`` comes through the server."""

    def __init__(self, pid: int, tasks: IO[str], events: IO[str], errors: IO[bytes], code: Future[int]) -> None:
        super().__init__(pid, tasks, events, errors)
        self._code = code

    def wait(self, timeout: float) -> int | None:
        try:
            return self._code.result(timeout)
        except TimeoutError:
            return None


class Launcher:
    """Starts workers; use it as a context manager, so that none outlives it."""

    def start(self) -> Worker:
        """A fresh worker, ready to take tasks. Raises WorkerError if none can be started."""
        raise NotImplementedError

    def wait_until_ready(self) -> None:
        """Return once the first worker can start without delay. Raises WorkerError if it never will."""

    def close(self) -> None:
        """End everything that was started."""

    def __enter__(self) -> Launcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class SpawnLauncher(Launcher):
    """Spawns an interpreter a worker: seconds each, on every system."""

    def __init__(self, arguments: Sequence[str] = ()) -> None:
        self._arguments = tuple(arguments)
        self._started: list[Worker] = []

    def start(self) -> Worker:
        worker = SpawnedWorker(self._arguments)
        self._started = [one for one in self._started if one.alive()] + [worker]
        return worker

    def close(self) -> None:
        for worker in self._started:
            if worker.alive():
                worker.kill()
                worker.wait(ENDING_S)


class ForkLauncher(Launcher):
    """Forks workers from a server that has torch loaded: hundredths of a second each, Linux only.

    ``preload`` are modules to load in the server beside the usual ones, ``arguments`` what a spawned worker would be
    given. A server that dies (killed for memory, say) is replaced when the next worker is asked for.
    """

    def __init__(self, preload: Iterable[str] = (), arguments: Sequence[str] = ()) -> None:
        self._arguments = (*arguments, *preload)
        self._codes: dict[int, Future[int]] = {}  # of the workers that have not ended, by their number
        self._numbers = itertools.count()
        self._start_server()

    def _start_server(self) -> None:
        self._connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._errors = open(os.memfd_create("errors"), "w+b")  # noqa: SIM115
        module = ("-m", "vitbench.executors.fork_server", str(theirs.fileno()))
        self._server = subprocess.Popen(
            [*_interpreter(self._arguments), *module, *self._arguments],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            # NumPy's OpenBLAS starts threads when it is imported; torch does not use it, and a server that forks must
            # have none
            env={**worker_environment(), "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,
        )
        theirs.close()
        self._ready = threading.Event()
        self._dead = threading.Event()
        self._started_pids: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        channels = (self._connection, self._ready, self._dead, self._started_pids)
        threading.Thread(target=self._read_server, args=channels, daemon=True).start()

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + SERVER_START_S
        while not self._ready.wait(0.05):
            if self._dead.is_set() or time.monotonic() > deadline:
                self._server.kill()
                self._server.wait()
                self._errors.seek(0)
                reason = self._errors.read().decode("utf-8", errors="replace").strip().splitlines()
                raise WorkerError(f"The worker server did not start: {reason[-1] if reason else 'it printed nothing'}")

    def start(self) -> Worker:
        if self._dead.is_set():
            self._connection.close()
            self._start_server()
        self.wait_until_ready()
        task_read, task_write = os.pipe()
        event_read, event_write = os.pipe()
        error_read, error_write = os.pipe()
        theirs = [task_read, event_write, error_write]
        number = next(self._numbers)
        code = self._codes[number] = Future()
        try:
            socket.send_fds(self._connection, [json.dumps({"worker": number}).encode()], theirs)
            pid = self._started_pids.get(timeout=SERVER_START_S)
        except (OSError, queue.Empty) as error:
            raise WorkerError(f"The worker server is gone: {error}") from error
        finally:
            for file in theirs:
                os.close(file)
        if pid is None:
            raise WorkerError("The worker server died while it started a worker")
        tasks = open(task_write, "w", encoding="utf-8")  # noqa: SIM115
        events = open(event_read, encoding="utf-8")  # noqa: SIM115
        return ForkedWorker(pid, tasks, events, open(error_read, "rb"), code)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)  # the server ends, and its workers with it
        try:
            self._server.wait(ENDING_S)
        except subprocess.TimeoutExpired:
            self._server.kill()
            self._server.wait()
        self._connection.close()

    def _read_server(
        self,
        connection: socket.socket,
        ready: threading.Event,
        dead: threading.Event,
        started_pids: queue.SimpleQueue[int | None],
    ) -> None:
        while True:
            try:
                message = connection.recv(65536)
            except OSError:
                message = b""
            if not message:
                break
            event = json.loads(message)
            if event["event"] == "ready":
                ready.set()
            elif event["event"] == "started":
                started_pids.put(event["pid"])
            elif event["event"] == "ended":
                self._codes.pop(event["worker"]).set_result(event["code"])
        for number in list(self._codes):
            self._codes.pop(number).set_result(-signal.SIGKILL)  # a server's death takes its workers along
        dead.set()
        started_pids.put(None)


def _kill_each(processes: Iterable[psutil.Process]) -> None:
    import psutil

    for process in processes:
        with contextlib.suppress(psutil.Error):  # gone, and another one may have its number
            process.kill()


def worker_environment() -> dict[str, str]:
    """The variables of a worker: GPUs are numbered as by nvidia-smi and NVML, and idle threads of LLVM's and Intel's
    OpenMP stop spinning after 1 ms instead of 200, which would disturb another process's turn.
    """
    return {"KMP_BLOCKTIME": "1", **os.environ, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def _interpreter(arguments: Sequence[str]) -> list[str]:
    """The interpreter of a worker. Unless imports are allowed it does not import from the current folder (-P): a folder
    timm/, a random.py or another vitbench there must not become part of a measurement.
    """
    return [sys.executable] if "--allow-import" in arguments else [sys.executable, "-P"]


def libraries_of(models: Iterable[str]) -> list[str]:
    """The libraries of models with these names (or patterns), to be loaded once and not in each worker."""
    names = tuple(models)
    needed = {name.partition(":")[0] for name in names}
    # those of ours that are torchvision's
    built_on_it = [name for name, card in model_registry().items() if card.published_weights]
    if any(fnmatch.fnmatchcase(one, name) for one in built_on_it for name in names):
        needed.add("torchvision")
    return [library for library in ("timm", "torchvision") if library in needed]


def make_launcher(preload: Iterable[str] = (), *, allow_import: bool = False) -> Launcher:
    """The cheapest launcher of this system: a fork server on Linux, spawned interpreters elsewhere.

    ``allow_import`` lets its workers import the builders that ``module:`` names ask for.
    """
    arguments = ["--allow-import"] if allow_import else []
    return ForkLauncher(preload, arguments) if sys.platform.startswith("linux") else SpawnLauncher(arguments)
