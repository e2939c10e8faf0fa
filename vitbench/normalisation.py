"""How pictures are normalised for weights: by what a file says of its training, or by the model's card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vitbench.registry import ModelCard
from vitbench.shapes import is_number

#: Red, green and blue.
Channels = tuple[float, float, float]

_HALF = (0.5, 0.5, 0.5)


def normalisation_of(card: ModelCard, facts: Mapping[str, Any]) -> tuple[Channels, Channels]:
    """Mean and standard deviation of each channel (pictures from 0 to 1): of the recipe in a checkpoint's ``facts``,
    else of the card.
    """
    if not facts:
        return _channels(card.mean) or _HALF, _channels(card.std) or _HALF
    recipe = facts.get("recipe")
    told = recipe if isinstance(recipe, Mapping) else {}
    std = _channels(told.get("std"))
    return _channels(told.get("mean")) or _HALF, std if std and min(std) > 0 else _HALF


def _channels(values: Any) -> Channels | None:
    if not isinstance(values, list | tuple) or len(values) != 3:
        return None
    if not all(map(is_number, values)):
        return None
    return float(values[0]), float(values[1]), float(values[2])
