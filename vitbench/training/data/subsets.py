"""Choose images: by a seed, stratified or imbalanced, the same on every machine and in every version."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from vitbench.core.errors import DataError

_IMBALANCE = re.compile(r"^(?P<kind>linear|exponential):(?P<ratio>\d+(\.\d+)?)$")


def choose_stratified(labels: Sequence[int], count: int, seed: int | str) -> list[int]:
    """``count`` ascending indices into ``labels`` (at most all) whose classes have the same shares as in all.

    Shares are rounded by largest remainders: counts of equally large classes differ by one at most. The choice depends
    on SHA-256 alone: the streams of numpy's and torch's generators may change between versions.
    """
    if count >= len(labels):
        return list(range(len(labels)))
    members: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        members.setdefault(label, []).append(index)
    shares = {label: count * len(indices) / len(labels) for label, indices in members.items()}
    taken = {label: int(share) for label, share in shares.items()}
    # the seed breaks ties: a fixed order would always favour the first classes
    neediest = sorted(members, key=lambda label: (taken[label] - shares[label], _rank(seed, f"class {label}")))
    for label in neediest[: count - sum(taken.values())]:
        taken[label] += 1
    chosen: list[int] = []
    for label, indices in members.items():
        chosen += sorted(indices, key=lambda index: _rank(seed, str(index)))[: taken[label]]
    return sorted(chosen)


def is_rule(imbalance: str) -> bool:
    """Whether it is ``linear:R`` or ``exponential:R``; otherwise it is the path of a file of indices."""
    return _IMBALANCE.match(imbalance) is not None


def digest_indices(path: str) -> str | None:
    """``indices:`` and 16 hex digits of a hash of the numbers in the file; None if it holds none or does not exist."""
    try:
        numbers = _read_numbers(Path(path).expanduser())
    except (OSError, ValueError):
        return None
    return f"indices:{hashlib.sha256(' '.join(map(str, sorted(numbers))).encode()).hexdigest()[:16]}"


def choose_imbalanced(labels: Sequence[int], among: Sequence[int], imbalance: str, seed: int | str) -> list[int]:
    """Ascending indices out of ``among`` (indices into ``labels``) whose classes are imbalanced.

    ``linear:R``: from the size of the largest class down to a fraction 1/R of it, in equal steps from the first class
    to the last (``linear:10`` of 5,000 a class: 5,000, 4,500, ... 500). ``exponential:R``: in equal ratios (Cui et
    al., 2019, arXiv:1901.05555, section 5.1). A path: the numbers in the file (separated by blanks, commas or lines)
    are indices into all training images. No class gets more images than it has. Raises DataError for anything else.
    """
    if not is_rule(imbalance):
        return _indices_of(imbalance, labels, set(among))
    members: dict[int, list[int]] = {}
    for index in among:
        members.setdefault(labels[index], []).append(index)
    counts = imbalanced_counts(imbalance, max(map(len, members.values())), len(members))
    chosen: list[int] = []
    for count, label in zip(counts, sorted(members), strict=True):
        ranked = sorted(members[label], key=lambda index: _rank(seed, f"imbalance {index}"))
        chosen += ranked[:count]
    return sorted(chosen)


def imbalanced_counts(imbalance: str, largest: int, classes: int) -> list[int]:
    """How many images each of ``classes`` classes gets under ``linear:R`` or ``exponential:R``, the first
    ``largest``.

    Raises DataError for anything else, and for an R below 1 or so large that a class would be empty.
    """
    match = _IMBALANCE.match(imbalance)
    ratio = float(match["ratio"]) if match else 0.0
    if match is None or ratio < 1:
        raise DataError(
            f"Imbalance {imbalance!r} is neither linear:R nor exponential:R (largest over smallest class, at least 1, "
            "such as linear:10) nor a file of indices"
        )
    places = [index / max(classes - 1, 1) for index in range(classes)]
    if match["kind"] == "linear":
        counts = [round(largest * (1 - place * (1 - 1 / ratio))) for place in places]
    else:
        # rounded down, like long-tailed CIFAR's: 12,406 images of CIFAR-10 for exponential:100
        counts = [int(largest * ratio**-place + 1e-9) for place in places]
    if min(counts) < 1:
        raise DataError(f"Imbalance {imbalance!r} leaves a class of {largest} images empty: take a smaller ratio")
    return counts


def _indices_of(path: str, labels: Sequence[int], among: set[int]) -> list[int]:
    file = Path(path).expanduser()
    if not file.is_file():
        raise DataError(
            f"Imbalance {path!r} is neither linear:R nor exponential:R, such as linear:10, nor a file of indices"
        )
    try:
        numbers = _read_numbers(file)
    except (OSError, ValueError) as error:
        raise DataError(f"Index file {file.name!r} cannot be read: {error}. Give whole numbers only") from error
    if not numbers or min(numbers) < 0 or max(numbers) >= len(labels):
        raise DataError(f"Index file {file.name!r} has to hold numbers from 0 to {len(labels) - 1}")
    chosen = sorted(numbers & among)
    if not chosen:
        raise DataError(f"Index file {file.name!r} leaves no training image beside the validation split")
    return chosen


def _read_numbers(file: Path) -> set[int]:
    return {int(word) for word in re.split(r"[\s,\[\]]+", file.read_text(encoding="utf-8")) if word}


def _rank(seed: int | str, what: str) -> bytes:
    return hashlib.sha256(f"{seed}/{what}".encode()).digest()
