"""Tensor bytes: small models by hand, torch's own tracker as a second account, and no spread."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.metrics.test_metrics import make_subject, measured
from vitbench.metrics.memory import PARTS
from vitbench.metrics.support.tensor_memory import KINDS, TensorAccount, gradients_of, state_of


class Two(nn.Module):
    """12 -> 8 -> 2 on images of 2x2 px."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 2))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layers(images)
        return logits


WEIGHTS = 4 * (12 * 8 + 8 + 8 * 2 + 2)
IMAGES = 4 * 3 * 12


def test_inference_by_hand() -> None:
    model, images = Two().eval(), torch.randn(3, 3, 2, 2)
    with TensorAccount({"weights": model.parameters(), "batch": [images]}) as account, torch.inference_mode():
        output = model(images)
    peak = account.peak()
    # both sides of ReLU are alive: 3 x 8 numbers each
    assert peak == {
        "weights": WEIGHTS, "batch": IMAGES, "gradients": 0, "optimizer": 0, "activations": 2 * 4 * 3 * 8
    }  # fmt: skip
    assert sum(peak.values()) == WEIGHTS + IMAGES + 2 * 4 * 3 * 8
    assert output.shape == (3, 2)


def test_gradients_and_optimizer_state_by_hand() -> None:
    model, images = Two(), torch.randn(3, 3, 2, 2)
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    with TensorAccount({"weights": model.parameters(), "batch": [images]}) as account:
        model(images).sum().backward()
        optimizer.step()
    account.classify({"gradients": gradients_of(model), "optimizer": state_of(optimizer)})
    peak = account.peak()
    assert peak["weights"] == WEIGHTS
    assert peak["gradients"] == WEIGHTS
    assert peak["optimizer"] == 2 * WEIGHTS + 4 * 4  # two numbers a parameter, and a step count a tensor


def test_what_is_freed_no_longer_counts_and_views_count_once() -> None:
    with TensorAccount({}) as account:
        first = torch.ones(100)
        view = first.view(10, 10).t()
        del first
        second = torch.ones(50)
        del view, second
        third = torch.ones(120)
    assert sum(account.peak().values()) == 4 * 150
    assert third.numel() == 120


def test_a_tensor_that_grows_in_place_counts_with_its_new_size() -> None:
    with TensorAccount({}) as account:
        tensor = torch.ones(10)
        tensor.resize_(1000)
    assert sum(account.peak().values()) == 4000


def test_an_operator_with_a_kernel_of_its_own_has_no_parts() -> None:
    images = torch.ones(1000, requires_grad=True)
    with TensorAccount({"batch": [images]}) as account:
        nn.functional.silu(images).sum().backward()
    # in the backward pass: images and their gradient, the loss and its gradient; none of silu_backward's formula
    assert sum(account.peak().values()) == 2 * 4 * 1000 + 2 * 4


@pytest.mark.integration
@pytest.mark.parametrize("mode", ["infer", "train"])
def test_the_metric_yields_parts_that_add_up_and_lie_below_what_the_system_saw(mode: str) -> None:
    subject = make_subject("vit_layer6_32", mode=mode, batch_size=4)
    found = {name: one.value for name, one in measured("tensor_memory", subject).items()}
    assert found["tensor_peak"] == sum(value for name, value in found.items() if name != "tensor_peak")
    assert found["tensor_peak_weights"] == 4 * 827_530
    if mode == "train":
        assert found["tensor_peak_gradients"] <= 4 * 827_530
        assert found["tensor_peak_optimizer"] >= 2 * 4 * 827_530
    assert tuple(PARTS) == KINDS


@pytest.mark.integration
@pytest.mark.parametrize("mode", ["infer", "train"])
def test_every_account_is_the_same_to_the_byte(mode: str) -> None:
    peaks = set()
    for _ in range(3):
        subject = make_subject("vit_basic_tutorial", mode=mode, batch_size=2)
        peaks.add(measured("tensor_memory", subject)["tensor_peak"].value)
    assert len(peaks) == 1


@pytest.mark.parametrize("mode", ["infer", "train"])
def test_torchs_own_tracker_sees_the_same_peak(mode: str) -> None:
    tracker_module = pytest.importorskip("torch.distributed._tools.mem_tracker")
    model, images = Two().train(mode == "train"), torch.randn(3, 3, 2, 2)

    def call() -> None:
        if mode == "infer":
            with torch.no_grad():
                model(images)
        else:
            model(images).sum().backward()

    with TensorAccount({"weights": model.parameters(), "batch": [images]}) as account:
        call()
    model.zero_grad(set_to_none=True)
    tracker = tracker_module.MemTracker()
    tracker.track_external(model, images)
    with tracker:
        call()
    theirs = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]
    assert sum(account.peak().values()) == theirs


def test_what_torchs_fast_path_hides_counts_too() -> None:
    """Without gradients torch runs a whole encoder layer as one operator."""

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, activation="gelu", norm_first=True)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            x: torch.Tensor = self.layer(images.flatten(1, 2))
            return x[:, 0]

    before = torch.backends.mha.get_fastpath_enabled()
    peaks = []
    try:
        for fast in (True, False):
            torch.backends.mha.set_fastpath_enabled(fast)
            peaks.append(measured("tensor_memory", make_subject(Encoder().eval()))["tensor_peak"].value)
            assert torch.backends.mha.get_fastpath_enabled() is fast
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
    assert peaks[0] == peaks[1]


def test_what_inference_mode_hides_inside_an_operator_counts_too() -> None:
    """In inference mode explicit attention arrives as one operator, which holds the matrix of scores and its softmax."""
    B, H, L, D = 2, 4, 64, 8
    query = torch.randn(B, H, L, D)
    peaks = []
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode, sdpa_kernel(SDPBackend.MATH), TensorAccount({"batch": [query]}) as account:
            nn.functional.scaled_dot_product_attention(query, query, query)
        peaks.append(sum(account.peak().values()))
    assert peaks[0] == peaks[1] >= 4 * (B * H * L * D + 2 * B * H * L * L)


def test_compiled_cells_are_unsupported() -> None:
    subject = make_subject("vit_basic_tutorial", compile=True)
    found = measured("tensor_memory", subject)
    assert {one.status for one in found.values()} == {"unsupported"}
    assert "dispatching" in found["tensor_peak"].detail


def test_dropout_in_evaluation_copies_nothing_whatever_torch_has_loaded() -> None:
    import torch._decomp.decompositions  # its dropout copies the input

    images = torch.ones(1000)
    with TensorAccount({"batch": [images]}) as account, torch.inference_mode():
        same = nn.Dropout(0.5).eval()(images)
    assert same.data_ptr() == images.data_ptr()
    assert account.peak() == {**dict.fromkeys(KINDS, 0), "batch": 4000}
