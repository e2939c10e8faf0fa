"""A process that has torch and timm loaded and forks a fresh worker from itself in hundredths of a second (Linux).

A spawned interpreter needs seconds to import its libraries; a fork has them. The server touches no device and runs no
operator, so that each worker sets its own threads and opens its own device. Requests come over a Unix socket, each
with the three files that become the worker's stdin, stdout and stderr; the worker then cannot tell that it was not
spawned.
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

#: What every worker needs, loaded once here. torch._dynamo comes in with the first optimizer otherwise, at a second a
#: worker.
PRELOAD = (
    "torch",
    "torch._dynamo",
    "torch.utils.flop_counter",
    "torchvision",
    "timm",
    "safetensors.torch",
    "vitbench.worker",
    "vitbench.models",
    "vitbench.training.loop",
    "vitbench.training.evaluate",
    "vitbench.training.recipes",
)
_PR_SET_PDEATHSIG = 1


class ForkServer:
    """Forks workers on request and tells how they ended; ends, with its workers, when the other side closes."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.workers: dict[int, int] = {}  # pid -> the number that the request gave it
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
                    self._tell_deaths()
                if self.connection in ready and not self._take_request():
                    break
        for pid in self.workers:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)

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
        self._tell({"event": "started", "worker": number, "pid": pid})
        return True

    def _become_worker(self, files: list[int]) -> None:
        """In the child: take the three files, forget the server, run; never returns."""
        code = 1
        try:
            os.setsid()  # a group of its own, so that it is killed with whatever it starts
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
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

            from vitbench.worker import main

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

    def _tell_deaths(self) -> None:
        while self.workers:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            code = os.waitstatus_to_exitcode(status)
            self._tell({"event": "ended", "worker": self.workers.pop(pid), "code": code})

    def _tell(self, event: dict[str, object]) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.connection.sendall(json.dumps(event).encode() + b"\n")


def main() -> None:
    """``python -m vitbench.forkserver FD [--allow-import] [MODULE ...]``: serve the socket FD, MODULEs loaded too."""
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
