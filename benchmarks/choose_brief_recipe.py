"""The choice of the recipe ``brief``: candidates trained and compared at 16 px.

``python -m benchmarks.choose_brief_recipe --out FILE`` trains each candidate with each model and seed, appends a line
of JSON for each training to FILE, and prints the table of all lines of the same data in it. Trainings that FILE has
already are left out. The choice is made ``--on held``: a fifth of the training digits (stratified, always the same),
which are left out of the training; the test images that a suite reports on take no part. ``--on test`` and ``--on
FOLDER`` (such as CIFAR-10's pictures) check it afterwards.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from vitbench.models import build_model
from vitbench.reports.format import table
from vitbench.training import loop
from vitbench.training.data.datasets import describe_data, load_images, load_training_images
from vitbench.training.data.images import ImageSet
from vitbench.training.data.subsets import choose_stratified
from vitbench.training.evaluate import evaluate
from vitbench.training.muon import SpectralMuon
from vitbench.training.optimizers import make_optimizers, regularise
from vitbench.training.recipes import Recipe, load_recipe

MODELS = (
    "vit_basic_tutorial,vit_layer6_32,vit_layer12_32,cifar_vit_tiny,vit_basic,cifar_lightweight_vit,"
    "cifar_dynamic_vit_dense,cifar_dynamic_vit_pruned"
)
SIDE = 16
#: torch's Muon in place of ours: how it scales its steps, and the iterations of Newton-Schulz. No key of a recipe.
TORCH_MUON = "torch_muon"
RMS, SPECTRAL = "match_rms_adamw", "original"

Settings = Mapping[str, Any]


def muon(rate: float, images: int, dropout: float | None = 0.0) -> Settings:
    """One rate for AdamW and for Muon, whose steps have the size of AdamW's."""
    return {"learning_rate": rate, "muon_factor": None, "dropout": dropout, "images": images}


def two_rates(adamw: float, muon: float, images: int, scale: str = RMS, iterations: int = 5) -> Settings:
    """AdamW and torch's Muon at rates of their own; Muon's falls to 1e-5."""
    factor = muon / adamw
    rates = {"learning_rate": adamw, "muon_factor": factor, "min_learning_rate": 1e-5 / factor}
    return {**rates, "images": images, TORCH_MUON: (scale, iterations)}


#: What differs from the recipe ``brief``. In the order of the tables in ``measuring-experiments.md``.
CANDIDATES: dict[str, Settings] = {
    "AdamW, 4e-4": {"optimizer": "adamw", "learning_rate": 4e-4, "batch_size": 16, "images": 3600, "dropout": None},
    "4e-3, 3600 images": muon(4e-3, 3600, None),
    "6e-3, 3600 images": muon(6e-3, 3600, None),
    "6e-3, 2560 images": muon(6e-3, 2560, None),
    "9e-3, 2560 images": muon(9e-3, 2560, None),
    "first": muon(8e-3, 2560, None),
    "first without dropout": muon(8e-3, 2560),
    "12e-3": muon(12e-3, 1600),
    "12e-3, three iterations": {**muon(12e-3, 1600), "muon_factor": 1, TORCH_MUON: (RMS, 3)},
    "12e-3, one iteration": {**muon(12e-3, 1600), "muon_factor": 1, TORCH_MUON: (RMS, 1)},
    "3.6e-3 and 12e-3": two_rates(3.6e-3, 12e-3, 1600),
    "1.2e-3 and 12e-3": two_rates(1.2e-3, 12e-3, 1600),
    "1.2e-3 and 12e-3, 1280 images": two_rates(1.2e-3, 12e-3, 1280),
    "1.2e-3 and 30e-3": two_rates(1.2e-3, 30e-3, 1280),
    "1.2e-3 and spectral 50e-3": two_rates(1.2e-3, 50e-3, 1280, SPECTRAL),
    "2e-3 and spectral 30e-3": two_rates(2e-3, 30e-3, 1280, SPECTRAL),
    "now": {"images": 1536},  # as in the suite lightweight
}


