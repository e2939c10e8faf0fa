"""Checkpoints that hold code, or promise more than they have: refused in one line and little memory."""

from __future__ import annotations

import functools
import io
import json
import os
import pickle
import struct
import sys
import zipfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tests.hostile.asking import LONG, MODEL, SIZE, Executed, ask, one_error, within_memory
from tests.launching import SharedLauncher
from vitbench.core.errors import DataError
from vitbench.experiments.open_model import ModelRequest, open_trained
from vitbench.experiments.training.checkpoint import load_state
from vitbench.models.weights.checkpoints import digest_of, load_checkpoint, save_checkpoint

pytestmark = pytest.mark.integration

COMMANDS: dict[str, list[str]] = {
    "show": ["show", MODEL, "--image-size", "16", "--num-classes", "10"],
    "evaluate": ["evaluate", MODEL, "--data", "digits", "--test-images", "10", "--device", "cpu"],
    "predict": ["predict", MODEL, "--data", "digits", "--index", "0", "--device", "cpu"],
    "attention": ["attention", MODEL, "--data", "digits", "--out", "drawn", "--device", "cpu"],
    "train": ["train", MODEL, "--image-size", "16", "--set", "steps=1", "--out", "trained", "--device", "cpu"],
    "sweep": ["sweep", MODEL, "--seeds", "0", "--image-size", "16", "--set", "steps=1", "--out", "swept", "--device", "cpu"],
    "run": ["run", "--models", MODEL, "--image-sizes", "16", "--data", "digits", "--metrics", "accuracy", "--out", "run",
            "--devices", "cpu", "--threads", "1"],
}  # fmt: skip


def zipped(path: Path, pickled: bytes, more: dict[str, bytes] | None = None, **options: Any) -> Path:
    """A file as torch.save writes it, with a pickle of one's own."""
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr("archive/data.pkl", pickled)
        for name, content in (more or {"archive/version": b"3\n"}).items():
            archive.writestr(name, content)
    return path


def pickled_call(function: str, *arguments: bytes) -> bytes:
    """A pickle that calls ``module name`` with pickled arguments."""
    return b"\x80\x02c" + function.replace(" ", "\n").encode() + b"\n(" + b"".join(arguments) + b"tR."


MALICIOUS: dict[str, Callable[[Path, Path], Path]] = {
    "torch.save": lambda path, mark: (torch.save({"head.weight": Executed(mark)}, path), path)[1],
    "torch.save of old": lambda path, mark: (
        torch.save({"head.weight": Executed(mark)}, path, _use_new_zipfile_serialization=False), path)[1],
    "pickle 0": lambda path, mark: (path.write_bytes(pickle.dumps(Executed(mark), protocol=0)), path)[1],
    "pickle 5": lambda path, mark: (path.write_bytes(pickle.dumps(Executed(mark), protocol=5)), path)[1],
    "called safetensors": lambda path, mark: (
        torch.save({"state_dict": {"a": Executed(mark)}}, path.with_suffix(".safetensors")), path.with_suffix(".safetensors"))[1],
    "in a second part": lambda path, mark: zipped(
        path, pickle.dumps({}, protocol=2), {"archive/DATA.pkl": pickle.dumps(Executed(mark), protocol=2)}),
}  # fmt: skip


