"""Our models, reduced to one of each kind: what holds for a kind holds for its other widths and depths."""

from __future__ import annotations

from vitbench.analysis.closed_form import closed_form
from vitbench.models.cards import ModelCard, load_model_cards

#: What an integer (a width, a depth) changes in no way that counts.
_SIZES = (int, float, list, tuple)


def smallest_of_each_kind(*, by_config: bool = True) -> list[str]:
    """The model with the fewest FLOPs for each builder and, ``by_config``, each combination of its options."""
    kinds: dict[object, ModelCard] = {}
    for card in sorted(load_model_cards(), key=_flops):
        options = {
            (key, value)
            for key, value in card.config.items()
            if isinstance(value, bool) or not isinstance(value, _SIZES)
        }
        kinds.setdefault((card.builder, frozenset(options) if by_config else None), card)
    return [card.name for card in kinds.values()]


def _flops(card: ModelCard) -> int:
    return closed_form(card, card.image_size, card.num_classes).flops
