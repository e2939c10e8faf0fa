"""Options that several commands declare alike, with their help, and how lists in options are read."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Annotated, Any

import typer

from vitbench.core.errors import UsageError

AllowImport = Annotated[
    bool, typer.Option("--allow-import", help="Let module:package.module:function names import code of your own.")
]
Download = Annotated[bool, typer.Option("--download", help="Download the data set if it is not there.")]
ImageSizeOfWeights = Annotated[str | None, typer.Option(help="Pixels, 224 or 231x240. [default: that of the weights]")]
JsonObject = Annotated[bool, typer.Option("--json", help="Print a JSON object.")]
Model = Annotated[str, typer.Argument(help="Name of a model (vitbench list models, timm:NAME, torchvision:NAME).")]
Pretrained = Annotated[bool, typer.Option("--pretrained", help="Load the weights that timm and torchvision publish.")]
ReplaceHead = Annotated[
    bool, typer.Option("--replace-head", help="Leave out the checkpoint's head if it has other classes.")
]
WeightsOfModel = Annotated[str | None, typer.Option(help="A checkpoint of the model.")]


def refuse_twice(options: Mapping[str, Any], keys: Container[str]) -> None:
    """Raises UsageError for an option that is given and whose name is among ``keys``, which ``--set`` gives."""
    for name, value in options.items():
        if value is not None and name in keys:
            raise UsageError(f"The {name} is given twice, by --{name} and as a key: leave out one of them")


def split_words(given: str | Sequence[str] | None) -> list[str] | None:
    """``a, b`` or [``a``, ``b``] -> [a, b]; None stays None. Raises UsageError for a list without words."""
    if given is None:
        return None
    text = given if isinstance(given, str) else ",".join(given)
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words:
        raise UsageError(f"A list is empty: {text!r}. Give values separated by commas")
    return words


def split_integers(text: str | None, option: str, *keywords: str) -> list[int | str] | None:
    """``1, auto`` -> [1, auto], where ``auto`` is one of the ``keywords``; None stays None. Raises UsageError for what
    is no whole number.
    """
    words = split_words(text)
    if words is None:
        return None
    values: list[int | str] = []
    for word in words:
        if word in keywords:
            values.append(word)
            continue
        try:
            values.append(int(word))
        except ValueError:
            also = f" or {', '.join(keywords)}" if keywords else ""
            raise UsageError(f"Option {option}: {word!r} is no whole number{also}") from None
    return values
