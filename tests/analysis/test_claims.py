"""Published values against hand arithmetic: how a printed number agrees, and which verdict a claim gets."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from decimal import ROUND_DOWN, ROUND_HALF_EVEN, ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.reports.fabricate import cell, full_run, infer, ok, trained, training_cell, write_run
from tests.training.data.folders import make_image_folder
from vitbench.analysis.claims import (
    Counts,
    Judgement,
    agrees_as_printed,
    count_by_formula,
    judge,
    judge_card,
    judge_runs,
    printed_step,
    to_dict,
)
from vitbench.cli import run_command
from vitbench.core.errors import Unsupported
from vitbench.core.records import LOWER_BOUND, Measurement, Record
from vitbench.models.cards import Claim, ModelCard, is_external, load_model_cards, model_registry
from vitbench.reports.model.runs import Run
from vitbench.training.data.datasets import describe_data
from vitbench.training.recipes import load_recipe

CARDS = {card.name: card for card in load_model_cards()}
CLAIMS = [(card, claim) for card in CARDS.values() for claim in card.claims]

#: What a printed number can be a multiple of: a plain number, thousands, millions, billions, percent, thousandths.
MULTIPLES = (1.0, 1e3, 1e6, 1e9, 1e-2, 1e-3)

#: Every figure that the five projects print, copied by hand from what was read in them: model, quantity, value.
PRINTED_BY_THE_PROJECTS = [
    # CIFAR-ViT
    ("cifar_vit_small", "params", 6.0e6),
    ("cifar_vit_small", "flops", 0.8e9),
    ("cifar_vit_small", "top1", 0.831),
    ("cifar_vit_small", "latency", 0.0118),
    ("cifar_vit_base", "params", 8.5e6),
    ("cifar_vit_base", "flops", 1.2e9),
    ("cifar_vit_base", "top1", 0.852),
    ("cifar_vit_base", "macro_f1", 0.851),
    ("cifar_vit_base", "latency", 0.0153),
    ("cifar_dynamic_vit_dense", "params", 5.2e6),
    ("cifar_dynamic_vit_dense", "flops", 0.6e9),
    ("cifar_dynamic_vit_dense", "top1", 0.843),
    ("cifar_dynamic_vit_dense", "latency", 0.0097),
    ("cifar_dynamic_vit_pruned", "params", 5.2e6),
    ("cifar_dynamic_vit_pruned", "flops", 0.6e9),
    ("cifar_dynamic_vit_pruned", "top1", 0.843),
    ("cifar_dynamic_vit_pruned", "latency", 0.0097),
    ("cifar_dynamic_vit_pruned", "flops_change_vs:cifar_dynamic_vit_dense", -0.35),  # the middle of 30-40 %
    ("cifar_lightweight_vit", "params", 4.8e6),
    ("cifar_lightweight_vit", "flops", 0.5e9),
    ("cifar_lightweight_vit", "top1", 0.825),
    ("cifar_lightweight_vit", "latency", 0.0082),
    ("cifar_lightweight_vit", "params_change_vs:cifar_vit_base", -0.44),
    ("cifar_lightweight_vit", "flops_change_vs:cifar_vit_base", -0.58),
    # its ablation of the depth; 6 blocks are cifar_vit_base
    ("cifar_vit_base_d3", "params", 4.5e6),
    ("cifar_vit_base_d3", "top1", 0.812),
    ("cifar_vit_base_d9", "params", 12.5e6),
    ("cifar_vit_base_d9", "top1", 0.858),
    ("cifar_vit_base_d12", "params", 16.5e6),
    ("cifar_vit_base_d12", "top1", 0.861),
    # its ablation of the augmentation
    ("cifar_vit_base", "top1", 0.803),
    ("cifar_vit_base", "top1", 0.821),
    ("cifar_vit_base", "top1", 0.834),
    ("cifar_vit_base", "top1", 0.842),
    ("cifar_vit_base", "top1", 0.848),
    ("cifar_vit_base", "top1", 0.852),
    # its classes out of balance: baseline, sampler, weights, both
    ("cifar_vit_base", "top1", 0.783),
    ("cifar_vit_base", "macro_f1", 0.712),
    ("cifar_vit_base", "top1", 0.815),
    ("cifar_vit_base", "macro_f1", 0.768),
    ("cifar_vit_base", "top1", 0.807),
    ("cifar_vit_base", "macro_f1", 0.753),
    ("cifar_vit_base", "top1", 0.821),
    ("cifar_vit_base", "macro_f1", 0.775),
    # ViT_Code_Replication
    ("vit_base16", "params", 86.0e6),
    ("vit_smaller", "params", 21.0e6),
    ("vit_smaller", "top1", 0.6451),
    ("vit_smaller", "loss", 1.0288),
    # ViT reproduction
    ("vit_basic", "training_time", 3100.0),
    # ViT-Classification-CIFAR10
    ("vit_layer6_32", "top1", 0.7831),
    ("vit_layer6_32", "loss", 0.6296),
    ("vit_layer12_32", "top1", 0.8204),
    ("vit_layer12_32", "loss", 0.5560),
    # Paper replicating: vision_transformer
    ("vit_b16_scratch", "top1", 0.35),
    ("vit_b16_transfer", "top1", 0.95),
]

#: Claims of papers rather than of the five projects.
OF_PAPERS = {"dynamic_vit_small"}


def claim(printed: str, value: float, quantity: str = "params", **more: Any) -> Claim:
    return Claim(quantity=quantity, value=value, printed=printed, source="a README", **more)


# What a printed number says


@pytest.mark.parametrize(
    ("printed", "value", "agreeing", "differing"),
    [
        ("6.0M", 6.0e6, (6.0e6, 5.95e6, 6.04e6, 6.099e6), (5.94e6, 6.1e6, 6.4e6)),  # two digits, not one
        ("6M", 6.0e6, (5.5e6, 6.4e6, 6.99e6), (5.49e6, 7.0e6)),
        ("~86M", 86.0e6, (86_567_656, 85.5e6), (87.0e6, 85.4e6)),
        ("86.6M", 86.6e6, (86_567_656,), (86.5e6, 86.7e6)),  # three digits: rounded
        ("86.5M", 86.5e6, (86_567_656,), (86.6e6, 86.4e6)),  # and cut off
        ("86.7M", 86.7e6, (), (86_567_656,)),
        ("0.6 GFLOPs", 0.6e9, (5.96e8,), (5.4e8, 7.0e8)),
        ("0.5 GFLOPs", 0.5e9, (5.96e8,), (6.0e8, 4.4e8)),
        (".851 (macro F1)", 0.851, (0.851, 0.8505, 0.8519), (0.8504, 0.852, 0.85)),
        ("64.51 % after 20 epochs", 0.6451, (0.6451, 0.64505, 0.64519), (0.6452, 0.645)),
        ("11.8 ms", 0.0118, (0.0118, 0.01175, 0.01189), (0.0119, 0.0117)),
        ("86,567,656 params", 86_567_656, (86_567_656,), (86_567_655, 86_567_657)),  # whole numbers are exact
        ("12 heads", 12, (12,), (11, 13)),
        ("-44 % params", -0.44, (-0.44, -0.435, -0.449), (-0.434, -0.45, 0.44, -0.5298)),
        ("-58 % FLOPs", -0.58, (-0.5751, -0.5899), (-0.57, -0.59, 0.58)),
    ],
)
def test_a_value_agrees_if_rounded_or_truncated_it_equals_what_was_printed(
    printed: str, value: float, agreeing: tuple[float, ...], differing: tuple[float, ...]
) -> None:
    published = claim(printed, value)
    assert [x for x in agreeing if not agrees_as_printed(published, x)] == []
    assert [x for x in differing if agrees_as_printed(published, x)] == []


@pytest.mark.parametrize(
    ("printed", "value", "step"),
    [
        ("6.0M", 6.0e6, 0.1e6),
        ("~86M", 86.0e6, 1e6),
        ("0.8 GFLOPs", 0.8e9, 0.1e9),
        ("83.1 %", 0.831, 0.001),
        (".851", 0.851, 0.001),
        ("15.3 ms", 0.0153, 0.0001),
        ("1,234,567", 1_234_567, 1.0),
        ("-44 %", -0.44, 0.01),
        ("validation loss 1.0288", 1.0288, 0.0001),
    ],
)
def test_the_step_is_one_unit_of_the_last_digit(printed: str, value: float, step: float) -> None:
    assert printed_step(claim(printed, value)) == pytest.approx(step, rel=1e-12)


def test_a_range_agrees_from_its_one_end_to_the_other() -> None:
    published = claim("saves 30-40 %", -0.35, low=-0.40, high=-0.30)
    assert all(agrees_as_printed(published, change) for change in (-0.40, -0.35, -0.301, -0.30))
    assert not any(agrees_as_printed(published, change) for change in (-0.401, -0.299, -0.272, 0.35))


def test_what_was_printed_without_a_number_is_a_mistake_of_ours() -> None:
    with pytest.raises(ValueError, match="'about the same' holds no number"):
        printed_step(claim("about the same", 1.0))


#: Numbers below 100 with six decimals: finer than what is printed, coarser than what floats confuse.
NUMBERS = st.integers(1, 10**8 - 1).map(lambda millionths: Decimal(millionths) / 10**6)
ROUNDINGS = st.sampled_from([ROUND_HALF_EVEN, ROUND_HALF_UP, ROUND_DOWN])


@pytest.mark.integration
@given(NUMBERS, st.integers(0, 4), ROUNDINGS, st.sampled_from(MULTIPLES), st.sampled_from([1, -1]))
def test_whatever_is_rounded_or_cut_off_agrees_with_what_is_printed_of_it(
    number: Decimal, decimals: int, rounding: str, multiple: float, sign: int
) -> None:
    shown = number.quantize(Decimal(1).scaleb(-decimals), rounding)
    assume(shown != 0)
    published = claim(f"{'-' if sign < 0 else ''}{shown} of something", sign * float(shown) * multiple)
    assert agrees_as_printed(published, sign * float(number) * multiple)
    assert not agrees_as_printed(published, -sign * float(number) * multiple)


@pytest.mark.integration
@given(
    NUMBERS,
    st.integers(0, 4),
    st.sampled_from(MULTIPLES),
    st.sampled_from([1, -1]),
    st.floats(1.001, 50) | st.floats(-50, -1.001),
)
def test_what_is_more_than_one_unit_of_the_last_digit_away_does_not_agree(
    number: Decimal, decimals: int, multiple: float, sign: int, units: float
) -> None:
    shown = number.quantize(Decimal(1).scaleb(-decimals))
    assume(shown != 0)
    published = claim(f"{'-' if sign < 0 else ''}{shown}", sign * float(shown) * multiple)
    away = float(shown) + units * 10.0**-decimals
    assert not agrees_as_printed(published, sign * away * multiple)


# The claims that are packaged


def test_the_cards_hold_every_value_that_the_five_projects_print_and_no_other() -> None:
    held = sorted((card.name, one.quantity, one.value) for card, one in CLAIMS if card.name not in OF_PAPERS)
    assert held == sorted(PRINTED_BY_THE_PROJECTS)


def test_the_claims_of_papers_are_those_of_its_table() -> None:
    held = {(card.name, one.quantity, one.value) for card, one in CLAIMS if card.name in OF_PAPERS}
    assert held == {
        ("dynamic_vit_small", "flops", 2.9e9),
        ("dynamic_vit_small", "top1", 0.793),
        ("dynamic_vit_small", "flops_change_vs:timm:deit_small_patch16_224", -0.37),
    }


@pytest.mark.parametrize(("card", "published"), CLAIMS, ids=[f"{card.name}-{one.printed}" for card, one in CLAIMS])
def test_the_value_of_a_claim_is_what_is_printed_times_its_unit(card: ModelCard, published: Claim) -> None:
    numbers = [float(text.replace(",", "")) for text in re.findall(r"\d[\d,]*\.?\d*|\.\d+", published.printed)]
    if published.low is not None and published.high is not None:
        assert sorted(numbers[:2]) == sorted(abs(end) * 100 for end in (published.low, published.high))
        assert published.low <= published.value <= published.high
        return
    assert published.low is published.high is None
    ratio = abs(published.value) / numbers[0]
    assert any(ratio == pytest.approx(multiple, rel=1e-9) for multiple in MULTIPLES), f"{ratio:g} times what it prints"
    assert 0 < printed_step(published) <= abs(published.value)
    assert agrees_as_printed(published, published.value)


@pytest.mark.parametrize(("card", "published"), CLAIMS, ids=[f"{card.name}-{one.printed}" for card, one in CLAIMS])
def test_a_claim_names_its_source_and_what_it_compares_with(card: ModelCard, published: Claim) -> None:
    assert published.source.strip()
    quantity, _, other = published.quantity.partition("_change_vs:")
    assert quantity in ("params", "flops", "top1", "macro_f1", "loss", "latency", "training_time")
    if "_change_vs:" in published.quantity:
        assert is_external(other) or other in CARDS
        assert other != card.name
        assert -1 < published.value < 1
    if quantity in ("top1", "macro_f1"):
        assert 0 < published.value < 1
    if published.recipe:
        assert published.data


def test_claims_of_one_model_and_quantity_differ_in_their_condition() -> None:
    for card in CARDS.values():
        keys = [(one.quantity, one.condition) for one in card.claims]
        assert len(keys) == len(set(keys)), card.name


# Counts judged


def judged(model: str, quantity: str) -> Judgement:
    """The verdict on the first claim of that quantity."""
    return next(one for one in judge_card(CARDS[model], count_by_formula) if one.claim.quantity == quantity)


#: Parameters by hand: embedding (3 P^2 D + D), CLS (D), positions (L D), blocks, last LayerNorm (2 D), head (D K + K).
VIT_SMALL = 18_816 + 384 + 65 * 384 + 12 * 1_774_464 + 768 + 3_850
VIT_BASE = 25_088 + 512 + 65 * 512 + 6 * 3_152_384 + 1_024 + 5_130
LIGHTWEIGHT = 18_816 + 384 + 65 * 384 + 6 * 1_479_168 + 768 + 3_850
VIT_BASE16 = 590_592 + 768 + 197 * 768 + 12 * 7_087_872 + 1_536 + 769_000
VIT_SMALLER = 295_296 + 384 + 197 * 384 + 8 * 1_774_464 + 768 + 3_850

#: Multiply-adds by hand: embedding (N 3 P^2 D), blocks (L (4 D^2 + 2 D M) + attention), head (D K).
VIT_BASE_MACS = 64 * 48 * 512 + 6 * (65 * (4 * 512**2 + 2 * 512 * 2048) + 2 * 65**2 * 512) + 5_120
LIGHTWEIGHT_MACS = 64 * 48 * 384 + 6 * (65 * (4 * 384**2 + 2 * 384 * 1152) + 65 * 384 * (2 * 64 + 1)) + 3_840
DYNAMIC_TOKENS = (65, 65, 58, 46, 32, 19)
DYNAMIC_ENDS = 64 * 48 * 384 + 3_840
DYNAMIC_DENSE_MACS = DYNAMIC_ENDS + 6 * (65 * 12 * 384**2 + 2 * 65**2 * 384)
DYNAMIC_PRUNED_MACS = (
    DYNAMIC_ENDS + sum(L * 12 * 384**2 + 2 * L**2 * 384 for L in DYNAMIC_TOKENS) + 384 * (64 + 64 + 57 + 45 + 31)
)


@pytest.mark.parametrize(
    ("model", "params", "verdict", "difference"),
    [
        ("cifar_vit_small", 21_342_346, "contradicted", 2.557),  # 6.0M printed
        ("cifar_vit_base", 18_979_338, "contradicted", 1.233),  # 8.5M
        ("cifar_lightweight_vit", 8_923_786, "contradicted", 0.859),  # 4.8M
        ("vit_base16", 86_567_656, "agrees", 0.0066),  # ~86M, cut off
        ("vit_smaller", 14_571_658, "contradicted", -0.306),  # ~21M
    ],
)
def test_published_parameters_are_judged_by_hand_arithmetic(
    model: str, params: int, verdict: str, difference: float
) -> None:
    by_parts = {
        "cifar_vit_small": VIT_SMALL, "cifar_vit_base": VIT_BASE, "cifar_lightweight_vit": LIGHTWEIGHT,
        "vit_base16": VIT_BASE16, "vit_smaller": VIT_SMALLER,
    }  # fmt: skip
    assert by_parts[model] == params
    one = judged(model, "params")
    assert (one.model, one.verdict, one.computed) == (model, verdict, params)
    assert one.difference == pytest.approx(difference, abs=5e-4)
    assert one.reason == "closed form"


def test_published_flops_of_cifar_vit_base_are_multiply_adds() -> None:
    one = judged("cifar_vit_base", "flops")
    assert one.verdict == "agrees as multiply-adds"
    assert one.computed == VIT_BASE_MACS == 1_254_370_304  # 1.2 GFLOPs printed, 2.5 done
    assert one.difference == pytest.approx(0.0453, abs=1e-4)
    assert one.reason == "closed form; 2.509 GFLOPs are 1.254 GMACs"


def test_published_flops_of_the_lightweight_vit_are_multiply_adds_cut_off() -> None:
    one = judged("cifar_lightweight_vit", "flops")
    assert one.verdict == "agrees as multiply-adds"
    assert one.computed == LIGHTWEIGHT_MACS == 595_580_928  # 0.5 GFLOPs printed


def test_published_flops_that_agree_as_flops_are_not_halved() -> None:
    counts = Counts(params=1, flops=2_900_000_000, method="counted")
    one = judge("vit_basic", claim("2.9 GFLOPs", 2.9e9, "flops"), lambda name: counts, [])
    assert (one.verdict, one.computed, one.reason) == ("agrees", 2.9e9, "counted")


@pytest.mark.parametrize(
    ("gflops", "verdict"),
    [
        (2.9, "not checkable here"),  # the rest may make it more
        (1.0, "not checkable here"),
        (5.8, "not checkable here"),  # what was printed may be multiply-adds
        (6.1, "contradicted"),
    ],
)
def test_a_lower_bound_contradicts_only_what_it_exceeds(gflops: float, verdict: str) -> None:
    counts = Counts(params=7, flops=round(1e9 * gflops), method="counted", left_out="mine::product x1")
    one = judge("vit_basic", claim("2.9 GFLOPs", 2.9e9, "flops"), lambda name: counts, [])
    assert one.verdict == verdict
    assert "counted, a lower bound without mine::product x1" in one.reason
    assert (one.computed is None) == (verdict == "not checkable here")
    params = judge("vit_basic", claim("7 params", 7), lambda name: counts, [])
    assert (params.verdict, params.reason) == ("agrees", "counted")
    change = claim("-10 %", -0.1, "flops_change_vs:vit_basic")
    assert judge("vit_basic", change, lambda name: counts, []).verdict == "not checkable here"


def test_flops_that_are_unavailable_leave_the_parameters_to_judge() -> None:
    counts = Counts(params=7, flops=None, method="counted", unavailable="of two sparse matrices")
    one = judge("vit_basic", claim("2.9 GFLOPs", 2.9e9, "flops"), lambda name: counts, [])
    assert (one.verdict, one.computed, one.reason) == ("not checkable here", None, "of two sparse matrices")
    assert judge("vit_basic", claim("7 params", 7), lambda name: counts, []).verdict == "agrees"


def test_a_lower_bound_among_the_records_decides_nothing() -> None:
    one = cell("mine")
    exact = Measurement.single("flops", "FLOP", 2.9e9, "counted", f"{LOWER_BOUND}mine::product x1")
    bound = dataclasses.replace(exact, lower_bound=True)
    printed = [
        Measurement.single("published_flops", "FLOP", 2.9e9, "its library", "2.9 GFLOPs"),
        Measurement.single("params", "parameter", 7, "sum"),
    ]
    (judged_one,) = judge_runs([ok(one, [bound, *printed])])
    assert judged_one.verdict == "not checkable here"
    assert "a lower bound without mine::product x1" in judged_one.reason


def test_published_flops_that_agree_neither_way_are_given_as_flops() -> None:
    one = judged("cifar_dynamic_vit_pruned", "flops")
    assert one.verdict == "contradicted"  # 0.6 printed, 0.517 GMACs
    assert one.computed == 2 * DYNAMIC_PRUNED_MACS == 1_034_690_304


def test_the_lightweight_vit_saves_53_percent_of_the_parameters_and_not_44() -> None:
    one = judged("cifar_lightweight_vit", "params_change_vs:cifar_vit_base")
    assert one.verdict == "contradicted"
    assert one.computed == pytest.approx(8_923_786 / 18_979_338 - 1, rel=1e-12)
    assert one.computed == pytest.approx(-0.5298, abs=1e-4)
    assert one.difference == pytest.approx(-0.5298 + 0.44, abs=1e-4)
    assert one.reason == "closed form, against cifar_vit_base"


def test_the_lightweight_vit_saves_53_percent_of_the_flops_and_not_58() -> None:
    one = judged("cifar_lightweight_vit", "flops_change_vs:cifar_vit_base")
    assert one.verdict == "contradicted"
    assert one.computed == pytest.approx(595_580_928 / 1_254_370_304 - 1, rel=1e-12)
    assert one.computed == pytest.approx(-0.5252, abs=1e-4)
    assert one.difference == pytest.approx(-0.5252 + 0.58, abs=1e-4)


def test_pruning_saves_27_percent_and_not_30_to_40() -> None:
    one = judged("cifar_dynamic_vit_pruned", "flops_change_vs:cifar_dynamic_vit_dense")
    assert one.verdict == "contradicted"
    assert one.computed == pytest.approx(DYNAMIC_PRUNED_MACS / DYNAMIC_DENSE_MACS - 1, rel=1e-12)
    assert one.computed == pytest.approx(517_345_152 / 710_746_368 - 1, rel=1e-12)
    assert one.computed == pytest.approx(-0.2721, abs=1e-4)


def test_a_comparison_with_a_model_that_nothing_counted_is_not_checkable() -> None:
    one = judged("dynamic_vit_small", "flops_change_vs:timm:deit_small_patch16_224")
    assert (one.verdict, one.computed, one.difference) == ("not checkable here", None, None)
    assert one.reason == "nothing has counted timm:deit_small_patch16_224"


def test_a_comparison_with_an_unknown_model_names_it() -> None:
    published = claim("-10 %", -0.1, "params_change_vs:vit_basik")
    one = judge("vit_basic", published, count_by_formula, [])
    assert one.verdict == "not checkable here"
    assert "Unknown model 'vit_basik'. Did you mean 'vit_basic'?" in one.reason


def test_an_external_model_has_no_closed_form() -> None:
    with pytest.raises(Unsupported, match="nothing has counted timm:vit_tiny_patch16_224"):
        count_by_formula("timm:vit_tiny_patch16_224")


def test_every_claim_of_a_card_is_judged_in_its_order() -> None:
    for card in CARDS.values():
        assert [one.claim for one in judge_card(card, count_by_formula)] == list(card.claims)


def test_what_nothing_here_measures_is_not_checkable() -> None:
    one = judged("vit_basic", "training_time")
    assert (one.verdict, one.computed) == ("not checkable here", None)
    assert "training time" in one.reason


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"quantity": "energy"}, "'energy'"),
        ({"printed": "six million"}, "no number"),
        ({"value": 0.0}, "value is 0"),
        ({"low": 1.0}, "low and high"),
    ],
)
def test_a_claim_that_cannot_be_judged_is_refused_where_it_stands(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Claim(**{"quantity": "params", "value": 6e6, "printed": "6.0M", "source": "a README", **fields})


# Accuracies and losses judged by runs

BRIEF = load_recipe("brief")


def card_with(*claims: Claim) -> ModelCard:
    """A card for images of 32 px under the name of the fabricated records."""
    return dataclasses.replace(CARDS["vit_basic_tutorial"], name="vit_micro", claims=claims)


def judge_by(published: Claim, *records: Record) -> Judgement:
    return judge_card(card_with(published), count_by_formula, records)[0]


def brief_claim(printed: str, value: float, quantity: str = "top1") -> Claim:
    return claim(printed, value, quantity, recipe="brief", data="digits")


def brief_run(correct: int = 288, **changes: Any) -> Record:
    return trained(training_cell("vit_micro", **{"recipe_hash": BRIEF.hash, **changes}), correct)


def test_an_accuracy_is_not_checkable_without_a_run() -> None:
    one = judge_by(brief_claim("80.0 %", 0.80))
    assert (one.verdict, one.computed) == ("not checkable here", None)
    assert one.reason == "no completed run of the recipe brief on digits was given"


def test_an_accuracy_of_an_unknown_training_is_not_checkable() -> None:
    one = judge_by(claim("80.0 %", 0.80, "top1"), brief_run())
    assert (one.verdict, one.reason) == ("not checkable here", "the source does not say how it was trained")


def test_an_accuracy_of_a_recipe_that_is_not_built_in_is_not_checkable() -> None:
    published = claim("80.0 %", 0.80, "top1", recipe="a-recipe-of-nobody", data="digits")
    one = judge_by(published, brief_run())
    assert one.verdict == "not checkable here"
    assert one.reason == "needs a completed run of the recipe a-recipe-of-nobody on digits; it is not built in"


@pytest.mark.parametrize(
    "record",
    [
        brief_run(recipe_hash=load_recipe("brief", images=400).hash),
        brief_run(options=(("train_images", "1000"),)),
        brief_run(data="cifar10"),
        brief_run(recipe_hash=None, weights="sha256:0123456789abcdef"),
        infer(cell("vit_micro")),
        trained(training_cell("vit_nano", recipe_hash=BRIEF.hash), 288),
    ],
    ids=["a shortened recipe", "fewer pictures", "other data", "a checkpoint", "no training", "another model"],
)
def test_an_accuracy_is_not_judged_by_a_run_of_something_else(record: Record) -> None:
    assert judge_by(brief_claim("80.0 %", 0.80), record).verdict == "not checkable here"


def test_an_accuracy_is_not_judged_by_a_training_at_another_image_size() -> None:
    """The value is for the card's own size, like parameters and FLOPs."""
    assert judge_by(brief_claim("80.0 %", 0.80), brief_run(image_size=(16, 16))).verdict == "not checkable here"


