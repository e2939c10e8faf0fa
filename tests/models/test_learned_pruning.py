"""DynamicViT: what it drops, that a hidden patch is really hidden, and that the predictors are trained."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tests.models import float64_reference as reference
from vitbench.analysis.closed_form import closed_form
from vitbench.core.errors import ImageSizeError
from vitbench.models import build_model, describe_model, use_attention
from vitbench.models.architectures.learned_pruning import (
    KEEP,
    DynamicViT,
    KeepPredictor,
    kept_patches,
    masked_attention,
    masked_block,
    ratio_loss,
    sample_decision,
)
from vitbench.models.architectures.vit import VisionTransformer

NAMES = ("dynamic_vit_small", "cifar_dynamic_vit_learned")
every_model = pytest.mark.parametrize("name", NAMES)

PLAIN: dict[str, Any] = {
    "image_size": (24, 16),  # 6 x 4 patches
    "num_classes": 5,
    "patch": 4,
    "width": 24,
    "depth": 4,
    "heads": 3,
    "mlp_width": 40,
}


def small(*, keep: float = 0.7, stages: tuple[int, ...] = (1, 3), seed: int = 0, **more: Any) -> DynamicViT:
    """A narrow DynamicViT in float64, no parameter at a special value such as 0."""
    torch.manual_seed(seed)
    model = DynamicViT(keep=keep, stages=stages, **{**PLAIN, **more})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model.double()


def pictures(batch: int = 2, size: tuple[int, int] = (24, 16)) -> Tensor:
    return torch.randn(batch, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def decide(model: DynamicViT, keep: bool) -> None:
    """Make every predictor all but certain to keep, or to drop."""
    with torch.no_grad():
        for predictor in model.score_predictor:
            last = predictor.out_conv[4]
            last.weight.zero_()
            last.bias.copy_(torch.tensor([1e3, -1e3] if keep else [-1e3, 1e3]))


def inputs_of_blocks(model: nn.Module, images: Tensor) -> list[Tensor]:
    """Tokens (B, L, D) into each block's first norm, which is called in training, too."""
    seen: list[Tensor] = []
    hooks = [block.norm1.register_forward_pre_hook(lambda _, args: seen.append(args[0])) for block in model.blocks]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    return seen


# --- evaluation


def reference_logits(config: Mapping[str, Any], state: reference.State, images: np.ndarray) -> np.ndarray:
    """The paper's evaluation in float64 NumPy, image by image; knows no module of vitbench."""
    eps = config["norm_eps"]
    rows = []
    for image in images:
        x = reference.embed(config, state, image[None])
        N = x.shape[1] - 1
        for block in range(config["depth"]):
            if block in config["stages"]:
                stage = list(config["stages"]).index(block)
                x = drop_learned(state, x[0], stage, int(N * config["keep"] ** (stage + 1)))[None]
            p = f"blocks.{block}."
            x = x + reference.softmax_attention(
                state, p + "attn.", reference.norm(state, p + "norm1.", x, eps), config["heads"]
            )
            hidden = reference.linear(state, p + "mlp.fc1.", reference.norm(state, p + "norm2.", x, eps))
            x = x + reference.linear(state, p + "mlp.fc2.", reference.ACTIVATIONS[config["activation"]](hidden))
        rows.append(reference.linear(state, "head.", reference.norm(state, "norm.", x, eps)[0, 0]))
    return np.stack(rows)


def drop_learned(state: reference.State, tokens: np.ndarray, stage: int, keep: int) -> np.ndarray:
    """One image's tokens (1 + n, D), CLS first, without those that stage's predictor least wants: (1 + keep, D)."""
    p = f"score_predictor.{stage}."
    gelu = reference.ACTIVATIONS["gelu"]
    normed = reference.norm(state, p + "in_conv.0.", tokens[1:], 1e-5)
    z = gelu(reference.linear(state, p + "in_conv.1.", normed))  # (n, D)
    half = z.shape[1] // 2
    mean = sum(z[:, half:]) / len(z)
    log_odds = []
    for own in z[:, :half]:
        hidden = gelu(reference.linear(state, p + "out_conv.0.", np.concatenate([own, mean])))
        hidden = gelu(reference.linear(state, p + "out_conv.2.", hidden))
        to_keep, to_drop = reference.linear(state, p + "out_conv.4.", hidden)
        log_odds.append(to_keep - to_drop)  # rises with the probability to keep
    best = sorted(range(len(log_odds)), key=lambda patch: -log_odds[patch])[:keep]
    return np.stack([tokens[0], *(tokens[1 + patch] for patch in sorted(best))])


