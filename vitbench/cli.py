"""The command line: parse, call one function, set the exit code. Each command imports what it needs, so that help is
instant.

Exit codes: 0 done, 1 done but a cell failed for another reason than memory (or the disk is full), 2 wrong usage, 130
interrupted.
"""

from __future__ import annotations

import errno
import io
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitbench.commands import (
    ab,
    attention,
    check,
    compare,
    evaluate,
    frontier,
    history,
    predict,
    snapshot,
    sweep,
    train,
)
from vitbench.commands.options import (
    AllowImport,
    Download,
    JsonObject,
    Pretrained,
    ReplaceHead,
    split_integers,
    split_words,
)
from vitbench.core.errors import UsageError, VitbenchError
from vitbench.core.text import one_line, printable, printable_lines

if TYPE_CHECKING:
    from vitbench.runner.plan import Plan
    from vitbench.runner.run import RunSummary

app = typer.Typer(
    name="vitbench",
    help="Benchmark Vision Transformers: parameters, FLOPs, peak memory, latency, throughput and accuracy.",
    epilog="Examples:  vitbench run --suite lightweight   |   vitbench show vit_base16 --image-size 384   |   "
    "vitbench list models",
    rich_markup_mode=None,  # plain help: rich takes longer to load than all the rest
    add_completion=False,
    pretty_exceptions_enable=False,
)

#: The usage errors of the library under typer, whichever it is (click, or typer's own copy of it).
_PARSER_ERROR: type[Exception] = typer.BadParameter.__mro__[1]

INTERRUPTED = 130

#: What the system may say of a path that somebody gave, wherever it is looked at first, and the way out.
_PATH_TROUBLES = {
    errno.ENAMETOOLONG: "Give a shorter path",
    **dict.fromkeys((errno.EACCES, errno.EPERM), "Give another path, or have its permissions changed"),
}

_SHOW_WARNING = warnings.showwarning
_told_already: set[str] = set()


def main() -> None:
    """Run the command line and exit with its code."""
    warnings.showwarning = _show_warning
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a class may have a name that the output's encoding lacks
            stream.reconfigure(errors="backslashreplace")
    sys.exit(run_command(sys.argv[1:]))


def run_command(arguments: list[str]) -> int:
    """The exit code of a command; what goes wrong on purpose is one line on stderr."""
    try:
        Path.cwd()  # libraries that are loaded in a folder that is gone fail in ways of their own
    except FileNotFoundError:
        return _complain("The current folder is gone. Change to one that is there", 2)
    try:
        result = app(args=arguments, prog_name="vitbench", standalone_mode=False)
    except _PARSER_ERROR as error:
        text = error.format_message() if hasattr(error, "format_message") else str(error)
        command = next((word for word in arguments if not word.startswith("-")), "")
        return _complain(f"{' '.join(text.split())} See: vitbench {f'{command} ' if command else ''}--help", 2)
    except UsageError as error:
        return _complain(str(error), 2)
    except VitbenchError as error:
        return _complain(str(error), 1)
    except (KeyboardInterrupt, typer.Abort) as error:
        return _complain(str(error) or "Interrupted.", INTERRUPTED)
    except BrokenPipeError:  # the reader of our output (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except OSError as error:
        if error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return _complain(f"The output cannot be written: {error.strerror}. Make room there", 1)
        way_out = _PATH_TROUBLES.get(error.errno or 0) if error.filename is not None else None
        if way_out is None:
            raise
        return _complain(f"{str(error.filename)[:200]!r}: {error.strerror}. {way_out}", 2)
    return result if isinstance(result, int) else 0