def test_an_accuracy_is_not_judged_by_a_run_that_failed() -> None:
    absent = Measurement.absent("accuracy", "1", "timeout", "no answer within 600 s")
    record = ok(training_cell("vit_micro", recipe_hash=BRIEF.hash), [absent])
    assert judge_by(brief_claim("80.0 %", 0.80), record).verdict == "not checkable here"


@pytest.mark.parametrize(
    ("printed", "value", "verdict"),
    [
        ("80.0 %", 0.800, "agrees"),
        ("83.1 %", 0.831, "agrees"),  # 288 of 360: Wilson's interval is 75.56 to 83.81 %
        ("75.6 %", 0.756, "agrees"),
        ("84 %", 0.84, "agrees"),  # could be 83.5 %
        ("84.0 %", 0.840, "contradicted"),  # not below 83.95 %
        ("75.4 %", 0.754, "contradicted"),
        ("85.2 %", 0.852, "contradicted"),
    ],
)
def test_an_accuracy_agrees_inside_the_wilson_interval_of_a_run_of_its_recipe(
    printed: str, value: float, verdict: str
) -> None:
    one = judge_by(brief_claim(printed, value), infer(cell("vit_micro")), brief_run(288))
    assert (one.verdict, one.computed) == (verdict, 0.8)
    assert one.difference == pytest.approx(0.8 / value - 1)
    assert "95 % [75.6, 83.8] %" in one.reason
    assert "seed 0" in one.reason


