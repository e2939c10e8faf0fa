"""Images per second of the data path, from uint8 in memory to a normalised batch, against a pipeline of single images.

Other load makes two threads wait for each other, and the values for two worthless.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.conftest import paired_ratio
from vitbench.training.augmentation.augment import augment, normalise

PICTURES, BATCH, WORKERS = 5120, 128, 2
#: Our passes for one of theirs, so that both take long enough to be compared.
PASSES, PAIRS = 8, 15

#: Our augmentations and the same by torchvision on PIL images.
CHOICES = {
    "crop, flip, jitter": [transforms.ColorJitter(0.2, 0.2, 0.2)],
    "crop, flip, rotation": [transforms.RandomRotation(15)],
    "crop, flip, randaugment": [transforms.RandAugment()],
}
GOAL = "crop, flip, jitter"


class Pictures(Dataset[tuple[torch.Tensor, int]]):
    """As torchvision's CIFAR10: an array in memory, of which each image becomes a PIL image first."""

    def __init__(self, pixels: np.ndarray, transform: Callable[[Image.Image], torch.Tensor]) -> None:
        self.pixels = pixels  # (N, 32, 32, 3) uint8
        self.transform = transform

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[index])), index % 10


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """Smooth images: noise would make no pipeline slower or faster, but nobody trains on it."""
    draw = torch.Generator().manual_seed(0)
    coarse = torch.rand(PICTURES, 3, 8, 8, generator=draw)
    images = torch.nn.functional.interpolate(coarse, (32, 32), mode="bicubic").clamp(0, 1)
    return (images * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


@pytest.fixture
def by_picture(pixels: np.ndarray) -> Iterator[Callable[[Sequence[object]], Callable[[], None]]]:
    """Makes a pass over all images by a DataLoader with running workers."""
    loaders = []

    def make(own: Sequence[object]) -> Callable[[], None]:
        steps = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), *own]
        steps += [transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)]
        loader = DataLoader(
            Pictures(pixels, transforms.Compose(steps)),
            BATCH,
            shuffle=True,
            num_workers=WORKERS,
            persistent_workers=True,
        )
        loaders.append(loader)

        def one_pass() -> None:
            for images, _ in loader:
                assert images.shape == (BATCH, 3, 32, 32)

        return one_pass

    yield make
    loaders.clear()  # ends their workers


def whole_batches(pixels: np.ndarray, names: Sequence[str]) -> Callable[[], None]:
    stored = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    labels = torch.arange(PICTURES) % 10
    generator = torch.Generator().manual_seed(0)

    def passes() -> None:
        for _ in range(PASSES):
            for indices in torch.randperm(PICTURES, generator=generator).split(BATCH):
                images = normalise(augment(stored[indices], names, generator), torch.float32)
                assert (images.shape, len(labels[indices])) == ((BATCH, 3, 32, 32), BATCH)

    return passes


@pytest.mark.parametrize("threads", [2, 1])
@pytest.mark.parametrize("choice", CHOICES)
def test_whole_batches_against_pictures_one_by_one(
    say: Callable[[str], None],
    by_picture: Callable[[Sequence[object]], Callable[[], None]],
    pixels: np.ndarray,
    choice: str,
    threads: int,
) -> None:
    theirs = by_picture(CHOICES[choice])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of more workers than free cores
        theirs()  # starts the workers
    torch.set_num_threads(threads)
    ours = whole_batches(pixels, choice.split(", "))
    ours()
    ratio, low, high = (PASSES * one for one in paired_ratio(theirs, ours, PAIRS))
    say(
        f"{choice}, 32 px, batch {BATCH}, threads {threads}: images/s over those of PIL with {WORKERS} workers: "
        f"{ratio:.1f} ({low:.1f} to {high:.1f})"
    )
    assert choice != GOAL or ratio >= 5
