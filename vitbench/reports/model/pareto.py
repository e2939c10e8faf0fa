"""Which of several points no other one beats."""

from __future__ import annotations

from collections.abc import Sequence


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """The indices of the points (cost, value) that none beats, by ascending cost.

    A point is beaten by another one that costs no more and is worth no less, and differs. Equal points stay together.
    """
    front: list[int] = []
    best = float("-inf")
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1], i)):
        _, value = points[index]
        if value > best or (front and points[index] == points[front[-1]]):
            front.append(index)
            best = value
    return front
