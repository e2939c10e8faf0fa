"""Recipes: how a model is trained, as TOML, validated without torch."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from vitbench.core.errors import UsageError
from vitbench.core.files import read_toml
from vitbench.training.data.subsets import digest_indices, is_rule

#: The keys that say how long a training is; a recipe has exactly one of them.
BUDGETS = ("images", "steps", "epochs", "seconds")

Augmentation = Literal["crop", "flip", "rotation", "jitter", "randaugment", "erasing"]

#: Short names for ``--set``.
ALIASES = {"lr": "learning_rate", "min_lr": "min_learning_rate", "wd": "weight_decay"}
#: Keys that other keys depend on (see _need_of).
_SWITCHES = ("optimizer", "warmup", "schedule", "step_at", "mixup", "cutmix", "augment")
#: Keys whose values are lists.
LISTS = ("augment", "step_at", "mean", "std")

Count = Annotated[int, Field(ge=1, lt=2**31, strict=True)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class RecipeError(UsageError):
    """A recipe that does not exist, or has a wrong key or value."""


class Recipe(BaseModel):
    """How a model is trained; docs/training.md describes the keys. Frozen; unknown keys are refused.

    ``weight_decay`` acts on every parameter: decoupled in adamw and muon, added to the gradient in adam and sgd, like
    torch's. ``muon_factor`` times the learning rate is the spectral norm of muon's steps; without it their size is that
    of adamw's. ``clip_norm``: the largest norm of all gradients together. ``jitter`` and ``jitter_hue`` are
    torchvision's ColorJitter, ``rotation`` is in degrees to either side. ``stochastic_depth`` is the rate of the last
    block, rising linearly from 0. ``class_weights``: ``inverse`` is 1 over each class's share, normalised to a mean of
    1 over classes. None turns a key off, or leaves the model's own dropout and stochastic depth.

    Defaults never change, because ``hash`` leaves out what equals them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    description: str = ""
    optimizer: Literal["adamw", "adam", "sgd", "muon"] = "adamw"
    learning_rate: Positive
    weight_decay: NotNegative = 0.0
    batch_size: Count
    images: Count | None = None
    steps: Count | None = None
    epochs: Positive | None = None
    seconds: Positive | None = None
    warmup: Fraction = 0.0
    warmup_start: Fraction = 0.0
    schedule: Literal["cosine", "constant", "step"] = "cosine"
    min_learning_rate: NotNegative = 0.0
    step_at: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = ()
    step_factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    momentum: Fraction = 0.9
    muon_factor: Positive | None = None
    accumulate: Count = 1
    clip_norm: Positive | None = None
    label_smoothing: Fraction = 0.0
    augment: tuple[Augmentation, ...] = ()
    rotation: Annotated[float, Field(gt=0, le=180)] = 15.0
    jitter: Fraction = 0.2
    jitter_hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    randaugment_ops: Count = 2
    randaugment_magnitude: Annotated[int, Field(ge=0, le=30, strict=True)] = 9
    erasing: Probability = 0.25
    mixup: NotNegative = 0.0
    cutmix: NotNegative = 0.0
    mix_probability: Probability = 1.0
    mean: tuple[Finite, Finite, Finite] = (0.5, 0.5, 0.5)
    std: tuple[Positive, Positive, Positive] = (0.5, 0.5, 0.5)
    dropout: Fraction | None = None
    stochastic_depth: Fraction | None = None
    ema: Fraction = 0.0
    imbalance: Annotated[str, Field(min_length=1)] | None = None
    sampler: Literal["shuffle", "weighted"] = "shuffle"
    class_weights: Literal["none", "inverse"] = "none"
    validation: Fraction = 0.0
    patience: Count | None = None
    seed: Annotated[int, Field(ge=0, lt=2**31, strict=True)] | None = None

    @field_validator("augment", "step_at", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return value if isinstance(value, list | tuple) else (value,)

    @model_validator(mode="after")
    def _one_budget(self) -> Recipe:
        given = [key for key in BUDGETS if getattr(self, key) is not None]
        if len(given) != 1:
            found = f"{' and '.join(given)} are given together" if given else "none is given"
            raise ValueError(f"a recipe has exactly one budget of {', '.join(BUDGETS)}, but {found}")
        if (self.schedule == "step") != bool(self.step_at):
            raise ValueError("schedule = 'step' and step_at (fractions of the budget) go together")
        if self.accumulate > self.batch_size:
            raise ValueError(f"accumulate ({self.accumulate}) is more than batch_size ({self.batch_size})")
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(
                f"min_learning_rate ({self.min_learning_rate}) is more than learning_rate ({self.learning_rate})"
            )
        return self

    @property
    def hash(self) -> str:
        """16 hex digits of a hash of the keys that differ from their defaults, without name, description and seed: new
        keys leave it valid. A file of indices counts by its numbers, as long as it exists.
        """
        content = self.model_dump(mode="json", exclude_defaults=True, exclude={"name", "description", "seed"})
        if self.imbalance is not None and not is_rule(self.imbalance):
            content["imbalance"] = digest_indices(self.imbalance) or self.imbalance
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def budget(self) -> str:
        """Which of BUDGETS it has."""
        return next(key for key in BUDGETS if getattr(self, key) is not None)

    @property
    def test_batch_size(self) -> int:
        """How many images are tested at once: at least 64, but at most four times the images of one forward pass in
        training, which fit memory together with what a backward pass keeps.
        """
        return min(max(self.batch_size, 64), 4 * math.ceil(self.batch_size / self.accumulate))

    def total_images(self, train_images: int) -> int | None:
        """How many images a training on ``train_images`` sees, repeats counted; None for a budget in seconds."""
        if self.images is not None:
            return self.images
        if self.steps is not None:
            return self.steps * self.batch_size
        return None if self.epochs is None else max(1, round(self.epochs * train_images))

    def total_steps(self, train_images: int) -> int | None:
        """How many optimizer steps that takes; the last batch may be smaller. None for a budget in seconds."""
        images = self.total_images(train_images)
        return None if images is None else math.ceil(images / self.batch_size)

    def learning_rate_at(self, progress: float) -> float:
        """The learning rate at ``progress`` (0 to 1) of the budget."""
        if progress < self.warmup:
            return self.learning_rate * (self.warmup_start + (1 - self.warmup_start) * progress / self.warmup)
        if self.schedule == "constant":
            return self.learning_rate
        if self.schedule == "step":
            passed = sum(progress >= fraction for fraction in self.step_at)
            return max(self.min_learning_rate, self.learning_rate * self.step_factor**passed)
        after = min(1.0, (progress - self.warmup) / (1 - self.warmup))
        height = self.learning_rate - self.min_learning_rate
        return self.min_learning_rate + height * (1 + math.cos(math.pi * after)) / 2


def list_recipes() -> dict[str, Path]:
    """The built-in recipes: name to file."""
    return {path.stem: path for path in sorted(Path(__file__).parent.glob("*.toml"))}


def load_recipe(name_or_path: str, **overrides: Any) -> Recipe:
    """Read and validate a recipe; ``overrides`` replace its keys, and a budget among them replaces its budget.

    Raises RecipeError (file, key, what is allowed), also for a key in the file without effect there; a key that loses
    its effect by an override is accepted.
    """
    path = _find_recipe(name_or_path)
    try:
        content = read_toml(path, f"Recipe {path.name}")
    except ValueError as error:
        raise RecipeError(str(error)) from error
    content.setdefault("name", path.stem)
    if any(overrides.get(key) is not None for key in BUDGETS):
        content = {key: value for key, value in content.items() if key not in BUDGETS}
    try:
        recipe = Recipe.model_validate({**content, **overrides})
    except ValidationError as error:
        raise RecipeError(_first_problem(error, path.name, overrides)) from error
    _check_file(path, content, overrides, recipe)
    return recipe


def _check_file(path: Path, content: Mapping[str, Any], overrides: Mapping[str, Any], recipe: Recipe) -> None:
    """Raises RecipeError for a key in the file that has no effect, neither in ``recipe`` nor without the overrides."""
    idle = [key for key in content if key not in overrides and _need_of(key, recipe)]
    try:
        alone = Recipe.model_validate({**content, **{k: v for k, v in overrides.items() if k not in _SWITCHES}})
        check_settings(alone, idle)
    except ValidationError:  # the file needs the override
        return
    except RecipeError as error:
        raise RecipeError(f"Recipe {path.name}: {error}") from error


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """``--set key=value`` as a mapping: numbers, words, none, and lists with commas.

    Raises RecipeError for another form, for unknown keys, and for a key given twice.
    """
    found: dict[str, Any] = {}
    for setting in settings:
        key, sign, text = setting.partition("=")
        key = key.strip().replace("-", "_")
        allowed = [name for name in Recipe.model_fields if name not in ("name", "description")]
        if not sign or not key:
            raise RecipeError(f"--set {setting!r} is not key=value, such as learning_rate=1e-3")
        key = ALIASES.get(key, key)
        if key not in allowed:
            raise RecipeError(
                f"--set {setting!r}: a recipe has no key {key!r}.{_did_you_mean(key, allowed)} Allowed: "
                f"{', '.join(allowed)}"
            )
        if key in found:
            raise RecipeError(f"--set gives {key!r} twice")
        found[key] = _value(key, text.strip())
    return found


def check_settings(recipe: Recipe, settings: Iterable[str]) -> None:
    """Raises RecipeError for a key in ``settings``, set by the user, without effect in ``recipe``."""
    for key in settings:
        need = _need_of(key, recipe)
        if need is not None:
            raise RecipeError(f"{key} has no effect without {need}: set that, too, or leave out {key}")


def _need_of(key: str, recipe: Recipe) -> str | None:
    """What ``key`` needs to have an effect in ``recipe``; None if it has one."""
    needs: dict[str, tuple[bool, str]] = {
        "momentum": (recipe.optimizer == "sgd", "optimizer=sgd"),
        "muon_factor": (recipe.optimizer == "muon", "optimizer=muon"),
        "warmup_start": (recipe.warmup > 0, "a warmup"),
        "min_learning_rate": (recipe.schedule != "constant", "schedule=cosine or step"),
        "step_factor": (recipe.schedule == "step", "schedule=step"),
        "mix_probability": (recipe.mixup > 0 or recipe.cutmix > 0, "mixup or cutmix"),
    }
    for name in ("rotation", "jitter", "jitter_hue", "randaugment_ops", "randaugment_magnitude", "erasing"):
        kind = name.partition("_")[0]
        needs[name] = (kind in recipe.augment, f"{kind} in augment ({','.join(recipe.augment) or 'none'} now)")
    works, need = needs.get(key, (True, ""))
    return None if works else need


def _value(key: str, text: str) -> Any:
    """The TOML value of what the user typed after the sign."""
    if key in LISTS:
        return [_value("", part.strip()) for part in text.split(",") if part.strip()] if text != "none" else []
    if text == "none" and key not in ("class_weights",):
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


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
    """One line for the first problem: where (file or override, key), what is wrong, and what is allowed."""
    problem = error.errors(include_url=False)[0]
    key = str(problem["loc"][0]) if problem["loc"] else ""
    where = f"Recipe {source}, key {key!r}" + (" (overridden)" if key in overrides else "")
    if problem["type"] == "extra_forbidden":
        allowed = list(Recipe.model_fields)
        hint = _did_you_mean(key, allowed)
        return f"Recipe {source}: unknown key {key!r}.{hint} Allowed: {', '.join(allowed)}"
    if problem["type"] == "missing" and len(problem["loc"]) > 1:
        return f"{where}: give a number for each of the three channels, such as 0.5,0.5,0.5"
    if problem["type"] == "missing":
        return f"Recipe {source}: the key {key!r} is missing"
    message = re.sub(r"^Value error, ", "", problem["msg"])
    if problem["type"] == "value_error":
        return f"Recipe {source}: {message}"
    if problem["type"] == "literal_error":
        choices = re.findall("'(.+?)'", problem["ctx"]["expected"])
        given = str(problem["input"])
        return f"{where}: {given!r} is not allowed.{_did_you_mean(given, choices)} Allowed: {', '.join(choices)}"
    return f"{where}: {message} (given: {problem['input']!r})"


def _did_you_mean(given: str, known: list[str]) -> str:
    lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(given.lower(), lower, n=1)
    return f" Did you mean {lower[close[0]]!r}?" if close else ""