def _show_warning(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
    """Our own warnings, which name files and what is in them, as one line; those of libraries as ever."""
    if category.__module__.partition(".")[0] == "vitbench":
        line = f"Warning: {one_line(str(message))}"
        if line not in _told_already:  # two tables of one folder read it twice
            _told_already.add(line)
            print(line, file=sys.stderr)
    else:
        _SHOW_WARNING(message, category, *where, **more)


def _complain(text: str, code: int) -> int:
    line = one_line(text)  # names from files and folders are in it
    print(f"Error: {line}" if code != INTERRUPTED else line, file=sys.stderr)
    return code


def _version(wanted: bool) -> None:
    if wanted:
        from vitbench import __version__

        print(f"vitbench {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _global_options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command(
    epilog="Examples:  vitbench run   |   vitbench run --suite smoke --out /tmp/smoke   |   "
    "vitbench run --models vit_basic,timm:vit_tiny_patch16_224 --image-sizes 224 --batch-sizes 1,8 --data none   |   "
    "vitbench run --suite imbalance --data-dir data --budget images=30000   |   "
    "vitbench run --resume runs/lightweight-20260101-120000 --retry timeout,killed"
)
def run(
    suite: Annotated[
        str | None, typer.Option(help="A built-in suite (vitbench list suites) or a .toml file. [default: lightweight]")
    ] = None,
    models: Annotated[
        str | None, typer.Option(help="Models: names, patterns (cifar_*), timm:NAME, torchvision:NAME; commas.")
    ] = None,
    image_sizes: Annotated[str | None, typer.Option(help="Pixels: 224, 231x240, native; commas.")] = None,
    batch_sizes: Annotated[str | None, typer.Option(help="Images a batch; commas.")] = None,
    devices: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, mps, or auto (all that are found); commas.")
    ] = None,
    dtypes: Annotated[str | None, typer.Option(help="fp32, bf16, fp16, amp; commas.")] = None,
    attention: Annotated[str | None, typer.Option(help="fused, explicit; commas.")] = None,
    modes: Annotated[str | None, typer.Option(help="infer, train; commas.")] = None,
    compile: Annotated[str | None, typer.Option(help="torch.compile: off, on; commas.")] = None,
    threads: Annotated[
        str | None, typer.Option(help="CPU threads: numbers, or auto (the physical cores); commas.")
    ] = None,
    metrics: Annotated[str | None, typer.Option(help="What to measure (vitbench list metrics); commas.")] = None,
    processes: Annotated[int | None, typer.Option(min=1, help="Fresh processes of each timed cell.")] = None,
    precision: Annotated[
        str | None,
        typer.Option(help="From 5 processes on, more of them until times are known to this: 5%, or 0 for no more."),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Train on: digits, cifar10, cifar100, fashion-mnist, a picture folder, or none.")
    ] = None,
    data_dir: Annotated[
        str | None, typer.Option(help="Where cifar10, cifar100 and fashion-mnist are (or go, with --download).")
    ] = None,
    download: Download = False,
    recipe: Annotated[
        str | None,
        typer.Option(help="Recipes to train by (vitbench list recipes) or .toml files; commas. [default: the suite's]"),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(help="In place of every recipe's: images=30000, or steps=, epochs=, seconds=."),
    ] = None,
    seed: Annotated[str | None, typer.Option(help="Seeds of weights, pictures and training; commas.")] = None,
    weights: Annotated[
        str | None, typer.Option(help="A checkpoint of the one model: it is tested on the data, not trained.")
    ] = None,
    replace_head: ReplaceHead = False,
    pretrained: Pretrained = False,
    memory_limit: Annotated[
        str | None, typer.Option(help="Memory a cell may take beyond its libraries, such as 2GiB.")
    ] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds that each process of a cell may take.")] = None,
    allow_import: AllowImport = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer samples and a quarter of the training: to try things out.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print the cells and an estimate; measure and download nothing."),
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="The run folder itself, new or empty. [default: runs/SUITE-TIME]")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Measure the cells of this run folder that have no record.")
    ] = None,
    retry: Annotated[
        str | None,
        typer.Option(help="With --resume: also repeat cells of these statuses (timeout, killed, ...); commas."),
    ] = None,
    allow_changed_environment: Annotated[
        bool,
        typer.Option("--allow-changed-environment", help="With --resume: go on although the environment has changed."),
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Go on although the suite asks for more than 10,000 cells.")
    ] = False,
) -> int:
    """Measure a suite of models on this machine and write tables of it."""
    overrides: dict[str, Any] = {
        "models": split_words(models),
        "image_sizes": split_words(image_sizes),
        "batch_sizes": split_integers(batch_sizes, "--batch-sizes"),
        "devices": split_words(devices),
        "dtypes": split_words(dtypes),
        "attention": split_words(attention),
        "modes": split_words(modes),
        "compile": _switches(compile),
        "threads": split_integers(threads, "--threads", "auto"),
        "metrics": split_words(metrics),
        "seeds": split_integers(seed, "--seed"),
        "processes": processes,
        "precision": _fraction(precision, "--precision"),
        "memory_limit": memory_limit,
        "timeout_s": timeout,
        "weights": _weights(weights, pretrained),
        "replace_head": replace_head or None,
        "data": data,
        "data_dir": data_dir,
        "download": download or None,
        "recipe": split_words(recipe),
        "budget": budget,
    }
    from vitbench.runner.progress import make_progress
    from vitbench.runner.run import plan_suite, resume_run, run_suite, terminate_like_interrupt
    from vitbench.suites import OPTIONS

    if resume is None and (retry is not None or allow_changed_environment):
        raise UsageError("--retry and --allow-changed-environment go with --resume DIR")
    with terminate_like_interrupt():
        if resume is not None:
            given = [key for key, value in overrides.items() if value is not None]
            given += [
                name
                for name, value in (("suite", suite), ("out", out), ("quick", quick), ("dry_run", dry_run))
                if value
            ]
            if given:
                option = OPTIONS.get(given[0], given[0].replace("_", "-"))
                raise UsageError(f"--resume goes on with the suite as it was run: leave out --{option}")
            return _told(
                lambda: resume_run(
                    resume,
                    retry=split_words(retry) or (),
                    allow_changed_environment=allow_changed_environment,
                    allow_import=allow_import,
                    allow_many_cells=yes,
                    progress=make_progress(),
                )
            )
        chosen = suite or "lightweight"
        if dry_run:
            plan = plan_suite(
                chosen,
                quick=quick,
                allow_import=allow_import,
                allow_many_cells=yes,
                note=lambda text: print(one_line(text), file=sys.stderr),
                **overrides,
            )
            _print_plan(plan)
            return 0
        return _told(
            lambda: run_suite(
                chosen,
                out=out,
                quick=quick,
                allow_import=allow_import,
                allow_many_cells=yes,
                progress=make_progress(),
                **overrides,
            )
        )