def with_loss(nats: float, seed: int, correct: int = 288, **changes: Any) -> Record:
    """A training by brief whose test loss and macro F1 are ``nats``."""
    record = brief_run(correct, seed=seed, **changes)
    figures = [Measurement.single(name, "nat", nats, "taken") for name in ("test_loss", "macro_f1")]
    kept = [one for one in record.measurements if one.metric not in ("test_loss", "macro_f1")]
    return dataclasses.replace(record, measurements=(*kept, *figures))


@pytest.mark.parametrize("quantity", ["loss", "macro_f1"])
@pytest.mark.parametrize("nats", [[0.51], [0.51, 0.53]], ids=["one", "two"])
def test_what_another_seed_would_change_is_not_judged_by_one_training_or_two(quantity: str, nats: list[float]) -> None:
    records = [with_loss(one, seed) for seed, one in enumerate(nats)]
    for printed, value in (("0.51", 0.51), ("0.6296", 0.6296)):
        one = judge_by(brief_claim(printed, value, quantity), *records)
        assert one.verdict == "not checkable here"
        assert "spread over seeds is not known: give runs of three seeds" in one.reason
        assert one.computed == pytest.approx(sum(nats) / len(nats))
        assert one.difference == pytest.approx(one.computed / value - 1)


@pytest.mark.parametrize("quantity", ["loss", "macro_f1"])
@pytest.mark.parametrize(
    ("printed", "value", "verdict"),
    [
        ("0.53", 0.53, "agrees"),
        ("0.4306", 0.4306, "agrees"),  # the mean 0.53 -+ 4.3027 * 0.02 * sqrt(1 + 1/3): 0.43063 to 0.62937
        ("0.6294", 0.6294, "agrees"),
        ("0.43", 0.43, "agrees"),  # could be 0.435
        ("0.4305", 0.4305, "contradicted"),
        ("0.6296", 0.6296, "contradicted"),
    ],
)
def test_from_three_seeds_on_the_prediction_of_one_more_training_decides(
    quantity: str, printed: str, value: float, verdict: str
) -> None:
    records = [with_loss(nats, seed) for seed, nats in enumerate((0.51, 0.53, 0.55))]
    one = judge_by(brief_claim(printed, value, quantity), *records)
    assert (one.verdict, one.computed) == (verdict, pytest.approx(0.53))
    assert one.reason.startswith(f"95 % [{'0.4306, 0.6294' if quantity == 'loss' else '0.431, 0.629'}]; ")
    assert "mean of seeds 0, 1, 2" in one.reason


