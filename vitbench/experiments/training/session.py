"""A training from its first step to its report: epochs, checkpoints, resuming, the final test. Loads torch."""

from __future__ import annotations

import contextlib
import io
import math
import shlex
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from vitbench.core.errors import RunFolderError, VitbenchError
from vitbench.core.run_folder import cannot_write, remove_leftovers, write_atomically
from vitbench.experiments.attention import attention_png
from vitbench.experiments.evaluation import evaluate_trained
from vitbench.experiments.open_model import OutOfMemory, TrainedModel
from vitbench.experiments.training.checkpoint import Saved, does_not_fit, read_last, save_last
from vitbench.experiments.training.folder import (
    check_history,
    make_folder,
    read_summary,
    take_lock,
    write_data_paths,
    write_json,
    write_request,
)
from vitbench.experiments.training.request import (
    INDICES,
    SCHEMA,
    SUMMARY,
    TrainingInterrupted,
    TrainingOutOfMemory,
    TrainingSummary,
)
from vitbench.experiments.training.setup import Setup, explain_failure
from vitbench.models.outputs import mean_logits
from vitbench.models.weights.checkpoints import digest_of, load_checkpoint, save_checkpoint
from vitbench.reports.evaluation import write_evaluation
from vitbench.reports.plots.curves import write_curves
from vitbench.reports.plots.evaluation import confusion_png
from vitbench.reports.training import history_csv, training_markdown
from vitbench.training.data.images import FeatureSet, ImageSet
from vitbench.training.data.subsets import is_rule
from vitbench.training.evaluate import Evaluation, evaluate
from vitbench.training.loop import Trainer, TrainingDiverged
from vitbench.training.order import random_state
from vitbench.training.recipes import Recipe

#: However long an epoch is, no more than this much work is lost to a crash.
SAVE_EVERY_S = 120.0
#: Steps between looks at the clock and at Ctrl-C, at least.
_STEPS_AT_ONCE = 20


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


