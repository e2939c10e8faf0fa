"""Explain why a training failed, in one line with a way out. Loads torch."""

from __future__ import annotations

import math

from vitbench.core.errors import ModelFailed, Unsupported, UsageError, VitbenchError
from vitbench.experiments.training.request import TrainingOutOfMemory
from vitbench.experiments.training.setup import Setup
from vitbench.models.tracebacks import model_places, with_places


def explain_failure(error: Exception, setup: Setup) -> VitbenchError | None:
    """The failure for the user who asked for the training; None if its reason is unknown."""
    device, request = setup.device, setup.request
    failure = device.classify(error)
    if failure.status == "oom":
        return _out_of_memory(setup)
    reason = (failure.detail.splitlines() or [""])[0].rstrip(".")
    if request.deterministic and "deterministic" in reason:
        return UsageError(
            f"Not every operator repeats its numbers on {device.name}: {reason}. Leave out --deterministic, or give "
            "--device cpu"
        )
    if request.compile and failure.cause in ("compile", "compiler"):
        return UsageError(f"torch.compile does not work here: {reason}. Leave out --compile")
    if failure.status == "unsupported":
        return Unsupported(f"{device.name} cannot train this model: {reason}. Give --device cpu")
    if device.explain(error) is None and (places := model_places(error)):
        return ModelFailed(f"The model failed: {with_places(reason, places)}. {_way_out(error, setup)}")
    return None


def _out_of_memory(setup: Setup) -> TrainingOutOfMemory:
    recipe = setup.recipe
    in_parts = f" in {recipe.accumulate} parts" if recipe.accumulate > 1 else ""
    parts = min(2 * recipe.accumulate, recipe.batch_size // setup.ranks.count)
    more = f"Go through the model in more parts (--set accumulate={parts} gives the same steps), or take"
    return TrainingOutOfMemory(
        f"Out of memory on {setup.device.name} at batch_size {recipe.batch_size}{in_parts}. "
        f"{more if parts > recipe.accumulate else 'Take'} --amp, a smaller --image-size or a smaller model"
    )


def _way_out(error: Exception, setup: Setup) -> str:
    """For a failure of the model itself."""
    recipe, ranks = setup.recipe, setup.ranks.count
    part = math.ceil(recipe.batch_size // ranks / recipe.accumulate)
    if part == 1 and "more than 1 value per channel" in str(error):
        return (
            "Its batch normalisation needs two images at once: give a larger batch_size, fewer parts "
            f"(accumulate is {recipe.accumulate}), fewer processes ({ranks}), or a larger --image-size"
        )
    return "Mend it, or give another --image-size; vitbench.train in Python shows the traceback"
