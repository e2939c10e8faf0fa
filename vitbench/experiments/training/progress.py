"""Show a training's progress: a live line in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

from vitbench.core.text import one_line
from vitbench.runner.progress import format_duration

#: Seconds between plain lines inside an epoch.
_PLAIN_EVERY_S = 30.0
#: Seconds between refreshes of the live line.
_LIVE_EVERY_S = 0.2


class TrainingProgress:
    """Receives what a training does; this one shows nothing."""

    def note(self, text: str) -> None:
        """A fact, or a step that takes a while."""

    def warn(self, text: str) -> None:
        """A warning; the training goes on."""

    def step(self, state: Mapping[str, Any]) -> None:
        """``epoch`` (with its fraction), ``epochs`` (or None), ``step``, ``steps`` (or None), ``loss`` (mean of the
        last 50 steps), ``images_per_s``, ``left_s`` (or None), and ``last``, the last epoch's line (or None).
        """

    def epoch(self, row: Mapping[str, Any]) -> None:
        """An epoch's line of the history."""

    def close(self) -> None:
        """The training has ended."""


class PlainTrainingProgress(TrainingProgress):
    """A line an epoch, and one every half minute inside long ones: for logs and CI."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self._printed_at = time.monotonic()

    def note(self, text: str) -> None:
        print(one_line(text), file=self.stream, flush=True)

    def warn(self, text: str) -> None:
        self.note(f"Warning: {text}")

    def step(self, state: Mapping[str, Any]) -> None:
        if time.monotonic() - self._printed_at >= _PLAIN_EVERY_S:
            self._printed_at = time.monotonic()
            self.note(step_text(state))

    def epoch(self, row: Mapping[str, Any]) -> None:
        self._printed_at = time.monotonic()
        self.note(epoch_text(row))


class LiveTrainingProgress(PlainTrainingProgress):
    """The current step in a line that is refreshed, epochs above it."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        self._text = Text
        self._live = Live(Text(""), console=Console(stderr=True), auto_refresh=False, transient=True)
        self._shown = 0.0

    def note(self, text: str) -> None:
        if self._live.is_started:
            self._live.console.print(one_line(text), markup=False, emoji=False, highlight=False)
        else:
            super().note(text)

    def step(self, state: Mapping[str, Any]) -> None:
        self._live.start()  # nothing happens where it has started
        if time.monotonic() - self._shown >= _LIVE_EVERY_S:
            self._shown = time.monotonic()
            self._live.update(self._text(step_text(state)), refresh=True)

    def close(self) -> None:
        self._live.stop()


def step_text(state: Mapping[str, Any]) -> str:
    """``epoch 3.42/100, loss 1.234, validation 61.2 %, 812 images/s, 12 min 03 s left``."""
    parts = [
        f"epoch {state['epoch']:.2f}" + (f"/{state['epochs']:g}" if state["epochs"] else ""),
        f"loss {state['loss']:.3f}",
    ]
    if last := state["last"]:
        which = "validation" if "validation_loss" in last else "test"
        parts.append(f"{which} {100 * last[f'{which}_accuracy']:.1f} %")
    parts.append(f"{state['images_per_s']:.0f} images/s")
    if state["left_s"] is not None:
        parts.append(f"{format_duration(state['left_s'])} left")
    return ", ".join(parts)


def epoch_text(row: Mapping[str, Any]) -> str:
    """``epoch 3: training loss 1.234, 55.1 %; validation loss 1.101, 61.2 %; 812 images/s``."""
    which = "validation" if "validation_loss" in row else "test"
    return (
        f"epoch {row['epoch']:g}: training loss {row['train_loss']:.3f}, {100 * row['train_accuracy']:.1f} %; "
        f"{which} loss {row[f'{which}_loss']:.3f}, {100 * row[f'{which}_accuracy']:.1f} %; {row['images_per_s']:.0f} "
        "images/s"
    )


def make_training_progress() -> TrainingProgress:
    """The live one in a terminal, the plain one elsewhere."""
    return LiveTrainingProgress() if sys.stderr.isatty() else PlainTrainingProgress()
