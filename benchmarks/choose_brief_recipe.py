"""The choice of the recipe ``brief``: candidates trained and compared on the training digits alone.

A fifth of the training images (stratified, always the same) is held out for the choice; the test images that a
suite reports on are never touched. ``python benchmarks/choose_brief_recipe.py`` prints a line of JSON per training.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import time

import torch

from vitbench.models import build_model
from vitbench.training.data.datasets import describe_data, load_images
from vitbench.training.data.images import ImageSet
from vitbench.training.data.subsets import choose_stratified
from vitbench.training.evaluate import evaluate
from vitbench.training.loop import train
from vitbench.training.optimizers import regularise
from vitbench.training.recipes import load_recipe

MODELS = "vit_layer6_32,vit_layer12_32,vit_basic,cifar_vit_tiny,cifar_lightweight_vit,cifar_dynamic_vit_dense"


def split(pictures: ImageSet) -> tuple[ImageSet, ImageSet]:
    """Four fifths to train on, one to choose by."""
    labels = pictures.labels.tolist()
    held = set(choose_stratified(labels, len(labels) // 5, "validation"))

    def part(indices: list[int]) -> ImageSet:
        return dataclasses.replace(pictures, images=pictures.images[indices], labels=pictures.labels[indices])

    return part([i for i in range(len(labels)) if i not in held]), part(sorted(held))


def main() -> None:
    """Train each model with each candidate and seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default=MODELS)
    parser.add_argument("--size", type=int, default=16)
    parser.add_argument("--images", type=int, default=1536)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--optimizers", default="muon:2e-3:0:32:15,muon:1.2e-3:0:32:40")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    info = describe_data("digits")
    side = (given.size, given.size)
    train_set, choose_by = split(load_images(info, "train", image_size=side, images=info.train_images, seed=0))
    for candidate in given.optimizers.split(","):
        optimizer, lr, decay, batch, factor = candidate.split(":")
        recipe = load_recipe(
            "brief",
            optimizer=optimizer,
            learning_rate=float(lr),
            weight_decay=float(decay),
            batch_size=int(batch),
            muon_factor=float(factor) if factor else None,
            images=given.images,
        )
        for name in given.models.split(","):
            for seed in map(int, given.seeds.split(",")):
                torch.manual_seed(seed)
                model = build_model(name, image_size=given.size, num_classes=info.num_classes)
                regularise(model, recipe)
                begin = time.perf_counter()
                train(
                    model,
                    train_set,
                    recipe,
                    device="cpu",
                    autocast=contextlib.nullcontext,
                    synchronize=lambda: None,
                    seed=seed,
                )
                seconds = time.perf_counter() - begin
                found = evaluate(model, choose_by, device="cpu", autocast=contextlib.nullcontext, batch_size=64)
                line = {
                    "candidate": candidate,
                    "model": name,
                    "seed": seed,
                    "accuracy": round(found.correct / found.total, 3),
                    "n": found.total,
                    "loss": round(found.loss, 3),
                    "seconds": round(seconds, 1),
                }
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
