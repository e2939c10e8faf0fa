"""Activations: the elements that products output, by hand, by fvcore, and as timm publishes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.metrics.test_metrics import make_subject, measured
from vitbench.metrics.support.operator_counter import OperatorCounter
from vitbench.models import build_model, use_attention

B, H, L, S, D, E = 2, 3, 5, 7, 8, 6


def outputs_of(call: Callable[[], object]) -> int:
    with torch.no_grad(), OperatorCounter() as counter:
        call()
    return counter.counts.activations


@pytest.mark.parametrize(
    ("call", "outputs"),
    [
        (lambda: F.linear(torch.ones(B, L, D), torch.ones(E, D), torch.ones(E)), B * L * E),
        (lambda: torch.ones(B, L, D) @ torch.ones(B, D, E), B * L * E),
        (lambda: F.conv2d(torch.ones(B, 3, 6, 6), torch.ones(E, 3, 3, 3)), B * E * 4 * 4),
        (lambda: F.gelu(F.layer_norm(torch.ones(B, L, D), (D,))), 0),  # no product
    ],
    ids=["linear", "matrix product", "convolution", "norm and activation function"],
)
def test_outputs_of_products_count(call: Callable[[], object], outputs: int) -> None:
    assert outputs_of(call) == outputs


@pytest.mark.parametrize("backend", [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION])
def test_attention_has_its_scores_whichever_kernel_computes_it(backend: SDPBackend) -> None:
    query, key, value = (torch.ones(B, H, length, D) for length in (L, S, S))
    with sdpa_kernel(backend):
        found = outputs_of(lambda: F.scaled_dot_product_attention(query, key, value))
    assert found == B * H * L * S + B * H * L * D


def test_a_vit_has_the_activations_by_hand() -> None:
    """vit_basic: 64 patches and a class token of width 256; each of 12 blocks outputs queries, keys and values, the
    scores of 4 heads, what they weigh, their projection, and the two layers of the MLP (width 1024).
    """
    block = 65 * 256 * (3 + 1 + 1 + 1) + 4 * 65**2 + 65 * 1024
    by_hand = 64 * 256 + 12 * block + 10
    found = measured("flops", make_subject("vit_basic"))["activations"]
    assert (found.value, found.unit) == (by_hand, "element")
    assert "elements that these output" in found.method


@pytest.mark.integration
@pytest.mark.parametrize("model", ["vit_basic", "cifar_vit_tiny", "timm:vit_tiny_patch16_224", "timm:levit_128s"])
def test_fvcore_counts_the_same_with_explicit_attention(model: str) -> None:
    from fvcore.nn import ActivationCountAnalysis

    size = 224 if model.startswith("timm:") else 32
    subject = make_subject(model, image_size=(size, size))
    ours = measured("flops", subject)["activations"].value
    built = build_model(model, image_size=(size, size), num_classes=10).eval()
    with use_attention(built, "explicit"):
        analysis = ActivationCountAnalysis(built, torch.zeros(1, 3, size, size))
        theirs = analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).total()
    assert ours == theirs


@pytest.mark.integration
def test_fvcore_misses_fused_attention_by_its_scores_and_its_outputs() -> None:
    """ViT-Ti: 12 blocks of 3 heads, 197 tokens, width 192. What is left is the 4.1 M of timm's model card."""
    from fvcore.nn import ActivationCountAnalysis

    model = build_model("timm:vit_tiny_patch16_224", image_size=(224, 224), num_classes=1000).eval()
    analysis = ActivationCountAnalysis(model, torch.zeros(1, 3, 224, 224))
    theirs = analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).total()
    subject = make_subject(model, image_size=(224, 224), num_classes=1000)
    assert measured("flops", subject)["activations"].value - theirs == 12 * (3 * 197**2 + 197 * 192)
    assert f"{theirs / 1e6:.1f}" == "4.1"


#: Millions, from timm's results/benchmark-infer-amp-nchw-pt113-cu117-rtx3090.csv (column infer_macts, commit 89b0452).
PUBLISHED = {
    "vit_tiny_patch16_224": 5.97,
    "vit_small_patch16_224": 11.95,
    "deit_tiny_distilled_patch16_224": 6.01,
    "pit_ti_224": 6.19,
    "xcit_tiny_12_p16_224": 6.29,
    "poolformer_s12": 5.53,
    "efficientformer_l1": 5.53,
    "resnet50": 11.11,
}


@pytest.mark.integration
@pytest.mark.parametrize("model", PUBLISHED)
def test_timm_publishes_the_same(model: str) -> None:
    import timm

    with torch.device("meta"):
        built = timm.create_model(model).eval().requires_grad_(False)
    found = outputs_of(lambda: built(torch.empty(1, 3, 224, 224, device="meta")))
    assert f"{found / 1e6:.2f}" == f"{PUBLISHED[model]:.2f}"


class Chooses(nn.Module):
    """Reads a value of the image, so that it is executed."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 10)

    def forward(self, images: Tensor) -> Tensor:
        pooled = images.mean(dim=(2, 3))
        return self.head(pooled) if pooled.sum().item() > -1e9 else pooled


def test_a_model_that_is_executed_has_the_mean_of_its_images() -> None:
    found = measured("flops", replace(make_subject("vit_basic"), build=Chooses))["activations"]
    assert (found.value, found.executed) == (10, True)
