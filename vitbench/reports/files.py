"""Write the files of a report, each replaced in one step."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from vitbench.core.errors import RunFolderError
from vitbench.core.run_folder import write_atomically


def make_folder(folder: Path) -> None:
    """Make the folder that is written into. Raises RunFolderError if that cannot be, or nothing can be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise RunFolderError(
            f"Cannot write into {folder}: {error.strerror}. Choose another folder with --out"
        ) from error


def write_files(folder: Path, files: Mapping[str, bytes]) -> list[Path]:
    """Write ``files``, in order; returns their paths. Raises as ``make_folder`` does, and StorageError."""
    make_folder(folder)
    for name, content in files.items():
        write_atomically(folder / name, content)
    return [folder / name for name in files]
