"""The data sets that lie in a folder after a download: found, refused and read, all without a network."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import tarfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from vitbench.core.errors import DataError
from vitbench.training.data.datasets import describe_data, load_images
from vitbench.training.data.downloads import DOWNLOADS, LARGEST_FILE_BYTES, read_idx


def _idx(pixels: np.ndarray) -> bytes:
    return bytes((0, 0, 8, pixels.ndim)) + b"".join(n.to_bytes(4, "big") for n in pixels.shape) + pixels.tobytes()


@pytest.fixture(scope="module")
def fashion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with Fashion-MNIST's files, of its size; the images' first pixel is their class."""
    root = tmp_path_factory.mktemp("data")
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 60_000), ("t10k", 10_000)):
        labels = (np.arange(count) % 10).astype(np.uint8)
        pixels = np.zeros((count, 28, 28), np.uint8)
        pixels[:] = labels[:, None, None] * 20
        (raw / f"{part}-images-idx3-ubyte").write_bytes(_idx(pixels))
        (raw / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(_idx(labels), compresslevel=1))
    return root


@pytest.mark.parametrize("folder", ["", "FashionMNIST/raw"])
def test_fashion_mnist_is_read_packed_or_not_from_either_place(fashion: Path, folder: str) -> None:
    info = describe_data("fashion-mnist", root=fashion / folder)
    assert (info.label, info.train_images, info.test_images) == ("fashion-mnist", 60_000, 10_000)
    pictures = load_images(info, "test", image_size=(32, 32), images=50)
    assert pictures.images.shape == (50, 3, 32, 32)
    assert torch.bincount(pictures.labels).tolist() == [5] * 10
    assert torch.equal(pictures.images[:, 1, 5, 5].long(), pictures.labels * 20)


def test_damaged_fashion_mnist_is_refused(fashion: Path, tmp_path: Path) -> None:
    good = fashion / "FashionMNIST" / "raw" / "t10k-images-idx3-ubyte"
    bad = tmp_path / good.name
    bad.write_bytes(good.read_bytes()[:-1])
    with pytest.raises(DataError, match="t10k-images-idx3-ubyte of Fashion-MNIST is damaged"):
        read_idx(bad, (10_000, 28, 28))
    bad.with_name(bad.name + ".gz").write_bytes(gzip.compress(good.read_bytes(), 1)[:-100])
    bad.unlink()
    with pytest.raises(DataError, match="t10k-images-idx3-ubyte of Fashion-MNIST cannot be read"):
        read_idx(bad, (10_000, 28, 28))


@pytest.mark.parametrize("name", list(DOWNLOADS))
def test_missing_files_are_named_with_the_way_out(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"'{name}' is not in .*: .* is missing or empty. .*--data-dir.*--download"):
        describe_data(name, root=tmp_path)
    with pytest.raises(DataError, match="needs the folder that it is in: give --data-dir"):
        describe_data(name)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_damaged_cifar_is_refused_before_it_is_unpickled(name: str, tmp_path: Path) -> None:
    known = DOWNLOADS[name]
    (tmp_path / known.folders[0]).mkdir()
    for file in known.files:
        (tmp_path / known.folders[0] / file).write_bytes(pickle.dumps({"data": "not what it should be"}))
    info = describe_data(name, root=tmp_path)
    with pytest.raises(DataError, match=rf"'{name}' is damaged: .* Remove {known.folders[0]} and use --download"):
        load_images(info, "train", image_size=(32, 32))


def test_files_that_vanish_after_the_description_are_named(tmp_path: Path) -> None:
    info = describe_data("cifar10", root=tmp_path, download=True)
    with pytest.raises(DataError, match="'cifar10' is not in .*data_batch_1 is missing"):
        load_images(info, "train", image_size=(32, 32))