def _told(measure: Callable[[], RunSummary]) -> int:
    """Run, print what came of it, and return the exit code."""
    try:
        summary = measure()
    except KeyboardInterrupt as interrupt:  # here, because the library under typer has an answer of its own to it
        return _complain(str(interrupt) or "Interrupted.", INTERRUPTED)
    from vitbench.reports import summary_tables

    print(summary_tables([summary.folder]))
    for path in summary.report:
        print(f"Wrote {printable(str(path))}")
    if summary.failed:
        print(
            f"{len(summary.failed)} of {len(summary.records)} cells failed; see the report's failures", file=sys.stderr
        )
    return 1 if summary.failed else 0


def _print_plan(plan: Plan) -> None:
    from vitbench.runner.progress import format_duration
    from vitbench.suites.batch_search import most_attempts, search_label

    bound = plan.suite.frontier.max_batch if plan.suite.frontier else None
    for cell in plan.cells:
        label = printable(cell.label if bound is None else f"{search_label(cell)}, batches up to {bound}")
        print(f"{plan.estimates[cell.id]:7.1f} s  {label}  ({cell.threads} thread{'s' if cell.threads > 1 else ''})")
    total = sum(plan.estimates.values())
    training = sum(seconds for cell in plan.cells if cell.tests for seconds in [plan.estimates[cell.id]])
    part = f", of which training {format_duration(training)}" if training else ""
    things = f"{len(plan.cells)} cells"
    if bound is not None:
        count = len(plan.cells)
        things = f"{count} search{'es' if count != 1 else ''} of at most {most_attempts(bound)} attempts"
    print(f"{things}, about {format_duration(total)}{part}: an estimate, right to a factor of 2 or 3")


