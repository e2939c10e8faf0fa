"""Figures, which cost more than the small trainings here, are drawn only where they are looked at."""

from __future__ import annotations

import base64

import pytest

#: A PNG of one pixel.
PIXEL = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg==")


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings draw no figures."""
    from vitbench.experiments.training import session
    from vitbench.reports import evaluation

    monkeypatch.setattr(session, "write_curves", lambda rows, path, title: path.write_bytes(PIXEL))
    monkeypatch.setattr(session, "attention_png", lambda trained, pixels: PIXEL)
    for module, name in ((session, "confusion_png"), (evaluation, "confusion_png"), (evaluation, "reliability_png")):
        monkeypatch.setattr(module, name, lambda result: PIXEL)
