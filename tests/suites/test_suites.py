"""Suite files: what they may say, what is said when they say something else, and the cells that come of them."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.training.data.folders import make_image_folder
from vitbench.core.errors import DeviceError, ImageSizeError, SuiteError, UnknownNameError, UsageError
from vitbench.core.records import Cell
from vitbench.core.registry import METRICS
from vitbench.executors.launcher import Launcher
from vitbench.executors.protocol import Calibrate, Describe
from vitbench.models.cards import model_registry
from vitbench.runner.plan import check_before_loading, make_plan
from vitbench.runner.run import modules_of, plan_suite
from vitbench.runner.training_plan import resolve_training
from vitbench.suites import (
    ModelFacts,
    RecipeFacts,
    Suite,
    Training,
    TrainingFacts,
    expand,
    list_suites,
    load_suite,
    make_suite,
    to_toml,
)
from vitbench.suites.overrides import parse_budget, prepare_suite
from vitbench.suites.schema import parse_bytes
from vitbench.training.data.downloads import DOWNLOADS
from vitbench.training.data.subsets import imbalanced_counts
from vitbench.training.recipes import load_recipe

TRAINING = TrainingFacts(data="digits", num_classes=10, recipes=(RecipeFacts("brief", "abc", 16),))


def write_suite(folder: Path, text: str) -> str:
    path = folder / "mine.toml"
    path.write_text(text)
    return str(path)


def facts(name: str) -> ModelFacts:
    card = model_registry().get(name)
    return ModelFacts(card.image_size, card.num_classes, card.check_image_size)


def cells_of(suite: Suite, training: TrainingFacts | None = None, devices: tuple[str, ...] = ("cpu",)) -> list[Cell]:
    return expand(
        suite, devices=devices, threads=2, models={name: facts(name) for name in suite.models}, training=training
    )


def budgets(suite: Suite) -> dict[str, float]:
    """How much each recipe of a suite trains, whatever it is counted in."""
    plan = resolve_training(suite)
    assert plan is not None
    return {recipe.name: getattr(recipe, recipe.budget) for recipe in plan.recipes}


@pytest.mark.parametrize("name", list_suites())
def test_every_built_in_suite_is_legal_and_survives_being_written(name: str, tmp_path: Path) -> None:
    suite = load_suite(name)
    if suite.training is not None and suite.training.data in DOWNLOADS:  # whatever pictures lie on this machine
        there = {"download": True, "data_dir": str(tmp_path)}
        suite = suite.model_copy(update={"training": suite.training.model_copy(update=there)})
    suite = check_before_loading(suite)
    again = make_suite(tomllib.loads(to_toml(suite)), "again.toml")
    assert again == suite
    assert suite.description


def test_the_default_suite_holds_every_light_model_at_32_px() -> None:
    from vitbench.analysis.closed_form import closed_form

    light = {
        name
        for name, card in model_registry().items()
        if card.size_rule == "divisible" and closed_form(card, (32, 32), 10).params < 12e6
    }
    # beside them, to stay within minutes: an ablation of a larger model, and a twin that trains what it prunes
    assert set(load_suite("lightweight").models) == light - {"cifar_vit_base_d3", "cifar_dynamic_vit_learned"}


def test_a_suite_is_the_cross_product_of_its_axes_less_what_is_excluded(tmp_path: Path) -> None:
    text = """
models = ["vit_basic", "cifar_vit_tiny"]
image_sizes = [32, 64]
batch_sizes = [1, 8]
dtypes = ["fp32", "bf16"]
attention = ["fused", "explicit"]
modes = ["infer", "train"]
threads = [1, "auto"]
seeds = [0, 1]
metrics = ["latency", "training_step"]
[[exclude]]
models = "cifar_*"
image_sizes = 64
[[exclude]]
modes = ["train"]
batch_sizes = [1]
"""
    cells = cells_of(load_suite(write_suite(tmp_path, text)))
    combinations = 2 * 2 * 2 * 2 * 2 * 2 * 2 * 2
    small_half = combinations // 4  # cifar at 64
    batch_one_training = (combinations - small_half) // 4
    assert len(cells) == combinations - small_half - batch_one_training
    assert len({cell.id for cell in cells}) == len(cells)
    assert not [cell for cell in cells if cell.model == "cifar_vit_tiny" and cell.image_size == (64, 64)]
    assert {cell.threads for cell in cells} == {1, 2}


def test_a_training_cell_stands_for_each_model_size_device_dtype_and_seed(tmp_path: Path) -> None:
    text = """
