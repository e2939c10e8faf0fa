"""Whole programs in processes of their own, with other load beside them, kept so that a stopped benchmark continues."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

#: Beside what a program wrote, once it has ended well: its wall seconds.
SECONDS = "wall_seconds.txt"


@contextlib.contextmanager
def other_load(kinds: Sequence[str]) -> Iterator[None]:
    """A process of ``load.py`` for each kind.

    They are not children of a run, which would take their time for its own.
    """
    started = [subprocess.Popen([sys.executable, str(Path(__file__).with_name("load.py")), kind]) for kind in kinds]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def run_program(
    folder: Path, command: Sequence[str], *, beside: Sequence[str] = (), variables: Mapping[str, str] | None = None
) -> float:
    """Wall seconds of ``command``, which makes ``folder``; beside it run loads of the kinds ``beside``.

    A folder of a program that ended well is kept, any other is made anew. What the program prints is in ``FOLDER.log``.
    Raises CalledProcessError if it fails.
    """
    kept = folder / SECONDS
    if not kept.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, **(variables or {})}
        with folder.with_name(f"{folder.name}.log").open("w", encoding="utf-8") as log, other_load(beside):
            begin = time.perf_counter()
            subprocess.run(command, check=True, env=environment, stdout=log, stderr=subprocess.STDOUT)
            seconds = time.perf_counter() - begin
        kept.write_text(f"{seconds:.3f}\n", encoding="utf-8")
        print(f"{folder.name}: {seconds:.0f} s", file=sys.stderr, flush=True)
    return float(kept.read_text(encoding="utf-8"))


def run_vitbench(folder: Path, options: Sequence[str], *, beside: Sequence[str] = ()) -> float:
    """Wall seconds of ``vitbench run OPTIONS --out FOLDER``, as ``run_program``."""
    command = [sys.executable, "-m", "vitbench", "run", *options, "--out", str(folder)]
    return run_program(folder, command, beside=beside)
