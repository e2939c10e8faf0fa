"""Our models once more, in float64 NumPy, written from the published descriptions and knowing no module of vitbench.

Shapes: B images, N patches, L tokens, D width, h heads, d = D / h, K classes. ``state`` maps parameter names to arrays.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.special import erf

State = Mapping[str, np.ndarray]


def logits(builder: str, config: Mapping[str, Any], state: State, images: np.ndarray) -> np.ndarray:
    """(B, 3, H, W) -> (B, K), in evaluation."""
    attention = linear_attention if "linear_attention" in builder else softmax_attention
    x = embed(config, state, images)
    for block in range(config["depth"]):
        p = f"blocks.{block}."
        x = x + attention(state, p + "attn.", norm(state, p + "norm1.", x, config["norm_eps"]), config["heads"])
        hidden = linear(state, p + "mlp.fc1.", norm(state, p + "norm2.", x, config["norm_eps"]))
        x = x + linear(state, p + "mlp.fc2.", ACTIVATIONS[config["activation"]](hidden))
        if config.get("prune") and block <= config["depth"] - 2:
            x = np.stack([prune_one(state, image, block) for image in x])
    cls = norm(state, "norm.", x, config["norm_eps"])[:, 0] if config["final_norm"] else x[:, 0]
    if config["head"] == "tanh":
        return linear(state, "head.fc2.", np.tanh(linear(state, "head.fc1.", cls)))
    return linear(state, "head.", cls)


def embed(config: Mapping[str, Any], state: State, images: np.ndarray) -> np.ndarray:
    """Each patch through one linear map, CLS in front, positions added: (B, 3, H, W) -> (B, L, D)."""
    P = config["patch"]
    rows, columns = images.shape[2] // P, images.shape[3] // P
    kernel = state["patch_embed.proj.weight"].reshape(config["width"], -1)
    patches = [
        images[:, :, r * P : (r + 1) * P, c * P : (c + 1) * P].reshape(len(images), -1) @ kernel.T
        for r in range(rows)
        for c in range(columns)
    ]
    x = np.stack(patches, axis=1) + state["patch_embed.proj.bias"]
    cls = np.repeat(state["cls_token"], len(images), axis=0)
    positions = state["pos_embed"]
    if config["positions"] == "patches":
        return np.concatenate([cls, x + positions], axis=1)
    if config["positions"] == "bicubic":
        grid = bicubic(positions[0, 1:].reshape(14, 14, -1), rows, columns)
        positions = np.concatenate([positions[:, :1], grid.reshape(1, rows * columns, -1)], axis=1)
    return np.concatenate([cls, x], axis=1) + positions


def bicubic(grid: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Cubic convolution (Keys, 1981), a = -0.75, half-pixel centres, edges repeated: (h, w, D) -> (rows, cols, D)."""
    return np.einsum(
        "rh,cw,hwd->rcd", _cubic_weights(grid.shape[0], rows), _cubic_weights(grid.shape[1], columns), grid
    )


def _cubic_weights(old: int, new: int) -> np.ndarray:
    a = -0.75
    weights = np.zeros((new, old))
    for i in range(new):
        centre = (i + 0.5) * old / new - 0.5
        for tap in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            t = abs(centre - tap)
            inner = (a + 2) * t**3 - (a + 3) * t**2 + 1
            outer = a * (t**3 - 5 * t**2 + 8 * t - 4)
            weights[i, min(max(tap, 0), old - 1)] += inner if t <= 1 else outer
    return weights


def softmax_attention(state: State, p: str, x: np.ndarray, heads: int) -> np.ndarray:
    """softmax(q k^T / sqrt(d)) v for each head, then the output projection."""
    outputs = []
    for q, k, v in split_heads(state, p, x, heads):
        scores = q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        outputs.append(weights / weights.sum(axis=-1, keepdims=True) @ v)
    return linear(state, p + "proj.", np.concatenate(outputs, axis=-1))


def linear_attention(state: State, p: str, x: np.ndarray, heads: int) -> np.ndarray:
    """For each query the values weighted by relu(q) . relu(k), divided by the sum of these weights + 1e-8."""
    outputs = []
    for q, k, v in split_heads(state, p, x, heads):
        weights = np.maximum(q, 0) @ np.maximum(k, 0).transpose(0, 2, 1)  # quadratic, on purpose: not the fast order
        outputs.append(weights @ v / (weights.sum(axis=-1, keepdims=True) + 1e-8))
    return linear(state, p + "proj.", np.concatenate(outputs, axis=-1))


def split_heads(state: State, p: str, x: np.ndarray, heads: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(q, k, v), each (B, L, d), of each head."""
    if p + "qkv.weight" in state:
        q, k, v = np.split(linear(state, p + "qkv.", x), 3, axis=-1)
    else:
        q, k, v = (linear(state, f"{p}{name}.", x) for name in "qkv")
    return list(zip(*(np.split(part, heads, axis=-1) for part in (q, k, v)), strict=True))


def prune_one(state: State, tokens: np.ndarray, block: int) -> np.ndarray:
    """One image's tokens (1 + n, D) without those patches that score least."""
    scores = [float((linear(state, f"scores.{block}.", token)).item()) for token in tokens[1:]]
    keep = int(len(scores) * max(0.5, 1 - 0.1 * block))
    best = sorted(range(len(scores)), key=lambda patch: -scores[patch])[:keep]
    return np.stack([tokens[0], *(tokens[1 + patch] for patch in sorted(best))])


def linear(state: State, p: str, x: np.ndarray) -> np.ndarray:
    """x W^T + b."""
    return x @ state[p + "weight"].T + state[p + "bias"]


def norm(state: State, p: str, x: np.ndarray, eps: float) -> np.ndarray:
    """LayerNorm over the last dimension."""
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + eps) * state[p + "weight"] + state[p + "bias"]


ACTIVATIONS = {
    "gelu": lambda x: x * (1 + erf(x / np.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "quick_gelu": lambda x: x / (1 + np.exp(-1.702 * x)),
}
