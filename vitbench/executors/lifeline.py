"""End a worker when its runner dies, however that ends, and whatever the worker is doing.

On Linux the kernel does it for forked workers (forkserver.py). A spawned worker holds one end of a pipe whose other end
only its runner has: a thread waits in the kernel until that is gone, which takes no time from what is measured.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading

#: The environment variable that holds the pipe's file descriptor; on Windows, which has no such pipes, the runner's
#: process id. The parent's id does not help: the interpreter of a virtual environment there is a launcher, which starts
#: the real one and waits for it.
VARIABLE = "VITBENCH_LIFELINE"


def end_with_runner() -> None:
    """From now on this process ends, at once and with its process group, when its runner does.

    Does nothing for a process that was given no lifeline.
    """
    given = os.environ.pop(VARIABLE, None)  # what a worker starts has another
    if given is not None:
        wait = _wait_for_process if sys.platform == "win32" else _wait_on_pipe
        threading.Thread(target=wait, args=(int(given),), name="lifeline", daemon=True).start()


def _wait_on_pipe(descriptor: int) -> None:
    os.set_inheritable(descriptor, False)
    while os.read(descriptor, 1):
        pass
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def _wait_for_process(pid: int) -> None:
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(pid).wait()
    os._exit(1)
