"""Model cards: what is known of a model without building it, and which models there are. Loads no torch.

A model is a builder in ``architectures/foo.py`` and a row of ``architectures/foo.toml``. The row alone answers what a
command line needs (does the name exist, is the image size legal), so that a typo fails before torch loads.
"""

from __future__ import annotations

import fnmatch
import functools
import importlib.metadata
import importlib.util
import re
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from vitbench.core.errors import ImageSizeError
from vitbench.core.records import format_image_size
from vitbench.core.registry import Registry

ARCHITECTURES = Path(__file__).parent / "architectures"

#: The prefix of a user's own builder, ``module:package.module:function``.
MODULE = "module:"

#: Stands for a model's published weights.
PRETRAINED = "pretrained"

#: The group of entry points by which other packages offer models.
ENTRY_POINTS = "vitbench.models"

#: Red, green and blue.
Channels = tuple[float, float, float]
#: The mean and standard deviation of cards and recipes that state no other.
HALVES: Channels = (0.5, 0.5, 0.5)

#: How an architecture treats image sizes, see ModelCard.
SizeRule = Literal["divisible", "floors", "fixed", "any"]


#: The quantities that a claim can be about, and their units; CHANGE: relative to another model.
QUANTITIES = {
    "params": "parameter",
    "flops": "FLOP",
    "top1": "1",
    "macro_f1": "1",
    "loss": "nat",
    "latency": "s",
    "training_time": "s",
}
CHANGE = re.compile(r"^(?P<count>params|flops)_change_vs:(?P<other>.+)$")


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A published value: ``quantity`` (``params``, ``flops``, ``top1``, ``latency``, ...) in base units, as it was
    ``printed``, and its source.

    ``params_change_vs:MODEL`` and ``flops_change_vs:MODEL`` are fractions (-0.58). ``low`` and ``high``: the ends of a
    range. ``recipe`` and ``data``: the training behind an accuracy; ``pretrained``: whether it began with the published
    weights; ``device``: where a latency was measured; ``condition``: what else distinguishes claims of one quantity.
    """

    quantity: str
    value: float
    printed: str
    source: str
    low: float | None = None
    high: float | None = None
    recipe: str = ""
    data: str = ""
    pretrained: bool = False
    device: str = ""
    condition: str = ""

    def __post_init__(self) -> None:
        """Raises ValueError for a claim that cannot be judged."""
        change = CHANGE.match(self.quantity)
        if self.quantity not in QUANTITIES and not change:
            raise ValueError(f"claim of {self.quantity!r}: give {', '.join(QUANTITIES)} or params_change_vs:MODEL")
        if not any(sign.isdigit() for sign in self.printed):
            raise ValueError(f"claim of {self.quantity}: printed = {self.printed!r} holds no number")
        if self.value == 0 or (self.low is None) != (self.high is None):
            raise ValueError(f"claim of {self.quantity}: value is 0, or one of low and high is missing")


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What is known of a model without building it (a row of an ``architectures/*.toml``).

    ``builder`` is ``package.module:function``, called with ``image_size=(height, width)``, ``num_classes`` and
    ``config``. ``patch`` is in px. ``size_rule``: ``divisible`` refuses sides that the patch does not divide,
    ``floors`` drops the rest, ``fixed`` takes only ``image_size``, ``any`` leaves the check to the model.
    ``published_weights``: their name, for a builder that takes ``pretrained``; else empty. ``published_classes``: the
    classes of their head. ``mean`` and ``std``: how images are normalised for them, each channel from 0 to 1.
    """

    name: str
    builder: str
    summary: str
    family: str
    source: str
    image_size: tuple[int, int]
    num_classes: int
    patch: int
    size_rule: SizeRule = "divisible"
    min_size: int = 1
    max_size: int | None = None
    published_weights: str = ""
    published_classes: int | None = None
    mean: tuple[float, ...] = HALVES
    std: tuple[float, ...] = HALVES
    config: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    claims: tuple[Claim, ...] = ()

    def check_image_size(self, size: tuple[int, int]) -> None:
        """Raises ImageSizeError unless the architecture takes (height, width) px."""
        shown = f"Image size {format_image_size(size)} does not fit {self.name}"
        own = format_image_size(self.image_size)
        if self.size_rule == "fixed" and size != self.image_size:
            raise ImageSizeError(f"{shown}: its position embedding has a fixed size. Give {own}")
        if self.size_rule == "divisible" and any(side % self.patch for side in size):
            lower = tuple(max(side // self.patch, 1) * self.patch for side in size)
            raise ImageSizeError(
                f"{shown}: its patch of {self.patch} px does not divide it. "
                f"Give multiples of {self.patch}, such as {format_image_size((lower[0], lower[1]))}"
            )
        smallest = max(self.min_size, self.patch)
        if min(size) < smallest:
            raise ImageSizeError(f"{shown}: its sides must be at least {smallest} px")
        if self.max_size is not None and max(size) > self.max_size:
            raise ImageSizeError(f"{shown}: its sides must be at most {self.max_size} px")


def load_model_cards(folder: Path = ARCHITECTURES) -> list[ModelCard]:
    """The cards of every ``*.toml`` in ``folder``.

    A file holds top-level defaults (``builder``, ``family``, ``source``, ...) and one ``[[model]]`` table a model, with
    ``config`` and ``[[model.claim]]`` tables of its own. Raises ValueError for a row that is incomplete.
    """
    cards = []
    for path in sorted(folder.glob("*.toml")):
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        rows = content.pop("model", [])
        for row in rows:
            merged = {**content, **row}
            claims = tuple(Claim(**claim) for claim in merged.pop("claim", []))
            size = merged.pop("image_size")
            pair = (size, size) if isinstance(size, int) else (size[0], size[1])
            config = MappingProxyType({**content.get("config", {}), **row.get("config", {})})
            merged.pop("config", None)
            for key in ("mean", "std"):
                if key in merged:
                    merged[key] = tuple(merged[key])
            try:
                cards.append(ModelCard(**merged, image_size=pair, config=config, claims=claims))
            except TypeError as error:
                raise ValueError(f"{path.name}: model {row.get('name', '?')!r}: {error}") from error
    return cards


@functools.cache
def model_registry() -> Registry[ModelCard]:
    """Every model of ours, then those of installed packages.

    A package offers models by an entry point in the group ``vitbench.models`` that names the (sub)package with its
    ``*.toml`` files. One that cannot be read is left out with a warning.
    """
    models: Registry[ModelCard] = Registry("model", "vitbench list models")
    for card in load_model_cards():
        models.add(card.name, card)
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        try:
            cards = _cards_of_package(point.value)
            taken = [card.name for card in cards if card.name in models]
            if taken or len({card.name for card in cards}) < len(cards):
                raise ValueError(f"model {(taken or [card.name for card in cards])[0]!r} is registered twice")
        except Exception as error:  # the edge: another package's mistake must not stop vitbench
            package = point.dist.name if point.dist else "an unknown package"
            reason = (str(error).splitlines() or [""])[0] or type(error).__name__
            print(f"Warning: models of {package} ({point.value}) left out: {reason}", file=sys.stderr)
            continue
        for card in cards:
            models.add(card.name, card)
    return models


def _cards_of_package(package: str) -> list[ModelCard]:
    """The cards beside a package's modules, found without importing it (its parents only)."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise ImportError(f"there is no package {package}")
    cards = [card for folder in found.submodule_search_locations for card in load_model_cards(Path(folder))]
    if not cards:
        raise ImportError(f"{package} holds no .toml with models")
    return cards


def is_external(name: str) -> bool:
    """Whether ``name`` (``timm:``, ``torchvision:``, ``module:``) is known only once its library has loaded."""
    return name.startswith(("timm:", "torchvision:", MODULE))


def is_imported(name: str) -> bool:
    """Whether ``name`` is a user's own builder, ``module:package.module:function``: code to import."""
    return name.startswith(MODULE)


def is_pattern(name: str) -> bool:
    """Whether ``name`` is a shell pattern (``cifar_*``) rather than a name."""
    return any(sign in name for sign in "*?[")


def find_models(pattern: str) -> list[str]:
    """The names that match ``pattern``: a name, or a shell pattern over our own names (``cifar_*``).

    External names and patterns are returned as they are: only their library can resolve them. Raises UnknownNameError
    if nothing matches.
    """
    models = model_registry()
    if is_external(pattern):
        return [pattern]
    if is_pattern(pattern):
        found = [name for name in models if fnmatch.fnmatchcase(name, pattern)]
        if found:
            return found
    return [models.get(pattern).name]
