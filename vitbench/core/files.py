"""Validate untrusted files before loading them: TOML, JSON, links in run folders, and checkpoints.

Nothing in a file runs here, and only a small part of it is in memory at once. docs/failures.md has the threat model.
"""

from __future__ import annotations

import io
import json
import os
import pickletools
import re
import struct
import tomllib
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, cast

from vitbench.core.errors import RunFolderError
from vitbench.core.validation import check, depth_exceeds

#: Of a suite or a recipe: a longer text takes long to parse.
LARGEST_TOML_BYTES = 1_000_000
#: Of a JSON file of a run or a training: a training of a million epochs stays below.
LARGEST_JSON_BYTES = 500_000_000
#: Levels of nested lists and objects in such a file, which has a handful.
_DEEPEST_JSON = 50
#: Of a checkpoint: more than the largest known ViT takes.
LARGEST_CHECKPOINT_BYTES = 100 * 10**9
#: In one checkpoint: those of the largest models hold a few thousand.
MOST_TENSORS = 50_000
#: The way out of an error about pickled code.
SAVE_AGAIN = "Save model.state_dict() alone (torch.save), or convert it to safetensors where you trust it"

#: Of the parts of a checkpoint that describe its content; the tensors are other parts.
_LARGEST_PICKLE_BYTES = 32_000_000
_LARGEST_DIRECTORY_BYTES = 16_000_000
#: Of what else torch.save writes, such as versions.
_LARGEST_NOTE_BYTES = 1_000_000
#: Pickles at the beginning of a file of torch.save before 1.6: magic number, version, machine, content, names.
_LEGACY_PICKLES = 5
#: The records at the end of a zip file, which hold the length and the offset of its list of parts.
_END, _END_64, _LOCATOR_64_BYTES = b"PK\5\6", b"PK\6\6", 20
_END_BYTES, _END_64_BYTES = 22, 56

#: What a state dict consists of, as pickles name it. torch's own list for safe loading is longer: it has functions
#: that make gigabytes out of a few bytes (``bytearray``, chains of ``_codecs.encode``).
_HARMLESS = frozenset(
    {
        *("collections OrderedDict", "collections Counter"),
        *(f"{module} {name}" for module in ("builtins", "__builtin__") for name in ("set", "complex")),
        *("torch Size", "torch device", "torch Tensor", "torch.nn.parameter Parameter"),
        "argparse Namespace",  # the options of a training, which timm, DeiT, MAE and DINO save
        "torch._tensor _rebuild_from_type_v2",
        *(f"torch._utils _rebuild_{what}" for what in ("tensor", "tensor_v2", "tensor_v3", "parameter", "qtensor")),
        *(f"torch._utils _rebuild_{what}" for what in ("parameter_with_state", "meta_tensor_no_storage")),
    }
)
_HARMLESS_KINDS = re.compile(
    r"torch(\.storage)? \w*Storage|torch (u?int\d+|b?float\d\w*|complex\d+|bool|q\w+|bits\w+|per_\w+)"
)
#: torch reads all that such a tensor claims to hold, to check it.
_SPARSE = "torch._utils _rebuild_sparse_tensor"
#: How code gets into pickles that torch.save does not write.
_FOREIGN_OPERATIONS = frozenset({"STACK_GLOBAL", "INST", "OBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"})


class RefusedError(Exception):
    """A file that is not loaded; the text continues after its name: ``is a compressed zip file, ...``."""


