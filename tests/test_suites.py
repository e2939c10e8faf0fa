"""Suite files: what they may say, what is said when they say something else, and the cells that come of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vitbench.errors import ImageSizeError, SuiteError, UnknownNameError, UsageError
from vitbench.planning import check_before_loading
from vitbench.records import Cell
from vitbench.registry import METRICS, model_registry
from vitbench.runner import prepare_suite
from vitbench.suites import (
    ModelFacts,
    Suite,
    Training,
    TrainingFacts,
    expand,
    list_suites,
    load_suite,
    make_suite,
    parse_bytes,
    to_toml,
)

TRAINING = TrainingFacts(data="digits", num_classes=10, recipe="brief", recipe_hash="abc", batch_size=16)


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


@pytest.mark.parametrize("name", list_suites())
def test_every_built_in_suite_is_legal_and_survives_being_written(name: str) -> None:
    suite = check_before_loading(load_suite(name))
    again = make_suite(__import__("tomllib").loads(to_toml(suite)), "again.toml")
    assert again == suite
    assert suite.description


def test_the_default_suite_holds_every_light_model_at_32_px() -> None:
    from vitbench.models.closed_form import closed_form

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
        ("models = [", "mine.toml is no valid TOML"),
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
        ('models = ["vit_basic"]\nmemory_limit = "lots"', "'lots' is no amount of memory"),
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
    assert suite.training.recipe == "brief"


def test_quick_lowers_every_budget() -> None:
    full, quick = prepare_suite("lightweight", {}), prepare_suite("lightweight", {}, quick=True)
    assert quick.measure.processes == 1
    assert quick.measure.seconds < full.measure.seconds
    assert full.training is not None
    assert quick.training is not None
    assert full.training.images is not None
    assert quick.training.images == full.training.images // 4


def test_a_suite_whose_cells_are_all_dropped_is_refused(tmp_path: Path) -> None:
    suite = load_suite(write_suite(tmp_path, 'models = ["vit_basic"]\n[[exclude]]\nmodels = "*"'))
    with pytest.raises(SuiteError, match="no cells left"):
        cells_of(suite)


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
    suite = prepare_suite("seeds", {"data": "digits"}, quick=True)
    assert suite.training is not None
    assert suite.training.images == 400  # a quarter of what the recipe says
    smoke = prepare_suite("smoke", {}, quick=True)
    assert smoke.measure.seconds <= prepare_suite("smoke", {}).measure.seconds
    assert smoke.measure.min_samples <= prepare_suite("smoke", {}).measure.min_samples


def test_download_alone_makes_no_suite_train() -> None:
    with pytest.raises(UsageError, match="go with --data"):
        prepare_suite("seeds", {"download": True})


def test_the_timeout_option_reaches_training() -> None:
    suite = prepare_suite("smoke", {"timeout_s": 7.0})
    assert suite.training is not None
    assert (suite.timeout_s, suite.training.timeout_s) == (7.0, 7.0)


def test_published_weights_are_not_tested_with_a_head_that_nothing_trained() -> None:
    facts = ModelFacts((224, 224), 1000, lambda size: None, "V1", 1000)
    training = TrainingFacts("digits", 10, "brief", "0", 32)

    def cells(**keys: Any) -> list[Cell]:
        suite = make_suite({"name": "x", "models": ["vit_basic"], "weights": "pretrained", **keys}, "x.toml")
        suite = suite.model_copy(update={"training": Training()})
        return expand(suite, devices=["cpu"], threads=1, models={"vit_basic": facts}, training=training)

    with pytest.raises(SuiteError, match=r"has 1000 classes, digits has 10: its head would be random"):
        cells()
    tested = [cell for cell in cells(replace_head=True) if cell.tests]
    assert [cell.weights for cell in tested] == ["pretrained:V1"]
    assert not tested[0].trains
