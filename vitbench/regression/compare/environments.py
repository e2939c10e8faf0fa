"""Compare the environments of two runs: what keeps their values from being compared."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from vitbench.core.records import Record
from vitbench.core.text import one_line
from vitbench.reports.model.runs import Run

#: A line names this many differences and counts the rest.
_NAMED = 4

#: Why times and bytes are not compared.
OTHER_MACHINE = "measured in different environments"


@dataclass(frozen=True)
class Apart:
    """Why values of two records are not compared, empty if they are: ``times`` and measured bytes, and values that
    depend on ``torch``.
    """

    times: str = ""
    torch: str = ""


class Environments:
    """The environments of BASE and HEAD. Equal hashes mean comparable times (see ``environment.hash_environment``)."""

    def __init__(self, base: Run, head: Run, *, allow_different_machines: bool) -> None:
        self._base, self._head = (run.environment.get("environments") or {} for run in (base, head))
        self._allow = allow_different_machines

    def between(self, base: Record, head: Record) -> Apart:
        """What keeps two records apart."""
        if base.environment == head.environment:
            return Apart()
        one, other = _torch_of(self._base.get(base.environment)), _torch_of(self._head.get(head.environment))
        torch = ""
        if one is None or other is None:
            torch = "the version of torch that counted it is unknown"
        elif one != other:
            torch = f"counted under torch {one} and {other}, which may compute differently"
        return Apart("" if self._allow else OTHER_MACHINE, torch)

    def notes(self, pairs: Iterable[tuple[Record, Record]]) -> list[str]:
        """One line for each combination of different environments among ``pairs``."""
        unlike = Counter(
            (base.environment, head.environment) for base, head in pairs if base.environment != head.environment
        )
        then = (
            "compared nevertheless, as requested"
            if self._allow
            else "times and measured memory are not compared (--allow-different-machines does)"
        )
        return [
            f"{count} cell{'s' if count != 1 else ''} measured in different environments "
            f"({_differences(self._base.get(base), self._head.get(head))}): {then}"
            for (base, head), count in unlike.items()
        ]


def _torch_of(environment: Any) -> str | None:
    """``2.15`` of ``2.15.0+cpu``."""
    flat = _flat(environment)
    found = re.match(r"\d+\.\d+", str(flat.get("libraries.versions.torch", "")))
    return found[0] if found else None


def _differences(base: Any, head: Any) -> str:
    """``cpu: A -> B; torch: 2.14.0 -> 2.15.0 and 3 more``, versions and names first."""
    if not isinstance(base, Mapping) or not isinstance(head, Mapping):
        return "environment.json does not describe them"
    one, other = _flat(base), _flat(head)
    names = [name for name in dict.fromkeys([*one, *other]) if one.get(name) != other.get(name)]
    first = ("system.cpu", "libraries.versions.torch", "system.os", "system.python")

    def order(name: str) -> tuple[bool, int]:
        """Facts that only one of them has come last: an older vitbench recorded fewer."""
        return (name not in one or name not in other), (first.index(name) if name in first else len(first))

    names.sort(key=order)
    texts = [
        f"{name.rpartition('.')[2]}: {one_line(str(one.get(name, 'unknown')), 60)} -> "
        f"{one_line(str(other.get(name, 'unknown')), 60)}"
        for name in names[:_NAMED]
    ]
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ("; ".join(texts) + more) or "their descriptions are equal, their hashes are not"


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined by dots; other values as they are."""
    if not isinstance(value, Mapping):
        return {prefix: value} if prefix else {}
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    return found