@app.command(
    name="list",
    epilog="Examples:  vitbench list models   |   vitbench list models 'timm:vit_tiny*'   |   "
    "vitbench list suites --json",
)
def list_things(
    what: Annotated[str, typer.Argument(help="models, suites, recipes, datasets, devices or metrics.")],
    pattern: Annotated[
        str | None, typer.Argument(help="Only names like this: cifar_*, timm:vit_tiny*, torchvision:swin*.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print a JSON array.")] = False,
) -> int:
    """List models, suites, recipes, data sets, devices or metrics."""
    from vitbench.commands import listing

    print(listing.to_json(what, pattern) if json else printable_lines(listing.to_text(what, pattern)))
    return 0


@app.command(
    epilog="Examples:  vitbench show vit_base16   |   "
    "vitbench show vit_basic timm:vit_tiny_patch16_224 --image-size 224 --json   |   "
    "vitbench show vit_layer6_32 --layers   |   vitbench show vit_layer6_32 --weights best.pt"
)
def show(
    models: Annotated[
        list[str], typer.Argument(help="Names of models (vitbench list models, timm:NAME, torchvision:NAME).")
    ],
    image_size: Annotated[str | None, typer.Option(help="Pixels, 224 or 231x240. [default: each model's own]")] = None,
    num_classes: Annotated[int | None, typer.Option(help="Classes of the head. [default: each model's own]")] = None,
    allow_import: AllowImport = False,
    layers: Annotated[bool, typer.Option("--layers", help="Add a table of the layers.")] = False,
    weights: Annotated[
        str | None, typer.Option(help="Check that this checkpoint fits the model, and describe it.")
    ] = None,
    replace_head: ReplaceHead = False,
    json: Annotated[bool, typer.Option("--json", help="Print a JSON array, one object a model.")] = False,
) -> int:
    """Show models: parameters and FLOPs by part, tokens, claims; without allocating their weights."""
    from vitbench.analysis.model_summary import show_models
    from vitbench.analysis.rendering import cards_to_text

    if allow_import:
        _allow_imports()
    cards = show_models(
        models,
        image_size=image_size,
        num_classes=num_classes,
        layers=layers,
        weights=weights,
        replace_head=replace_head,
    )
    return _print_answers(cards, cards_to_text, json)


def _allow_imports() -> None:
    from vitbench.models.imported import allow_imports

    sys.path.insert(0, "")  # builders of one's own are found from the current folder
    allow_imports()


def _as_json(value: Any) -> str:
    import json

    return json.dumps(value, indent=2)


def _print_answers(answers: list[dict[str, Any]], to_text: Callable[[list[dict[str, Any]]], str], as_json: bool) -> int:
    """Print one answer a model, those that failed in one line each on stderr; returns the exit code."""
    failed = [answer for answer in answers if "error" in answer]
    if as_json:
        print(_as_json([{k: v for k, v in answer.items() if k != "usage"} for answer in answers]))
    elif len(failed) < len(answers):
        print(printable_lines(to_text(answers)))
    if not as_json:
        for answer in failed:
            _complain(answer["error"], 1)
    if not failed:
        return 0
    return 2 if all(answer["usage"] for answer in failed) and len(failed) == len(answers) else 1


@app.command(
    epilog="Examples:  vitbench flops vit_base16   |   "
    "vitbench flops timm:vit_tiny_patch16_224 --attention explicit   |   "
    "vitbench flops vit_layer6_32 --image-size 64 --json"
)
def flops(
    models: Annotated[
        list[str], typer.Argument(help="Names of models (vitbench list models, timm:NAME, torchvision:NAME).")
    ],
    image_size: Annotated[str | None, typer.Option(help="Pixels, 224 or 231x240. [default: each model's own]")] = None,
    num_classes: Annotated[int | None, typer.Option(help="Classes of the head. [default: each model's own]")] = None,
    attention: Annotated[str, typer.Option(help="fused or explicit: what fvcore and thop are shown.")] = "fused",
    no_others: Annotated[
        bool, typer.Option("--no-others", help="Leave out fvcore and thop, which need memory and a real run.")
    ] = False,
    allow_import: AllowImport = False,
    json: Annotated[bool, typer.Option("--json", help="Print a JSON array, one object a model.")] = False,
) -> int:
    """Audit FLOPs: closed form, dispatcher, fvcore and thop side by side, and why they differ."""
    from vitbench.analysis.flops_audit import audit_flops
    from vitbench.analysis.rendering import audits_to_text

    if allow_import:
        _allow_imports()
    audits = audit_flops(
        models, image_size=image_size, num_classes=num_classes, attention=attention, others=not no_others
    )
    return _print_answers(audits, audits_to_text, json)


