"""A small model and what a change to it may look like, as the files of a package that tests write anew.

``write_package(folder, edits)`` makes ``pkg/net.py`` in ``folder``; its builder is ``module:pkg.net:build``.
"""

from __future__ import annotations

from pathlib import Path

NAME = "module:pkg.net:build"

SOURCE = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        # of a block

    def forward(self, x):
        B, N, D = x.shape
        q, k, v = self.qkv(self.norm(x)).view(B, N, 3, 2, D // 2).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, N, D)
        # attended
        return x + self.proj(y)


class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.embed = nn.Conv2d(3, 32, 4, 4)
        self.blocks = nn.ModuleList(Block(32) for _ in range(2))
        self.head = nn.Linear(32, num_classes)
        # net

    def forward(self, images):
        x = self.embed(images).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        # blocks done
        return self.head(x.mean(1).to(self.head.weight.dtype))


def build(*, image_size, num_classes):
    model = Net(num_classes)
    # built
    return model
"""

#: What is changed, as (what stands in the source, what stands there afterwards).
EDITS: dict[str, tuple[str, str]] = {
    "none": ("# built", "# built, unchanged"),
    "an injected parameter": (
        "        # of a block",
        "        self.extra = nn.Parameter(torch.zeros(32, 32)) if width else None",
    ),
    "an extra layer": ("range(2)", "range(3)"),
    "a dtype change": ("    # built", "    model.head.to(torch.bfloat16)"),
    "an added copy": ("        # attended", "        y = y.clone()"),
    "a frozen parameter": ("    # built", "    model.embed.requires_grad_(False)"),
    "a graph break": ("        # blocks done", "        print('done')"),
    "a branch on a number": ("        # blocks done", "        x = x * 2 if x.sum() > 0 else x"),
    "a renamed key": ("self.proj", "self.out"),
    "a wider head": ("nn.Linear(32, num_classes)", "nn.Linear(32, num_classes + 2)"),
    "a buffer": ("        # net", "        self.register_buffer('scale', torch.ones(5))"),
    "an unused layer": ("        # net", "        self.spare = nn.Linear(4, 4)"),
    "a builder that raises": ("    # built", "    raise IndexError('there is no block 13')"),
    "a source that is none": ("    # built", "    return )"),
    "a builder that is gone": ("def build(", "def make("),
    "a missing dependency": ("def build(", "import installed_nowhere\n\n\ndef build("),
    "a kill": ("    # built", "    __import__('os').kill(__import__('os').getpid(), 9)"),
    "a hang": ("    # built", "    __import__('time').sleep(60)"),
    "no memory": ("    # built", "    raise MemoryError"),
    "a full disk": ("    # built", "    raise OSError(28, 'No space left on device')"),
    "a forward pass that raises": ("        # blocks done", "        x = x @ torch.zeros(7, 7, device=x.device)"),
}


def write_package(folder: Path, *edits: str) -> Path:
    """The package with these edits; returns ``folder``."""
    source = SOURCE
    for name in edits:
        old, new = EDITS[name]
        assert old in source, name
        source = source.replace(old, new)
    package = folder / "pkg"
    package.mkdir(parents=True, exist_ok=True)
    (package / "__init__.py").write_text("")
    (package / "net.py").write_text(source)
    return folder
