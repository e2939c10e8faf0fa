"""The data sets that lie in a folder after a download: found, refused and read, all without a network."""

from __future__ import annotations

import gzip
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from vitbench.errors import DataError
from vitbench.training.data import describe_data, load_images
from vitbench.training.downloads import DOWNLOADS, read_idx


def _idx(pixels: np.ndarray) -> bytes:
    return bytes((0, 0, 8, pixels.ndim)) + b"".join(n.to_bytes(4, "big") for n in pixels.shape) + pixels.tobytes()


@pytest.fixture(scope="module")
def fashion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with Fashion-MNIST's files, of its size; the pictures' first pixel is their class."""
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
