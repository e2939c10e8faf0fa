"""Models of other packages: installed for real as far as Python can tell, a folder with metadata on the path."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vitbench.core.run_folder import read_records

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.integration

BUILDER = '''
"""A linear model of the mean colour."""

from torch import nn


class Mean(nn.Module):
    def __init__(self, num_classes, width):
        super().__init__()
        self.body = nn.Linear(3, width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, images):
        return self.head(self.body(images.mean(dim=(2, 3))))


def build(*, image_size, num_classes, width):
    return Mean(num_classes, width)
'''
CARD = """
builder = "{package}.models.mean:build"
family = "mean"
source = "nowhere"
image_size = 16
num_classes = 10
patch = 4

[[model]]
name = "{name}"
summary = "the mean colour through {width} numbers"
config = {{ width = {width} }}
"""


def install(site: Path, name: str, cards: str | None, *, points: str | None = None) -> None:
    """The package NAME with models/mean.py, models/mean.toml (``cards``) and an entry point, as pip leaves them."""
    models = site / name / "models"
    models.mkdir(parents=True)
    (site / name / "__init__.py").touch()
    (models / "mean.py").write_text(BUILDER)
    (models / "__init__.py").write_text("")
    if cards is not None:
        (models / "mean.toml").write_text(cards, encoding="utf-8", errors="surrogateescape")
    metadata = site / f"{name}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[vitbench.models]\n{name} = {points or f'{name}.models'}\n")


def vitbench(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line where ``site`` is on the path, started elsewhere."""
    path = os.pathsep.join(filter(None, [str(site), str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, "-m", "vitbench", *arguments],
        cwd=site,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def listed(site: Path) -> tuple[set[str], str]:
    """The models that are listed, and what is said on stderr."""
    done = vitbench(site, "list", "models", "--json")
    assert done.returncode == 0, done.stderr
    return {row["model"] for row in json.loads(done.stdout)}, done.stderr


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good package, and one whose builder does not exist."""
    folder = tmp_path_factory.mktemp("site")
    install(folder, "meanbench", CARD.format(package="meanbench", name="mean_tiny", width=5))
    install(folder, "nobody", CARD.format(package="nowhere", name="built_by_nobody", width=5))
    return folder


def test_models_of_a_package_are_listed_beside_ours(site: Path) -> None:
    done = vitbench(site, "list", "models")
    assert done.returncode == 0
    assert "mean_tiny" in done.stdout
    assert "the mean colour through 5 numbers" in done.stdout
    assert "vit_basic_tutorial" in done.stdout
    matching = vitbench(site, "list", "models", "mean_*", "--json")
    assert [(row["model"], row["family"], row["params"]) for row in json.loads(matching.stdout)] == [
        ("mean_tiny", "mean", None)  # there is no formula for it
    ]


def test_show_counts_a_model_of_a_package_and_names_a_builder_that_is_not_there(site: Path) -> None:
    done = vitbench(site, "show", "mean_tiny", "built_by_nobody", "--json")
    assert done.returncode == 1, done.stderr
    card, broken = json.loads(done.stdout)
    assert card["params"] == (3 + 1) * 5 + (5 + 1) * 10
    assert card["macs"] == 3 * 5 + 5 * 10
    assert (card["image_size"], card["config"]) == ([16, 16], {"width": 5})
    assert "No module named 'nowhere'" in broken["error"]


def test_run_measures_trains_and_tests_a_model_of_a_package(site: Path, tmp_path: Path) -> None:
    done = vitbench(
        site, "run", "--models", "mean_*", "--quick", "--metrics", "params,flops,latency,accuracy", "--data", "digits",
        "--image-sizes", "16", "--batch-sizes", "2", "--modes", "infer", "--devices", "cpu", "--threads", "1",
        "--out", str(tmp_path / "run"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    timed, trained = read_records(tmp_path / "run")
    assert (timed.status, trained.status) == ("ok", "ok")
    values = {one.metric: one.value for one in timed.measurements if one.metric in ("params", "macs")}
    assert values == {"params": 80, "macs": 65}
    latency, accuracy = timed.measurement("latency"), trained.measurement("accuracy")
    assert latency is not None
    assert latency.status == "ok"
    assert accuracy is not None
    assert accuracy.status == "ok"


def test_a_size_is_judged_by_the_card_of_the_package(site: Path) -> None:
    done = vitbench(site, "run", "--models", "mean_tiny", "--image-sizes", "18")
    assert done.returncode == 2
    assert "Error: Image size 18 does not fit mean_tiny: its patch of 4 px does not divide it" in done.stderr


def test_a_typo_is_answered_with_the_name_of_the_package(site: Path) -> None:
    done = vitbench(site, "show", "mean_tny")
    assert done.returncode == 2
    assert "Did you mean 'mean_tiny'?" in done.stderr


def test_listing_does_not_import_the_package_of_the_models(tmp_path: Path) -> None:
    install(tmp_path, "meanbench", CARD.format(package="meanbench", name="mean_tiny", width=5))
    for file in ("__init__.py", "mean.py"):
        (tmp_path / "meanbench" / "models" / file).write_text("raise RuntimeError('imported')")
    models, errors = listed(tmp_path)
    assert "mean_tiny" in models
    assert errors == ""


TWO = CARD + '\n[[model]]\nname = "vit_basic"\nsummary = "a name that is taken"\nconfig = {{ width = 3 }}\n'
#: What is in the package: cards, entry point, text of __init__.py, and words of the warning.
BROKEN: dict[str, tuple[str | None, str | None, str, str]] = {
    "no_such_package": (None, "nowhere_to_be_found", "", "there is no package nowhere_to_be_found"),
    "no_cards": (None, None, "", "no_cards.models holds no .toml with models"),
    "a_module": (None, "a_module.models.mean", "", "there is no package a_module.models.mean"),
    "broken_toml": ("name = ", None, "", "Invalid value"),
    "not_utf8": ("\udcff\udcfe", None, "", "utf-8"),
    "no_patch": (CARD.replace("patch = 4", ""), None, "", "patch"),
    "unknown_key": (CARD + "colour = 3\n", None, "", "colour"),
    "taken_name": (CARD.replace("{name}", "vit_basic"), None, "", "model 'vit_basic' is registered twice"),
    "one_of_two_taken": (TWO, None, "", "model 'vit_basic' is registered twice"),
    "no_number": (CARD.replace("image_size = 16", "image_size = []"), None, "", ""),
    "raising_parent": (CARD, None, "raise RuntimeError('needs a licence')", "needs a licence"),
    "parent_of_no_python": (CARD, None, "def (", ""),
}


def test_each_broken_package_is_one_warning_and_left_out_whole(tmp_path: Path) -> None:
    for name, (cards, point, init, _) in BROKEN.items():
        filled = cards and cards.replace("{name}", f"{name}_1").replace("{package}", name).replace("{width}", "5")
        install(tmp_path, name, filled and filled.replace("{{", "{").replace("}}", "}"), points=point)
        (tmp_path / name / "__init__.py").write_text(init)
    done = vitbench(tmp_path, "list", "models", "--json")
    rows = {row["model"]: row for row in json.loads(done.stdout)}
    assert rows["vit_basic"]["family"] == "vit_basic"  # a taken name stays what it was
    assert not {f"{name}_1" for name in BROKEN} & set(rows)
    assert "Traceback" not in done.stderr
    warnings = [line for line in done.stderr.splitlines() if line.startswith("Warning: ")]
    assert len(warnings) == len(BROKEN), done.stderr
    for name, (_, _, _, words) in BROKEN.items():
        (warning,) = (line for line in warnings if f"models of {name} (" in line)
        assert words in warning
