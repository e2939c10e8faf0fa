"""Where two runs were measured, and what of them can be compared."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from vitbench.core.records import Record
from vitbench.core.text import one_line
from vitbench.reports.model.runs import Run

#: So many differences are named in one line.
_NAMED = 4


#: Why times and bytes are not compared.
OTHER_MACHINE = "measured in different environments"


@dataclass(frozen=True)
class Apart:
    """What keeps two records apart, each an empty text where nothing does: ``times``, why times and measured bytes are
    not compared, ``torch``, why what torch does is not.
    """

    times: str = ""
    torch: str = ""


class Environments:
    """Where BASE and HEAD were measured. Equal hashes mean comparable times (see ``environment.hash_environment``)."""

    def __init__(self, base: Run, head: Run, *, allow_different_machines: bool) -> None:
        self._base, self._head = _known_environments(base), _known_environments(head)
        self._allow = allow_different_machines

    def between(self, base: Record, head: Record) -> Apart:
        """What keeps two records apart."""
        if base.environment == head.environment:
            return Apart()
        one, other = _torch_of(self._base.get(base.environment)), _torch_of(self._head.get(head.environment))
        torch = ""
        if one is None or other is None:
            torch = "which version of torch it was counted under is not known"
        elif one != other:
            torch = f"counted under torch {one} and {other}, which need not compute alike"
        return Apart("" if self._allow else OTHER_MACHINE, torch)

    def notes(self, pairs: Iterable[tuple[Record, Record]]) -> list[str]:
        """One line for each two environments of ``pairs`` that are not the same."""
        unlike = Counter(
            (base.environment, head.environment) for base, head in pairs if base.environment != head.environment
        )
        then = (
            "compared all the same, as asked"
            if self._allow
            else "times and measured memory are not compared (--allow-different-machines does)"
        )
        return [
            f"{count} cell{'s' if count != 1 else ''} measured in different environments "
            f"({_differences(self._base.get(base), self._head.get(head))}): {then}"
            for (base, head), count in unlike.items()
        ]


def _known_environments(run: Run) -> Mapping[str, Any]:
    found = run.environment.get("environments")
    return found if isinstance(found, Mapping) else {}


def _torch_of(environment: Any) -> str | None:
    """``2.15`` of ``2.15.0+cpu``."""
    flat = _flat(environment)
    found = re.match(r"\d+\.\d+", str(flat.get("libraries.versions.torch", "")))
    return found[0] if found else None


def _differences(base: Any, head: Any) -> str:
    """``cpu: A -> B; torch: 2.14.0 -> 2.15.0 and 3 more``, versions and names first."""
    if not isinstance(base, Mapping) or not isinstance(head, Mapping):
        return "what differs is not told: environment.json does not have them"
    one, other = _flat(base), _flat(head)
    names = [name for name in dict.fromkeys([*one, *other]) if one.get(name) != other.get(name)]
    first = ("system.cpu", "libraries.versions.torch", "system.os", "system.python")

    def place(name: str) -> tuple[bool, int]:
        """What only one of them tells of comes last: an older vitbench told less."""
        return (name not in one or name not in other), (first.index(name) if name in first else len(first))

    names.sort(key=place)
    texts = [
        f"{name.rpartition('.')[2]}: {one_line(str(one.get(name, 'not told')), 60)} -> "
        f"{one_line(str(other.get(name, 'not told')), 60)}"
        for name in names[:_NAMED]
    ]
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ("; ".join(texts) + more) or "they read alike, their hashes do not"


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined by dots; other values as they are."""
    if not isinstance(value, Mapping):
        return {prefix: value} if prefix else {}
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    return found
