"""``vitbench --help`` answers in under a tenth of the time that ``import torch`` takes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

from benchmarks.conftest import paired_ratio


def run(*arguments: str) -> None:
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)


def test_help_against_importing_torch(say: Callable[[str], None]) -> None:
    for command in (["--help"], ["run", "--help"]):
        ratio, low, high = paired_ratio(
            lambda command=command: run("-m", "vitbench", *command), lambda: run("-c", "import torch"), 11
        )
        say(f"vitbench {' '.join(command)} / import torch: {ratio:.3f} ({low:.3f} to {high:.3f})")
        assert ratio < 0.1
