"""The workflow for GitHub: its commands exist, and it runs what the README says."""

from __future__ import annotations

import os
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest

from vitbench.cli import run_command
from vitbench.core.registry import METRICS
from vitbench.devices import check_device_name
from vitbench.models.cards import model_registry
from vitbench.suites import load_suite, make_suite

ROOT = Path(__file__).parents[2]
WORKFLOW = ROOT / ".github" / "workflows" / "tests.yml"
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())


def parsed() -> dict[str, Any]:
    """The workflow as data. YAML reads a bare ``on`` as true."""
    yaml = pytest.importorskip("yaml")  # timm's requirement, not ours
    content = yaml.safe_load(WORKFLOW.read_text())
    return {**content, "on": content.get("on", content.get(True))}


def steps() -> list[dict[str, Any]]:
    return [step for job in parsed()["jobs"].values() for step in job["steps"]]


def command_lines() -> list[list[str]]:
    """Every command of every step, its words."""
    lines = [line for step in steps() for line in step.get("run", "").splitlines()]
    return [shlex.split(line) for line in lines if line.strip()]


OURS = [words[1:] for words in command_lines() if words[0] == "vitbench"]


def test_it_is_yaml_with_its_jobs() -> None:
    workflow = parsed()
    assert set(workflow["jobs"]) == {"linux", "gate", "mac"}
    assert {"push", "pull_request", "workflow_dispatch"} == set(workflow["on"])
    assert workflow["permissions"] == {"contents": "read"}


def test_tabs_do_not_stand_in_it_and_lines_end_as_they_should() -> None:
    text = WORKFLOW.read_text()
    assert "\t" not in text
    assert text.endswith("\n")
    assert not [line for line in text.splitlines() if line != line.rstrip()]


def test_linux_runs_the_readmes_command_and_nothing_of_its_own() -> None:
    commands = [step["run"] for step in parsed()["jobs"]["linux"]["steps"] if "run" in step]
    assert commands == [".ci/run"]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_linux_runs_on_the_oldest_and_the_newest_python_that_we_name() -> None:
    named = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["project"]["classifiers"]))
    versions = sorted(named, key=lambda version: int(version.split(".")[1]))
    assert parsed()["jobs"]["linux"]["strategy"]["matrix"]["python"] == [versions[0], versions[-1]]
    assert versions[0] in PROJECT["project"]["requires-python"]


def test_actions_are_pinned_to_a_version() -> None:
    used = [step["uses"] for step in steps() if "uses" in step]
    assert used
    assert all(re.fullmatch(r"actions/[a-z-]+@v\d+", one) for one in used if one != "./")


def test_pull_requests_go_through_our_own_action_with_inputs_that_it_has() -> None:
    gate = parsed()["jobs"]["gate"]
    assert gate["if"] == "github.event_name == 'pull_request'"
    (step,) = [step for step in gate["steps"] if step.get("uses") == "./"]
    yaml = pytest.importorskip("yaml")
    assert set(step["with"]) <= set(yaml.safe_load((ROOT / "action.yml").read_text())["inputs"])
    for name in step["with"]["models"].split(","):
        model_registry().get(name)


def test_the_mac_looks_runs_the_suite_and_the_tests_and_keeps_the_runs() -> None:
    mac = parsed()["jobs"]["mac"]
    assert "macos-14" in mac["runs-on"]  # Apple silicon
    assert ["doctor"] in OURS
    assert any(words[:3] == ["run", "--suite", "smoke"] and "mps" in words for words in OURS)
    assert ["python", "-m", "pytest", "-m", "mps"] in command_lines()
    assert any(marker.startswith("mps:") for marker in PROJECT["tool"]["pytest"]["ini_options"]["markers"])
    kept = next(step for step in mac["steps"] if str(step.get("uses", "")).startswith("actions/upload-artifact"))
    assert kept["if"] == "always()"
    folders = [words[words.index("--out") + 1] for words in OURS if "--out" in words]
    assert folders
    assert all(folder.startswith(kept["with"]["path"]) for folder in folders)


@pytest.mark.parametrize("words", OURS, ids=" ".join)
def test_its_commands_and_their_options_exist(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    command, options = words[0], [word for word in words[1:] if word.startswith("--")]
    assert run_command([command, "--help"]) == 0
    known = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    assert set(options) <= known
    assert len(words) == 1 + 2 * len(options)  # each has one value, and there is nothing else


@pytest.mark.parametrize("words", [words for words in OURS if words[0] == "run"], ids=" ".join)
def test_what_its_runs_are_given_is_legal(words: list[str]) -> None:
    given = dict(zip(words[1::2], words[2::2], strict=True))
    for name in given.get("--devices", "auto").split(","):
        check_device_name(name)
    for name in given.get("--metrics", "").split(",") if "--metrics" in given else ():
        METRICS.get(name)
    for name in given.get("--models", "").split(",") if "--models" in given else ():
        model_registry().get(name)
    keys: dict[str, Any] = {"memory_limit": given["--memory-limit"]} if "--memory-limit" in given else {}
    if "--suite" in given:
        assert load_suite(given["--suite"], {}).name == given["--suite"]
    make_suite({"name": "workflow", "models": ["vit_base16"], **keys}, "the workflow")


def test_there_are_tests_that_need_mps() -> None:
    texts = [path.read_text() for path in (ROOT / "tests").rglob("test_*.py")]
    assert any("@pytest.mark.mps" in text for text in texts)