def test_a_loss_is_not_judged_by_a_choice_of_test_images() -> None:
    """The spread over seeds does not cover the choice of images, which is the same for each."""
    claim = dataclasses.replace(brief_claim("0.6296", 0.6296, "loss"), data="cifar10")
    few = [with_loss(nats, seed, data="cifar10") for seed, nats in enumerate((0.51, 0.53, 0.55))]  # 360 of 10,000
    one = judge_by(claim, *few)
    assert one.verdict == "not checkable here"
    assert one.reason.endswith("on cifar10, tested on all test images, was given")
    whole = [
        dataclasses.replace(
            record,
            measurements=(
                *(one for one in record.measurements if one.metric != "test_images"),
                Measurement.single("test_images", "image", 10_000, "held-out pictures"),
            ),
        )
        for record in few
    ]
    assert judge_by(claim, *whole).verdict == "contradicted"


def test_an_accuracy_allows_for_the_seeds_and_the_choice_of_test_images() -> None:
    published = brief_claim("90.0 %", 0.900)
    apart = [brief_run(correct, seed=seed) for seed, correct in enumerate((270, 288, 306))]
    # 80 % -+ 4.3027 * 5 % * sqrt(1 + 1/3) = 55.2 to 104.8 %; Wilson's ends at 83.8 %
    one = judge_by(published, *apart)
    assert (one.verdict, one.computed) == ("agrees", pytest.approx(0.8))
    assert "95 % [55.2, 100.0] %" in one.reason
    close = [brief_run(288, seed=seed) for seed in range(3)]
    one = judge_by(published, *close)
    assert one.verdict == "contradicted"
    assert "95 % [75.6, 83.8] %" in one.reason  # never less than the pictures leave open


