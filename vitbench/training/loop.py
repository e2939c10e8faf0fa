"""The training loop: train a model on images by a recipe. Loads torch.

What a step draws (its images, their augmentation) depends only on the seed and the number of the step; everything else
is in the state. A training can therefore be stopped after any step and resumed to the same weights.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import KW_ONLY, dataclass, field, fields
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel

from vitbench.core.errors import VitbenchError
from vitbench.core.validation import is_number
from vitbench.models.outputs import check_classes, input_dtype, mean_logits, training_loss
from vitbench.training.augmentation.augment import AugmentSettings, augment, mix, normalise
from vitbench.training.data.images import FeatureSet, ImageSet
from vitbench.training.optimizers import make_optimizers
from vitbench.training.order import ImageOrder, random_state, seeded_generator, set_random_state
from vitbench.training.recipes import Recipe

OnStep = Callable[[int, int | None, float], None]


class TrainingDiverged(VitbenchError):  # noqa: N818  (what happened, not what is wrong with the code)
    """A loss that is not finite: the weights are useless from that step on."""

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
    ``stopped_because`` names the budget that was reached.
    """

    images_seen: int
    steps: int
    duration_s: float
    losses: tuple[float, ...]
    stopped_because: str


@dataclass(frozen=True, kw_only=True)
class EpochStatistics:
    """What the steps since the last call of ``take_statistics`` showed: ``losses`` (nat, one a step), ``accuracy`` on
    the images as they were shown (augmented, in training mode; of mixed images the class with the larger share),
    ``images`` and ``duration_s``.
    """

    losses: tuple[float, ...]
    accuracy: float
    images: int
    duration_s: float


def train(
    model: torch.nn.Module,
    dataset: ImageSet,
    recipe: Recipe,
    *,
    device: str,
    autocast: Callable[[], AbstractContextManager[Any]],
    scaler: torch.amp.GradScaler | None = None,
    synchronize: Callable[[], None],
    seed: int,
    on_step: OnStep | None = None,
) -> TrainingResult:
    """Train ``model``, which is on ``device``, in place until the recipe's budget is reached.

    ``autocast`` makes the context of each forward pass, ``synchronize`` waits for the device. ``on_step`` receives
    (steps done, steps in all or None, loss) after each step. Seeds torch's global generators, which dropout draws from;
    on the CPU the same seed gives the same weights. With ``ema`` in the recipe these are the averages. Raises
    TrainingDiverged, and DataError if the model has fewer classes than the data.
    """
    torch.manual_seed(seed)
    trainer = Trainer(
        model,
        dataset,
        recipe,
        device=device,
        autocast=autocast,
        scaler=scaler,
        synchronize=synchronize,
        seed=seed,
        on_step=on_step,
    )
    trainer.run()
    statistics = trainer.take_statistics()
    if trainer.averaged is not None:
        model.load_state_dict(trainer.averaged.module.state_dict())
    return TrainingResult(
        images_seen=trainer.seen,
        steps=trainer.steps,
        duration_s=statistics.duration_s,
        losses=statistics.losses,
        stopped_because=recipe.budget,
    )


