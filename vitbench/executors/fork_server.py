"""A process that has torch loaded and forks a fresh worker from itself in hundredths of a second (Linux).

A spawned interpreter needs seconds to import its libraries; a fork has them. The server touches no device and runs no
operator, so that each worker sets its own threads and opens its own device. Requests come over a Unix socket, each
with the three files that become the worker's stdin, stdout and stderr, so that it behaves like a spawned one.

Nothing outlives the server's owner: when the connection ends, which it does however the owner ends, the server kills
every worker and everything that they started; the kernel kills the workers of a server that is killed itself.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import sys
import time
from pathlib import Path

#: What every worker needs, loaded once here. What some need beside it comes with the server's arguments.
PRELOAD: tuple[str, ...] = (
    "torch",
    "torch.utils.flop_counter",
    "safetensors.torch",
    "vitbench.executors.worker",
    "vitbench.models",
    "vitbench.training.loop",
    "vitbench.training.evaluate",
    "vitbench.training.recipes",
)
# linux/prctl.h
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
#: How long what was killed may take to be gone before the server ends without it, in seconds.
_ENDING_S = 5.0


class ForkServer:
    """Forks workers on request and reports how they ended; ends, with its workers, when the other side closes."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.workers: dict[int, int] = {}  # pid -> the number that the request gave it
        self.pid = os.getpid()
        _adopt_orphans()
        self.wake_read, self.wake_write = os.pipe()
        os.set_blocking(self.wake_write, False)
        signal.set_wakeup_fd(self.wake_write)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def serve(self) -> None:
        """Serve until the connection ends."""
        with selectors.DefaultSelector() as selector:
            selector.register(self.connection, selectors.EVENT_READ)
            selector.register(self.wake_read, selectors.EVENT_READ)
            while True:
                ready = [key.fileobj for key, _ in selector.select()]
                if self.wake_read in ready:
                    os.read(self.wake_read, 4096)
                    self._report_deaths()
                if self.connection in ready and not self._take_request():
                    break
        self._end_everything()

    def _take_request(self) -> bool:
        message, ancillary, _, _ = self.connection.recvmsg(4096, socket.CMSG_LEN(3 * array.array("i").itemsize))
        if not message:
            return False
        files = array.array("i")
        for _, kind, data in ancillary:
            if kind == socket.SCM_RIGHTS:
                files.frombytes(data[: len(data) - len(data) % files.itemsize])
        number = json.loads(message)["worker"]
        pid = os.fork()
        if pid == 0:
            self._become_worker(list(files))
        for file in files:
            os.close(file)
        self.workers[pid] = number
        self._send({"event": "started", "worker": number, "pid": pid})
        return True

    def _become_worker(self, files: list[int]) -> None:
        """In the child: take the three files, forget the server, run; never returns."""
        code = 1
        try:
            os.setsid()  # a group of its own, so that it is killed with whatever it starts
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != self.pid:
                return  # the server was killed before that took effect
            _adopt_orphans()  # while it lives, whatever it started stays below it
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            self.connection.close()
            os.close(self.wake_read)
            os.close(self.wake_write)
            for target, file in enumerate(files):
                os.dup2(file, target)
            for file in files:
                os.close(file)
            with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
                score.write("1000")  # if the kernel has to choose, it takes the worker and not its parent
            sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
            sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
            sys.stderr = open(2, "w", encoding="utf-8", errors="replace", buffering=1, closefd=False)  # noqa: SIM115
            import faulthandler

            from vitbench.executors.worker import main

            faulthandler.enable(sys.stderr)
            main()
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stderr.flush()
            os._exit(code)  # the server's own clean-up must not run in its copy

    def _report_deaths(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                pid, status = ended
                if pid in self.workers:
                    code = os.waitstatus_to_exitcode(status)
                    self._send({"event": "ended", "worker": self.workers.pop(pid), "code": code})
                self._end_orphans()  # before the next worker is asked for

    def _end_orphans(self) -> None:
        """Kill what a worker has left behind. The children of what is killed become the server's own, and their turn
        comes with the next death.
        """
        for pid in _children():
            if pid not in self.workers:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def _end_everything(self) -> None:
        deadline = time.monotonic() + _ENDING_S
        self.workers.clear()
        while time.monotonic() < deadline:
            self._end_orphans()
            time.sleep(0.002)
            try:
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            except ChildProcessError:
                return

    def _send(self, event: dict[str, object]) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.connection.sendall(json.dumps(event).encode() + b"\n")


def _adopt_orphans() -> None:
    """Make this process the parent of whatever below it loses its own (a grandchild whose parent has ended)."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _children() -> list[int]:
    """The processes whose parent this one is."""
    tasks = [path for path in Path("/proc/self/task").glob("*/children") if path.is_file()]
    if not tasks:  # a kernel without CONFIG_PROC_CHILDREN
        import psutil

        return [child.pid for child in psutil.Process().children()]
    found: list[int] = []
    for path in tasks:
        with contextlib.suppress(OSError):  # the thread has ended
            found += map(int, path.read_text().split())
    return found


def main() -> None:
    """``python -m vitbench.executors.fork_server FD [--allow-import] [MODULE ...]``: serve FD, MODULEs loaded too."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the runner's to handle
    modules = sys.argv[2:]
    if "--allow-import" in modules:
        from vitbench.models.imported import allow_imports

        modules.remove("--allow-import")
        allow_imports()
    for module in (*PRELOAD, *modules):
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # keeps the collector of a worker from touching, and so copying, the pages that it shares
    server = ForkServer(connection)
    connection.sendall(b'{"event":"ready"}\n')
    server.serve()


if __name__ == "__main__":
    main()
