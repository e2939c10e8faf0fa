"""How the numbers of a report were obtained and how to read them, in one place."""

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
    "The number of images in the largest batch that fits into memory, exact to one image. Each search begins at a "
    "batch that was predicted, or doubles from 1, then bisects; each attempt runs in a fresh process. `>=1024`: the "
    "largest batch that the search allows still fits. `OOM@1`: not even one image fits. `8 (timeout@16)`: a failure "
    "other than memory ended the search at 16, and 8 fits. A crash, or an error without an explanation, is attributed "
    "to a memory limit (`probable_oom`) if the same batch works without the limit. Every attempt is in `records.jsonl` "
    "and `report.csv`."
)
TRAININGS = (
    "One line a training, in the order of the suite. Accuracy is top-1 on held-out images with its Wilson 95 % "
    "interval, which covers the choice of images, not of the seed. Macro F1 is the mean of F1 over all classes "
    "of the data: a class without test images counts 0 (*of classes present*: the mean over those in labels or "
    "predictions, scikit-learn's default). A shortened training (*budget*) shows how trainings differ after that many "
    "images, no more."
)
PUBLISHED_TRAININGS = (
    " *Published* is what the model's source prints for that recipe, with its data in brackets where it is other data. "
    "The section on published values judges it, by trainings with the recipe's own budget on all training images."
)
NOISE = (
    "A fixed piece of work, the reference, took turns with every timed cell. Now and then a fresh process of it took "
    "turns with it as a cell does: whatever the two differ by is noise."
)
MEMORY = (
    "Tensors are added up exactly, operator by operator, at the peak of a call. Weights to activations are what they "
    "are at that moment; temporary results count as activations. The system's value is the peak of the main table. "
    "Beyond tensors it holds workspace of kernels and libraries, rounding by the allocator and, on a CPU, the error of "
    "the kernel's own count. Below 0: tensors that were never written to, or pages that were there before."
)
CORRELATIONS = (
    "Spearman's rank correlation between what models have and what they cost: 1 if both order the models alike, 0 if "
    "one says nothing of the other. A throughput falls as costs rise, so that -1 is its perfect order. Brackets are "
    "95 % intervals that take these models as a sample of others of their kind: with few models they are wide. "
    "Activations are the elements that convolutions, linear layers and matrix products output. Peak memory is that of "
    "tensors, counted or predicted, where a run has it, else what the system saw."
)
UNEQUAL = (
    f"Two models of equal FLOPs (within {100 * (EQUAL_FLOPS - 1):.0f} %) whose times differ by a factor of over "
    f"{UNEQUAL_TIMES:g}: the whole interval lies above it. Each column has the slower one over the faster one."
)
UNEQUAL_OPERATORS = (
    "*Operators*: those whose least times (at the machine's roof, for a batch) differ most. *Explained*: the share of "
    "the measured difference that all least times explain; the rest is overhead, waiting, and kernels below the roof. "
    "*Calls*: how many operators each of the two dispatches."
)
FAMILY = (
    "The same models at several image sizes, by latency. Its multiple (×) is of that of the one with the fewest FLOPs, "
    "by times over the same reference, which takes two processes of each."
)
BUDGETS = (
    "A bigger model at a lower resolution over a smaller one at a higher, where the FLOPs of one are at most "
    f"{SAME_BUDGET:g} times those of the other. *Costs less*: in peak memory and latency. Which one is more accurate, "
    "these values do not say."
)
COUNTERS = (
    "Our count is PyTorch's dispatcher count on meta tensors: matrix products, convolutions and attention. fvcore and "
    "thop are unmaintained and shown for comparison only; their multiply-adds are doubled here. The known reasons for "
    "a difference are numbered below."
)
COUNTER_REASONS = {
    "fvcore_fused": "fvcore has no formula for fused attention and leaves it out",
    "fvcore_other": "fvcore leaves out operators that it has no formula for (`baddbmm`, ...)",
    "fvcore_extra": "fvcore adds LayerNorm (5 per element), BatchNorm, resizing and pooling",
    "thop_modules": "thop counts modules only: not `@`, `F.linear`, `bmm`, einsum, nor bare parameters",
    "thop_extra": "thop adds softmax and norm modules and takes transposed convolutions 4 times",
}
CLAIMS = (
    "A value agrees if the computed one, rounded or cut off to the printed digits, gives it. A multiply-add is two "
    "FLOPs; *agrees as multiply-adds*: the source says FLOPs and means multiply-adds. The difference is relative to "
    "the published value. Accuracies and losses are judged only by completed runs of the source's own recipe: by "
    "where one more training would come out, which takes runs of three seeds. An accuracy of fewer seeds is judged "
    "by the interval of its test images. Latencies are judged only by a run on the source's device."
)
#: Words of the columns in Details, and what to know of these.
_DETAILS = {
    "p90": "p90 and p99 are given from 29 and 299 samples on, of all turns.",
    "under load": "Under load: the time over all turns, whatever else ran, where it is outside the interval of quiet "
    "turns or differs by more than 10 % (`same`: neither).",
    "first": "The first call of a process is not part of its other values.",
    "% of roof": "% of roof is the time that the operators take at least, over the measured time: the sum of "
    "max(FLOPs / attainable compute, bytes / attainable bandwidth), with compute and bandwidth as measured here. Its "
    "interval is that of the measured time. *Bound by* is what takes at least half of the measured time: compute or "
    "bandwidth at the roof, or overhead, the time to dispatch the operators. Otherwise the time is unexplained: "
    "kernels below the roof, caches, waiting.",
}

