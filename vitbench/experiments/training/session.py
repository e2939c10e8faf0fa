"""A training from its first step to its report: epochs, checkpoints, going on, tests. Loads torch."""

from __future__ import annotations

import contextlib
import json
import math
import shlex
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NotRequired

import filelock
import torch
import torch.nn.functional as F
from typing_extensions import TypedDict

from vitbench.core.errors import DataError, ModelFailed, RunFolderError, Unsupported, UsageError, VitbenchError
from vitbench.core.files import parse_json
from vitbench.core.run_folder import LOCK, cannot_write, remove_leftovers, write_atomically
from vitbench.core.validation import Count, Number, Positive, Whole, check
from vitbench.experiments.attention import attention_png
from vitbench.experiments.evaluation import evaluate_trained
from vitbench.experiments.open_model import OutOfMemory, TrainedModel
from vitbench.experiments.training.folder import (
    check_history,
    make_folder,
    note_request,
    note_where_images_are,
    read_summary,
    take_lock,
    write_json,
)
from vitbench.experiments.training.request import (
    INDICES,
    LAST,
    SCHEMA,
    SUMMARY,
    TrainingInterrupted,
    TrainingOutOfMemory,
    TrainingSummary,
)
from vitbench.experiments.training.setup import Setup
from vitbench.models.outputs import mean_logits
from vitbench.models.tracebacks import model_places, with_places
from vitbench.models.weights.checkpoints import digest_of, load_checkpoint, save_checkpoint
from vitbench.reports.evaluation import write_evaluation
from vitbench.reports.plots.curves import write_curves
from vitbench.reports.plots.evaluation import confusion_png
from vitbench.reports.training import history_csv, training_markdown
from vitbench.training.data.images import FeatureSet, ImageSet
from vitbench.training.data.subsets import is_rule
from vitbench.training.evaluate import Evaluation, evaluate
from vitbench.training.loop import TrainingDiverged, random_state
from vitbench.training.recipes import Recipe
from vitbench.training.states import load_state, save_state

#: However long an epoch is, no more than this much work is lost to a crash.
SAVE_EVERY_S = 120.0
#: Steps between looks at the clock and at Ctrl-C, at least.
_STEPS_AT_ONCE = 20
#: What last.pt says of itself in words, and its numbers; the tensors are looked at where they are loaded.


class _Facts(TypedDict):
    data: str


class _Best(TypedDict):
    epoch: Number
    accuracy: Number
    loss: Number


class _Schema(TypedDict):
    schema: Whole


class _Header(TypedDict):
    """What a checkpoint of a training states about it."""

    facts: _Facts
    best: NotRequired[_Best | None]
    origin: NotRequired[str | None]
    pictures: NotRequired[str | None]
    device: NotRequired[str | None]
    processes: NotRequired[Positive | None]


class _Stretch(TypedDict):
    losses: list[Number]
    images: Count
    correct: Count
    since_s: Number


class _State(TypedDict):
    seen: Count
    steps: Count
    elapsed_s: Number
    stretch: _Stretch