def test_both_of_two_seeds_count() -> None:
    two = [brief_run(252, seed=4), brief_run(288, seed=7)]  # 70 % [65.1, 74.5], 80 % [75.6, 83.8]
    for records in (two, two[::-1]):
        one = judge_by(brief_claim("66.0 %", 0.66), *records)
        assert (one.verdict, one.computed) == ("agrees", pytest.approx(0.75))
        assert "95 % [65.1, 83.8] %" in one.reason


def test_only_trainings_that_differ_in_nothing_but_the_seed_are_taken_together() -> None:
    others = [
        with_loss(9.0, 1, dtype="bf16"),
        with_loss(9.0, 1, attention="explicit"),
        with_loss(9.0, 0),  # the same seed once more
    ]
    records = [with_loss(0.51, 0), *others, with_loss(0.53, 1, device="cuda:0"), with_loss(0.55, 2, threads=8)]
    one = judge_by(brief_claim("0.53", 0.53, "loss"), *records)
    assert (one.verdict, one.computed) == ("agrees", pytest.approx(0.53))


def test_a_measurement_without_one_finite_value_judges_nothing() -> None:
    record = brief_run()
    for samples in (((1.0, 2.0),), ((1.0,), (2.0,)), (), ((1e200,),)):
        strange = Measurement(metric="test_loss", unit="nat", samples=samples, method="")
        kept = [one for one in record.measurements if one.metric != "test_loss"]
        by = dataclasses.replace(record, measurements=(*kept, strange))
        one = judge_by(brief_claim("0.53", 0.53, "loss"), by)
        assert (one.verdict, one.computed) == ("not checkable here", None)


