"""The options that several commands have, declared once, and how commands read what the command line gives."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Context, Option

from vitbench.core.errors import UsageError

_DATA_SETS = "digits, cifar10, cifar100, fashion-mnist, or an image folder"
_MODEL = "A model's name: vitbench list models, timm:NAME or torchvision:NAME."
_MODELS = "Names of models: vitbench list models, timm:NAME or torchvision:NAME."

# Models and their weights
Model = Annotated[str, Argument(help=_MODEL)]
OptionalModel = Annotated[str | None, Argument(help=_MODEL)]
Models = Annotated[list[str], Argument(help=_MODELS)]
OptionalModels = Annotated[list[str] | None, Argument(help=_MODELS)]
ModelNames = Annotated[
    str | None, Option(metavar="NAME,...", help="Names or patterns (cifar_*) of models, timm:NAME, torchvision:NAME.")
]
Weights = Annotated[str | None, Option(metavar="FILE", help="A checkpoint of the model.")]
Pretrained = Annotated[bool, Option("--pretrained", help="Load the weights that timm or torchvision publishes.")]
ReplaceHead = Annotated[
    bool, Option("--replace-head", help="Use a random head if that of the weights has other classes.")
]
ImageSize = Annotated[
    str | None,
    Option(
        metavar="SIZE",
        help="Pixels: 224, or 231x240 (height x width). [default: that of the weights, else of the model]",
    ),
]
NumClasses = Annotated[
    int | None,
    Option(metavar="N", min=1, help="Classes of the head. [default: those of the weights or data, else of the model]"),
]
AllowImport = Annotated[
    bool, Option("--allow-import", help="Let names like module:package.module:function import your own code.")
]

# Data
Data = Annotated[str, Option(metavar="NAME", help=f"Data set: {_DATA_SETS}.")]
OptionalData = Annotated[str | None, Option(metavar="NAME", help=f"Take images of this data set: {_DATA_SETS}.")]
DataDir = Annotated[
    Path | None, Option(metavar="DIR", help="Where cifar10, cifar100 and fashion-mnist are, or go (--download).")
]
Download = Annotated[bool, Option("--download", help="Download the data set if it is not there.")]
Split = Annotated[str, Option(help="Which images of the data set: test or train.")]

# Where and how models run
Device = Annotated[str, Option(metavar="NAME", help="cpu, cuda, cuda:1, mps, or auto: an accelerator if there is one.")]
Amp = Annotated[bool, Option("--amp", help="Mixed precision: autocast, and a loss scaler for fp16.")]
ThreadCount = Annotated[int | None, Option(metavar="N", min=1, help="Threads on the CPU.")]

# What a suite has, replaced for one run: ``suite_keys`` reads them
Suite = Annotated[str, Option(metavar="NAME", help="A built-in suite (vitbench list suites) or a .toml file.")]
ImageSizes = Annotated[str | None, Option(metavar="SIZE,...", help="Pixels: 224, 231x240, or native.")]
BatchSizes = Annotated[str | None, Option(metavar="N,...", help="Images in a batch.")]
Devices = Annotated[
    str | None,
    Option("--devices", "--device", metavar="NAME,...", help="cpu, cuda, cuda:1, mps, or auto: all that are found."),
]
Dtypes = Annotated[str | None, Option("--dtypes", "--dtype", metavar="NAME,...", help="fp32, bf16, fp16, amp.")]
Attentions = Annotated[str | None, Option(metavar="NAME,...", help="fused, explicit.")]
Modes = Annotated[str | None, Option(metavar="NAME,...", help="infer, train.")]
Mode = Annotated[str | None, Option(metavar="NAME", help="infer, train, or both.")]
MemoryLimit = Annotated[
    str | None, Option(metavar="SIZE", help="Memory a process may take beyond its libraries: 2GiB.")
]

# Trainings
Recipe = Annotated[str, Option(metavar="NAME", help="A built-in recipe (vitbench list recipes) or a .toml file.")]
TrainImages = Annotated[int | None, Option(metavar="N", min=1, help="Train on this many images, chosen by the seed.")]
TestImages = Annotated[int | None, Option(metavar="N", min=1, help="Test on this many images, a stratified sample.")]
Validation = Annotated[
    float | None, Option(metavar="FRACTION", min=0, max=0.99, help="Hold out this fraction of the training images.")
]
Imbalance = Annotated[
    str | None,
    Option(
        metavar="KIND:RATIO", help="Reduce classes: linear:10, exponential:100 (largest to smallest), or an index file."
    ),
]
Freeze = Annotated[
    str, Option(metavar="PART", help="none, backbone (train the head only), blocks:N (embedding and first N blocks).")
]

# Outputs
JsonObject = Annotated[bool, Option("--json", help="Print a JSON object.")]
JsonArray = Annotated[bool, Option("--json", help="Print a JSON array.")]
RunFolder = Annotated[
    Path | None, Option(metavar="DIR", help="The folder to write, new or empty. [default: runs/NAME-TIME]")
]

# Gates
Thresholds = Annotated[
    list[str] | None,
    Option(
        metavar="RULE", help="METRIC=TOLERANCE or METRIC@MODELS=TOLERANCE: latency@vit_*=5%, or off, or on. Repeatable."
    ),
]
Everything = Annotated[bool, Option("--all", help="List all values, also those that are the same.")]
Inconclusive = Annotated[str, Option(help="What an inconclusive gated value does: pass, warn, or fail (exit code 3).")]
Markdown = Annotated[str | None, Option(metavar="FILE", help="Write a page for a pull request's comment; - prints it.")]
JsonFile = Annotated[str | None, Option(metavar="FILE", help="Write a JSON object; - prints it.")]
Junit = Annotated[str | None, Option(metavar="FILE", help="Write JUnit XML.")]


def given(context: Context) -> dict[str, Any]:
    """The arguments and options that stand on the command line, paths as texts; defaults are left out."""
    values = {}
    for name, value in context.params.items():
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
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
    options = given(context)
    if options.get("weights") and options.get("pretrained"):
        raise UsageError("--weights and --pretrained are given together: a model has one set of weights")
    found: dict[str, Any] = {}
    for name, value in options.items():
        if name in _READERS:
            key, read = _READERS[name]
            found[key] = read(value, f"--{name.replace('_', '-')}")
    return found


def split_words(text: str | Sequence[str] | None) -> list[str] | None:
    """``a, b`` or [``a``, ``b``] -> [a, b]; None stays None. Raises UsageError for a list without words."""
    if text is None:
        return None
    joined = text if isinstance(text, str) else ",".join(text)
    words = [word.strip() for word in joined.split(",") if word.strip()]
    if not words:
        raise UsageError(f"A list is empty: {joined!r}. Give values separated by commas")
    return words


def refuse_twice(options: Mapping[str, Any], keys: Container[str]) -> None:
    """Raises UsageError for an option that is given and whose name is among ``keys``, which ``--set`` gives."""
    for name, value in options.items():
        if value is not None and name in keys:
            raise UsageError(f"The {name} is given twice, by --{name} and as a key: leave out one of them")


def allow_imports() -> None:
    """Let this process import builders by name, also from the current folder."""
    import sys

    from vitbench.models.imported import allow_imports

    sys.path.insert(0, "")
    allow_imports()


def _as_is(value: Any, option: str) -> Any:
    return value


def _words(text: str | Sequence[str], option: str) -> list[str] | None:
    return split_words(text)


def _integers(text: str | int, option: str) -> list[int | str]:
    """``1, 8`` -> [1, 8]; the word ``auto`` stays, which a suite takes for threads alone."""
    values: list[int | str] = []
    for word in split_words(str(text)) or ():
        if word == "auto" and option == "--threads":
            values.append(word)
            continue
        try:
            values.append(int(word))
        except ValueError:
            also = " or auto" if option == "--threads" else ""
            raise UsageError(f"Option {option}: {word!r} is not a whole number{also}") from None
    return values


def _switches(text: str, option: str) -> list[bool]:
    known = {"on": True, "off": False, "true": True, "false": False}
    words = split_words(text) or []
    for word in words:
        if word.lower() not in known:
            raise UsageError(f"Option {option}: {word!r} is neither on nor off")
    return [known[word.lower()] for word in words]


def _modes(text: str, option: str) -> list[str]:
    known = {"infer": ["infer"], "train": ["train"], "both": ["infer", "train"]}
    if text not in known:
        raise UsageError(f"Option {option}: {text!r} is not allowed. Allowed: {', '.join(known)}")
    return known[text]


def _fraction(text: str, option: str) -> float:
    """``5%`` or ``0.05``; a bare 5 could mean either."""
    number = text.strip().removesuffix("%")
    try:
        value = float(number) / (100 if text.strip().endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise UsageError(f"Option {option}: {text!r} is not a fraction of the time, such as 5% or 0.05")
    return value


def _published(wanted: bool, option: str) -> str:
    from vitbench.models.cards import PRETRAINED

    return PRETRAINED


#: Options of a suite's keys: the key, and how the option's value is read.
_READERS: dict[str, tuple[str, Callable[[Any, str], Any]]] = {
    **{
        name: (name, _words)
        for name in ("models", "image_sizes", "devices", "dtypes", "attention", "modes", "metrics", "recipe")
    },
    **{
        name: (name, _as_is)
        for name in (
            "num_classes", "processes", "memory_limit", "weights", "replace_head", "data", "data_dir", "download",
            "budget",
        )
    },
    "batch_sizes": ("batch_sizes", _integers),
    "threads": ("threads", _integers),
    "seed": ("seeds", _integers),
    "compile": ("compile", _switches),
    "mode": ("modes", _modes),
    "precision": ("precision", _fraction),
    "pretrained": ("weights", _published),
    "timeout": ("timeout_s", _as_is),
    "max_batch": ("frontier", lambda number, option: {"max_batch": number}),
}  # fmt: skip
