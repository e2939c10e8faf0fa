"""One step of the optimizers on one batch: in parts, with several processes, scaled losses and class weights.

Loads torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from vitbench.models.outputs import check_classes, mean_logits, training_loss
from vitbench.training.recipes import Recipe


@dataclass(eq=False)
class Step:
    """One step of the optimizers on one batch; returns the loss and how many are right, still on the device.

    ``forward`` is called in place of ``model`` (compiled, distributed); ``class_weights`` (K,) weight the loss.
    """

    model: torch.nn.Module
    forward: torch.nn.Module
    optimizers: list[torch.optim.Optimizer]
    recipe: Recipe
    autocast: Callable[[], AbstractContextManager[Any]]
    scaler: torch.amp.GradScaler | None
    num_classes: int
    class_weights: torch.Tensor | None
    ranks: int = 1

    def __post_init__(self) -> None:
        # where the recipe asks for parts of one image, a layer that needs more raises an error
        usual = math.ceil(max(self.recipe.batch_size // self.ranks, 1) / self.recipe.accumulate)
        self.norms = [one for one in self.model.modules() if isinstance(one, _BatchNorm)] if usual > 1 else []

    def __call__(
        self, inputs: torch.Tensor, labels: torch.Tensor, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        parts = [(inputs, labels, targets)]
        if self.recipe.accumulate > 1:
            parts = list(zip(*(x.chunk(self.recipe.accumulate) for x in (inputs, labels, targets)), strict=True))
        losses, right = [], []
        of_ranks = self._share_of_ranks(targets)
        for index, part in enumerate(parts):
            share = None if len(parts) == 1 else self._share(part[2], targets)
            if of_ranks is not None:
                share = of_ranks if share is None else of_ranks * share
            with self._together(last=index == len(parts) - 1):
                loss, correct = self._part(*part, share=share)
            losses.append(loss)
            right.append(correct)
        self._update()
        if len(parts) == 1:
            return losses[0], right[0]
        return torch.stack(losses).sum(), torch.stack(right).sum()

    def _update(self) -> None:
        """Clip the gradients and update the weights, unless a scaler finds an overflow."""
        # A scaler looks for overflows by optimizer, but the norm is over all gradients: one overflow spoils all when
        # they are clipped, so that no optimizer may step.
        together: Any = _Together(self.optimizers)
        if self.recipe.clip_norm is not None:
            if self.scaler is not None:
                self.scaler.unscale_(together)  # before the norm is taken
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm)
        if self.scaler is None:
            together.step()
        else:
            self.scaler.step(together)
            self.scaler.update()

    def _part(
        self, inputs: torch.Tensor, labels: torch.Tensor, targets: torch.Tensor, share: float | torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Forward and backward of a part of the batch; its loss is weighted by its ``share``, if it has one."""
        with self.autocast():
            with _without_statistics_of_one(self.norms if len(inputs) == 1 else ()):
                output = self.forward(inputs)
            check_classes(output, self.num_classes)
            loss = training_loss(self.model, output, targets, self.recipe.label_smoothing, self.class_weights)
        if share is not None:
            loss = loss * share
        scaled = loss if self.scaler is None else self.scaler.scale(loss)
        scaled.backward()
        with torch.no_grad():
            correct = (mean_logits(output).argmax(-1) == labels).sum()
        return loss.detach(), correct

    def _share(self, part: torch.Tensor, whole: torch.Tensor) -> float | torch.Tensor:
        """The weight of a part's mean loss in the mean of the whole batch; ``part`` and ``whole`` are their targets."""
        if self.class_weights is None or whole.dim() == 2:  # shares of classes: torch divides by the images
            return len(part) / len(whole)
        return self.class_weights[part].sum() / self.class_weights[whole].sum()

    def _share_of_ranks(self, targets: torch.Tensor) -> torch.Tensor | None:
        """The weight of this process's mean loss in the mean of all processes, where classes have weights; the average
        of gradients takes all processes for equal.
        """
        if self.ranks == 1 or self.class_weights is None or targets.dim() == 2:
            return None
        own = self.class_weights[targets].sum()
        together = own.clone()
        torch.distributed.all_reduce(together)
        return self.ranks * own / together

    def _together(self, last: bool) -> AbstractContextManager[Any]:
        """Average the gradients of several processes once a step, with the last part."""
        no_sync = getattr(self.forward, "no_sync", None)
        return nullcontext() if last or no_sync is None else no_sync()


@contextmanager
def _without_statistics_of_one(norms: Iterable[_BatchNorm]) -> Iterator[None]:
    """Inside, a batch normalisation that gets one number a channel uses its running statistics and does not update
    them; torch would raise an error.
    """
    turned: list[torch.nn.Module] = []

    def look(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if module.training and inputs[0].numel() == inputs[0].shape[1]:
            module.training = False
            turned.append(module)

    handles = [one.register_forward_pre_hook(look) for one in norms]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module in turned:
            module.training = True


class _Together:
    """Several optimizers as torch's GradScaler sees one."""

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self.optimizers = optimizers

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Of all optimizers."""
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def step(self) -> None:
        """A step of each optimizer."""
        for optimizer in self.optimizers:
            optimizer.step()


def class_weights(labels: torch.Tensor, num_classes: int) -> torch.Tensor:
    """1 over each class's share, normalised to a mean of 1 over the classes with images; 0 for the others."""
    sizes = torch.bincount(labels.cpu(), minlength=num_classes).double()
    weights = torch.where(sizes > 0, sizes.sum() / (num_classes * sizes.clamp(min=1)), 0.0)
    return (weights * int((sizes > 0).sum()) / weights.sum()).float()
