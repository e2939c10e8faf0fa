"""Which pictures of many: seeded, stratified, and the same on every machine and in every version."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def choose_stratified(labels: Sequence[int], count: int, seed: int | str) -> list[int]:
    """``count`` ascending indices into ``labels`` whose classes have the shares that they have in all.

    Shares are rounded by largest remainders, so that counts of equally large classes differ by one at most. More asked
    for than there are: all. The choice rests on SHA-256 alone, since the streams of numpy's and torch's generators may
    change between versions.
    """
    if count >= len(labels):
        return list(range(len(labels)))
    members: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        members.setdefault(label, []).append(index)
    shares = {label: count * len(indices) / len(labels) for label, indices in members.items()}
    taken = {label: int(share) for label, share in shares.items()}
    # ties go to other classes with another seed: a fixed order would favour the first classes every time
    neediest = sorted(members, key=lambda label: (taken[label] - shares[label], _rank(seed, f"class {label}")))
    for label in neediest[: count - sum(taken.values())]:
        taken[label] += 1
    chosen: list[int] = []
    for label, indices in members.items():
        chosen += sorted(indices, key=lambda index: _rank(seed, str(index)))[: taken[label]]
    return sorted(chosen)


def _rank(seed: int | str, what: str) -> bytes:
    return hashlib.sha256(f"{seed}/{what}".encode()).digest()
