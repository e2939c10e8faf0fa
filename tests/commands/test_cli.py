"""The command line: what it answers, and the one line that each mistake gets."""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from vitbench.cli import app, run_command
from vitbench.core.registry import METRICS
from vitbench.models.cards import model_registry


def ask(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = run_command(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


COMMANDS = get_command(app).commands  # type: ignore[attr-defined]
PANELS = {
    "Measure": ["run", "frontier", "report", "plot", "doctor"],
    "Inspect": ["list", "show", "flops", "claims"],
    "Analyze": ["analyze", "fit", "scale", "roofline"],
    "Train": ["train", "sweep", "evaluate", "predict", "attention"],
    "Compare": ["compare", "ab", "history"],
    "Guard": ["snapshot", "check"],
}
#: Options that mean something else in another command.
OWN = {"--out", "--json", "--resume", "--data", "--recipe", "--set", "--suite", "--attention", "--amp", "--threads"}
OWN |= {"--timeout", "--yes", "--seed", "--compile", "--head", "--index", "--batch-size", "--image-sizes"}
OWN |= {"--device", "--mode"}


@pytest.mark.integration
def test_help_has_examples_and_loads_neither_torch_nor_rich() -> None:
    code = (
        "import sys; from vitbench.cli import run_command\n"
        "for command in [[], *([name] for name in sys.argv[1:])]: assert run_command([*command, '--help']) == 0\n"
        "heavy = {'torch', 'rich', 'pandas', 'numpy', 'vitbench.core.records'} & set(sys.modules); sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, *COMMANDS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    helps = done.stdout.split("Usage: ")[1:]
    assert len(helps) == 1 + len(COMMANDS)
    for text, name in zip(helps, ["", *COMMANDS], strict=True):
        assert f"Examples:\n    vitbench {name}".rstrip() in text


def test_no_command_prints_the_help_with_the_commands_by_panel(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    code, out, errors = ask(capsys)
    assert (code, errors) == (0, "")
    blocks = {block.partition(":")[0]: block.splitlines()[1:] for block in out.split("\n\n") if ":\n" in block}
    assert {panel: [line.split()[0] for line in blocks[panel]] for panel in PANELS} == PANELS
    assert sorted(itertools.chain(*PANELS.values())) == sorted(COMMANDS)
    assert "..." not in out.partition("Measure:")[2].replace("FLOPs, operators, ...", "")  # no text is cut


def test_an_option_of_several_commands_has_one_help() -> None:
    helps: dict[str, set[str]] = {}
    for command in COMMANDS.values():
        for option in command.params:
            helps.setdefault(option.opts[0], set()).add(getattr(option, "help", None) or "")
    assert {name for name, texts in helps.items() if name.startswith("-") and len(texts) > 1} <= OWN


@pytest.mark.integration
def test_what_resume_continues_takes_no_other_option(capsys: pytest.CaptureFixture[str]) -> None:
    """Of every option, also one that repeats its default."""
    for name in ("run", "frontier", "train", "sweep"):
        for option in COMMANDS[name].params:
            flag = option.opts[0]
            allowed = {"--resume", "--retry", "--allow-import", "--allow-changed-environment", "--yes"}
            if flag in allowed or (name == "train" and flag in ("--data", "--data-dir")) or not flag.startswith("-"):
                continue
            value = (
                []
                if getattr(option, "is_flag", False)
                else ["0" if flag == "--validation" else str(option.default or 1)]
            )
            code, _, errors = ask(capsys, name, "--resume", "nowhere", flag, *value)
            assert (code, errors) == (2, f"Error: --resume continues with the options of the start: leave out {flag}\n")


def test_show_imports_only_where_it_is_allowed(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, errors = ask(capsys, "show", "module:tests.failing_models:works")
    assert code == 2
    assert "--allow-import" in errors


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    from vitbench import __version__

    assert ask(capsys, "--version")[:2] == (0, f"vitbench {__version__}\n")


@pytest.mark.parametrize("what", ["models", "suites", "datasets", "devices", "metrics"])
def test_lists_as_text_and_json(capsys: pytest.CaptureFixture[str], what: str) -> None:
    code, text, _ = ask(capsys, "list", what)
    assert code == 0
    code, out, _ = ask(capsys, "list", what, "--json")
    assert code == 0
    rows = json.loads(out)
    key = what.removesuffix("s")
    assert rows
    assert all(str(row[key]) in text for row in rows)


def test_every_model_and_metric_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    models = {row["model"] for row in json.loads(ask(capsys, "list", "models", "--json")[1])}
    assert models == set(model_registry())
    metrics = {row["metric"] for row in json.loads(ask(capsys, "list", "metrics", "--json")[1])}
    assert metrics == set(METRICS)


@pytest.mark.integration
def test_show_answers_for_each_model_and_says_which_failed(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = ask(
        capsys, "show", "vit_base16", "vit_bse16", "timm:vit_tiny_patch16_224", "vit_basic",
        "--image-size", "224", "--num-classes", "10", "--json",
    )  # fmt: skip
    base, unknown, tiny, basic = json.loads(out)
    assert code == 1
    assert base["params"] == 86_567_656 - 990 * 768 - 990
    assert base["macs"] * 2 == base["flops"]
    assert base["params_bytes"] == 4 * base["params"]
    assert (base["image_size"], base["num_classes"]) == ([224, 224], 10)
    assert unknown == {"model": "vit_bse16", "error": unknown["error"]}
    assert "Did you mean 'vit_base16'" in unknown["error"]
    assert tiny["trainable_params"] == tiny["params"]
    assert tiny["macs"] == 1_253_683_200 - 990 * 192  # facts: 1.254 G at 224 px with 1000 classes
    assert basic["image_size"] == [224, 224]


@pytest.mark.integration
def test_show_takes_the_models_own_size_and_prints_a_card(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = ask(capsys, "show", "cifar_dynamic_vit_dense")
    assert code == 0
    assert "32x32 px, 10 classes" in out
    assert "2,310 parameters get none" in out  # six score layers of 384 + 1


MISTAKES = [
    (["run", "--models", "vit_basik"], "Unknown model 'vit_basik'. Did you mean 'vit_basic'?"),
    (["run", "--suite", "lightwait"], "Unknown suite 'lightwait'. Did you mean 'lightweight'?"),
    (["run", "--metrics", "latancy"], "Unknown metric 'latancy'. Did you mean 'latency'?"),
    (["run", "--devices", "gpu"], "Unknown device 'gpu'."),
    (["run", "--devices", "cpu:3"], "Device 'cpu:3' does not exist"),
    (["run", "--data", "cifar-10"], "Unknown data set 'cifar-10'. Did you mean 'cifar10'?"),
    (["run", "--data", "/nowhere/pictures"], "/nowhere/pictures"),
    (["run", "--data", "cifar10", "--data-dir", "/nowhere"], "--download"),
    (["run", "--models", "vit_basic", "--image-sizes", "33"], "Image size 33 does not fit vit_basic: its patch of 4 px"),
    (["run", "--image-sizes", "-32"], "Option --image-sizes: Image size '-32' is not positive"),
    (["run", "--image-sizes", "0"], "is not positive"),
    (["run", "--batch-sizes", "0"], "Option --batch-sizes: "),
    (["run", "--batch-sizes=+-5"], "Option --batch-sizes: '+-5' is not a whole number"),
    (["run", "--seed", "-1"], "Option --seed: "),
    (["run", "--timeout", "inf"], "Option --timeout: "),
    (["run", "--suite", "seeds", "--download"], "go with --data"),
    (["run", "--suite", "seeds", "--metrics", "accuracy"], "needs a training section"),
    (["run", "--batch-sizes", "many"], "Option --batch-sizes: 'many' is not a whole number"),
    (["run", "--threads", "0"], "Option --threads"),
    (["run", "--dtypes", "fp23"], "Option --dtypes: 'fp23' is not allowed. Did you mean 'fp32'?"),
    (["run", "--modes", "inference"], "Option --modes: 'inference' is not allowed. Did you mean 'infer'?"),
    (["run", "--compile", "yes"], "Option --compile: 'yes' is not allowed. Allowed: on, off"),
    (["run", "--memory-limit", "much"], "'much' is not a valid memory size"),
    (["run", "--models", ","], "A list is empty"),
    (["run", "--modles", "vit_basic"], "--modles"),
    (["run", "--retry", "timeout"], "need --resume"),
    (["run", "--resume", "nowhere"], "nowhere cannot be resumed"),
    (["run", "--resume", "nowhere", "--models", "vit_basic"], "leave out --models"),
    (["run", "--out", "/proc/vitbench"], "Cannot write to /proc/vitbench"),
    (["list", "modles"], "Unknown list 'modles'. Did you mean 'models'?"),
    (["show", "vit_basik"], "Did you mean 'vit_basic'"),
    (["show", "vit_basic", "--image-size", "34"], "Image size 34 does not fit vit_basic"),
    (["show", "vit_basic", "--image-size", "big"], "neither N nor HxW"),
    (["show", "vit_basic", "--num-classes", "-1"], "Invalid value for '--num-classes'"),
    (["show", "timm:vit_tiny_patch16_224", "--image-size", "225"], "its patch of 16 px does not divide it. Give multiples, such as 224"),
    (["show", "timm:vit_tny_patch16_224"], "Did you mean 'timm:vit_tiny_patch16_224'"),
    (["report", "nowhere"], "nowhere is not a run folder"),
    (["reprot"], "Did you mean 'report', 'plot'? See: vitbench --help"),
    (["frontier", "vit_basic", "--image-sizes", ","], "A list is empty: --image-sizes ','"),
    (["scale", "vit_base16", "vit_basic", "--crossover"], "vit_base16 has 1000 classes, vit_basic has 10"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=[" ".join(arguments) for arguments, _ in MISTAKES])
def test_a_mistake_gets_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, errors = ask(capsys, *arguments)
    assert code == 2
    assert message in errors
    assert len(errors.strip().splitlines()) == 1
    assert errors.startswith("Error: ")
    assert out.strip() == ""
    assert list(tmp_path.iterdir()) in ([], [tmp_path / "runs"])  # no half-made run folder
    assert not list(tmp_path.rglob("records.jsonl"))


@pytest.mark.integration
def test_a_device_that_is_not_there_is_refused_before_the_first_cell(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    import torch

    absent = "mps" if not torch.backends.mps.is_available() else "cuda"
    code, _, errors = ask(capsys, "run", "--suite", "smoke", "--devices", absent, "--out", str(tmp_path / "run"))
    assert code == 2
    assert f"Device {absent!r} is not there. Found:" in errors
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_not_empty_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("important")
    code, _, errors = ask(capsys, "run", "--suite", "smoke", "--out", str(tmp_path))
    assert code == 2
    assert "is not empty" in errors
    assert (tmp_path / "thesis.tex").read_text() == "important"


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    code, _, errors = ask(capsys, "run", "--suite", "smoke", "--out", str(tmp_path / "run"))
    assert code == 2
    assert "Permission denied" in errors


def without_roots_privilege() -> list[str]:
    """The start of a command for which the permissions of files hold although we are root."""
    if os.geteuid() != 0:
        return []
    command = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]
    if shutil.which("setpriv") is None or subprocess.run([*command, "true"], check=False).returncode:
        pytest.skip("root may look anywhere")
    return command


@pytest.mark.integration
@pytest.mark.skipif(os.name != "posix", reason="permissions of another kind")
def test_a_path_without_permission_is_one_line(tmp_path: Path) -> None:
    commands = [
        ["report", "locked/run"],
        ["run", "--resume", "locked/run"],
        ["run", "--suite", "smoke", "--data", "locked/images", "--dry-run"],
        ["run", "--models", "vit_basic", "--data", "digits", "--weights", "locked/x.pt", "--dry-run"],
    ]
    code = (
        "import json, sys; from vitbench.cli import run_command; "
        "print([run_command(arguments) for arguments in json.loads(sys.argv[1])])"
    )
    begin = without_roots_privilege()
    (tmp_path / "locked").mkdir(mode=0o000)
    try:
        command = [*begin, sys.executable, "-c", code, json.dumps(commands)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    finally:
        (tmp_path / "locked").chmod(0o700)
    assert done.stdout == "[2, 2, 2, 2]\n", done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == len(commands), done.stderr
    for line in lines:
        assert line.startswith("Error: ")
        assert "locked/" in line
        assert "Permission denied" in line


def test_other_failures_of_the_system_are_not_explained_away(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(error: OSError) -> None:
        def raise_it(**_: object) -> None:
            raise error

        monkeypatch.setattr("vitbench.cli.app", raise_it)
        with pytest.raises(OSError, match=error.strerror) as raised:
            run_command([])
        assert raised.value is error

    fail(OSError(errno.EIO, "Input/output error", "/somewhere"))
    fail(PermissionError(errno.EPERM, "Operation not permitted"))  # a process, not a path


@pytest.mark.integration
def test_output_that_is_cut_off_is_no_error() -> None:
    done = subprocess.run(
        f"{sys.executable} -m vitbench list models | head -n 1", shell=True, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    assert done.stdout == "cifar_vit\n"


@pytest.mark.integration
def test_a_name_that_the_output_cannot_spell_is_printed_all_the_same() -> None:
    code = "import sys; from vitbench import cli; cli.run_command = lambda words: print('кошка'); cli.main()"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=False, env={**os.environ, "PYTHONIOENCODING": "cp1252"}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"\\u043a")
