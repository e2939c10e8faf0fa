"""torch's fast path of nn.MultiheadAttention and nn.TransformerEncoderLayer, which hides what it does. Loads torch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def without_fast_path() -> Iterator[None]:
    """Off inside: it runs an attention, or a whole layer, as a single operator, whose calls, products and tensors in
    between nobody sees. Afterwards it is as it was.
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
