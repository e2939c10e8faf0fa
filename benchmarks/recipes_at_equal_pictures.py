"""Train by ``modern`` and by each project's own recipe at equal numbers of images: results/amd-epyc-2-cores/recipes.

``python benchmarks/recipes_at_equal_pictures.py PICTURES WORK`` trains ``vit_layer6_32`` by each recipe, for each
number of images and each seed, as many at a time as there are cores, one thread each, through ``vitbench train``.
Finished trainings in the folder WORK are kept and started ones are resumed: Ctrl-C loses nothing.
``--results results/NAME`` copies reports, curves and values (no weights) there, and skips what it already holds.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vitbench.experiments.training.folder import read_summary
from vitbench.experiments.training.request import SUMMARY

RECIPES = "modern,vit-code-replication,vit-reproduction,vit-classification-cifar10,cifar-vit,paper-replicating"
#: What each training leaves that says what came of it, and what the first seed's has beside that.
FILES = ("report.md", "summary.json", "history.csv", "curves.png")
MORE = ("evaluation.md", "evaluation.json", "confusion.png")


def accuracy(folder: Path) -> float | None:
    """The test accuracy, or None if the training is not finished."""
    if not (folder / SUMMARY).is_file():  # the last file that a training writes
        return None
    return float(read_summary(folder)[0]["last"]["test_accuracy"])


def train(model: str, data: str, recipe: str, images: int, seed: int, folder: Path) -> float | None:
    """Train, or go on, and return the accuracy; None if it failed: its log lies beside the folder."""
    if (found := accuracy(folder)) is not None:
        return found
    words = ["--resume", str(folder)]
    if not (folder / "training.json").is_file():
        words = [model, "--data", data, "--recipe", recipe, "--set", f"images={images}", "--seed", str(seed)]
        words += ["--device", "cpu", "--threads", "1", "--no-tensorboard", "--out", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with folder.with_suffix(".log").open("a") as log:
        command = [sys.executable, "-m", "vitbench", "train", *words]
        subprocess.run(command, stdout=log, stderr=log, env=environment, check=False)
    return accuracy(folder)


def collect(folder: Path, target: Path, *, whole: bool) -> None:
    """Copy what says what came of a training."""
    target.mkdir(parents=True, exist_ok=True)
    for name in (*FILES, *(MORE if whole else ())):
        shutil.copy(folder / name, target / name)


def main() -> None:
    """Train what is missing, a line each, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", help="a folder train/<class>/*, test/<class>/*")
    parser.add_argument("work", type=Path)
    parser.add_argument("--model", default="vit_layer6_32")
    parser.add_argument("--recipes", default=RECIPES)
    parser.add_argument("--images", default="75000,150000")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--at-once", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--results", type=Path)
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    recipes = given.recipes.split(",")
    seeds = [int(word) for word in given.seeds.split(",")]
    counts = [int(word) for word in given.images.split(",")]
    # a seed of all recipes before the next: what is there when time is up compares them all
    wanted = [(recipe, images, seed) for images, seed, recipe in itertools.product(counts, seeds, recipes)]

    def run(one: tuple[str, int, int]) -> float | None:
        recipe, images, seed = one
        folder = given.work / f"{recipe}-{images}-{seed}"
        target = None if given.results is None else given.results / f"{given.model}-{images}-{recipe}"
        if target is not None and seed != seeds[0]:
            target /= f"seed-{seed}"
        found = None if target is None else accuracy(target)
        if found is None:
            found = train(given.model, given.data, recipe, images, seed, folder)
            if found is not None and target is not None:
                collect(folder, target, whole=seed == seeds[0])
        said = f"not finished, see {folder.with_suffix('.log')}" if found is None else f"{100 * found:.2f} %"
        print(f"{recipe}, {images:,} pictures, seed {seed}: {said}", flush=True)
        return found

    pool = ThreadPoolExecutor(given.at_once)
    try:
        found = dict(zip(wanted, pool.map(run, wanted), strict=True))
    finally:  # after Ctrl-C, which the trainings under way have heard, too, no further one begins
        pool.shutdown(cancel_futures=True)
    for images in counts:
        print(f"\n| {images:,} pictures | " + " | ".join(f"seed {seed}" for seed in seeds) + " |")
        print("|---|" + "--:|" * len(seeds))
        for recipe in recipes:
            values = [found[recipe, images, seed] for seed in seeds]
            print(f"| `{recipe}` | " + " | ".join("" if one is None else f"{100 * one:.2f}" for one in values) + " |")


if __name__ == "__main__":
    main()