@pytest.mark.parametrize("attention", ["fused", "explicit"])
@pytest.mark.parametrize("name", NAMES)
def test_evaluation_matches_the_float64_reference(name: str, attention: str) -> None:
    config = {**describe_model(name).config, "width": 24, "heads": 3, "mlp_width": 40}
    size = (6 * config["patch"], 5 * config["patch"])
    model = small(**{**config, "image_size": size, "num_classes": 7}).eval()
    images = pictures(size=size)
    with torch.no_grad(), use_attention(model, attention):
        ours = model(images)
    state = {key: value.numpy() for key, value in model.state_dict().items()}
    expected = reference_logits(config, state, images.numpy())
    assert expected.std() > 0.01
    torch.testing.assert_close(ours, torch.from_numpy(expected), rtol=0, atol=1e-10)


def test_the_pruning_changes_the_logits() -> None:
    model = small().eval()
    dense = VisionTransformer(**PLAIN).double().eval()
    dense.load_state_dict({key: value for key, value in model.state_dict().items() if "predictor" not in key})
    with torch.no_grad():
        assert (model(pictures()) - dense(pictures())).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("name", "size", "tokens"),
    [
        ("dynamic_vit_small", (224, 224), [197] * 3 + [138] * 3 + [97] * 3 + [68] * 3),
        ("cifar_dynamic_vit_learned", (32, 32), [65, 45, 45, 32, 22, 22]),
        ("cifar_dynamic_vit_learned", (28, 20), [36, 25, 25, 18, 13, 13]),
    ],
)
def test_each_block_gets_cls_and_the_ratio_of_the_original_patches(
    name: str, size: tuple[int, int], tokens: list[int]
) -> None:
    model = meta_model(name, size, 10).eval()
    seen = inputs_of_blocks(model, torch.empty(2, 3, *size, device="meta"))
    assert [x.shape[1] for x in seen] == tokens == list(closed_form(describe_model(name), size, 10).tokens)


def test_training_keeps_all_tokens_in_the_blocks() -> None:
    assert [x.shape[1] for x in inputs_of_blocks(small().train(), pictures())] == [25] * 4


def test_patches_are_rounded_down_from_the_original_number() -> None:
    assert [kept_patches(196, 0.7, stage) for stage in (1, 2, 3)] == [137, 96, 67]
    assert kept_patches(100, 0.7, 2) == 48  # 0.7 ** 2 is 0.48999...: as in the authors' code
    assert kept_patches(10, 1.0, 3) == 10
    assert kept_patches(1, 0.7, 1) == 0


@pytest.mark.parametrize("training", [False, True])
def test_a_single_patch_may_be_dropped_too(training: bool) -> None:
    model = small(image_size=(4, 4)).train(training)
    logits = model(pictures(3, (4, 4)))
    assert logits.shape == (3, 5)
    assert torch.isfinite(logits).all()


def test_evaluation_keeps_those_that_the_predictor_likes_best_in_their_order() -> None:
    model = small(stages=(2,)).eval()
    before, after = inputs_of_blocks(model, pictures())[1:3]
    with torch.no_grad():
        before = model.blocks[1](before)
        log_probabilities = model.score_predictor[0](before[:, 1:])
    torch.testing.assert_close(log_probabilities.exp().sum(-1), torch.ones(2, 24, dtype=torch.float64))
    for image in range(2):
        best = log_probabilities[image, :, KEEP].argsort(descending=True)[:16].sort().values
        torch.testing.assert_close(after[image], torch.cat([before[image, :1], before[image, 1:][best]]))


