"""A model with a product that torch has no formula for, built as ``(*, image_size, num_classes)``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


@torch.library.custom_op("tests_of_vitbench_models::product", mutates_args=())
def product(x: Tensor, weight: Tensor) -> Tensor:
    return x @ weight


@product.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[1])


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
    x, weight = ctx.saved_tensors
    return gradient @ weight.T, x.T @ gradient


product.register_autograd(_backward, setup_context=_keep)


@torch.library.custom_op("tests_of_vitbench_models::real_only", mutates_args=())
def real_only(x: Tensor, weight: Tensor) -> Tensor:
    return x @ weight


_LIBRARY = torch.library.Library("tests_of_vitbench_models", "FRAGMENT")
_LIBRARY.define("cpu_only(Tensor x) -> Tensor")
_LIBRARY.impl("cpu_only", torch.clone, "CPU")


class WithProduct(nn.Module):
    """3 -> 8 by torch's own product, 8 -> 8 by the custom one, and a head."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.first = nn.Linear(3, 8)
        self.weight = nn.Parameter(torch.ones(8, 8))
        self.head = nn.Linear(8, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(product(self.first(images.mean(dim=(2, 3))), self.weight))
        return logits


class TwoSparse(nn.Module):
    """3 -> 8, a sparse matrix by a sparse one, and a head of what is left of 2 numbers."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(3, 8), nn.Linear(2, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.first(images.mean(dim=(2, 3)))
        square = torch.sparse.mm(x.T.to_sparse(), x.to_sparse()).to_dense()
        logits: Tensor = self.head(square.flatten()[: 2 * len(x)].view(-1, 2))
        return logits


def two_sparse(*, image_size: tuple[int, int], num_classes: int) -> nn.Module:
    return TwoSparse(num_classes)


class OnlyProduct(nn.Module):
    """Has no product that a formula covers."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, num_classes))

    def forward(self, images: Tensor) -> Tensor:
        return product(images.mean(dim=(2, 3)), self.weight)


def only_product(*, image_size: tuple[int, int], num_classes: int) -> nn.Module:
    return OnlyProduct(num_classes)


def with_product(*, image_size: tuple[int, int], num_classes: int) -> nn.Module:
    return WithProduct(num_classes)


class OnlyReal(nn.Module):
    """Has an operator without a kernel for fake tensors, at which torch's compiler fails."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, num_classes))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = real_only(images.mean(dim=(2, 3)), self.weight)
        return logits


def only_real(*, image_size: tuple[int, int], num_classes: int) -> nn.Module:
    return OnlyReal(num_classes)
