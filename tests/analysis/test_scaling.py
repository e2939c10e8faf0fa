"""How counts grow: coefficients by hand, exact crossovers, and what is no polynomial."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from torch import nn

from vitbench.analysis.crossover import Bracket, Pair
from vitbench.analysis.flops import count_forward
from vitbench.analysis.latency_scaling import TimedPoint
from vitbench.analysis.scaling import Scaling, choose_sizes, scale_model, side_of_patches
from vitbench.analysis.scaling_text import _time_text
from vitbench.core.errors import ImageSizeError, UsageError
from vitbench.core.records import Cell
from vitbench.core.stats.intervals import Estimate
from vitbench.models import describe_model, imported
from vitbench.models.architectures.blocks import Attention
from vitbench.models.architectures.linear_attention import ReLULinearAttention


@pytest.fixture(autouse=True)
def imports_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imported, "_allowed", True)


def base(model: str, mode: str = "infer", num_classes: int | None = None) -> Cell:
    card = describe_model(model)
    return Cell(
        model=model,
        image_size=card.image_size,
        num_classes=card.num_classes if num_classes is None else num_classes,
        batch_size=1,
        device="cpu",
        threads=1,
        mode=mode,
    )


def scaled(model: str, sides: list[int], mode: str = "infer", batches: tuple[int, ...] = ()) -> Scaling:
    return scale_model(base(model, mode), [(side, side) for side in sides], batches, lambda text: None)


# FLOPs by hand


def plain_coefficients(patch: int, width: int, depth: int, mlp: int, classes: int) -> list[int]:
    """c, a, b of 2 (N C P^2 D + depth (4 L D^2 + 2 L^2 D + 2 L D M) + D K) with L = N + 1, multiplied out."""
    token = depth * (4 * width**2 + 2 * width * mlp)
    pair = depth * 2 * width
    return [2 * one for one in (token + pair + width * classes, 3 * patch**2 * width + token + 2 * pair, pair)]


@pytest.mark.integration
def test_flops_of_a_plain_vit_have_the_coefficients_of_its_formula() -> None:
    found = scaled("cifar_vit_tiny", [16, 24, 32, 48, 96])
    polynomial = found.flops.polynomial
    assert [polynomial.c, polynomial.a, polynomial.b] == plain_coefficients(4, 192, 12, 768, 10)
    assert (found.flops.checked, found.flops.off) == (2, None)
    assert found.extra_tokens == 1
    assert [point.n for point in found.points] == [16, 36, 64, 144, 576]


@pytest.mark.integration
def test_the_terms_of_vit_ti_are_equal_at_1186_patches() -> None:
    found = scaled("timm:vit_tiny_patch16_224", [32, 96, 224, 384, 1024])
    assert found.patch == 16
    c, a, b = plain_coefficients(16, 192, 12, 768, 1000)
    assert found.flops.polynomial.equal_terms == Fraction(a, b) == 1186
    assert found.flops.off is None
    assert found.flops.polynomial.at(196) == 2 * 1_253_683_200 == c + a * 196 + b * 196**2  # 1.25 GMACs, as published


def test_rectangles_count_by_their_patches() -> None:
    sizes = [(16, 32), (24, 24), (32, 64), (64, 64)]
    found = scale_model(base("cifar_vit_tiny"), sizes, (), lambda text: None)
    assert found.flops.off is None
    assert [found.flops.polynomial.c, found.flops.polynomial.a] == plain_coefficients(4, 192, 12, 768, 10)[:2]


@pytest.mark.integration
def test_linear_attention_is_linear_in_the_patches() -> None:
    found = scaled("cifar_lightweight_vit", [16, 24, 32, 48, 96])
    assert found.flops.off is None
    assert found.flops.polynomial.b == 0
    # per patch: embedding, projections, MLP, and 2 d + 1 for each of the D numbers of a token
    assert found.flops.polynomial.a == 2 * (48 * 384 + 6 * (4 * 384**2 + 2 * 384 * 1152 + 384 * (2 * 64 + 1)))


@pytest.mark.integration
def test_a_training_step_is_a_polynomial_too() -> None:
    found = scaled("cifar_vit_tiny", [16, 24, 32, 48], mode="train").flops
    forward = scaled("cifar_vit_tiny", [16, 24, 32, 48]).flops
    assert found.off is None
    # each product of the forward pass has two in the backward pass, but the embedding has no gradient for the image
    assert found.polynomial.b == 3 * forward.polynomial.b
    assert found.polynomial.a == 3 * forward.polynomial.a - 2 * 48 * 192


@pytest.mark.integration
@pytest.mark.parametrize("model", ["cifar_dynamic_vit_pruned", "cifar_dynamic_vit_learned"])
def test_pruning_to_whole_tokens_is_no_polynomial_and_says_where(model: str) -> None:
    found = scaled(model, [16, 24, 32, 48, 96]).flops
    assert found.off is not None
    assert found.off[0] in (36, 64, 144)
    assert 0 < abs(found.off[1]) < 0.1


def test_too_few_numbers_of_patches_are_refused() -> None:
    with pytest.raises(UsageError, match="2 numbers of patches for cifar_vit_tiny.*at least three"):
        scaled("cifar_vit_tiny", [16, 32])
    with pytest.raises(ImageSizeError, match="multiples of 4"):
        scaled("cifar_vit_tiny", [16, 30, 32])


# Memory


@pytest.mark.integration
def test_memory_has_a_piece_for_each_place_of_its_peak() -> None:
    """An inference pass of explicit attention: at first the MLP's hidden tokens decide, then the N x N weights."""
    sizes = [(side, side) for side in (16, 24, 32, 40, 48, 56, 64, 72, 80)]
    cell = replace(base("module:tests.analysis.attention_models:small_softmax", num_classes=10), attention="explicit")
    found = scale_model(cell, sizes, (1, 3), lambda text: None)
    mlp, softmax = found.memory(1)
    assert (mlp.place, softmax.place) == ("aten::gelu, forward", "aten::_softmax, forward")
    assert [[n for n, _ in one.points] for one in (mlp, softmax)] == [
        [16, 36, 64, 100],
        [144, 196, 256, 324, 400],
    ]
    assert mlp.fit is not None
    assert softmax.fit is not None
    assert [(one.checked, one.off) for one in (mlp.fit, softmax.fit)] == [(1, None), (2, None)]
    # 4 bytes: the residual stream before and after attention, its norm, the hidden layer before and after GELU, the
    # pixels; and the learned positions
    assert mlp.fit.polynomial.b == 0
    assert mlp.fit.polynomial.a == 4 * (3 * 384 + 2 * 1152 + 48 + 384)
    # the scores of 6 heads before and after softmax
    assert softmax.fit.polynomial.b == 4 * 6 * 2
    of_three = found.memory(3)[-1]
    assert of_three.fit is not None
    assert of_three.fit.polynomial.b == 3 * softmax.fit.polynomial.b