_RELATIVE = (
    "`× reference` is the time over that of the reference, a fixed piece of work that took turns with the cell. It "
    "survives the drift of a machine's speed better than times in ms, so it decides the `rank`. Models that share "
    "ranks (`2-3`) tie: this run does not distinguish them. Each pair is compared at 95 %, so that of many equal pairs "
    "one in twenty seems to differ. Ranks can differ although intervals overlap: these include other runs, too. "
)
_QUIET = (
    "Times and rates are those of quiet turns, from three processes on: the reference took at most "
    f"{100 * (QUIET - 1):.0f} % more than in its fastest turns, the cell at most {100 * (QUIET_CELL - 1):.0f} % more "
    f"than in its own, and other programs used at most {QUIET_LOAD:g} cores. Where too few processes had such turns, "
    "all turns count (†). Where the reference was slower throughout than at other times of the run, times in ms and "
    "rates say so (§). Intervals of quiet turns include how runs differ (a standard deviation of "
    f"{100 * RUN_TO_RUN:g} % for `× reference`, of {100 * HOST_DRIFT:g} % or more for ms); those of fewer processes do "
    "not. Only ratios of the same "
    "reference, build of torch, machine and number of threads are comparable."
)
_KINDS = {
    BETWEEN_PROCESSES: "A time from three or more fresh processes has an interval (t, of logarithms) that shows how "
    "processes differ; where the first five decided how many there would be, it takes their spread.",
    WITHIN_PROCESS: "The interval of a time from fewer processes shows how well its median is known within them. It "
    "understates how much another process, or another hour, would differ.",
}


def details_text(details: Table) -> str:
    """What to know of the columns in Details."""
    names = " ".join(column.name for column in details.columns)
    return " ".join(text for word, text in _DETAILS.items() if word in names)


def how_to_read(rows: Sequence[Row]) -> list[str]:
    """What units, brackets and words of the main tables mean."""
    latencies = [row.at_smallest_batch("latency") for row in rows]
    kinds = {found.estimate.kind for found in latencies if found.estimate}
    intervals = [text for kind, text in _KINDS.items() if kind in kinds]
    paired = any(found.relative for found in latencies)
    lines = [
        f"Sorted by latency{' over that of the reference' if paired else ''}, then by parameters."
        + ("" if paired else " The order does not distinguish models whose intervals overlap."),
        "`b1` is a batch of 1 image. FLOPs are those of one image's forward pass; a multiply-add is 2 FLOPs and 1 MAC. "
        "1 MB is 10^6 bytes.",
        "Latency is the time of one batch in a steady process: its first call and its warm-up do not count. Peak "
        "memory is that of inference. Throughput is the best of all batches, with its batch behind it.",
        *([_RELATIVE + _QUIET] if paired else []),
        " ".join(["Brackets are 95 % confidence intervals.", *intervals]),
    ]
    tests = [row.training.cell for row in rows if row.training]
    if tests:
        how = "after the training named above" if all(cell.trains for cell in tests) else "with the weights named above"
        lines.append(f"Accuracy is top-1 on held-out images {how}, with its Wilson interval.")
    lines.append(f"`{NOT_ASKED}`: not asked for. A word in place of a number is the status; see Failures.")
    lines.append("`report.csv` beside this page has all batches: one line a row of these tables and batch size.")
    return lines
