"""Which turns count, and waiting for a quiet moment: other programs, the reference and the cell itself decide."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from vitbench.core.stats.relative import QUIET, QUIET_CELL
from vitbench.devices.host.load import Use, UseWatch, cores_used, shared_cores

#: Cores that other programs may use beyond those that the cell's threads leave free.
TOLERATED_CORES = 0.25
#: A machine that has been disturbed for so many seconds is waited for.
_DISTURBED_S = 0.5
#: How long the machine is looked at while it is waited for, again and again (s).
_LOOK_S = 0.25


@dataclass(frozen=True)
class Verdict:
    """What a turn was like. ``other_load``: the cores that other programs used. ``disturbed``: these were more than the
    cell's threads leave free. ``slow``: the reference or the cell took longer than in the fastest turns before.
    """

    other_load: float
    disturbed: bool
    slow: bool

    @property
    def counts(self) -> bool:
        """Whether its samples count; otherwise it is taken again."""
        return not (self.disturbed or self.slow)


class Judge:
    """Judges the turns of a run's cells that run with the same number of threads on the same device.

    ``cores``: the logical ones that they run on; by default those that this process may use. ``on_host``: whether the
    cells compute on these.
    """

    def __init__(self, threads: int, cores: Sequence[int] | None = None, *, on_host: bool = True) -> None:
        self.cores = shared_cores() if cores is None else frozenset(cores)
        self.on_host = on_host
        self._free = max(len(self.cores) - threads, 0)
        self._fastest_reference = float("inf")
        self._fastest: dict[Hashable, float] = {}

    def judge(self, cell: Hashable, call_s: float, reference_s: float | None, uses: Sequence[Use]) -> Verdict:
        """A turn of ``cell`` with a median call of ``call_s``; ``uses`` are those of the turn and of the reference's
        turns around it, where a step took ``reference_s`` (None without a reference).
        """
        other_load = cores_used(uses)
        self._fastest[cell] = min(self._fastest.get(cell, call_s), call_s)
        slow = call_s > QUIET_CELL * self._fastest[cell]
        if reference_s is not None:
            self._fastest_reference = min(self._fastest_reference, reference_s)
            slow = slow or reference_s > QUIET * self._fastest_reference
        return Verdict(round(other_load, 3), self.disturbs(other_load), slow)

    def disturbs(self, other_load: float) -> bool:
        """Whether so many cores, used by other programs, are more than the cells leave free."""
        return self.on_host and other_load > self._free + TOLERATED_CORES


class Patience:
    """Waits while other programs disturb, in all at most ``seconds`` a run; ``waiting`` shows what is waited for as
    long as that takes, ``warn`` says once that it has been in vain. ``is_over`` as long as the machine stays disturbed
    after that: turns that are taken again would only make the run longer.
    """

    def __init__(
        self,
        seconds: float,
        waiting: Callable[[str], AbstractContextManager[None]] = lambda text: contextlib.nullcontext(),
        warn: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.left_s = seconds
        self._seconds = seconds
        self._waiting = waiting
        self._warn = warn
        self.is_over = False
        self._has_warned = False
        self._disturbed: list[Use] = []  # the last turns, if all of them were

    def note(self, use: Use | None, judge: Judge) -> None:
        """What other programs used in a turn of anybody; None where it is not known."""
        if use is None:
            return
        if judge.disturbs(cores_used([use])):
            self._disturbed.append(use)
        else:
            self._disturbed.clear()
            self.is_over = False

    def wait_if_disturbed(self, judge: Judge) -> None:
        """Return at once, unless the last turns were disturbed: then when the machine is quiet, or patience is over."""
        if math.fsum(use.seconds for use in self._disturbed) < _DISTURBED_S:
            return
        used = cores_used(self._disturbed)
        self._disturbed.clear()
        if self.left_s > 0:
            with self._waiting(f"waiting: {_use_text(used, judge)}"):
                while self.left_s > 0 and judge.disturbs(used):
                    used = self._look(judge)
        self.is_over = judge.disturbs(used)
        if self.is_over and not self._has_warned:
            self._has_warned = True
            waited = f"after {self._seconds:g} s of waiting " if self._seconds else ""
            self._warn(f"{_use_text(used, judge)}: {waited}timing goes on beside them. Stop them for better values")

    def _look(self, judge: Judge) -> float:
        watch = UseWatch(judge.cores)
        time.sleep(_LOOK_S)
        use = watch.stop()
        self.left_s -= use.seconds
        return cores_used([use])


def _use_text(cores: float, judge: Judge) -> str:
    return f"other programs use {cores:.1f} of {len(judge.cores)} core{'s' if len(judge.cores) > 1 else ''}"
