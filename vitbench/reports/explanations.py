"""How the numbers of a report were obtained and how to read them: plain text, in one place."""

from __future__ import annotations

from collections.abc import Sequence

from vitbench.core.stats.intervals import BETWEEN_PROCESSES, HOST_DRIFT, RUN_TO_RUN, WITHIN_PROCESS
from vitbench.core.stats.relative import QUIET, QUIET_CELL, QUIET_LOAD
from vitbench.reports.format import NOT_ASKED
from vitbench.reports.model.family import SAME_BUDGET
from vitbench.reports.model.misleading import EQUAL_FLOPS, UNEQUAL_TIMES
from vitbench.reports.model.rows import Row
from vitbench.reports.model.tables import Table

SEARCHES = (
    "The most images that fit into memory at once. `>=1024`: the largest batch that the search tries fits. `OOM@1`: "
    "not even one image fits. `8 (timeout@16)`: 8 fit, and another failure than memory ended the search at 16."
)
SEARCH_ENDS = (
    "Each attempt is a fresh process; all are in `records.jsonl`. `probable_oom`: a crash that does not happen without "
    "the memory limit."
)
ACCURACY = "Accuracy is top-1 on held-out images; its Wilson interval covers the choice of images, not of the seed."
TRAININGS = (
    f"{ACCURACY} Macro F1 averages all classes of the data; one without test images counts 0. Of classes present: "
    "those in labels or predictions, as in scikit-learn. A shortened budget compares trainings at that budget alone."
)
PUBLISHED_TRAININGS = "Published: what the model's source prints for that recipe, in brackets for which other data."
NOISE = (
    "The reference is a fixed piece of work that takes turns with every timed cell. Against itself it should take 1; "
    "whatever it differs by is noise."
)
MEMORY = (
    "Tensors are counted exactly at the peak of a call; temporary results are activations. The system's value adds "
    "workspaces, the allocator's rounding and, on a CPU, the kernel's counting error. Below 0: tensors never written "
    "to, or pages that were there before."
)
CORRELATIONS = (
    "Spearman's rank correlation: 1 if both order the models alike, 0 if one says nothing of the other. For "
    "throughput -1 is perfect. Intervals take these models as a sample of their kind. Activations are outputs of "
    "convolutions, linear layers and matrix products. Peak memory is that of tensors where known, else the system's."
)
UNEQUAL = (
    f"Models with FLOPs within {100 * (EQUAL_FLOPS - 1):.0f} % whose times differ by a factor of over "
    f"{UNEQUAL_TIMES:g}, intervals included: the slower over the faster."
)
UNEQUAL_OPERATORS = (
    "Operators: those whose least times, at the machine's roof, differ most. Explained: how much of the measured "
    "difference all least times explain. Calls: operators dispatched by each."
)
FAMILY = (
    "Sorted by latency. Multiples are of the one with the fewest FLOPs, over the same reference, from two processes "
    "of each on."
)
BUDGETS = (
    "A bigger model at a lower resolution over a smaller one at a higher, with FLOPs within a factor of "
    f"{SAME_BUDGET:g}. Costs less: in peak memory and latency; accuracy is not considered."
)
COUNTERS = (
    "Ours is PyTorch's dispatcher count: matrix products, convolutions and attention. fvcore and thop are "
    "unmaintained and shown for comparison, with multiply-adds doubled."
)
COUNTER_REASONS = {
    "fvcore_fused": "fvcore leaves out fused attention, for which it has no formula",
    "fvcore_other": "fvcore leaves out operators without a formula (`baddbmm`, ...)",
    "fvcore_extra": "fvcore adds LayerNorm (5 per element), BatchNorm, resizing and pooling",
    "thop_modules": "thop counts modules only: not `@`, `F.linear`, `bmm`, einsum, nor bare parameters",
    "thop_extra": "thop adds softmax and norm modules and takes transposed convolutions 4 times",
}
CLAIMS = (
    "A value agrees if the computed one, rounded or cut off to the printed digits, gives it. As multiply-adds: the "
    "source says FLOPs and means those, two FLOPs each. Differences are relative to the published value. Accuracy and "
    "loss take completed runs of the source's recipe: three seeds show where another training would come out. Of "
    "fewer, an accuracy's test interval counts. Latency takes the source's device."
)
#: Words of the columns in Details, and what to know of these.
DETAILS = {
    "p90": "p90 takes 29 samples, p99 takes 299, of all turns.",
    "under load": "Under load: over all turns, where outside the quiet turns' interval or over 10 % away (`same`: "
    "neither).",
    "% of roof": "% of roof: the operators' least time over the measured time. It sums max(FLOPs / compute, bytes / "
    "bandwidth), as attainable here. Bound by: what takes at least half of the measured time: compute, bandwidth or "
    "overhead. Unexplained: kernels below the roof, caches, waiting.",
}
#: What units, brackets and words of the main tables mean.
UNITS = "`b1` is a batch of 1 image. FLOPs are of one image's forward pass; 2 FLOPs are 1 MAC. 1 MB is 10^6 bytes."
METRICS = (
    "Latency is of one batch, without a process's first call and warm-up. Peak memory is of inference. Throughput is "
    "the best of all batches, with its batch behind it."
)
RELATIVE = (
    "`× reference`: the time over that of the reference, a fixed piece of work that takes turns with the cell. Drift "
    "cancels, so it decides the rank; models that share ranks (`2-3`) tie. Pairs are compared at 95 %: one of twenty "
    "equal pairs seems to differ. Ranks can differ where intervals overlap, as these include other runs. Ratios take "
    "the same reference, build of torch, machine and threads."
)
QUIET_TURNS = (
    "From three processes on, times and rates are of quiet turns. There the reference took at most "
    f"{100 * (QUIET - 1):.0f} % and the cell {100 * (QUIET_CELL - 1):.0f} % more than in their fastest. Other programs "
    f"used at most {QUIET_LOAD:g} cores. †: too few quiet turns, and all count. §: the reference was slower throughout "
    "than at other times of the run. Intervals of quiet turns include how runs differ: a standard deviation of "
    f"{100 * RUN_TO_RUN:g} % (`× reference`), of {100 * HOST_DRIFT:g} % or more (ms). Those of fewer processes do "
    "not."
)
BRACKETS = "Brackets are 95 % confidence intervals."
INTERVALS = {
    BETWEEN_PROCESSES: "From three processes on they show how processes differ (t, of logarithms), by the first five "
    "if these decided how many to run.",
    WITHIN_PROCESS: "Of fewer processes they show how well the median is known within them; another process or hour "
    "differs more.",
}
STATUS = f"`{NOT_ASKED}`: not asked for. A word in place of a number is the status."
FILES = "`report.csv` has all batches: one line a row of these tables and batch size."


def details_text(details: Table) -> str:
    """What to know of the columns in Details."""
    names = " ".join(column.name for column in details.columns)
    return " ".join(text for word, text in DETAILS.items() if word in names)


def how_to_read(rows: Sequence[Row]) -> list[str]:
    """What applies of this, one paragraph each."""
    latencies = [row.at_smallest_batch("latency") for row in rows]
    kinds = {found.estimate.kind for found in latencies if found.estimate}
    paired = any(found.relative for found in latencies)
    lines = [UNITS, METRICS, *([RELATIVE, QUIET_TURNS] if paired else [])]
    lines.append(" ".join([BRACKETS, *(text for kind, text in INTERVALS.items() if kind in kinds)]))
    lines += [ACCURACY] if any(row.training for row in rows) else []
    return [*lines, STATUS, FILES]


def order_text(rows: Sequence[Row]) -> str:
    """What the lines of the main tables are sorted by."""
    if any(row.at_smallest_batch("latency").relative for row in rows):
        return "Sorted by latency over that of the reference, then by parameters."
    if any(row.at_smallest_batch("latency").value for row in rows):
        return "Sorted by latency, then by parameters; models whose intervals overlap have no order."
    return "Sorted by parameters."
