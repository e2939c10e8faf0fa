"""The reference is frozen: its code, its work, its numbers, and what it may import."""

from __future__ import annotations

import ast
import hashlib
from pathlib import Path

import numpy as np
import torch
from scipy.special import erf, softmax
from torch.utils.flop_counter import FlopCounterMode

from vitbench.metrics.support import reference
from vitbench.metrics.support.reference import HEADS, HIDDEN, SEED, TOKENS, VERSION, WIDTH, make_reference

SOURCE = Path(reference.__file__)
#: By VERSION: the SHA-256 of the code without its docstrings and comments.
DIGESTS = {1: "f3263ed71c7c1aebb01f2e1422f7a44233c8928892325e4a47ffb27dbce82f9d"}


def code_without_docstrings(source: str) -> str:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef)
            and ast.get_docstring(node, clean=False) is not None
        ):
            node.body = node.body[1:]
    return ast.unparse(tree)


def test_the_code_is_what_its_version_says() -> None:
    digest = hashlib.sha256(code_without_docstrings(SOURCE.read_text(encoding="utf-8")).encode()).hexdigest()
    assert digest == DIGESTS.get(VERSION), (
        f"vitbench/reference.py has changed: raise VERSION, and enter {digest} beside it here. Relative latencies of "
        "two versions are not comparable"
    )


def test_comments_and_docstrings_are_free_to_change() -> None:
    one = '"""A module."""\ndef f():\n    """It."""\n    return 1  # one\n'
    assert code_without_docstrings(one) == code_without_docstrings("def f():\n    return 1\n")
    assert code_without_docstrings(one) != code_without_docstrings("def f():\n    return 2\n")


def test_it_imports_nothing_of_the_package() -> None:
    imported = set()
    for node in ast.walk(ast.parse(SOURCE.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add(str(node.module))
    assert imported == {"__future__", "collections.abc", "torch", "torch.nn.functional"}


def test_a_step_multiplies_as_much_as_it_says() -> None:
    """Four projections and the MLP, 2 T (4 W^2 + 2 W H), and the two products of attention, 4 T^2 W."""
    step = make_reference("meta")
    with FlopCounterMode(display=False) as counter:
        output = step()
    assert output.shape == (1, TOKENS, WIDTH)
    closed_form = 2 * TOKENS * (4 * WIDTH**2 + 2 * WIDTH * HIDDEN) + 4 * TOKENS**2 * WIDTH
    assert counter.get_total_flops() == closed_form == 60_752_640


def test_each_step_of_each_reference_gives_the_same_numbers_whatever_the_seed_of_the_process() -> None:
    torch.manual_seed(1)
    step = make_reference("cpu")
    first = step()
    state = torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(make_reference("cpu")(), first)
    assert torch.equal(step(), first)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)  # and it draws nothing from the process's own generator
    assert first.dtype == torch.float32
    assert not first.requires_grad


def test_a_step_is_the_layer_of_the_papers_equations() -> None:
    """Vaswani et al. 2017, Eq. 1 (attention, 3.2.2 for its heads) and Eq. 2 (with GELU), before each a layer
    normalisation and around each a sum; in float64, from the same numbers.
    """
    generator = torch.Generator().manual_seed(SEED)

    def drawn(*shape: int) -> np.ndarray:
        return (torch.randn(*shape, generator=generator) * shape[-1] ** -0.5).numpy().astype(np.float64)

    projections, out = drawn(3 * WIDTH, WIDTH), drawn(WIDTH, WIDTH)
    up, down = drawn(HIDDEN, WIDTH), drawn(WIDTH, HIDDEN)
    tokens = drawn(1, TOKENS, WIDTH)[0]  # (T, W)

    def normalised(x: np.ndarray) -> np.ndarray:
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)

    def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        return softmax(q @ k.T / np.sqrt(q.shape[-1]), axis=-1) @ v

    def gelu(x: np.ndarray) -> np.ndarray:
        return x * (1 + erf(x / np.sqrt(2))) / 2

    h = normalised(tokens)
    d = WIDTH // HEADS
    w_q, w_k, w_v = projections[:WIDTH], projections[WIDTH : 2 * WIDTH], projections[2 * WIDTH :]
    heads = [
        attention(h @ w_q[i : i + d].T, h @ w_k[i : i + d].T, h @ w_v[i : i + d].T) for i in range(0, HEADS * d, d)
    ]
    x = tokens + np.concatenate(heads, axis=-1) @ out.T
    expected = x + gelu(normalised(x) @ up.T) @ down.T
    found = make_reference("cpu")()[0].numpy()
    assert np.abs(found - expected).max() < 1e-4