# Softmax against linear attention: FLOPs are equal at L = d + 1/2


@pytest.mark.parametrize(("width", "heads"), [(384, 6), (192, 3), (128, 4)])
def test_softmax_and_linear_attention_are_equal_at_half_a_token_above_the_head_width(width: int, heads: int) -> None:
    def flops(module: nn.Module, tokens: int) -> int:
        return count_forward(module.to("meta").eval(), torch.empty(1, tokens, width, device="meta")).flops

    head = width // heads
    softmax, linear = Attention(width, heads), ReLULinearAttention(width, heads)
    for tokens in (1, head, head + 1, 4 * head):
        # 2 L^2 D against L D (2 d + 1) multiply-adds
        expected = 2 * width * tokens * (2 * tokens - (2 * head + 1))
        assert flops(softmax, tokens) - flops(linear, tokens) == expected
        assert (expected > 0) == (tokens > head + 0.5)


@pytest.mark.integration
def test_models_that_differ_in_attention_only_cross_at_64_and_a_half_tokens() -> None:
    """cifar_lightweight_vit with softmax attention instead: width 384, 6 blocks, heads of width 64."""
    sizes = [(side, side) for side in (16, 24, 32, 48)]
    softmax, linear = (
        scale_model(
            base(f"module:tests.analysis.attention_models:{name}", num_classes=10), sizes, (), lambda text: None
        )
        for name in ("softmax", "linear")
    )
    assert linear.flops == scale_model(base("cifar_lightweight_vit"), sizes, (), lambda text: None).flops
    found = Pair(softmax, linear, lambda text: None).cross_flops()
    tokens = 64.5
    # at N = -1, without a token, both have the same embedding and head: the other root
    assert found.brackets == [Bracket(tokens - 1, tokens - 1, True)]
    assert found.outside == []
    assert found.signs == {16: -1, 36: -1, 64: 1, 144: 1}


# Sizes


def test_a_range_is_spread_over_multiples_of_the_patch() -> None:
    sides = [side for side, _ in choose_sizes("32:1024", 16)]
    assert sides == [32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024]
    for text, step in (("32:1024", 14), ("224:384", 16), ("4:4096", 4), ("32:1024", 32), ("30:100", 7)):
        low, high = map(int, text.split(":"))
        sides = [side for side, _ in choose_sizes(text, step)]
        assert sides == sorted(set(sides))
        assert all(side % step == 0 and low <= side <= high for side in sides)
        assert 3 <= len(sides) <= 12
        assert sides[0] - low < step
        assert high - sides[-1] < step


def test_a_list_stays_as_it_is() -> None:
    assert choose_sizes("224, 384,231x240,224", 16) == [(224, 224), (384, 384), (231, 240)]


@pytest.mark.parametrize(
    "text", ["1024:32", "abc", "32:abc", "32:", ":", "0:64", "32:32", "", ",", "32:40", "-4:20", "x"]
)
def test_other_texts_are_refused_in_one_line(text: str) -> None:
    with pytest.raises(UsageError, match=r"^Option --image-sizes: [^\n]*$"):
        choose_sizes(text, 16)


def test_the_side_of_patches_is_found() -> None:
    assert side_of_patches(base("cifar_vit_tiny")) == 4
    assert side_of_patches(base("module:tests.analysis.attention_models:softmax", num_classes=10)) == 4


# Text


def test_times_are_written_with_three_digits_and_their_interval() -> None:
    def text(seconds: tuple[float, float | None, float | None], **changes: object) -> str:
        estimate = Estimate(*seconds, "between processes", 5, 50)
        return _time_text(TimedPoint(image_size=(16, 16), n=1, **{"estimate": estimate, **changes}))  # type: ignore[arg-type]

    assert text((0.5921, 0.269, 1.3004)) == "592 [269, 1,300]"
    assert text((0.012, 0.01, 0.9997)) == "12.0 [10.0, 1,000]"
    assert text((0.012, None, None)) == "12.0"
    assert text((0.012, None, None), estimate=None, status="oom") == "oom"
