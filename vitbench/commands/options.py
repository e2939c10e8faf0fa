"""The options that several commands have, declared once, and how commands read what the command line gives."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Context, Option

from vitbench.core.errors import UsageError

DATA_SETS = "digits, cifar10, cifar100, fashion-mnist, or an image folder"
_MODEL = "A model's name: vitbench list models, timm:NAME or torchvision:NAME."
_DEFAULT = "[default: from the weights, the data, or the model]"
_DEVICE = "cpu, cuda, cuda:1, mps, or auto: an accelerator if there is one."
_MODELS = "Names of models: vitbench list models, timm:NAME or torchvision:NAME."

Text = str | None
Count = int | None

# Models and their weights
Model = Annotated[str, Argument(help=_MODEL)]
OptionalModel = Annotated[Text, Argument(help=_MODEL)]
Models = Annotated[list[str], Argument(help=_MODELS)]
OptionalModels = Annotated[list[str] | None, Argument(help=_MODELS)]
ModelNames = Annotated[Text, Option(metavar="NAME,...", help="Names or patterns: cifar_*, timm:NAME, ...")]
Weights = Annotated[Text, Option(metavar="FILE", help="A checkpoint of the model.")]
Pretrained = Annotated[bool, Option("--pretrained", help="Load the weights that timm or torchvision publishes.")]
Entry = Annotated[Text, Option(metavar="NAME", help="Which weights of FILE, if it has several: teacher, model_ema.")]
ReplaceHead = Annotated[bool, Option("--replace-head", help="Use a random head if the weights have other classes.")]
Grid = Annotated[Text, Option(metavar="ROWSxCOLUMNS", help="Patches of the weights, if they are no square: 4x16.")]
ImageSize = Annotated[Text, Option(metavar="SIZE", help=f"Pixels: 224, or 231x240 (height x width). {_DEFAULT}")]
NumClasses = Annotated[Count, Option(metavar="N", min=0, help=f"Classes of the head, or 0 for none. {_DEFAULT}")]
InChannels = Annotated[int, Option(metavar="N", min=1, help="Channels of the images, for models of timm or your own.")]
AllowImport = Annotated[bool, Option("--allow-import", help="Let module:PACKAGE.MODULE:FUNCTION import your own code.")]

# Data
Data = Annotated[str, Option(metavar="NAME", help=f"Data set: {DATA_SETS}.")]
OptionalData = Annotated[Text, Option(metavar="NAME", help=f"Take images of this data set: {DATA_SETS}.")]
DataDir = Annotated[Path | None, Option(metavar="DIR", help="The folder of cifar10, cifar100 and fashion-mnist.")]
Download = Annotated[bool, Option("--download", help="Download the data set if it is not there.")]
Split = Annotated[str, Option(help="Which images of the data set: test or train.")]

# Where and how models run
Device = Annotated[str, Option(metavar="NAME", help=_DEVICE)]
OptionalDevice = Annotated[Text, Option(metavar="NAME", help=_DEVICE)]
Amp = Annotated[bool, Option("--amp", help="Mixed precision: autocast, and a loss scaler for fp16.")]
ThreadCount = Annotated[Count, Option(metavar="N", min=1, help="Threads on the CPU.")]

# What a suite has, replaced for one run: ``suite_keys`` reads them
Suite = Annotated[str, Option(metavar="NAME", help="A built-in suite (vitbench list suites) or a .toml file.")]
ImageSizes = Annotated[Text, Option(metavar="SIZE,...", help="Pixels: 224, 231x240, or native.")]
BatchSizes = Annotated[Text, Option(metavar="N,...", help="Images in a batch.")]
Devices = Annotated[Text, Option("--devices", "--device", metavar="NAME,...", help="cpu, cuda:1, mps, or auto (all).")]
Dtypes = Annotated[Text, Option("--dtypes", "--dtype", metavar="NAME,...", help="fp32, bf16, fp16, amp.")]
Attentions = Annotated[Text, Option(metavar="NAME,...", help="fused, explicit.")]
Modes = Annotated[Text, Option(metavar="NAME,...", help="infer, train.")]
Mode = Annotated[Text, Option(metavar="NAME", help="infer, train, or both.")]
MemoryLimit = Annotated[Text, Option(metavar="2GiB", help="Memory that a process may take beyond its libraries.")]

# Trainings
Recipe = Annotated[str, Option(metavar="NAME", help="A built-in recipe (vitbench list recipes) or a .toml file.")]
TrainImages = Annotated[Count, Option(metavar="N", min=1, help="Train on this many images, chosen by the seed.")]
TestImages = Annotated[Count, Option(metavar="N", min=1, help="Test on this many images, a stratified sample.")]
Validation = Annotated[float | None, Option(metavar="0.1", min=0, max=0.99, help="Fraction of the images held out.")]
Imbalance = Annotated[
    Text, Option(metavar="RULE", help="linear:10, exponential:100 (largest/smallest class) or an index file.")
]
Freeze = Annotated[str, Option(metavar="PART", help="none, backbone (all but the head), or blocks:N (the first N).")]

# Outputs
JsonObject = Annotated[bool, Option("--json", help="Print a JSON object.")]
JsonArray = Annotated[bool, Option("--json", help="Print a JSON array.")]
RunFolder = Annotated[Path | None, Option(metavar="DIR", help="A new or empty folder. [default: runs/NAME-TIME]")]

# Gates
Thresholds = Annotated[
    list[str] | None, Option(metavar="METRIC=5%", help="Tolerance, off or on; METRIC@MODELS=5% for some. Repeatable.")
]
Everything = Annotated[bool, Option("--all", help="List all values, also those that are the same.")]
Inconclusive = Annotated[str, Option(help="What an inconclusive gated value does: pass, warn, or fail (exit code 3).")]
Markdown = Annotated[Text, Option(metavar="FILE", help="Write a page for a pull request's comment; - prints it.")]
JsonFile = Annotated[Text, Option(metavar="FILE", help="Write a JSON object; - prints it.")]
Junit = Annotated[Text, Option(metavar="FILE", help="Write JUnit XML.")]

#: Options whose value is that of the suite's key of the same name.
_KEYS = {
    "num_classes",
    "in_channels",
    "processes",
    "memory_limit",
    "weights",
    "entry",
    "replace_head",
    "grid",
    "budget",
    "data",
    "data_dir",
    "download",
}
_SWITCHES = {"on": True, "off": False, "true": True, "false": False}
_MODES = {"infer": ["infer"], "train": ["train"], "both": ["infer", "train"]}


def given(context: Context, *names: str) -> dict[str, Any]:
    """What the command line gives of ``names`` (of all parameters, without), paths as texts; defaults are left out."""
    values = {}
    for name, value in context.params.items():
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE" and (not names or name in names):
            values[name] = str(value) if isinstance(value, Path) else value
    return values


def refuse_beside_resume(context: Context, *allowed: str) -> None:
    """Raises UsageError for an option beside ``--resume`` that is not ``allowed``."""
    for name in given(context):
        if name not in ("resume", *allowed):
            parameter = next(one for one in context.command.params if one.name == name)
            what = parameter.opts[0] if parameter.opts[0].startswith("-") else f"the argument {name}"
            raise UsageError(f"--resume continues with the options of the start: leave out {what}")


def suite_keys(context: Context) -> dict[str, Any]:
    """The keys of a suite that the command line replaces, with their values as a suite holds them.

    Raises UsageError for a list or a value that cannot be read.
    """
    values = given(context)
    if values.get("weights") and values.get("pretrained"):
        raise UsageError("--weights and --pretrained are given together: a model has one set of weights")
    keys: dict[str, Any] = {name: value for name, value in values.items() if name in _KEYS}
    for name, value in values.items():
        match name:
            case "models" | "image_sizes" | "devices" | "dtypes" | "attention" | "modes" | "metrics" | "recipe":
                keys[name] = split_words(value, name)
            case "batch_sizes" | "threads":
                keys[name] = _integers(value, name)
            case "seed":
                keys["seeds"] = _integers(value, name)
            case "compile":
                keys[name] = [_choose(word.lower(), name, _SWITCHES) for word in split_words(value, name) or ()]
            case "mode":
                keys["modes"] = _choose(value, name, _MODES)
            case "precision":
                keys[name] = _fraction(value, name)
            case "pretrained":
                keys["weights"] = "pretrained"
            case "timeout":
                keys["timeout_s"] = value
            case "max_batch":
                keys["frontier"] = {"max_batch": value}
    return keys


def split_words(text: str | Sequence[str] | None, name: str = "") -> list[str] | None:
    """``a, b`` or [``a``, ``b``] -> [a, b]; None stays None. Raises UsageError for a list without words, which names
    the option ``name`` if that is given.
    """
    if text is None:
        return None
    joined = text if isinstance(text, str) else ",".join(text)
    words = [word.strip() for word in joined.split(",") if word.strip()]
    if not words:
        where = f"{_option(name)} " if name else ""
        raise UsageError(f"A list is empty: {where}{joined!r}. Give values separated by commas")
    return words


def refuse_twice(options: Iterable[str], keys: Container[str]) -> None:
    """Raises UsageError for one of the ``options`` that is also among ``keys``, which ``--set`` gives."""
    for name in options:
        if name in keys:
            raise UsageError(f"The {name} is given twice, by --{name} and as a key: leave out one of them")


def allow_imports() -> None:
    """Let this process import builders by name, also from the current folder."""
    import sys

    from vitbench.models.imported import allow_imports

    sys.path.insert(0, "")
    allow_imports()


def _integers(text: str | int, name: str) -> list[int | str]:
    """``1, 8`` -> [1, 8]; the word ``auto`` stays for threads."""
    also = ["auto"] if name == "threads" else []
    words = split_words(str(text), name) or []
    for word in words:
        if word not in also and not re.fullmatch(r"[+-]?\d+", word):
            raise UsageError(f"Option {_option(name)}: {' or '.join([f'{word!r} is not a whole number', *also])}")
    return [word if word in also else int(word) for word in words]


def _choose(word: str, name: str, known: Mapping[str, Any]) -> Any:
    if word not in known:
        raise UsageError(f"Option {_option(name)}: {word!r} is not allowed. Allowed: {', '.join(known)}")
    return known[word]


def _fraction(text: str, name: str) -> float:
    """``5%`` or ``0.05``; a bare 5 could mean either."""
    from vitbench.suites.thresholds import parse_fraction

    try:
        value = parse_fraction(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise UsageError(f"Option {_option(name)}: {text!r} is not a fraction of the time, such as 5% or 0.05")
    return value


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
