"""Images as commands read them one by one: real files, also files that are not images."""

from __future__ import annotations

import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vitbench.core.errors import DataError
from vitbench.experiments.images import read_image
from vitbench.training.data.folder import ImageFile, decode_image


def noise(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def huge_png(path: Path, width: int = 50_000, height: int = 50_000) -> Path:
    """A PNG whose header, and nothing else, claims 2.5 billion pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    return path


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.bmp", "a.gif", "a.webp", "a.ppm", "a.tif"])
@pytest.mark.parametrize(("height", "width", "size"), [(40, 60, (16, 16)), (60, 40, (16, 24)), (5, 7, (32, 32))])
def test_images_are_prepared_as_those_of_a_data_set(
    tmp_path: Path, name: str, height: int, width: int, size: tuple[int, int]
) -> None:
    path = tmp_path / name
    noise(height, width).save(path)
    pixels, whole = read_image(path, size)
    assert (pixels.shape, pixels.dtype) == ((3, *size), torch.uint8)
    expected = decode_image(tmp_path, ImageFile(name, path.stat().st_size, 0), size)
    assert np.array_equal(pixels.permute(1, 2, 0).numpy(), expected)
    assert (whole.mode, whole.size) == ("RGB", (width, height))


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1"])
def test_every_kind_of_8_bit_pixels_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    noise(20, 20).convert(mode).save(path)
    pixels, whole = read_image(path, (8, 8))
    assert (pixels.shape, whole.mode) == ((3, 8, 8), "RGB")


def test_images_are_upright_by_their_exif_tag(tmp_path: Path) -> None:
    picture = noise(8, 16)
    exif = Image.Exif()
    exif[0x0112] = 6  # the top row is the right column: turn by 90 degrees clockwise
    picture.save(tmp_path / "a.png", exif=exif)
    pixels, whole = read_image(tmp_path / "a.png", (16, 8))
    turned = np.rot90(np.asarray(picture), -1)
    assert np.array_equal(pixels.permute(1, 2, 0).numpy(), turned)
    assert np.array_equal(np.asarray(whole), turned)


def damaged(folder: Path, kind: str) -> Path:
    """A file of that kind that is no whole image."""
    path = folder / ("a.jpg" if kind == "cut jpeg" else "a.png")
    if kind == "cut png":
        noise(64, 64).save(path)
        path.write_bytes(path.read_bytes()[:3000])
    elif kind == "cut jpeg":
        noise(64, 64).save(path)
        path.write_bytes(path.read_bytes()[:2000])
    elif kind == "text":
        path.write_text("I am no image\n")
    elif kind == "empty":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    elif kind == "huge":
        huge_png(path)
    elif kind == "large":  # where Pillow warns and decodes all the same
        huge_png(path, 10_000, 10_000)
    elif kind == "16 bit":
        Image.fromarray(np.zeros((8, 8), np.uint16)).save(path)
    elif kind == "eps":
        noise(8, 8).save(path, format="EPS")
    elif kind == "pipe":
        import os

        os.mkfifo(path)
    return path


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", r"a.png does not exist$"),
        ("folder", r"a.png is a folder: give the images in it$"),
        ("empty", r"a.png is empty: copy"),
        ("text", r"a.png is not an image \(BMP, GIF, JPEG, .*\), or its beginning is damaged$"),
        ("eps", r"a.png is not an image"),
        ("cut png", r"a.png cannot be read, perhaps cut short or damaged: .*"),
        ("cut jpeg", r"a.jpg cannot be read, perhaps cut short or damaged: .*truncated"),
        ("huge", r"a.png is too large: it claims 2,500,000,000 pixels, at most 89,478,485 are read. Shrink it first$"),
        ("large", r"a.png is too large: it claims 100,000,000 pixels"),
        ("16 bit", r"a.png has more than 8 bits a channel \(mode I;16\)"),
        ("pipe", r"a.png is not a regular file"),
    ],
)
def test_what_is_no_image_is_one_clear_line(tmp_path: Path, kind: str, message: str) -> None:
    path = damaged(tmp_path, kind)
    with pytest.raises(DataError, match=message) as caught:
        read_image(path, (8, 8))
    assert "\n" not in str(caught.value)
    assert str(caught.value).count(str(path)) == 1


def test_every_cut_of_an_image_is_refused_or_read(tmp_path: Path) -> None:
    """Whatever the decoder raises, it is a DataError."""
    for suffix in ("png", "jpg", "gif", "webp", "tif", "bmp", "ppm"):
        whole = tmp_path / f"a.{suffix}"
        noise(12, 12).save(whole)
        content = whole.read_bytes()
        generator = np.random.default_rng(0)
        refused = []
        for cut in generator.integers(1, len(content), 12):
            broken = bytearray(content[:cut] if cut % 2 else content)
            for place in generator.integers(0, len(broken), 3 * (cut % 3)):
                broken[place] = int(generator.integers(0, 256))
            path = tmp_path / f"b.{suffix}"
            path.write_bytes(broken)
            try:
                read_image(path, (8, 8))
            except DataError as error:
                refused.append(str(error))
        assert refused
        assert not any("\n" in line for line in refused)


def test_strange_names_are_escaped(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\\x1b\[2J\\nb.png does not exist$"):
        read_image(tmp_path / "a\x1b[2J\nb.png", (8, 8))
    with pytest.raises(DataError, match="cannot be read"):
        read_image(Path("a" * 5000), (8, 8))


def test_warnings_of_damaged_tags_stay_inside(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    noise(8, 8).save(path, exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x01" * 40)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_image(path, (8, 8))
