"""A pytest fixture that guards a model: exact values that must not change, and its time for pytest-benchmark.

::

    def test_my_model(vitbench):
        vitbench(MyModel(), image_size=224, batch_size=1)

``pytest --vitbench-update`` records the exact values in ``vitbench-expected.json`` beside the test. From then on a
value that differs fails the test. pytest-benchmark takes the time: ``--benchmark-autosave``,
``--benchmark-compare-fail=mean:5%`` and its other options work as ever. Loads neither torch nor numpy before a test
uses the fixture. ``regression.model_guard`` does the work.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import pytest

from vitbench.regression.expected_values import EXACT, EXPECTED, ExpectedValues, differences

if TYPE_CHECKING:
    import torch

_VALUES: pytest.StashKey[ExpectedValues] = pytest.StashKey()


class NoTimesWarning(UserWarning):
    """The exact values of a model were checked, but it was not timed."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--vitbench-update``, and ``vitbench_expected`` to the configuration."""
    group = parser.getgroup("vitbench")
    group.addoption(
        "--vitbench-update",
        action="store_true",
        default=False,
        help=f"Record the exact values of the models that run, in {EXPECTED} beside each test, instead of comparing.",
    )
    parser.addini("vitbench_expected", f"The file's name beside each test module. [default: {EXPECTED}]", default="")


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker and the fixture, on top of pytest-benchmark's if that is installed."""
    config.addinivalue_line(
        "markers", "vitbench(image_size=..., batch_size=..., ...): arguments of the fixture `vitbench`, for each call"
    )
    config.stash[_VALUES] = ExpectedValues(update=bool(config.getoption("vitbench_update")))
    with_times = config.getoption("benchmark_skip", None) is not None
    config.pluginmanager.register(_WithBenchmark() if with_times else _Alone(), "vitbench-fixture")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the recorded values. If that fails, so does the session."""
    values = session.config.stash[_VALUES]
    values.write()
    if values.report["problems"] and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    from_worker = getattr(session.config, "workeroutput", None)  # how workers of pytest-xdist report
    if from_worker is not None:
        from_worker["vitbench"] = values.report


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Add the report of a worker of pytest-xdist to this session's; its problems fail the session."""
    node.config.stash[_VALUES].add(getattr(node, "workeroutput", {}).get("vitbench", {}))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print what was recorded, and what is not checked yet."""
    for line in config.stash[_VALUES].summary():
        terminalreporter.write_line(f"vitbench: {line}")


class _WithBenchmark:
    # pytest-benchmark looks for `benchmark` among the names of a test's fixtures
    @pytest.fixture
    def vitbench(self, request: pytest.FixtureRequest, benchmark: Any) -> Guard:
        """Guard a model: see ``Guard``."""
        return Guard(request, benchmark)


class _Alone:
    @pytest.fixture
    def vitbench(self, request: pytest.FixtureRequest) -> Guard:
        """Guard a model without times, as pytest-benchmark is not installed: see ``Guard``."""
        return Guard(request, None)


class Guard:
    """The fixture ``vitbench``: call it once with a model.

    ``vitbench(model, image_size=224, batch_size=1)`` counts the model's exact values, compares them with the recorded
    ones, times its forward pass, and returns the values as a dict. ``vitbench.assert_exact(params=5_717_416)`` compares
    them with values in the test itself.
    """

    def __init__(self, request: pytest.FixtureRequest, benchmark: Any) -> None:
        from vitbench.regression.model_guard import ARGUMENTS

        self._benchmark = benchmark
        self._expected = request.config.stash[_VALUES]
        self._file = request.path.with_name(request.config.getini("vitbench_expected") or EXPECTED)
        # the test's name in the file has no folders, so that the tests and their file can move together
        path, _, name = str(request.node.nodeid).partition("::")
        self._key = f"{path.rpartition('/')[2]}::{name}"
        #: The exact values of the model, after the call.
        self.figures: dict[str, Any] = {}
        marker = request.node.get_closest_marker("vitbench")
        if marker is not None and marker.args:
            pytest.fail("@pytest.mark.vitbench takes names: image_size=224, batch_size=1", pytrace=False)
        self._defaults = dict(marker.kwargs) if marker else {}
        unknown = sorted(set(self._defaults) - set(ARGUMENTS))
        if unknown:
            pytest.fail(f"@pytest.mark.vitbench({unknown[0]}=...): known are {', '.join(ARGUMENTS)}", pytrace=False)

    def __call__(self, model: torch.nn.Module | str, **arguments: Any) -> dict[str, Any]:
        """Count, compare and time ``model``: a module, or a model's name (``timm:vit_tiny_patch16_224``).

        ``image_size`` (px, 224 or (231, 240); needed for a module), ``batch_size`` (1), ``device`` ("cpu"), ``dtype``
        ("fp32"; bf16, fp16, amp), ``attention`` ("fused"), ``threads`` (1: times of more vary more), ``warmup_s`` (0.2:
        the least seconds of warm-up), ``exact`` (names in EXACT to record and compare; all).

        The forward pass runs on random images (B, 3, H, W) in eval mode, without gradients, on a copy of the module. It
        waits for the device on both sides of each call.
        """
        if self.figures:
            pytest.fail("vitbench(...) takes one model a test: make a second test, or parametrize it", pytrace=False)
        from vitbench.core.errors import VitbenchError

        try:
            return self._guard(model, {**self._defaults, **arguments})
        except VitbenchError as error:
            pytest.fail(str(error), pytrace=False)

    def assert_exact(self, **expected: Any) -> None:
        """Fail unless the model has these values: ``vitbench.assert_exact(params=5_717_416, flops=...)``."""
        __tracebackhide__ = True
        if not self.figures:
            pytest.fail("vitbench.assert_exact(...) comes after vitbench(model, ...)", pytrace=False)
        unknown = sorted(set(expected) - set(EXACT))
        if unknown:
            pytest.fail(f"assert_exact({unknown[0]}=...): known are {', '.join(EXACT)}", pytrace=False)
        self._expected.mark_checked(self._key)
        lines = differences(expected, self.figures)
        if lines:
            pytest.fail("\n".join(["exact values differ from those in the test:", *lines]), pytrace=False)

    def _guard(self, model: torch.nn.Module | str, arguments: dict[str, Any]) -> dict[str, Any]:
        from vitbench.regression import model_guard

        names = model_guard.check_arguments(arguments)
        with model_guard.open_subject(model, arguments) as subject:
            self.figures = model_guard.count_exactly(subject)
            conditions = model_guard.describe_conditions(subject.cell)
            if self._benchmark is not None:
                self._benchmark.extra_info.update({**self.figures, **conditions})
            self._time(model_guard.timed_call(subject), float(arguments.get("warmup_s", model_guard.WARMUP_S)))
        # compared last, as whoever judges a difference also wants the time
        lines = self._expected.check(self._file, self._key, self.figures, names, conditions["torch"])
        if lines:
            where = f"exact values differ from those in {self._file.name} ({self._key}):"
            way_out = "If the change is meant, record it with --vitbench-update, and have it reviewed."
            pytest.fail("\n".join([where, *lines, way_out]), pytrace=False)
        return dict(self.figures)

    def _time(self, call: Any, warmup_s: float) -> None:
        from vitbench.metrics.support.subject import without_garbage_collection
        from vitbench.regression.model_guard import warm_up

        if self._benchmark is None:
            call()
            text = "pytest-benchmark is not installed: exact values were checked, times were not taken"
            warnings.warn(NoTimesWarning(text), stacklevel=4)
            return
        if self._benchmark.enabled:
            self._benchmark.extra_info["warmup_calls"] = warm_up(call, warmup_s)
        with without_garbage_collection():
            self._benchmark(call)
