"""What a checkpoint claims of its images and its classes, accepted only if the weights in the file agree.

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
from vitbench.core.validation import is_number
from vitbench.models.cards import HALVES, Channels, ModelCard

#: Of a model that keeps its own head, for people.
RANDOM_HEAD = "its head left out, a random one in its place"
#: Names under which layers that give the classes stand in files, ours first (see layouts.py).
HEADS = (
    "head", "head.fc2", "head.fc", "heads.head", "classifier", "fc", "head.linear", "head_dist", "head_dist.linear"
)  # fmt: skip
_HEADS = tuple(f"{layer}.weight" for layer in HEADS)
#: Larger claims are ignored: building a model for them would take memory.
_LARGEST_SIDE = 8192
_MOST_CLASSES = 1_000_000
#: Tokens beside those of patches, such as CLS.
_MOST_EXTRA_TOKENS = 16


def check_no_file(entry: str | None, grid: str | None) -> None:
    """Raises UsageError for what says how to read a file of weights, where none is given."""
    for option, value in (("--entry", entry), ("--grid", grid)):
        if value is not None:
            raise UsageError(f"{option} says how to read a file: give it together with --weights FILE")


@dataclass(frozen=True)
class Resolved:
    """What a model is built for: (height, width) px, classes, and the checkpoint's facts of its training (empty for
    files that ``vitbench train`` did not write).
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
    entry: str | None = None,
) -> Resolved:
    """Image size and classes: those given, else those of the checkpoint ``weights``, else the card's.

    ``facts`` replace those in the file; ``entry``: see load_checkpoint. Raises UsageError (a DataError for a file that
    is not a checkpoint) and ImageSizeError.
    """
    from vitbench.models.weights.checkpoints import read_facts

    if facts is None:
        facts = {} if weights is None else read_facts(weights)
    shapes = {} if weights is None else shapes_in_file(Path(weights), card, entry)
    size = _chosen_size(card, image_size, facts, shapes)
    return Resolved(size, classes_of(card, shapes, facts) if num_classes is None else num_classes, facts)


def _chosen_size(
    card: ModelCard, option: str | int | None, facts: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[int, int]:
    """The option's size, that of the training unless the ``shapes`` in the file contradict it, or the model's own."""
    size = card.image_size
    claimed = facts.get("image_size")
    if isinstance(claimed, list) and len(claimed) == 2 and all(_is_count(side, _LARGEST_SIDE) for side in claimed):
        pair = (claimed[0], claimed[1])
        size = pair if _has_positions_for(card, pair, shapes.get("pos_embed", ())) else size
    if option is not None:
        try:
            size = parse_image_size(option)
        except ValueError as error:
            raise UsageError(str(error)) from error
    card.check_image_size(size)
    return size


def classes_of(card: ModelCard, shapes: Mapping[str, tuple[int, ...]], facts: Mapping[str, Any]) -> int:
    """The classes of the head in the file (``shapes``: of its weights), as the file claims, or the card's own."""
    found = next((shapes[name] for name in _HEADS if len(shapes.get(name, ())) >= 2), None)
    in_file = found[0] if found is not None and _is_count(found[0], _MOST_CLASSES) else None
    claimed = facts.get("num_classes")
    # a head of another name cannot be checked, but one for a million classes makes a large file
    most = sum(math.prod(shape) for shape in shapes.values())
    if _is_count(claimed, _MOST_CLASSES) and (claimed == in_file or (found is None and claimed <= most)):
        return claimed
    # a card of our own may be built on weights of other classes: its own number is what it is for
    return in_file or (_classes_of_other_heads(card, shapes) if shapes else None) or card.num_classes


def normalisation_of(card: ModelCard, facts: Mapping[str, Any]) -> tuple[Channels, Channels]:
    """Mean and standard deviation of each channel (images from 0 to 1): of the recipe in a checkpoint's ``facts``, else
    of the card.
    """
    if not facts:
        return _channels(card.mean) or HALVES, _channels(card.std) or HALVES
    recipe = facts.get("recipe")
    claimed = recipe if isinstance(recipe, Mapping) else {}
    std = _channels(claimed.get("std"))
    return _channels(claimed.get("mean")) or HALVES, std if std and min(std) > 0 else HALVES


def _channels(values: Any) -> Channels | None:
    if not isinstance(values, list | tuple) or len(values) != 3 or not all(map(is_number, values)):
        return None
    return float(values[0]), float(values[1]), float(values[2])


def shapes_in_file(path: Path, card: ModelCard, entry: str | None = None) -> dict[str, tuple[int, ...]]:
    """The shapes that a checkpoint claims for the weights of a model, by our names; ``entry`` as in load_checkpoint."""
    from vitbench.models.weights.checkpoints import shapes_for, wanted_of
    from vitbench.models.weights.entries import Wanted

    def wanted() -> Wanted:
        import torch

        from vitbench.models import build_model

        try:
            with torch.device("meta"):
                found = wanted_of(build_model(card.name))
        except Exception:  # a user's own builder may raise anything on meta
            return Wanted(frozenset(), frozenset(_HEADS))
        return Wanted(found.body, found.head | {*_HEADS})

    return shapes_for(path, wanted, entry)


def _has_positions_for(card: ModelCard, size: tuple[int, int], positions: tuple[int, ...]) -> bool:
    """Whether a file has the positions of a model for images of ``size``: building one for an invented size could take
    any amount of memory. True if that cannot be checked.
    """
    if len(positions) < 2 or card.patch <= 1 or max(size) <= max(card.image_size):
        return True
    if card.config.get("positions") == "bicubic":  # one grid for all image sizes
        return True
    patches = (size[0] // card.patch) * (size[1] // card.patch)
    return 0 <= positions[-2] - patches <= _MOST_EXTRA_TOKENS


def _classes_of_other_heads(card: ModelCard, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """The classes of a head with another name: of the weight whose size changes with the classes. None if the model
    cannot be built on meta, or the file has no such weight.
    """
    import torch

    from vitbench.models import build_model

    try:
        with torch.device("meta"):
            own, other = (
                dict(build_model(card.name, num_classes=count).named_parameters())
                for count in (card.num_classes, card.num_classes + 1)
            )
    except Exception:  # a user's own builder may raise anything on meta
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