def main() -> None:
    """Train what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--candidates", default="first;now", help=f"separated by ';', some of: {'; '.join(CANDIDATES)}")
    parser.add_argument("--on", default="held", help="held, test or the path of an image folder")
    parser.add_argument("--models", default=MODELS)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    for seed in map(int, given.seeds.split(",")):
        for model in given.models.split(","):
            for name in given.candidates.split(";"):
                key = {"on": given.on, "candidate": name, "model": model, "seed": seed}
                if not any(key.items() <= line.items() for line in read(given.out)):
                    line = json.dumps({**key, **train(CANDIDATES[name], model, given.on, seed)})
                    print(line, flush=True)
                    with given.out.open("a", encoding="utf-8") as file:
                        file.write(f"{line}\n")
    print(page([line for line in read(given.out) if line["on"] == given.on]))


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of results, if it is there."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def train(settings: Settings, name: str, on: str, seed: int) -> dict[str, Any]:
    """The accuracy of one training in %, its test loss, the number of test images and the CPU seconds of the loop."""
    changes = dict(settings)
    torch_muon = changes.pop(TORCH_MUON, None)
    recipe = load_recipe("brief", **changes)
    train_set, test_set = images_of(on, recipe, seed)
    torch.manual_seed(seed)
    model = build_model(name, image_size=SIDE, num_classes=train_set.num_classes)
    regularise(model, recipe)
    with use_torch_muon(*torch_muon) if torch_muon else contextlib.nullcontext():
        begin = time.process_time()
        loop.train(
            model,
            train_set,
            recipe,
            device="cpu",
            autocast=contextlib.nullcontext,
            synchronize=lambda: None,
            seed=seed,
        )
        cpu_s = time.process_time() - begin
    found = evaluate(model, test_set, device="cpu", autocast=contextlib.nullcontext, batch_size=64)
    accuracy = round(100 * found.correct / found.total, 1)
    return {"accuracy": accuracy, "loss": round(found.loss, 3), "n": found.total, "cpu_s": round(cpu_s, 2)}


def images_of(on: str, recipe: Recipe, seed: int) -> tuple[ImageSet, ImageSet]:
    """What to train on, and what to test on."""
    side = (SIDE, SIDE)
    info = describe_data("digits" if on in ("held", "test") else on)
    pictures, _ = load_training_images(
        info, image_size=side, images=recipe.images if on == info.spec else None, seed=seed
    )
    if on != "held":
        return pictures, load_images(info, "test", image_size=side, images=1000)
    labels = pictures.labels.tolist()
    held = set(choose_stratified(labels, len(labels) // 5, "validation"))

    def part(indices: list[int]) -> ImageSet:
        return dataclasses.replace(pictures, images=pictures.images[indices], labels=pictures.labels[indices])

    return part([i for i in range(len(labels)) if i not in held]), part(sorted(held))


def use_torch_muon(scale: str, iterations: int) -> contextlib.AbstractContextManager[object]:
    """While it lasts, trainings have torch's Muon where they would have ours, at the same rate."""

    def make(model: torch.nn.Module, recipe: Recipe, num_classes: int) -> list[torch.optim.Optimizer]:
        found = make_optimizers(model, recipe, num_classes)
        for number, one in enumerate(found):
            if isinstance(one, SpectralMuon):
                group = one.param_groups[0]
                found[number] = torch.optim.Muon(
                    group["params"],
                    lr=group["lr"],
                    weight_decay=group["weight_decay"],
                    adjust_lr_fn=scale,
                    ns_steps=iterations,
                )
        return found

    return mock.patch.object(loop, "make_optimizers", make)


def page(lines: Sequence[Mapping[str, Any]]) -> str:
    """A line for each candidate: of each model the mean accuracy, those of the seeds, and the median CPU seconds."""
    models = [model for model in MODELS.split(",") if any(line["model"] == model for line in lines)]
    rows = []
    for name in dict.fromkeys(line["candidate"] for line in lines):
        row = [name]
        for model in models:
            found = sorted(
                (line for line in lines if (line["candidate"], line["model"]) == (name, model)),
                key=lambda line: line["seed"],
            )
            accuracies = [line["accuracy"] for line in found]
            seconds = statistics.median(line["cpu_s"] for line in found) if found else 0.0
            each = ", ".join(f"{one:.1f}" for one in accuracies)
            row.append(f"{statistics.fmean(accuracies):.1f}: {each}; {seconds:.3g} s" if found else "")
        rows.append(row)
    return table(["candidate", *models], rows, ["candidate", *models])


if __name__ == "__main__":
    main()
