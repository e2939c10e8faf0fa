"""Evaluation against a computation by hand, and the mode that it leaves a model in."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import cast

import pytest
import torch
from torch import nn

from tests.training.tiny import PatchClassifier, random_pictures
from vitbench.core.errors import DataError
from vitbench.training.data.images import ImageSet
from vitbench.training.evaluate import Answers, Evaluation, collect_answers, evaluate


class Fixed(nn.Module):
    """Answers with the logits that are written in the images' first pixels: 10 times red, green, blue."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return 10 * images[:, :, 0, 0]


def _test(model: nn.Module, pictures: ImageSet, batch_size: int = 16) -> Evaluation:
    return evaluate(model, pictures, device="cpu", autocast=contextlib.nullcontext, batch_size=batch_size)


def test_accuracy_and_loss_by_hand() -> None:
    images = torch.zeros(3, 3, 4, 4, dtype=torch.uint8)  # black is -1
    images[0, 0] = 255  # logits 10 -10 -10, right
    images[1, 1] = 255  # logits -10 10 -10, right
    images[2, 1] = 255  # logits -10 10 -10, wrong: class 2 has -10
    result = _test(Fixed(), ImageSet(images, torch.tensor([0, 1, 2]), ("a", "b", "c")), batch_size=2)
    right = math.log(1 + 2 * math.exp(-20))
    assert (result.correct, result.total) == (2, 3)
    assert result.loss == pytest.approx((2 * right + 20 + right) / 3, rel=1e-6)


def test_decoding_is_no_part_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures, clock = random_pictures(40, classes=3), [0.0]

    class Lazy:
        """Images that take ten seconds a batch to decode."""

        dtype, shape = torch.uint8, pictures.images.shape

        def __len__(self) -> int:
            return 40

        def dim(self) -> int:
            return 4

        def __getitem__(self, some: slice) -> torch.Tensor:
            return pictures.images[some]

        def split(self, size: int) -> Iterator[torch.Tensor]:
            for start in range(0, 40, size):
                clock[0] += 10.0
                yield pictures.images[start : start + size]

    class Slow(Fixed):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            clock[0] += 1.0
            return super().forward(images)

    monkeypatch.setattr("vitbench.training.evaluate.time.perf_counter", lambda: clock[0])
    lazy = ImageSet(cast("torch.Tensor", Lazy()), pictures.labels, pictures.class_names)
    for some in (pictures, lazy):
        found = collect_answers(
            Slow(), some, device="cpu", autocast=contextlib.nullcontext, batch_size=16, synchronize=lambda: None
        )
        assert found.duration_s == 3.0  # three batches
        assert len(found.logits) == 40


@pytest.mark.parametrize("batch_size", [1, 7, 40, 1000])
def test_batch_size_does_not_matter(batch_size: int) -> None:
    torch.manual_seed(0)
    model, pictures = PatchClassifier(), random_pictures(40)
    with torch.no_grad():
        logits = model.eval()(pictures.images / 127.5 - 1)
    result = _test(model, pictures, batch_size)
    assert result.total == 40
    assert result.correct == int((logits.argmax(1) == pictures.labels).sum())
    assert result.loss == pytest.approx(float(nn.functional.cross_entropy(logits, pictures.labels)), rel=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_mode_and_weights_stay_and_dropout_is_off(training: bool) -> None:
    model, pictures = PatchClassifier(dropout=0.9).train(training), random_pictures()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert _test(model, pictures) == _test(model, pictures)
    assert model.training is training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_heads_of_a_distilled_model_are_averaged() -> None:
    class TwoHeads(nn.Module):
        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            logits = Fixed()(images)
            return 3 * logits, -logits

    pictures = random_pictures(30, classes=3)
    two, one = _test(TwoHeads(), pictures), _test(Fixed(), pictures)
    assert (two.correct, two.loss) == (one.correct, pytest.approx(one.loss, rel=1e-5))


def test_low_precision_model_is_given_its_own_type() -> None:
    torch.manual_seed(0)
    model, pictures = PatchClassifier(), random_pictures()
    exact = _test(model, pictures)
    low = _test(model.to(torch.bfloat16), pictures)
    assert low.loss == pytest.approx(exact.loss, abs=0.05)


def test_model_with_too_few_classes_is_refused() -> None:
    with pytest.raises(DataError, match="has 4 classes, but the data set has 10. Build it with num_classes=10"):
        _test(PatchClassifier(classes=4), random_pictures())


def _answers(
    model: nn.Module, pictures: ImageSet, batch_size: int = 16, synchronize: Callable[[], object] = int
) -> Answers:
    return collect_answers(
        model, pictures, device="cpu", autocast=contextlib.nullcontext, batch_size=batch_size, synchronize=synchronize
    )


@pytest.mark.parametrize("batch_size", [1, 7, 40, 1000])
def test_answers_are_the_logits_in_the_order_of_the_images(batch_size: int) -> None:
    torch.manual_seed(0)
    model, pictures = PatchClassifier(dropout=0.9), random_pictures(40)
    found = _answers(model, pictures, batch_size)
    assert model.training
    with torch.no_grad():
        expected = model.eval()(pictures.images / 127.5 - 1)
    torch.testing.assert_close(found.logits, expected)
    assert found.duration_s > 0
    result = _test(model, pictures, batch_size)
    assert result.correct == int((found.logits.argmax(1) == pictures.labels).sum())


def test_pass_is_timed_between_two_waits_after_one_batch_that_is_not() -> None:
    class Noting(Fixed):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            events.append(len(images))
            return super().forward(images)

    events: list[int | str] = []
    _answers(Noting(), random_pictures(10, classes=3), 4, lambda: events.append("wait"))
    assert events == [4, "wait", 4, 4, 2, "wait"]


def test_answers_are_in_float32_whatever_the_model_is() -> None:
    assert _answers(PatchClassifier().to(torch.bfloat16), random_pictures()).logits.dtype == torch.float32


def test_answers_of_too_few_classes_are_refused() -> None:
    with pytest.raises(DataError, match="has 4 classes"):
        _answers(PatchClassifier(classes=4), random_pictures())
