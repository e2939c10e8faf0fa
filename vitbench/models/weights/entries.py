"""Find a model's weights in a file by their names: in which entry of the file, and behind which prefix.

Entries and prefixes are alike here: ``cls_token`` in the dict ``teacher`` of a file is ``teacher.cls_token``, as in a
flat file with that name. Nothing here reads a file.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from vitbench.core.errors import DataError
from vitbench.models.weights.layouts import Layout, layout_of

#: The parts of a prefix that are looked at: those of wrappers are few.
_MOST_PREFIX_PARTS = 6
#: What one file has in one and another apart is one weight here: q, k and v, and the gate of an MLP and its input.
_PARTS = re.compile(r"(.*attn\.)(?:(?:qkv|[qkv]|[qkv]_proj)\.(weight|bias)|[qkv]_(bias))|(.*mlp\.fc1)_[gx](\..*)")

_WRAPPERS = re.compile(r"^(module\.|_orig_mod\.)+")


@dataclass(frozen=True)
class Wanted:
    """Our names of a model's weights; those of the layers that give the classes are apart, in ``head``."""

    body: frozenset[str]
    head: frozenset[str]


@dataclass(frozen=True)
class Entry:
    """A place in a file that has weights: full names begin with ``prefix``. ``names``: our name -> full name; ``used``:
    the full names of those of the model's body. ``doubled``: two full names that mean one weight. ``outside``: full
    names beside them, without the prefix; ``rivals``: other entries with at least half of the model's weights.
    """

    prefix: str
    layout: Layout
    names: Mapping[str, str]
    used: frozenset[str]
    missing: int
    doubled: tuple[str, str] | None = None
    outside: tuple[str, ...] = ()
    rivals: tuple[str, ...] = ()


def find_entry(file: str, folders: Mapping[str, str], wanted: Wanted, chosen: str | None = None) -> Entry:
    """Where the weights of a model are in a file; where none is complete, the place that has most of them.

    Args:
        file: its name, for messages.
        folders: full name of each tensor -> the dicts that it is in (``teacher.``; empty in a flat file).
        wanted: the model's weights. Those of the head may be missing, or stand in front of a prefix.
        chosen: the entry that the user names: ``teacher``, or ``.`` for names without a prefix.

    Raises:
        DataError: several entries have all weights of the body and none is chosen, or there is no such entry.
    """
    body = frozenset(map(_whole, wanted.body))
    entries = [_entry(prefix, names, body) for prefix, names in _prefixes(folders, len(body)).items()]
    offered = [one for one in entries if _is_called(one.prefix, chosen)]
    if not offered:
        known = _shortest_names(_complete(entries)) or sorted({folder.split(".")[0] for folder in folders.values()})
        has = f"It has {', '.join(map(_shown, known[:9]))}" if any(known) else "It has none"
        raise DataError(f"Checkpoint {file!r} has no entry {_shown(chosen)} with weights of this model. {has}")
    complete = _complete(offered)
    if len(complete) > 1:
        raise _several(file, complete)
    best = complete[0] if complete else max(offered, key=lambda one: (len(one.used), -len(one.prefix)))
    twins = _without_nested([best, *(one for one in offered if one.names.keys() == best.names.keys())])
    if best.used and not complete and len(twins) > 1:  # timm's filter may make both complete
        raise _several(file, twins)
    if not best.used:  # of another model, or by names that only timm's filter knows: all that one dict has
        dicts: dict[str, list[str]] = {}
        for full in best.names.values():
            dicts.setdefault(folders[full], []).append(full)
        same = _with_names_of_largest(dicts)
        if len(same) > 1 and 2 * len(dicts[same[0]]) >= len(body):
            raise _several(file, [_entry(folder, dicts[folder], body) for folder in same])
        best = _entry(same[0], dicts[same[0]], body)
    rivals = [one for one in entries if 2 * len(one.used) >= len(best.used) > 0 and not one.used & best.used]
    return _with_surroundings(best, folders, wanted.head, _without_nested(rivals))


def _several(file: str, entries: list[Entry]) -> DataError:
    known = _shortest_names(entries)
    return DataError(
        f"Checkpoint {file!r} has {len(known)} entries with weights of this model: "
        f"{', '.join(map(_shown, known))}. One may be a moving average or a teacher. Name the one to load with "
        f"entry= (--entry {known[-1] if known[-1].isidentifier() else 'NAME'})"
    )