models = ["vit_basic", "vit_layer6_32"]
image_sizes = [32]
batch_sizes = [1, 8]
devices = ["auto"]
seeds = [0, 1]
[training]
images = 64
"""
    cells = cells_of(load_suite(write_suite(tmp_path, text)), TRAINING, ("cuda", "cpu"))
    training = [cell for cell in cells if cell.trains]
    assert len(training) == 2 * 2 * 2
    assert {(cell.batch_size, cell.mode, cell.weights, cell.data) for cell in training} == {
        (16, "train", "train:brief", "digits")
    }
    assert len(cells) - len(training) == 2 * 2 * 2 * 2


def test_native_sizes_are_each_models_own() -> None:
    suite = make_suite({"name": "x", "models": ["vit_basic", "vit_base16"]}, "x.toml")
    assert {cell.model: cell.image_size for cell in cells_of(suite)} == {
        "vit_basic": (32, 32),
        "vit_base16": (224, 224),
    }


def test_classes_follow_the_data_where_a_suite_trains() -> None:
    suite = make_suite({"name": "x", "models": ["vit_base16"], "training": {"images": 8}}, "x.toml")
    assert {cell.num_classes for cell in cells_of(suite, TRAINING)} == {10}
    assert {cell.num_classes for cell in cells_of(suite)} == {1000}
    fixed = suite.model_copy(update={"num_classes": 3})
    with pytest.raises(SuiteError, match="num_classes = 3.*has 10 classes"):
        cells_of(fixed, TRAINING)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models = [", "mine.toml is not valid TOML"),
        ('modelz = ["vit_basic"]', "mine.toml: unknown key 'modelz'. Did you mean 'models'? Allowed: name, "),
        ("image_sizes = [32]", "mine.toml: the key 'models' is missing"),
        ('models = ["vit_basic"]\n[measure]\nprocess = 2', "unknown key 'measure.process'. Did you mean 'processes'?"),
        ('models = ["vit_basic"]\n[training]\nepoch = 2', "unknown key 'training.epoch'. Did you mean 'epochs'?"),
        ('models = ["vit_basic"]\n[training]\nepochs = 2\nsteps = 3', "a training has one budget"),
        ('models = ["vit_basic"]\nbatch_sizes = [0]', "key batch_sizes: Input should be greater than or equal to 1 (given: 0)"),
        ('models = ["vit_basic"]\nbatch_sizes = ["8"]', "key batch_sizes"),
        ('models = ["vit_basic"]\nimage_sizes = [-32]', "key image_sizes: Image size -32 is not positive"),
        ('models = ["vit_basic"]\nimage_sizes = ["big"]', "Image size 'big' is neither N nor HxW"),
        ('models = ["vit_basic"]\ndtypes = ["fp23"]', "'fp23' is not allowed. Did you mean 'fp32'? Allowed: fp32, bf16"),
        ('models = ["vit_basic"]\nattention = ["flash"]', "Allowed: fused, explicit"),
        ('models = ["vit_basic"]\nmemory_limit = "lots"', "'lots' is not a valid memory size"),
        ('models = ["vit_basic"]\n[[exclude]]\n', "an empty [[exclude]] would drop every cell"),
        ('models = ["vit_basic"]\n[measure]\nmin_samples = 9\nmax_samples = 3', "min_samples (9) is more than max_samples (3)"),
        ('models = []', "key models"),
    ],
)  # fmt: skip
def test_a_wrong_suite_file_gets_one_line_with_file_and_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SuiteError) as caught:
        load_suite(write_suite(tmp_path, text))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value) or "TOML" in str(caught.value)


def test_unknown_names_are_answered_with_the_closest(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="Unknown model 'vit_basik'. Did you mean 'vit_basic'"):
        load_suite(write_suite(tmp_path, 'models = ["vit_basik"]'))
    with pytest.raises(UnknownNameError, match="Unknown metric 'latencie'. Did you mean 'latency'"):
        load_suite(write_suite(tmp_path, 'models = ["vit_basic"]\nmetrics = ["latencie"]'))
    with pytest.raises(UnknownNameError, match="Unknown suite 'lightwieght'. Did you mean 'lightweight'"):
        load_suite("lightwieght")
    with pytest.raises(SuiteError, match="does not exist"):
        load_suite("nowhere.toml")
    with pytest.raises(UnknownNameError, match="Unknown device 'gpu'"):
        check_before_loading(load_suite(write_suite(tmp_path, 'models = ["vit_basic"]\ndevices = ["gpu"]')))


def test_an_illegal_size_of_our_own_model_is_refused_before_torch_loads(tmp_path: Path) -> None:
    text = 'models = ["vit_basic"]\nimage_sizes = [33]'
    with pytest.raises(ImageSizeError, match="Image size 33 does not fit vit_basic: its patch of 4 px"):
        check_before_loading(load_suite(write_suite(tmp_path, text)))


def test_options_replace_keys_and_are_named_in_errors() -> None:
    suite = prepare_suite("smoke", {"models": ["vit_basic"], "batch_sizes": [3], "data": "none", "seeds": None})
    assert suite.models == ("vit_basic",)
    assert suite.batch_sizes == (3,)
    assert suite.training is None
    assert suite.seeds == (0,)
    with pytest.raises(SuiteError, match="^Option --batch-sizes: "):
        prepare_suite("smoke", {"batch_sizes": [-1]})


def test_data_can_be_chosen_for_a_suite_that_does_not_train() -> None:
    suite = prepare_suite("resolution", {"data": "digits"})
    assert suite.training is not None
    assert suite.training.recipe == ("brief",)


def test_quick_lowers_every_budget() -> None:
    full, quick = prepare_suite("lightweight", {}), prepare_suite("lightweight", {}, quick=True)
    assert quick.measure.processes == 3  # the fewest whose quiet turns are known
    assert quick.measure.min_samples == 10
    assert quick.measure.seconds < full.measure.seconds
    assert full.training is not None
    assert quick.training is not None
    assert full.training.images is not None
    assert budgets(quick) == {"brief": full.training.images // 10}


def test_a_suite_whose_cells_are_all_dropped_is_refused(tmp_path: Path) -> None:
    suite = load_suite(write_suite(tmp_path, 'models = ["vit_basic"]\n[[exclude]]\nmodels = "*"'))
    with pytest.raises(SuiteError, match="no cells left"):
        cells_of(suite)


def test_a_grid_is_written_as_on_the_command_line() -> None:
    keys = {"name": "x", "models": ["vit_basic"], "weights": "x.pt"}
    assert make_suite({**keys, "grid": "4X16"}, "x.toml").grid == "4x16"
    with pytest.raises(SuiteError, match="key grid: '64' is not ROWSxCOLUMNS"):
        make_suite({**keys, "grid": "64"}, "x.toml")


def test_patterns_stand_for_our_own_names() -> None:
    suite = make_suite({"name": "x", "models": ["cifar_dynamic_*", "vit_basic"]}, "x.toml")
    assert set(suite.models) >= {"cifar_dynamic_vit_dense", "cifar_dynamic_vit_pruned", "vit_basic"}
    with pytest.raises(UnknownNameError):
        make_suite({"name": "x", "models": ["nothing_*"]}, "x.toml")


@pytest.mark.parametrize(
    ("text", "number"), [("8GiB", 8 * 2**30), ("500 MB", 500_000_000), (1024, 1024), ("1.5kb", 1500)]
)
def test_amounts_of_memory(text: str | int, number: int) -> None:
    assert parse_bytes(text) == number


def test_metrics_default_to_all_but_energy_which_few_machines_count() -> None:
    defaults = make_suite({"name": "x", "models": ["vit_basic"]}, "x.toml").metrics
    assert defaults == tuple(name for name in METRICS if name != "energy")


def test_two_budgets_and_unknown_recipes_are_usage_errors() -> None:
    with pytest.raises(UsageError):
        check_before_loading(prepare_suite("smoke", {"recipe": "no-such-recipe"}))


def test_a_rule_may_drop_what_a_model_cannot_take() -> None:
    content = {
        "name": "x",
        "models": ["vit_basic", "vit_base16"],
        "image_sizes": [32, 50],
        "exclude": [{"models": ["vit_basic"], "image_sizes": [50]}],
    }
    suite = check_before_loading(make_suite(content, "x.toml"))
    assert {(cell.model, cell.image_size) for cell in cells_of(suite)} == {
        ("vit_basic", (32, 32)),
        ("vit_base16", (32, 32)),
        ("vit_base16", (50, 50)),
    }


@pytest.mark.parametrize("rule", [{"devices": ["cpu"]}, {"threads": [1]}, {"models": ["vit_basic"]}])
def test_rules_on_what_is_not_known_yet_do_not_fail_the_check_before_loading(rule: dict[str, object]) -> None:
    models = ["vit_basic", "timm:vit_tiny_patch16_224"]
    check_before_loading(make_suite({"name": "x", "models": models, "exclude": [rule]}, "x.toml"))


def test_a_typo_in_a_rule_is_no_rule_that_drops_nothing() -> None:
    with pytest.raises(UnknownNameError, match="vit_bsic"):
        make_suite({"name": "x", "models": ["vit_basic"], "exclude": [{"models": ["vit_bsic"]}]}, "x.toml")
    with pytest.raises(SuiteError, match="sizes in pixels"):
        make_suite({"name": "x", "models": ["vit_basic"], "exclude": [{"image_sizes": ["native"]}]}, "x.toml")
    suite = make_suite({"name": "x", "models": ["vit_basic"], "exclude": [{"devices": ["cuda:0"]}]}, "x.toml")
    assert check_before_loading(suite).exclude[0].devices == ("cuda",)


def test_accuracy_without_training_is_said() -> None:
    suite = make_suite({"name": "x", "models": ["vit_basic"], "metrics": ["accuracy"]}, "x.toml")
    with pytest.raises(SuiteError, match="accuracy is asked for without a training section"):
        cells_of(suite)


def test_quick_divides_a_recipes_own_budget_and_raises_nothing() -> None:
    assert budgets(prepare_suite("seeds", {"data": "digits"})) == {"brief": 1600}
    assert budgets(prepare_suite("seeds", {"data": "digits"}, quick=True)) == {"brief": 160}
    smoke = prepare_suite("smoke", {}, quick=True)
    assert smoke.measure.seconds <= prepare_suite("smoke", {}).measure.seconds
    assert smoke.measure.processes == 1


def test_download_alone_makes_no_suite_train() -> None:
    with pytest.raises(UsageError, match="go with --data"):
        prepare_suite("seeds", {"download": True})


def test_the_timeout_option_reaches_training() -> None:
    suite = prepare_suite("smoke", {"timeout_s": 7.0})
    assert suite.training is not None
    assert (suite.timeout_s, suite.training.timeout_s) == (7.0, 7.0)


def test_published_weights_are_not_tested_with_a_head_that_nothing_trained() -> None:
    facts = ModelFacts((224, 224), 1000, lambda size: None, "V1", 1000)
    training = TrainingFacts("digits", 10, (RecipeFacts("brief", "0", 32),))

    def cells(**keys: Any) -> list[Cell]:
        suite = make_suite({"name": "x", "models": ["vit_basic"], "weights": "pretrained", **keys}, "x.toml")
        suite = suite.model_copy(update={"training": Training()})
        return expand(suite, devices=["cpu"], threads=1, models={"vit_basic": facts}, training=training)

    with pytest.raises(SuiteError, match=r"has 1000 classes, digits has 10: its head would be random"):
        cells()
    tested = [cell for cell in cells(replace_head=True) if cell.tests]
    assert [cell.weights for cell in tested] == ["pretrained:V1"]
    assert not tested[0].trains


def training_cells(suite: Suite) -> list[Cell]:
    """The training cells of a suite, as a run would have them."""
    plan = resolve_training(suite)
    assert plan is not None
    return [cell for cell in cells_of(suite, plan.facts()) if cell.trains]


RECIPE = """
optimizer = "sgd"
learning_rate = 0.1
batch_size = 8
epochs = 4
"""


def write_recipe(folder: Path, name: str, more: str = "") -> str:
    path = folder / f"{name}.toml"
    path.write_text(RECIPE + more)
    return str(path)


def test_each_recipe_makes_training_cells_of_its_own(tmp_path: Path) -> None:
    mine = write_recipe(tmp_path, "mine")
    training = {"recipe": ["brief", mine, "brief"]}
    suite = make_suite({"name": "x", "models": ["vit_basic", "vit_layer6_32"], "training": training}, "x.toml")
    cells = training_cells(suite)
    assert [(cell.model, cell.weights, cell.batch_size) for cell in cells] == [
        ("vit_basic", "train:brief", 32),
        ("vit_basic", "train:mine", 8),
        ("vit_layer6_32", "train:brief", 32),
        ("vit_layer6_32", "train:mine", 8),
    ]
    assert {cell.recipe_hash for cell in cells} == {load_recipe("brief").hash, load_recipe(mine).hash}
    assert [cell.trains for cell in cells_of(suite, resolve_training(suite).facts())].count(False) == 2  # type: ignore[union-attr]


def test_one_recipe_may_stand_for_a_list_of_one() -> None:
    one = make_suite({"name": "x", "models": ["vit_basic"], "training": {"recipe": "brief"}}, "x.toml")
    many = make_suite({"name": "x", "models": ["vit_basic"], "training": {"recipe": ["brief"]}}, "x.toml")
    assert one == many


def test_weights_that_are_given_are_tested_once_whatever_recipes_there_are(tmp_path: Path) -> None:
    content = {"name": "x", "models": ["vit_basic"], "weights": "mine.pt"}
    content["training"] = {"recipe": ["brief", write_recipe(tmp_path, "mine")]}
    suite = make_suite(content, "x.toml")
    plan = resolve_training(suite)
    assert plan is not None
    (test,) = [cell for cell in cells_of(suite, plan.facts()) if cell.tests]
    assert (test.trains, test.recipe_hash, test.batch_size, test.options) == (False, None, 32, ())


def test_a_rule_drops_trainings_by_their_recipe_and_leaves_timed_cells_alone(tmp_path: Path) -> None:
    content = {
        "name": "x",
        "models": ["vit_basic", "vit_layer6_32"],
        "training": {"recipe": ["brief", write_recipe(tmp_path, "mine"), write_recipe(tmp_path, "mine-2")]},
        "exclude": [{"models": "vit_layer*", "recipes": "mine*"}, {"recipes": ["mine-2"]}],
    }
    suite = make_suite(content, "x.toml")
    assert [(cell.model, cell.weights) for cell in training_cells(suite)] == [
        ("vit_basic", "train:brief"),
        ("vit_basic", "train:mine"),
        ("vit_layer6_32", "train:brief"),
    ]
    timed = [cell for cell in cells_of(suite, resolve_training(suite).facts()) if not cell.tests]  # type: ignore[union-attr]
    assert {cell.model for cell in timed} == {"vit_basic", "vit_layer6_32"}


def test_a_rule_for_a_recipe_that_is_not_there_is_refused(tmp_path: Path) -> None:
    mine = write_recipe(tmp_path, "mine")
    text = f'models = ["vit_basic"]\n[training]\nrecipe = ["{mine}", "brief"]\n[[exclude]]\nrecipes = ["mien"]'
    with pytest.raises(UnknownNameError, match="Unknown recipe 'mien'. Did you mean 'mine'"):
        prepare_suite(write_suite(tmp_path, text), {})
    with pytest.raises(SuiteError, match="unknown key 'exclude.recipe'. Did you mean 'recipes'"):
        prepare_suite(write_suite(tmp_path, text.replace("recipes =", "recipe =")), {})
    # an option may take the recipe away that a rule is for
    suite = prepare_suite(write_suite(tmp_path, text.replace("mien", "mine")), {"recipe": ["brief"]})
    assert [cell.weights for cell in training_cells(suite)] == ["train:brief"]


def test_the_options_recipe_and_budget_replace_those_of_the_suite(tmp_path: Path) -> None:
    mine = write_recipe(tmp_path, "mine")
    suite = prepare_suite("lightweight", {"recipe": [mine, "brief"]})
    assert budgets(suite) == {"mine": 1536, "brief": 1536}  # the suite's own budget is for every recipe
    suite = prepare_suite("lightweight", {"recipe": [mine, "brief"], "budget": "epochs=0.5"})
    assert budgets(suite) == {"mine": 0.5, "brief": 0.5}
    assert suite.training is not None
    assert (suite.training.images, suite.training.epochs) == (None, 0.5)
    again = make_suite(tomllib.loads(to_toml(suite)), "again.toml")
    assert again == suite


def test_quick_takes_a_tenth_of_each_recipe_and_leaves_a_budget_that_was_given(tmp_path: Path) -> None:
    recipes = [write_recipe(tmp_path, "mine"), "brief"]
    assert budgets(prepare_suite("seeds", {"data": "digits", "recipe": recipes}, quick=True)) == {
        "mine": 0.4,  # epochs
        "brief": 160,  # images
    }
    asked = {"data": "digits", "recipe": recipes, "budget": "images=64"}
    assert budgets(prepare_suite("seeds", asked, quick=True)) == {"mine": 64, "brief": 64}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "30000",
            "Option --budget: '30000' is not a budget. Give one of images, steps, epochs, seconds, such as images=",
        ),
        ("image=3", "Option --budget: 'image' is not one of images, steps, epochs, seconds. Did you mean 'images'?"),
        ("images=1.5", "Option --budget: images = '1.5' is not a whole number from 1 on"),
        ("steps=0", "Option --budget: steps = '0' is not a whole number from 1 on"),
        ("epochs=nan", "Option --budget: epochs = 'nan' is not a number above 0"),
        ("seconds=", "Option --budget: seconds = '' is not a number above 0"),
    ],
)
def test_a_wrong_budget_gets_one_line(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        prepare_suite("smoke", {"budget": text})
    assert str(caught.value).startswith(message)


def test_a_budget_is_what_it_says() -> None:
    assert parse_budget("images=30000") == {"images": 30_000}
    assert parse_budget(" epochs = 2.5 ") == {"epochs": 2.5}


@pytest.mark.parametrize("options", [{"recipe": ["brief"]}, {"budget": "steps=3"}])
def test_options_of_training_that_would_do_nothing_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="does not train"):
        prepare_suite("seeds", options)
    with pytest.raises(UsageError, match="leave one of them out"):
        prepare_suite("smoke", {**options, "data": "none"})
    with pytest.raises(UsageError, match="only tested"):
        prepare_suite("smoke", {**options, "weights": "pretrained"})


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("zoo-static", {"data": "digits"}, "--data is about accuracy, which is not measured here: add accuracy to"),
        ("smoke", {"metrics": ["latency"], "recipe": ["nosuch"]}, "--recipe is about accuracy"),
        ("smoke", {"metrics": ["latency"], "budget": "steps=3"}, "--budget is about accuracy"),
        ("seeds", {"metrics": ["latency", "accuracy"]}, "--metrics asks for accuracy.* suite 'seeds' has none: add"),
        ("smoke", {"metrics": ["latency", "accuracy"], "data": "none"}, "--data none removes it: give --data NAME"),
        ("smoke", {"data": "none", "download": True}, "--download is about training, and --data none removes"),
    ],
)
def test_an_option_of_training_without_accuracy_is_refused_and_the_reverse(
    name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        prepare_suite(name, options)


def test_no_data_is_no_contradiction_to_what_a_suite_measures() -> None:
    for name, options in (("balanced", {}), ("zoo-static", {}), ("smoke", {"metrics": ["latency"]})):
        assert prepare_suite(name, {**options, "data": "none"}).training is None


def test_other_data_leave_where_a_suites_own_are(tmp_path: Path) -> None:
    text = f'models = ["vit_basic"]\n[training]\ndata = "cifar10"\ndata_dir = "{tmp_path}"\ndownload = true'
    mine = write_suite(tmp_path, text)
    for data, there in (("digits", None), ("cifar10", str(tmp_path)), ("cifar100", str(tmp_path))):
        suite = prepare_suite(mine, {"data": data})
        assert suite.training is not None
        assert (suite.training.data_dir, suite.training.download) == (there, there is not None)
        assert resolve_training(suite) is not None
    with pytest.raises(UsageError, match="--data-dir is for cifar10, .* not for 'digits'"):
        resolve_training(prepare_suite(mine, {"data": "digits", "data_dir": str(tmp_path)}))


def test_a_typo_in_one_of_several_recipes_is_answered_with_the_closest() -> None:
    with pytest.raises(UsageError, match="Unknown recipe 'cifar-vit-bas'. Did you mean 'cifar-vit-base'"):
        check_before_loading(prepare_suite("smoke", {"recipe": ["brief", "cifar-vit-bas"]}))


def test_an_imbalance_that_is_none_is_refused_before_anything_runs(tmp_path: Path) -> None:
    for text, message in (("linear", "neither linear:R"), ("exponential:0.5", "neither linear:R")):
        recipe = write_recipe(tmp_path, "thin", f'imbalance = "{text}"\n')
        with pytest.raises(UsageError, match=message):
            check_before_loading(prepare_suite("smoke", {"recipe": [recipe]}))
    (tmp_path / "indices.txt").write_text("0 1 99999")
    recipe = write_recipe(tmp_path, "thin", f'imbalance = "{tmp_path / "indices.txt"}"\n')
    with pytest.raises(UsageError, match="has to hold numbers from 0 to 1436"):
        check_before_loading(prepare_suite("smoke", {"recipe": [recipe]}))


@pytest.mark.parametrize(
    ("more", "ratio", "fits"),
    [
        ("", 5_000, True),
        ("", 20_000, False),  # 5,000 a class, not the 50,000 of all
        ("validation = 0.9\n", 500, True),
        ("validation = 0.9\n", 5_000, False),
    ],
)
def test_an_imbalance_is_judged_by_the_pictures_that_a_class_has(
    more: str, ratio: int, fits: bool, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path, "thin", f'imbalance = "exponential:{ratio}"\n{more}')
    suite = prepare_suite("balanced", {"recipe": [recipe], "data_dir": str(tmp_path), "download": True})
    if fits:
        assert resolve_training(suite) is not None
        return
    with pytest.raises(UsageError, match="leaves a class of 5000? images empty"):
        resolve_training(suite)


def test_an_imbalance_is_judged_by_the_largest_class_of_a_folder(tmp_path: Path) -> None:
    root = make_image_folder(tmp_path / "pets", train=2)
    for number in range(20):
        shutil.copy(root / "train" / "cat" / "0.png", root / "train" / "cat" / f"more{number}.png")
    for ratio, fits in ((40, True), (60, False)):  # 22 cats and 2 dogs
        recipe = write_recipe(tmp_path, "thin", f'imbalance = "linear:{ratio}"\n')
        suite = prepare_suite("smoke", {"recipe": [recipe], "data": str(root)})
        if fits:
            assert resolve_training(suite) is not None
        else:
            with pytest.raises(UsageError, match="leaves a class of 22 images empty"):
                resolve_training(suite)


def test_fewer_training_pictures_are_another_cell() -> None:
    def cells(count: int | None) -> list[Cell]:
        content = {"name": "x", "models": ["vit_basic"], "training": {"train_images": count}}
        return training_cells(make_suite(content, "x.toml"))

    (all_of_them,) = cells(None)
    assert all_of_them.options == ()
    assert cells(100)[0].options == (("train_images", "100"),)
    assert cells(100)[0].id != all_of_them.id
    assert cells(1437)[0] == all_of_them  # the digits have no more


def test_what_a_training_takes_is_said_with_what_its_recipe_would(tmp_path: Path) -> None:
    def told(**training: Any) -> str:
        content = {"name": "x", "models": ["vit_basic"], "training": {"recipe": mine, **training}}
        suite = make_suite(content, "x.toml")
        plan = resolve_training(suite)
        assert plan is not None
        return plan.budget_of(training_cells(suite)[0])

    mine = write_recipe(tmp_path, "mine")
    assert told() == "the recipe's own: epochs = 4"
    assert told(epochs=4.0) == "the recipe's own: epochs = 4"
    assert told(images=64) == "images = 64, not the recipe's epochs = 4"
    assert told(share=0.5) == "epochs = 2, not the recipe's epochs = 4"
    assert told(batch_size=16, train_images=100) == "batch_size = 16, not 8; at most 100 training pictures"


def test_estimates_know_how_many_pictures_a_recipe_trains_on(tmp_path: Path) -> None:
    def pictures(more: str, **training: Any) -> int:
        content = {"name": "x", "models": ["vit_basic"]}
        content["training"] = {"recipe": write_recipe(tmp_path, "mine", more), **training}
        plan = resolve_training(make_suite(content, "x.toml"))
        assert plan is not None
        return plan.count_training_images(plan.recipes[0])

    assert pictures("") == 1437
    assert pictures("validation = 0.1\n") == 1437 - 144
    assert pictures("validation = 0.1\n", train_images=500) == 500
    # 143 a class, thinned out to 143, 129, ... 14
    assert pictures('imbalance = "linear:10"\n') == pytest.approx(10 * 143 * 0.55, rel=0.01)


LADDER = ["none", "crop", "jitter", "cutout", "mixup", "cutmix"]


def test_the_suite_ablation_is_the_ladder_of_augmentation_and_that_of_depth(tmp_path: Path) -> None:
    suite = prepare_suite("ablation", {"data_dir": str(tmp_path), "download": True})
    trained = [(cell.model, cell.weights.removeprefix("train:")) for cell in training_cells(suite)]
    assert trained == [
        *(("cifar_vit_base", f"cifar-vit-base-ablation-{rung}") for rung in LADDER),
        *((f"cifar_vit_base{depth}", "cifar-vit-base") for depth in ("", "_d3", "_d9", "_d12")),
    ]
    published = {
        (card.name, claim.recipe)
        for name in suite.models
        for card in [model_registry().get(name)]
        for claim in card.claims
        if claim.quantity == "top1" and "imbalanced" not in claim.recipe
    }
    assert set(trained) == published


def test_the_suite_imbalance_has_the_four_treatments_that_are_published(tmp_path: Path) -> None:
    suite = prepare_suite("imbalance", {"data_dir": str(tmp_path), "download": True})
    trained = [(cell.model, cell.weights.removeprefix("train:")) for cell in training_cells(suite)]
    claims = model_registry().get("cifar_vit_base").claims
    assert {recipe for _, recipe in trained} == {one.recipe for one in claims if "imbalanced" in one.recipe}
    assert {model for model, _ in trained} == {"cifar_vit_base"}
    assert len(trained) == 4


def test_the_suite_balanced_has_the_models_of_the_published_table(tmp_path: Path) -> None:
    suite = prepare_suite("balanced", {"data_dir": str(tmp_path), "download": True})
    trained = {(cell.model, cell.weights.removeprefix("train:")) for cell in training_cells(suite)}
    published = {
        (card.name, claim.recipe)
        for card in map(model_registry().get, suite.models)
        for claim in card.claims
        if claim.quantity == "top1" and claim.recipe in ("cifar-vit", "cifar-vit-base")
    }
    assert trained == published
    assert len(trained) == 5


def test_a_built_in_suites_own_size_of_training_ends_with_its_axes(tmp_path: Path) -> None:
    def size(name: str = "lightweight", **options: Any) -> Any:
        section = prepare_suite(name, options).training
        assert section is not None
        return section.image_size

    assert size() == (16, 16)
    assert size(models=["vit_basic"], data="digits") == (16, 16)
    assert size(image_sizes=["64"]) is None
    assert size(data=str(make_image_folder(tmp_path / "photos"))) is None
    assert size(image_sizes=["64"], training={"image_size": 24}) == (24, 24)  # said in so many words
    mine = write_suite(tmp_path, 'models = ["vit_basic"]\n[training]\nimage_size = 24')
    assert size(mine, image_sizes=["64"]) == (24, 24)


def test_pictures_of_ones_own_are_trained_at_the_sizes_that_are_measured(tmp_path: Path) -> None:
    photos = str(make_image_folder(tmp_path / "photos"))
    suite = prepare_suite("smoke", {"models": ["vit_layer6_32"], "data": photos, "image_sizes": [48, 64]})
    assert [cell.image_size for cell in training_cells(suite)] == [(48, 48), (64, 64)]


@pytest.mark.integration
@pytest.mark.usefixtures("shared_workers")
def test_a_size_of_training_that_does_not_fit_names_where_it_is_from(tmp_path: Path) -> None:
    training = "[training]\nimage_size = 18"
    suite = write_suite(tmp_path, training)
    reason = r"\. 18 px is the size that suite 'mine' trains at \(\[training\] image_size\): change it there, or train"
    for name in ("vit_basic", "torchvision:vit_b_16"):  # one is known here, the other only to its library
        Path(suite).write_text(f'models = ["{name}"]\nmetrics = ["params", "accuracy"]\n{training}')
        with pytest.raises(UsageError, match=reason):
            plan_suite(suite)
    with pytest.raises(UsageError) as caught:
        check_before_loading(prepare_suite("smoke", {"models": ["vit_basic"], "image_sizes": [18]}))
    assert "[training]" not in str(caught.value)  # the user's own size


def test_what_rules_drop_is_counted_with_the_rules() -> None:
    content = {
        "name": "x",
        "models": ["vit_basic", "vit_layer6_32"],
        "image_sizes": [32, 64],
        "batch_sizes": [1, 8],
        "modes": ["infer", "train"],
        "exclude": [
            {"modes": ["train"], "batch_sizes": [1]},
            {"models": ["vit_basic"], "image_sizes": ["64x64"]},
            {"dtypes": ["bf16"]},
        ],
    }
    suite = make_suite(content, "x.toml")
    notes: list[str] = []
    models = {name: facts(name) for name in suite.models}
    cells = expand(suite, devices=("cpu",), threads=1, models=models, training=None, note=notes.append)
    assert len(cells) == 2**4 - 7
    assert notes == [
        "7 cells left out by [[exclude]]: batch_sizes 1, modes train (4); image_sizes 64, models vit_basic (3)"
    ]


@pytest.mark.integration
@pytest.mark.usefixtures("shared_workers")
def test_a_dry_run_says_what_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    from vitbench.cli import run_command

    options = ["--models", "vit_layer6_32", "--metrics", "latency,training_step", "--data", "none", "--threads", "1"]
    assert run_command(["run", "--suite", "smoke", "--dry-run", *options]) == 0
    error = capsys.readouterr().err
    assert "1 cell left out by [[exclude]]: batch_sizes 1, modes train\n" in error
    assert "Counting parameters and FLOPs of 1 model ...\n" in error


@pytest.mark.integration
@pytest.mark.usefixtures("shared_workers")
def test_a_model_is_one_model_at_whatever_sizes() -> None:
    notes: list[str] = []
    plan_suite(
        "smoke", models=["vit_layer6_32"], image_sizes=[32, 64], metrics=["params"], data="none", note=notes.append
    )
    assert "Counting parameters and FLOPs of 1 model, 2 counts in all ..." in notes


@pytest.mark.parametrize(
    ("name", "options", "rules"),
    [
        ("lightweight", {}, 1),
        ("lightweight", {"batch_sizes": [1, 64]}, 1),
        ("lightweight", {"batch_sizes": [1, 64], "modes": ["infer", "train"]}, 0),
        ("lightweight", {"exclude": [{"modes": ["train"]}], "modes": ["infer", "train"]}, 1),
        ("balanced", {"recipe": ["cifar-vit-base"]}, 2),
        ("balanced", {"recipe": ["cifar-vit-base"], "models": ["cifar_vit_small"]}, 0),
    ],
)
def test_a_built_in_suites_rule_ends_where_options_give_all_of_its_keys(
    name: str, options: dict[str, Any], rules: int
) -> None:
    assert len(prepare_suite(name, options).exclude) == rules


def test_a_rule_of_ones_own_stays(tmp_path: Path) -> None:
    mine = write_suite(tmp_path, 'models = ["vit_basic"]\n[[exclude]]\nbatch_sizes = [1]')
    assert len(prepare_suite(mine, {"batch_sizes": [1, 8]}).exclude) == 1


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that say that there are two GPUs; nothing runs on them."""
    from vitbench.executors.conversation import ask

    def told(launcher: Any, task: Any, timeout_s: float = 600.0) -> list[Any]:
        if isinstance(task, Calibrate):
            return [{"flops_per_s": 1e12}]
        answers: list[Any] = ask(launcher, task, timeout_s)
        for answer in answers if isinstance(task, Describe) else ():
            gpus = {name: {"name": "Example GPU", "memory_bytes": 25_000_000_000} for name in ("cuda", "cuda:1")}
            answer["devices"] = {"cpu": answer["devices"]["cpu"], **gpus}
        return answers

    monkeypatch.setattr("vitbench.runner.plan.ask", told)
    monkeypatch.setattr("vitbench.runner.time_estimates.ask", told)


