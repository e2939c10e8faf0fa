"""Checkpoints: what is saved comes back, and a failed write leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from vitbench.errors import DataError, StorageError
from vitbench.models import build_model
from vitbench.models.checkpoints import read_checkpoint, rename_torchvision_vit, save_checkpoint


def test_a_saved_checkpoint_comes_back_with_its_facts(tmp_path: Path) -> None:
    model = build_model("vit_layer6_32")
    path = tmp_path / "checkpoints" / "abc.safetensors"
    save_checkpoint(model, path, {"model": "vit_layer6_32", "image_size": [32, 32], "classes": ["null", "eins"]})
    state, facts = read_checkpoint(path)
    assert facts == {"model": "vit_layer6_32", "image_size": [32, 32], "classes": ["null", "eins"]}
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert [one.name for one in path.parent.iterdir()] == ["abc.safetensors"]


def test_tensors_that_share_memory_are_saved(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    save_checkpoint(model, tmp_path / "tied.safetensors", {})
    state, _ = read_checkpoint(tmp_path / "tied.safetensors")
    assert torch.equal(state["0.weight"], state["1.weight"])


def test_a_write_that_fails_is_one_error_and_leaves_no_part(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(StorageError, match="taken"):
        save_checkpoint(nn.Linear(2, 2), tmp_path / "taken", {})
    assert [one.name for one in tmp_path.iterdir()] == ["taken"]


@pytest.mark.parametrize("content", [b"", b"not a checkpoint at all"])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(DataError, match="no checkpoint"):
        read_checkpoint(path)


def test_unknown_keys_are_refused_by_name() -> None:
    with pytest.raises(DataError, match=r"conv_proj\.conv_last"):
        rename_torchvision_vit({"conv_proj.conv_last.weight": torch.zeros(1)})
