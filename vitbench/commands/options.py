"""Options that several commands declare alike: their spelling and their help stand here once."""

from __future__ import annotations

from typing import Annotated

import typer

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