@pytest.mark.integration
@pytest.mark.usefixtures("two_gpus", "shared_workers")
@pytest.mark.parametrize(
    ("name", "devices", "trained_on"),
    [
        ("imbalance", None, {"cuda"}),
        ("imbalance", ["cpu"], {"cpu"}),
        ("imbalance", ["cpu", "cuda:1"], {"cpu", "cuda:1"}),
        ("smoke", None, {"cpu", "cuda", "cuda:1"}),
    ],
)
def test_long_trainings_take_one_device_unless_devices_are_named(
    name: str, devices: list[str] | None, trained_on: set[str], tmp_path: Path
) -> None:
    options = {"models": ["vit_layer6_32"], "data": "digits", "metrics": ["latency", "accuracy"], "devices": devices}
    plan = plan_suite(name, **options)
    assert {cell.device for cell in plan.cells if cell.trains} == trained_on
    assert {cell.device for cell in plan.cells if not cell.data} == set(devices or ("cpu", "cuda", "cuda:1"))
    # what is resumed is the same, though the suite names every device now
    written = tmp_path / "suite.toml"
    written.write_text(to_toml(plan.suite))
    again = plan_suite(str(written))
    assert again.cells == plan.cells


@pytest.mark.integration
def test_a_threshold_for_none_of_another_librarys_models_is_refused_before_the_first_cell(
    fork_server: Launcher,
) -> None:
    rule = {"metric": "params", "cells": "timm:levit_*"}
    content = {"name": "m", "models": ["timm:vit_tiny_patch16_2*"], "metrics": ["params"], "thresholds": [rule]}
    with pytest.raises(SuiteError, match="no model is called 'timm:levit_\\*' here: timm:vit_tiny_patch16_224$"):
        make_plan(check_before_loading(make_suite(content, "mine.toml")), fork_server, print)


