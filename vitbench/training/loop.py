"""The training loop: a model, pictures in memory and a recipe; afterwards the model is trained. Loads torch.

What a step draws (its pictures, their augmentation) is a pure function of the seed and the step's place, so that
a training can be taken up anywhere without replaying what came before.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

from vitbench.errors import VitbenchError
from vitbench.outputs import check_classes, input_dtype, training_loss
from vitbench.training.augment import augment, normalise
from vitbench.training.pictures import PictureSet
from vitbench.training.recipes import Recipe

OnStep = Callable[[int, int | None, float], None]


class TrainingDiverged(VitbenchError):  # noqa: N818  (what happened, not what is wrong with the code)
    """A loss that is not finite: the weights are of no use from that step on."""

    cause = "diverged"

    def __init__(self, step: int, loss: float, recipe: Recipe) -> None:
        super().__init__(
            f"The loss of training step {step} is {loss}, not a finite number. Lower the learning rate "
            f"({recipe.learning_rate:g}) of recipe {recipe.name!r}, or give it a clip_norm"
        )
        self.step = step
        self.loss = loss


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """``images_seen`` counts repeats; ``duration_s`` is the loop's wall time; ``losses`` (nat) has one a step;
    ``stopped_because`` names the budget that was used up.
    """

    images_seen: int
    steps: int
    duration_s: float
    losses: tuple[float, ...]
    stopped_because: str


def train(
    model: torch.nn.Module,
    pictures: PictureSet,
    recipe: Recipe,
    *,
    device: str,
    autocast: Callable[[], AbstractContextManager[Any]],
    scaler: torch.amp.GradScaler | None = None,
    synchronize: Callable[[], None],
    seed: int,
    on_step: OnStep | None = None,
) -> TrainingResult:
    """Train ``model``, which is on ``device``, in place until the recipe's budget is used up.

    ``autocast`` makes the context of each forward pass, ``synchronize`` waits for the device. ``on_step`` is told
    (steps done, steps in all or None, loss) after each. Seeds torch's global generators, which dropout draws from; on
    the CPU the same seed gives the same weights. Raises TrainingDiverged, and DataError if the model has fewer classes
    than the data.
    """
    torch.manual_seed(seed)
    model.train()
    optimizers = make_optimizers(model, recipe, pictures.num_classes)
    losses = _Losses(recipe, recipe.total_steps(len(pictures)), on_step)
    step = _Step(model, optimizers, recipe, autocast, scaler)
    seen = steps = 0
    synchronize()
    begin = time.perf_counter()
    for indices in batches(len(pictures), recipe, seed):
        if recipe.seconds is not None and steps > 0 and time.perf_counter() - begin >= recipe.seconds:
            break
        progress = _progress(recipe, len(pictures), seen, len(indices), time.perf_counter() - begin)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate_at(progress)
        images = pictures.images[indices].to(device)
        images = augment(images, recipe.augment, seeded_generator(seed, "augmentation", steps))
        losses.add(step(images, pictures.labels[indices].to(device), pictures.num_classes))
        seen += len(indices)
        steps += 1
    losses.read()
    synchronize()
    return TrainingResult(
        images_seen=seen,
        steps=steps,
        duration_s=time.perf_counter() - begin,
        losses=tuple(losses.values),
        stopped_because=recipe.budget,
    )


def make_optimizers(model: torch.nn.Module, recipe: Recipe, num_classes: int) -> list[torch.optim.Optimizer]:
    """The recipe's optimizers, which share out the parameters that are trained.

    ``muon``: Muon (Jordan et al., 2024; torch.optim.Muon) for hidden_matrices, its steps scaled to the size of AdamW's
    (Liu et al., 2025, arXiv:2502.16982, section 2.2), so that one learning rate serves both; AdamW for the rest.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    lr, weight_decay = recipe.learning_rate, recipe.weight_decay
    if recipe.optimizer == "adamw":
        return [torch.optim.AdamW(trained, lr=lr, weight_decay=weight_decay)]
    matrices = [matrix for matrix in hidden_matrices(model, num_classes) if matrix.requires_grad]
    taken = {id(matrix) for matrix in matrices}
    rest = [parameter for parameter in trained if id(parameter) not in taken]
    optimizers: list[torch.optim.Optimizer] = []
    if matrices:
        optimizers.append(torch.optim.Muon(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"))
    if rest:
        optimizers.append(torch.optim.AdamW(rest, lr=lr, weight_decay=weight_decay))
    return optimizers


def hidden_matrices(model: torch.nn.Module, num_classes: int) -> list[torch.nn.Parameter]:
    """The weights of linear layers and of attention's projections between the embedding and the classifier.

    Layers whose output is the classes, and layers with one output or two (scores), are none: orthogonalising them means
    nothing. Convolutions and the patch embedding stay out, too. Shared weights come once.
    """
    found: dict[int, torch.nn.Parameter] = {}
    for path, module in model.named_modules():
        if "embed" in path:
            continue
        weight: Any = None
        if isinstance(module, torch.nn.Linear):
            weight = module.weight
        elif isinstance(module, torch.nn.MultiheadAttention):
            weight = module.in_proj_weight
        if weight is not None and weight.shape[0] not in (1, 2, num_classes):
            found[id(weight)] = weight
    return list(found.values())


def batches(count: int, recipe: Recipe, seed: int) -> Iterator[torch.Tensor]:
    """The indices (B,) of each step's pictures out of ``count``: without end where time decides, else until the budget
    is used up, to the picture.

    Every picture comes once before any comes again, each time in another order. Batches go across the end of a pass, so
    that all but the last have ``batch_size`` pictures.
    """
    left = recipe.total_images(count)
    waiting = torch.empty(0, dtype=torch.int64)
    epoch = 0
    while left is None or left > 0:
        size = recipe.batch_size if left is None else min(recipe.batch_size, left)
        while len(waiting) < size:
            order = torch.randperm(count, generator=seeded_generator(seed, "order", epoch))
            waiting = torch.cat([waiting, order])
            epoch += 1
        yield waiting[:size]
        waiting = waiting[size:]
        left = None if left is None else left - size


def seeded_generator(seed: int, purpose: str, index: int) -> torch.Generator:
    """A generator (on the CPU) of its own for the ``index``-th use of a purpose under ``seed``."""
    # hashed, because torch's CPU generator looks at the lower 32 bits of a seed only
    digest = hashlib.sha256(f"{seed}/{purpose}/{index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))


class _Step:
    """One step of the optimizers on one batch; returns the loss, still on the device."""

    def __init__(
        self,
        model: torch.nn.Module,
        optimizers: list[torch.optim.Optimizer],
        recipe: Recipe,
        autocast: Callable[[], AbstractContextManager[Any]],
        scaler: torch.amp.GradScaler | None,
    ) -> None:
        self.model = model
        self.optimizers = optimizers
        self.recipe = recipe
        self.autocast = autocast
        self.scaler = scaler
        self.dtype = input_dtype(model)

    def __call__(self, images: torch.Tensor, labels: torch.Tensor, num_classes: int) -> torch.Tensor:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            output = self.model(normalise(images, self.dtype))
            check_classes(output, num_classes)
            loss = training_loss(self.model, output, labels, self.recipe.label_smoothing)
        scaled = loss if self.scaler is None else self.scaler.scale(loss)
        scaled.backward()
        if self.recipe.clip_norm is not None:
            if self.scaler is not None:
                for optimizer in self.optimizers:
                    self.scaler.unscale_(optimizer)  # the norm is that of the true gradients
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm)
        for optimizer in self.optimizers:
            if self.scaler is None:
                optimizer.step()
            else:
                self.scaler.step(optimizer)
        if self.scaler is not None:
            self.scaler.update()
        return loss.detach()


class _Losses:
    """The loss of each step, each read while the device works on the step after it: reading it at once would make the
    device wait for us.
    """

    def __init__(self, recipe: Recipe, total: int | None, on_step: OnStep | None) -> None:
        self.recipe = recipe
        self.total = total
        self.on_step = on_step
        self.values: list[float] = []
        self._unread: torch.Tensor | None = None

    def add(self, loss: torch.Tensor) -> None:
        """Take the loss of a new step and read the one before. Raises TrainingDiverged if that is not finite."""
        self.read()
        self._unread = loss

    def read(self) -> None:
        """Read the loss that is left, if any. Raises TrainingDiverged if it is not finite."""
        if self._unread is None:
            return
        value, self._unread = float(self._unread), None
        if not math.isfinite(value):
            raise TrainingDiverged(len(self.values) + 1, value, self.recipe)
        self.values.append(value)
        if self.on_step is not None:
            self.on_step(len(self.values), self.total, value)


def _progress(recipe: Recipe, count: int, seen: int, batch: int, elapsed_s: float) -> float:
    """How much of the budget is used up (0 to 1) in the middle of the step that comes next."""
    total = recipe.total_images(count)
    if total is None:
        assert recipe.seconds is not None
        return min(1.0, elapsed_s / recipe.seconds)
    return (seen + batch / 2) / total
