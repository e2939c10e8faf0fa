"""Recipes: how a model is trained, as TOML, torch-free. Built-in ones stand beside this file in ``recipe_files/``."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from vitbench.errors import UnknownNameError, UsageError

BUILT_IN = Path(__file__).parent / "recipe_files"
BUDGETS = ("images", "steps", "epochs", "seconds")
AUGMENTATIONS = ("crop", "flip")

Share = Annotated[float, Field(ge=0, le=1)]
AboveZero = Annotated[float, Field(gt=0)]


class Recipe(BaseModel):
    """A training recipe.

    Exactly one budget is given: ``images`` (pictures seen, repeats counted), ``steps``, ``epochs`` or ``seconds``. The
    learning rate rises linearly over the share ``warmup`` of the budget and falls as a cosine to ``min_learning_rate``.
    ``clip_norm`` is the largest gradient norm (None: not clipped). ``augment``: ``crop`` (random crop after padding by
    4 px) and ``flip``, or ``auto`` for what suits the data set (none for digits, both for photographs).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    optimizer: Literal["adamw"] = "adamw"
    learning_rate: AboveZero
    min_learning_rate: Annotated[float, Field(ge=0)] = 0.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    betas: tuple[Share, Share] = (0.9, 0.999)
    batch_size: Annotated[int, Field(ge=1)]
    images: Annotated[int, Field(ge=1)] | None = None
    steps: Annotated[int, Field(ge=1)] | None = None
    epochs: AboveZero | None = None
    seconds: AboveZero | None = None
    warmup: Share = 0.0
    schedule: Literal["cosine", "constant"] = "cosine"
    clip_norm: AboveZero | None = None
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    augment: tuple[str, ...] | Literal["auto"] = "auto"

    @field_validator("augment")
    @classmethod
    def _known_augmentations(cls, value: Any) -> Any:
        unknown = [name for name in (() if value == "auto" else value) if name not in AUGMENTATIONS]
        if unknown:
            raise ValueError(f'unknown augmentation {unknown[0]!r}. Allowed: {", ".join(AUGMENTATIONS)}, or "auto"')
        return value

    @model_validator(mode="after")
    def _one_budget(self) -> Recipe:
        given = [key for key in BUDGETS if getattr(self, key) is not None]
        if len(given) != 1:
            raise ValueError(
                f"a recipe has exactly one budget of {', '.join(BUDGETS)}; given: {', '.join(given) or 'none'}"
            )
        return self

    @property
    def hash(self) -> str:
        """12 hexadecimal digits of its content (without its name): equal for equal training."""
        text = json.dumps(self.model_dump(mode="json", exclude={"name"}), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def total_images(self, train_images: int) -> int | None:
        """Pictures that it shows the model, of a training set of that size; None for a budget in seconds."""
        if self.images is not None:
            return self.images
        if self.steps is not None:
            return self.steps * self.batch_size
        return None if self.epochs is None else math.ceil(self.epochs * train_images)

    def augmentations(self, *, photographs: bool) -> tuple[str, ...]:
        """The augmentations for a data set, ``auto`` resolved: a digit that is flipped is another sign."""
        if self.augment == "auto":
            return AUGMENTATIONS if photographs else ()
        return tuple(self.augment)


def list_recipes() -> dict[str, Path]:
    """The built-in recipes: name to file."""
    return {path.stem: path for path in sorted(BUILT_IN.glob("*.toml"))}


def load_recipe(name_or_path: str, **overrides: Any) -> Recipe:
    """A built-in recipe or a ``.toml`` file; ``overrides`` replace its keys, and a budget replaces any other budget.

    Raises UnknownNameError for a name that is not there, UsageError (file, key, allowed keys) for wrong content.
    """
    built_in = list_recipes()
    path = built_in.get(name_or_path, Path(name_or_path))
    if not path.is_file():
        if path.suffix == ".toml":
            raise UsageError(f"Recipe file {name_or_path!r} does not exist. Built in: {', '.join(built_in)}")
        raise UnknownNameError("recipe", name_or_path, built_in, f"the built-in ones: {', '.join(built_in)}")
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"Recipe {path.name} is no valid TOML: {error}") from error
    content.setdefault("name", path.stem)
    if any(key in overrides for key in BUDGETS):
        content = {key: value for key, value in content.items() if key not in BUDGETS}
    try:
        return Recipe.model_validate({**content, **overrides})
    except ValidationError as error:
        raise UsageError(_first_problem(error, path.name)) from error


def _first_problem(error: ValidationError, file: str) -> str:
    problem = error.errors(include_url=False)[0]
    key = str(problem["loc"][0]) if problem["loc"] else ""
    if problem["type"] == "extra_forbidden":
        close = difflib.get_close_matches(key, list(Recipe.model_fields), n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        return f"Recipe {file}: unknown key {key!r}.{hint} Allowed: {', '.join(Recipe.model_fields)}"
    if problem["type"] == "missing":
        return f"Recipe {file}: the key {key!r} is missing"
    message = re.sub(r"^Value error, ", "", problem["msg"])
    given = "" if problem["type"] == "value_error" else f" (given: {problem['input']!r})"
    return f"Recipe {file}{f', key {key}' if key else ''}: {message}{given}"