def test_a_macro_f1_that_the_run_did_not_take_is_not_checkable() -> None:
    assert judge_by(brief_claim(".80", 0.80, "macro_f1"), brief_run()).verdict == "not checkable here"


def sampler_run(correct: int, f1: float, seed: int = 0, **overrides: Any) -> Record:
    """cifar_vit_base trained on the imbalanced CIFAR-10 with a weighted sampler, as a suite would record it."""
    recipe = load_recipe("cifar-vit-base-imbalanced-sampler", **overrides)
    fields: dict[str, Any] = {"weights": f"train:{recipe.name}", "recipe_hash": recipe.hash, "data": "cifar10"}
    fields |= {"batch": 128, "seed": seed}
    return trained(training_cell("cifar_vit_base", **fields), correct, 10_000, f1=(f1,) * 10)


def test_the_published_imbalance_is_judged_by_a_whole_training_of_its_treatment() -> None:
    judged = {
        (one.claim.recipe, one.claim.quantity): one
        for one in judge_runs([sampler_run(8172 + 20 * seed, 0.7684 + 0.002 * seed, seed) for seed in (-1, 0, 1)])
        if "imbalanced" in one.claim.recipe
    }
    top1 = judged["cifar-vit-base-imbalanced-sampler", "top1"]
    macro = judged["cifar-vit-base-imbalanced-sampler", "macro_f1"]
    assert (top1.claim.printed, top1.verdict) == ("81.5 %", "agrees")
    assert top1.computed == pytest.approx(0.8172)
    assert (macro.claim.printed, macro.verdict) == (".768 (macro F1)", "agrees")
    others = [one.verdict for (recipe, _), one in judged.items() if not recipe.endswith("sampler")]
    assert others == ["not checkable here"] * 6
    worse = judge_runs([sampler_run(7000 + 20 * seed, 0.69 + 0.002 * seed, seed) for seed in (-1, 0, 1)])
    verdicts = {one.claim.quantity: one.verdict for one in worse if one.claim.recipe.endswith("sampler")}
    assert verdicts == {"top1": "contradicted", "macro_f1": "contradicted"}


def test_the_published_imbalance_is_not_judged_by_a_shortened_training() -> None:
    judged = judge_runs([sampler_run(8172, 0.7684, images=30_000)])
    assert {one.verdict for one in judged if "imbalanced" in one.claim.recipe} == {"not checkable here"}


def label_of_a_folder(folder: Path) -> str:
    """A record's name for an image folder of that name, by the code that names it."""
    return describe_data(str(make_image_folder(folder))).label


def pictures_run(model: str, label: str, correct: int = 70, **changes: Any) -> Record:
    """A model of "Paper replicating" trained by its recipe."""
    fields: dict[str, Any] = {"image_size": (224, 224), "num_classes": 3, "data": label, "batch": 16}
    fields |= {"weights": "train:paper-replicating", "recipe_hash": load_recipe("paper-replicating").hash, **changes}
    return trained(training_cell(model, **fields), correct, 75)


def accuracy_of(model: str, *records: Record) -> Judgement:
    return next(one for one in judge_card(CARDS[model], count_by_formula, records) if one.claim.quantity == "top1")


@pytest.mark.parametrize(
    ("name", "judges"),
    [("pizza-steak-sushi", True), ("Pizza_Steak_Sushi", True), ("pizza-steak", False), ("sushi", False)],
)
def test_a_folder_is_known_by_its_name_for_what_a_claim_calls_it(tmp_path: Path, name: str, judges: bool) -> None:
    label = label_of_a_folder(tmp_path / name)
    one = accuracy_of("vit_b16_scratch", pictures_run("vit_b16_scratch", label, 26))
    if judges:
        assert (one.verdict, one.computed) == ("agrees", pytest.approx(26 / 75))
        assert "only the name of their folder says that the images are pizza-steak-sushi" in one.reason
    else:
        assert one.verdict == "not checkable here"
        assert "on an image folder named pizza-steak-sushi was given" in one.reason


def test_a_folder_that_is_called_like_a_data_set_of_ours_is_not_taken_for_it(tmp_path: Path) -> None:
    published = brief_claim("80.0 %", 0.80)
    for label in (label_of_a_folder(tmp_path / "digits"), "folder:digits", "folder::", ""):
        assert judge_by(published, brief_run(data=label)).verdict == "not checkable here"


def test_a_transfer_is_not_judged_by_a_training_of_a_random_backbone(tmp_path: Path) -> None:
    label = label_of_a_folder(tmp_path / "pizza-steak-sushi")
    published = (("began_with", "pretrained"),)
    model = "vit_b16_transfer"
    for options in (
        (),
        (("freeze", "backbone"),),
        (("began_with", "a checkpoint"),),
        (*published, ("train_images", "10")),
        (*published, ("freeze", "blocks:3")),
    ):
        one = accuracy_of(model, pictures_run(model, label, options=options))
        assert one.verdict == "not checkable here"
        assert "from the published weights, was given" in one.reason
    for options in (published, (*published, ("freeze", "backbone"))):
        assert accuracy_of(model, pictures_run(model, label, options=options)).verdict == "agrees"
    scratch = accuracy_of("vit_b16_scratch", pictures_run("vit_b16_scratch", label, 26, options=published))
    assert scratch.verdict == "not checkable here"


def test_an_accuracy_of_published_weights_is_judged_by_a_test_of_them_on_their_data(tmp_path: Path) -> None:
    published = claim("81.072 %", 0.81072, "top1", data="ImageNet-1K")
    folder = label_of_a_folder(tmp_path / "ImageNet_1k")
    test = {"mode": "infer", "data": folder, "recipe_hash": None}
    theirs = trained(training_cell("vit_micro", **test, weights="pretrained:IMAGENET1K_V1"), 811, 1000)
    fewer = trained(training_cell("vit_micro", **test, weights="pretrained:IMAGENET1K_V1", seed=1), 10, 100)
    checkpoint = trained(training_cell("vit_micro", **test, weights="sha256:0123456789abcdef"), 811, 1000)
    other_data = trained(
        training_cell("vit_micro", **{**test, "data": "digits"}, weights="pretrained:IMAGENET1K_V1"), 811, 1000
    )
    one = judge_by(published, checkpoint, other_data, fewer, theirs)
    assert (one.verdict, one.computed) == ("agrees", 0.811)
    assert one.reason.endswith("only the name of their folder says that the images are ImageNet-1K")
    away = judge_by(published, fewer)  # 10 %: the classes may have been sorted otherwise
    assert (away.verdict, away.computed) == ("not checkable here", 0.1)
    assert "images are cropped differently here" in away.reason
    for without in ((), (checkpoint,), (other_data,), (brief_run(),)):
        one = judge_by(published, *without)
        assert one.verdict == "not checkable here"
        assert (
            one.reason == "needs a test of the published weights on an image folder named imagenet-1k; none was given"
        )