@pytest.mark.integration
@pytest.mark.usefixtures("two_gpus")
def test_a_suite_may_name_where_it_trains(fork_server: Launcher) -> None:
    content = {"name": "x", "models": ["vit_basic"], "devices": ["cpu", "cuda:1"], "metrics": ["accuracy"]}

    def trained_on(devices: Any) -> list[str]:
        suite = make_suite({**content, "training": {"devices": devices}}, "x.toml")
        return [cell.device for cell in make_plan(check_before_loading(suite), fork_server, print).cells]

    assert trained_on("auto") == ["cuda:1"]  # the first accelerator of the suite's own devices
    assert trained_on(["cuda:0", "cpu"]) == ["cuda", "cpu"]
    with pytest.raises(DeviceError, match="Device 'mps' is not there"):
        trained_on(["mps"])


@pytest.mark.parametrize(("devices", "kept"), [("auto", ("auto",)), (["auto"], ("auto",)), ("cpu", None)])
def test_only_devices_that_are_named_replace_where_a_suite_trains(devices: Any, kept: Any) -> None:
    section = prepare_suite("imbalance", {"devices": devices}).training
    assert section is not None
    assert section.devices == kept


def test_without_an_accelerator_the_long_trainings_take_the_processor() -> None:
    from vitbench.runner.plan import _fastest_of

    assert _fastest_of(["cpu"]) == "cpu"
    assert _fastest_of(["cpu", "mps"]) == "mps"