@pytest.mark.parametrize("training", [False, True])
def test_a_batch_of_1_is_a_batch(training: bool) -> None:
    model = small().train(training)
    assert model(pictures(1)).shape == (1, 5)
    if not training:
        torch.testing.assert_close(model(pictures(2))[:1], model(pictures(2)[:1]))


@pytest.mark.parametrize("training", [False, True])
def test_another_image_size_is_refused(training: bool) -> None:
    with pytest.raises(ImageSizeError, match="built for 24x16"):
        small().train(training)(pictures(1, (24, 24)))


# --- parameters and FLOPs


def meta_model(name: str, size: tuple[int, int], classes: int) -> nn.Module:
    with torch.device("meta"):
        return build_model(name, image_size=size, num_classes=classes)


def counts_by_hand(config: Mapping[str, Any], size: tuple[int, int], classes: int) -> tuple[int, int]:
    """Parameters and FLOPs of one image, added up layer by layer as (inputs, outputs, rows)."""
    D, M, P = config["width"], config["mlp_width"], config["patch"]
    N = n = (size[0] // P) * (size[1] // P)
    layers = [(3 * P * P, D, N), (D, classes, 1)]
    norms, products = 1, 0
    for block in range(config["depth"]):
        if block in config["stages"]:
            layers += [(D, D, n), (D, D // 2, n), (D // 2, D // 4, n), (D // 4, 2, n)]
            norms += 1
            n = int(N * config["keep"] ** (1 + config["stages"].index(block)))
        layers += [(D, 3 * D, n + 1), (D, D, n + 1), (D, M, n + 1), (M, D, n + 1)]
        norms += 2
        products += 2 * (n + 1) ** 2 * D
    params = sum(inputs * outputs + outputs for inputs, outputs, _ in layers) + norms * 2 * D + (1 + N + 1) * D
    return params, 2 * (products + sum(inputs * outputs * rows for inputs, outputs, rows in layers))


@pytest.mark.integration
@every_model
@pytest.mark.parametrize("attention", ["fused", "explicit"])
def test_parameters_and_flops_match_a_count_by_hand(name: str, attention: str) -> None:
    card = describe_model(name)
    for size, classes in ((card.image_size, card.num_classes), ((card.patch * 7, card.patch * 5), 7)):
        model = meta_model(name, size, classes).eval().requires_grad_(False)
        params, flops = counts_by_hand(card.config, size, classes)
        formula = closed_form(card, size, classes)
        assert (formula.params, formula.flops) == (params, flops)
        assert sum(parameter.numel() for parameter in model.parameters()) == params
        with use_attention(model, attention), FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 3, *size, device="meta"))
        assert counter.get_total_flops() == flops


@pytest.mark.parametrize(
    ("keep", "width", "published"),
    [(0.7, 384, "2.9"), (0.8, 384, "3.4"), (0.9, 384, "4.0"), (0.7, 256, "1.3"), (0.7, 768, "11.4")],
)
def test_published_gflops_are_the_multiply_adds_cut_to_one_decimal(keep: float, width: int, published: str) -> None:
    config = {**describe_model("dynamic_vit_small").config, "keep": keep, "width": width, "mlp_width": 4 * width}
    macs = counts_by_hand(config, (224, 224), 1000)[1] // 2
    assert f"{macs // 10**8 / 10:.1f}" == published


def test_the_published_saving_is_that_of_the_printed_figures() -> None:
    card = describe_model("dynamic_vit_small")
    macs = counts_by_hand(card.config, (224, 224), 1000)[1] / 2
    dense = counts_by_hand({**card.config, "stages": []}, (224, 224), 1000)[1] / 2
    assert (round(macs / 1e9, 3), round(dense / 1e9, 3)) == (2.981, 4.599)
    claims = {claim.quantity: claim.value for claim in card.claims}
    assert claims["flops_change_vs:timm:deit_small_patch16_224"] == round(2.9 / 4.6 - 1, 2) == -0.37
    assert round(macs / dense - 1, 3) == -0.352


# --- training


def test_predictors_that_keep_all_make_it_the_plain_vit() -> None:
    model = small().train()
    decide(model, keep=True)
    dense = VisionTransformer(**PLAIN).double().train()
    dense.load_state_dict({key: value for key, value in model.state_dict().items() if "predictor" not in key})
    torch.testing.assert_close(model(pictures()), dense(pictures()), rtol=0, atol=1e-10)


def test_a_masked_block_has_all_dropouts_of_a_block() -> None:
    rates = ("attention_dropout", "projection_dropout", "mlp_hidden_dropout", "mlp_output_dropout", "stochastic_depth")
    block = small(**dict.fromkeys(rates, 0.3)).train().blocks[-1]
    x = torch.randn(8, 5, 24, dtype=torch.float64)
    block.attn.fused_attn = False  # the fused kernel draws its dropout otherwise
    torch.manual_seed(2)
    expected = block(x)
    torch.manual_seed(2)
    torch.testing.assert_close(masked_block(block, x, x.new_ones(8, 5)), expected, rtol=0, atol=1e-12)


def test_predictors_that_drop_all_leave_cls_and_a_finite_step() -> None:
    model = small().train()
    decide(model, keep=False)
    logits = model(pictures())
    loss = model.auxiliary_loss()
    assert loss is not None
    (logits.square().sum() + loss).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters() if parameter.grad is not None)
    x = inputs_of_blocks(model, pictures())[1]
    with torch.no_grad():
        for block in list(model.blocks)[1:]:
            x = block(x[:, :1])  # CLS alone
        torch.testing.assert_close(logits, model.head(model.norm(x[:, 0])), rtol=0, atol=1e-10)


