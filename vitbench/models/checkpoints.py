"""State dicts: saving our own, and renaming those of other libraries to our layout (which is timm's)."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vitbench.errors import DataError, StorageError

# torchvision's VisionTransformer -> ours, as regular expressions over whole keys
_TORCHVISION_VIT = (
    (r"class_token", r"cls_token"),
    (r"conv_proj\.(\w+)", r"patch_embed.proj.\1"),
    (r"encoder\.pos_embedding", r"pos_embed"),
    (r"encoder\.layers\.encoder_layer_(\d+)\.ln_([12])\.(\w+)", r"blocks.\1.norm\2.\3"),
    (r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.in_proj_(\w+)", r"blocks.\1.attn.qkv.\2"),
    (r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.out_proj\.(\w+)", r"blocks.\1.attn.proj.\2"),
    (r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.0\.(\w+)", r"blocks.\1.mlp.fc1.\2"),
    (r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.3\.(\w+)", r"blocks.\1.mlp.fc2.\2"),
    (r"encoder\.ln\.(\w+)", r"norm.\1"),
    (r"heads\.head\.(\w+)", r"head.\1"),
)


def rename_torchvision_vit(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a torchvision ``vit_*`` under our names (fused qkv, learned positions for all tokens).

    Raises DataError for a key that torchvision's ViTs do not have.
    """
    return {_rename(key, _TORCHVISION_VIT): value for key, value in state.items()}


def save_checkpoint(model: nn.Module, path: Path, facts: Mapping[str, Any]) -> None:
    """Write the state dict as safetensors, whole or not at all; its header holds ``facts`` as JSON (``vitbench``).

    Raises StorageError if the disk does not take it.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    # a copy of each: safetensors refuses tensors that share memory
    state = {key: value.detach().cpu().clone().contiguous() for key, value in model.state_dict().items()}
    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(state, part, metadata={"vitbench": json.dumps(facts, allow_nan=False)})
        os.replace(part, path)
    except (OSError, SafetensorError) as error:
        part.unlink(missing_ok=True)
        raise StorageError(f"Could not write the checkpoint {path.name}: {error}") from error


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state dict (on the CPU) and the facts of a checkpoint of save_checkpoint. Raises DataError if it is none."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {})["vitbench"])
            return {key: file.get_tensor(key) for key in file.keys()}, facts  # noqa: SIM118  (no mapping)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise DataError(f"{path} is no checkpoint of vitbench: {error}") from error


def _rename(key: str, table: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in table:
        found = re.fullmatch(pattern, key)
        if found:
            return found.expand(replacement)
    raise DataError(f"Unknown key {key!r} in the state dict")
