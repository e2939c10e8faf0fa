"""Names to things: models, metrics and devices, all without importing torch.

A model is a builder in ``models/foo.py`` and a row in ``models/foo.toml`` beside it. The row alone answers what a
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
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Generic, Literal, TypeVar

from vitbench.core.errors import ImageSizeError, UnknownNameError
from vitbench.core.records import format_image_size

T = TypeVar("T")

MODELS_DIR = Path(__file__).parents[1] / "models" / "architectures"

#: What the name of a builder of one's own begins with.
MODULE = "module:"

#: What stands for a model's published weights.
PRETRAINED = "pretrained"

#: The group of entry points by which other packages offer models.
ENTRY_POINTS = "vitbench.models"

#: How an architecture treats a side that its patch does not divide, or another size than its own.
SizeRule = Literal["divisible", "floors", "fixed", "any"]


class Registry(Generic[T]):
    """An ordered mapping of names to things of one kind, whose look-up failures help.

    ``package``: importing it registers the things; that happens on the first look-up.
    """

    def __init__(self, kind: str, see: str, package: str | None = None) -> None:
        self.kind = kind
        self.see = see
        self._package = package
        self._items: dict[str, T] = {}

    def _load(self) -> None:
        if self._package is not None:
            package, self._package = self._package, None
            importlib.import_module(package)

    def add(self, name: str, item: T) -> T:
        """Register ``item``. Raises ValueError if the name is taken."""
        if name in self._items:
            raise ValueError(f"{self.kind} {name!r} is registered twice")
        self._items[name] = item
        return item

    def register(self, name: str) -> Callable[[T], T]:
        """``add`` as a decorator."""
        return lambda item: self.add(name, item)

    def get(self, name: str) -> T:
        """The thing of that name. Raises UnknownNameError, with the closest name."""
        self._load()
        try:
            return self._items[name]
        except KeyError:
            raise UnknownNameError(self.kind, name, self._items, self.see) from None

    def __contains__(self, name: object) -> bool:
        self._load()
        return name in self._items

    def __iter__(self) -> Iterator[str]:
        self._load()
        return iter(self._items)

    def __len__(self) -> int:
        self._load()
        return len(self._items)

    def items(self) -> list[tuple[str, T]]:
        """(name, thing) in the order of registration."""
        self._load()
        return list(self._items.items())


#: What a claim can be of, and its unit; and changes against another model.
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
    """A published figure: ``quantity`` (``params``, ``flops``, ``top1``, ``latency``, ...) in base units, as it was
    ``printed``, and where it stands.

    ``params_change_vs:MODEL`` and ``flops_change_vs:MODEL`` are fractions (-0.58). ``low`` and ``high``: the ends of a
    range. ``recipe`` and ``data``: the training that an accuracy is for; ``pretrained``: whether that began with the
    published weights; ``device``: where a latency was taken; ``condition``: what else sets it apart from other claims
    of the same quantity.
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
        """Raises ValueError for a claim that cannot be judged: a report must not fall over it."""
        change = CHANGE.match(self.quantity)
        if self.quantity not in QUANTITIES and not change:
            raise ValueError(f"claim of {self.quantity!r}: give {', '.join(QUANTITIES)} or params_change_vs:MODEL")
        if not any(sign.isdigit() for sign in self.printed):
            raise ValueError(f"claim of {self.quantity}: printed = {self.printed!r} holds no number")
        if self.value == 0 or (self.low is None) != (self.high is None):
            raise ValueError(f"claim of {self.quantity}: value is 0, or one of low and high is missing")


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What is known of a model without building it (a row of a ``models/*.toml``).

    ``builder`` is ``package.module:function``, called with ``image_size=(height, width)``, ``num_classes`` and
    ``config``. ``patch`` is in px. ``size_rule``: ``divisible`` refuses sides that the patch does not divide,
    ``floors`` drops the rest, ``fixed`` takes only ``image_size``, ``any`` leaves the check to the model.
    ``published_weights``: their name, for a builder that takes ``pretrained``; empty for any other.
    ``published_classes``: those of their head. ``mean`` and ``std``: of each channel, from 0 to 1, by which a picture
    is normalised for them.
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
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
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
            raise ImageSizeError(f"{shown}: the smallest side that it takes is {smallest} px")
        if self.max_size is not None and max(size) > self.max_size:
            raise ImageSizeError(f"{shown}: the largest side that it takes is {self.max_size} px")


MODELS: Registry[ModelCard] = Registry("model", "vitbench list models")


#: How a gate judges a value:
#:
#: ``exact``      a count or a word: the same on every machine
#: ``torch``      exact, but it counts what PyTorch does: compared under one minor version of PyTorch
#: ``tool``       exact, but counted by another library, whose versions differ
#: ``measured``   repeats within a few per cent on one machine: compared with a tolerance, there only
#: ``time``       seconds: shown, and judged only relative to the reference, as ``relative_NAME``
#: ``relative``   a time over the reference's, of several processes: tested, on one machine only
#: ``fraction``   right answers among test images: tested if it gates
#: ``shown``      differs between runs of the same code by more than a gate can allow, or by an unknown amount
#: ``condition``  describes what was measured and where; never compared
#: ``unknown``    undeclared: compared only where a threshold names it
Kind = Literal["exact", "torch", "tool", "measured", "time", "relative", "fraction", "shown", "condition", "unknown"]


@dataclass(frozen=True, kw_only=True)
class Column:
    """A value's column in a report: its heading, the unit that it is shown in, and the factor from the base unit.

    ``training_heading``: for the value of a training step, where that differs. ``main``: whether the column belongs to
    the first table rather than to the details.
    """

    heading: str
    unit: str = ""
    scale: float = 1.0
    training_heading: str = ""
    main: bool = False


@dataclass(frozen=True)
class Yields:
    """One value that a metric yields, in a base unit, and what gates and reports do with it.

    ``better``: the direction of an improvement; without one, any change of an ``unknown`` value is worse to a gate.
    ``gates``: whether it counts for the exit code by default. ``tolerance``: by how much it may get worse until then
    (0.05 is 5 %; of a ``fraction`` 5 points). ``mode``: the only mode of cells that has it. ``optional``: only some
    devices have it, and its absence is not reported. ``column``: its column in reports.
    """

    name: str
    unit: str
    _: KW_ONLY
    kind: Kind = "unknown"
    better: Literal["less", "more"] | None = None
    gates: bool = False
    tolerance: float = 0.0
    mode: Literal["infer", "train"] | None = None
    optional: bool = False
    column: Column | None = None


#: The processes of a cell: ``static`` (on meta, no weights allocated, shared by cells), ``counters`` (one small real
#: run on the CPU), ``memory`` and ``time`` (apart, because the allocator settings that make memory repeatable slow
#: inference), ``energy`` (alone, for some seconds), ``training`` (trains and tests).
Process = Literal["static", "counters", "memory", "time", "energy", "training"]
Measure = Callable[[Any], Iterator[Any]]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric: the process of a cell that measures it, the modes of the cells that it applies to, its values.

    ``by_default``: whether a suite that names no metrics measures it.
    """

    name: str
    process: Process
    modes: tuple[str, ...]
    yields: tuple[Yields, ...]
    summary: str
    measure: Measure
    by_default: bool = True

    def yields_in(self, mode: str) -> dict[str, str]:
        """The measurements (name to unit) that every cell of that mode has, or reports as absent."""
        return {one.name: one.unit for one in self.yields if not one.optional and one.mode in (None, mode)}


class MetricRegistry(Registry[Metric]):
    """METRICS: ``@METRICS.measured("latency", process="time", ...)`` on a generator of Measurements."""

    def __init__(self, kind: str, see: str, package: str) -> None:
        super().__init__(kind, see, package)
        self._values: dict[str, Yields] = {}

    def measured(
        self,
        name: str,
        *,
        process: Process,
        modes: tuple[str, ...],
        yields: Iterable[Yields],
        summary: str,
        by_default: bool = True,
    ) -> Callable[[Measure], Measure]:
        """Register the decorated generator as metric ``name``; see ``Metric``. Raises ValueError for a taken name."""

        def decorate(measure: Measure) -> Measure:
            metric = Metric(
                name=name,
                process=process,
                modes=modes,
                yields=tuple(yields),
                summary=summary,
                measure=measure,
                by_default=by_default,
            )
            for value in metric.yields:
                if value.name in self._values:
                    raise ValueError(f"two metrics yield {value.name!r}")
                self._values[value.name] = value
            self.add(name, metric)
            return measure

        return decorate

    @property
    def values(self) -> Mapping[str, Yields]:
        """What the metrics yield, by name."""
        self._load()
        return self._values


METRICS = MetricRegistry("metric", "vitbench list metrics", "vitbench.metrics")
DEVICES: Registry[Any] = Registry("device", "vitbench list devices", "vitbench.devices")


def load_model_cards(folder: Path = MODELS_DIR) -> list[ModelCard]:
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
    """MODELS, filled on first use: from the packaged ``models/*.toml``, then from those of installed packages.

    A package offers models by an entry point in the group ``vitbench.models`` that names the (sub)package beside whose
    modules its ``*.toml`` files are. One that cannot be read is warned of and left out: it must not take vitbench
    along.
    """
    for card in load_model_cards():
        MODELS.add(card.name, card)
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        try:
            cards = _cards_of_package(point.value)
            taken = [card.name for card in cards if card.name in MODELS]
            if taken or len({card.name for card in cards}) < len(cards):
                raise ValueError(f"model {(taken or [card.name for card in cards])[0]!r} is registered twice")
        except Exception as error:  # the edge: whatever is wrong with it, it is theirs
            package = point.dist.name if point.dist else "an unknown package"
            reason = (str(error).splitlines() or [""])[0] or type(error).__name__
            print(f"Warning: models of {package} ({point.value}) left out: {reason}", file=sys.stderr)
            continue
        for card in cards:
            MODELS.add(card.name, card)
    return MODELS


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
    """Whether ``name`` is a builder of one's own, ``module:package.module:function``, which is code to import."""
    return name.startswith(MODULE)


def is_pattern(name: str) -> bool:
    """Whether ``name`` is a shell pattern (``cifar_*``) rather than a name."""
    return any(sign in name for sign in "*?[")


def find_models(pattern: str) -> list[str]:
    """The names that ``pattern`` means: a name, or a shell pattern over our own names (``cifar_*``).

    External names and patterns pass as they are: only their library knows what they mean. Raises UnknownNameError if
    nothing matches.
    """
    models = model_registry()
    if is_external(pattern):
        return [pattern]
    if is_pattern(pattern):
        found = [name for name in models if fnmatch.fnmatchcase(name, pattern)]
        if found:
            return found
    return [models.get(pattern).name]
