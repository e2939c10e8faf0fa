"""The command that repeats a line: the suite of its run, narrowed by options of ``vitbench run``."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence

from vitbench.core.run_folder import SUITE
from vitbench.reports.model.lines import batch_of
from vitbench.reports.model.rows import Row
from vitbench.suites.batch_search import is_attempt

#: By option, what a line has of it; empty where it does not apply.
_OPTIONS: dict[str, Callable[[Row], str]] = {
    "--models": lambda line: line.cell.model,
    "--image-sizes": lambda line: line.image_size,
    "--batch-sizes": lambda line: "" if _is_searched(line) else str(batch_of(line) or ""),
    "--modes": lambda line: _modes(line) if _is_searched(line) else "",
    "--devices": lambda line: line.cell.device,
    "--dtypes": lambda line: line.cell.dtype,
    "--attention": lambda line: line.cell.attention,
    "--compile": lambda line: "on" if line.cell.compile else "off",
    "--threads": lambda line: str(line.cell.threads),
    "--seed": lambda line: str(line.cell.seed),
    "--recipe": lambda line: line.axes["recipe"],
}
#: Stand in every command: a run that was stopped does not show that its suite has more of them.
_ALWAYS = ("--models", "--batch-sizes")


def repeat_parts(lines: Sequence[Row]) -> list[tuple[str, ...]]:
    """By line the parts of its command, which joined are ``vitbench run --suite RUN/suite.toml --models ...``.

    It is for the folder that holds the run's. Options in which the lines of a run do not differ are left out. A search
    for the largest batch is repeated whole. Where a suite also trains, the command trains too.
    """
    known: dict[tuple[str, str], set[str]] = {}
    for line in lines:
        for option, text in _OPTIONS.items():
            known.setdefault((line.run, option), set()).add(text(line))

    def part(line: Row, option: str) -> str:
        text = _OPTIONS[option](line)
        is_given = text and (option in _ALWAYS or len(known[line.run, option] - {""}) > 1)
        return f" {option} {shlex.quote(text)}" if is_given else ""

    return [
        (f"vitbench run --suite {shlex.quote(f'{line.run}/{SUITE}')}", *(part(line, option) for option in _OPTIONS))
        for line in lines
    ]


def _is_searched(line: Row) -> bool:
    return any(map(is_attempt, line.records))


def _modes(line: Row) -> str:
    return ",".join(mode for mode, records in (("infer", line.infer), ("train", line.train)) if records)
