"""Image folders: how they are listed, labelled and decoded, and each way in which one can be wrong."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.training.data.folders import make_image_folder
from vitbench.core.errors import DataError
from vitbench.training.data.datasets import describe_data, load_images


def test_folder_is_described_without_its_path(tmp_path: Path) -> None:
    info = describe_data(str(make_image_folder(tmp_path / "my pets", ("dog", "cat"))))
    assert info.class_names == ("cat", "dog")
    assert (info.train_images, info.test_images) == (6, 4)
    assert info.label.startswith("folder:my_pets:")
    assert len(info.label) == len("folder:my_pets:") + 8
    assert str(tmp_path) not in info.label + info.summary


def test_label_tells_contents_apart_but_not_places(tmp_path: Path) -> None:
    first = make_image_folder(tmp_path / "a" / "pets")
    second = tmp_path / "b" / "pets"
    shutil.copytree(first, second)
    assert describe_data(str(first)).label == describe_data(str(second)).label
    (second / "train" / "cat" / "notes.txt").write_text("no image")
    (second / "train" / ".cache").mkdir()
    assert describe_data(str(first)).label == describe_data(str(second)).label
    (second / "train" / "cat" / "0.png").rename(second / "train" / "cat" / "9.png")
    assert describe_data(str(first)).label != describe_data(str(second)).label


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="names of any bytes are Linux's")
def test_a_file_name_in_another_encoding_is_an_image_like_others(tmp_path: Path) -> None:
    root = make_image_folder(tmp_path / "pets")
    before = describe_data(str(root)).label
    os.rename(os.fsencode(root / "train" / "cat" / "0.png"), os.fsencode(root / "train" / "cat") + b"/caf\xe9.png")
    info = describe_data(str(root))
    assert info.label != before
    assert len(load_images(info, "train", image_size=(8, 8))) == info.train_images


def test_label_is_the_same_from_inside_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outside = describe_data(str(make_image_folder(tmp_path / "pets")))
    monkeypatch.chdir(tmp_path / "pets")
    assert describe_data(".").label == outside.label
    monkeypatch.chdir(tmp_path)
    assert describe_data("pets").label == outside.label


def test_images_of_their_own_size_are_loaded_as_they_are(tmp_path: Path) -> None:
    root = make_image_folder(tmp_path / "pets", size=(10, 12))
    pictures = load_images(describe_data(str(root)), "train", image_size=(10, 12))
    assert pictures.images.shape == (6, 3, 10, 12)
    assert pictures.labels.tolist() == [0, 0, 0, 1, 1, 1]
    theirs = torch.from_numpy(np.array(Image.open(root / "train" / "dog" / "1.png"))).permute(2, 0, 1)
    assert torch.equal(pictures.images[4], theirs)


def test_images_of_another_shape_are_cut_in_the_middle_not_squashed(tmp_path: Path) -> None:
    root = make_image_folder(tmp_path / "pets", size=(10, 30))
    pixels = np.zeros((10, 30, 3), np.uint8)
    pixels[:, 8:22] = 200  # only the middle is bright
    Image.fromarray(pixels).save(root / "test" / "cat" / "0.png")
    image = load_images(describe_data(str(root)), "test", image_size=(5, 5)).images[0]
    assert image.min() == image.max() == 200


def test_gray_transparent_and_rotated_images_become_upright_rgb(tmp_path: Path) -> None:
    root = make_image_folder(tmp_path / "pets", size=(4, 4), test=3)
    half = np.zeros((4, 4), np.uint8)
    half[:2] = 255  # the upper half is bright
    Image.fromarray(half).save(root / "test" / "cat" / "0.png")
    Image.fromarray(np.stack([half, half, half, half], -1)).save(root / "test" / "cat" / "1.png")
    exif = Image.Exif()
    exif[0x0112] = 3  # orientation: upside down
    Image.fromarray(half[::-1].copy()).save(root / "test" / "cat" / "2.png", exif=exif)
    images = load_images(describe_data(str(root)), "test", image_size=(4, 4)).images
    for image in images[:3]:
        assert torch.equal(image, torch.from_numpy(half).expand(3, 4, 4))


def test_only_the_chosen_images_are_decoded(tmp_path: Path) -> None:
    root = make_image_folder(tmp_path / "pets", train=20)
    info = describe_data(str(root))
    opened: list[str] = []
    real_open = Image.open
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image, "open", lambda path, *a, **k: (opened.append(str(path)), real_open(path, *a, **k))[1])
        pictures = load_images(info, "train", image_size=(8, 8), images=10)
    assert len(opened) == len(pictures) == 10
    assert torch.bincount(pictures.labels).tolist() == [5, 5]


def test_nested_images_belong_to_their_class(tmp_path: Path) -> None:
    root = make_image_folder(tmp_path / "pets")
    (root / "train" / "cat" / "more").mkdir()
    shutil.copy(root / "train" / "cat" / "0.png", root / "train" / "cat" / "more" / "x.PNG")
    assert describe_data(str(root)).train_images == 7


def _no_test(root: Path) -> None:
    (root / "test").rename(root / "val")


def _no_train(root: Path) -> None:
    shutil.rmtree(root / "train")


def _other_classes(root: Path) -> None:
    (root / "test" / "dog").rename(root / "test" / "dogs")


def _no_classes(root: Path) -> None:
    shutil.rmtree(root / "train")
    (root / "train").mkdir()


def _one_class(root: Path) -> None:
    shutil.rmtree(root / "train" / "dog")
    shutil.rmtree(root / "test" / "dog")


def _empty_class(root: Path) -> None:
    for path in (root / "train" / "dog").iterdir():
        path.rename(path.with_suffix(".txt"))


def _empty_file(root: Path) -> None:
    (root / "train" / "dog" / "2.png").write_bytes(b"")


def _no_picture(root: Path) -> None:
    (root / "train" / "dog" / "0.png").write_text("version https://git-lfs.github.com/spec/v1")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_no_test, r"has no test/ folder \(found: train, val\). An image folder has train/<class>/\*"),
        (_no_train, r"has no train/ folder \(found: test\)"),
        (_other_classes, r"differ: dog/ is only in train/, dogs/ is only in test/. Both need the same"),
        (_no_classes, r"train/ of image folder .* has no class folders"),
        (_one_class, r"has one class, 'cat'"),
        (_empty_class, r"train/dog/ of image folder .* is empty: no file ends in .*\.jpeg"),
        (_empty_file, r"train/dog/2.png of image folder .* is empty: remove or replace it"),
        (_no_picture, r"train/dog/0.png of image folder 'pets' is not an image .*Remove or replace"),
    ],
)
def test_wrong_folder_is_refused_when_it_is_described(tmp_path: Path, damage: object, message: str) -> None:
    root = make_image_folder(tmp_path / "pets")
    assert callable(damage)
    damage(root)
    with pytest.raises(DataError, match=message) as caught:
        describe_data(str(root))
    assert "\n" not in str(caught.value)


def test_missing_folder_is_told_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'.*nowhere' does not exist. An image folder has"):
        describe_data(str(tmp_path / "nowhere"))


def test_missing_folder_is_told_another_spelling(tmp_path: Path) -> None:
    make_image_folder(tmp_path / "Pets")
    if (tmp_path / "pets").exists():
        pytest.skip("this file system ignores case")
    with pytest.raises(DataError, match=r"Did you mean 'Pets'\?"):
        describe_data(str(tmp_path / "pets"))


def test_archive_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "pets.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match="is a file, not a folder.*unpack"):
        describe_data(str(tmp_path / "pets.zip"))


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_folder_without_permission_is_refused(tmp_path: Path) -> None:
    root = make_image_folder(tmp_path / "pets")
    (root / "train" / "cat").chmod(0)
    try:
        with pytest.raises(DataError, match="cannot be read: Permission denied"):
            describe_data(str(root))
    finally:
        (root / "train" / "cat").chmod(0o755)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _sixteen_bits(path: Path) -> None:
    Image.fromarray(np.full((4, 4), 60_000, np.uint16)).save(path)


def _huge(path: Path) -> None:
    Image.new("1", (20_000, 20_000)).save(path)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("damage", "reason"),
    [(_truncate, "."), (_sixteen_bits, "more than 8 bits"), (_huge, "too large: it claims 400,000,000 pixels")],
)
def test_unreadable_image_is_named_relative_to_its_folder(tmp_path: Path, damage: object, reason: str) -> None:
    root = make_image_folder(tmp_path / "pets", size=(40, 40))
    assert callable(damage)
    damage(root / "test" / "dog" / "1.png")
    with pytest.raises(DataError, match=rf"^test/dog/1.png of image folder 'pets' .*{reason}") as caught:
        load_images(describe_data(str(root)), "test", image_size=(8, 8))
    assert str(tmp_path) not in str(caught.value)


def test_folder_that_changes_after_it_was_described_is_refused(tmp_path: Path) -> None:
    root = make_image_folder(tmp_path / "pets")
    info = describe_data(str(root))
    (root / "train" / "cat" / "1.png").unlink()
    with pytest.raises(DataError, match="'pets' has changed since it was described"):
        load_images(info, "train", image_size=(8, 8))


def test_real_image_folder_is_described_and_loaded() -> None:
    folder = os.environ.get("VITBENCH_DATA")
    if not folder:
        pytest.skip("VITBENCH_DATA names no image folder (train/<class>/*, test/<class>/*)")
    info = describe_data(folder)
    for split in ("train", "test"):
        wanted = 4 * info.num_classes
        pictures = load_images(info, split, image_size=(32, 32), images=wanted)
        assert pictures.images.shape == (wanted, 3, 32, 32)
        assert pictures.images.float().std() > 20  # real images, not blank ones
        assert len(torch.unique(pictures.labels)) == info.num_classes


def test_images_that_fill_memory_stay_on_disk_and_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import contextlib

    import psutil
    import torch

    from tests.training.tiny import PatchClassifier
    from vitbench.training.data.datasets import load_images
    from vitbench.training.data.folder import ImagesOnDisk
    from vitbench.training.evaluate import evaluate
    from vitbench.training.loop import Trainer
    from vitbench.training.recipes import Recipe

    info = describe_data(str(make_image_folder(tmp_path, train=20, test=7)))
    in_memory = [load_images(info, split, image_size=(8, 8)) for split in ("train", "test")]

    class Little:
        available = 2 * 8 * 8 * 3 * 10

    monkeypatch.setattr(psutil, "virtual_memory", lambda: Little)
    on_disk = [load_images(info, split, image_size=(8, 8)) for split in ("train", "test")]
    assert all(isinstance(one.images, ImagesOnDisk) for one in on_disk)
    found = []
    for training, test in (in_memory, on_disk):
        torch.manual_seed(0)
        model = PatchClassifier(classes=2, dropout=0.0)
        recipe = Recipe(name="test", learning_rate=1e-2, batch_size=8, epochs=2, augment=("crop", "flip"))
        how = {"device": "cpu", "autocast": contextlib.nullcontext}
        Trainer(model, training, recipe, synchronize=lambda: None, seed=0, **how).run()
        found.append(
            (
                torch.cat([one.detach().flatten() for one in model.parameters()]),
                evaluate(model, test, batch_size=4, **how),
            )
        )
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]
    assert torch.equal(on_disk[0].images[3], in_memory[0].images[3])
    assert torch.equal(on_disk[0].images[2:5], in_memory[0].images[2:5])


def test_many_threads_name_the_first_image_that_cannot_be_read(tmp_path: Path) -> None:
    from vitbench.training.data.datasets import load_images

    root = make_image_folder(tmp_path, train=30)
    info = describe_data(str(root))
    for number in (7, 21):
        path = root / "train" / "dog" / f"{number}.png"
        path.write_bytes(path.read_bytes()[:60].ljust(path.stat().st_size, b"\0"))
    with pytest.raises(DataError, match=r"train/dog/21\.png"):  # names are in the order of texts: 21 before 7
        load_images(info, "train", image_size=(8, 8))