def test_a_dropped_token_changes_no_other_and_sees_itself_beside_the_kept_ones() -> None:
    model = small()
    attn = model.blocks[0].attn
    x = torch.randn(2, 6, 24, dtype=torch.float64)
    kept = torch.tensor([[1, 1, 0, 1, 0, 1], [1, 0, 1, 1, 1, 1]], dtype=torch.float64)
    dropped = kept == 0
    with torch.no_grad():
        before = masked_attention(attn, x, kept)
        changed = masked_attention(attn, torch.where(dropped[..., None], torch.randn_like(x), x), kept)
        torch.testing.assert_close(changed[~dropped], before[~dropped], rtol=0, atol=0)
        assert (changed[dropped] - before[dropped]).abs().min() > 0
        for image, token in dropped.nonzero().tolist():
            sees = kept[image].bool()
            sees[token] = True
            alone = attn(x[image][sees][None])[0, int(sees[:token].sum())]
            torch.testing.assert_close(before[image, token], alone, rtol=0, atol=1e-12)
        for image in range(2):
            rest = attn(x[image][~dropped[image]][None])[0]  # what evaluation would compute
            torch.testing.assert_close(before[image][~dropped[image]], rest, rtol=0, atol=1e-12)


def test_masked_attention_is_equation_11() -> None:
    attn = small().blocks[0].attn
    x = torch.randn(1, 5, 24, dtype=torch.float64)
    kept = torch.tensor([[1.0, 0.0, 1.0, 1.0, 0.0]], dtype=torch.float64)
    q, k, v = (part.view(5, 3, 8) for part in attn.qkv(x)[0].split(24, dim=-1))
    outputs = torch.zeros(5, 3, 8, dtype=torch.float64)
    for head in range(3):
        for i in range(5):
            weights = []
            for j in range(5):
                visible = 1.0 if i == j else kept[0, j].item()
                weights.append(visible * torch.exp(q[i, head] @ k[j, head] / 8**0.5))
            for j in range(5):
                outputs[i, head] += weights[j] / sum(weights) * v[j, head]
    expected = attn.proj(outputs.view(1, 5, 24))
    torch.testing.assert_close(masked_attention(attn, x, kept), expected, rtol=0, atol=1e-12)


def test_masked_attention_is_finite_where_a_hidden_score_dwarfs_the_visible_ones() -> None:
    attn = small().float().blocks[0].attn
    x = torch.randn(1, 4, 24)
    x[0, 3] *= 1e4
    kept = torch.tensor([[1.0, 1.0, 1.0, 0.0]], requires_grad=True)
    output = masked_attention(attn, x, kept)
    output[:, :3].square().sum().backward()
    torch.testing.assert_close(output[:, :3], attn(x[:, :3]))
    assert kept.grad is not None
    assert torch.isfinite(kept.grad).all()


