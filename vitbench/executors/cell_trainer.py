"""Train and test the model of one cell: joins training, which knows no cells, with metrics, which know no training."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vitbench.executors.protocol import Emit, TrainingSettings, TrainingStep
from vitbench.metrics import NotFiniteError, Subject
from vitbench.models.cards import PRETRAINED

#: Seconds between two progress events of a training run.
PROGRESS_EVERY_S = 0.5


class CellTrainer:
    """The ``Trainer`` of a cell's accuracy metric.

    ``checkpoint``: the file that the model's weights come from, if they come from one.
    """

    def __init__(self, subject: Subject, settings: TrainingSettings, emit: Emit, checkpoint: str | None = None) -> None:
        from vitbench.training.data.datasets import describe_data
        from vitbench.training.recipes import Recipe

        self.subject = subject
        self.settings = settings
        self.emit = emit
        self.checkpoint = checkpoint
        self.recipe = Recipe(**settings.recipe)
        root = Path(settings.data_dir) if settings.data_dir else None
        self.info = describe_data(settings.data, root=root, download=settings.download)
        self._last_progress = 0.0

    def train(self, model: Any) -> dict[str, Any]:
        """Train by the recipe on the training images, or on a seeded subset, without those held out for validation."""
        from vitbench.metrics.support.subject import check_trains
        from vitbench.training.data.datasets import load_training_images
        from vitbench.training.loop import train
        from vitbench.training.optimizers import regularise

        cell, device = self.subject.cell, self.subject.device
        check_trains(cell.dtype)
        lacking = regularise(model, self.recipe)
        images, _ = load_training_images(
            self.info,
            image_size=cell.image_size,
            images=self._most_images(),
            seed=cell.seed,
            validation=self.recipe.validation,
            imbalance=self.recipe.imbalance,
            download=self.settings.download,
        )
        result = train(
            model,
            images,
            self.recipe,
            device=device.name,
            autocast=lambda: device.autocast(cell.dtype),
            scaler=self.subject.scaler if self.subject.scaler.is_enabled() else None,
            synchronize=device.synchronize,
            seed=cell.seed,
            on_step=self._report,
        )
        return {
            "images_seen": result.images_seen,
            "steps": result.steps,
            "duration_s": result.duration_s,
            "losses": result.losses,
            "recipe": f"recipe {self.recipe.name} ({self.recipe.hash})"
            + (f", without {' and '.join(lacking)}, which the model has no layers for" if lacking else ""),
            "budget": self.settings.budget,
            "class_sizes": images.labels.bincount(minlength=images.num_classes).tolist(),
        }

    def evaluate(self, model: Any) -> dict[str, Any]:
        """Test on held-out images, the same for each seed. Raises NotFiniteError for logits that have no score."""
        import torch

        from vitbench.training.data.datasets import load_images
        from vitbench.training.evaluate import collect_answers
        from vitbench.training.scores import score

        cell, device = self.subject.cell, self.subject.device
        images = load_images(self.info, "test", image_size=cell.image_size, images=self.settings.test_images, seed=0)
        mean, std = self._normalisation()
        answers = collect_answers(
            model,
            images,
            mean=mean,
            std=std,
            device=device.name,
            autocast=lambda: device.autocast(cell.dtype),
            batch_size=self.recipe.test_batch_size,
            synchronize=device.synchronize,
        )
        bad = int((~torch.isfinite(answers.logits)).sum())
        if bad:
            raise NotFiniteError(f"{bad} of {answers.logits.numel()} logits of held-out images are not finite")
        found = score(answers.logits.numpy(), images.labels.numpy(), classes=images.num_classes)
        beyond = range(images.num_classes, len(found.classes))  # the head may have room for more classes
        return {
            "correct": found.correct,
            "total": found.total,
            "loss": found.loss,
            "macro_f1": found.macro.f1,
            "macro_f1_present": None if found.present is None else found.present.f1,
            "num_classes": images.num_classes,
            "classes_present": found.classes_present,
            "classes_without_images": found.classes_without_images,
            "class_f1": [one.f1 for one in found.classes],
            "class_precision": [one.precision for one in found.classes],
            "class_recall": [one.recall for one in found.classes],
            "class_names": [*images.class_names, *(f"class {index}" for index in beyond)],
        }

    def _most_images(self) -> int | None:
        """How many training images to read: no more than a training by images or steps can see; None for all.

        All are read where classes differ in size on purpose, or are drawn with replacement: sizes are compared there.
        """
        recipe = self.recipe
        whole = recipe.epochs is not None or recipe.imbalance is not None or recipe.sampler == "weighted"
        seen = None if whole else recipe.total_images(self.info.train_images)
        return min((one for one in (seen, self.settings.train_images) if one is not None), default=None)

    def _normalisation(self) -> tuple[Sequence[float], Sequence[float]]:
        """The mean and standard deviation of each channel that the weights were trained with."""
        from vitbench.models import describe_model
        from vitbench.models.weights.checkpoints import read_facts
        from vitbench.models.weights.claimed import normalisation_of

        cell = self.subject.cell
        if cell.trains:
            return self.recipe.mean, self.recipe.std
        card = describe_model(cell.model)
        if cell.weights.startswith(f"{PRETRAINED}:"):
            return card.mean, card.std
        return normalisation_of(card, read_facts(self.checkpoint) if self.checkpoint else {})

    def save(self, model: Any) -> str:
        """Write ``checkpoints/<cell id>.safetensors`` into the run folder, whole or not at all."""
        folder = self.settings.checkpoints
        if not folder:
            return ""
        from vitbench.models.weights.checkpoints import save_checkpoint

        cell = self.subject.cell
        path = Path(folder) / f"{cell.id}.safetensors"
        path.parent.mkdir(exist_ok=True)
        facts = {
            "model": cell.model,
            "image_size": list(cell.image_size),
            "num_classes": cell.num_classes,
            "classes": list(self.info.class_names),
            "data": cell.data,
            "recipe": self.recipe.model_dump(mode="json"),
            "seed": cell.seed,
        }
        save_checkpoint(model, path, facts)
        return f"{path.parent.name}/{path.name}"

    def _report(self, step: int, total: int | None, loss: float) -> None:
        now = time.monotonic()
        if now - self._last_progress >= PROGRESS_EVERY_S:
            self._last_progress = now
            self.emit(TrainingStep(step=step, total=total, loss=loss))
