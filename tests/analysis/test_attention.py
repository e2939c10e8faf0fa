"""Captured attention weights are those of explicit attention, of the right patches, and nothing of the model changes."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitbench.analysis.attention import (
    AttentionMap,
    attention_maps,
    kept_stages,
    rollout,
    rollout_over_patches,
    softmax_weights,
)
from vitbench.core.errors import Unsupported
from vitbench.models import build_model, use_attention


def capture_attention(model: nn.Module, images: Tensor) -> tuple[Any, list[AttentionMap]]:
    """What the model returned in the pass that gave its maps, and the maps."""
    outputs: list[Any] = []
    hook = model.register_forward_hook(lambda module, args, output: outputs.append(output))
    try:
        maps = attention_maps(model, images)
    finally:
        hook.remove()
    return outputs[-1], maps


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, L, D) -> (B, h, L, d)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def explicit(q: Tensor, k: Tensor, scale: float | Tensor, bias: float | Tensor = 0.0) -> Tensor:
    """exp of the logits over their sums, in float64."""
    logits = (torch.einsum("bhid,bhjd->bhij", q.double(), k.double()) * scale) + bias
    weights = (logits - logits.amax(-1, keepdim=True)).exp()
    return (weights / weights.sum(-1, keepdim=True)).float()


def by_fused_qkv(module: Any, x: Tensor, heads: int) -> Tensor:
    q, k, _ = module.qkv(x).chunk(3, dim=-1)
    q, k = split_heads(q, heads), split_heads(k, heads)
    return explicit(q, k, q.shape[-1] ** -0.5)


def by_ours(module: Any, x: Tensor) -> Tensor:
    return by_fused_qkv(module, x, module.heads)


def by_separate_qkv(module: Any, x: Tensor) -> Tensor:
    q, k = split_heads(module.q(x), module.heads), split_heads(module.k(x), module.heads)
    return explicit(q, k, q.shape[-1] ** -0.5)


def by_timm(module: Any, x: Tensor) -> Tensor:
    return by_fused_qkv(module, x, module.num_heads)


def by_multihead(module: Any, x: Tensor) -> Tensor:
    q, k, _ = F.linear(x, module.in_proj_weight, module.in_proj_bias).chunk(3, dim=-1)
    q, k = split_heads(q, module.num_heads), split_heads(k, module.num_heads)
    return explicit(q, k, q.shape[-1] ** -0.5)


def by_locality(module: Any, x: Tensor) -> Tensor:
    """Scale or temperature a head, relative positions, no patch sees itself."""
    q, k, _ = (split_heads(part, module.heads) for part in module.qkv(x).chunk(3, dim=-1))
    L = x.shape[1]
    hidden = torch.zeros(L, L, dtype=torch.float64)
    for token in range(1, L):
        hidden[token, token] = -math.inf
    if module.scale is not None:
        return explicit(q, k, module.scale.double().view(1, -1, 1, 1), hidden)
    sharpness = 1 / F.softplus(module.temperature.double()).view(-1, 1, 1)
    bias = torch.zeros(module.heads, L, L, dtype=torch.float64)
    bias[:, 1:, 1:] = module.relative_positions[module.relative_index].permute(2, 0, 1)
    return explicit(q, k, sharpness * q.shape[-1] ** -0.5, bias * sharpness + hidden)


# model, its size in px, which modules attend (by the end of their name), and their weights by hand
SOFTMAX: list[tuple[str, int, str, Callable[[Any, Tensor], Tensor]]] = [
    ("vit_layer6_32", 32, ".attn", by_separate_qkv),
    ("vit_basic", 32, ".attn", by_separate_qkv),
    ("vit_tiny16_distilled", 224, ".attn", by_ours),
    ("vit_small_spt_lsa", 64, ".attn", by_locality),
    ("vit_tiny16_lsa", 224, ".attn", by_locality),
    ("vit_b16_scratch", 32, ".attn.attention", by_multihead),
    ("torchvision:vit_b_16", 32, ".self_attention", by_multihead),
    ("timm:vit_tiny_patch16_224", 64, ".attn", by_timm),
]


@functools.cache
def built(name: str, size: int) -> nn.Module:
    """In evaluation, with queries and keys large enough that attention is far from even."""
    torch.manual_seed(0)
    model = build_model(name, image_size=size, num_classes=10).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.rpartition(".")[0].endswith(("qkv", ".q", ".k")):
                parameter.mul_(2)
    return model


def pictures(size: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def inputs_of(model: nn.Module, images: Tensor, ending: str) -> tuple[Tensor, dict[str, Tensor]]:
    """The logits, and what goes into each module whose name ends so, in an ordinary pass."""
    seen: dict[str, Tensor] = {}
    hooks = []
    for name, module in model.named_modules():
        if name.endswith(ending):
            hooks.append(
                module.register_forward_pre_hook(lambda _, args, name=name: seen.__setitem__(name, args[0].clone()))
            )
    with torch.no_grad():
        logits = model(images)
    for hook in hooks:
        hook.remove()
    return logits, seen


@pytest.mark.integration
@pytest.mark.parametrize(("name", "size", "ending", "by_hand"), SOFTMAX, ids=[row[0] for row in SOFTMAX])
@pytest.mark.parametrize("attention", ["fused", "explicit"])
def test_weights_are_those_of_explicit_attention(
    name: str, size: int, ending: str, by_hand: Callable[[Any, Tensor], Tensor], attention: str
) -> None:
    model, images = built(name, size), pictures(size)
    if by_hand is by_multihead and attention == "explicit":
        pytest.skip("nn.MultiheadAttention has one form")
    with use_attention(model, attention):
        logits, inputs = inputs_of(model, images, ending)
        output, maps = capture_attention(model, images)
    assert [one.name for one in maps] == list(inputs)
    modules = dict(model.named_modules())
    uneven = 0.0
    for one in maps:
        with torch.no_grad():
            expected = by_hand(modules[one.name], inputs[one.name])
        torch.testing.assert_close(one.weights, expected, atol=1e-6, rtol=0)
        torch.testing.assert_close(one.weights.sum(-1), torch.ones(one.weights.shape[:-1]), atol=1e-5, rtol=0)
        uneven = max(uneven, float(expected.max()) * one.tokens)
    assert uneven > 2  # otherwise any even map would pass
    if by_hand is by_multihead:  # its fast path rounds in another way
        torch.testing.assert_close(output, logits, atol=1e-5, rtol=1e-5)
    else:
        assert torch.equal(output, logits)


def test_the_output_of_multihead_attention_is_that_of_its_slow_path() -> None:
    model, images = built("vit_b16_scratch", 32), pictures(32)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad():
            logits = model(images)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    assert torch.equal(capture_attention(model, images)[0], logits)


def test_effective_weights_times_v_are_what_linear_attention_computes() -> None:
    model, images = built("cifar_lightweight_vit", 32), pictures(32)
    logits, inputs = inputs_of(model, images, ".attn")
    output, maps = capture_attention(model, images)
    assert torch.equal(output, logits)
    assert [one.name for one in maps] == list(inputs)
    assert {one.kind for one in maps} == {"effective"}
    modules: dict[str, Any] = dict(model.named_modules())
    for one in maps:
        module, x = modules[one.name], inputs[one.name]
        with torch.no_grad():
            v = split_heads(module.qkv(x).chunk(3, dim=-1)[2], module.heads)
            expected = module(x)
            mixed = module.proj((one.weights @ v).transpose(1, 2).flatten(2))
        torch.testing.assert_close(mixed, expected, atol=2e-5, rtol=1e-4)


QUERY, KEY = (torch.randn(2, 4, 5, 8, generator=torch.Generator().manual_seed(seed)) for seed in (2, 3))
VISIBLE = torch.rand(5, 5, generator=torch.Generator().manual_seed(4)) > 0.4


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"is_causal": True},
        {"scale": 0.3},
        {"attn_mask": VISIBLE | torch.eye(5, dtype=torch.bool)},
        {"attn_mask": torch.randn(4, 5, 5, generator=torch.Generator().manual_seed(5))},
    ],
    ids=["plain", "causal", "scale", "hidden", "bias"],
)
def test_fused_attention_over_unit_vectors_returns_the_weights(options: dict[str, Any]) -> None:
    unit = torch.eye(5).expand(2, 4, 5, 5)
    expected = F.scaled_dot_product_attention(QUERY, KEY, unit, **options)
    torch.testing.assert_close(softmax_weights(QUERY, KEY, unit, **options), expected, atol=1e-6, rtol=0)


def test_keys_shared_by_heads_and_rows_that_see_nothing() -> None:
    unit = torch.eye(5).expand(2, 2, 5, 5)
    expected = F.scaled_dot_product_attention(QUERY, KEY[:, :2], unit, enable_gqa=True)
    torch.testing.assert_close(softmax_weights(QUERY, KEY[:, :2], enable_gqa=True), expected, atol=1e-6, rtol=0)
    blind = torch.ones(5, 5, dtype=torch.bool)
    blind[2] = False
    assert softmax_weights(QUERY, KEY, attn_mask=blind)[:, :, 2].abs().max() == 0


# --- where the tokens lie


@pytest.mark.parametrize(
    ("name", "size", "grid", "extra", "covered"),
    [
        ("vit_layer6_32", (32, 32), (8, 8), 1, (32, 32)),
        ("vit_tiny16_distilled", (224, 224), (14, 14), 2, (224, 224)),
        ("vit_smaller", (40, 72), (2, 4), 1, (32, 64)),  # what does not fill a patch is not seen
        ("vit_small_spt_lsa_paper", (64, 64), (4, 4), 1, (64, 64)),  # patches without a convolution
    ],
)
def test_the_grid_is_that_of_the_patches(
    name: str, size: tuple[int, int], grid: tuple[int, int], extra: int, covered: tuple[int, int]
) -> None:
    model = build_model(name, image_size=size, num_classes=10)
    for one in attention_maps(model, torch.randn(1, 3, *size)):
        assert (one.grid, one.extra, one.covered, one.readout) == (grid, extra, covered, "CLS")
        assert one.kept.tolist() == [list(range(grid[0] * grid[1]))]


def timm_vit(**options: Any) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    model: nn.Module = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=3, **options
    )
    return model


@pytest.mark.parametrize(
    ("options", "extra", "readout"),
    [
        ({}, 1, "CLS"),
        ({"reg_tokens": 4}, 5, "CLS"),
        ({"global_pool": "avg"}, 1, "mean"),
        ({"global_pool": "avg", "class_token": False}, 0, "mean"),
        ({"global_pool": "map", "class_token": False}, 0, "mean"),  # a query that collects the answer is no layer
    ],
    ids=["cls", "registers", "cls-pooled", "pooled", "collected"],
)
def test_without_a_cls_that_gives_the_answer_it_is_read_from_the_mean(
    options: dict[str, Any], extra: int, readout: str
) -> None:
    maps = attention_maps(timm_vit(**options), pictures(32))
    assert [(one.extra, one.readout, one.grid) for one in maps] == [(extra, readout, (4, 4))] * 2
    rows = maps[0].weights[:, :, 0] if readout == "CLS" else maps[0].weights.mean(2)
    torch.testing.assert_close(maps[0].over_patches(), rows[..., extra:])


@pytest.mark.integration
def test_naflexvits_registers_stand_before_its_patches() -> None:
    """timm flattens the patches of 16 px for a linear layer: 384 px are 24 x 24 of them, after four registers."""
    import timm

    model = timm.create_model("naflexvit_base_patch16_gap", embed_dim=32, depth=2, num_heads=2)
    for one in attention_maps(model, pictures(384)[:1]):
        assert (one.tokens, one.extra, one.grid, one.readout) == (580, 4, (24, 24), "mean")


class UnfoldedViT(nn.Module):
    """Patches without a convolution and without any name that tells their size; ``tokens`` is given to the layer."""

    def __init__(self, choose: Callable[[Tensor], Tensor] = lambda tokens: tokens) -> None:
        super().__init__()
        self.choose = choose
        self.embed = nn.Linear(3 * 4 * 4, 16)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(F.unfold(images, 4, stride=4).transpose(1, 2))
        return self.layer(self.choose(x)).mean(1)


def test_patches_without_a_convolution_are_found_by_filling_the_image() -> None:
    (one,) = attention_maps(UnfoldedViT(), torch.randn(2, 3, 16, 32))  # through the fast path, were it on
    assert (one.grid, one.extra, one.readout, one.name) == ((4, 8), 0, "mean", "layer.self_attn")


def test_tokens_that_are_no_grid_are_refused() -> None:
    with pytest.raises(Unsupported, match="has 30 tokens, which are not a grid of patches"):
        attention_maps(UnfoldedViT(lambda x: x[:, 2:]), torch.randn(1, 3, 16, 32))


@pytest.mark.integration
@pytest.mark.parametrize(
    ("name", "size", "reason"),
    [
        ("torchvision:swin_t", 64, "within windows"),
        ("torchvision:resnet18", 64, "no attention over tokens"),
        ("timm:xcit_nano_12_p16_224", 64, "between 32 channels"),
        ("timm:pvt_v2_b0", 64, "from 256 tokens to 4"),
    ],
)
def test_attention_that_is_not_a_map_over_the_image_is_refused(name: str, size: int, reason: str) -> None:
    model = build_model(name, image_size=size, num_classes=10)
    with pytest.raises(Unsupported, match=reason):
        attention_maps(model, pictures(size, 1))


# --- dropped patches


def kept_by_hand(model: Any, images: Tensor) -> list[Tensor]:
    """The patches that each block has, from the scores of an ordinary pass alone."""
    learned = hasattr(model, "score_predictor")
    scored: list[Tensor] = []
    predictors = model.score_predictor if learned else model.scores
    hooks = [one.register_forward_hook(lambda _, args, output: scored.append(output[..., 0])) for one in predictors]
    counts: list[int] = []
    hooks += [
        one.register_forward_pre_hook(lambda _, args: counts.append(args[0].shape[1] - 1)) for one in model.blocks
    ]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    alive = [list(range(counts[0] if not learned else 64)) for _ in images]
    scores = iter(scored)
    kept = []
    for block, count in enumerate(counts):
        if (block in model.stages) if learned else block > 0:
            score = next(scores)
            for number, patches in enumerate(alive):
                order = sorted(range(len(patches)), key=lambda at, n=number, s=score: -float(s[n, at]))
                alive[number] = sorted(patches[at] for at in order[:count])
        kept.append(torch.tensor(alive))
    return kept


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("cifar_dynamic_vit_pruned", [64, 64, 57, 45, 31, 18]),
        ("cifar_dynamic_vit_learned", [64, 44, 44, 31, 21, 21]),
        ("cifar_dynamic_vit_dense", [64] * 6),
    ],
)
def test_the_patches_that_are_left_are_those_of_the_best_scores(name: str, counts: list[int]) -> None:
    model, images = built(name, 32), pictures(32, 3)
    maps = attention_maps(model, images)
    assert [one.kept.shape[1] for one in maps] == counts
    if counts[-1] < 64:
        expected = kept_by_hand(model, images)
        for one, kept in zip(maps, expected, strict=True):
            assert torch.equal(one.kept, kept)
        assert not torch.equal(maps[-1].kept[0], maps[-1].kept[1])  # each picture loses others
    for one in maps:
        assert one.weights.shape[-1] == one.kept.shape[1] + 1
        over = one.over_patches()
        assert over.isnan().sum(-1).eq(64 - one.kept.shape[1]).all()
        for number, patches in enumerate(one.kept):
            assert torch.equal(over[number][:, patches], one.weights[number, :, 0, 1:])


def test_stages_are_runs_of_layers_with_the_same_patches() -> None:
    stages = kept_stages(attention_maps(built("cifar_dynamic_vit_learned", 32), pictures(32, 1)))
    assert [(first, last, kept.shape[1]) for first, last, kept in stages] == [
        (0, 0, 64),
        (1, 2, 44),
        (3, 3, 31),
        (4, 5, 21),
    ]
    assert len(kept_stages(attention_maps(built("cifar_dynamic_vit_dense", 32), pictures(32, 1)))) == 1


# --- rollout


def a_map(
    weights: Tensor, kept: list[int] | None = None, extra: int = 1, grid: tuple[int, int] = (1, 2)
) -> AttentionMap:
    """A layer of one image."""
    return AttentionMap(
        name="layer",
        kind="softmax",
        weights=weights if weights.dim() == 4 else weights[None, None],
        extra=extra,
        grid=grid,
        covered=(1, 2),
        kept=torch.tensor([list(range(grid[0] * grid[1])) if kept is None else kept]),
        readout="CLS" if extra else "mean",
    )


def test_rollout_of_two_layers_by_hand() -> None:
    first = torch.tensor([[0.2, 0.8, 0.0], [0.0, 0.5, 0.5], [1.0, 0.0, 0.0]])
    second = torch.tensor([[0.0, 0.0, 1.0], [0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])
    # (A + I) / 2: rows already sum to 1
    expected = torch.tensor(
        [
            [0.5 * 0.6 + 0.5 * 0.5, 0.5 * 0.4, 0.5 * 0.5],
            [0.25 * 0.6, 0.25 * 0.4 + 0.75 * 0.75, 0.75 * 0.25],
            [0.5, 0, 0.5],
        ]
    )
    torch.testing.assert_close(rollout([a_map(first), a_map(second)])[0], expected)
    torch.testing.assert_close(rollout_over_patches([a_map(first), a_map(second)])[0], expected[0, 1:])


def test_rollout_of_even_attention_has_a_closed_form() -> None:
    L, layers = 5, 4
    even = torch.full((2, 3, L, L), 1 / L)
    maps = [
        AttentionMap(
            name="layer",
            kind="softmax",
            weights=even,
            extra=1,
            grid=(2, 2),
            covered=(2, 2),
            kept=torch.arange(4).expand(2, 4),
            readout="CLS",
        )
    ] * layers
    expected = torch.eye(L) * 0.5**layers + (1 - 0.5**layers) / L
    torch.testing.assert_close(rollout(maps), expected.expand(2, L, L))


def test_rollout_takes_the_mean_or_the_maximum_of_the_heads() -> None:
    one, other = torch.eye(3), torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    both = a_map(torch.stack([one, other])[None])
    torch.testing.assert_close(rollout([both])[0], 0.75 * one + 0.25 * other)
    torch.testing.assert_close(rollout([both], heads="max")[0], (2 * one + other) / 3)


def test_rollout_of_a_model_that_drops_patches_stays_on_the_whole_grid() -> None:
    first = torch.tensor([[0.2, 0.8, 0.0], [0.0, 0.5, 0.5], [1.0, 0.0, 0.0]])
    second = torch.tensor([[0.4, 0.6], [0.0, 1.0]])  # CLS and the second patch: the first is gone
    held = rollout([a_map(first), a_map(second, kept=[1])])[0]
    one = torch.tensor([[0.6, 0.4, 0.0], [0.0, 0.75, 0.25], [0.5, 0.0, 0.5]])
    torch.testing.assert_close(held[0], 0.7 * one[0] + 0.3 * one[2])
    torch.testing.assert_close(held[1], one[1])  # what it held when it was dropped
    torch.testing.assert_close(held[2], one[2])


def test_rollout_without_cls_is_the_mean_of_the_tokens_that_are_left() -> None:
    first = torch.tensor([[0.0, 1.0], [0.5, 0.5]])
    found = rollout_over_patches([a_map(first, extra=0), a_map(torch.ones(1, 1), kept=[1], extra=0)])[0]
    torch.testing.assert_close(found, torch.tensor([0.25, 0.75]))


def test_rollout_of_real_models_has_rows_that_sum_to_1() -> None:
    for name, size in (("vit_tiny16_distilled", 224), ("cifar_dynamic_vit_pruned", 32), ("vit_layer6_32", 32)):
        maps = attention_maps(built(name, size), pictures(size))
        held = rollout(maps)
        assert held.shape == (2, *[maps[0].extra + maps[0].patches] * 2)
        torch.testing.assert_close(held.sum(-1), torch.ones(held.shape[:2]))


def test_rollout_needs_layers_on_one_grid() -> None:
    with pytest.raises(Unsupported, match="different grids"):
        rollout([a_map(torch.eye(3)), a_map(torch.eye(2), grid=(1, 1))])
    with pytest.raises(ValueError, match="at least one layer"):
        rollout([])


def test_entropy_and_attention_on_itself_have_closed_forms() -> None:
    even = a_map(torch.full((3, 3), 1 / 3))
    assert even.entropy_nat() == pytest.approx(math.log(3))
    assert even.on_itself() == pytest.approx(1 / 3)
    assert a_map(torch.eye(3)).entropy_nat() == 0
    assert a_map(torch.eye(3)).on_itself() == 1
    assert a_map(torch.eye(2), extra=0).on_itself() is None


# --- the model stays as it was


def state_of(model: nn.Module) -> list[Any]:
    """Everything that watching could leave behind."""
    found: list[Any] = [torch.backends.mha.get_fastpath_enabled(), torch.overrides._get_current_function_mode_stack()]
    found += [F.scaled_dot_product_attention, F.softmax, F.multi_head_attention_forward, torch.softmax]
    for module in model.modules():
        hooks = [value for key, value in sorted(vars(module).items()) if "hook" in key]
        found += [module.training, [dict(one) if hasattr(one, "items") else one for one in hooks]]
        found += [sorted(vars(module)), type(module).forward, "forward" in vars(module)]
    found += [(key, value.clone()) for key, value in model.state_dict().items()]
    return found


def same(one: Any, other: Any) -> bool:
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return torch.equal(one, other) if isinstance(one, Tensor) else one == other


@pytest.mark.parametrize(
    "name", ["vit_layer6_32", "cifar_lightweight_vit", "cifar_dynamic_vit_pruned", "timm:vit_tiny_patch16_224"]
)
def test_nothing_of_the_model_is_changed(name: str) -> None:
    model = built(name, 32 if "timm" not in name else 64)
    images = pictures(32 if "timm" not in name else 64)
    with torch.no_grad():
        expected = model(images)
    before = state_of(model)
    attention_maps(model, images)
    assert same(state_of(model), before)
    with torch.no_grad():
        assert torch.equal(model(images), expected)


@pytest.mark.integration
def test_a_model_in_training_is_watched_in_evaluation_and_trains_on() -> None:
    model = build_model("vit_basic", num_classes=10).train()  # it has dropout
    model.blocks[1].eval()
    before = state_of(model)
    one, other = attention_maps(model, pictures(32)), attention_maps(model, pictures(32))
    assert torch.equal(one[-1].weights, other[-1].weights)
    assert same(state_of(model), before)
    model(pictures(32)).sum().backward()
    assert model.blocks[0].attn.q.weight.grad is not None


@pytest.mark.parametrize("enabled", [True, False])
def test_an_exception_inside_the_model_leaves_nothing_behind(enabled: bool) -> None:
    model = UnfoldedViT().train()

    def fail(*_: Any) -> None:
        raise RuntimeError("in the layer")

    hook = model.layer.norm2.register_forward_pre_hook(fail)
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(enabled)
    try:
        state = state_of(model)
        with pytest.raises(RuntimeError, match="in the layer"):
            attention_maps(model, pictures(32))
        assert same(state_of(model), state)
    finally:
        hook.remove()
        torch.backends.mha.set_fastpath_enabled(before)


def test_maps_are_ordinary_float32_tensors_on_the_cpu() -> None:
    model = build_model("vit_layer6_32").to(torch.bfloat16).eval()
    for one in attention_maps(model, pictures(32).to(torch.bfloat16)):
        assert one.weights.dtype == torch.float32
        assert not one.weights.is_inference()
        assert not one.weights.requires_grad
        torch.testing.assert_close(one.weights.sum(-1), torch.ones(2, one.heads, 65))
