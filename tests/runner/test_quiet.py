"""Which turns are taken again, and how long a run waits for a quiet machine: on simulated turns."""

from __future__ import annotations

import contextlib
import io
import itertools
from collections.abc import Iterator, Sequence
from types import SimpleNamespace

import pytest

from vitbench.devices.host.load import Use, UseWatch, busiest_programs, cores_used, shared_cores
from vitbench.runner import progress, quiet
from vitbench.runner.live import LiveProgress
from vitbench.runner.progress import PlainProgress
from vitbench.runner.quiet import Judge, Patience, Verdict


def use(cores: float, seconds: float = 0.1) -> Use:
    return Use(seconds, cores * seconds)


def judged(judge: Judge, call_s: float = 1.0, reference_s: float | None = 1.0, cores: float = 0.0) -> Verdict:
    return judge.judge("cell", call_s, reference_s, [use(cores)])


@pytest.mark.parametrize(
    ("threads", "cores", "others", "disturbed"),
    [
        (2, 2, 0.2, False),
        (2, 2, 0.3, True),
        (1, 2, 0.9, False),
        (1, 2, 1.3, True),
        (4, 2, 0.2, False),  # more threads than cores: nothing that other programs stop would help
        (4, 2, 0.3, True),
        (4, 64, 30.0, False),  # a container's quota on a large host
        (1, 1, 0.3, True),
    ],
)
def test_a_turn_is_disturbed_where_others_use_more_than_its_threads_leave(
    threads: int, cores: int, others: float, disturbed: bool
) -> None:
    verdict = judged(Judge(threads, range(cores)), cores=others)
    assert (verdict.disturbed, verdict.counts, verdict.other_load) == (disturbed, not disturbed, others)


def test_programs_beside_a_gpu_disturb_nothing() -> None:
    assert judged(Judge(2, range(2), on_host=False), cores=2.0).counts


def test_the_load_is_that_of_the_turn_and_the_reference_around_it() -> None:
    """Together 0.5 s: a turn whose ticks happen to be counted late does not decide alone."""
    uses = [use(0.0, 0.1), use(0.5, 0.3), use(0.0, 0.1)]
    assert cores_used(uses) == pytest.approx(0.3)
    assert Judge(2, range(2)).judge("cell", 1.0, 1.0, uses).disturbed
    assert cores_used([use(-0.2)]) == cores_used([]) == 0.0  # ticks that were counted earlier


def test_a_turn_is_slow_against_the_fastest_of_its_cell_and_of_the_reference() -> None:
    judge = Judge(1, range(2))
    assert judged(judge, call_s=9.0, reference_s=2.0).counts  # nothing is known yet
    assert judged(judge, call_s=5.0, reference_s=1.0).counts
    assert judged(judge, call_s=6.4, reference_s=1.09).counts
    assert judged(judge, call_s=6.6).slow
    assert judged(judge, call_s=5.0, reference_s=1.2).slow
    assert judge.judge("another cell", 50.0, 1.0, [use(0.0)]).counts
    assert judged(judge, call_s=5.0, reference_s=None).counts


# waiting


class Machine:
    """Other programs use so many cores in each further quarter of a second; time passes in ``sleep``."""

    def __init__(self, cores: Sequence[float]) -> None:
        self.cores = itertools.chain(cores, itertools.repeat(0.0))
        self.slept = 0.0

    def sleep(self, seconds: float) -> None:
        self.slept += seconds

    def watch(self, cores: frozenset[int]) -> Machine:
        return self

    def stop(self) -> Use:
        return use(next(self.cores), 0.25)


class Log:
    def __init__(self) -> None:
        self.waits: list[str] = []
        self.warnings: list[str] = []

    @contextlib.contextmanager
    def waiting(self, text: str) -> Iterator[None]:
        self.waits.append(text)
        yield

    def patience(self, seconds: float) -> Patience:
        return Patience(seconds, self.waiting, self.warnings.append)


JUDGE = Judge(2, range(2))


def machine(monkeypatch: pytest.MonkeyPatch, cores: Sequence[float]) -> Machine:
    scripted = Machine(cores)
    monkeypatch.setattr(quiet, "time", scripted)
    monkeypatch.setattr(quiet, "UseWatch", scripted.watch)
    return scripted


def turns(patience: Patience, *cores: float) -> None:
    for one in cores:
        patience.note(use(one), JUDGE)
        patience.wait_if_disturbed(JUDGE)


def test_a_run_waits_while_the_machine_is_busy_and_says_for_what(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted, log = machine(monkeypatch, [0.9] * 3), Log()
    patience = log.patience(60.0)
    turns(patience, 0.9, 0.9, 0.9, 0.9, 0.9)
    assert log.waits == ["waiting: other programs use 0.9 of 2 cores"]
    assert scripted.slept == 1.0  # until it looked and found it quiet
    assert (patience.left_s, log.warnings) == (59.0, [])


def test_half_a_second_of_disturbed_turns_is_waited_for_and_less_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted, log = machine(monkeypatch, []), Log()
    patience = log.patience(60.0)
    turns(patience, *[0.9, 0.9, 0.9, 0.9, 0.0] * 5)
    patience.note(None, JUDGE)
    assert (log.waits, scripted.slept) == ([], 0.0)
    patience.note(use(0.9, seconds=3.0), JUDGE)  # one long turn
    patience.wait_if_disturbed(JUDGE)
    assert len(log.waits) == 1


def test_patience_is_for_the_whole_run_and_its_end_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted, log = machine(monkeypatch, [0.9] * 1000), Log()
    patience = log.patience(2.0)
    turns(patience, *[0.9] * 50)
    assert scripted.slept == 2.0
    assert patience.is_over
    turns(patience, 0.0)
    assert not patience.is_over
    assert log.warnings == [
        "other programs use 0.9 of 2 cores: after 2 s of waiting timing goes on beside them. Stop them for better values"
    ]


def test_without_patience_nothing_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted, log = machine(monkeypatch, [0.9] * 1000), Log()
    turns(log.patience(0.0), *[0.9] * 50)
    assert (scripted.slept, log.waits) == (0.0, [])
    assert log.warnings == [
        "other programs use 0.9 of 2 cores: timing goes on beside them. Stop them for better values"
    ]


def test_a_log_says_that_it_waits_and_not_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    stream = io.StringIO()
    plain = PlainProgress(stream)
    for pause, text in ((0.0, "waiting: a"), (9.0, "waiting: b"), (11.0, "waiting: c")):
        now[0] += pause
        with plain.waiting(text):
            now[0] += 5.0
    assert stream.getvalue() == "waiting: a\nwaiting: c\n"


def test_the_live_line_shows_what_is_waited_for_and_then_what_it_showed_before() -> None:
    live = LiveProgress()
    live.doing("time 1/5")
    with live.waiting("waiting: other programs use 0.9 of 2 cores"):
        assert live._shown == ": waiting: other programs use 0.9 of 2 cores"
    assert live._shown == ": time 1/5"


# the real machine


def test_the_use_of_a_moment_is_possible() -> None:
    watch = UseWatch()
    used = watch.stop()
    assert used.seconds > 0
    assert len(shared_cores()) >= 1
    assert UseWatch([0]).stop(own_s=100.0).core_seconds < 0  # what is this run's is not other programs'


def test_the_busiest_programs_have_names_and_use_some_cores() -> None:
    for name, cores in busiest_programs(0.05):
        assert name
        assert cores > 0
