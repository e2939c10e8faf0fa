"""What the model's library publishes of it: kept in the record, so that a report can judge it without that library."""

from __future__ import annotations

from collections.abc import Iterator

from vitbench.core.records import Measurement
from vitbench.core.registry import METRICS, Yields
from vitbench.metrics.support.subject import Subject

#: The quantities of Claim that libraries publish, and their units.
QUANTITIES = {"params": "parameter", "flops": "FLOP", "top1": "1"}


@METRICS.measured(
    "published",
    process="static",
    modes=("infer", "train"),
    yields=[Yields(f"published_{quantity}", unit, kind="condition") for quantity, unit in QUANTITIES.items()],
    summary="parameters, FLOPs and accuracy as the model's library publishes them (torchvision), at its own size",
)
def measure_published(subject: Subject) -> Iterator[Measurement]:
    """Nothing is measured here: values from the library's metadata, which is the ``method``; ``detail`` is as printed.

    None for a model that publishes nothing, or in a cell of another size or class count than it publishes for.
    """
    for claim in subject.claims:
        if claim.quantity in QUANTITIES:
            name, unit = f"published_{claim.quantity}", QUANTITIES[claim.quantity]
            yield Measurement.single(name, unit, claim.value, claim.source, claim.printed)
