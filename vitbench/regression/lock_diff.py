"""What differs between a baseline file and the code as it is now, and accepting such a change on purpose."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vitbench.core.errors import UsageError
from vitbench.core.text import one_line
from vitbench.regression.change import Change, Verdict
from vitbench.regression.lock_file import (
    BOUND,
    STATE_DICT,
    TABLE,
    Accepted,
    Entry,
    Lock,
    Metric,
    digest,
    metrics_of,
    minor_version,
)

#: The metric of a change that concerns a whole entry: whether it can be counted at all.
STATUS = "status"
#: The cell of a change that concerns every entry.
ALL_CELLS = "all cells"
#: A detail names this many things and counts the rest.
_MOST_NAMED = 4
_LONGEST_REASON = 1000
_ABSENT = "unavailable"
_THINGS = {"params": "parameters", "trainable_params": "trainable parameters", "buffers": "buffer elements"}


def compare_locks(base: Lock, head: Lock) -> list[Change]:
    """Compare each value of ``base`` with the same one of ``head``, which has the same entries.

    Any difference is *worse*: a baseline that no longer describes the code hides the next change. Values that depend
    on torch's minor version are compared only if both were counted under the same one. Otherwise one change a metric,
    which does not gate, says so. ``uncounted`` is compared only where ``base`` has it.
    """
    found = {one.place: one for one in head.entries}
    bound = minor_version(base.torch) == minor_version(head.torch)
    fallen = {one.place for one in base.entries if not one.place.is_run and found[one.place].failed and not one.failed}
    changes: list[Change] = []
    for entry in base.entries:
        if not (entry.place.is_run and entry.place.of_model in fallen):  # the model's own failure covers its runs
            changes += _compare(entry, found[entry.place], metrics_of(entry.place, bound=bound))
    if not bound:
        states = [f"torch {minor_version(one.torch)}" for one in (base, head)]
        detail = f"checked only under {states[0]}, which the baseline was made with"
        for name in BOUND:
            if any(name in one.figures for one in base.entries):
                change = _change(ALL_CELLS, name, states, True, detail)
                changes.append(replace(change, verdict="not comparable", gates=False))
    return changes


def _compare(base: Entry, head: Entry, metrics: Mapping[str, Metric]) -> Iterator[Change]:
    if base.failed or head.failed:
        yield _compare_status(base, head)
        return
    for name, metric in metrics.items():
        if name == "uncounted" and name not in base.figures:
            continue  # an earlier vitbench wrote the baseline
        before, after = base.figures.get(name), head.figures.get(name)
        same = before == after
        detail = ""
        if after is None and not same:
            detail = f"{_ABSENT}: {one_line(head.absent.get(name, ''))}"
        elif before is None and not same:
            detail = f"it was {_ABSENT}: {one_line(base.absent.get(name, ''))}"
        elif not same:
            detail = _describe(name, metric, base, head)
        shown = [_shown(one, metric.kind) for one in (before, after)]
        yield _change(base.place.label, name, shown, same, detail, unit=metric.unit)


def _compare_status(base: Entry, head: Entry) -> Change:
    before, after = ("gone" if one.gone else "failed" if one.failed else "ok" for one in (base, head))
    same = bool(base.failed) == bool(head.failed)
    detail = ""
    if not same and head.gone:
        detail = f"the model no longer exists: {head.failed}"
    elif not same and head.failed:
        detail = f"it {'does not run' if base.place.is_run else 'cannot be built or run'} any more: {head.failed}"
    elif not same:
        detail = f"it works now; the baseline says: {base.failed}"
    return _change(base.place.label, STATUS, [before, before if same else after], same, one_line(detail))


def _change(
    cell: str, metric: str, states: Sequence[float | str], same: bool, detail: str, *, unit: str = ""
) -> Change:
    verdict: Verdict = "same" if same else "worse"
    return Change(
        cell=cell, metric=metric, unit=unit, base=states[0], head=states[1], verdict=verdict, exact=True, detail=detail
    )


def _shown(value: Any, kind: str) -> float | str:
    if value is None:
        return _ABSENT
    if kind == TABLE:
        return sum(value.values())
    return digest(value) if kind == STATE_DICT else value


def _describe(name: str, metric: Metric, base: Entry, head: Entry) -> str:
    """The difference in words, where the two values alone do not show it."""
    before, after = base.figures[name], head.figures[name]
    if name in _THINGS:
        states = [one.figures.get("state_dict", {}) for one in (base, head)]
        is_buffer = name == "buffers"
        kept = [{k: v for k, v in one.items() if v.endswith(" buffer") == is_buffer} for one in states]
        reasons = describe_tensors(*kept, frozen=name == "trainable_params") if kept[0] != kept[1] else ""
        return f"{after - before:+,} {_THINGS[name]}" + (f": {reasons}" if reasons else "")
    if metric.kind == STATE_DICT:
        return describe_tensors(before, after)
    if name == "graph_breaks":
        return _enumerate(_table_changes(before, after, new="new break: {}", gone="no longer: {}"))
    if name == "uncounted":
        return _enumerate(_table_changes(before, after, new="no formula covers {}", gone="{} is counted now"))
    if name == "without_gradient":
        return _enumerate(_table_changes(before, after, new="{} gets none now", gone="{} gets one now"))
    if metric.kind == TABLE:
        return _enumerate(f"{key} {before.get(key, 0):,} -> {after.get(key, 0):,}" for key in _differing(before, after))
    return ""


def describe_tensors(base: Mapping[str, str], head: Mapping[str, str], *, frozen: bool = True) -> str:
    """Describe how two state dicts (key to ``float32 192x64``) differ: what was added, removed, renamed, or has another
    dtype or shape, and with ``frozen`` what is no longer trained. Tensors below one name count as one thing.
    """
    added, removed = _grouped(head, base), _grouped(base, head)
    parts = []
    for old, inside in list(removed.items()):
        # the same tensors below another name were renamed, first of all beside the old name
        same = [one for one, other in added.items() if other == inside]
        if same:
            new = next((one for one in same if one.rpartition(".")[0] == old.rpartition(".")[0]), same[0])
            parts.append(f"{_thing(old, inside)} is {new} now")
            del added[new], removed[old]
    parts += [f"{_thing(name, inside)} added" for name, inside in added.items()]
    parts += [f"{_thing(name, inside)} removed" for name, inside in removed.items()]
    keys_by_change: dict[str, list[str]] = {}
    for key in sorted(base.keys() & head.keys()):
        for change in _spec_changes(base[key], head[key], frozen):
            keys_by_change.setdefault(change, []).append(key)
    for change, keys in keys_by_change.items():
        names = keys[0] if len(keys) == 1 else f"{len(keys)} tensors ({_enumerate(keys)})"
        parts.append(f"{names} {change}")
    return _enumerate(parts)


def _spec_changes(base: str, head: str, frozen: bool) -> list[str]:
    """How ``float32 192x64`` became ``bfloat16 192x32 frozen``."""
    (old_type, _, old_rest), (new_type, _, new_rest) = base.partition(" "), head.partition(" ")
    (old_shape, _, old_kind), (new_shape, _, new_kind) = old_rest.partition(" "), new_rest.partition(" ")
    changes = [f"{old_shape} -> {new_shape}"] if old_shape != new_shape else []
    changes += [f"{old_type} -> {new_type}"] if old_type != new_type else []
    if old_kind != new_kind and frozen:
        changes.append(f"{old_kind or 'trained'} -> {new_kind or 'trained'}")
    return changes


def _grouped(these: Mapping[str, str], others: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """The keys that ``others`` lack, grouped below the shortest prefix that ``others`` lack: prefix to the rest."""
    known = {".".join(parts[:count]) for parts in (key.split(".") for key in others) for count in range(len(parts) + 1)}
    groups: dict[str, dict[str, str]] = {}
    for key in sorted(these.keys() - others.keys()):
        parts = key.split(".")
        names = (".".join(parts[:count]) for count in range(1, len(parts) + 1))
        name = next((one for one in names if one not in known), key)
        groups.setdefault(name, {})[key[len(name) :]] = these[key]
    return groups


def _thing(name: str, inside: Mapping[str, str]) -> str:
    """``head.bias``, or ``blocks.6 (12 tensors)``."""
    return name + next(iter(inside)) if len(inside) == 1 else f"{name} ({len(inside)} tensors)"


def _table_changes(base: Mapping[str, int], head: Mapping[str, int], *, new: str, gone: str) -> Iterator[str]:
    for key in _differing(base, head):
        if key not in base:
            yield new.format(key) + (f" ({head[key]:,})" if head[key] > 1 else "")
        elif key not in head:
            yield gone.format(key)
        else:
            yield f"{key} {base[key]:,} -> {head[key]:,}"


def _differing(base: Mapping[str, int], head: Mapping[str, int]) -> list[str]:
    """The names whose counts differ, the largest difference first."""
    names = [key for key in base.keys() | head.keys() if base.get(key) != head.get(key)]
    return sorted(names, key=lambda key: (-abs(head.get(key, 0) - base.get(key, 0)), key))


def _enumerate(parts: Iterable[str]) -> str:
    listed = list(parts)
    more = len(listed) - _MOST_NAMED
    return ", ".join(listed[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


@dataclass(frozen=True)
class Rule:
    """One ``--accept``: which cells' (and metrics') changes to accept, and why."""

    pattern: str
    reason: str

    def takes(self, change: Change) -> bool:
        """Whether the rule accepts ``change``."""
        cell, sign, metric = self.pattern.rpartition("#")
        if not sign:
            cell, metric = self.pattern, "*"
        names_cell = cell == change.cell or fnmatch.fnmatchcase(change.cell, cell)
        return _is_open(change) and names_cell and fnmatch.fnmatchcase(change.metric, metric)


def parse_rule(text: str) -> Rule:
    """Read ``pattern: reason``. The pattern names cells (``vit_basic *``), and behind a ``#`` metrics
    (``*#operators``). Raises UsageError for a text without a reason.
    """
    pattern, _, reason = (part.strip() for part in text.partition(": "))
    example = "such as --accept 'vit_basic *: a wider head' or --accept '*#operators: one copy more, for clarity'"
    if not pattern or not reason or pattern.endswith("#"):
        raise UsageError(f"Option --accept: {one_line(text, 200)!r} is not 'cell or pattern: reason', {example}")
    if not text.isprintable() or len(text) > _LONGEST_REASON:
        raise UsageError(f"Option --accept: give one line of at most {_LONGEST_REASON} characters, {example}")
    return Rule(pattern, reason)


def accept(base: Lock, head: Lock, changes: Sequence[Change], rules: Sequence[Rule], date: str) -> Lock:
    """``base`` with the values of ``head`` for each change that a rule accepts, and a record of each rule. ``date``:
    today, ISO 8601. A model that no longer exists loses its entries.

    Raises UsageError for a rule that accepts no change, and for an entry that this torch cannot count completely.
    """
    same_torch = minor_version(base.torch) == minor_version(head.torch)
    found = {one.place.label: one for one in head.entries}
    entries = {one.place.label: one for one in base.entries}
    accepted: list[Accepted] = []
    rest = list(changes)
    for rule in rules:
        taken = [one for one in rest if rule.takes(one)]
        if not taken:
            raise UsageError(_no_match(rule, changes))
        rest = [one for one in rest if not rule.takes(one)]
        for change in taken:
            if change.metric == STATUS and not found[change.cell].failed and not same_torch:
                raise UsageError(
                    f"{change.cell} works now, but torch {head.torch} cannot count all its values for this baseline. "
                    "Make the baseline again: vitbench snapshot"
                )
            _take(entries, found, change)
        texts = []
        for one in taken:
            before, after = (f"{state:,}" if isinstance(state, int) else str(state) for state in (one.base, one.head))
            detail = f" ({one.detail})" if one.detail else ""
            texts.append(one_line(f"{one.cell}: {one.metric} {before} -> {after}{detail}"))
        accepted.append(Accepted(pattern=rule.pattern, reason=rule.reason, date=date, changes=tuple(texts)))
    return replace(
        base,
        entries=tuple(sorted(entries.values(), key=lambda one: one.place)),
        accepted=(*base.accepted, *accepted),
    )


def remaining(changes: Iterable[Change], rules: Sequence[Rule]) -> list[Change]:
    """The changes that no rule accepts."""
    return [one for one in changes if not any(rule.takes(one) for rule in rules)]


def _is_open(change: Change) -> bool:
    return change.gates and change.verdict == "worse"


def _take(entries: dict[str, Entry], found: Mapping[str, Entry], change: Change) -> None:
    """Replace what ``change`` concerns in ``entries`` by what was ``found``."""
    label, name = change.cell, change.metric
    now = found[label]
    if name != STATUS:
        entry = entries[label]
        figures, absent = (
            {key: value for key, value in old.items() if key != name} | ({name: new[name]} if name in new else {})
            for old, new in ((entry.figures, now.figures), (entry.absent, now.absent))
        )
        entries[label] = replace(entry, figures=figures, absent=absent)
        return
    runs = [one for one in entries.values() if one.place.is_run and one.place.of_model == now.place]
    for one in [entries[label], *(runs if now.failed else [])]:
        if now.gone:
            del entries[one.place.label]
        else:
            entries[one.place.label] = found[one.place.label]


def _no_match(rule: Rule, changes: Sequence[Change]) -> str:
    cells = list(dict.fromkeys(one.cell for one in changes if _is_open(one)))
    start = f"Option --accept: {rule.pattern!r} matches no changed cell"
    if not cells:
        return f"{start}: nothing has changed"
    if any(rule.takes(one) for one in changes):
        return f"{start} that an earlier --accept has not accepted already"
    return f"{start}. Changed: {', '.join(cells[:5])}{f' and {len(cells) - 5} more' if len(cells) > 5 else ''}"
