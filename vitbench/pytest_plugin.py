"""A fixture for pytest that guards a model: exact figures that must not change, and its time for pytest-benchmark.

::

    def test_my_model(vitbench):
        vitbench(MyModel(), image_size=224, batch_size=1)

The first ``pytest --vitbench-update`` notes the exact figures in ``vitbench-expected.json`` beside the test; from then
on a figure that differs fails the test. The time is pytest-benchmark's: ``--benchmark-autosave``,
``--benchmark-compare-fail=mean:5%`` and the like work as ever. Loads neither torch nor numpy before a test asks for it.
"""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import torch

    from vitbench.devices import Device
    from vitbench.metrics import Subject

#: What is noted beside the test module.
EXPECTED = "vitbench-expected.json"
SCHEMA = 1

#: The figures that have no noise, and what is asked of ``exact=``.
EXACT = ("params", "trainable_params", "buffers", "flops", "output", "state_dict", "tensor_peak")
#: Those that count what torch does: compared under the same minor version only.
BY_TORCH = ("tensor_peak",)

#: The arguments of a call, which the marker may give instead.
ARGUMENTS = ("image_size", "batch_size", "device", "dtype", "attention", "threads", "warmup_s", "exact")

#: Warm-up goes on until its samples say that the steady state has begun, for at most so many times as long as asked.
_LONGEST_WARMUP = 10


class NoTimesWarning(UserWarning):
    """A model whose exact figures were checked, but which was not timed."""


# what pytest calls


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--vitbench-update``, and ``vitbench_expected`` in the configuration."""
    group = parser.getgroup("vitbench")
    group.addoption(
        "--vitbench-update",
        action="store_true",
        default=False,
        help=f"Note the exact figures of the models that run, in {EXPECTED} beside each test, instead of comparing.",
    )
    parser.addini("vitbench_expected", f"The file's name beside each test module. [default: {EXPECTED}]", default="")


def pytest_configure(config: pytest.Config) -> None:
    """Announce the marker, and offer the fixture: on top of pytest-benchmark's where that is there."""
    config.addinivalue_line(
        "markers",
        f"vitbench({', '.join(f'{name}=...' for name in ARGUMENTS)}): what the fixture `vitbench` takes if a call does "
        "not say otherwise",
    )
    notes = Notes(update=bool(config.getoption("vitbench_update")))
    config.stash[_NOTES] = notes
    with_times = config.getoption("benchmark_skip", None) is not None
    config.pluginmanager.register(_WithBenchmark() if with_times else _Alone(), "vitbench-fixture")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write what was noted; what could not be written fails the session."""
    notes = session.config.stash[_NOTES]
    notes.write()
    if notes.problems and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    from_worker = getattr(session.config, "workeroutput", None)  # where pytest-xdist takes what its workers have to say
    if from_worker is not None:
        from_worker["vitbench"] = notes.to_dict()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """A worker of pytest-xdist has ended: what it has to say is told here, and its troubles fail the session."""
    node.config.stash[_NOTES].take(getattr(node, "workeroutput", {}).get("vitbench", {}))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say in a line each what was noted, and what is not guarded yet."""
    for line in config.stash[_NOTES].summary():
        terminalreporter.write_line(f"vitbench: {line}")


class _WithBenchmark:
    # pytest-benchmark looks for `benchmark` among the names of a test's fixtures
    @pytest.fixture
    def vitbench(self, request: pytest.FixtureRequest, benchmark: Any) -> Guard:
        """Guards a model: see ``Guard``."""
        return Guard(request, benchmark)


class _Alone:
    @pytest.fixture
    def vitbench(self, request: pytest.FixtureRequest) -> Guard:
        """Guards a model: see ``Guard``; without times, as pytest-benchmark is not there."""
        return Guard(request, None)


# what a test calls


