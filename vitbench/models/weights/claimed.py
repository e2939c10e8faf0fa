"""What a checkpoint claims of its pictures and its classes, taken where the file itself bears it out.

Importing this module loads no torch, its functions do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from vitbench.core.errors import UsageError
from vitbench.core.records import parse_image_size
from vitbench.models.cards import ModelCard

#: Names under which layers that give the classes stand in files, ours first (see models/layouts.py).
_HEADS = ("head.weight", "head.fc2.weight", "head.fc.weight", "heads.head.weight", "classifier.weight", "fc.weight")
#: What a file may claim of its pictures and classes before the claim is passed over: building for it takes memory.
_LARGEST_SIDE = 8192
_MOST_CLASSES = 1_000_000
#: Tokens beside those of patches, such as CLS.
_MOST_EXTRA_TOKENS = 16


@dataclass(frozen=True)
class Resolved:
    """What a model is built for: ``image_size`` is (height, width) px; ``facts`` is what the checkpoint says of its
    training, empty for files that ``vitbench train`` did not write.
    """

    image_size: tuple[int, int]
    num_classes: int
    facts: Mapping[str, Any]


def resolve(
    card: ModelCard,
    weights: str | None,
    image_size: str | int | None = None,
    num_classes: int | None = None,
    *,
    facts: Mapping[str, Any] | None = None,
) -> Resolved:
    """Image size and classes: those given, else those of the checkpoint ``weights``, else the card's.

    ``facts`` replace those in the file. Raises UsageError (a DataError for a file that is not a checkpoint) and
    ImageSizeError.
    """
    from vitbench.models.weights.checkpoints import read_facts

    if facts is None:
        facts = {} if weights is None else read_facts(weights)
    shapes = {} if weights is None else shapes_in_file(Path(weights))
    size = chosen_size(card, image_size, facts, shapes)
    return Resolved(size, num_classes or classes_of(card, shapes, facts), facts)


def size_in_file(model: str, weights: str) -> tuple[int, int]:
    """(height, width) px that our training wrote into the checkpoint, or the model's own where it says nothing (or
    contradicts itself). Raises UsageError, among them DataError for a file that is no checkpoint.
    """
    from vitbench.models import describe_model

    return resolve(describe_model(model), weights).image_size


def chosen_size(
    card: ModelCard, option: str | int | None, facts: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[int, int]:
    """(height, width) px: the option's, that of the training, or the model's own. Raises UsageError, ImageSizeError.

    ``shapes``: of the weights in the file, which a claim must not contradict.
    """
    size = card.image_size
    told = facts.get("image_size")
    if isinstance(told, list) and len(told) == 2 and all(_is_count(side, _LARGEST_SIDE) for side in told):
        told_size = (told[0], told[1])
        size = told_size if _has_positions_for(card, told_size, shapes.get("pos_embed", ())) else size
    if option is not None:
        try:
            size = parse_image_size(option)
        except ValueError as error:
            raise UsageError(str(error)) from error
    card.check_image_size(size)
    return size


def classes_of(card: ModelCard, shapes: Mapping[str, tuple[int, ...]], facts: Mapping[str, Any]) -> int:
    """Those of the head in the file (``shapes``: of its weights), as the file says, or the card's own."""
    found = next((shapes[name] for name in _HEADS if len(shapes.get(name, ())) >= 2), None)
    in_file = found[0] if found is not None and _is_count(found[0], _MOST_CLASSES) else None
    told = facts.get("num_classes")
    # a head of another name cannot be looked at, but one for a million classes is no small file
    most = sum(math.prod(shape) for shape in shapes.values())
    if _is_count(told, _MOST_CLASSES) and (told == in_file or (found is None and told <= most)):
        return told
    # a card of our own may be built on weights of other classes: its own number is what it is for
    return in_file or (_classes_of_other_heads(card, shapes) if shapes else None) or card.num_classes


def shapes_in_file(path: Path) -> dict[str, tuple[int, ...]]:
    """What a checkpoint claims of its weights, in our names."""
    from vitbench.models.weights.checkpoints import _weights_in
    from vitbench.models.weights.layouts import layout_of

    with _weights_in(path) as (weights, _):
        layout = layout_of(weights)
        return {layout.our_name(key) or key: weight.shape for key, weight in weights.items()}


def _has_positions_for(card: ModelCard, size: tuple[int, int], positions: tuple[int, ...]) -> bool:
    """Whether as many positions are in a file as a model for pictures of ``size`` has learned: building one for a size
    that is made up would take any amount of memory. True where that cannot be told.
    """
    if len(positions) < 2 or card.patch <= 1 or max(size) <= max(card.image_size):
        return True
    if card.config.get("positions") == "bicubic":  # one grid for all image sizes
        return True
    patches = (size[0] // card.patch) * (size[1] // card.patch)
    return 0 <= positions[-2] - patches <= _MOST_EXTRA_TOKENS


def _classes_of_other_heads(card: ModelCard, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """The classes of a head that has another name in the file: of the weight whose size changes with the classes. None
    where the model cannot be built without memory, or the file has no such weight.
    """
    import torch

    from vitbench.models import build_model

    try:
        with torch.device("meta"):
            own, other = (
                dict(build_model(card.name, num_classes=count).named_parameters())
                for count in (card.num_classes, card.num_classes + 1)
            )
    except Exception:  # builders of one's own may raise anything without memory
        return None
    for name, parameter in own.items():
        found = shapes.get(name, ())
        if (
            parameter.dim() == 2 == len(found)
            and parameter.shape != other[name].shape
            and found[1:] == parameter.shape[1:]
        ):
            return found[0] if _is_count(found[0], _MOST_CLASSES) else None
    return None


def _is_count(value: Any, largest: int) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= largest
