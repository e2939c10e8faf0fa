"""Start, talk to and end the processes of both sides; a local socket carries one JSON object a line."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitbench.executors.launcher import worker_environment
from vitbench.regression.ab.side import Line
from vitbench.regression.ab.worktrees import InfrastructureError, State, last_line

SIDE = Path(__file__).with_name("side.py")
#: Limits: for a process to connect, and to load torch from a slow disk, build a model and warm it up.
START_S = 300.0
BUILD_S = 600.0
#: The limit of a turn: this many times a call of the warm-up, and at least ``TURN_LIMIT_S``.
SLOWER = 50.0
TURN_LIMIT_S = 60.0
_TAIL_BYTES = 4000
#: How often to check that a starting process is still alive, in seconds.
_LOOK_S = 1.0
#: The limit for a connected process to identify itself.
_HELLO_S = 10.0


class SideError(Exception):
    """A side's code fails, dies or hangs. ``side`` is ``base`` or ``head``."""

    def __init__(self, side: str, reason: str) -> None:
        super().__init__(f"{side}: {reason}")
        self.side = side


class Side(contextlib.AbstractContextManager["Side"]):
    """Starts and ends the processes of one side; a context manager."""

    def __init__(self, state: State) -> None:
        self.state = state
        self._errors = tempfile.NamedTemporaryFile(  # noqa: SIM115  closed with the side
            mode="a+b", prefix="vitbench-side-", suffix=".log"
        )
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=8)
        self._started: list[Process] = []
        self._expected: set[str] = set()
        self._arrived: dict[str, Line] = {}

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self, cell: Mapping[str, Any], role: str) -> Process:
        """Start a process that builds the cell's model, without waiting for it. ``role``: ``probe`` or ``measure``.
        Raises InfrastructureError.
        """
        token = secrets.token_hex(16)
        port = self._listener.getsockname()[1]
        request = {"runner": os.getpid(), "port": port, "token": token, "role": role, "cell": dict(cell)}
        request["installed"] = self.state.installed
        folders = [*self.state.path, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {
            **worker_environment(),  # as in vitbench run
            "PYTHONPATH": os.pathsep.join(folders),
            "PYTHONHASHSEED": "0",  # sets have the same order on both sides
        }
        # -P: its own folder does not come first on the path; -B: no bytecode is written beside the sources
        command = [str(self.state.python), "-P", "-B", str(SIDE)]
        try:
            child = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=self._errors, text=True,
                env=environment, cwd=self.state.root, start_new_session=os.name != "nt",
            )  # fmt: skip
        except OSError as error:
            raise InfrastructureError(f"{self.state.name}: {self.state.python} cannot be run: {error}") from error
        self._expected.add(token)
        process = Process(self, token, child)
        self._started.append(process)
        assert child.stdin is not None
        with contextlib.suppress(OSError):  # it died, which shows when it does not connect
            child.stdin.write(json.dumps(request) + "\n")
            child.stdin.close()
        return process

    def accept(self, token: str, deadline: float, child: subprocess.Popen[str]) -> Line:
        """The connection of the process that knows ``token``. Raises InfrastructureError if it does not connect, as it
        has not reached the code of its side.
        """
        while token not in self._arrived:
            self._listener.settimeout(_LOOK_S)
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                if time.monotonic() > deadline or child.poll() is not None:
                    raise InfrastructureError(f"{self.state.name}: no process started; {self.last_line()}") from None
                continue
            line = Line(connection)
            try:
                hello = line.receive(_HELLO_S) or {}
            except (OSError, ValueError):
                hello = {}
            if hello.get("token") in self._expected:  # any program on this machine may connect
                self._expected.remove(hello["token"])
                self._arrived[hello["token"]] = line
            else:
                line.close()
        return self._arrived.pop(token)

    def last_line(self) -> str:
        """The last line that a process of this side printed on stderr."""
        size = os.fstat(self._errors.fileno()).st_size
        if sys.platform == "win32":  # where the file cannot be opened a second time
            self._errors.seek(max(size - _TAIL_BYTES, 0))
            text = self._errors.read()
        else:  # without moving the position at which the processes write
            text = os.pread(self._errors.fileno(), _TAIL_BYTES, max(size - _TAIL_BYTES, 0))
        return last_line(text.decode("utf-8", errors="replace"))

    def close(self) -> None:
        """End every process of this side."""
        for process in list(self._started):
            process.close()
        for line in self._arrived.values():
            line.close()
        self._listener.close()
        self._errors.close()

    def forget(self, process: Process) -> None:
        """Drop a process that has ended."""
        self._started = [one for one in self._started if one is not process]


class Process:
    """One process of a side. It runs only in its turns."""

    def __init__(self, side: Side, token: str, child: subprocess.Popen[str]) -> None:
        self.seconds = 0.0
        self.pid = child.pid
        self._side = side
        self._token = token
        self._child = child
        self._line: Line | None = None

    def ready(self) -> dict[str, Any]:
        """Wait until the model is built and warm; what the process reports. Raises SideError if it fails, and
        InfrastructureError if it does not start.
        """
        self._line = self._side.accept(self._token, time.monotonic() + START_S, self._child)
        facts = self._event(BUILD_S)
        self.seconds = float(facts.get("seconds", 0.0))
        return facts

    def turn(self, seconds: float) -> dict[str, Any]:
        """One turn of about ``seconds``. Raises SideError if it fails, dies or hangs."""
        assert self._line is not None
        try:
            self._line.send(turn=seconds)
        except OSError as error:
            raise SideError(self._side.state.name, f"the process died; {self._side.last_line()}") from error
        return self._event(max(TURN_LIMIT_S, SLOWER * self.seconds))

    def close(self) -> None:
        """End the process and its process group."""
        if self._line is not None:
            self._line.close()
        if os.name != "nt":
            with contextlib.suppress(OSError):
                os.killpg(self.pid, signal.SIGKILL)
        self._child.kill()
        self._child.wait()
        self._side.forget(self)

    def _event(self, limit_s: float) -> dict[str, Any]:
        assert self._line is not None
        name = self._side.state.name
        try:
            event = self._line.receive(limit_s)
        except TimeoutError:
            raise SideError(name, f"it hangs: no answer within {limit_s:.0f} s") from None
        except (OSError, ValueError):
            event = None
        if event is None:
            raise SideError(name, f"the process died; {self._side.last_line()}")
        if event.get("event") == "failed":
            if event.get("infrastructure"):
                raise InfrastructureError(f"{name}: {event.get('reason')} ({self._side.state.python})")
            raise SideError(name, str(event.get("reason")))
        return dict(event)
