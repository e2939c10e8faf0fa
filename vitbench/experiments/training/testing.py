"""Test the model of a training: after each epoch, and when it is trained. Loads torch."""

from __future__ import annotations

import contextlib
import math
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from vitbench.experiments.evaluation import evaluate_trained
from vitbench.experiments.open_model import OutOfMemory, TrainedModel
from vitbench.experiments.training.request import TrainingOutOfMemory
from vitbench.experiments.training.setup import Setup
from vitbench.models.outputs import mean_logits
from vitbench.models.weights.checkpoints import digest_of, load_checkpoint
from vitbench.training.data.images import FeatureSet, ImageSet
from vitbench.training.evaluate import Evaluation, evaluate
from vitbench.training.loop import Trainer, TrainingDiverged


class Tester:
    """Tests the model of ``trainer``: the moving average of its weights, where there is one."""

    def __init__(self, setup: Setup, trainer: Trainer) -> None:
        self.setup = setup
        self.trainer = trainer

    @contextlib.contextmanager
    def tested_weights(self) -> Iterator[None]:
        """Inside, the model has the moving average of its weights, where there is one."""
        averaged = self.trainer.averaged
        if averaged is None:
            yield
            return
        own = self.trainer.model
        kept = {key: value.detach().clone() for key, value in own.state_dict().items()}
        own.load_state_dict(averaged.module.state_dict())
        try:
            yield
        finally:
            own.load_state_dict(kept)

    def test_epoch(self) -> dict[str, float]:
        """Loss and accuracy on the validation images, or, where there are none, on the test images."""
        held_out = self.setup.held_out
        which = "test" if held_out is None else "validation"
        if self.setup.features is not None:
            accuracy, loss = self._test_head(self.setup.features[1])
        else:
            with self.tested_weights():
                result = self._evaluate(self.setup.test if held_out is None else held_out)
            accuracy, loss = result.correct / result.total, result.loss
        if not math.isfinite(loss):
            raise TrainingDiverged(self.trainer.steps, loss, self.setup.recipe)
        return {f"{which}_loss": loss, f"{which}_accuracy": accuracy}

    def test_best(self, path: Path) -> dict[str, Any]:
        """The checkpoint ``path`` on the test images; the model keeps its last weights."""
        model = self.setup.model
        kept = {key: value.detach().clone() for key, value in model.state_dict().items()}
        load_checkpoint(model, path)
        try:
            result = self._evaluate(self.setup.test, contextlib.nullcontext)  # as the last weights are tested
        finally:
            model.load_state_dict(kept)
        return {
            "test_correct": result.correct,
            "test_accuracy": result.correct / result.total,
            "test_loss": result.loss,
        }

    def test_last(self, path: Path, facts: Mapping[str, Any]) -> tuple[TrainedModel, dict[str, Any]]:
        """The trained model, whose weights are in ``path`` as well, and what ``vitbench evaluate`` reports of it."""
        setup, digest = self.setup, digest_of(path)[:16]
        trained = TrainedModel(
            name=setup.request.model,
            module=setup.model,
            device=setup.device,
            image_size=setup.size,
            num_classes=setup.num_classes,
            class_names=setup.class_names,
            mean=setup.recipe.mean,
            std=setup.recipe.std,
            weights=f"{path.name} ({digest})",
            facts=facts,
            digest=digest,
        )
        batch_size = setup.recipe.test_batch_size
        try:
            return trained, evaluate_trained(trained, setup.info, setup.test, batch_size=batch_size)
        except OutOfMemory as error:
            raise TrainingOutOfMemory(
                f"Out of memory on {setup.device.name} when the trained model was tested, {batch_size} images at once. "
                f"It is trained: vitbench evaluate {trained.name} --weights {shlex.quote(str(path))} with a smaller "
                "--batch-size tests it; or train anew with a smaller batch_size or more parts (--set accumulate=), by "
                "which so many were tested at once"
            ) from error

    def _evaluate(
        self, dataset: ImageSet, autocast: Callable[[], AbstractContextManager[Any]] | None = None
    ) -> Evaluation:
        """The model as it is, by default under the training's own autocast."""
        return evaluate(
            self.setup.model,
            dataset,
            device=str(self.setup.device.torch_device),
            autocast=autocast or self.setup.autocast,
            batch_size=self.setup.recipe.test_batch_size,
            mean=self.setup.recipe.mean,
            std=self.setup.recipe.std,
        )

    def _test_head(self, features: FeatureSet) -> tuple[float, float]:
        """(accuracy, mean cross entropy in nat) of the trained head on the features of images."""
        head = self.trainer.averaged.module if self.trainer.averaged is not None else self.trainer.model
        head.eval()
        device = self.setup.device.torch_device
        with torch.inference_mode(), self.setup.autocast():
            parts = features.features.split(self.setup.recipe.test_batch_size)
            logits = torch.cat([mean_logits(head(part.to(device))).cpu() for part in parts])
        right = float((logits.argmax(-1) == features.labels).double().mean())
        return right, float(F.cross_entropy(logits, features.labels))
