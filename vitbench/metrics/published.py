"""The values that a model's library publishes, kept in the record so that reports need not load that library."""

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
    yields=[Yields(f"published_{quantity}", unit, "condition") for quantity, unit in QUANTITIES.items()],
    summary="parameters, FLOPs and accuracy as the model's library publishes them (torchvision), at its own size",
)
def measure_published(subject: Subject) -> Iterator[Measurement]:
    """The values of the library's metadata, named in ``method``, as printed in ``detail``.

    None for a model without such metadata, or in a cell of another image size or class count.
    """
    for claim in subject.claims:
        if claim.quantity in QUANTITIES:
            name, unit = f"published_{claim.quantity}", QUANTITIES[claim.quantity]
            yield Measurement.single(name, unit, claim.value, claim.source, claim.printed)