@app.command(epilog="Examples:  vitbench doctor   |   vitbench doctor --json > machine.json")
def doctor(
    json: JsonObject = False,
) -> int:
    """Look at this machine: its environment, advice, and whether each metric works on each device."""
    from vitbench.runner.doctor import examine, to_text
    from vitbench.runner.progress import make_progress

    result = examine(make_progress())
    print(_as_json(result) if json else printable_lines(to_text(result)))
    statuses = {place["status"] for places in result["checks"].values() for place in places.values()}
    return 1 if statuses - {"ok", "oom", "unsupported"} else 0


@app.command(
    epilog="Examples:  vitbench claims   |   vitbench claims --models 'cifar_*' --json   |   "
    "vitbench claims runs/seeds-20260101-120000 runs/train-vit_layer6_32-* --out results"
)
def claims(
    runs: Annotated[
        list[Path] | None, typer.Argument(help="Folders of runs and trainings that accuracies and times are judged by.")
    ] = None,
    models: Annotated[
        str | None, typer.Option(help="Models; commas. [default: all of ours and torchvision's ViTs]")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Also write claims.md and claims.json into this folder.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print a JSON array, one object a claim.")] = False,
) -> int:
    """Compare published figures with what is computed."""
    from vitbench.analysis.claims import to_dict
    from vitbench.analysis.model_summary import judge_models
    from vitbench.experiments.training.records import read_results
    from vitbench.reports.markdown.claims import claims_table, count_verdicts, write_claims

    judged = judge_models(split_words(models), read_results(runs or []))
    written = write_claims(judged, out) if out else []  # first: what cannot be written is told alone
    if json:
        import json as encoder

        print(encoder.dumps([to_dict(one) for one in judged], indent=2, ensure_ascii=False))
    else:
        print(claims_table(judged) or "These models have no published figures.")
        if judged:
            print(f"{len(judged)} claims: {count_verdicts(judged)}", file=sys.stderr)
    for path in written:
        print(f"Wrote {printable(str(path))}", file=sys.stderr)
    return 0


@app.command(
    epilog="Examples:  vitbench report runs/lightweight-20260101-120000   |   "
    "vitbench report runs/laptop runs/server --out both"
)
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders.")],
    out: Annotated[
        Path | None, typer.Option(help="Where to write. [default: the run folder; with several, only print]")
    ] = None,
) -> int:
    """Rebuild the tables of one or several runs from their records, without torch."""
    from vitbench.reports import summary_tables, write_report

    target = out or (runs[0] if len(runs) == 1 else None)
    written = write_report(runs, target) if target is not None else []
    print(summary_tables(runs))
    for path in written:
        print(f"Wrote {printable(str(path))}")
    return 0


for _command in (ab, train, evaluate, predict, attention, sweep, frontier, history, compare, snapshot, check):
    app.command(epilog=_command.EPILOG)(getattr(_command, _command.__name__.rpartition(".")[2]))


def _weights(path: str | None, pretrained: bool) -> str | None:
    if path is not None and pretrained:
        raise UsageError("--weights and --pretrained are given together: a model has one set of weights")
    from vitbench.models.cards import PRETRAINED

    return PRETRAINED if pretrained else path


def _fraction(text: str | None, option: str) -> float | None:
    """``5%`` or ``0.05``; a bare 5 could be meant as either."""
    if text is None:
        return None
    number = text.strip().removesuffix("%")
    try:
        value = float(number) / (100 if text.strip().endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise UsageError(f"Option {option}: {text!r} is no share of the time, such as 5% (or 0.05)")
    return value


def _switches(text: str | None) -> list[bool] | None:
    words = split_words(text)
    if words is None:
        return None
    known = {"on": True, "off": False, "true": True, "false": False}
    for word in words:
        if word.lower() not in known:
            raise UsageError(f"Option --compile: {word!r} is neither on nor off")
    return [known[word.lower()] for word in words]