class CodeError(RefusedError):
    """A file that holds, or may hold, code; the text names it: ``pickled code (posix.system)``."""


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """The content of a TOML file. Raises ValueError, in one line that begins with ``what`` (``Suite mine.toml``), if it
    is not valid or too large.
    """
    if path.exists() and not path.is_file():
        raise ValueError(f"{what} is not a regular file: give a text in TOML")
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_TOML_BYTES + 1)
        if len(content) <= LARGEST_TOML_BYTES:
            return tomllib.loads(content.decode("utf-8"))
    except OSError as error:
        raise ValueError(f"{what} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # TOMLDecodeError, or int() on thousands of digits
        raise ValueError(f"{what} is not valid TOML: {error}") from error
    raise ValueError(f"{what} is too large: at most {LARGEST_TOML_BYTES:,} bytes are read. Shorten it")


def read_json(path: Path, kind: Any) -> Any:
    """The content of a JSON file that fits the type ``kind`` (see validation). Raises OSError as opening it does, and
    ValueError for anything else; its text reads well in brackets: ``is damaged (sessions is null, not a list)``.
    """
    if not path.is_file() and path.exists():
        raise ValueError("it is not a regular file")
    with path.open("rb") as file:
        content = file.read(LARGEST_JSON_BYTES + 1)
    if len(content) > LARGEST_JSON_BYTES:
        raise ValueError(f"it has more than {LARGEST_JSON_BYTES:,} bytes")
    return parse_json(content.decode("utf-8"), kind)


def parse_json(text: str, kind: Any) -> Any:
    """What ``read_json`` returns, of a text. Raises ValueError."""
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if depth_exceeds(value, _DEEPEST_JSON):
        raise ValueError("it is nested too deeply")
    check(value, kind)
    return value


def refuse_links(folder: Path, within: Sequence[str] = ()) -> None:
    """Raises RunFolderError if a run folder, or a folder ``within`` it, holds a symbolic link: writing into a folder
    from elsewhere must not change a file outside of it.
    """
    for place in (folder, *(folder / name for name in within)):
        try:
            with os.scandir(place) as entries:
                links = sorted(entry.name for entry in entries if entry.is_symlink())
        except OSError:  # it does not exist, or is not a folder: reported where it is needed
            continue
        if links:
            raise RunFolderError(
                f"{str(place)!r} holds a link, {links[0]!r}, which would redirect what is written there: "
                "replace it by the file that it points at, or remove it"
            )


# --- checkpoints


def check_zip(path: Path) -> None:
    """Check a zip file of torch.save. Raises RefusedError for one that torch.save does not write or whose sizes are
    implausible, CodeError for code, and (among others) BadZipFile for a damaged one.
    """
    _check_directory(path)
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    if any(entry.filename.endswith("/constants.pkl") for entry in entries):
        raise RefusedError(f"is a TorchScript archive, which holds code. {SAVE_AGAIN}")
    stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
    if not stored or sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise RefusedError("is a compressed zip file, which torch.save does not write: unpack it")
    if len(entries) > MOST_TENSORS:
        raise RefusedError(f"holds {len(entries):,} parts, more than any model has ({MOST_TENSORS:,})")
    # torch's reader ignores case
    names = [entry.filename.lower() for entry in entries]
    if len(set(names)) < len(names):
        raise RefusedError("holds two parts of the same name, which torch.save does not write")
    for entry, name in zip(entries, names, strict=True):
        if name.endswith(".pkl"):
            if entry.file_size > _LARGEST_PICKLE_BYTES:
                raise RefusedError(f"claims a table of contents of {entry.file_size:,} bytes")
            check_pickle(io.BytesIO(_read_part(path, entry)))
        elif "/data/" not in name and entry.file_size > _LARGEST_NOTE_BYTES:
            raise RefusedError(f"claims {entry.file_size:,} bytes in {name[-40:]!r}, which holds a few words")


def _check_directory(path: Path) -> None:
    """zipfile reads the list of parts at once, at the size that the end of the file claims. Where that end is
    inconsistent, zipfile and torch find different parts.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        begin = file.seek(max(size - (1 << 16) - _END_BYTES - _END_64_BYTES - _LOCATOR_64_BYTES, 0))
        tail = file.read()
    end = tail.rfind(_END)
    if end < 0 or len(tail) - end < _END_BYTES:
        return  # not a zip file: zipfile reports it
    length, offset = struct.unpack_from("<LL", tail, end + 12)
    end_64 = end - _LOCATOR_64_BYTES - _END_64_BYTES
    if end_64 >= 0 and tail.startswith(_END_64, end_64):
        end = end_64
        length, offset = struct.unpack_from("<QQ", tail, end_64 + 40)
    if length > _LARGEST_DIRECTORY_BYTES:
        raise RefusedError(f"claims a list of parts of {length:,} bytes, or it is damaged")
    if offset + length != begin + end:
        raise RefusedError("is not a zip file that torch.save writes, or it is damaged")


def _read_part(path: Path, entry: zipfile.ZipInfo) -> bytes:
    """The bytes of an uncompressed part; its checksum, which torch may leave out, is not verified."""
    with path.open("rb") as file:
        file.seek(entry.header_offset + 26)
        name, extra = struct.unpack("<HH", file.read(4))
        file.seek(entry.header_offset + 30 + name + extra)
        return file.read(entry.file_size)


def check_legacy(path: Path) -> None:
    """Check a file of torch.save before 1.6. Raises CodeError for code, RefusedError for a sparse tensor, and (among
    others) ValueError for a damaged one.
    """
    with path.open("rb") as file:
        guarded = _Guarded(file, path.stat().st_size)
        for _ in range(_LEGACY_PICKLES):
            check_pickle(guarded)


class _Guarded:
    """A file that refuses reads beyond its size, for which Python would allocate memory first."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self.file = file
        self.size = size
        self.readline = file.readline
        self.tell = file.tell

    def read(self, count: int) -> bytes:
        if count > self.size:
            raise ValueError(f"it claims a text of {count:,} bytes")
        return self.file.read(count)


def check_fits(path: Path, free_bytes: int) -> None:
    """Raises RefusedError if a file that is read whole does not fit into ``free_bytes`` of memory."""
    size = path.stat().st_size
    if size > free_bytes:
        raise RefusedError(
            f"would take {size / 1e9:.1f} GB of memory, and {free_bytes / 1e9:.1f} GB are available: convert it to "
            "safetensors, which is read piece by piece"
        )


def check_pickle(file: IO[bytes] | _Guarded) -> None:
    """Read one pickle to its end without executing it. Raises CodeError if it names anything that a state dict does not
    consist of, RefusedError for a sparse tensor, and ValueError (among others) for anything but a pickle.
    """
    text = ""
    for operation, argument, _ in pickletools.genops(cast("IO[bytes]", file)):
        if operation.name in _FOREIGN_OPERATIONS:
            raise CodeError("a pickle of more than tensors, or it is damaged")
        if operation.name != "GLOBAL":
            text = argument if isinstance(argument, str) else text
        elif argument == _SPARSE:
            raise RefusedError(f"is refused: {text[:80]!r} is a sparse tensor. Save it as a dense one")
        elif argument not in _HARMLESS and not _HARMLESS_KINDS.fullmatch(str(argument)):
            raise CodeError(f"pickled code ({str(argument).replace(' ', '.')[:120]})")
