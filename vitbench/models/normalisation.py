"""How pictures are normalised for weights: by what a file says of its training, or by the model's card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vitbench.core.validation import is_number
from vitbench.models.cards import ModelCard

#: Red, green and blue.
Channels = tuple[float, float, float]

#: What a card or a recipe has that states no other.
HALVES: Channels = (0.5, 0.5, 0.5)


def normalisation_of(card: ModelCard, facts: Mapping[str, Any]) -> tuple[Channels, Channels]:
    """Mean and standard deviation of each channel (pictures from 0 to 1): of the recipe in a checkpoint's ``facts``,
    else of the card.
    """
    if not facts:
        return _channels(card.mean) or HALVES, _channels(card.std) or HALVES
    recipe = facts.get("recipe")
    told = recipe if isinstance(recipe, Mapping) else {}
    std = _channels(told.get("std"))
    return _channels(told.get("mean")) or HALVES, std if std and min(std) > 0 else HALVES


def _channels(values: Any) -> Channels | None:
    if not isinstance(values, list | tuple) or len(values) != 3:
        return None
    if not all(map(is_number, values)):
        return None
    return float(values[0]), float(values[1]), float(values[2])
