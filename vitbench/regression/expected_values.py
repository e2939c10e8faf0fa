"""The exact values that tests expect of their models, in a ``vitbench-expected.json`` beside each test module.

Loads neither torch nor numpy: pytest loads it in every session.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vitbench.core.errors import UsageError, VitbenchError
from vitbench.core.text import one_line

EXPECTED = "vitbench-expected.json"
SCHEMA = 1

#: Values without noise, by the names that ``exact=`` takes.
EXACT = ("params", "trainable_params", "buffers", "flops", "output", "state_dict", "tensor_peak")
#: The value that depends on torch's minor version: compared only under the same one.
BY_TORCH = "tensor_peak"

#: A summary names this many tests and counts the rest.
_MOST_NAMED = 3

_Tests = dict[str, dict[str, Any]]


class ExpectedValues:
    """The files of a session: each is read once, and written at the end if the session updates them."""

    def __init__(self, *, update: bool) -> None:
        self.update = update
        #: What a person has to know at the end. For each kind of line its texts, and how often each occurred:
        #: ``problems`` (not written), ``notes``, ``written`` (paths), ``missing`` (tests without expected values).
        self.report: dict[str, dict[str, int]] = {"problems": {}, "notes": {}, "written": {}, "missing": {}}
        self._read: dict[Path, _Tests] = {}
        self._new: dict[Path, _Tests] = {}

    def check(
        self, path: Path, key: str, values: Mapping[str, Any], names: Sequence[str], torch_version: str
    ) -> list[str]:
        """Compare ``values`` of the test ``key`` with the expected ones of ``names``: a line for each difference. In an
        update the values are stored instead. ``torch_version``: of ``values``.

        A value that is unavailable now differs. Raises UsageError for a damaged file.
        """
        minor = ".".join(torch_version.partition("+")[0].split(".")[:2])
        if self.update:
            kept = {name: values[name] for name in names if name in values}
            self._new.setdefault(path, {})[key] = {**kept, "torch": minor}
            return []
        if path not in self._read:
            self._read[path] = read_expected(path)
        expected = self._read[path].get(key)
        if expected is None:
            self.report["missing"][key] = 1
            return []
        wanted = {name: value for name, value in expected.items() if name in EXACT and name in names}
        if expected.get("torch") != minor and wanted.pop(BY_TORCH, None) is not None:
            recorded = f"recorded under torch {expected.get('torch')}, this is {minor}"
            self.report["notes"][f"{BY_TORCH} not compared: {recorded}"] = 1
        return differences(wanted, values)

    def mark_checked(self, key: str) -> None:
        """The test ``key`` has expected values of its own."""
        self.report["missing"].pop(key, None)

    def write(self) -> None:
        """Write the files with new values. Tests that did not run keep theirs; a damaged file is replaced. Processes of
        pytest-xdist take turns. A failure to write is added to the report.
        """
        for path, tests in self._new.items():
            try:
                self._write(path, tests)
            except (VitbenchError, OSError) as error:
                self.report["problems"][one_line(f"{_values_of(len(tests))} could not be recorded: {error}", 500)] = 1
            else:
                self.report["written"][str(path)] = len(tests)

    def _write(self, path: Path, tests: Mapping[str, dict[str, Any]]) -> None:
        import hashlib
        import tempfile

        from filelock import FileLock

        from vitbench.core.run_folder import write_atomically

        # not beside the tests, where it would be one more file to ignore
        name = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
        with FileLock(Path(tempfile.gettempdir()) / f"vitbench-{name}.lock"):
            damaged = False
            try:
                before = read_expected(path)
            except UsageError:  # whose message offers an update as the way out
                before, damaged = {}, True
            content = {"schema": SCHEMA, "tests": dict(sorted({**before, **tests}.items()))}
            write_atomically(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())
        if damaged:
            self.report["notes"][f"{path.name} was damaged and is replaced: it lacks the tests that did not run"] = 1

    def add(self, report: Mapping[str, Mapping[str, int]]) -> None:
        """Add the report of a worker of pytest-xdist."""
        for kind, lines in report.items():
            for text, count in lines.items():
                self.report[kind][text] = self.report[kind].get(text, 0) + count

    def summary(self) -> list[str]:
        """The lines for the end of a session."""
        lines = [*self.report["problems"], *self.report["notes"]]
        for path, count in self.report["written"].items():
            lines.append(f"recorded {_values_of(count)} in {Path(path).name}: review it")
        names = list(self.report["missing"])
        if names:
            more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
            listed = f"{', '.join(names[:_MOST_NAMED])}{more}"
            lines.append(f"no exact values are expected of {listed} yet: record them with --vitbench-update")
        return lines


def differences(expected: Mapping[str, Any], values: Mapping[str, Any]) -> list[str]:
    """A line for each value that is not as expected: ``params: 100 expected, 104 found (+4)``."""
    lines = []
    for name, wanted in expected.items():
        found = values.get(name)
        if found == wanted:
            continue
        if isinstance(wanted, int | float) and isinstance(found, int | float):
            lines.append(f"  {name}: {wanted:,} expected, {found:,} found ({found - wanted:+,})")
        else:
            lines.append(f"  {name}: {wanted} expected, {'nothing' if found is None else found} found")
    return lines


def read_expected(path: Path) -> _Tests:
    """The expected values in ``path`` by test; none without a file. Raises UsageError for a damaged file."""
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
        raise UsageError(f"{path} cannot be read ({error}). Mend it, or replace it with --vitbench-update") from error
    tests: _Tests = content["tests"]
    return tests


def _values_of(count: int) -> str:
    return f"the exact values of {count} test{'s' if count != 1 else ''}"
