"""Pictures that are bombs: refused in one line and little memory, wherever they are read."""

from __future__ import annotations

import os
import struct
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from torch import nn

from tests.hostile.asking import MODEL, SIZE, ask, one_error, within_memory
from tests.training.data.folders import make_image_folder
from vitbench.core.errors import DataError
from vitbench.experiments.images import read_image
from vitbench.models import build_model
from vitbench.models.weights.checkpoints import save_checkpoint
from vitbench.training.data.datasets import describe_data, load_images
from vitbench.training.data.folder import ImageFile, decode_image

pytestmark = pytest.mark.integration


def png(path: Path, *chunks: tuple[bytes, bytes], width: int = 4, height: int = 4) -> Path:
    """A PNG of ``width`` x ``height`` px with ``chunks`` before its pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    pixels = (b"\0" + bytes(3 * width)) * min(height, 64)
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        *chunks,
        (b"IDAT", zlib.compress(pixels)),
        (b"IEND", b""),
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))
    return path


ZEROS = zlib.compress(bytes(200 << 20))
#: kind -> how it is made
PICTURE_BOMBS: dict[str, Callable[[Path], Path]] = {
    "2.5 billion pixels": lambda path: png(path, width=50_000, height=50_000),
    "100 million pixels": lambda path: png(path, width=10_000, height=10_000),
    "a colour profile of 200 MB": lambda path: png(path, (b"iCCP", b"x\0\0" + ZEROS)),
    "a text of 200 MB": lambda path: png(path, (b"zTXt", b"x\0\0" + ZEROS)),
    "a text of 200 MB in any language": lambda path: png(path, (b"iTXt", b"x\0\1\0\0\0" + ZEROS)),
    "a hundred texts of a megabyte": lambda path: png(
        path, *[(b"zTXt", b"x\0\0" + zlib.compress(bytes(1 << 20)))] * 100),
    "a chunk of 2 GB": lambda path: (path.write_bytes(png(path).read_bytes()[:33] + b"\x7f\xff\xff\xff" + b"zTXt" + b"x" * 99), path)[1],
    "an animation that claims 10^9 frames and has none": lambda path: png(
        path, (b"acTL", struct.pack(">II", 10**9, 0)), width=70_000, height=70_000),
    "PostScript": lambda path: (Image.new("RGB", (8, 8)).save(path, format="EPS"), path)[1],
    "half a picture": lambda path: (
        Image.effect_noise((64, 64), 50).save(path, format="PNG"), path.write_bytes(path.read_bytes()[:800]), path)[2],
}  # fmt: skip


def animation(path: Path, kind: str) -> Path:
    """Thousands of small frames (of TIFF, which takes long to write, hundreds)."""
    frames = 300 if kind == "TIFF" else 3000
    pictures = [Image.new("RGB", (8, 8), (number % 256, number // 256, 0)) for number in range(frames)]
    pictures[0].save(path, format=kind, save_all=True, append_images=pictures[1:])
    return path


@pytest.fixture
def no_ghostscript(monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import EpsImagePlugin

    def run(*_: Any, **__: Any) -> None:
        raise AssertionError("a program was run for a picture")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", run)


@pytest.mark.parametrize("kind", PICTURE_BOMBS)
@pytest.mark.usefixtures("quickly", "no_ghostscript")
@pytest.mark.filterwarnings("ignore")
def test_a_picture_that_is_a_bomb_is_one_line_wherever_it_is_read(tmp_path: Path, kind: str) -> None:
    path = PICTURE_BOMBS[kind](tmp_path / "bomb.png")
    with within_memory(150 << 20), pytest.raises(DataError) as alone:
        read_image(path, (8, 8))
    with within_memory(150 << 20), pytest.raises(DataError, match=r"^bomb\.png of image folder ") as in_folder:
        decode_image(tmp_path, ImageFile("bomb.png", path.stat().st_size, 0), (8, 8))
    for caught in (alone, in_folder):
        assert len(str(caught.value).splitlines()) == 1
        assert len(str(caught.value)) < 700
        assert "not enough memory" not in str(caught.value)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "TIFF", "WEBP"])
def test_of_thousands_of_frames_the_first_one_is_read(tmp_path: Path, kind: str) -> None:
    path = animation(tmp_path / "many.png", kind)
    begin = time.monotonic()
    pixels, whole = read_image(path, (8, 8))
    decoded = decode_image(tmp_path, ImageFile("many.png", path.stat().st_size, 0), (8, 8))
    assert time.monotonic() - begin < 1
    assert whole.size == (8, 8)
    assert (pixels.permute(1, 2, 0).numpy() == decoded).all()
    assert int(pixels.max()) <= 8  # the first one is black


@pytest.mark.parametrize("command", ["predict", "attention", "evaluate", "train", "run"])
@pytest.mark.usefixtures("no_ghostscript")
@pytest.mark.filterwarnings("ignore")
def test_every_command_refuses_a_bomb_in_a_folder(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    small: nn.Module,
    command: str,
    quickly: None,
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = make_image_folder(tmp_path / "pets", train=2, test=2)
    weights = tmp_path / "two.safetensors"
    save_checkpoint(
        build_model(MODEL, image_size=SIZE, num_classes=2), weights, {"image_size": [SIZE, SIZE], "num_classes": 2}
    )
    for kind in ("PostScript", "100 million pixels"):
        for split in ("train", "test"):
            PICTURE_BOMBS[kind](folder / split / "cat" / "0.png")
        words = {
            "predict": ["predict", MODEL, "--weights", weights, folder / "test" / "cat" / "0.png"],
            "attention": ["attention", MODEL, "--weights", weights, "--data", folder, "--index", "0"],
            "evaluate": ["evaluate", MODEL, "--weights", weights, "--data", folder],
            "train": ["train", MODEL, "--data", folder, "--image-size", "16", "--set", "steps=1"],
            "run": ["run", "--models", MODEL, "--data", folder, "--metrics", "accuracy"],
        }[command]
        code, out, errors = ask(capsys, *words)
        assert (code, out) == (2, "")
        assert "0.png" in one_error(errors)


def test_large_pictures_are_decoded_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vitbench.training.data import images

    root = make_image_folder(tmp_path / "pets", train=8, size=(40, 40))
    inside, most, lock = 0, 0, threading.Lock()
    convert = Image.Image.convert

    def watched(self: Image.Image, *arguments: Any, **more: Any) -> Image.Image:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        time.sleep(0.01)
        result: Image.Image = convert(self, *arguments, **more)
        with lock:
            inside -= 1
        return result

    monkeypatch.setattr(Image.Image, "convert", watched)
    monkeypatch.setattr(images, "_LARGE_PIXELS", 1000)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    pictures = load_images(describe_data(str(root)), "train", image_size=(8, 8))
    assert len(pictures) == 16
    assert most == 1
