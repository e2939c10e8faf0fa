"""The composite action: its shell is valid, takes nothing from outside into its text, and ends as it should for each
exit code of vitbench, run for real with a vitbench that ends as it is told.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
yaml = pytest.importorskip("yaml")  # timm's requirement, not ours
ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text())
STEPS: list[dict[str, Any]] = ACTION["runs"]["steps"]
SCRIPTS = {step["name"]: step["run"] for step in STEPS if "run" in step}
BASH = shutil.which("bash")

pytestmark = pytest.mark.skipif(BASH is None, reason="the action's steps are bash")

STUB = """#!/bin/sh
echo "$@" >> "$CALLS"
while [ $# -gt 0 ]; do
  if [ "$1" = --markdown ]; then echo "## page of $WHICH$1" > "$2"; fi
  shift
done
"""


@dataclass
class Done:
    """What a whole run of the action left."""

    outcome: str
    outputs: dict[str, str]
    log: str
    summary: str
    calls: list[str] = field(default_factory=list)


def git(folder: Path, *words: str) -> str:
    who = [
        "-c",
        "user.name=a",
        "-c",
        "user.email=a@b",
        "-c",
        "commit.gpgsign=false",
        "-c",
        "protocol.file.allow=always",
    ]
    done = subprocess.run(["git", *who, *words], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with a lock, a base, a branch of one commit, and a merge of both as a forge makes it."""
    folder = tmp_path_factory.mktemp("origin")
    git(folder, "init", "--quiet", "--initial-branch=main")
    git(folder, "config", "uploadpack.allowAnySHA1InWant", "true")
    for name in ("first", "second"):
        (folder / name).write_text(name)
        git(folder, "add", "-A")
        git(folder, "commit", "--quiet", "-m", name)
    git(folder, "checkout", "--quiet", "-b", "change", "main~1")
    (folder / "changed").write_text("x")
    git(folder, "add", "-A")
    git(folder, "commit", "--quiet", "-m", "change")
    git(folder, "checkout", "--quiet", "-b", "merged", "main")
    git(folder, "merge", "--quiet", "--no-ff", "-m", "merge", "change")
    return folder


@pytest.fixture
def perform(tmp_path: Path, origin: Path) -> Callable[..., Done]:
    """Run the action's steps in a shallow clone, as a runner does; ``check`` and ``ab`` are what vitbench ends with."""

    def run(
        *, check: int = 0, ab: int = 0, has_lock: bool = True, event: str = "pull_request", github: dict[str, str] | None = None,
        depth: tuple[str, ...] = ("--depth=1",), **inputs: str,
    ) -> Done:  # fmt: skip
        clone, temp, place = tmp_path / "clone", tmp_path / "temp", tmp_path / "bin"
        git(tmp_path, "clone", "--quiet", *depth, "--branch=merged", f"file://{origin}", str(clone))
        if has_lock:
            (clone / "vitbench.lock.json").write_text("{}")
        temp.mkdir()
        place.mkdir()
        stub = place / "vitbench"
        stub.write_text(STUB + f'case "$WORD" in check) exit {check} ;; *) exit {ab} ;; esac\n')
        stub.write_text(stub.read_text().replace("#!/bin/sh\n", '#!/bin/sh\nWORD="$1"\n'))
        stub.chmod(0o755)
        facts = {
            "github.event_name": event,
            "github.sha": git(origin, "rev-parse", "merged"),
            "github.event.pull_request.base.sha": git(origin, "rev-parse", "main") if event == "pull_request" else "",
            "github.event.before": "",
            "github.action_path": str(ROOT),
            "runner.temp": str(temp),
            **(github or {}),
        }
        given = {name: one.get("default", "") for name, one in ACTION["inputs"].items()} | inputs
        facts |= {f"inputs.{name}": value for name, value in given.items()}
        done = Done("success", {}, "", "", [])
        (tmp_path / "calls").touch()
        for step in STEPS:
            if "run" not in step or (done.outcome != "success" and step.get("if") != "always()"):
                continue
            output, summary = tmp_path / f"output-{step.get('id', 'none')}", tmp_path / "summary"
            output.touch()
            summary.touch()
            script = tmp_path / "script.sh"
            script.write_text(step["run"])
            environment = {key: fill(value, facts) for key, value in step.get("env", {}).items()}
            base = {
                "PATH": f"{place}{os.pathsep}{os.environ['PATH']}",
                "HOME": str(tmp_path),
                "CALLS": str(tmp_path / "calls"),
            }
            result = subprocess.run(
                [str(BASH), "--noprofile", "--norc", "-eo", "pipefail", str(script)],
                cwd=clone / fill(step.get("working-directory", "."), facts),
                env={**base, **environment, "GITHUB_OUTPUT": str(output), "GITHUB_STEP_SUMMARY": str(summary)},
                capture_output=True,
                text=True,
                check=False,
            )
            done.log += result.stdout + result.stderr
            outcome = "success" if result.returncode == 0 else f"failure {result.returncode}"
            if outcome != "success" and done.outcome == "success":
                done.outcome = outcome
            if "id" in step:
                facts[f"steps.{step['id']}.outcome"] = outcome.split()[0]
                pairs = dict(line.split("=", 1) for line in output.read_text().splitlines())
                facts |= {f"steps.{step['id']}.outputs.{key}": value for key, value in pairs.items()}
                done.outputs |= pairs
            done.summary = summary.read_text()
        done.calls = (tmp_path / "calls").read_text().splitlines()
        return done

    return run


def fill(text: str, facts: dict[str, str]) -> str:
    """``${{ ... }}`` as a forge fills it in: what is not known is empty."""
    return re.sub(r"\$\{\{\s*([\w.-]+)\s*\}\}", lambda match: facts.get(match[1], ""), text)


NOTHING = {"vitbench": "none"}


# the file


def test_it_is_a_composite_action_whose_inputs_and_outputs_are_described() -> None:
    assert ACTION["runs"]["using"] == "composite"
    for kind in ("inputs", "outputs"):
        for name, one in ACTION[kind].items():
            assert len(one["description"]) > 10, name
    assert all(isinstance(one["default"], str) for one in ACTION["inputs"].values())  # a forge takes nothing else
    assert set(ACTION["outputs"]) == {"verdict", "exit-code", "folder"}


@pytest.mark.parametrize("name", SCRIPTS)
def test_each_script_is_valid_bash(name: str, tmp_path: Path) -> None:
    (tmp_path / "script.sh").write_text(SCRIPTS[name])
    done = subprocess.run([str(BASH), "-n", str(tmp_path / "script.sh")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", SCRIPTS)
def test_nothing_from_outside_becomes_text_of_a_script(name: str) -> None:
    assert "${{" not in SCRIPTS[name]
    assert all(step["shell"] == "bash" for step in STEPS if "run" in step)


def test_every_expression_names_something_that_there_is() -> None:
    ids = {step["id"] for step in STEPS if "id" in step}
    for expression in re.findall(r"\$\{\{\s*([\w.-]+)\s*\}\}", (ROOT / "action.yml").read_text()):
        kind, _, rest = expression.partition(".")
        assert kind in ("inputs", "steps", "github", "runner"), expression
        if kind == "inputs":
            assert rest in ACTION["inputs"], expression
        if kind == "steps":
            assert rest.split(".")[0] in ids, expression


def test_every_input_is_used() -> None:
    text = (ROOT / "action.yml").read_text()
    assert [name for name in ACTION["inputs"] if f"inputs.{name}" not in text] == []


# what it does


@pytest.mark.integration
@pytest.mark.parametrize(
    ("check", "ab", "code", "verdict"),
    [
        (0, 0, "0", "fine"),
        (1, 0, "1", "regression"),
        (0, 1, "1", "regression"),
        (0, 2, "2", "wrong usage"),
        (0, 3, "3", "inconclusive"),
        (4, 0, "4", "infrastructure"),
        (0, 4, "4", "infrastructure"),
        (1, 4, "1", "regression"),
        (3, 2, "2", "wrong usage"),
        (3, 4, "4", "infrastructure"),
        (1, 2, "1", "regression"),
        (0, 137, "4", "infrastructure"),
        (127, 3, "4", "infrastructure"),
    ],
)
def test_the_worse_of_both_codes_decides(
    perform: Callable[..., Done], check: int, ab: int, code: str, verdict: str
) -> None:
    done = perform(check=check, ab=ab, suite="smoke", **NOTHING)
    assert (done.outputs["exit-code"], done.outputs["verdict"]) == (code, verdict)
    assert done.outcome == ("success" if code in ("0", "3") else f"failure {code}")
    assert ("::error" in done.log) == (code not in ("0", "3"))
    assert ("::warning" in done.log) == (code == "3")


def test_what_is_inconclusive_fails_if_that_is_asked(perform: Callable[..., Done]) -> None:
    done = perform(ab=3, suite="smoke", inconclusive="fail", **NOTHING)
    assert done.outcome == "failure 3"
    assert "::error title=vitbench::Inconclusive" in done.log


def test_the_pages_of_both_become_the_summary(perform: Callable[..., Done]) -> None:
    done = perform(suite="smoke", **NOTHING)
    assert done.summary.count("## page of") == 2
    assert (Path(done.outputs["folder"]) / "check.md").exists()


def test_a_pull_request_is_compared_with_what_it_is_merged_into(perform: Callable[..., Done], origin: Path) -> None:
    done = perform(suite="smoke", **NOTHING)
    check, ab = done.calls
    main, merged = git(origin, "rev-parse", "main"), git(origin, "rev-parse", "merged")
    assert f"--base={main} --head={merged} --inconclusive=fail --suite=smoke" in ab
    assert check.endswith("-- vitbench.lock.json")


def test_a_base_that_is_given_is_fetched_by_its_branch(perform: Callable[..., Done], origin: Path) -> None:
    done = perform(models="a,b", base="change", head="main", **NOTHING)
    change, main = git(origin, "rev-parse", "change"), git(origin, "rev-parse", "main")
    assert f"--base={change} --head={main} --inconclusive=fail --models=a,b" in done.calls[-1]


def test_a_push_is_compared_with_what_was_there_before(perform: Callable[..., Done], origin: Path) -> None:
    before = git(origin, "rev-parse", "main~1")
    done = perform(event="push", github={"github.event.before": before}, suite="smoke", **NOTHING)
    assert f"--base={before}" in done.calls[-1]


def test_a_new_branch_has_nothing_to_compare_with(perform: Callable[..., Done]) -> None:
    done = perform(event="push", github={"github.event.before": "0" * 40}, suite="smoke", **NOTHING)
    assert [call.split()[0] for call in done.calls] == ["check"]
    assert "::notice title=vitbench::There is no commit to compare with" in done.log
    assert done.outcome == "success"


def test_a_commit_that_is_not_there_is_the_clones_fault(perform: Callable[..., Done]) -> None:
    done = perform(base="1" * 40, suite="smoke", **NOTHING)
    assert done.outputs["verdict"] == "infrastructure"
    assert "fetch-depth: 0" in done.log


def test_a_whole_clone_stays_whole_and_is_compared_with_the_merges_first_parent(
    perform: Callable[..., Done], origin: Path, tmp_path: Path
) -> None:
    done = perform(depth=(), suite="smoke", **NOTHING)
    assert f"--base={git(origin, 'rev-parse', 'merged^1')}" in done.calls[-1]
    assert git(tmp_path / "clone", "rev-parse", "--is-shallow-repository") == "false"


def test_options_reach_vitbench(perform: Callable[..., Done]) -> None:
    more = {"allow-import": "true", "install-sides": "true", "max-seconds": "600"}
    check, ab = perform(suite="smoke", **more, **NOTHING).calls
    assert "--allow-import" in check
    assert "--allow-import --install --max-seconds=600" in ab


def test_without_a_lock_and_without_models_it_says_that_nothing_was_checked(perform: Callable[..., Done]) -> None:
    done = perform(has_lock=False, **NOTHING)
    assert (done.calls, done.outcome, done.outputs["verdict"]) == ([], "success", "nothing checked")
    assert "::warning title=vitbench::Nothing was checked" in done.log


def test_a_lock_that_was_asked_for_is_checked_even_if_it_is_not_there(perform: Callable[..., Done]) -> None:
    done = perform(check=2, has_lock=False, lock="other.json", **NOTHING)
    assert done.calls[0].endswith("-- other.json")
    assert done.outcome == "failure 2"


@pytest.mark.parametrize(
    "hostile", ['"; touch pwned; "', "$(touch pwned)", "`touch pwned`", "--upload-pack=touch pwned;"]
)
def test_hostile_inputs_run_nothing(perform: Callable[..., Done], hostile: str, tmp_path: Path) -> None:
    done = perform(suite=hostile, models=hostile, base=hostile, has_lock=False, **NOTHING)
    assert done.outputs["verdict"] == "infrastructure"  # no such commit
    done.log.index("not in this clone")
    assert not list(tmp_path.rglob("pwned"))


def test_it_fails_where_installing_fails(perform: Callable[..., Done], tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "bin" / "python").chmod(0o755)
    (tmp_path / "bin").rename(tmp_path / "broken")
    old = os.environ["PATH"]
    os.environ["PATH"] = f"{tmp_path / 'broken'}{os.pathsep}{old}"
    try:
        done = perform(suite="smoke")
    finally:
        os.environ["PATH"] = old
    assert done.outcome == "failure 1"
    assert done.calls == []
    assert done.outputs["verdict"] == "infrastructure"


def test_it_installs_the_version_that_the_action_is_of(perform: Callable[..., Done], tmp_path: Path) -> None:
    (tmp_path / "pip").mkdir()
    python = tmp_path / "pip" / "python"
    python.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/installed\n')
    python.chmod(0o755)
    old = os.environ["PATH"]
    os.environ["PATH"] = f"{python.parent}{os.pathsep}{old}"
    try:
        perform()
    finally:
        os.environ["PATH"] = old
    torch, ours = (tmp_path / "installed").read_text().splitlines()
    assert torch.endswith("torch torchvision --index-url https://download.pytorch.org/whl/cpu")
    assert ours.endswith(str(ROOT))


# the recipes in the documentation


def recipes() -> list[Any]:
    text = (ROOT / "docs" / "continuous-integration.md").read_text()
    return [yaml.safe_load(one) for one in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)]


def test_the_recipes_are_yaml_and_give_the_action_inputs_that_it_has() -> None:
    github, gitlab, hook = recipes()
    (step,) = [one for one in github["jobs"]["vitbench"]["steps"] if "vitbench" in one["uses"]]
    assert set(step["with"]) <= set(ACTION["inputs"])
    assert gitlab["vitbench"]["artifacts"]["reports"]["junit"] == "vitbench-reports/*.xml"
    assert gitlab["vitbench"]["allow_failure"] == {"exit_codes": [3]}
    assert hook["repos"][0]["hooks"][0]["pass_filenames"] is False
    # what they guard are models of their own, which are imported
    commands = [line for line in gitlab["vitbench"]["script"] if line.startswith("vitbench")]
    assert all("--allow-import" in line for line in [*commands, hook["repos"][0]["hooks"][0]["entry"]])


def test_the_table_of_inputs_is_complete() -> None:
    text = (ROOT / "docs" / "continuous-integration.md").read_text()
    rows = re.findall(r"^\| (`[^|]*`) \|", text, re.MULTILINE)
    told = {name for row in rows for name in re.findall(r"`([\w-]+)`", row)}
    assert set(ACTION["inputs"]) <= told


@pytest.mark.parametrize("command", ["check", "ab"])
def test_options_that_the_action_and_the_recipes_use_exist(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    from vitbench.cli import run_command

    assert run_command([command, "--help"]) == 0
    known = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    gitlab = recipes()[1]["vitbench"]["script"]
    lines = [line for line in gitlab if line.startswith(f"vitbench {command} ")]
    script = SCRIPTS["Check the exact figures" if command == "check" else "Time base and head in turns"]
    used = set(re.findall(r"(?<![\w-])--[a-z]+(?:-[a-z]+)*", "\n".join([*lines, script.split("options=(")[1]])))
    assert used
    assert used - {"--quiet"} <= known
