"""Registries of metrics and devices by name, and what a metric declares; loads no torch."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, Generic, Literal, TypeVar

from vitbench.core.errors import UnknownNameError

T = TypeVar("T")


class Registry(Generic[T]):
    """Things of one kind by name, in the order of registration.

    ``see``: the command that lists them, for errors. ``package``: importing it registers the things; that happens on
    the first look-up.
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

    def items(self) -> list[tuple[str, T]]:
        """(name, thing) in the order of registration."""
        self._load()
        return list(self._items.items())


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


@dataclass(frozen=True)
class Column:
    """A value's column in a report: its heading, the unit that it is shown in, and the factor from the base unit.

    ``training_heading``: for the value of a training step, where that differs. ``main``: whether the column belongs to
    the first table rather than to the details.
    """

    heading: str
    unit: str = ""
    scale: float = 1.0
    _: KW_ONLY
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
    kind: Kind = "unknown"
    better: Literal["less", "more"] | None = None
    _: KW_ONLY
    gates: bool = False
    tolerance: float = 0.0
    mode: Literal["infer", "train"] | None = None
    optional: bool = False
    column: Column | None = None


#: The processes of a cell: ``static`` (on meta, no weights allocated, shared by cells), ``prediction`` (on fake
#: tensors, one for all cells), ``counters`` (one small real run on the CPU), ``memory`` and ``time`` (apart, because
#: the allocator settings that make memory repeatable slow inference), ``energy`` (alone, for some seconds),
#: ``training`` (trains and tests).
Process = Literal["static", "prediction", "counters", "memory", "time", "energy", "training"]
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
                if self._values.get(value.name, value) != value:  # several may yield one value, such as first_call
                    raise ValueError(f"two metrics yield different {value.name!r}")
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
