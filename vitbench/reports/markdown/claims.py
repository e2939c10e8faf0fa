"""Judged claims as a page and as files: what was published, what is computed here, and whether the two agree."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from vitbench.analysis.claims import Judgement, to_dict
from vitbench.reports.files import write_files
from vitbench.reports.markdown.explanations import CLAIMS
from vitbench.reports.markdown.tables import table_text
from vitbench.reports.model.claims import claims_table


def count_verdicts(judgements: Sequence[Judgement]) -> str:
    """``3 agree, 2 contradicted, ...`` in a fixed order."""
    counts = Counter(one.verdict for one in judgements)
    order = ("agrees", "agrees as multiply-adds", "contradicted", "not checkable here")
    return ", ".join(f"{counts[verdict]} {verdict}" for verdict in order if counts[verdict])  # type: ignore[index]


def claims_text(judgements: Sequence[Judgement]) -> str:
    """One line a claim; empty without claims."""
    shown = claims_table(judgements)
    return table_text(shown) if shown else ""


def claims_page(judgements: Sequence[Judgement]) -> str:
    """The page that stands alone: what was judged, how to read it, the table."""
    parts = [
        "# Published values against computed ones",
        f"{len(judgements)} claims: {count_verdicts(judgements)}.",
        CLAIMS,
        claims_text(judgements) or "Nothing was published of these models.",
    ]
    return "\n\n".join(parts) + "\n"


def write_claims(judgements: Sequence[Judgement], folder: Path) -> list[Path]:
    """``claims.json`` and ``claims.md``; returns their paths. Raises as ``write_files`` does."""
    content = json.dumps([to_dict(one) for one in judgements], indent=2, ensure_ascii=False) + "\n"
    return write_files(folder, {"claims.json": content.encode(), "claims.md": claims_page(judgements).encode()})