class Session:
    """One process's part in one training."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.request = setup.request
        self.ranks = setup.ranks
        self.progress = setup.progress
        self.rows: list[dict[str, Any]] = []
        self.best: dict[str, Any] | None = None
        self.board: Any = None  # TensorBoard's writer
        self._interrupted = False
        self._recent_losses: list[float] = []
        self._rows_written = 0  # by this process, to history.csv and curves.png

    @property
    def recipe(self) -> Recipe:
        """The recipe that is carried out: ``Setup.prepare`` takes the normalisation of published weights into it."""
        return self.setup.recipe

    def run(self, folder: Path, resumed: bool = False, *, named: bool = True) -> TrainingSummary:
        """Prepare, train, test. ``named``: the user chose the folder; otherwise a free one beside it will do."""
        self.folder = folder
        if resumed and (folder / SUMMARY).is_file():
            self.progress.note(f"The training in {folder} is finished: nothing is left to do")
            figures, history = read_summary(folder)
            return TrainingSummary(folder=folder, history=tuple(history), figures=figures if self.ranks.first else {})
        with contextlib.ExitStack() as locks:
            try:
                if resumed:
                    self._resume(locks)
                else:
                    self._start(locks, named)
                self._train()
                return self._finish()
            except VitbenchError:
                raise
            except OSError as error:
                raise cannot_write(self.folder, error) from error
            except Exception as error:
                explained = explain_failure(error, self.setup)
                if explained is None:
                    raise
                raise explained from error
            finally:
                self.progress.close()

    # --- beginning

    def _start(self, locks: contextlib.ExitStack, named: bool) -> None:
        self._prepare(None)
        if not self.ranks.first:
            return
        # only now: a request that cannot be trained leaves no folder behind
        self.folder = make_folder(self.folder, named=named)
        locks.callback(take_lock(self.folder).release)
        write_request(self.folder, self.request)
        if self._has_indices:  # resuming must not need the file where it was
            write_atomically(self.folder / INDICES, Path(str(self.recipe.imbalance)).expanduser().read_bytes())

    def _resume(self, locks: contextlib.ExitStack) -> None:
        if self.ranks.first:
            locks.callback(take_lock(self.folder).release)
            remove_leftovers(self.folder)
        saved = read_last(self.folder)
        if saved is not None:
            self._check_surroundings(saved.header)
        if self._has_indices and (self.folder / INDICES).is_file():
            self.setup.imbalance = str(self.folder / INDICES)
        self._prepare(saved)
        if saved is None:
            self.progress.note("There is no checkpoint yet: the training starts from the beginning")
            return
        self._take_up(saved)
        if self.ranks.first:  # only now: the images are those that it began with
            write_data_paths(self.folder, self.request)

    def _prepare(self, saved: Saved | None) -> None:
        self.setup.prepare(saved)
        self.trainer = self.setup.make_trainer(self._on_step)
        self.tester = Tester(self.setup, self.trainer)

    @property
    def _has_indices(self) -> bool:
        """Whether a file chose the images."""
        return self.recipe.imbalance is not None and not is_rule(self.recipe.imbalance)

    def _check_surroundings(self, header: dict[str, Any]) -> None:
        """Raises RunFolderError for another number of processes than at the beginning; warns of another device."""
        # old checkpoints do not name them
        before, now = header.get("processes") or self.ranks.count, self.ranks.count
        if before != now:
            torchrun = f"torchrun --nproc-per-node {before} -m " if before > 1 else ""
            raise RunFolderError(
                f"The training in {str(self.folder)!r} began with {before} process{'es' if before > 1 else ''}, and "
                f"{'these are' if now > 1 else 'this is'} {now}: each draws numbers of its own for its share of a "
                f"batch. Go on with: {torchrun}vitbench train --resume {shlex.quote(str(self.folder))}"
            )
        kind = self.setup.device.kind
        device = header.get("device") or kind
        if device != kind:
            self.progress.warn(
                f"The training began on {device} and is now on {kind}: its result may differ from one without a pause"
            )

    def _take_up(self, saved: Saved) -> None:
        state, header = saved.state, saved.header
        try:
            check_history(header["history"], "test" if self.setup.held_out is None else "validation")
            states = state["rng"]
            self.trainer.load_state({**state, "model": state["trained"], "rng": states[self.ranks.rank % len(states)]})
            self.rows, self.best = header["history"], header["best"]
        except Exception as error:  # what a file holds can make loading it raise anything
            raise does_not_fit(self.folder, error) from error
        self.progress.note(f"Resuming after epoch {self._epoch:.2f}")

    # --- epochs

    def _train(self) -> None:
        trainer, count = self.trainer, len(self.setup.training)
        # several processes have to agree on when they look up, and that takes time
        steps = max(count // self.recipe.batch_size // 10, _STEPS_AT_ONCE) if self.ranks.count > 1 else count
        self._begin, self._begin_seen, self._saved_at = time.monotonic(), trainer.seen, time.monotonic()
        if self.request.tensorboard and self.ranks.first:
            self._open_board()
        if trainer.seen == 0 and not self.rows:
            self._save()  # from here on the training can be resumed
        with self._signals():
            # a checkpoint may lie behind the last step of an epoch and before its end: that is then still to come
            while not self._out_of_patience() and (not trainer.done or trainer.seen > self._seen_in_history):
                end = (self._seen_in_history // count + 1) * count
                while trainer.seen < end and not trainer.done:
                    until = min(end, trainer.seen + steps * self.recipe.batch_size)
                    trainer.run(until, self._is_to_pause if self.ranks.count == 1 else None)
                    self._pause()
                trainer.check_finite()
                self._end_epoch()

    def _open_board(self) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self.progress.note("No TensorBoard logs: pip install 'vitbench[tensorboard]' for them")
        else:  # what an earlier process logged after the checkpoint is dropped
            self.board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=self.trainer.seen + 1)

    def _pause(self) -> None:
        """Save, if it is time for it. Raises TrainingInterrupted after Ctrl-C."""
        stop = self.ranks.share(self._interrupted)
        if stop or self.ranks.share(self._is_to_pause()):
            self.trainer.check_finite()  # a good checkpoint must not be replaced by a bad one
            self._save()
        if stop:
            raise TrainingInterrupted(
                f"Interrupted after epoch {self._epoch:.2f}. Go on with: vitbench train --resume {self.folder}"
            )

    def _is_to_pause(self) -> bool:
        return self._interrupted or time.monotonic() - self._saved_at > SAVE_EVERY_S

    @property
    def _epoch(self) -> float:
        """Passes over the training images so far."""
        return self.trainer.seen / len(self.setup.training)

    @property
    def _seen_in_history(self) -> int:
        """The images seen at the last row of the history."""
        return self.rows[-1]["images"] if self.rows else 0

    def _end_epoch(self) -> None:
        row = self._test_epoch()
        self.rows.append(row)
        better = self.setup.held_out is not None and (
            self.best is None
            or (row["validation_accuracy"], -row["validation_loss"]) > (self.best["accuracy"], -self.best["loss"])
        )
        if better:
            self.best = {"epoch": row["epoch"], "accuracy": row["validation_accuracy"], "loss": row["validation_loss"]}
        # the weights first: after a crash in between, the steps up to these weights are taken once more
        number, every = len(self.rows), self.request.save_every
        if better and self.ranks.first:
            self._save_weights("best")
        if every and number % every == 0 and self.ranks.first:
            self._save_weights(f"epoch-{number:04d}")
        self._save()
        if self.ranks.first:
            self._show_epoch(row)

    def _test_epoch(self) -> dict[str, Any]:
        """The epoch's row of the history."""
        trainer = self.trainer
        epoch = trainer.take_statistics()
        # of each process: sum of losses, steps, accuracy, images
        parts = self.ranks.gather((math.fsum(epoch.losses), len(epoch.losses), epoch.accuracy, epoch.images))
        images = sum(part[3] for part in parts)
        row: dict[str, Any] = {
            "epoch": round(self._epoch, 4),
            "step": trainer.steps,
            "images": trainer.seen,
            "learning_rate": trainer.optimizers[-1].param_groups[0]["lr"],
            "train_loss": math.fsum(part[0] for part in parts) / sum(part[1] for part in parts),
            "train_accuracy": sum(part[2] * part[3] for part in parts) / images,
        }
        row |= self.ranks.share(self.tester.test_epoch() if self.ranks.first else None)
        row["images_per_s"] = round(images / max(epoch.duration_s, 1e-9), 1)
        row["duration_s"] = round(epoch.duration_s, 3)
        return row

    def _out_of_patience(self) -> bool:
        patience = self.recipe.patience
        if patience is None or self.setup.held_out is None or not self.rows:
            return False
        # not since the best epoch, which may be as accurate as one before it, with a lower loss
        accuracies = [row["validation_accuracy"] for row in self.rows]
        return len(accuracies) - 1 - accuracies.index(max(accuracies)) >= patience

    def _on_step(self, step: int, total: int | None, loss: float) -> None:
        trainer = self.trainer
        seen, count = trainer.seen, len(self.setup.training)
        self._recent_losses = [*self._recent_losses[-49:], loss]
        rate = (seen - self._begin_seen) / max(time.monotonic() - self._begin, 1e-9)
        budget = self.recipe.total_images(count)
        left = (budget - seen) / rate if budget is not None and rate > 0 else None
        if budget is None and self.recipe.seconds is not None:
            left = max(self.recipe.seconds - trainer.elapsed_s, 0.0)
        self.progress.step(
            {
                "epoch": seen / count,
                "epochs": None if budget is None else budget / count,
                "step": step,
                "steps": total,
                "loss": math.fsum(self._recent_losses) / len(self._recent_losses),
                "images_per_s": rate,
                "left_s": left,
                "last": self.rows[-1] if self.rows else None,
            }
        )

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM end the training after the step under way; a second Ctrl-C ends it at once."""
        if threading.current_thread() is not threading.main_thread() or self.ranks.count > 1:
            yield
            return

        def stop(number: int, _: Any) -> None:
            if self._interrupted:
                raise KeyboardInterrupt
            self._interrupted = True

        before = {one: signal.signal(one, stop) for one in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)

    # --- files

    def _save(self) -> None:
        """``last.pt``."""
        states = self.ranks.gather(random_state())
        self._saved_at = time.monotonic()
        if not self.ranks.first:
            return
        header = {
            "facts": self._facts(),
            "history": self.rows,
            "best": self.best,
            "origin": self.setup.origin,
            "pictures": self.setup.images_digest(),
            "processes": self.ranks.count,
            "device": self.setup.device.kind,
        }
        state = self.trainer.state()
        # the whole model, with the weights that are tested: the file serves as --weights, too
        model = self.setup.model
        weights = model.state_dict()
        if self.trainer.averaged is not None:
            with self.tester.tested_weights():
                weights = {key: value.detach().to("cpu", copy=True) for key, value in model.state_dict().items()}
        save_last(self.folder, Saved({**state, "trained": state["model"], "model": weights, "rng": states}, header))

    def _facts(self) -> dict[str, Any]:
        """What a checkpoint says of itself."""
        return {
            "model": self.request.model,
            "image_size": list(self.setup.size),
            "num_classes": self.setup.num_classes,
            "classes": list(self.setup.class_names),
            "data": self.setup.info.label,
            "recipe": self.recipe.model_dump(mode="json"),
            "seed": self.request.seed,
            "epoch": round(self._epoch, 4),
            "images": self.trainer.seen,
        }

    def _weights_file(self, name: str) -> Path:
        return self.folder / "checkpoints" / f"{name}.safetensors"

    def _save_weights(self, name: str) -> None:
        with self.tester.tested_weights():
            save_checkpoint(self.setup.model, self._weights_file(name), self._facts())

    def _write_history(self) -> None:
        write_atomically(self.folder / "history.csv", history_csv(self.rows).encode())
        write_curves(self.rows, self.folder / "curves.png", self._title())
        self._rows_written = len(self.rows)

    def _show_epoch(self, row: dict[str, Any]) -> None:
        try:
            self._write_history()
        except RunFolderError as error:  # on Windows a table that is open elsewhere cannot be replaced
            self.progress.warn(f"{error}. The training goes on; they are written after the next epoch")
        self.progress.epoch(row)
        if self.board is not None:
            for key in [key for key in row if key not in ("epoch", "step", "images")]:
                self.board.add_scalar(key.replace("_", "/", 1), row[key], row["images"])
            self.board.flush()

    def _title(self) -> str:
        return f"{self.request.model}, {self.setup.info.label}, recipe {self.recipe.name}"

    # --- end

    def _finish(self) -> TrainingSummary:
        """Save, test, report."""
        if not self.ranks.first:
            return TrainingSummary(folder=self.folder, history=tuple(self.rows), figures={})
        self._save_weights("last")
        if self._rows_written < len(self.rows):  # a crash came after the last checkpoint, or the files were in use
            self._write_history()
        figures = self._figures(self._test_last())
        if self.best is not None:
            figures["best"] = {**self.best, **self.tester.test_best(self._weights_file("best"))}
        write_atomically(self.folder / "report.md", training_markdown(figures, self.rows, self._title()).encode())
        write_json(self.folder / SUMMARY, {"schema": SCHEMA, "figures": figures, "history": self.rows})
        if self.board is not None:
            self.board.close()
        return TrainingSummary(folder=self.folder, history=tuple(self.rows), figures=figures)

    def _test_last(self) -> dict[str, Any]:
        """Test the trained model, and write what ``vitbench evaluate`` would write."""
        path = self._weights_file("last")
        with self.tester.tested_weights():
            trained, result = self.tester.test_last(path, self._facts())
            write_evaluation(result, self.folder)
            if self.board is not None:
                for name, content in self._final_figures(trained, result).items():
                    pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))  # (H, W, 3)
                    self.board.add_image(name, pixels, self.trainer.seen, dataformats="HWC")
        return result

    def _final_figures(self, trained: TrainedModel, result: dict[str, Any]) -> dict[str, bytes]:
        """The curves, the confusion matrix, and what the model attends to in the first test image, if it has maps."""
        figures = {"curves": (self.folder / "curves.png").read_bytes(), "confusion": confusion_png(result)}
        try:
            figures["attention"] = attention_png(trained, self.setup.test.images[0])
        except (VitbenchError, RuntimeError, MemoryError) as error:  # a missing figure must not cost the report
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            self.progress.note(f"No attention figure in the TensorBoard logs: {reason}")
        return figures

    def _figures(self, result: dict[str, Any]) -> dict[str, Any]:
        """The values of summary.json; ``result`` is the evaluation of the last weights."""
        setup, trainer = self.setup, self.trainer
        return {
            "model": self.request.model,
            "data": setup.info.label,
            "image_size": list(setup.size),
            "num_classes": setup.num_classes,
            "recipe": self.recipe.name,
            "recipe_hash": self._recipe_hash(),
            "seed": self.request.seed,
            "origin": setup.origin,
            "device": setup.device.name,
            "processes": self.ranks.count,
            "amp": self.request.amp,
            "training_images": len(setup.training),
            "class_sizes": torch.bincount(setup.training.labels.cpu(), minlength=setup.training.num_classes).tolist(),
            "validation_images": 0 if setup.held_out is None else len(setup.held_out),
            "images_seen": trainer.trained,
            "steps": trainer.steps,
            "epochs": round(self._epoch, 4),
            "stopped_because": self.recipe.budget if trainer.done else "patience",
            "training_duration_s": round(trainer.elapsed_s, 3),
            "trainable_params": setup.freezing.trainable,
            "params": setup.freezing.total,
            "test_images": result["images"],
            "last": {
                "test_correct": result["accuracy"]["correct"],
                "test_accuracy": result["accuracy"]["value"],
                "test_loss": result["loss"]["value"],
                "macro_f1": result["macro"]["f1"],
                "classes_without_images": result["macro"]["classes_without_images"],
                **({"macro_f1_present": present["f1"]} if (present := result["macro_present"]) else {}),
                "class_f1": {one["name"]: one["f1"] for one in result["classes"]},
                "calibration_error": result["calibration"]["error"],
            },
        }

    def _recipe_hash(self) -> str:
        """The recipe's, by the copy of its file of indices: the file itself may be gone or changed by the end."""
        if self._has_indices and (self.folder / INDICES).is_file():
            return self.recipe.model_copy(update={"imbalance": str(self.folder / INDICES)}).hash
        return self.recipe.hash
