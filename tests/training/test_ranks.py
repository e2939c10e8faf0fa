"""Several processes: how they find each other and wait."""

from __future__ import annotations

import datetime
import socket

import pytest
import torch

from vitbench.training.ranks import Ranks, joined


def test_processes_wait_for_the_first_one_for_a_day(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # a group of one, which says that it is one of two
    for key, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": 1, "RANK": 0}.items():
        monkeypatch.setenv(key, str(value))
    with joined(Ranks(0, 2, 0), torch.device("cpu")):
        group = torch.distributed.group.WORLD
        assert group is not None
        assert group._get_backend(torch.device("cpu")).options._timeout == datetime.timedelta(days=1)
    assert not torch.distributed.is_initialized()