@dataclass(eq=False, repr=False)
class Trainer:
    """A training between two steps. ``seen`` images (repeats counted) and ``steps`` are done; ``averaged`` holds the
    moving average of the weights, if the recipe has one.

    Takes the arguments of ``train``, and ``forward``: called in place of ``model`` (compiled, distributed);
    ``num_classes`` of the model, which may have more than the data; ``frozen``: modules that stay in eval mode;
    ``heads``: the only modules in training mode, where all others are frozen. Of ``ranks`` processes this one is
    ``rank``: each takes its share of every batch, and ``forward`` averages their gradients.
    """

    model: torch.nn.Module
    dataset: ImageSet | FeatureSet
    recipe: Recipe
    _: KW_ONLY
    device: str
    autocast: Callable[[], AbstractContextManager[Any]]
    scaler: torch.amp.GradScaler | None = None
    synchronize: Callable[[], None]
    seed: int
    on_step: OnStep | None = None
    forward: torch.nn.Module | None = None
    num_classes: int | None = None
    frozen: tuple[torch.nn.Module, ...] = ()
    heads: tuple[str, ...] = ()
    rank: int = 0
    ranks: int = 1
    channels_last: bool = False

    def __post_init__(self) -> None:
        model, dataset, recipe = self.model, self.dataset, self.recipe
        self.seen = 0
        self.steps = 0
        self.elapsed_s = 0.0
        self.optimizers = make_optimizers(model, recipe, self.num_classes or dataset.num_classes)
        # Muon's learning rate may be a multiple of AdamW's
        self._factors = [one.param_groups[0]["lr"] / recipe.learning_rate for one in self.optimizers]
        self.averaged = _make_average(model, recipe.ema) if recipe.ema else None
        self._settings = AugmentSettings(**{one.name: getattr(recipe, one.name) for one in fields(AugmentSettings)})
        self._format = torch.channels_last if self.channels_last else torch.contiguous_format
        self._order = ImageOrder(len(dataset), self.seed, dataset.labels if recipe.sampler == "weighted" else None)
        self._dtype = input_dtype(model)
        self._total = recipe.total_images(len(dataset))
        self._statistics = _Statistics(recipe, recipe.total_steps(len(dataset)), self.on_step, self.device)
        self._forward = model if self.forward is None else self.forward
        self._class_weights: torch.Tensor | None = None
        if recipe.class_weights == "inverse":
            self._class_weights = class_weights(dataset.labels, dataset.num_classes).to(self.device)
        # where the recipe asks for parts of one image, a layer that needs more raises an error
        usual = math.ceil(max(recipe.batch_size // self.ranks, 1) / recipe.accumulate)
        self._norms = [one for one in model.modules() if isinstance(one, _BatchNorm)] if usual > 1 else []

    @property
    def done(self) -> bool:
        """Whether the budget is reached."""
        if self._total is not None:
            return self.seen >= self._total
        assert self.recipe.seconds is not None
        return self.steps > 0 and self.elapsed_s >= self.recipe.seconds

    def run(self, until: int | None = None, is_to_pause: Callable[[], bool] | None = None) -> None:
        """Train until ``until`` images are seen in all, ``is_to_pause`` is true after a step, or the budget is reached.

        Raises TrainingDiverged and DataError as ``train`` does.
        """
        # where the features are frozen, the model computes them as in a test: in eval mode some models drop tokens
        self.model.train(not self.heads)
        for path in self.heads:
            self.model.get_submodule(path).train()
        for module in self.frozen:
            module.eval()
        self.synchronize()
        begin, before = time.perf_counter(), self.elapsed_s
        try:
            while not self.done and (until is None or self.seen < until):
                self._take_step()
                self.elapsed_s = before + time.perf_counter() - begin
                if is_to_pause is not None and is_to_pause():
                    break
            self._statistics.read()
            self.synchronize()
        finally:
            self.elapsed_s = before + time.perf_counter() - begin

    def take_statistics(self) -> EpochStatistics:
        """Of the steps since the last call."""
        return self._statistics.take(self.elapsed_s)

    def check_finite(self) -> None:
        """Raises TrainingDiverged if a weight is not finite: the next loss would not be, either."""
        for parameter in self.model.parameters():
            if parameter.requires_grad and not bool(torch.isfinite(parameter).all()):
                raise TrainingDiverged(self.steps + 1, math.nan, self.recipe)

    @property
    def trained(self) -> int:
        """How many images were trained on, repeats counted. Several processes get equal shares of a batch; images that
        are left over count as ``seen`` only.
        """

        def shared(size: int) -> int:
            return max(size // self.ranks, 1) * self.ranks if size else 0

        if self.ranks == 1:
            return self.seen
        full, last = divmod(self.seen, self.recipe.batch_size)
        return full * shared(self.recipe.batch_size) + shared(last)

    def state(self) -> dict[str, Any]:
        """All that ``load_state`` needs to resume from here: tensors, numbers and texts only."""
        return {
            "seen": self.seen,
            "steps": self.steps,
            "elapsed_s": self.elapsed_s,
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "scaler": self.scaler.state_dict() if self.scaler is not None else None,
            "ema": self.averaged.state_dict() if self.averaged is not None else None,
            "rng": random_state(),
            "stretch": self._statistics.state(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Resume from ``state``. Raises KeyError, ValueError or RuntimeError if it is of another training."""
        self.model.load_state_dict(state["model"])
        if len(self.optimizers) != len(state["optimizers"]) or (self.averaged is None) != (state["ema"] is None):
            raise ValueError("its optimizers are those of another recipe")
        for optimizer, own in zip(self.optimizers, state["optimizers"], strict=True):
            before = [dict(group) for group in optimizer.param_groups]
            optimizer.load_state_dict(own)
            _check_optimizer(optimizer, before)
        if self.scaler is not None and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        if self.averaged is not None:
            self.averaged.load_state_dict(state["ema"])
        self.seen, self.steps, self.elapsed_s = state["seen"], state["steps"], state["elapsed_s"]
        self._statistics.load_state(state["stretch"], self.steps)
        set_random_state(state["rng"])

    def _take_step(self) -> None:
        size = self.recipe.batch_size if self._total is None else min(self.recipe.batch_size, self._total - self.seen)
        progress = self._progress(size)
        rate = self.recipe.learning_rate_at(progress)
        for optimizer, factor in zip(self.optimizers, self._factors, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = factor * rate
        indices = self._order.at(self.seen, size)
        if self.ranks > 1:
            # all shares are equal, or one process would wait for the others for ever
            share = max(size // self.ranks, 1)
            indices = indices[self.rank * share : (self.rank + 1) * share]
            if len(indices) == 0:
                indices = self._order.at(self.seen, 1)
        inputs, labels, targets = self._batch(indices)
        loss, correct = self._optimise(inputs, labels, targets)
        if self.averaged is not None:
            self.averaged.update_parameters(self.model)
        self._statistics.add(loss, correct, len(indices))
        self.seen += size
        self.steps += 1

    def _batch(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Inputs, classes (B,), and targets: classes, or shares of classes (B, K) where images are mixed."""
        recipe, dataset = self.recipe, self.dataset
        place = self.steps * self.ranks + self.rank
        labels = self._to_device(dataset.labels.index_select(0, indices.to(dataset.labels.device)))
        if isinstance(dataset, FeatureSet):
            return self._to_device(dataset.features.index_select(0, indices)), labels, labels
        images = self._to_device(dataset.images.index_select(0, indices.to(dataset.images.device)))
        if recipe.augment:
            generator = seeded_generator(self.seed, "augmentation", place)
            images = augment(images, recipe.augment, generator, self._settings)
        inputs = normalise(images, self._dtype, recipe.mean, recipe.std)
        targets = labels
        if recipe.mixup or recipe.cutmix:
            inputs, targets = mix(
                inputs,
                labels,
                dataset.num_classes,
                mixup=recipe.mixup,
                cutmix=recipe.cutmix,
                probability=recipe.mix_probability,
                generator=seeded_generator(self.seed, "mixing", place),
            )
            labels = targets.argmax(-1)
        return inputs.contiguous(memory_format=self._format), labels, targets

    def _to_device(self, values: torch.Tensor) -> torch.Tensor:
        # Only CUDA need not wait: mps may read the memory after it has been freed.
        return values.to(self.device, non_blocking=self.device.startswith("cuda"))

    def _optimise(
        self, inputs: torch.Tensor, labels: torch.Tensor, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One step of the optimizers on one batch: the loss and how many are right, still on the device."""
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
            with _without_statistics_of_one(self._norms if len(inputs) == 1 else ()):
                output = self._forward(inputs)
            check_classes(output, self.dataset.num_classes)
            loss = training_loss(self.model, output, targets, self.recipe.label_smoothing, self._class_weights)
        if share is not None:
            loss = loss * share
        scaled = loss if self.scaler is None else self.scaler.scale(loss)
        scaled.backward()
        with torch.no_grad():
            correct = (mean_logits(output).argmax(-1) == labels).sum()
        return loss.detach(), correct

    def _share(self, part: torch.Tensor, whole: torch.Tensor) -> float | torch.Tensor:
        """The weight of a part's mean loss in the mean of the whole batch; ``part`` and ``whole`` are their targets."""
        if self._class_weights is None or whole.dim() == 2:  # shares of classes: torch divides by the images
            return len(part) / len(whole)
        return self._class_weights[part].sum() / self._class_weights[whole].sum()

    def _share_of_ranks(self, targets: torch.Tensor) -> torch.Tensor | None:
        """The weight of this process's mean loss in the mean of all processes, where classes have weights; the average
        of gradients takes all processes for equal.
        """
        if self.ranks == 1 or self._class_weights is None or targets.dim() == 2:
            return None
        own = self._class_weights[targets].sum()
        together = own.clone()
        torch.distributed.all_reduce(together)
        return self.ranks * own / together

    def _together(self, last: bool) -> AbstractContextManager[Any]:
        """Average the gradients of several processes once a step, with the last part."""
        no_sync = getattr(self._forward, "no_sync", None)
        return nullcontext() if last or no_sync is None else no_sync()

    def _progress(self, size: int) -> float:
        """The part of the budget (0 to 1) that is reached in the middle of the next step."""
        if self._total is None:
            assert self.recipe.seconds is not None
            return min(1.0, self.elapsed_s / self.recipe.seconds)
        return (self.seen + size / 2) / self._total


@contextmanager
def _without_statistics_of_one(norms: Iterable[_BatchNorm]) -> Iterator[None]:
    """Inside, a batch normalisation that gets one number a channel, for which torch would raise an error, uses its
    running statistics and does not update them.
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


@dataclass(eq=False)
class _Together:
    """Several optimizers as torch's GradScaler sees one."""

    optimizers: Sequence[torch.optim.Optimizer]

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


def _check_optimizer(optimizer: torch.optim.Optimizer, before: Sequence[Mapping[str, Any]]) -> None:
    """Raises ValueError if its steps cannot use what was loaded into it; ``before``: its settings until then."""
    for old, new in zip(before, optimizer.param_groups, strict=True):
        for key, value in old.items():
            own, found = (one if isinstance(one, list | tuple) else (one,) for one in (value, new[key]))
            numbers = all(isinstance(one, bool) or is_number(one) for one in found)
            if isinstance(own[0], int | float) and not (numbers and len(own) == len(found)):
                raise ValueError(f"its optimizers hold a {key} that is not a number")
    for parameter, kept in optimizer.state.items():
        for key, value in kept.items():
            if isinstance(value, torch.Tensor) and value.numel() > 1 and value.shape != parameter.shape:
                raise ValueError(f"its optimizers hold a {key} of the shape {tuple(value.shape)}")


@dataclass(eq=False)
class _Statistics:
    """The loss of each step, read while the device works on the next one: reading it at once would make it wait."""

    recipe: Recipe
    total: int | None
    on_step: OnStep | None
    device: str
    losses: list[float] = field(default_factory=list)
    images: int = 0
    _steps: int = 0
    _since_s: float = 0.0
    _correct: torch.Tensor | None = None
    _unread: torch.Tensor | None = None

    def state(self) -> dict[str, Any]:
        """The statistics so far; every loss has been read."""
        correct = 0 if self._correct is None else int(self._correct)
        return {"losses": list(self.losses), "images": self.images, "correct": correct, "since_s": self._since_s}

    def load_state(self, state: Mapping[str, Any], steps: int) -> None:
        """Resume after ``steps`` steps in all."""
        self._steps = steps
        self.losses, self.images, self._since_s = list(state["losses"]), state["images"], state["since_s"]
        self._correct = torch.tensor(state["correct"], device=self.device)

    def add(self, loss: torch.Tensor, correct: torch.Tensor, images: int) -> None:
        """Add the loss of a step and read that of the step before. Raises TrainingDiverged if it is not finite."""
        self.read()
        self._unread = loss
        self._correct = correct if self._correct is None else self._correct + correct
        self.images += images

    def read(self) -> None:
        """Read the last loss, if it is unread. Raises TrainingDiverged if it is not finite."""
        if self._unread is None:
            return
        value, self._unread = float(self._unread), None
        if not math.isfinite(value):
            raise TrainingDiverged(self._steps + 1, value, self.recipe)
        self.losses.append(value)
        self._steps += 1
        if self.on_step is not None:
            self.on_step(self._steps, self.total, value)

    def take(self, elapsed_s: float) -> EpochStatistics:
        """The statistics since the last call."""
        self.read()
        correct = 0 if self._correct is None else int(self._correct)
        found = EpochStatistics(
            losses=tuple(self.losses),
            accuracy=correct / max(self.images, 1),
            images=self.images,
            duration_s=elapsed_s - self._since_s,
        )
        self.losses, self.images, self._correct, self._since_s = [], 0, None, elapsed_s
        return found


def _make_average(model: torch.nn.Module, decay: float) -> AveragedModel:
    """The moving average of weights and buffers. Its decay rises to ``decay`` as (1 + n) / (10 + n) after n steps, so
    that a short training does not average the random beginning.
    """

    def update(averaged: Any, current: Any, count: Any) -> None:
        # as a tensor: reading the count would make the device wait in every step
        weight = 1 - torch.clamp((1 + count) / (10 + count), max=decay)
        for own, new in zip(averaged, current, strict=True):
            if own.is_floating_point() and own.data_ptr() not in endless:
                own.lerp_(new.detach(), weight.to(own.dtype))
            else:
                own.copy_(new)

    average = AveragedModel(model, multi_avg_fn=update, use_buffers=True)
    # a mask of -inf has no mean, not even with itself
    masks = (one for one in average.buffers() if one.is_floating_point() and bool(torch.isinf(one).any()))
    endless = {one.data_ptr() for one in masks}
    return average
