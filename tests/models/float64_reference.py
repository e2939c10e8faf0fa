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
    grid = (images.shape[2] // config["patch"], images.shape[3] // config["patch"])
    x = embed(config, state, images)
    for block in range(config["depth"]):
        p = f"blocks.{block}."
        normed = norm(state, p + "norm1.", x, config["norm_eps"])
        if config.get("locality", "none") != "none":
            x = x + locality_attention(state, p + "attn.", normed, config["heads"], config["locality"], grid)
        else:
            x = x + attention(state, p + "attn.", normed, config["heads"])
        hidden = linear(state, p + "mlp.fc1.", norm(state, p + "norm2.", x, config["norm_eps"]))
        x = x + linear(state, p + "mlp.fc2.", ACTIVATIONS[config["activation"]](hidden))
        if config.get("prune") and block <= config["depth"] - 2:
            x = np.stack([prune_one(state, image, block) for image in x])
    x = norm(state, "norm.", x, config["norm_eps"]) if config["final_norm"] else x
    if config.get("distilled"):
        return (linear(state, "head.", x[:, 0]) + linear(state, "head_dist.", x[:, 1])) / 2
    cls = x[:, 0]
    if config["head"] == "tanh":
        return linear(state, "head.fc2.", np.tanh(linear(state, "head.fc1.", cls)))
    return linear(state, "head.", cls)


def embed(config: Mapping[str, Any], state: State, images: np.ndarray) -> np.ndarray:
    """Each patch through one linear map, CLS in front, positions added: (B, 3, H, W) -> (B, L, D)."""
    P = config["patch"]
    rows, columns = images.shape[2] // P, images.shape[3] // P
    if config.get("tokenisation", "patches") != "patches":
        images = shifted(images, P // 2)
    patches = np.stack(
        [
            images[:, :, r * P : (r + 1) * P, c * P : (c + 1) * P].reshape(len(images), -1)
            for r in range(rows)
            for c in range(columns)
        ],
        axis=1,
    )
    if config.get("tokenisation") == "shifted_norm":
        x = linear(state, "patch_embed.proj.", norm(state, "patch_embed.norm.", patches, config["norm_eps"]))
    else:
        x = patches @ state["patch_embed.proj.weight"].reshape(config["width"], -1).T + state["patch_embed.proj.bias"]
    if config.get("embedding_norm"):
        x = norm(state, "patch_embed.norm.", x, config["norm_eps"])
    cls = np.repeat(state["cls_token"], len(images), axis=0)
    if config.get("distilled"):
        cls = np.concatenate([cls, np.repeat(state["dist_token"], len(images), axis=0)], axis=1)
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
    p = p + "attention.out_proj." if p + "attention.in_proj_weight" in state else p + "proj."
    return linear(state, p, np.concatenate(outputs, axis=-1))


def shifted(images: np.ndarray, by: int) -> np.ndarray:
    """The picture and its copies moved left-up, right-up, left-down, right-down, pixel by pixel: (B, 5C, H, W)."""
    _, _, height, width = images.shape
    copies = [images]
    for down, right in ((-by, -by), (-by, by), (by, -by), (by, by)):
        moved = np.zeros_like(images)
        for y in range(height):
            for x in range(width):
                if 0 <= y - down < height and 0 <= x - right < width:
                    moved[:, :, y, x] = images[:, :, y - down, x - right]
        copies.append(moved)
    return np.concatenate(copies, axis=1)


def locality_attention(state: State, p: str, x: np.ndarray, heads: int, form: str, grid: tuple[int, int]) -> np.ndarray:
    """Sharpened attention in which a patch (with ``scale_all`` also CLS) does not attend to itself, pair by pair."""
    outputs = []
    L = x.shape[1]
    for head, (q, k, v) in enumerate(split_heads(state, p, x, heads)):
        scores = q @ k.transpose(0, 2, 1)
        if form == "temperature":
            scores /= np.sqrt(q.shape[-1])
            for i in range(1, L):
                for j in range(1, L):
                    down = (i - 1) // grid[1] - (j - 1) // grid[1] + grid[0] - 1
                    right = (i - 1) % grid[1] - (j - 1) % grid[1] + grid[1] - 1
                    scores[:, i, j] += state[p + "relative_positions"][down * (2 * grid[1] - 1) + right, head]
            scores /= np.log1p(np.exp(state[p + "temperature"][head]))  # softplus
        else:
            scores = scores * state[p + "scale"][head]
        for i in range(0 if form == "scale_all" else 1, L):
            scores[:, i, i] = -np.inf
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
    if p + "attention.in_proj_weight" in state:
        weight, bias = state[p + "attention.in_proj_weight"], state[p + "attention.in_proj_bias"]
        q, k, v = np.split(x @ weight.T + bias, 3, axis=-1)
    elif p + "qkv.weight" in state:
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
