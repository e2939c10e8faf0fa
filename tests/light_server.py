"""The fork server without timm and torchvision, which the tests' own models do not need: it is there seconds sooner."""

from __future__ import annotations

from vitbench import forkserver

forkserver.PRELOAD = tuple(name for name in forkserver.PRELOAD if name not in ("timm", "torchvision"))

if __name__ == "__main__":
    forkserver.main()