def test_masked_attention_has_the_gradients_of_equation_11() -> None:
    attn = small().requires_grad_(False).blocks[0].attn
    x = torch.randn(1, 4, 24, dtype=torch.float64, requires_grad=True)
    kept = torch.rand(1, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, kept: masked_attention(attn, x, kept), (x, kept))


def test_a_dropped_patch_stays_dropped_and_is_in_no_mean() -> None:
    model = small(stages=(1, 2, 3)).train()
    masks: list[Tensor] = []
    for predictor in model.score_predictor[1:]:
        predictor.register_forward_pre_hook(lambda _, args: masks.append(args[1]))
    model(pictures(8))
    first, second = masks
    assert set(first.unique().round(decimals=9).tolist()) == {0.0, 1.0}
    assert 0 < second.sum() < first.sum()
    assert (second <= first + 1e-12).all()

    predictor = model.score_predictor[0]
    patches = torch.randn(1, 6, 24, dtype=torch.float64)
    kept = torch.tensor([[1.0, 0.0, 1.0, 1.0, 0.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(predictor(patches, kept)[kept == 1], predictor(patches[kept == 1][None])[0])
    torch.testing.assert_close(predictor(patches, torch.ones_like(kept)), predictor(patches))


def test_decisions_follow_the_probabilities_and_pass_the_soft_gradient() -> None:
    torch.manual_seed(0)
    log_probabilities = torch.tensor([0.8, 0.2]).log().expand(1, 20_000, 2).clone().requires_grad_()
    decisions = sample_decision(log_probabilities)
    assert decisions.mean().item() == pytest.approx(0.8, abs=0.01)
    decisions.sum().backward()
    assert log_probabilities.grad is not None
    assert (log_probabilities.grad[..., KEEP] > 0).float().mean() > 0.99
    assert sample_decision(log_probabilities.detach().bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("loss", ["classes", "ratio"])
def test_each_loss_reaches_every_parameter_of_the_predictors(loss: str) -> None:
    model = small().train()
    logits = model(pictures(4))
    ratio = model.auxiliary_loss()
    assert ratio is not None
    (nn.functional.cross_entropy(logits, torch.arange(4)) if loss == "classes" else ratio).backward()
    for predictor in model.score_predictor:
        for parameter in predictor.parameters():
            assert parameter.grad is not None
            assert parameter.grad.abs().max() > 0


def test_training_leaves_no_parameter_without_a_gradient() -> None:
    model = small().train()
    model(pictures()).square().sum().backward()
    assert [key for key, parameter in model.named_parameters() if parameter.grad is None] == []


def test_ratio_loss_matches_a_hand_computation() -> None:
    masks = [torch.tensor([[1.0, 1, 1, 0], [1, 1, 0, 0]]), torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 0]])]
    by_hand = ((0.5 - 0.75) ** 2 + (0.5 - 0.5) ** 2 + (0.25 - 0.25) ** 2 + (0.25 - 0) ** 2) / 4
    torch.testing.assert_close(ratio_loss(masks, 0.5), torch.tensor(by_hand))


@pytest.mark.parametrize(("keep", "fraction"), [(True, 1.0), (False, 0.0)])
def test_auxiliary_loss_is_twice_the_ratio_loss(keep: bool, fraction: float) -> None:
    model = small().train()
    decide(model, keep)
    model(pictures())
    expected = 2.0 * ((0.7 - fraction) ** 2 + (0.49 - fraction) ** 2) / 2
    assert model.auxiliary_loss().item() == pytest.approx(expected, abs=1e-12)


def test_auxiliary_loss_is_none_before_training_and_in_evaluation() -> None:
    model = small().train()
    assert model.auxiliary_loss() is None
    model(pictures())
    assert model.auxiliary_loss() is not None
    model.eval()
    assert model.auxiliary_loss() is None
    model(pictures())
    assert model.train().auxiliary_loss() is None


@pytest.mark.integration
def test_the_ratio_loss_alone_moves_the_kept_fraction_to_its_target() -> None:
    model = small(keep=0.5).train()
    with torch.no_grad():
        for predictor in model.score_predictor:
            predictor.out_conv[4].bias.copy_(torch.tensor([2.0, -2.0]))
    optimizer = torch.optim.Adam(model.score_predictor.parameters(), lr=0.01)
    images = pictures(16)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        model(images)
        loss = model.auxiliary_loss()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.25 * sum(losses[:10])


def test_a_model_can_be_copied_pickled_and_saved_after_training() -> None:
    model = small().train()
    keys = set(model.state_dict())
    model(pictures())
    assert set(model.state_dict()) == keys
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin.auxiliary_loss() is None
        with torch.no_grad():
            torch.testing.assert_close(twin.eval()(pictures()), copy.deepcopy(model).eval()(pictures()), rtol=0, atol=0)
    assert model.auxiliary_loss().requires_grad


def test_training_repeats_under_a_seed() -> None:
    model = small(embedding_dropout=0.1, attention_dropout=0.1, stochastic_depth=0.1).train()

    def step() -> tuple[Tensor, Tensor]:
        torch.manual_seed(7)
        logits = model(pictures())
        return logits.detach(), model.auxiliary_loss().detach()

    for once, again in zip(step(), step(), strict=True):
        assert torch.equal(once, again)
    assert not torch.equal(step()[0], model(pictures()))


@pytest.mark.integration
@every_model
def test_training_runs_on_meta(name: str) -> None:
    card = describe_model(name)
    model = meta_model(name, card.image_size, card.num_classes).train()
    logits = model(torch.empty(2, 3, *card.image_size, device="meta"))
    labels = torch.zeros(2, dtype=torch.long, device="meta")
    loss = nn.functional.cross_entropy(logits, labels) + model.auxiliary_loss()
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("half", ["autocast to bfloat16", "autocast to float16", "bfloat16"])
def test_half_precision_is_finite_and_trains(half: str, training: bool) -> None:
    model = small().float().train(training)
    images = pictures().float()
    if half == "bfloat16":
        model, images = model.bfloat16(), images.bfloat16()
    dtype = torch.float16 if "float16" in half.split() else torch.bfloat16
    with torch.autocast("cpu", dtype=dtype, enabled="autocast" in half):
        logits = model(images)
        loss = logits.float().square().mean()
        if training:
            loss = loss + model.auxiliary_loss()
    loss.backward()
    assert logits.dtype == dtype
    assert torch.isfinite(logits).all()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert not training or len(gradients) == len(list(model.parameters()))


# --- construction


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"keep": 0.0}, "no ratio"),
        ({"keep": 1.5}, "no ratio"),
        ({"stages": ()}, "no rising blocks"),
        ({"stages": (2, 1)}, "no rising blocks"),
        ({"stages": (1, 1)}, "no rising blocks"),
        ({"stages": (-1, 1)}, "no rising blocks"),
        ({"stages": (1, 4)}, "blocks 0 to 3"),
        ({"distilled": True}, "no distillation token"),
        ({"separate_qkv": True}, "one layer for q, k and v"),
        ({"make_attention": nn.Identity}, "one layer for q, k and v"),
    ],
)
def test_settings_that_cannot_be_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**given)


def test_predictors_start_like_the_other_layers_and_have_the_authors_names() -> None:
    torch.manual_seed(0)
    model = DynamicViT(keep=0.7, stages=[1, 3], **{**PLAIN, "width": 96})
    assert model.stages == (1, 3)
    assert {key.removeprefix("score_predictor.0.") for key in model.state_dict() if "predictor.0" in key} == {
        f"{layer}.{kind}"
        for layer in ("in_conv.0", "in_conv.1", "out_conv.0", "out_conv.2", "out_conv.4")
        for kind in ("weight", "bias")
    }
    first = model.score_predictor[0]
    assert isinstance(first, KeepPredictor)
    assert first.in_conv[1].weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert first.in_conv[1].bias.abs().max() == 0
