"""What is committed under results/ and said in docs/ is what the code computes now."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from vitbench.analysis.claims import to_dict
from vitbench.analysis.model_summary import judge_models
from vitbench.models.cards import model_registry

ROOT = Path(__file__).parents[2]
COMMITTED = json.loads((ROOT / "results" / "claims" / "claims.json").read_text())


@pytest.mark.integration
def test_committed_claims_of_our_models_are_what_is_computed_now() -> None:
    ours = [one for one in COMMITTED if one["model"] in model_registry()]
    computed = [to_dict(one) for one in judge_models(list(model_registry()))]
    assert ours == json.loads(json.dumps(computed))


def test_committed_claims_hold_torchvisions_vits() -> None:
    theirs = {one["model"] for one in COMMITTED if one["model"] not in model_registry()}
    assert "torchvision:vit_b_16" in theirs
    assert all(name.startswith("torchvision:") for name in theirs)
    assert len(theirs) == 12


def test_docs_say_how_many_claims_hold() -> None:
    verdicts = Counter(one["verdict"] for one in COMMITTED)
    text = " ".join((ROOT / "docs" / "claims.md").read_text().split())
    assert (
        f"Of {len(COMMITTED)} values, {verdicts['agrees']} agree, {verdicts['agrees as multiply-adds']} agree as "
        f"multiply-adds, {verdicts['contradicted']} are contradicted and {verdicts['not checkable here']} cannot be"
    ) in text
    readme = (ROOT / "README.md").read_text()
    assert f"{len(COMMITTED)} published values" in readme
    assert f"counting contradicts {verdicts['contradicted']}" in readme