class Session:
    """One process's part in one training."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.request = setup.request
        self.ranks = setup.ranks
        self.progress = setup.progress
        self.device = setup.device
        self.stopped = False
        self.rows: list[dict[str, Any]] = []
        self.best: dict[str, Any] | None = None
        self._recent: list[float] = []
        self._drawn = 0  # how many of the rows history and curves show that this process has written
        self._writer: Any = None
        self._board_looked_for = False

    @property
    def recipe(self) -> Recipe:
        """As it is carried out: ``prepare`` takes the normalisation of published weights into it."""
        return self.setup.recipe

    def run(self, folder: Path, resumed: bool = False, *, named: bool = True) -> TrainingSummary:
        """Prepare, train, test. ``named``: whether somebody chose the folder; another one will do if not."""
        self.folder = folder
        if resumed and (folder / SUMMARY).is_file():
            self.progress.note(f"The training in {folder} is finished: nothing is left to do")
            figures, history = read_summary(folder)
            return TrainingSummary(folder=folder, history=tuple(history), figures=figures if self.ranks.first else {})
        lock = filelock.FileLock(folder / LOCK)
        try:
            if resumed and self.ranks.first:
                take_lock(lock, folder)
                remove_leftovers(folder)
            saved = self._read_last() if resumed else None
            if saved is not None:
                self._check_surroundings(saved[1])
            if resumed and self._has_indices and (folder / INDICES).is_file():
                self.setup.imbalance = str(folder / INDICES)
            self.setup.prepare(*(saved or ()))
            self.model = self.setup.model
            self.trainer = self.setup.make_trainer(self._on_step)
            if saved is not None:
                self._take_up(*saved)
                if self.ranks.first:  # only now: the images are those that it began with
                    note_where_images_are(folder, self.request)
            elif resumed:
                self.progress.note("There is no checkpoint yet: the training starts from the beginning")
            elif self.ranks.first:  # only now: what cannot be trained leaves no folder behind
                self.folder = folder = make_folder(folder, named=named)
                lock = filelock.FileLock(folder / LOCK)
                take_lock(lock, folder)
                note_request(folder, self.request)
                self._keep_indices()
            self._train()
            return self._finish()
        except VitbenchError:
            raise
        except OSError as error:
            raise cannot_write(folder, error) from error
        except Exception as error:
            explained = self._explain(error)
            if explained is None:
                raise
            raise explained from error
        finally:
            lock.release()
            self.progress.close()

    def _keep_indices(self) -> None:
        """A copy of the file of indices that chose the images: going on must not need the file where it was."""
        if self._has_indices:
            write_atomically(self.folder / INDICES, Path(str(self.recipe.imbalance)).expanduser().read_bytes())

    def _recipe_hash(self) -> str:
        """The recipe's, by the copy of its file of indices: the file itself may be gone or another by the end."""
        if self._has_indices and (self.folder / INDICES).is_file():
            return self.recipe.model_copy(update={"imbalance": str(self.folder / INDICES)}).hash
        return self.recipe.hash

    @property
    def _has_indices(self) -> bool:
        """Whether a file chose the images."""
        return self.recipe.imbalance is not None and not is_rule(self.recipe.imbalance)

    def _explain(self, error: BaseException) -> VitbenchError | None:
        """What a failure means to whoever asked for the training; None if that is not known."""
        failure = self.device.classify(error)
        if failure.status == "oom":
            recipe = self.recipe
            in_parts = f" in {recipe.accumulate} parts" if recipe.accumulate > 1 else ""
            parts = min(2 * recipe.accumulate, recipe.batch_size // self.ranks.count)
            more = f"Go through the model in more parts (--set accumulate={parts} gives the same steps), or take"
            return TrainingOutOfMemory(
                f"Out of memory on {self.device.name} at batch_size {recipe.batch_size}{in_parts}. "
                f"{more if parts > recipe.accumulate else 'Take'} --amp, a smaller --image-size or a smaller model"
            )
        reason = (failure.detail.splitlines() or [""])[0].rstrip(".")
        if self.request.deterministic and "deterministic" in reason:
            return UsageError(
                f"Not every operator repeats its numbers on {self.device.name}: {reason}. Leave out --deterministic, "
                "or give --device cpu"
            )
        if self.request.compile and failure.cause in ("compile", "compiler"):
            return UsageError(f"torch.compile does not work here: {reason}. Leave out --compile")
        if failure.status == "unsupported":
            return Unsupported(f"{self.device.name} cannot train this model: {reason}. Give --device cpu")
        if self.device.explain(error) is None and (places := model_places(error)):
            return ModelFailed(f"The model failed: {with_places(reason, places)}. {self._way_out(error)}")
        return None

    def _way_out(self, error: BaseException) -> str:
        """Of a failure of the model itself."""
        recipe = self.recipe
        part = math.ceil(recipe.batch_size // self.ranks.count / recipe.accumulate)
        if part == 1 and "more than 1 value per channel" in str(error):
            return (
                "Its batch normalisation needs two images at once: give a larger batch_size, fewer parts "
                f"(accumulate is {recipe.accumulate}), fewer processes ({self.ranks.count}), or a larger --image-size"
            )
        return "Mend it, or give another --image-size; vitbench.train in Python shows the traceback"

    def _train(self) -> None:
        trainer, count = self.trainer, len(self.setup.training)
        # several processes have to agree on when they look up, and that takes time
        steps = max(count // self.recipe.batch_size // 10, _STEPS_AT_ONCE) if self.ranks.count > 1 else count
        self._begin, self._begin_seen, self._saved_at = time.monotonic(), trainer.seen, time.monotonic()
        if trainer.seen == 0 and not self.rows:
            self._save()  # from here on there is something to go on from
        with self._signals():
            # a checkpoint may lie behind the last step of an epoch and before its end: that is then still to come
            while not self._out_of_patience() and (not trainer.done or trainer.seen > self._told()):
                end = (self._told() // count + 1) * count
                while trainer.seen < end and not trainer.done:
                    until = min(end, trainer.seen + steps * self.recipe.batch_size)
                    trainer.run(until, self._is_to_pause if self.ranks.count == 1 else None)
                    stop = self.ranks.share(self.stopped)
                    if stop or self.ranks.share(self._is_to_pause()):
                        trainer.check_finite()  # what is not must not replace what is
                        self._save()
                    if stop:
                        raise TrainingInterrupted(
                            f"Interrupted after epoch {trainer.seen / count:.2f}. Go on with: vitbench train --resume "
                            f"{self.folder}"
                        )
                trainer.check_finite()
                self._end_epoch()

    def _told(self) -> int:
        """The images seen when the last line of the history was made."""
        return self.rows[-1]["images"] if self.rows else 0

    def _is_to_pause(self) -> bool:
        """Whether something is to be done before the next step."""
        return self.stopped or time.monotonic() - self._saved_at > SAVE_EVERY_S

    def _end_epoch(self) -> None:
        trainer = self.trainer
        stretch = trainer.take_stretch()
        trained = self.ranks.gather((math.fsum(stretch.losses), len(stretch.losses), stretch.accuracy, stretch.images))
        row: dict[str, Any] = {
            "epoch": round(trainer.seen / len(self.setup.training), 4),
            "step": trainer.steps,
            "images": trainer.seen,
            "learning_rate": trainer.optimizers[0].param_groups[0]["lr"],
            "train_loss": math.fsum(one[0] for one in trained) / sum(one[1] for one in trained),
            "train_accuracy": sum(one[2] * one[3] for one in trained) / sum(one[3] for one in trained),
        }
        tested = self.ranks.share(self._test_epoch() if self.ranks.first else None)
        row |= tested
        seen = sum(one[3] for one in trained)
        row["images_per_s"] = round(seen / max(stretch.duration_s, 1e-9), 1)
        row["duration_s"] = round(stretch.duration_s, 3)
        self.rows.append(row)
        better = False
        if self.setup.held_out is not None and (
            self.best is None
            or (row["validation_accuracy"], -row["validation_loss"]) > (self.best["accuracy"], -self.best["loss"])
        ):
            self.best = {"epoch": row["epoch"], "accuracy": row["validation_accuracy"], "loss": row["validation_loss"]}
            better = True
        # the weights first: a crash in between leaves weights that are trained to once more
        number = len(self.rows)
        if better and self.ranks.first:
            self._save_weights("best")
        if self.request.save_every and number % self.request.save_every == 0 and self.ranks.first:
            self._save_weights(f"epoch-{number:04d}")
        self._save()
        if self.ranks.first:
            self._show_epoch(row)

    def _test_epoch(self) -> dict[str, Any]:
        """Loss and accuracy on the validation images, or, where there are none, on the test images."""
        which = "test" if self.setup.held_out is None else "validation"
        if self.setup.features is not None:
            accuracy, loss = self._test_head(self.setup.features[1])
        else:
            with self._tested_weights():
                result = self._evaluate(self.setup.test if self.setup.held_out is None else self.setup.held_out)
            accuracy, loss = result.correct / result.total, result.loss
        if not math.isfinite(loss):
            raise TrainingDiverged(self.trainer.steps, loss, self.recipe)
        return {f"{which}_loss": loss, f"{which}_accuracy": accuracy}

    def _evaluate(
        self, dataset: ImageSet, autocast: Callable[[], AbstractContextManager[Any]] | None = None
    ) -> Evaluation:
        """The model as it is, by default under the training's own autocast."""
        return evaluate(
            self.model,
            dataset,
            device=str(self.device.torch_device),
            autocast=autocast or self.setup.autocast,
            batch_size=self.recipe.test_batch_size,
            mean=self.recipe.mean,
            std=self.recipe.std,
        )

    def _test_head(self, features: FeatureSet) -> tuple[float, float]:
        """(accuracy, mean cross entropy in nat) of the head that is trained, on what the backbone makes of images."""
        head = self.trainer.averaged.module if self.trainer.averaged is not None else self.trainer.model
        head.eval()
        with torch.inference_mode(), self.setup.autocast():
            parts = features.features.split(self.recipe.test_batch_size)
            logits = torch.cat([mean_logits(head(part.to(self.device.torch_device))).cpu() for part in parts])
        right = float((logits.argmax(-1) == features.labels).double().mean())
        return right, float(F.cross_entropy(logits, features.labels))

    @contextlib.contextmanager
    def _tested_weights(self) -> Iterator[None]:
        """The moving average in the model's place, where there is one."""
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

    def _out_of_patience(self) -> bool:
        patience = self.recipe.patience
        if patience is None or self.setup.held_out is None or not self.rows:
            return False
        # not since the best one, which may be as accurate as one before it, with a lower loss
        accuracies = [row["validation_accuracy"] for row in self.rows]
        return len(accuracies) - 1 - accuracies.index(max(accuracies)) >= patience

    def _on_step(self, step: int, total: int | None, loss: float) -> None:
        trainer = self.trainer
        seen, count = trainer.seen, len(self.setup.training)
        self._recent = [*self._recent[-49:], loss]
        spent = max(time.monotonic() - self._begin, 1e-9)
        rate = (seen - self._begin_seen) / spent
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
                "loss": math.fsum(self._recent) / len(self._recent),
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
            if self.stopped:
                raise KeyboardInterrupt
            self.stopped = True

        before = {one: signal.signal(one, stop) for one in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)

    # saving

    def _save(self) -> None:
        """``last.pt``: everything, whole or not at all."""
        states = self.ranks.gather(random_state())
        self._saved_at = time.monotonic()
        if not self.ranks.first:
            return
        state = self.trainer.state()
        state["rng"] = states
        header = {
            "schema": SCHEMA,
            "facts": self._facts(),
            "history": self.rows,
            "best": self.best,
            "origin": self.setup.origin,
            "pictures": self.setup.images_digest(),
            "processes": self.ranks.count,
            "device": self.device.kind,
        }
        # the whole model, so that the file serves as weights, too, where only its head is trained; as it is tested, so
        # with the moving average where there is one
        weights = self.model.state_dict()
        if self.trainer.averaged is not None:
            with self._tested_weights():
                weights = {key: value.detach().to("cpu", copy=True) for key, value in self.model.state_dict().items()}
        state = {**state, "trained": state["model"], "model": weights}
        save_state({"vitbench": json.dumps(header), **state}, self.folder / LAST)

    def _read_last(self) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """The last checkpoint's tensors and what it says of itself, or None if there is none."""
        state = load_state(self.folder / LAST)
        if state is None:
            return None
        try:
            check(state["vitbench"], str, "its header")
            header = parse_json(state["vitbench"], _Schema)
            if header["schema"] != SCHEMA:
                raise ValueError(f"it is of schema {header['schema']}, not {SCHEMA}")
            check(header, _Header)
            check(state, _State)
        except (ValueError, KeyError) as error:
            raise self._unfitting(error) from error
        return state, header

    def _check_surroundings(self, header: dict[str, Any]) -> None:
        """Raises RunFolderError for another number of processes than the training began with; warns of another kind of
        device. Checkpoints from before these were noted pass.
        """
        before, now = header.get("processes") or self.ranks.count, self.ranks.count
        if before != now:
            torchrun = f"torchrun --nproc-per-node {before} -m " if before > 1 else ""
            raise RunFolderError(
                f"The training in {str(self.folder)!r} began with {before} process{'es' if before > 1 else ''}, and "
                f"{'these are' if now > 1 else 'this is'} {now}: each draws numbers of its own for its share of a "
                f"batch. Go on with: {torchrun}vitbench train --resume {shlex.quote(str(self.folder))}"
            )
        device = header.get("device") or self.device.kind
        if device != self.device.kind:
            self.progress.warn(
                f"The training began on {device} and is now on {self.device.kind}: it may not come out as without a "
                "pause"
            )

    def _take_up(self, state: dict[str, Any], header: dict[str, Any]) -> None:
        try:
            check_history(header["history"], "test" if self.setup.held_out is None else "validation")
            states = state["rng"]
            self.trainer.load_state({**state, "model": state["trained"], "rng": states[self.ranks.rank % len(states)]})
            self.rows, self.best = header["history"], header["best"]
        except Exception as error:  # what a file holds can make loading it raise anything
            raise self._unfitting(error) from error
        self.progress.note(f"Going on after epoch {self.trainer.seen / len(self.setup.training):.2f}")

    def _unfitting(self, error: Exception) -> DataError:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return DataError(f"{LAST} of {str(self.folder)!r} does not fit this training: {reason}")

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
            "epoch": round(self.trainer.seen / len(self.setup.training), 4),
            "images": self.trainer.seen,
        }

    def _save_weights(self, name: str) -> None:
        with self._tested_weights():
            save_checkpoint(self.model, self.folder / "checkpoints" / f"{name}.safetensors", self._facts())

    def _write_course(self) -> None:
        write_atomically(self.folder / "history.csv", history_csv(self.rows).encode())
        write_curves(self.rows, self.folder / "curves.png", self._title())
        self._drawn = len(self.rows)

    def _show_epoch(self, row: dict[str, Any]) -> None:
        try:
            self._write_course()
        except RunFolderError as error:  # on Windows a table that is open elsewhere cannot be replaced: tried again
            self.progress.warn(f"{error}. The training goes on; they are written after the next epoch")
        self.progress.epoch(row)
        if self._board is not None:
            for key in row:
                if key not in ("epoch", "step", "images"):
                    self._board.add_scalar(key.replace("_", "/", 1), row[key], row["images"])
            self._board.flush()

    @property
    def _board(self) -> Any:
        """TensorBoard's writer, or None where it is not wanted or not installed."""
        if not self._board_looked_for:
            self._board_looked_for = True
            if self.request.tensorboard and self.ranks.first:
                try:
                    from torch.utils.tensorboard import SummaryWriter
                except ImportError:
                    self.progress.note("No TensorBoard logs: pip install 'vitbench[tensorboard]' for them")
                else:
                    # a log that is gone on with drops what came after the checkpoint
                    self._writer = SummaryWriter(str(self.folder / "tensorboard"), purge_step=self.trainer.seen + 1)
        return self._writer

    def _title(self) -> str:
        return f"{self.request.model}, {self.setup.info.label}, recipe {self.recipe.name}"

    def _finish(self) -> TrainingSummary:
        """Save, test, report."""
        if not self.ranks.first:
            return TrainingSummary(folder=self.folder, history=tuple(self.rows), figures={})
        self._save_weights("last")
        if self._drawn < len(self.rows):  # a crash came between the last checkpoint and these, or they were in use
            self._write_course()
        result = self._test_last()
        figures: dict[str, Any] = {
            "model": self.request.model,
            "data": self.setup.info.label,
            "image_size": list(self.setup.size),
            "num_classes": self.setup.num_classes,
            "recipe": self.recipe.name,
            "recipe_hash": self._recipe_hash(),
            "seed": self.request.seed,
            "origin": self.setup.origin,
            "device": self.device.name,
            "processes": self.ranks.count,
            "amp": self.request.amp,
            "training_images": len(self.setup.training),
            "class_sizes": _class_sizes(self.setup.training),
            "validation_images": 0 if self.setup.held_out is None else len(self.setup.held_out),
            "images_seen": self.trainer.trained,
            "steps": self.trainer.steps,
            "epochs": round(self.trainer.seen / len(self.setup.training), 4),
            "stopped_because": self.recipe.budget if self.trainer.done else "patience",
            "training_duration_s": round(self.trainer.elapsed_s, 3),
            "trainable_params": self.setup.freezing.trainable,
            "params": self.setup.freezing.total,
            "test_images": result["images"],
            "last": {
                "test_correct": result["accuracy"]["correct"],
                "test_accuracy": result["accuracy"]["value"],
                "test_loss": result["loss"]["value"],
                "macro_f1": result["macro"]["f1"],
                "class_f1": {one["name"]: one["f1"] for one in result["classes"]},
                "calibration_error": result["calibration"]["error"],
            },
        }
        if self.best is not None:
            figures["best"] = {**self.best, **self._test_best()}
        write_atomically(self.folder / "report.md", training_markdown(figures, self.rows, self._title()).encode())
        write_json(self.folder / SUMMARY, {"schema": SCHEMA, "figures": figures, "history": self.rows})
        if self._board is not None:
            self._board.close()
        return TrainingSummary(folder=self.folder, history=tuple(self.rows), figures=figures)

    def _test_last(self) -> dict[str, Any]:
        """Test the trained model, and write what ``vitbench evaluate`` would of it."""
        path = self.folder / "checkpoints" / "last.safetensors"
        digest = digest_of(path)[:16]
        with self._tested_weights():
            trained = TrainedModel(
                name=self.request.model,
                module=self.model,
                device=self.device,
                image_size=self.setup.size,
                num_classes=self.setup.num_classes,
                class_names=self.setup.class_names,
                mean=self.recipe.mean,
                std=self.recipe.std,
                weights=f"{path.name} ({digest})",
                facts=self._facts(),
                digest=digest,
            )
            at_once = self.recipe.test_batch_size
            try:
                result = evaluate_trained(trained, self.setup.info, self.setup.test, batch_size=at_once)
            except OutOfMemory as error:
                raise TrainingOutOfMemory(
                    f"Out of memory on {self.device.name} when the trained model was tested, {at_once} images at "
                    f"once. It is trained: vitbench evaluate {self.request.model} --weights "
                    f"{shlex.quote(str(path))} with a smaller --batch-size tests it; or train anew with a smaller "
                    "batch_size or more parts (--set accumulate=), by which so many were tested at once"
                ) from error
            write_evaluation(result, self.folder)
            if self._board is not None:
                self._show_images(trained, result)
        return result

    def _show_images(self, trained: TrainedModel, result: dict[str, Any]) -> None:
        """The curves, the confusion matrix, and what the model attends to in the first test image, if that can be
        told.
        """
        drawn = {"curves": (self.folder / "curves.png").read_bytes(), "confusion": confusion_png(result)}
        try:
            drawn["attention"] = attention_png(trained, self.setup.test.images[0])
        except (VitbenchError, RuntimeError, MemoryError) as error:  # an image less is no reason to lose the report
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            self.progress.note(f"No attention image in the TensorBoard logs: {reason}")
        for name, content in drawn.items():
            self._board.add_image(name, _read_png(content), self.trainer.seen, dataformats="HWC")

    def _test_best(self) -> dict[str, Any]:
        """The best checkpoint on the test images; the model keeps its last weights."""
        kept = {key: value.detach().clone() for key, value in self.model.state_dict().items()}
        load_checkpoint(self.model, self.folder / "checkpoints" / "best.safetensors")
        try:
            result = self._evaluate(self.setup.test, contextlib.nullcontext)  # as the last weights are tested
        finally:
            self.model.load_state_dict(kept)
        return {
            "test_correct": result.correct,
            "test_accuracy": result.correct / result.total,
            "test_loss": result.loss,
        }


def _read_png(content: bytes) -> Any:
    """An image's pixels (H, W, 3) uint8."""
    import io

    import numpy as np
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def _class_sizes(dataset: Any) -> list[int]:
    found: list[int] = torch.bincount(dataset.labels.cpu(), minlength=dataset.num_classes).tolist()
    return found
