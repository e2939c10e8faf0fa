"""Before a training: the device, the model with its weights, the pictures, what is frozen. Loads torch."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitbench.errors import UsageError
from vitbench.models import build_model, describe_model
from vitbench.models.checkpoints import load_checkpoint
from vitbench.outputs import input_dtype, training_loss
from vitbench.records import format_image_size, parse_image_size
from vitbench.trained import find_device
from vitbench.training.augment import normalise
from vitbench.training.data import describe_data, load_images, load_training_images
from vitbench.training.freezing import check_freeze, features_of, freeze_parameters
from vitbench.training.loop import Trainer, random_state, set_random_state
from vitbench.training.optimizers import regularise
from vitbench.training.pictures import FeatureSet, PictureSet
from vitbench.training.ranks import Ranks, distributed, joined
from vitbench.training.recipes import Recipe
from vitbench.trainings.progress import TrainingProgress
from vitbench.trainings.request import TrainingRequest


class Setup:
    """One process's part in a training, ready to run after ``prepare``."""

    def __init__(self, request: TrainingRequest, ranks: Ranks, progress: TrainingProgress) -> None:

        self.request = request
        self.ranks = ranks
        self.progress = progress
        self.recipe = Recipe(**request.recipe)
        check_freeze(request.freeze)
        if self.recipe.batch_size % ranks.count:
            raise UsageError(f"batch_size {self.recipe.batch_size} cannot be shared by {ranks.count} processes equally")
        if request.deterministic:
            _be_deterministic()
        self.device = find_device(request.device)
        if ranks.count > 1 and self.device.kind == "cuda":
            self.device = find_device(f"cuda:{ranks.local}")
        if request.threads:
            torch.set_num_threads(request.threads)
        self.origin = "random weights"
        self.features: tuple[FeatureSet, FeatureSet | None] | None = None

    def joined(self) -> AbstractContextManager[None]:
        """The other processes, if there are any."""

        if self.device.kind == "cuda" and self.ranks.count > 1:
            torch.cuda.set_device(self.device.torch_device)
        return joined(self.ranks, self.device.kind)

    def prepare(self) -> None:
        """Build, load, freeze, read. Raises UsageError for what cannot be."""

        request = self.request
        if request.allow_import:
            from vitbench.models.imported import allow_imports

            allow_imports()
        random.seed(request.seed)
        np.random.seed(request.seed)
        torch.manual_seed(request.seed)
        root = Path(request.data_dir) if request.data_dir else None
        self.info = describe_data(request.data, root=root, download=request.download)
        card = describe_model(request.model)
        classes = request.num_classes or self.info.num_classes
        if classes < self.info.num_classes:
            raise UsageError(
                f"--num-classes {classes} is less than the {self.info.num_classes} classes of {self.info.label}"
            )
        self.size = parse_image_size(request.image_size) if request.image_size else card.image_size
        self.num_classes = classes
        # a head may have room for classes that this data does not have
        self.class_names = (*self.info.class_names, *(f"class {k}" for k in range(self.info.num_classes, classes)))

        def build(count: int) -> torch.nn.Module:
            return build_model(request.model, image_size=self.size, num_classes=count)

        with torch.device(self.device.torch_device if self.device.kind == "cuda" else "cpu"):
            self.model = (
                build_model(request.model, image_size=self.size, num_classes=classes, pretrained=True)
                if request.pretrained
                else build(classes)
            )
        if request.pretrained:
            self.origin = "the published weights"
        if request.weights:
            self.origin = self._load_weights()
        if request.pretrained and (self.recipe.mean, self.recipe.std) != (card.mean, card.std):
            self.recipe = self.recipe.model_copy(update={"mean": card.mean, "std": card.std})
            self.progress.note("Pictures are normalised as the published weights were trained with")
        regularise(self.model, self.recipe)

        self.freezing = freeze_parameters(self.model, request.freeze, build, classes)
        if self.freezing.trainable < self.freezing.total:
            share = 100 * self.freezing.trainable / self.freezing.total
            self.progress.note(
                f"{self.freezing.trainable:,} of {self.freezing.total:,} parameters are trained ({share:.2f} %)"
            )
        self._load_data()
        self.model.to(self.device.torch_device)
        if request.channels_last:
            self.model.to(memory_format=torch.channels_last)
        self.features = self._cache_features()

    def make_trainer(self, on_step: Callable[[int, int | None, float], None]) -> Trainer:
        """The training, at its beginning."""
        model: torch.nn.Module = self.model
        pictures: PictureSet | FeatureSet = self.training
        if self.features is not None:
            model, pictures = self.model.get_submodule(self.freezing.heads[0]), self.features[0]
        forward: Any = torch.compile(model) if self.request.compile else model
        unused = self.ranks.count > 1 and self._has_unused()
        forward = distributed(forward, self.ranks, self.device.torch_device, unused)
        # each process draws dropout of its own
        torch.manual_seed(self.request.seed + 1_000_003 * self.ranks.rank)
        return Trainer(
            model,
            pictures,
            self.recipe,
            device=str(self.device.torch_device),
            autocast=self.autocast,
            scaler=torch.amp.GradScaler(self.device.kind) if self.request.amp == "fp16" else None,
            synchronize=self.device.synchronize,
            seed=self.request.seed,
            on_step=on_step,
            forward=forward,
            frozen=self.freezing.frozen if self.features is None else (),
            rank=self.ranks.rank,
            ranks=self.ranks.count,
            channels_last=self.request.channels_last,
        )

    def _load_weights(self) -> str:

        assert self.request.weights is not None
        report = load_checkpoint(self.model, self.request.weights, replace_head=self.request.replace_head)
        head = ", its head left out" if report.replaced_head else ""
        return f"{report.path} ({report.digest}){head}"

    def _load_data(self) -> None:

        request = self.request
        self.progress.note(f"Reading the pictures of {self.info.label} at {format_image_size(self.size)} px")
        self.training, self.held_out = load_training_images(
            self.info,
            image_size=self.size,
            images=request.train_images,
            seed=request.seed,
            validation=self.recipe.validation,
            imbalance=self.recipe.imbalance,
            download=request.download,
        )
        self.test = load_images(self.info, "test", image_size=self.size, images=request.test_images, seed=0)
        if self.device.kind == "cuda":
            on = self.device.torch_device
            self.training = PictureSet(self.training.images.to(on), self.training.labels, self.training.class_names)

    def _has_unused(self) -> bool:
        """Whether a parameter that could be trained gets no gradient, by one step on two pictures."""

        state = random_state()
        images = normalise(self.training.images[:2].to(self.device.torch_device), input_dtype(self.model))
        labels = self.training.labels[:2].to(self.device.torch_device)
        self.model.train()
        with self.autocast():
            loss = training_loss(self.model, self.model(images), labels)
        loss.backward()
        unused = any(one.grad is None for one in self.model.parameters() if one.requires_grad)
        self.model.zero_grad(set_to_none=True)
        set_random_state(state)
        torch.manual_seed(self.request.seed)
        return unused

    def _cache_features(self) -> tuple[FeatureSet, FeatureSet | None] | None:
        """(training, held out or None) FeatureSets, where only one head is trained on pictures that never change."""
        recipe = self.recipe
        if self.request.freeze != "backbone" or len(self.freezing.heads) != 1:
            return None
        if recipe.augment or recipe.mixup or recipe.cutmix or self.request.compile:
            return None

        dtype = input_dtype(self.model)
        self.model.eval()

        def run(images: torch.Tensor) -> object:
            inputs = normalise(images.to(self.device.torch_device), dtype, recipe.mean, recipe.std)
            with torch.inference_mode(), self.autocast():
                return self.model(inputs)

        self.progress.note("The backbone is frozen and no picture changes: its features are computed once")
        found: list[FeatureSet] = []
        for pictures in filter(None, (self.training, self.held_out)):
            try:
                features = features_of(self.model, self.freezing.heads[0], pictures.images.split(64), run)
            except UsageError as error:
                self.progress.note(f"Its features cannot be kept after all: {error}")
                return None
            found.append(FeatureSet(features.clone(), pictures.labels, pictures.class_names))
        return found[0], found[1] if len(found) > 1 else None

    def autocast(self) -> AbstractContextManager[Any]:

        if self.request.amp == "off":
            return contextlib.nullcontext()
        return torch.autocast(self.device.kind, dtype=torch.bfloat16 if self.request.amp == "bf16" else torch.float16)

    # during


def _be_deterministic() -> None:
    """Only operators that give the same numbers each time; those that cannot raise an error that says so."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    import torch

    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
