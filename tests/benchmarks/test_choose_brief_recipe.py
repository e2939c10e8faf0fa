"""The candidates of the recipe ``brief`` are recipes, and train with the optimizer that they name."""

import pytest
import torch

from benchmarks import choose_brief_recipe
from benchmarks.choose_brief_recipe import CANDIDATES, TORCH_MUON
from tests.reports.paired import tables
from vitbench.models import build_model
from vitbench.suites import load_suite
from vitbench.training import loop
from vitbench.training.muon import SpectralMuon
from vitbench.training.recipes import load_recipe


@pytest.mark.parametrize("name", CANDIDATES)
def test_a_candidate_is_a_recipe_with_its_own_muon(name: str) -> None:
    settings = dict(CANDIDATES[name])
    torch_muon = settings.pop(TORCH_MUON, None)
    recipe = load_recipe("brief", **settings)
    model = build_model("vit_basic_tutorial", image_size=16)
    with choose_brief_recipe.use_torch_muon(*torch_muon or (choose_brief_recipe.RMS, 5)):
        first = loop.make_optimizers(model, recipe, 10)[0]
    if recipe.optimizer == "adamw":
        assert isinstance(first, torch.optim.AdamW)
    else:
        assert type(first) is torch.optim.Muon
        assert first.param_groups[0]["lr"] == pytest.approx(recipe.learning_rate * (recipe.muon_factor or 1))


def test_the_recipe_that_is_shipped_is_a_candidate_with_the_images_of_lightweight() -> None:
    training = load_suite("lightweight").training
    assert training is not None
    assert CANDIDATES["now"] == {"images": training.images}
    made = loop.make_optimizers(build_model("vit_basic_tutorial", image_size=16), load_recipe("brief"), 10)
    assert isinstance(made[0], SpectralMuon)


def test_a_table_holds_the_mean_the_seeds_and_the_cpu_time() -> None:
    lines = [
        {"candidate": "now", "model": "vit_basic", "seed": seed, "accuracy": accuracy, "cpu_s": 2.0 * seed}
        for seed, accuracy in ((2, 90.0), (0, 94.0), (1, 95.0))
    ]
    assert tables(choose_brief_recipe.page(lines))[0] == [
        {"candidate": "now", "vit_basic": "93.0: 94.0, 95.0, 90.0; 2 s"}
    ]