# Latencies judged by runs


def test_a_latency_without_its_device_is_not_checkable() -> None:
    one = judge_by(claim("11.8 ms", 0.0118, "latency"), infer(cell("vit_micro")))
    assert one.verdict == "not checkable here"
    assert one.reason == "the source does not say on which device and at which batch"


def test_a_latency_is_judged_only_by_a_run_on_its_device() -> None:
    on_cpu, on_gpu = infer(cell("vit_micro")), infer(cell("vit_micro", device="cuda:0"), speed=30)
    value = judge_by(claim("1 s", 1.0, "latency", device="cuda:0"), on_cpu, on_gpu).computed
    assert value is not None
    milliseconds = f"{value * 1e3:.3f}"
    agreeing = claim(f"{milliseconds} ms", float(milliseconds) / 1e3, "latency", device="cuda:0")
    assert judge_by(agreeing, on_cpu, on_gpu).verdict == "agrees"
    assert judge_by(claim("11.8 ms", 0.0118, "latency", device="cuda:0"), on_cpu, on_gpu).verdict == "contradicted"
    absent = judge_by(agreeing, on_cpu)
    assert (absent.verdict, absent.reason) == ("not checkable here", "no run on cuda:0 was given")


# The claims of whole runs


VIT_B_16 = "torchvision:vit_b_16"


def counted(params: float, flops: float) -> list[Measurement]:
    return [
        Measurement.single("params", "parameter", params, "sum over parameters(), torch 2.15.0"),
        Measurement.single("flops", "FLOP", flops, "FlopCounterMode on meta, torch 2.15.0"),
    ]


def published_vit_b_16() -> list[Measurement]:
    source = "torchvision 0.30, ViT_B_16_Weights.IMAGENET1K_V1"
    return [
        Measurement.single("published_params", "parameter", 86_567_656, source, "86,567,656 params"),
        Measurement.single("published_flops", "FLOP", 17.564e9, source, "17.564 GFLOPS"),
        Measurement.single("published_top1", "1", 0.81072, source, "81.072 %"),
    ]


def vit_b_16_at(side: int, params: int, flops: int, published: bool) -> Record:
    of = cell(VIT_B_16, 1, image_size=(side, side), num_classes=1000)
    return ok(of, [*counted(params, flops), *(published_vit_b_16() if published else [])])


OWN_SIZE = vit_b_16_at(224, 86_567_656, 35_127_656_448, published=True)
OTHER_SIZE = vit_b_16_at(384, 86_859_496, 110_956_953_600, published=False)


def test_a_run_brings_the_claims_of_a_library_along() -> None:
    params, flops, top1 = judge_runs([OWN_SIZE])
    assert (params.verdict, params.computed) == ("agrees", 86_567_656)
    assert (flops.verdict, flops.computed) == ("agrees as multiply-adds", 17_563_828_224)
    assert "at 224 px, 1000 classes" in params.reason
    assert top1.verdict == "not checkable here"
    assert top1.reason == "needs a test of the published weights on an image folder named imagenet-1k; none was given"
    assert params.claim.source == "torchvision 0.30, ViT_B_16_Weights.IMAGENET1K_V1"


def test_a_run_that_tests_published_weights_judges_what_was_published_of_them(tmp_path: Path) -> None:
    fields = {"weights": "pretrained:IMAGENET1K_V1", "recipe_hash": None, "mode": "infer"}
    data = {"data": label_of_a_folder(tmp_path / "imagenet"), "image_size": (224, 224), "num_classes": 1000}
    test = trained(training_cell(VIT_B_16, **fields, **data), 40_500, 50_000)
    verdicts = {one.claim.quantity: one for one in judge_runs([OWN_SIZE, test])}
    assert (verdicts["top1"].verdict, verdicts["top1"].computed) == ("agrees", 0.81)


@pytest.mark.parametrize("records", [[OWN_SIZE, OTHER_SIZE], [OTHER_SIZE, OWN_SIZE]], ids=["before", "after"])
def test_claims_are_for_the_own_size_whatever_other_sizes_a_run_has(records: list[Record]) -> None:
    assert [one.verdict for one in judge_runs(records)] == ["agrees", "agrees as multiply-adds", "not checkable here"]


def test_a_comparison_is_with_the_other_model_at_the_same_size() -> None:
    """DeiT-S at 384 px is not what DynamicViT at 224 px is compared with."""
    ours = ok(cell("dynamic_vit_small", 1, image_size=(224, 224), num_classes=1000), counted(22.77e6, 5.962e9))
    theirs = "timm:deit_small_patch16_224"
    large = ok(cell(theirs, 1, image_size=(384, 384), num_classes=1000), counted(22.2e6, 30.9e9))
    own = ok(cell(theirs, 1, image_size=(224, 224), num_classes=1000), counted(22_050_664, 9_203_000_000))

    def change(records: list[Record]) -> Judgement:
        return next(one for one in judge_runs(records) if "_change_vs:" in one.claim.quantity)

    assert change([ours]).verdict == "not checkable here"
    assert change([ours, large]).verdict == "not checkable here"
    one = change([ours, own, large])
    assert one.computed == pytest.approx(5_961_874_944 / 9_203_000_000 - 1, abs=1e-3)


def test_a_run_of_our_models_is_judged_by_their_cards_once_a_model() -> None:
    records = [ok(cell("cifar_lightweight_vit", batch), counted(1.0, 1.0)) for batch in (1, 32)]
    records.append(ok(cell("vit_tiny16", 1, image_size=(224, 224)), counted(1.0, 1.0)))
    found = judge_runs(records)
    assert [one.claim for one in found] == list(CARDS["cifar_lightweight_vit"].claims)
    assert {one.model for one in found} == {"cifar_lightweight_vit"}


def test_a_model_without_claims_is_passed_over() -> None:
    assert judge_runs(full_run().records) == []


# The command line