def test_download_without_a_network_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import urllib.request
    from urllib.error import URLError

    def refuse(*args: object, **kwargs: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    info = describe_data("cifar10", root=tmp_path, download=True)
    with pytest.raises(DataError, match="'cifar10' could not be downloaded: .*no route to host.*Is there a network?"):
        load_images(info, "train", image_size=(32, 32), download=True)


LABELS = (10_000,)


def _zeros_after(begin: bytes) -> bytes:
    """A gzip file of 2 MB that unpacks to ``begin`` and 2 GB of zeros; whether it ends well is only known at its end."""
    return gzip.compress(begin) + 200 * gzip.compress(bytes(10 << 20))


def _truthful(labels: bytes) -> bytes:
    return gzip.compress(labels) + 200 * gzip.compress(bytes(0))


IDX_BOMBS: dict[str, Callable[[bytes], bytes]] = {
    "zeros after a true header": lambda labels: _zeros_after(labels[:8]),
    "zeros after all labels": _zeros_after,
    "zeros alone": lambda labels: _zeros_after(b""),
    "a header that claims the zeros": lambda labels: _zeros_after(b"\0\0\x08\1" + (2**31 - 1).to_bytes(4, "big")),
    "more bytes packed than unpacked": lambda labels: gzip.compress(labels) + os.urandom(1 << 20),
    "a damaged stream": lambda labels: gzip.compress(labels)[:12] + b"\xff" * 300,
    "another method": lambda labels: b"\x1f\x8b\x63" + bytes(300),
    "rubbish behind it": lambda labels: gzip.compress(labels) + b"rubbish",
    "no gzip file": lambda labels: labels,
}


@pytest.mark.parametrize("kind", IDX_BOMBS)
def test_a_packed_file_that_unpacks_to_anything_else_is_one_line_in_little_memory(tmp_path: Path, kind: str) -> None:
    labels = _idx((np.arange(LABELS[0]) % 10).astype(np.uint8))
    path = tmp_path / "t10k-labels-idx1-ubyte"
    path.with_name(f"{path.name}.gz").write_bytes(IDX_BOMBS[kind](labels))
    tracemalloc.start()
    begin = time.monotonic()
    try:
        with pytest.raises(
            DataError, match=r"^t10k-labels-idx1-ubyte of Fashion-MNIST .*Remove it and use --download$"
        ):
            read_idx(path, LABELS)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()
    assert time.monotonic() - begin < 5


def test_a_packed_file_of_many_parts_that_is_whole_is_read(tmp_path: Path) -> None:
    labels = (np.arange(LABELS[0]) % 10).astype(np.uint8)
    path = tmp_path / "t10k-labels-idx1-ubyte"
    path.with_name(f"{path.name}.gz").write_bytes(_truthful(_idx(labels)))
    assert np.array_equal(read_idx(path, LABELS), labels)


def test_of_a_file_that_is_larger_than_it_should_be_no_more_is_read(tmp_path: Path) -> None:
    path = tmp_path / "t10k-labels-idx1-ubyte"
    with path.open("wb") as file:
        file.truncate(10**12)
    with pytest.raises(DataError, match="is damaged: not 10000 bytes in the IDX format"):
        read_idx(path, LABELS)


def test_a_class_that_there_is_not_is_refused(fashion: Path, tmp_path: Path) -> None:
    for file in (fashion / "FashionMNIST" / "raw").iterdir():
        (tmp_path / file.name).symlink_to(file)
    labels = np.full(LABELS, 10, np.uint8)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(_idx(labels))
    info = describe_data("fashion-mnist", root=tmp_path)
    with pytest.raises(DataError, match="t10k-labels-idx1-ubyte of Fashion-MNIST is damaged: a class 10, of 10"):
        load_images(info, "test", image_size=(28, 28), images=10)


def test_a_file_that_is_too_large_is_not_even_hashed(tmp_path: Path) -> None:
    known = DOWNLOADS["cifar10"]
    (tmp_path / known.folders[0]).mkdir()
    for file in known.files:
        with (tmp_path / known.folders[0] / file).open("wb") as handle:
            handle.truncate(LARGEST_FILE_BYTES if file == "data_batch_1" else 10**12)
    info = describe_data("cifar10", root=tmp_path)
    with pytest.raises(DataError, match=r"data_batch_2 of cifar10 is damaged: 1,000,000,000,000 bytes, more than any"):
        load_images(info, "train", image_size=(32, 32))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    import urllib.request
    from urllib.error import URLError

    def refuse(*args: object, **kwargs: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_an_archive_that_is_not_the_published_one_is_never_unpacked(tmp_path: Path, name: str) -> None:
    """Whatever its members are called and claim to hold: out of the folder, over it, or more than the disk has."""
    from torchvision import datasets

    root = tmp_path / "data"
    root.mkdir()
    with tarfile.open(root / getattr(datasets, DOWNLOADS[name].torchvision_class).filename, "w:gz") as archive:
        for member in ("../outside", str(tmp_path / "absolute"), f"{DOWNLOADS[name].folders[0]}/test", "ordinary"):
            entry = tarfile.TarInfo(member)
            entry.size = 3
            archive.addfile(entry, io.BytesIO(b"abc"))
        link = tarfile.TarInfo(DOWNLOADS[name].folders[0] + "/train")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    info = describe_data(name, root=root, download=True)
    with pytest.raises(DataError, match=f"'{name}' could not be downloaded: "):
        load_images(info, "train", image_size=(32, 32), download=True)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert [path.name for path in root.iterdir()] in ([], [getattr(datasets, name.upper()).filename])


@pytest.mark.usefixtures("no_network")
def test_images_in_a_place_of_old_are_not_taken_for_the_data_set(tmp_path: Path) -> None:
    place = tmp_path / "FashionMNIST" / "processed"
    place.mkdir(parents=True)
    for name in ("training.pt", "test.pt"):
        torch.save((torch.zeros(4, 28, 28, dtype=torch.uint8), torch.zeros(4, dtype=torch.long)), place / name)
    info = describe_data("fashion-mnist", root=tmp_path, download=True)
    with pytest.raises(DataError, match=r"processed' holds other images, which torchvision would read: remove it$"):
        load_images(info, "train", image_size=(32, 32), download=True)