@pytest.mark.parametrize("name", ["ablation", "imbalance"])
def test_other_models_may_take_the_place_of_a_suites_own(name: str) -> None:
    options = {"models": ["vit_layer6_32"], "data": "digits", "budget": "images=64"}
    suite = check_before_loading(prepare_suite(name, options))
    cells = training_cells(suite)
    assert {cell.model for cell in cells} == {"vit_layer6_32"}
    assert len(cells) == {"ablation": 7, "imbalance": 4}[name]
    assert set(budgets(suite).values()) == {64}
    only = prepare_suite("ablation", {**options, "models": ["cifar_vit_base_d3"]})
    assert [cell.weights for cell in training_cells(only)] == ["train:cifar-vit-base"]


def test_the_ladders_rungs_add_one_thing_each_to_the_base_recipe() -> None:
    steps: list[set[str]] = []
    for rung in LADDER:
        recipe = load_recipe(f"cifar-vit-base-ablation-{rung}")
        used = {*recipe.augment, *(name for name in ("mixup", "cutmix") if getattr(recipe, name))}
        steps.append(used)
        rest = {"name", "description", "augment", "mixup", "cutmix", "rotation", "jitter", "erasing"}
        assert recipe.model_dump(exclude=rest) == load_recipe("cifar-vit-base").model_dump(exclude=rest)
    added = [sorted(later - earlier) for earlier, later in itertools.pairwise(steps)]
    assert (steps[0], added) == (set(), [["crop", "flip"], ["jitter"], ["erasing"], ["mixup"], ["cutmix"]])
    whole = load_recipe("cifar-vit-base")
    last = load_recipe("cifar-vit-base-ablation-cutmix")
    assert set(whole.augment) - set(last.augment) == {"rotation"}
    for key in ("jitter", "erasing", "mixup", "cutmix"):
        assert getattr(last, key) == getattr(whole, key)


