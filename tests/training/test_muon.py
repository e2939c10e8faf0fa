"""Muon's cheaper orthogonalisation against a singular value decomposition and torch's Muon."""

from __future__ import annotations

import pytest
import torch

from vitbench.training.muon import SpectralMuon, orthogonalise


@pytest.mark.parametrize("shape", [(48, 48), (192, 48), (48, 192)])
def test_orthogonalised_matrices_keep_their_singular_vectors(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    left = torch.linalg.qr(torch.randn(shape[0], 48, generator=generator)).Q
    right = torch.linalg.qr(torch.randn(shape[1], 48, generator=generator)).Q
    values = torch.logspace(-2, 0, 48)  # of a Frobenius norm of 2.5
    for scale in (1e-3, 1.0, 1e3):
        (found,) = orthogonalise([left @ torch.diag(scale * values) @ right.T])
        inner = left.T @ found.float() @ right
        assert inner.diagonal().min() > 0.12
        assert inner.diagonal().max() < 2
        assert (inner - torch.diag(inner.diagonal())).abs().max() < 0.1


def test_a_zero_gradient_moves_nothing() -> None:
    assert not orthogonalise([torch.zeros(4, 8)]).any()


def test_matrices_of_one_shape_are_treated_one_by_one() -> None:
    matrices = list(torch.randn(3, 16, 24, generator=torch.Generator().manual_seed(1)))
    together = orthogonalise(matrices).float()
    alone = torch.cat([orthogonalise([one]) for one in matrices]).float()
    torch.testing.assert_close(together, alone, rtol=0, atol=0.02)


@pytest.mark.parametrize("shape", [(32, 32), (128, 32), (32, 128)])
def test_steps_go_where_those_of_torchs_muon_go(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(2)
    start = torch.randn(shape, generator=generator)
    gradients = torch.randn(3, *shape, generator=generator)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    settings = {"lr": 0.1, "weight_decay": 0.5}
    for one, optimizer in ((ours, SpectralMuon([ours], **settings)), (theirs, torch.optim.Muon([theirs], **settings))):
        for gradient in gradients:
            one.grad = gradient.clone()
            optimizer.step()
    moved, expected = (one.detach() - start * (1 - 0.05) ** 3 for one in (ours, theirs))
    assert torch.cosine_similarity(moved.flatten(), expected.flatten(), dim=0) > 0.9
    assert float(moved.norm() / expected.norm()) == pytest.approx(1.2, abs=0.3)
