"""Recipes: how a model is trained, as TOML, validated without torch."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from vitbench.errors import UsageError

BUILT_IN = Path(__file__).parent

#: The keys that say how long a training is; a recipe has exactly one of them.
BUDGETS = ("images", "steps", "epochs", "seconds")

Optimizer = Literal["adamw", "muon"]
Schedule = Literal["cosine", "constant"]
Augmentation = Literal["crop", "flip"]

Count = Annotated[int, Field(ge=1, strict=True)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class RecipeError(UsageError):
    """A recipe that is not there, or says something that it may not."""


class Recipe(BaseModel):
    """How a model is trained. Frozen; unknown keys are refused.

    ``images`` (pictures seen, repeats counted), ``steps``, ``epochs`` (passes over the training pictures, also broken
    ones) or ``seconds``: exactly one. ``warmup``: the fraction of that budget in which the learning rate rises
    linearly from 0 to ``learning_rate``; then ``schedule`` takes it to ``min_learning_rate`` (cosine) or leaves it.
    ``clip_norm``: the largest norm of all gradients together, None for no clipping. ``augment``: applied in this
    order, each picture with its own draw. ``optimizer``: ``adamw``, or ``muon`` for the hidden
    matrices with AdamW for the rest. Weight decay is decoupled and acts on every parameter.

    Defaults never change, because ``hash`` leaves out what equals them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    description: str = ""
    optimizer: Optimizer = "adamw"
    learning_rate: Positive
    weight_decay: NotNegative = 0.0
    batch_size: Count
    images: Count | None = None
    steps: Count | None = None
    epochs: Positive | None = None
    seconds: Positive | None = None
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0
    schedule: Schedule = "cosine"
    min_learning_rate: NotNegative = 0.0
    clip_norm: Positive | None = None
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    augment: tuple[Augmentation, ...] = ()

    @field_validator("augment", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_budget(self) -> Recipe:
        given = [key for key in BUDGETS if getattr(self, key) is not None]
        if len(given) != 1:
            said = f"{' and '.join(given)} are given together" if given else "none is given"
            raise ValueError(f"a recipe has exactly one budget of {', '.join(BUDGETS)}, but {said}")
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(
                f"min_learning_rate ({self.min_learning_rate}) is more than learning_rate ({self.learning_rate})"
            )
        return self

    @property
    def hash(self) -> str:
        """16 hex digits of what it does: a hash of the keys that differ from their defaults, without name and
        description, so that a new key leaves it valid.
        """
        content = self.model_dump(mode="json", exclude_defaults=True, exclude={"name", "description"})
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def budget(self) -> str:
        """Which of BUDGETS it has."""
        return next(key for key in BUDGETS if getattr(self, key) is not None)

    def total_images(self, train_images: int) -> int | None:
        """How many pictures a training on ``train_images`` of them sees, repeats counted; None if time decides."""
        if self.images is not None:
            return self.images
        if self.steps is not None:
            return self.steps * self.batch_size
        return None if self.epochs is None else max(1, round(self.epochs * train_images))

    def total_steps(self, train_images: int) -> int | None:
        """How many optimizer steps that takes; the last batch may be smaller. None if time decides."""
        images = self.total_images(train_images)
        return None if images is None else math.ceil(images / self.batch_size)

    def learning_rate_at(self, progress: float) -> float:
        """The learning rate when ``progress`` (0 to 1) of the budget is used up."""
        if progress < self.warmup:
            return self.learning_rate * progress / self.warmup
        if self.schedule == "constant":
            return self.learning_rate
        after = min(1.0, (progress - self.warmup) / (1 - self.warmup))
        height = self.learning_rate - self.min_learning_rate
        return self.min_learning_rate + height * (1 + math.cos(math.pi * after)) / 2


def list_recipes() -> dict[str, Path]:
    """The built-in recipes: name to file."""
    return {path.stem: path for path in sorted(BUILT_IN.glob("*.toml"))}


def load_recipe(name_or_path: str, **overrides: Any) -> Recipe:
    """Read and validate a recipe; ``overrides`` replace its keys, and a budget among them replaces its budget.

    Raises RecipeError (file, key, what is allowed).
    """
    path = _find_recipe(name_or_path)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"Recipe {path.name} is no valid TOML: {error}") from error
    except OSError as error:
        raise RecipeError(f"Recipe {path} cannot be read: {error.strerror}") from error
    content.setdefault("name", path.stem)
    if any(overrides.get(key) is not None for key in BUDGETS):
        content = {key: value for key, value in content.items() if key not in BUDGETS}
    try:
        return Recipe.model_validate({**content, **overrides})
    except ValidationError as error:
        raise RecipeError(_first_problem(error, path.name, overrides)) from error


def _find_recipe(name_or_path: str) -> Path:
    built_in = list_recipes()
    if name_or_path in built_in:
        return built_in[name_or_path]
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return path
    if path.suffix == ".toml":
        raise RecipeError(f"Recipe file {name_or_path!r} does not exist. Built in: {', '.join(built_in)}")
    hint = _did_you_mean(name_or_path, list(built_in))
    raise RecipeError(
        f"Unknown recipe {name_or_path!r}.{hint} Built in: {', '.join(built_in)}. Or give the path of a .toml file"
    )


def _first_problem(error: ValidationError, source: str, overrides: Mapping[str, Any]) -> str:
    """One line for the first problem: where (file or override, key), what, and what is allowed."""
    problem = error.errors(include_url=False)[0]
    key = str(problem["loc"][0]) if problem["loc"] else ""
    where = f"Recipe {source}, key {key!r}" + (" (overridden)" if key in overrides else "")
    if problem["type"] == "extra_forbidden":
        allowed = list(Recipe.model_fields)
        hint = _did_you_mean(key, allowed)
        return f"Recipe {source}: unknown key {key!r}.{hint} Allowed: {', '.join(allowed)}"
    if problem["type"] == "missing":
        return f"Recipe {source}: the key {key!r} is missing"
    message = re.sub(r"^Value error, ", "", problem["msg"])
    if problem["type"] == "value_error":
        return f"Recipe {source}: {message}"
    if problem["type"] == "literal_error":
        kinds: dict[str, Any] = {"optimizer": Optimizer, "schedule": Schedule, "augment": Augmentation}
        choices = list(get_args(kinds[key]))
        given = str(problem["input"])
        return f"{where}: {given!r} is not allowed.{_did_you_mean(given, choices)} Allowed: {', '.join(choices)}"
    return f"{where}: {message} (given: {problem['input']!r})"


def _did_you_mean(given: str, known: list[str]) -> str:
    close = difflib.get_close_matches(given, known, n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
