"""The training loop against one written by hand over the same model, images and optimizer: ``pytest benchmarks``."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from benchmarks.conftest import paired_ratio
from vitbench import build_model
from vitbench.training.data.images import ImageSet
from vitbench.training.loop import Trainer
from vitbench.training.recipes import Recipe

#: Steps of one sample of either side, and pairs of samples.
STEPS, PAIRS = 10, 30
BATCH = 32


@pytest.mark.parametrize(("name", "side"), [("vit_layer6_32", 32), ("vit_basic_tutorial", 32), ("vit_layer6_32", 16)])
def test_a_step_costs_what_one_written_by_hand_does(say: Callable[[str], None], name: str, side: int) -> None:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (2048, 3, side, side), dtype=torch.uint8, generator=generator)
    pictures = ImageSet(images, torch.arange(2048) % 10, tuple("abcdefghij"))
    recipe = Recipe(
        name="plain", learning_rate=5e-4, weight_decay=1e-3, batch_size=BATCH, images=10**9, warmup=0.05, clip_norm=1.0
    )
    torch.manual_seed(0)
    trainer = Trainer(
        build_model(name, image_size=side, num_classes=10),
        pictures,
        recipe,
        device="cpu",
        autocast=contextlib.nullcontext,
        synchronize=lambda: None,
        seed=0,
    )

    def ours() -> None:
        trainer.run(until=trainer.seen + STEPS * BATCH)
        trainer.take_statistics()

    model = build_model(name, image_size=side, num_classes=10).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10**7)
    order = iter(torch.randperm(2048, generator=generator).repeat(10_000).split(BATCH))
    losses = []

    def by_hand() -> None:
        for _ in range(STEPS):
            indices = next(order)
            inputs = images[indices].float().div_(127.5).sub_(1)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(inputs), pictures.labels[indices])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())

    ours()
    by_hand()
    ratio, low, high = paired_ratio(ours, by_hand, PAIRS)
    say(f"training step, {name} at {side} px, batch {BATCH}: ours over by hand {ratio:.3f} ({low:.3f} to {high:.3f})")
    assert ratio <= 1.02
