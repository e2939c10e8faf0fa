"""FLOPs as fvcore and thop count them, operator by operator, for comparison: both are unmaintained."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vitbench.core.errors import Unsupported

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class OtherCount:
    """``by_operator``: FLOPs (multiply-adds doubled) of each operator (fvcore) or module class (thop).

    ``missed``: calls of operators without a formula; None from thop, which does not report them.
    """

    tool: str
    by_operator: Mapping[str, int]
    missed: Mapping[str, int] | None = None

    @property
    def total(self) -> int:
        """FLOPs of all operators."""
        return sum(self.by_operator.values())


def count_by_fvcore(model: torch.nn.Module, images: torch.Tensor) -> OtherCount:
    """Traces a real run: ``model`` in eval mode, ``images`` on the CPU. Raises Unsupported for any failure."""
    try:
        with _quiet():
            from fvcore.nn import FlopCountAnalysis  # its import warns, too

            analysis = FlopCountAnalysis(model, images).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
            found = {name: 2 * int(count) for name, count in analysis.by_operator().items()}
            missed = dict(analysis.unsupported_ops())
    except Exception as error:  # an unmaintained tool may fail in any way
        raise _broken("fvcore", error) from error
    return OtherCount(tool=f"fvcore {importlib.metadata.version('fvcore')}", by_operator=found, missed=missed)


def count_by_thop(model: torch.nn.Module, images: torch.Tensor) -> OtherCount:
    """Hooks modules in a real run: ``model`` in eval mode, ``images`` on the CPU. Raises Unsupported like fvcore's."""
    try:
        import thop

        with _quiet():
            total, _, layers = thop.profile(model, inputs=(images,), verbose=False, ret_layer_info=True)
            found: dict[str, int] = {}
            _add_modules(model, layers, found)
    except Exception as error:  # as above
        raise _broken("thop", error) from error
    rest = 2 * round(total) - sum(found.values())
    if rest:
        found["modules with children"] = rest
    return OtherCount(tool=f"thop {importlib.metadata.version('thop')}", by_operator=found)


def times_counted_by_thop(model: torch.nn.Module) -> Counter[torch.nn.Module]:
    """How many times thop counts the work of each module: p * p times with p paths from the model.

    A path is a chain of parents; a module with two names in one parent is on one. ``profile`` (thop 0.1.1) hooks a
    module once for each path (``Module.apply``), so each call counts p times, and ``dfs_count`` adds that up once for
    each path. The latter does not look below modules that it has a rule for, except ``nn.Sequential``.
    """
    from thop.profile import register_hooks
    from torch import nn

    hooks, sums = Counter[nn.Module](), Counter[nn.Module]()

    def visit(module: nn.Module, adds: int) -> None:
        hooks[module] += 1
        sums[module] += adds
        ends = type(module) in register_hooks and not isinstance(module, nn.Sequential)
        for child in module.children():
            visit(child, 0 if ends else adds)

    visit(model, 1)
    return Counter({module: count * sums[module] for module, count in hooks.items()})


def _add_modules(module: Any, layers: Mapping[str, Any], found: dict[str, int]) -> None:
    for name, (macs, _, inner) in layers.items():
        child = getattr(module, name)
        if inner:
            _add_modules(child, inner, found)
        elif macs:
            kind = type(child).__name__
            found[kind] = found.get(kind, 0) + 2 * round(macs)


def _broken(tool: str, error: Exception) -> Unsupported:
    return Unsupported(f"{tool} breaks on this model: {type(error).__name__}: {error}".splitlines()[0])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)