def _with_names_of_largest(dicts: Mapping[str, Collection[str]]) -> list[str]:
    """The dict (its prefix) with most names, and those with the same names, behind a wrapper's prefix or not."""
    names = {
        folder: {_WRAPPERS.sub("", full[len(folder) :]) for full in dicts[folder]} - {"n_averaged"} for folder in dicts
    }
    largest = max(names, key=lambda folder: len(names[folder]))
    return [largest, *(folder for folder in names if folder != largest and names[folder] == names[largest])]


def _prefixes(names: Iterable[str], count: int) -> dict[str, list[str]]:
    """The prefixes that enough names have for a model of ``count`` weights, the shortest first -> the names."""
    found: dict[str, list[str]] = {"": []}
    for name in names:
        found[""].append(name)
        end = -1
        for _ in range(_MOST_PREFIX_PARTS):
            end = name.find(".", end + 1)
            if end < 0:
                break
            found.setdefault(name[: end + 1], []).append(name)
    return {p: found[p] for p in sorted(found, key=len) if not p or 2 * len(found[p]) >= count}


def _entry(prefix: str, full_names: Collection[str], body: frozenset[str]) -> Entry:
    layout = layout_of(name[len(prefix) :] for name in full_names)
    names: dict[str, str] = {}
    doubled = None
    for full in full_names:
        key = full[len(prefix) :]
        name = layout.our_name(key) or key
        if name in names:
            doubled = doubled or (names[name], full)
        names[name] = full
    there = {name: one for name in names if (one := _whole(name)) in body}
    used = frozenset(names[name] for name in there)
    return Entry(prefix, layout, names, used, len(body) - len(set(there.values())), doubled)


def _whole(name: str) -> str:
    found = _PARTS.fullmatch(name)
    if found is None:
        return name
    return f"{found[1]}qkv.{found[2] or found[3]}" if found[1] else f"{found[4]}{found[5]}"


def _complete(entries: Iterable[Entry]) -> list[Entry]:
    return _without_nested([one for one in entries if one.used and not one.missing])


def _without_nested(entries: list[Entry]) -> list[Entry]:
    """Without those that are a part of an earlier one: a layout may know ``vit.cls_token`` and ``cls_token``."""
    return [one for i, one in enumerate(entries) if not any(one.used & before.used for before in entries[:i])]


def _is_called(prefix: str, chosen: str | None) -> bool:
    if chosen is None:
        return True
    return not prefix if chosen == "." else prefix.startswith(f"{chosen.removesuffix('.')}.")


def _shortest_names(entries: list[Entry]) -> list[str]:
    """How to name each of these entries: by the fewest parts of its prefix that no other has."""
    result = []
    for one in entries:
        parts = one.prefix.split(".")[:-1]
        names = (".".join(parts[:count]) for count in range(1, len(parts) + 1))
        others = [other.prefix for other in entries if other is not one]
        result.append(
            next((name for name in names if not any(_is_called(o, name) for o in others)), ".".join(parts) or ".")
        )
    return result


def _with_surroundings(entry: Entry, folders: Mapping[str, str], head: frozenset[str], rivals: list[Entry]) -> Entry:
    """The same entry without what belongs to ``rivals`` or is in other dicts of the file, and with a head that stands
    in front of its prefix.
    """
    own = {folders[full] for full in entry.used or entry.names.values()}
    inside = tuple(one.prefix for one in rivals if one.prefix.startswith(entry.prefix) and one.prefix != entry.prefix)
    names = {n: full for n, full in entry.names.items() if folders[full] in own and not full.startswith(inside)}
    in_front = entry.prefix
    while in_front:
        in_front = in_front[: in_front.rfind(".", 0, -1) + 1]
        for full in folders:
            if full.startswith(in_front) and not full.startswith(entry.prefix):
                key = full[len(in_front) :]
                name = entry.layout.our_name(key) or key
                if name in head and name not in names:
                    names[name] = full
    taken = set(names.values())
    apart = tuple(one.prefix for one in rivals)
    outside = [full for full in folders if folders[full] in own and full not in taken and not full.startswith(apart)]
    return replace(entry, names=names, outside=tuple(outside), rivals=tuple(_shortest_names([entry, *rivals])[1:]))


def _shown(name: object) -> str:
    text = repr(name)
    return text if len(text) <= 80 else f"{text[:77]}..."