def test_the_four_treatments_differ_in_sampler_and_class_weights_alone() -> None:
    found = {
        name: load_recipe(f"cifar-vit-base-imbalanced-{name}") for name in ("baseline", "sampler", "weights", "both")
    }
    assert {name: (one.sampler, one.class_weights) for name, one in found.items()} == {
        "baseline": ("shuffle", "none"),
        "sampler": ("weighted", "none"),
        "weights": ("shuffle", "inverse"),
        "both": ("weighted", "inverse"),
    }
    rest = {"name", "description", "sampler", "class_weights"}
    assert len({one.model_dump_json(exclude=rest) for one in found.values()}) == 1
    rest |= {"imbalance", "validation"}
    assert found["both"].model_dump(exclude=rest) == load_recipe("cifar-vit-base").model_dump(exclude=rest)


def test_the_imbalance_of_ten_times_five_thousand_pictures_is_the_published_one() -> None:
    recipe = load_recipe("cifar-vit-base-imbalanced-baseline")
    assert recipe.imbalance is not None
    counts = imbalanced_counts(recipe.imbalance, 5000, 10)
    assert counts == list(range(5000, 0, -500))
    assert sum(counts) == 27_500
    assert recipe.validation == 0


@pytest.mark.parametrize(
    ("keys", "modules"),
    [
        ({"metrics": ["latency"]}, []),
        (
            {"metrics": ["accuracy"], "training": {"recipe": "brief", "data": "digits"}},
            ["sklearn.metrics", "sklearn.datasets"],
        ),
        ({"metrics": ["latency"], "training": {"recipe": "brief", "data": "digits"}}, []),
        ({"metrics": ["params"], "models": ["timm:vit_*", "torchvision:vit_b_16"]}, ["timm", "torchvision"]),
        ({"metrics": ["latency"], "models": ["vit_b16_*"]}, ["torchvision"]),
        ({"metrics": ["latency"], "models": ["module:mine:build"], "memory_limit": "1GiB"}, ["timm", "torchvision"]),
        ({"metrics": ["fvcore"]}, ["fvcore.nn", "thop"]),
    ],
)
def test_workers_share_the_libraries_that_they_need_and_no_others(keys: dict[str, Any], modules: list[str]) -> None:
    assert modules_of(make_suite({"name": "x", "models": ["vit_basic"], **keys}, "x.toml")) == [
        "torch._dynamo",
        *modules,
    ]


@pytest.mark.integration
def test_what_all_workers_share_is_quickly_loaded() -> None:
    """The heavy libraries, at a second each, come with the suites that need them."""
    text = "import sys, importlib; from vitbench.executors.fork_server import PRELOAD; [importlib.import_module(m) for m in PRELOAD]; "
    text += "print([m for m in ('timm', 'torchvision', 'torch._dynamo', 'sklearn', 'pandas') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
