"""Small models with one layer that several modules hold."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Holder(nn.Module):
    """Calls what it holds once, by each of its names."""

    def __init__(self, *held: nn.Module) -> None:
        super().__init__()
        for index, one in enumerate(held):
            self.add_module(f"name_{index}", one)
        self.count = len(held)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for index in range(self.count):
            x = self.get_submodule(f"name_{index}")(x)
        return x


class Net(nn.Module):
    """Patches of 2 px (8 numbers each), then ``middle`` on the tokens, then a head."""

    def __init__(self, middle: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 2, stride=2)
        self.middle = middle
        self.head = nn.Linear(8, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = self.middle(self.patches(images).flatten(2).transpose(1, 2))  # (B, 8, H, W) -> (B, N, 8)
        logits: torch.Tensor = self.head(tokens.mean(1))
        return logits


class Linear(nn.Linear):
    """Named like torch's class, which it is not."""


def _shared(parents: int, num_classes: int) -> nn.Module:
    layer = nn.Linear(8, 8)
    return Net(nn.Sequential(*(Holder(layer) for _ in range(parents))), num_classes)


def one_parent(*, num_classes: int, **_: Any) -> nn.Module:
    """The layer in one module."""
    return _shared(1, num_classes)


def two_parents(*, num_classes: int, **_: Any) -> nn.Module:
    """The layer in two modules."""
    return _shared(2, num_classes)


def three_parents(*, num_classes: int, **_: Any) -> nn.Module:
    """The layer in three modules."""
    return _shared(3, num_classes)


def two_names(*, num_classes: int, **_: Any) -> nn.Module:
    """The layer twice in one module."""
    layer = nn.Linear(8, 8)
    return Net(Holder(layer, layer), num_classes)


def nested(*, num_classes: int, **_: Any) -> nn.Module:
    """The layer in a block that two modules hold, each of which two others hold, and once more by itself."""
    layer = nn.Linear(8, 8)
    inner = [Holder(block) for block in [Holder(layer)] * 2]
    outer = [Holder(*inner), Holder(*inner)]
    return Net(nn.Sequential(*outer, layer), num_classes)


def own_class(*, num_classes: int, **_: Any) -> nn.Module:
    """A layer of a subclass of torch's."""
    return Net(Linear(8, 8), num_classes)
