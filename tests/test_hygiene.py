"""What is committed is clean: lint, format, types, and results without names of people, machines and folders."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run_tool(*arguments: str) -> None:
    if shutil.which(arguments[0]) is None and not (Path(sys.executable).parent / arguments[0]).exists():
        pytest.skip(f"{arguments[0]} is not installed")
    done = subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_ruff_finds_nothing() -> None:
    run_tool("ruff", "check", ".")


def test_code_is_formatted() -> None:
    run_tool("ruff", "format", "--check", ".")


@pytest.mark.integration
def test_types_hold() -> None:
    run_tool("mypy")


def read_texts(path: Path) -> list[str]:
    """A file's text, or those of all files in an archive."""
    if path.suffix != ".xz":
        return [path.read_text()]
    with tarfile.open(path) as archive:
        files = [archive.extractfile(member) for member in archive.getmembers() if member.isfile()]
        return [*archive.getnames(), *(file.read().decode() for file in files if file is not None)]


RESULTS = sorted(path for path in (ROOT / "results").rglob("*") if path.is_file() and path.suffix != ".png")


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_committed_results_name_no_person_machine_or_absolute_path(path: Path) -> None:
    text = "\n".join(read_texts(path))
    folders = re.findall(r"""(?:^|[\s"'=(])(/(?:home|root|work|Users|tmp|usr|opt|mnt)/[^\s"']*)""", text)
    assert not folders
    import socket

    host = socket.gethostname()
    assert len(host) < 4 or host not in text
