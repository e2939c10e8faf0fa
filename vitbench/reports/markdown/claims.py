"""Judged claims as a Markdown table: what was published, what is computed here, and whether the two agree."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from vitbench.analysis.claims import Judgement, to_dict
from vitbench.core.errors import RunFolderError
from vitbench.core.run_folder import write_atomically
from vitbench.models.cards import CHANGE
from vitbench.reports.format import NOT_ASKED, cell_text, number, percent, table

HOW_TO_READ = (
    "A figure agrees if what is computed, rounded or cut off to the digits that were printed, gives it. FLOPs are "
    "FLOPs here, a multiply-add is two; *agrees as multiply-adds*: the source says FLOPs and means multiply-adds. The "
    "difference is relative to the published figure. Accuracies and losses are judged only by completed runs of the "
    "source's own recipe: by where one more training would come out, which takes runs of three seeds, or, an accuracy "
    "of fewer seeds, by the interval of its test pictures. Latencies are judged only by a run on the source's device."
)
_TEXTS = ("model", "quantity", "published", "verdict", "how, or why not", "source")


def claims_table(judgements: Sequence[Judgement]) -> str:
    """One line a claim; ``difference`` is relative to what was published. An empty text without claims."""
    if not judgements:
        return ""
    headings = ["model", "quantity", "published", "computed", "difference (%)", "verdict", "how, or why not", "source"]
    return table(headings, [_line(one) for one in judgements], _TEXTS)


def count_verdicts(judgements: Sequence[Judgement]) -> str:
    """``3 agree, 2 contradicted, ...`` in a fixed order."""
    counts = Counter(one.verdict for one in judgements)
    order = ("agrees", "agrees as multiply-adds", "contradicted", "not checkable here")
    return ", ".join(f"{counts[verdict]} {verdict}" for verdict in order if counts[verdict])  # type: ignore[index]


def quantity_text(judgement: Judgement) -> str:
    """``FLOPs``, ``params against cifar_vit_base``, ``top-1 (imbalanced, baseline)``."""
    quantity, condition = judgement.claim.quantity, judgement.claim.condition
    change = CHANGE.match(quantity)
    if change:
        text = f"{_NAMES[change['count']]} against {change['other']}"
    else:
        text = _NAMES.get(quantity, quantity.replace("_", " "))
    return f"{text} ({condition})" if condition else text


def computed_text(judgement: Judgement) -> str:
    """The computed figure with its unit, scaled like the published one."""
    value, quantity = judgement.computed, judgement.claim.quantity
    if value is None:
        return NOT_ASKED
    if quantity == "params":
        return f"{number(value / 1e6, 4)} M" if value >= 1e5 else f"{round(value):,}"
    if quantity == "flops":
        return f"{number(value / 1e9)} {'GMACs' if judgement.verdict == 'agrees as multiply-adds' else 'GFLOPs'}"
    if quantity == "latency":
        return f"{number(value * 1e3)} ms"
    if quantity == "top1":
        return f"{100 * value:.1f} %"
    if CHANGE.match(quantity):
        return f"{percent(value)} %"
    return number(value, 4)


_NAMES = {"params": "parameters", "flops": "FLOPs", "top1": "top-1", "macro_f1": "macro F1"}


def _line(one: Judgement) -> list[str]:
    if one.difference is None:
        difference = NOT_ASKED
    elif CHANGE.match(one.claim.quantity):
        difference = f"{percent(one.difference)} points"
    else:
        difference = percent(one.difference)
    return [
        cell_text(one.model),
        cell_text(quantity_text(one)),
        cell_text(one.claim.printed),
        computed_text(one),
        difference,
        one.verdict,
        cell_text(one.reason),
        cell_text(one.claim.source),
    ]


def claims_page(judgements: Sequence[Judgement]) -> str:
    """The page that stands alone: what was judged, how to read it, the table."""
    parts = [
        "# Published figures against what is computed",
        f"{len(judgements)} claims: {count_verdicts(judgements)}.",
        HOW_TO_READ,
        claims_table(judgements) or "These models have no published figures.",
    ]
    return "\n\n".join(parts) + "\n"


def write_claims(judgements: Sequence[Judgement], folder: Path) -> list[Path]:
    """``claims.md`` and ``claims.json``, each replaced in one step. Raises RunFolderError if ``folder`` cannot be made,
    StorageError if the disk does not take a file.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFolderError(
            f"Cannot write into {folder}: {error.strerror}. Choose another folder with --out"
        ) from error
    content = json.dumps([to_dict(one) for one in judgements], indent=2, ensure_ascii=False) + "\n"
    files = {folder / "claims.json": content, folder / "claims.md": claims_page(judgements)}
    for path, text in files.items():
        write_atomically(path, text.encode("utf-8"))
    return list(files)
