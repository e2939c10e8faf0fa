"""What the tests of trainings ask for, and what they look at."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from vitbench.experiments.training.checkpoint import load_state, save_state
from vitbench.experiments.training.request import LAST, TrainingRequest
from vitbench.training.recipes import load_recipe

MODEL = "vit_basic_tutorial"  # 48 wide, with dropout: what it draws has to be restored, too


def request(**keys: Any) -> TrainingRequest:
    recipe = {
        "images": 300,
        "batch_size": 20,
        "augment": ["crop", "flip"],
        "mixup": 0.4,
        "ema": 0.9,
        "validation": 0.2,
        **keys.pop("recipe", {}),
    }
    base = TrainingRequest(
        model=MODEL,
        data="digits",
        recipe=load_recipe("brief", **recipe).model_dump(mode="json"),
        device="cpu",
        image_size="8",
        train_images=100,
        test_images=50,
        tensorboard=False,
        threads=1,
    )
    return replace(base, **keys)


def weights(folder: Path, name: str = LAST) -> dict[str, torch.Tensor]:
    state = load_state(folder / name)
    assert state is not None
    found: dict[str, torch.Tensor] = state["model"]
    return found


def assert_same_weights(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for key in one:
        assert torch.equal(one[key], other[key]), key


class KilledError(Exception):
    pass


def die_after_saving(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """The end right after a checkpoint; one is saved after every step."""
    from vitbench.experiments.training import checkpoint, session

    saved: list[Path] = []

    def save_and_die(state: dict[str, Any], path: Path) -> None:
        save_state(state, path)
        saved.append(path)
        if len(saved) == times:
            raise KilledError

    monkeypatch.setattr(session, "SAVE_EVERY_S", 0.0)
    monkeypatch.setattr(checkpoint, "save_state", save_and_die)


def without_times(rows: Any) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in ("images_per_s", "duration_s")} for row in rows]


def transfer(**keys: Any) -> TrainingRequest:
    recipe = {"augment": [], "mixup": 0.0, "ema": 0.0, "images": 100, **keys.pop("recipe", {})}
    return request(freeze="backbone", recipe=recipe, **keys)
