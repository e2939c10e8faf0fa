"""Judged claims as a page that stands alone, and its files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from vitbench.analysis.claims import Judgement, to_dict
from vitbench.reports.explanations import CLAIMS
from vitbench.reports.files import write_files
from vitbench.reports.markdown.tables import paragraph_text, table_text
from vitbench.reports.model.claims import claims_table, count_verdicts


def claims_page(judgements: Sequence[Judgement]) -> str:
    """The page that stands alone: what was judged, how to read it, the table."""
    parts = [
        "# Published values against computed ones",
        f"{len(judgements)} claims: {count_verdicts(judgements)}.",
        paragraph_text(CLAIMS),
        table_text(claims_table(judgements)) if judgements else "Nothing was published of these models.",
    ]
    return "\n\n".join(parts) + "\n"


def write_claims(judgements: Sequence[Judgement], folder: Path) -> list[Path]:
    """``claims.json`` and ``claims.md``; returns their paths. Raises as ``write_files`` does."""
    content = json.dumps([to_dict(one) for one in judgements], indent=2, ensure_ascii=False) + "\n"
    return write_files(folder, {"claims.json": content.encode(), "claims.md": claims_page(judgements).encode()})