@pytest.mark.parametrize(
    ("command", "kind"),
    [("evaluate", kind) for kind in MALICIOUS]
    + [
        (command, kind)
        for command in COMMANDS
        if command not in ("run", "evaluate")
        for kind in ("torch.save", "pickle 0")
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_no_command_runs_the_code_in_a_checkpoint(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = MALICIOUS[kind](tmp_path / "evil.pt", tmp_path / "executed")
    code, out, errors = ask(capsys, *COMMANDS[command], "--weights", path)
    assert (code, out) == (2, "")
    assert f"Checkpoint '{path.name}' " in one_error(errors)
    assert sorted(one.name for one in tmp_path.iterdir()) == [path.name]


@pytest.mark.parametrize("kind", ["torch.save of old", "called safetensors", "in a second part"])
@pytest.mark.filterwarnings("ignore")
def test_nor_does_a_run(
    server: list[SharedLauncher],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    path = MALICIOUS[kind](tmp_path / "evil.pt", tmp_path / "executed")
    monkeypatch.chdir(tmp_path)
    code, _, errors = ask(capsys, *COMMANDS["run"], "--weights", path)
    assert code == 2
    assert f"Checkpoint '{path.name}' " in one_error(errors)
    assert sorted(one.name for one in tmp_path.iterdir()) == [path.name]


def safetensors(path: Path, header: dict[str, Any] | bytes, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def hole(path: Path, size: int, begin: bytes = b"", end: bytes = b"") -> Path:
    """A file of ``size`` bytes that takes no room on the disk."""
    with path.open("wb") as file:
        file.write(begin)
        file.seek(size - len(end))
        file.write(end)
        file.truncate(size)
    return path


def saved(path: Path, content: object, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


@functools.cache
def packed_zeros() -> bytes:
    """A zip file of a state dict's kind, but compressed: half a gigabyte of zeros in two megabytes."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}, protocol=2))
        for number in range(16):
            archive.writestr(f"archive/data/{number}", bytes(32 << 20))
    return content.getvalue()


def repacked(path: Path) -> Path:
    path.write_bytes(packed_zeros())
    return path


def with_a_hole(path: Path) -> Path:
    """A safetensors file that has the 16 GiB that it claims, as a hole."""
    header = json.dumps({"cls_token": {"dtype": "F32", "shape": [2**32], "data_offsets": [0, 2**34]}}).encode()
    return hole(path, 8 + len(header) + 2**34, struct.pack("<Q", len(header)) + header)


def with_end(path: Path, *, size: int, listed: int, offset: int = 0) -> Path:
    """A zip file in a hole, whose end claims a list of parts of ``listed`` bytes."""
    large = struct.pack("<LQHHLLQQQQ", 0x06064B50, 44, 45, 45, 0, 0, 1, 1, listed, offset)
    locator = struct.pack("<LLQL", 0x07064B50, 0, size - 98, 1)
    end = struct.pack("<LHHHHLLH", 0x06054B50, 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return hole(path, size, b"PK\3\4" + bytes(26), large + locator + end)


def prefixed(path: Path) -> Path:
    """More in front of the parts than the end says: zipfile and torch then see different parts."""
    inner = zipped(path.with_name("inner"), pickle.dumps({}, protocol=2)).read_bytes()
    path.with_name("inner").unlink()
    path.write_bytes(zipped(path, pickle.dumps({}, protocol=2)).read_bytes()[:40] + inner)
    return path


def many_views(path: Path) -> Path:
    one = torch.zeros(1)
    return saved(path, {f"w{number}": one for number in range(50_001)})


def chained(path: Path) -> Path:
    """Each call doubles a text: forty of them make a terabyte."""
    text = b"\x80\x02" + b"c_codecs\nencode\n(" * 40 + b"X\x01\x00\x00\x00a" + b"X\x03\x00\x00\x00hextR" * 40 + b"."
    return zipped(path, text)


def options_twice(function: str) -> bytes:
    """Options that bring a __setstate__ of their own, and are given a state once more."""
    name = b"c" + function.replace(" ", "\n").encode() + b"\n"
    return b"\x80\x02cargparse\nNamespace\n)\x81}X\x0c\x00\x00\x00__setstate__" + name + b"sb}b."


def many_dots(path: Path) -> Path:
    return saved(path, {"." * 100_000 + "x" * n: torch.zeros(1) for n in range(50)})


def deep_names(path: Path) -> Path:
    header = {f"a.b.c.d.e.f.g{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(20_000)}
    marks = {"vit.embeddings.cls_token": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}
    return safetensors(path, header | {f"{p}{key}": one for p in ("", "a.", "a.b.") for key, one in marks.items()})


def tangled_dicts(path: Path) -> Path:
    content: dict[str, Any] = {"w": torch.zeros(1)}
    for _ in range(40):
        content = {"a": content, "b": content}
    return saved(path, content)


def itself(path: Path) -> Path:
    content: dict[str, Any] = {"w": torch.zeros(1)}
    content["model"] = content
    return saved(path, content)


F32 = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
TERA = 10**12
#: kind -> (how it is made, what is said of it)
BOMBS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a header that claims 10^15 bytes": (
        lambda path: safetensors(path, {"a": {"dtype": "F32", "shape": [10**15], "data_offsets": [0, 4 * 10**15]}}), "damaged"),
    "a shape that overflows": (
        lambda path: safetensors(path, {"a": {"dtype": "F64", "shape": [2**40, 2**40], "data_offsets": [0, 16]}}), "damaged"),
    "a header of 2^60 bytes": (lambda path: safetensors(path, {"a": F32}, bytes(16), length=2**60), "is neither safetensors nor"),
    "a header beyond the file": (lambda path: safetensors(path, {"a": F32}, bytes(16), length=10**6), "damaged"),
    "a header of 20 MB": (
        lambda path: safetensors(path, b'{"__metadata__":{"x":"' + b"x" * 20_000_000 + b'"}}'), "is neither safetensors nor"),
    "a header of nothing but depth": (lambda path: safetensors(path, b'{"a":' + b"[" * 1_000_000), "damaged"),
    "offsets that overlap": (
        lambda path: safetensors(path, {"a": F32, "b": {**F32, "data_offsets": [8, 24]}}, bytes(24)), "damaged"),
    "offsets that run backwards": (lambda path: safetensors(path, {"a": {**F32, "data_offsets": [16, 0]}}, bytes(16)), "damaged"),
    "a hole of zeros": (lambda path: hole(path, 50 * 10**9), "is neither safetensors nor"),
    "a hole of 10^15 bytes": (lambda path: hole(path, 10**13), "has 10,000 GB, more than any model here (100 GB)"),
    "a safetensors file with a hole": (with_a_hole, "does not fit the model"),
    "more tensors than a model has": (
        lambda path: safetensors(path, {f"{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(50_001)}),
        "holds 50,001 tensors, more than any model has (50,000)"),
    "a view of 10^12 numbers": (
        lambda path: saved(path, {"head.weight": torch.zeros(1).expand(TERA)}), "claims the shape (1000000000000,) but holds fewer"),
    "an old file's view of 10^12 numbers": (
        lambda path: saved(path, {"head.weight": torch.zeros(1).expand(TERA)}, _use_new_zipfile_serialization=False),
        "claims the shape (1000000000000,) but holds fewer"),
    "a sparse view of 10^12 numbers": (
        lambda path: zipped(path, pickle.dumps({}, protocol=2)[:-1] + b"X\x01\x00\x00\x00actorch._utils\n_rebuild_sparse_tensor\n."),
        "'a' is a sparse tensor"),
    "half a gigabyte in two megabytes": (repacked, "is a compressed zip file"),
    "a zip file whose list is 90 GB": (lambda path: with_end(path, size=95 * 10**9, listed=90 * 10**9), "claims a list of parts of"),
    "a zip file whose list begins elsewhere": (lambda path: with_end(path, size=10_000, listed=0, offset=5), "is not a zip file that torch.save writes"),
    "a zip file behind another": (prefixed, "is not a zip file that torch.save writes"),
    "two parts of the same name": (
        lambda path: zipped(path, pickle.dumps({}, protocol=2), {"archive/Data.pkl": b"."}), "holds two parts of the same name"),
    "a table of contents of 40 MB": (
        lambda path: zipped(path, b"\x80\x02X" + struct.pack("<I", 40_000_000) + b"a" * 40_000_000 + b"."), "claims a table of contents"),
    "a version of 2 MB": (
        lambda path: zipped(path, pickle.dumps({}, protocol=2), {"archive/version": bytes(2_000_000)}), "claims 2,000,000 bytes in"),
    "50,001 names for one tensor": (many_views, "holds 50,001 tensors"),
    "bytes of 10^12 zeros": (
        lambda path: zipped(path, pickled_call("__builtin__ bytearray", b"\x8a\x06" + TERA.to_bytes(6, "little"))),
        "pickled code (__builtin__.bytearray)"),
    "a text that doubles forty times": (chained, "pickled code (_codecs.encode)"),
    "a copy to a device": (
        lambda path: zipped(path, pickled_call("torch._utils _rebuild_device_tensor_from_cpu_tensor")), "pickled code (torch._utils."),
    "code behind a name": (lambda path: zipped(path, pickled_call("torch _weights_only_unpickler.os.system")), "pickled code (torch."),
    "options with a function": (lambda path: zipped(path, options_twice("posix system")), "pickled code (posix.system)"),
    "options with a function of torch": (
        lambda path: zipped(path, options_twice("torch._utils _rebuild_tensor_v2")), "damaged"),
    "options that are called": (lambda path: zipped(path, pickled_call("argparse Namespace", b"X\x01\x00\x00\x00a")), "damaged"),
    "options that open files": (lambda path: zipped(path, pickled_call("argparse FileType")), "pickled code (argparse.FileType)"),
    "options as a name": (lambda path: zipped(path, b"\x80\x02}cargparse\nNamespace\n)\x81K\x01s."), "damaged"),
    "options as the content": (lambda path: saved(path, Namespace(cls_token=torch.zeros(1))), "holds Namespace, not a state dict"),
    "options as a weight": (lambda path: saved(path, {"cls_token": Namespace(a=1)}), "'cls_token' is Namespace"),
    "names of dots": (many_dots, "does not fit the model"),
    "names behind many prefixes": (deep_names, "does not fit the model"),
    "dicts in dicts in dicts": (tangled_dicts, "holds dicts of more than 3 levels"),
    "a dict in itself": (itself, "does not fit the model"),
    "an old file of one long line": (lambda path: hole(path, 10**8, b"\x80\x02c"), "damaged"),
    "an old file with a text of 4 GB": (lambda path: (path.write_bytes(b"\x80\x02X\xff\xff\xff\xffa."), path)[1], "damaged"),
    "a tar file": (lambda path: (path.write_bytes(b"\x80" + bytes(511)), path)[1], "damaged"),
    "a folder": (lambda path: (path.mkdir(), path)[1], "is a folder"),
    "a pipe": (lambda path: (os.mkfifo(path), path)[1], "is no regular file"),
    "a device": (lambda path: (path.symlink_to("/dev/zero"), path)[1], "is no regular file"),
    "nothing": (lambda path: (path.touch(), path)[1], "is empty"),
    "300 characters": (lambda path: path.with_name(LONG), "does not exist"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BOMBS)
@pytest.mark.usefixtures("quickly")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits memory as Linux does")
def test_a_checkpoint_that_is_a_bomb_is_one_line(tmp_path: Path, small: nn.Module, kind: str) -> None:
    make, message = BOMBS[kind]
    path = make(tmp_path / "bomb.pt")
    before = {key: value.clone() for key, value in small.state_dict().items()}
    with within_memory(400 << 20), pytest.raises(DataError) as caught:
        load_checkpoint(small, path)
    assert message in str(caught.value)
    assert "memory" not in str(caught.value).lower() or "memory" in message
    assert len(str(caught.value).splitlines()) == 1
    assert all(torch.equal(value, before[key]) for key, value in small.state_dict().items())


def test_a_file_is_not_hashed_for_hours(tmp_path: Path, quickly: None) -> None:
    for size in (50 * 10**9, 10**13):
        with pytest.raises(DataError):
            digest_of(hole(tmp_path / "hole.pt", size))


def test_a_file_that_is_read_whole_has_to_fit_into_memory(
    tmp_path: Path, small: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psutil

    class Little:
        available = 200_000

    old = saved(tmp_path / "old.pt", small.state_dict(), _use_new_zipfile_serialization=False)
    renamed = saved(tmp_path / "zip.safetensors", small.state_dict())
    mapped = saved(tmp_path / "zip.pt", small.state_dict())
    monkeypatch.setattr(psutil, "virtual_memory", lambda: Little)
    for path in (old, renamed):
        with pytest.raises(
            DataError, match=r"would take 0.0 GB of memory, and 0.0 GB are available: convert it to safetensors"
        ):
            load_checkpoint(small, path)
    load_checkpoint(small, mapped)


@pytest.mark.parametrize("kind", ["bomb", "bytes", "code", "hollow", "tangled", "itself", "old"])
def test_the_state_of_a_training_from_elsewhere_is_no_bomb(tmp_path: Path, kind: str, quickly: None) -> None:
    path = tmp_path / "last.pt"
    tangled: list[Any] = []
    for _ in range(50):
        tangled = [tangled, tangled]
    itself: list[Any] = []
    itself.append(itself)
    if kind == "bomb":
        repacked(path)
    elif kind == "bytes":
        zipped(path, pickled_call("__builtin__ bytearray", b"\x8a\x06" + TERA.to_bytes(6, "little")))
    elif kind == "code":
        saved(path, {"vitbench": Executed(tmp_path / "executed")})
    elif kind == "hollow":
        saved(path, {"vitbench": "{}", "optimizers": [{"state": {0: {"exp_avg": torch.zeros(1).expand(TERA)}}}]})
    elif kind == "tangled":
        saved(path, {"vitbench": "{}", "optimizers": tangled})
    elif kind == "itself":
        saved(path, {"vitbench": "{}", "optimizers": itself})
    else:
        saved(path, {"vitbench": "{}"}, _use_new_zipfile_serialization=False)
    with (
        within_memory(400 << 20),
        pytest.raises(DataError, match=r"^Checkpoint last\.pt is damaged \(.*\)\. Start anew") as caught,
    ):
        load_state(path)
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("claim", [{"num_classes": 1_000_000}, {"image_size": [8192, 8192]}])
def test_what_a_file_claims_of_its_training_is_held_against_its_weights(
    tmp_path: Path, small: nn.Module, claim: dict[str, Any], quickly: None
) -> None:
    path = tmp_path / "claims.safetensors"
    facts = {"model": MODEL, "image_size": [SIZE, SIZE], "num_classes": 10}
    save_checkpoint(small, path, {**facts, **claim})
    with within_memory(400 << 20):
        opened = open_trained(ModelRequest(model=MODEL, weights=str(path), device="cpu"))
    assert opened.num_classes == 10
    assert opened.image_size in ((SIZE, SIZE), (32, 32))


def test_ordinary_checkpoints_of_every_kind_still_load(tmp_path: Path, small: nn.Module) -> None:
    state = {key: value + 1 for key, value in small.state_dict().items()}
    optimizer = torch.optim.AdamW(small.parameters())
    small(torch.zeros(1, 3, SIZE, SIZE)).sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 2])
    beside = {
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "epoch": 3,
        "done": {1, 2},
        "best": None,
    }
    contents: list[Any] = [
        state,
        {"state_dict": state, **beside},
        {"model": {key: nn.Parameter(value) for key, value in state.items()}, "rng": torch.get_rng_state()},
        {"state_dict": {key: value.half() for key, value in state.items()}},
        {"model_state_dict": {f"module.{key}": value.bfloat16() for key, value in state.items()}},
    ]
    for number, content in enumerate(contents):
        for new in (True, False):
            load_checkpoint(small, saved(tmp_path / f"{number}.pt", content, _use_new_zipfile_serialization=new))
    save_file(state, tmp_path / "x.safetensors")
    load_checkpoint(small, tmp_path / "x.safetensors")
    assert all(torch.equal(value, state[key]) for key, value in small.state_dict().items())


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "run"])
@pytest.mark.filterwarnings("ignore")
def test_every_command_with_weights_takes_the_entry_of_a_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, small: nn.Module, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    state = small.state_dict()
    path = saved(tmp_path / "dino.pth", {"student": state, "teacher": {f"backbone.{k}": v for k, v in state.items()}})
    code, _, errors = ask(capsys, *COMMANDS[command], "--weights", path)
    assert code == 2
    assert "'student', 'teacher'" in one_error(errors)
    code, _, errors = ask(capsys, *COMMANDS[command], "--weights", path, "--entry", "mean")
    assert code == 2
    assert "has no entry 'mean'" in one_error(errors)
    assert ask(capsys, *COMMANDS[command], "--weights", path, "--entry", "teacher")[0] == 0
    code, _, errors = ask(capsys, *COMMANDS[command], "--entry", "teacher")
    assert code == 2


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "run"])
@pytest.mark.filterwarnings("ignore")
def test_every_command_with_weights_takes_the_grid_of_a_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, small: nn.Module, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    state = small.state_dict()
    tokens = state["pos_embed"].shape[1] - 1
    path = saved(tmp_path / "x.pth", state)
    code, _, errors = ask(capsys, *COMMANDS[command], "--weights", path, "--grid", f"1x{tokens + 1}")
    assert code == (1 if command == "sweep" else 2)  # each training of a sweep loads it
    assert f"--grid 1x{tokens + 1} does not fit the {tokens} positions in the file" in errors
    words = [f"again-{word}" if word == "swept" else word for word in COMMANDS[command]]
    assert ask(capsys, *words, "--weights", path, "--grid", f"1x{tokens}")[0] == 0
    code, _, errors = ask(capsys, *COMMANDS[command], "--grid", f"1x{tokens}")
    assert code == 2
    assert "--grid" in one_error(errors) or "--weights" in one_error(errors)