class Guard:
    """The fixture ``vitbench``: call it once with a model.

    ``vitbench(model, image_size=224, batch_size=1)`` counts the model's exact figures, compares them with those that
    were noted, times its forward pass, and returns the figures as a dict. ``vitbench.assert_exact(params=5_717_416)``
    compares with figures that stand in the test itself.
    """

    def __init__(self, request: pytest.FixtureRequest, benchmark: Any) -> None:
        self._node = request.node
        self._benchmark = benchmark
        self._notes: Notes = request.config.stash[_NOTES]
        self._file = request.path.with_name(request.config.getini("vitbench_expected") or EXPECTED)
        #: The exact figures of the model, once it was called.
        self.figures: dict[str, Any] = {}
        marker = request.node.get_closest_marker("vitbench")
        if marker is not None and marker.args:
            pytest.fail("@pytest.mark.vitbench takes names: image_size=224, batch_size=1", pytrace=False)
        self._defaults = dict(marker.kwargs) if marker else {}
        unknown = sorted(set(self._defaults) - set(ARGUMENTS))
        if unknown:
            pytest.fail(f"@pytest.mark.vitbench({unknown[0]}=...): known are {', '.join(ARGUMENTS)}", pytrace=False)

    def __call__(self, model: torch.nn.Module | str, **arguments: Any) -> dict[str, Any]:
        """Count, compare and time ``model``: a module, or the name of one (``timm:vit_tiny_patch16_224``).

        ``image_size`` (px, 224 or (231, 240); needed for a module), ``batch_size`` (1), ``device`` ("cpu"), ``dtype``
        ("fp32"; bf16, fp16, amp), ``attention`` ("fused"), ``threads`` (1: more make times scatter), ``warmup_s`` (0.2:
        at least so many seconds of warm-up), ``exact`` (the names in EXACT that are noted and compared; all).

        The forward pass runs on random pictures (B, 3, H, W) in eval mode, without gradients, on a copy of the module;
        the device is waited for on both sides of each call.
        """
        if self.figures:
            pytest.fail("vitbench(...) takes one model a test: make a second test, or parametrize it", pytrace=False)
        from vitbench.core.errors import VitbenchError

        try:
            return self._guard(model, {**self._defaults, **arguments})
        except VitbenchError as error:
            pytest.fail(str(error), pytrace=False)

    def assert_exact(self, **expected: Any) -> None:
        """Fail unless the figures of the model are these: ``vitbench.assert_exact(params=5_717_416, flops=...)``."""
        __tracebackhide__ = True
        if not self.figures:
            pytest.fail("vitbench.assert_exact(...) comes after vitbench(model, ...)", pytrace=False)
        unknown = sorted(set(expected) - set(EXACT))
        if unknown:
            pytest.fail(f"assert_exact({unknown[0]}=...): known are {', '.join(EXACT)}", pytrace=False)
        self._notes.guarded(self._key)
        lines = differences(expected, self.figures)
        if lines:
            pytest.fail("\n".join(["exact figures differ from those in the test:", *lines]), pytrace=False)

    @property
    def _key(self) -> str:
        """The test's name in the file: without folders, so that the tests can be moved with it."""
        path, _, name = str(self._node.nodeid).partition("::")
        return f"{path.rpartition('/')[2]}::{name}"

    def _guard(self, model: torch.nn.Module | str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        import torch

        from vitbench.analysis.exact_counts import exact_values
        from vitbench.core.errors import UsageError

        unknown = sorted(set(arguments) - set(ARGUMENTS))
        if unknown:
            raise UsageError(f"vitbench(..., {unknown[0]}=...): known are {', '.join(ARGUMENTS)}")
        names = arguments.get("exact")
        names = EXACT if names is None else tuple(names)
        wrong = sorted(set(names) - set(EXACT))
        if wrong:
            raise UsageError(f"vitbench(..., exact={wrong[0]!r}): known are {', '.join(EXACT)}")
        subject, threads = _make_subject(model, arguments)
        with _threads(threads), torch.random.fork_rng(devices=[]), contextlib.closing(subject):
            torch.manual_seed(subject.cell.seed)
            values = exact_values(subject)
            self.figures = {name: values[name] for name in EXACT if name in values}
            if self._benchmark is not None:
                self._benchmark.extra_info.update({**self.figures, **_conditions(subject)})
            self._time(subject, float(arguments.get("warmup_s", 0.2)))
        # last: whoever has to judge a difference wants the time as well
        self._compare({name: self.figures[name] for name in names if name in self.figures}, names)
        return dict(self.figures)

    def _compare(self, figures: Mapping[str, Any], names: Sequence[str]) -> None:
        """Against what was noted of ``names``; a figure that cannot be told any more is a difference, too."""
        import torch

        torch_version = _minor(torch.__version__)
        if self._notes.update:
            self._notes.add(self._file, self._key, {**figures, "torch": torch_version})
            return
        expected = self._notes.expected(self._file).get(self._key)
        if expected is None:
            self._notes.unguarded(self._key)
            return
        wanted = {name: value for name, value in expected.items() if name in EXACT and name in names}
        if expected.get("torch") != torch_version:
            left_out = [name for name in BY_TORCH if wanted.pop(name, None) is not None]
            if left_out:
                self._notes.another_torch(str(expected.get("torch")), torch_version, left_out)
        lines = differences(wanted, figures)
        if lines:
            where = f"exact figures differ from those in {self._file.name} ({self._key}):"
            way_out = "If the change is meant, note it with --vitbench-update, and let it be reviewed."
            pytest.fail("\n".join([where, *lines, way_out]), pytrace=False)

    def _time(self, subject: Subject, warmup_s: float) -> None:
        from vitbench.metrics.support.subject import without_garbage_collection

        call = _timed_call(subject)
        if self._benchmark is None:
            call()
            warnings.warn(
                NoTimesWarning("pytest-benchmark is not there: exact figures were checked, times were not taken"),
                stacklevel=2,
            )
            return
        if self._benchmark.enabled:
            self._benchmark.extra_info["warmup_calls"] = warm_up(call, warmup_s)
        with without_garbage_collection():
            self._benchmark(call)


# measuring


def _make_subject(model: torch.nn.Module | str, arguments: Mapping[str, Any]) -> tuple[Subject, int]:
    import copy

    from vitbench.core.errors import DeviceError, UsageError
    from vitbench.core.records import ATTENTIONS, DTYPES, Cell, parse_image_size
    from vitbench.devices import canonical_device_name, find_devices, open_device
    from vitbench.metrics import Subject
    from vitbench.models import build_model, use_attention

    size = arguments.get("image_size")
    if isinstance(model, str):
        from vitbench.models.cards import is_external, model_registry

        name = model
        if not is_external(name):
            card = model_registry().get(name)
            size = card.image_size if size is None else size
    else:
        name = f"{type(model).__module__}.{type(model).__qualname__}"
    if size is None:
        raise UsageError("vitbench(model) needs image_size=, in pixels: 224, or (231, 240) for height and width")
    try:
        pair = parse_image_size("x".join(map(str, size)) if isinstance(size, tuple | list) else size)
    except ValueError as error:
        raise UsageError(str(error)) from error
    batch_size, threads = arguments.get("batch_size", 1), arguments.get("threads", 1)
    for key, value in (("batch_size", batch_size), ("threads", threads)):
        if not isinstance(value, int) or value < 1:
            raise UsageError(f"vitbench(..., {key}={value!r}): a whole number from 1 on")
    dtype, attention = arguments.get("dtype", "fp32"), arguments.get("attention", "fused")
    for key, value, known in (("dtype", dtype, DTYPES), ("attention", attention, ATTENTIONS)):
        if value not in known:
            raise UsageError(f"vitbench(..., {key}={value!r}): known are {', '.join(known)}")
    device = canonical_device_name(str(arguments.get("device", "cpu")))
    if device not in find_devices():
        raise DeviceError(f"Device {device!r} is not there. Found: {', '.join(find_devices())}")
    cell = Cell(
        model=name,
        image_size=pair,
        num_classes=1,
        batch_size=batch_size,
        device=device,
        threads=threads,
        dtype=dtype,
        attention=attention,
        weights="given",
    )

    def build() -> torch.nn.Module:
        if isinstance(model, str):
            return build_model(model, image_size=pair)
        return copy.deepcopy(model)  # casts and moves must not touch the caller's

    subject = Subject(
        cell=cell,
        device=open_device(device),
        build=build,
        attention=lambda copied: use_attention(copied, attention),
    )
    return subject, threads


def _timed_call(subject: Subject) -> Callable[[], Any]:
    """One forward pass that has ended when the call returns."""
    subject.prepare()
    device: Device = subject.device

    def forward() -> Any:
        output = subject.forward()
        device.synchronize()  # a GPU returns before its kernels have run
        return output

    device.synchronize()
    return forward


def warm_up(call: Callable[[], Any], seconds: float) -> int:
    """Call until the steady state has begun, for at least ``seconds``; returns how many calls that took.

    A fixed number cannot be trusted: the calls' own times say when they have settled (``statistics.warmup_length``).
    """
    import time

    from vitbench.core.stats.statistics import MIN_SAMPLES_FOR_WARMUP, warmup_length

    samples: list[float] = []
    begin = time.perf_counter()
    while True:
        start = time.perf_counter()
        call()
        end = time.perf_counter()
        samples.append(end - start)
        if end - begin >= max(seconds, 0) * _LONGEST_WARMUP:
            return len(samples)
        if end - begin < seconds or len(samples) < MIN_SAMPLES_FOR_WARMUP:
            continue
        # settled: what would be cut lies in the first half of it, and not at its end
        if warmup_length(samples) <= len(samples) // 3:
            return len(samples)


def _conditions(subject: Subject) -> dict[str, Any]:
    """Under what the figures hold, for ``extra_info``."""
    import torch

    from vitbench.core.records import format_image_size

    cell = subject.cell
    return {
        "model": cell.model,
        "image_size": format_image_size(cell.image_size),
        "batch_size": cell.batch_size,
        "device": cell.device,
        "dtype": cell.dtype,
        "attention": cell.attention,
        "threads": cell.threads,
        "torch": torch.__version__,
    }


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# comparing


def differences(expected: Mapping[str, Any], figures: Mapping[str, Any]) -> list[str]:
    """A line for each figure that is not as expected: ``params: 100 expected, 104 found (+4)``."""
    lines = []
    for name, wanted in expected.items():
        found = figures.get(name)
        if found == wanted:
            continue
        if _is_number(wanted) and _is_number(found):
            lines.append(f"  {name}: {wanted:,} expected, {found:,} found ({found - wanted:+,})")
        else:
            lines.append(f"  {name}: {wanted} expected, {'nothing' if found is None else found} found")
    return lines


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _minor(version: str) -> str:
    """``2.15.0+cpu`` -> ``2.15``."""
    return ".".join(version.split("+")[0].split(".")[:2])


class Notes:
    """The files of expected figures: read once, written at the end of the session."""

    def __init__(self, *, update: bool) -> None:
        self.update = update
        self._read: dict[Path, dict[str, dict[str, Any]]] = {}
        self._new: dict[Path, dict[str, dict[str, Any]]] = {}
        self._unguarded: dict[str, None] = {}
        self._versions: dict[str, None] = {}
        self._written: dict[Path, int] = {}
        #: Why something could not be written, a line each.
        self.problems: list[str] = []
        #: What was damaged and is written anew, a line each.
        self.renewed: list[str] = []

    def expected(self, path: Path) -> dict[str, dict[str, Any]]:
        """The figures of each test in ``path``; none if it is not there. Raises UsageError for one that is damaged."""
        if path not in self._read:
            self._read[path] = _read_expected(path)
        return self._read[path]

    def add(self, path: Path, key: str, figures: dict[str, Any]) -> None:
        """Write these at the end."""
        self._new.setdefault(path, {})[key] = figures

    def guarded(self, key: str) -> None:
        """The test has figures of its own."""
        self._unguarded.pop(key, None)

    def unguarded(self, key: str) -> None:
        """Nothing is expected of the test yet."""
        self._unguarded[key] = None

    def another_torch(self, noted: str, here: str, names: Sequence[str]) -> None:
        """What was noted under one version is not compared under another."""
        self._versions[f"{', '.join(names)} not compared: noted under torch {noted}, this is {here}"] = None

    def write(self) -> None:
        """Write the files that have something new; tests that did not run keep what they had. Several processes
        (pytest-xdist) take turns. A damaged file is written anew. Never raises for what cannot be written: that is in
        ``problems``.
        """
        if not self._new:
            return
        from vitbench.core.errors import VitbenchError
        from vitbench.core.text import one_line

        for path, tests in self._new.items():
            try:
                self._write(path, tests)
            except (VitbenchError, OSError) as error:
                self.problems.append(one_line(f"{_tests(len(tests))} could not be noted: {error}", 500))
            else:
                self._written[path] = len(tests)

    def _write(self, path: Path, tests: Mapping[str, dict[str, Any]]) -> None:
        import hashlib
        import tempfile

        from filelock import FileLock

        from vitbench.core.errors import UsageError
        from vitbench.core.run_folder import write_atomically

        # not beside the tests, where it would be one more file to ignore
        name = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
        with FileLock(Path(tempfile.gettempdir()) / f"vitbench-{name}.lock"):
            damaged = ""
            try:
                before = _read_expected(path)
            except UsageError:  # to write it anew is the way out that the message offers
                before, damaged = {}, f"{path.name} could not be read: written anew, without the tests that did not run"
            content = {"schema": SCHEMA, "tests": dict(sorted({**before, **tests}.items()))}
            write_atomically(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())
        if damaged:
            self.renewed.append(damaged)

    def to_dict(self) -> dict[str, Any]:
        """What a worker of pytest-xdist hands over: of plain texts, lists and numbers."""
        return {
            "problems": self.problems,
            "renewed": self.renewed,
            "unguarded": list(self._unguarded),
            "versions": list(self._versions),
            "written": {str(path): count for path, count in self._written.items()},
        }

    def take(self, told: Mapping[str, Any]) -> None:
        """Add what a worker handed over by ``to_dict``."""
        self.problems += told.get("problems", [])
        self.renewed += told.get("renewed", [])
        self._unguarded.update(dict.fromkeys(told.get("unguarded", [])))
        self._versions.update(dict.fromkeys(told.get("versions", [])))
        for text, count in told.get("written", {}).items():
            path = Path(text)
            self._written[path] = self._written.get(path, 0) + count

    def summary(self) -> list[str]:
        """What a person has to know."""
        lines = [*self.problems, *self.renewed]
        lines += [f"noted {_tests(count)} in {path.name}: review it" for path, count in self._written.items()]
        if self._unguarded:
            names = ", ".join(list(self._unguarded)[:3])
            more = f" and {len(self._unguarded) - 3} more" if len(self._unguarded) > 3 else ""
            lines.append(f"no exact figures are expected of {names}{more} yet: note them with --vitbench-update")
        return [*lines, *self._versions]


def _tests(count: int) -> str:
    return f"the exact figures of {count} test{'s' if count != 1 else ''}"


def _read_expected(path: Path) -> dict[str, dict[str, Any]]:
    from vitbench.core.errors import UsageError
    from vitbench.core.files import read_json
    from vitbench.core.validation import Count, check

    if not path.exists():
        return {}
    try:
        content = read_json(path, dict[str, Any])
        check(content.get("schema"), Count, "schema")
        check(content.get("tests"), dict[str, dict[str, Any]], "tests")
        if content["schema"] > SCHEMA:
            raise ValueError(f"schema {content['schema']} is newer than this vitbench reads ({SCHEMA})")
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{path} cannot be read ({error}). Mend it, or write it anew with --vitbench-update"
        ) from error
    tests: dict[str, dict[str, Any]] = content["tests"]
    return tests


_NOTES: pytest.StashKey[Notes] = pytest.StashKey()
