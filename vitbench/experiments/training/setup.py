"""Prepare a training: device, model with weights, images, frozen parts; explain its failures. Loads torch."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitbench.core.errors import DataError, ModelFailed, Unsupported, UsageError, VitbenchError
from vitbench.core.records import format_image_size
from vitbench.devices import find_device
from vitbench.devices.failures import LIMIT
from vitbench.devices.host.memory import spare_memory
from vitbench.experiments.training.checkpoint import Saved
from vitbench.experiments.training.progress import TrainingProgress
from vitbench.experiments.training.request import LAST, TrainingOutOfMemory, TrainingRequest
from vitbench.models import build_model, describe_model
from vitbench.models.cards import HALVES, ModelCard
from vitbench.models.outputs import input_dtype, training_loss
from vitbench.models.tracebacks import model_places, with_places
from vitbench.models.weights.checkpoints import load_checkpoint
from vitbench.models.weights.claimed import normalisation_of, resolve
from vitbench.training.augmentation.augment import normalise
from vitbench.training.data.datasets import describe_data, load_images, load_training_images
from vitbench.training.data.images import FeatureSet, ImageSet
from vitbench.training.freezing import check_freeze, features_of, freeze_parameters
from vitbench.training.loop import Trainer
from vitbench.training.optimizers import regularise
from vitbench.training.order import random_state, set_random_state
from vitbench.training.ranks import Ranks
from vitbench.training.recipes import Recipe

#: As in recipes; numpy takes twice as much, torch more.
_LARGEST_SEED = 2**31 - 1
#: The part of a GPU's free memory that the training images may take, beside the model, its gradients and activations.
_SHARE_OF_DEVICE = 0.25
#: With more, thread libraries end the process.
_MOST_THREADS = 1024


class Setup:
    """One process's part in a training: the device at once; the model and the images after ``prepare``."""

    def __init__(self, request: TrainingRequest, ranks: Ranks, progress: TrainingProgress) -> None:
        self.request = request
        self.ranks = ranks
        self.progress = progress
        self.recipe = Recipe(**request.recipe)
        _check(request, self.recipe, ranks)
        if request.deterministic:
            # operators that do not repeat their numbers raise an error
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
            torch.backends.cudnn.benchmark = False
        self.device = find_device(request.device)
        if ranks.count > 1 and self.device.kind == "cuda":
            self.device = find_device(f"cuda:{ranks.local}")
        elif ranks.count > 1 and self.device.kind != "cpu":
            raise UsageError(f"Several processes cannot share {self.device.name}: give --device cpu")
        if request.threads:
            torch.set_num_threads(request.threads)
        self.origin = "random weights"
        self.imbalance = self.recipe.imbalance
        self.features: tuple[FeatureSet, FeatureSet] | None = None

    def prepare(self, saved: Saved | None = None) -> None:
        """Build, load, freeze, read. With a checkpoint the weights are its own: a file that the training began with
        need not exist any more.

        Raises UsageError for a request that cannot be trained, and DataError for images other than the checkpoint's.
        """
        request = self.request
        if request.allow_import:
            from vitbench.models.imported import allow_imports

            allow_imports()
        random.seed(request.seed)
        np.random.seed(request.seed)
        torch.manual_seed(request.seed)
        root = Path(request.data_dir) if request.data_dir else None
        self.info = describe_data(request.data, root=root, download=request.download)
        if saved is not None and saved.header["facts"]["data"] != self.info.label:
            raise self._other_images()
        card = describe_model(request.model)
        facts = self._resolve(card, saved)
        self._build(saved)
        self._set_normalisation(card, facts, saved)
        for lacking in regularise(self.model, self.recipe):
            self.progress.warn(f"{request.model} has no layers for the recipe's {lacking}: it trains without")
        self.freezing = freeze_parameters(self.model, request.freeze, self._build_for, self.num_classes)
        trainable, total = self.freezing.trainable, self.freezing.total
        if trainable < total:
            share = 100 * trainable / total
            self.progress.note(f"{trainable:,} of {total:,} parameters are trained ({share:.2f} %)")
        self._load_data()
        if saved is not None and saved.header.get("pictures") not in (None, self.images_digest()):
            raise self._other_images()
        self.model.to(self.device.torch_device)
        if request.channels_last:
            self.model.to(memory_format=torch.channels_last)
        self.features = self._cache_features(saved)

    def _resolve(self, card: ModelCard, saved: Saved | None) -> Mapping[str, Any]:
        """Set the image size and the classes. Returns what the checkpoint to begin from says of itself."""
        request, of_data = self.request, self.info.num_classes
        self.num_classes = request.num_classes or of_data
        if self.num_classes < of_data:
            raise UsageError(
                f"--num-classes {self.num_classes} is less than the {of_data} classes of {self.info.label}"
            )
        resolved = resolve(
            card,
            request.weights if saved is None else None,
            request.image_size,
            self.num_classes,
            facts=None if saved is None else saved.header["facts"],
            entry=request.entry,
        )
        self.size = resolved.image_size
        if request.image_size is None and self.size != card.image_size:
            self.progress.note(f"Images are {format_image_size(self.size)} px, as those of the weights' training")
        # a head may have room for classes that this data does not have
        self.class_names = (*self.info.class_names, *(f"class {k}" for k in range(of_data, self.num_classes)))
        return resolved.facts

    def _build(self, saved: Saved | None) -> None:
        request = self.request
        # resuming needs no download: all weights are in the checkpoint
        published = request.pretrained and saved is None
        with torch.device(self.device.torch_device if self.device.kind == "cuda" else "cpu"):
            self.model = self._build_for(self.num_classes, pretrained=published)
        if request.pretrained:
            self.origin = "the published weights"
        if saved is not None:
            try:
                self.model.load_state_dict(saved.state["model"])
            except (KeyError, RuntimeError, TypeError) as error:
                raise DataError(f"{LAST} does not fit this training: {str(error).splitlines()[0]}") from error
            self.origin = str(saved.header.get("origin", request.weights or self.origin))
        elif request.weights:
            self.origin = self._load_weights(request.weights)

    def _build_for(self, num_classes: int, pretrained: bool = False) -> torch.nn.Module:
        return build_model(self.request.model, image_size=self.size, num_classes=num_classes, pretrained=pretrained)

    def _load_weights(self, path: str) -> str:
        """Returns what the weights are, for people."""
        request = self.request
        report = load_checkpoint(
            self.model, path, replace_head=request.replace_head, entry=request.entry, grid=request.grid
        )
        recipe = report.facts.get("recipe")
        before = recipe if isinstance(recipe, Mapping) else {}
        for key in ("mean", "std"):
            own, found = getattr(self.recipe, key), before.get(key)
            if isinstance(found, list) and tuple(found) != own:
                text = ",".join(map(str, found))
                self.progress.warn(
                    f"The weights were trained with another {key} of the channels: --set {key}={text} keeps it"
                )
        for note in report.notes:
            self.progress.warn(f"The weights: {note}")
        head = ", its head left out" if report.replaced_head else ""
        entry = f", entry {request.entry}" if request.entry else ""
        grid = f", grid {request.grid}" if request.grid else ""
        return f"{report.path} ({report.digest}){entry}{grid}{head}"

    def _set_normalisation(self, card: ModelCard, facts: Mapping[str, Any], saved: Saved | None) -> None:
        """A resumed training keeps its normalisation. Published weights, and weights from elsewhere whose model's card
        states one, get the card's.
        """
        request = self.request
        from_elsewhere = request.weights is not None and not facts and (card.mean, card.std) != (HALVES, HALVES)
        if saved is None and not request.pretrained and not from_elsewhere:
            return
        mean, std = normalisation_of(card, facts)
        if (self.recipe.mean, self.recipe.std) == (mean, std):
            return
        self.recipe = self.recipe.model_copy(update={"mean": mean, "std": std})
        if saved is None:
            whose = "the published weights were trained with" if request.pretrained else f"{card.name}'s card says"
            self.progress.note(f"Images are normalised as {whose}: mean {_listed(mean)}, std {_listed(std)}")

    def make_trainer(self, on_step: Callable[[int, int | None, float], None]) -> Trainer:
        """The training, at its beginning."""
        model: torch.nn.Module = self.model
        dataset: ImageSet | FeatureSet = self.training
        if self.features is not None:
            model, dataset = self.model.get_submodule(self.freezing.heads[0]), self.features[0]
        forward: Any = torch.compile(model) if self.request.compile else model
        if self.ranks.count > 1:  # the average of the gradients of all processes
            on = [self.device.torch_device] if self.device.kind == "cuda" else None
            unused = self._has_unused()
            forward = torch.nn.parallel.DistributedDataParallel(forward, device_ids=on, find_unused_parameters=unused)
        # each process draws dropout of its own
        torch.manual_seed(self.request.seed + 1_000_003 * self.ranks.rank)
        return Trainer(
            model,
            dataset,
            self.recipe,
            device=str(self.device.torch_device),
            autocast=self.autocast,
            scaler=torch.amp.GradScaler(self.device.kind) if self.request.amp == "fp16" else None,
            synchronize=self.device.synchronize,
            seed=self.request.seed,
            on_step=on_step,
            forward=forward,
            num_classes=self.num_classes,
            frozen=self.freezing.frozen if self.features is None else (),
            heads=self.freezing.heads if self.features is None and len(self.freezing.heads) == 1 else (),
            rank=self.ranks.rank,
            ranks=self.ranks.count,
            channels_last=self.request.channels_last,
        )

    def _other_images(self) -> DataError:
        # with other images, some that are held out would have been trained on
        return DataError(
            f"The images of {self.info.label} are not those that this training began with, so that it cannot go on: "
            f"put them back, or start anew from its {LAST} (--weights)"
        )

    def images_digest(self) -> str:
        """A hash of the data set's label and the images' classes: it differs for other images and other choices."""
        digest = hashlib.sha256(self.info.label.encode())
        for dataset in filter(None, (self.training, self.held_out)):
            digest.update(dataset.labels.cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    def _load_data(self) -> None:
        request = self.request
        self.progress.note(f"Reading the images of {self.info.label} at {format_image_size(self.size)} px")
        if request.download and not self.ranks.first:
            self.ranks.share(None)  # the first process downloads them
        self.training, self.held_out = load_training_images(
            self.info,
            image_size=self.size,
            images=request.train_images,
            seed=request.seed,
            validation=self.recipe.validation,
            imbalance=self.imbalance,
            processes=self.ranks.count,
            download=request.download,
        )
        if request.download and self.ranks.first:
            self.ranks.share(None)
        self.test = load_images(self.info, "test", image_size=self.size, images=request.test_images, seed=0)
        if self.device.kind == "cuda" and isinstance(self.training.images, torch.Tensor):
            on = self.device.torch_device
            free, _ = torch.cuda.mem_get_info(on)
            if self.training.images.nbytes > _SHARE_OF_DEVICE * free:
                return  # each batch is copied
            self.training = ImageSet(self.training.images.to(on), self.training.labels, self.training.class_names)

    def _has_unused(self) -> bool:
        """Whether a parameter that is trained gets no gradient, found by one step on two images."""
        state = random_state()
        # a forward pass changes running statistics, also those of frozen modules
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        images = normalise(self.training.images[:2].to(self.device.torch_device), input_dtype(self.model))
        labels = self.training.labels[:2].to(self.device.torch_device)
        self.model.train()
        with self.autocast():
            loss = training_loss(self.model, self.model(images), labels)
        loss.backward()
        unused = any(one.grad is None for one in self.model.parameters() if one.requires_grad)
        self.model.zero_grad(set_to_none=True)
        for name, buffer in self.model.named_buffers():
            buffer.copy_(buffers[name])
        set_random_state(state)
        torch.manual_seed(self.request.seed)
        return unused

    def _cache_features(self, saved: Saved | None) -> tuple[FeatureSet, FeatureSet] | None:
        """FeatureSets of the training images and of those that each epoch is tested on, where only one head is
        trained and images never change. A training is resumed as it began: with the head alone, or with the whole
        model.
        """
        recipe = self.recipe
        if len(self.freezing.heads) != 1:
            return None
        head = self.model.get_submodule(self.freezing.heads[0])
        began_with_features = saved is not None and saved.state["trained"].keys() == head.state_dict().keys()
        if saved is not None and not began_with_features:
            return None
        if recipe.augment or recipe.mixup or recipe.cutmix or self.request.compile:
            return None

        dtype = input_dtype(self.model)
        self.model.eval()

        def run(images: torch.Tensor) -> object:
            inputs = normalise(images.to(self.device.torch_device), dtype, recipe.mean, recipe.std)
            with torch.inference_mode(), self.autocast():
                return self.model(inputs)

        def check(size: int) -> None:
            # all processes have to do the same
            too_large = self.ranks.share(size * self.ranks.count > spare_memory())
            if too_large and not began_with_features:
                raise UsageError(f"they would take {size / 1e9:.1f} GB, more than half of the memory that is free")

        self.progress.note("The backbone is frozen and no image changes: its features are computed once")
        found: list[FeatureSet] = []
        for dataset in (self.training, self.test if self.held_out is None else self.held_out):
            try:
                features = features_of(
                    self.model, self.freezing.heads[0], dataset.images.split(64), len(dataset), run, check
                )
            except UsageError as error:
                self.progress.note(f"Its features are not kept: {error}")
                return None
            found.append(FeatureSet(features, dataset.labels, dataset.class_names))
        return found[0], found[1]

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of a forward pass while training."""
        if self.request.amp == "off":
            return contextlib.nullcontext()
        return torch.autocast(self.device.kind, dtype=torch.bfloat16 if self.request.amp == "bf16" else torch.float16)


def _check(request: TrainingRequest, recipe: Recipe, ranks: Ranks) -> None:
    """Raises UsageError for a request that cannot be trained."""
    check_freeze(request.freeze)
    if request.amp not in ("off", "bf16", "fp16"):
        raise UsageError(f"amp = {request.amp!r} is not one of: off, bf16, fp16")
    for name in ("num_classes", "train_images", "test_images", "threads"):
        value = getattr(request, name)
        if value is not None and value < 1:
            raise UsageError(f"{name} = {value} is not positive: give at least 1")
    if request.threads is not None and request.threads > _MOST_THREADS:
        raise UsageError(f"threads = {request.threads} is more than any machine has: give at most {_MOST_THREADS}")
    if not 0 <= request.seed <= _LARGEST_SEED:
        raise UsageError(f"seed = {request.seed} is not a number from 0 to {_LARGEST_SEED}")
    if recipe.patience is not None and recipe.validation == 0:
        raise UsageError(
            f"patience = {recipe.patience} waits for a better validation accuracy: hold images out, such as "
            "--validation 0.1"
        )
    if ranks.count > 1 and recipe.seconds is not None:
        raise UsageError("Several processes cannot agree on a budget in seconds: give epochs, images or steps")
    if recipe.batch_size % ranks.count:
        raise UsageError(f"batch_size {recipe.batch_size} cannot be shared by {ranks.count} processes equally")


def explain_failure(error: Exception, setup: Setup) -> VitbenchError | None:
    """The failure for the user who asked for the training; None if its reason is unknown."""
    device, request = setup.device, setup.request
    failure = device.classify(error)
    if failure.status == "oom":
        return _out_of_memory(setup)
    reason = (failure.detail.splitlines() or [""])[0].rstrip(".")
    if request.deterministic and "deterministic" in reason:
        return UsageError(
            f"Not every operator repeats its numbers on {device.name}: {reason}. Leave out --deterministic, or give "
            "--device cpu"
        )
    if request.compile and failure.cause in ("compile", "compiler"):
        return UsageError(f"torch.compile does not work here: {reason}. Leave out --compile")
    if failure.status == "unsupported" and failure.cause != LIMIT:
        return Unsupported(f"{device.name} cannot train this model: {reason}. Give --device cpu")
    if (device.explain(error) is None or failure.cause == LIMIT) and (places := model_places(error)):
        recipe, ranks = setup.recipe, setup.ranks.count
        way_out = "Mend it, or give another --image-size; vitbench.train in Python shows the traceback"
        of_one = math.ceil(recipe.batch_size // ranks / recipe.accumulate) == 1
        if of_one and "more than 1 value per channel" in str(error):
            way_out = (
                "Its batch normalisation needs two images at once: give a larger batch_size, fewer parts "
                f"(accumulate is {recipe.accumulate}), fewer processes ({ranks}), or a larger --image-size"
            )
        return ModelFailed(f"The model failed: {with_places(reason, places)}. {way_out}")
    return None


def _out_of_memory(setup: Setup) -> TrainingOutOfMemory:
    recipe = setup.recipe
    in_parts = f" in {recipe.accumulate} parts" if recipe.accumulate > 1 else ""
    parts = min(2 * recipe.accumulate, recipe.batch_size // setup.ranks.count)
    more = f"Go through the model in more parts (--set accumulate={parts} gives the same steps), or take"
    return TrainingOutOfMemory(
        f"Out of memory on {setup.device.name} at batch_size {recipe.batch_size}{in_parts}. "
        f"{more if parts > recipe.accumulate else 'Take'} --amp, a smaller --image-size or a smaller model"
    )


def _listed(channels: tuple[float, ...]) -> str:
    return ",".join(f"{one:g}" for one in channels)


@contextlib.contextmanager
def restored_settings() -> Iterator[None]:
    """Restore torch's threads and its determinism afterwards: the process may be a notebook's."""
    threads, benchmark = torch.get_num_threads(), torch.backends.cudnn.benchmark
    deterministic = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.cudnn.benchmark = benchmark
        torch.use_deterministic_algorithms(deterministic, warn_only=warns)