def ask(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = run_command(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_help_of_claims_has_examples_and_loads_no_torch() -> None:
    code = (
        "import sys; from vitbench.cli import run_command; run_command(['claims', '--help']); "
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Examples:" in done.stdout


def test_claims_as_text_is_a_table_and_a_count(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, errors = ask(capsys, "claims", "--models", "cifar_lightweight_vit")
    assert code == 0
    assert out.startswith("| model ")
    lines = [line for line in out.splitlines() if line.startswith("| cifar_lightweight_vit ")]
    assert len(lines) == 6
    assert "-53.0 %" in out
    assert errors.strip() == "6 claims: 1 agrees as multiply-adds, 3 contradicted, 2 not checkable here"


TYPES = {
    "model": str,
    "quantity": str,
    "condition": str,
    "printed": str,
    "claimed": (int, float),
    "computed": (int, float, type(None)),
    "unit": str,
    "difference": (int, float, type(None)),
    "verdict": str,
    "reason": str,
    "source": str,
}


def test_claims_as_json_hold_every_claim_with_its_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = ask(capsys, "claims", "--models", "cifar_*,vit_*", "--json")
    assert code == 0
    rows = json.loads(out)
    ours = [name for name in CARDS if name.startswith(("cifar_", "vit_"))]
    assert len(rows) == sum(len(CARDS[name].claims) for name in ours)
    for row in rows:
        assert list(row) == list(TYPES)
        assert all(isinstance(row[key], kind) for key, kind in TYPES.items()), row
        assert (row["computed"] is None) == (row["verdict"] == "not checkable here") == (row["difference"] is None)
        assert row["verdict"] in ("agrees", "agrees as multiply-adds", "contradicted", "not checkable here")
        assert row["reason"]
    by_key = {(row["model"], row["quantity"], row["condition"]): row for row in rows}
    smaller = by_key["vit_smaller", "params", ""]
    assert (smaller["claimed"], smaller["computed"], smaller["unit"]) == (21e6, 14_571_658, "parameter")
    assert by_key["cifar_vit_base", "flops", ""]["unit"] == "FLOP"
    assert by_key["cifar_lightweight_vit", "flops_change_vs:cifar_vit_base", ""]["unit"] == "1"
    assert by_key["cifar_vit_base", "top1", "imbalanced, both"]["printed"] == "82.1 %"


def test_claims_of_a_pattern_are_those_of_its_models(capsys: pytest.CaptureFixture[str]) -> None:
    rows = json.loads(ask(capsys, "claims", "--models", "vit_layer*", "--json")[1])
    assert {row["model"] for row in rows} == {"vit_layer6_32", "vit_layer12_32"}
    assert len(rows) == 4


def test_a_model_that_is_named_twice_is_judged_once(capsys: pytest.CaptureFixture[str]) -> None:
    rows = json.loads(ask(capsys, "claims", "--models", "vit_base16,vit_base*,vit_base16", "--json")[1])
    assert [row["model"] for row in rows] == ["vit_base16"]


def test_models_without_published_values_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, errors = ask(capsys, "claims", "--models", "vit_tiny16")
    assert (code, out) == (0, "These models have no published values.\n")
    assert errors.strip() == ""
    assert ask(capsys, "claims", "--models", "vit_tiny16", "--json")[1] == "[]\n"


def test_out_keeps_the_table_and_its_data(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = tmp_path / "made" / "on the way"
    code, out, errors = ask(capsys, "claims", "--models", "vit_smaller", "--json", "--out", str(folder))
    assert code == 0
    assert sorted(path.name for path in folder.iterdir()) == ["claims.json", "claims.md"]
    assert json.loads((folder / "claims.json").read_text(encoding="utf-8")) == json.loads(out)
    page = (folder / "claims.md").read_text(encoding="utf-8")
    assert page.startswith("# Published values against computed ones\n")
    assert "3 claims: 1 contradicted, 2 not checkable here." in page
    assert f"Wrote {folder / 'claims.md'}" in errors


def test_out_replaces_what_an_earlier_call_wrote(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for models in ("cifar_vit_base", "vit_base16"):
        assert ask(capsys, "claims", "--models", models, "--out", str(tmp_path))[0] == 0
    assert [row["model"] for row in json.loads((tmp_path / "claims.json").read_text())] == ["vit_base16"]


def one_error_line(errors: str) -> str:
    """The one line of a mistake."""
    assert len(errors.strip().splitlines()) == 1, errors
    assert errors.startswith("Error: ")
    return errors


def test_a_folder_that_cannot_be_made_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "a file").write_text("important")
    for place in (tmp_path / "a file", tmp_path / "a file" / "below", Path("/proc/vitbench")):
        code, _, errors = ask(capsys, "claims", "--models", "vit_base16", "--out", str(place))
        assert code == 2
        line = one_error_line(errors)
        assert f"Cannot write into {place}" in line
        assert "--out" in line
    assert (tmp_path / "a file").read_text() == "important"


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    code, _, errors = ask(capsys, "claims", "--models", "vit_base16", "--out", str(tmp_path))
    assert code == 2
    assert "Permission denied" in one_error_line(errors)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "vit_basik"], "Unknown model 'vit_basik'. Did you mean 'vit_basic'?"),
        (["--models", "cifar_vit_base,vit_bse16"], "Did you mean 'vit_base16'?"),
        (["--models", "nothing_*"], "Unknown model 'nothing_*'"),
        (["--models", ","], "A list is empty"),
        (["nowhere", "--models", "vit_basic"], "nowhere is not a run folder"),
        (["--modles", "vit_basic"], "--modles"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_mistake_gets_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, errors = ask(capsys, "claims", *arguments, "--out", "results")
    assert code == 2
    assert message in one_error_line(errors)
    assert out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_run_folder_decides_what_was_not_checkable(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_run(tmp_path / "run", Run(name="run", records=[infer(cell("vit_micro")), brief_run(288)]))
    published = (brief_claim("80.0 %", 0.80), brief_claim("90.0 %", 0.90))
    model_registry()  # filled first, or the card would be taken for a packaged one
    monkeypatch.setitem(model_registry()._items, "vit_micro", card_with(*published))

    def verdicts(*arguments: str) -> list[str]:
        code, out, _ = ask(capsys, "claims", *arguments, "--models", "vit_micro", "--json")
        assert code == 0
        return [row["verdict"] for row in json.loads(out)]

    assert verdicts() == ["not checkable here"] * 2
    assert verdicts(str(folder)) == ["agrees", "contradicted"]


def test_a_judgement_becomes_plain_data() -> None:
    plain = to_dict(judged("cifar_dynamic_vit_pruned", "flops_change_vs:cifar_dynamic_vit_dense"))
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["claimed"] == -0.35
    assert plain["printed"] == "pruning saves 30-40 %"
