"""What ``vitbench.measure`` makes of modules: their type of numbers, channels, outputs, and what torch refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vitbench
from vitbench.core.errors import UsageError
from vitbench.core.records import Record
from vitbench.models import describe_model


def make_classifier(channels: int = 3, classes: int = 5) -> nn.Sequential:
    """A convolution over patches of 4 px to 8 numbers, their mean, and a linear head."""
    return nn.Sequential(nn.Conv2d(channels, 8, 4, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes))


def flops_of_classifier(channels: int = 3, classes: int = 5) -> int:
    """At 16 px: 16 patches, and two FLOPs a multiply-add."""
    return 2 * (16 * channels * 16 * 8 + 8 * classes)


def measure(model: nn.Module, metrics: list[str], **arguments: Any) -> Record:
    return vitbench.measure(model, **{"image_size": 16, "threads": 1, "seconds": 0.02, "metrics": metrics, **arguments})


def value(record: Record, metric: str) -> float:
    found = record.measurement(metric)
    assert found is not None
    assert found.status == "ok", found.detail
    return found.value


# type of numbers


@pytest.mark.integration
@pytest.mark.parametrize(
    ("dtype", "name"), [(torch.float64, "fp64"), (torch.bfloat16, "bf16"), (torch.float16, "fp16")]
)
def test_a_module_is_measured_in_the_type_that_it_has(dtype: torch.dtype, name: str) -> None:
    record = measure(make_classifier().to(dtype), ["params", "flops", "latency", "tensor_memory"])
    assert (record.status, record.cell.dtype, record.cell.num_classes) == ("ok", name, 5)
    assert value(record, "flops") == flops_of_classifier()
    assert value(record, "params_bytes") == dtype.itemsize * (3 * 16 * 8 + 8 + 8 * 5 + 5)
    assert value(record, "tensor_peak_batch") == dtype.itemsize * 3 * 16 * 16


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "amp"])
def test_another_type_that_is_asked_for_replaces_it(dtype: str) -> None:
    record = measure(make_classifier().double(), ["flops", "tensor_memory"], dtype=dtype)
    assert (record.status, record.cell.dtype) == ("ok", dtype)
    size = 2 if dtype == "bf16" else 4
    assert value(record, "tensor_peak_batch") == size * 3 * 16 * 16
    assert value(record, "flops") == flops_of_classifier()


class MixedHead(nn.Module):
    """A trunk in bfloat16 and a head in float32, which is declared first."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 5)
        self.trunk = nn.Conv2d(3, 8, 4, 4).bfloat16()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.trunk(images).flatten(2).mean(-1).float())
        return logits


@pytest.mark.integration
@pytest.mark.parametrize("mode", ["infer", "train"])
def test_parts_of_several_types_stay_as_they_are(mode: str) -> None:
    record = measure(MixedHead(), ["flops", "params_without_gradient", "memory"], mode=mode)
    assert (record.status, record.cell.dtype) == ("ok", "bf16")
    assert value(record, "flops") == flops_of_classifier()
    assert value(record, "params_without_gradient") == 0
    assert value(record, "weights_memory") == 2 * (3 * 16 * 8 + 8) + 4 * (8 * 5 + 5)


# channels and other inputs


@pytest.mark.parametrize("channels", [1, 4, 13])
def test_images_have_the_channels_that_are_asked_for(channels: int) -> None:
    record = measure(make_classifier(channels), ["flops", "tensor_memory"], in_channels=channels)
    assert record.cell.in_channels == channels
    assert value(record, "flops") == flops_of_classifier(channels)
    assert value(record, "tensor_peak_batch") == 4 * channels * 16 * 16
    assert Record.from_json(record.to_json()).cell == record.cell
    assert record.cell.id != measure(make_classifier(), ["params"]).cell.id


class TakesTwo(nn.Module):
    def forward(self, images: Tensor, mask: Tensor) -> Tensor:
        return images * mask


class HasABug(nn.Module):
    def forward(self, images: Tensor) -> Any:
        return images.no_such_name


class TakesTokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 4)

    def forward(self, tokens: Tensor) -> Any:
        return self.embed(tokens)


class ByFunction(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(8, 1, 4, 4))

    def forward(self, images: Tensor) -> Any:
        return nn.functional.conv2d(images, self.weight).mean((2, 3))


class ForOneSize(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.zeros(1, 16, 8))
        self.patches = nn.Conv2d(3, 8, 4, 4)

    def forward(self, images: Tensor) -> Any:
        return self.patches(images).flatten(2).transpose(1, 2) + self.positions


REFUSED: dict[str, tuple[nn.Module, dict[str, Any], str]] = {
    "one channel": (make_classifier(1), {}, r"takes images of 1 channel \(Conv2d '0'\), not of 3\. Give in_channels=1"),
    "channels of flat images": (
        nn.Sequential(nn.Flatten(), nn.Linear(16 * 16, 3)),
        {},
        r"takes images of 1 channel \(Linear '1'\), not of 3\. Give in_channels=1",
    ),
    "three channels": (make_classifier(), {"in_channels": 4}, r"images of 3 channels \(Conv2d '0'\), not of 4"),
    "two inputs": (TakesTwo(), {}, r"forward takes \(images, mask\); vitbench calls it with one batch of images"),
    "a bug": (
        HasABug(),
        {},
        r"fails on an image .*: AttributeError: .*no_such_name.* \(test_api\.py:\d+ in forward\)$",
    ),
    "tokens": (TakesTokens(), {}, r"fails on an image in float32, its parameters being float32: .* scalar type"),
    "mixed types": (
        nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.Flatten(), nn.Linear(128, 2).double()),
        {},
        r"in float32, its parameters being float32 and float64: .*Convert it as a whole, such as model\.float\(\)",
    ),
    "channels of a function": (ByFunction(), {}, r"takes images of 1 channel, not of 3\. Give in_channels=1"),
    "channels of a later layer": (
        nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.Conv2d(4, 8, 1)),
        {},
        r"expected input\[1, 8, 4, 4\] to have 4 channels, but got 8 channels instead \(.*\)$",
    ),
    "channels of TorchScript": (
        torch.jit.script(make_classifier(1)),
        {},
        r"takes images of 1 channel, not of 3\. Give in_channels=1",
    ),
    "another size": (
        ForOneSize(),
        {"image_size": 32},
        r"test_api\.py.*If it is made for another size, give that image",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_module_does_not_take_is_named_in_one_line(case: str) -> None:
    model, arguments, words = REFUSED[case]
    with pytest.raises(UsageError, match=words) as caught:
        measure(model, ["flops"], **arguments)
    assert "\n" not in str(caught.value)
    assert "Give the image_size that it takes" not in str(caught.value)


@pytest.mark.parametrize("channels", [0, -1, True, 2.5])
def test_what_is_no_number_of_channels_is_refused(channels: Any) -> None:
    with pytest.raises(UsageError, match="in.channels"):
        measure(make_classifier(), ["flops"], in_channels=channels)


@pytest.mark.integration
@pytest.mark.usefixtures("shared_workers")
def test_models_of_timm_are_built_for_the_channels() -> None:
    """The embedding of vit_tiny has 16 x 16 x 192 weights a channel; at 224 px there are 196 patches."""
    three, other = (
        vitbench.measure("timm:vit_tiny_patch16_224", in_channels=count, metrics=["params", "flops"], threads=1)
        for count in (3, 4)
    )
    more = 16 * 16 * 192
    assert value(three, "params") == 5_717_416
    assert value(other, "params") - value(three, "params") == more
    assert value(other, "flops") - value(three, "flops") == 2 * 196 * more


def test_our_own_models_take_three_channels() -> None:
    with pytest.raises(UsageError, match=r"vit_basic takes images of 3 channels, not 1\. Models of timm"):
        vitbench.build_model("vit_basic", in_channels=1)


# what it returns


class WithAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.classifier = make_classifier()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.classifier(images), self.classifier[0](images)


@pytest.mark.parametrize("mode", ["infer", "train"])
def test_logits_beside_attention_weights_are_trained(mode: str) -> None:
    record = measure(WithAttention(), ["params_without_gradient", "memory"], mode=mode)
    assert (record.status, record.cell.num_classes) == ("ok", 5)
    assert value(record, "params_without_gradient") == 0


def test_a_model_without_logits_is_measured_and_not_trained() -> None:
    segmentation = nn.Conv2d(3, 5, 1)
    record = measure(segmentation, ["latency"])
    assert (record.status, record.cell.num_classes) == ("ok", 0)
    trained = measure(segmentation, ["training_step"], mode="train")
    step = trained.measurement("training_step")
    assert step is not None
    assert (trained.status, step.status) == ("ok", "unsupported")
    assert "the model returns float32 1x5x16x16: no logits" in step.detail


def test_a_model_of_which_nothing_is_trained_is_unsupported_in_training() -> None:
    record = measure(make_classifier().requires_grad_(False), ["params", "training_step"], mode="train")
    step = record.measurement("training_step")
    assert step is not None
    assert (record.status, step.status) == ("ok", "unsupported")
    assert "no parameter that requires a gradient" in step.detail


def test_torchscript_is_timed_and_not_counted() -> None:
    record = measure(torch.jit.script(make_classifier()), ["flops", "latency"])
    flops = record.measurement("flops")
    assert flops is not None
    assert (record.status, flops.status) == ("ok", "unsupported")
    assert "Give the module that it was made from" in flops.detail


# limits that torch states


@pytest.mark.parametrize(
    ("norm", "text"),
    [
        (nn.BatchNorm1d(5), "Expected more than 1 value per channel when training, got input size torch.Size([1, 5])"),
        (
            nn.SyncBatchNorm(5),
            "Expected more than 1 value per channel when training, got input size torch.Size([1, 5])",
        ),
    ],
)
def test_a_batch_norm_of_one_value_a_channel_is_unsupported(norm: nn.Module, text: str) -> None:
    record = measure(nn.Sequential(make_classifier(), norm), ["params", "training_step", "memory"], mode="train")
    assert (record.status, record.cause) == ("ok", "")
    for name in ("training_step", "training_peak_memory"):
        found = record.measurement(name)
        assert found is not None
        assert found.status == "unsupported"
        assert text in found.detail
    assert value(record, "params") == 3 * 16 * 8 + 8 + 8 * 5 + 5 + 10


def test_an_instance_norm_of_one_pixel_is_unsupported_in_each_mode() -> None:
    norm = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.InstanceNorm2d(3), nn.Flatten(), nn.Linear(3, 2))
    record = measure(norm, ["params", "latency"])
    latency = record.measurement("latency")
    assert latency is not None
    assert (record.status, latency.status) == ("ok", "unsupported")
    assert (
        "Expected more than 1 spatial element when training, got input size torch.Size([1, 3, 1, 1])" in latency.detail
    )


@pytest.mark.integration
def test_levit_of_one_image_is_unsupported_in_training() -> None:
    import timm

    model = timm.create_model("levit_128s", num_classes=10)
    record = measure(model, ["training_step"], mode="train", image_size=224)
    step = record.measurement("training_step")
    assert step is not None
    assert (record.status, step.status) == ("ok", "unsupported")
    assert "Expected more than 1 value per channel when training, got input size torch.Size([1, 384])" in step.detail


def test_a_batch_norm_of_two_images_is_trained() -> None:
    model = nn.Sequential(make_classifier(), nn.BatchNorm1d(5))
    assert measure(model, ["memory"], mode="train", batch_size=2).measurement("training_peak_memory").status == "ok"


def test_a_text_of_torch_in_an_error_of_the_model_is_no_limit() -> None:
    class Quotes(nn.Linear):
        def forward(self, images: Tensor) -> Tensor:
            if self.training:
                raise ValueError("my loader: Expected more than 1 value per channel when training, got input size 3")
            return super().forward(images.flatten(1))

    record = measure(Quotes(3 * 16 * 16, 2), ["training_step"], mode="train")
    assert (record.status, record.cause) == ("error", "model_bug")


# no head


@pytest.mark.integration
def test_dinov2_small_without_a_head_has_its_published_parameters() -> None:
    """Patches of 14 px at 518 px: 37 x 37 and CLS. Each block: two norms, qkv, projection, two scales, MLP."""
    block = 4 * 384 + (384 + 1) * 3 * 384 + (384 + 1) * 384 + 2 * 384 + (384 + 1) * 1536 + (1536 + 1) * 384
    by_hand = (14 * 14 * 3 + 1) * 384 + 384 + (37 * 37 + 1) * 384 + 12 * block + 2 * 384
    with torch.device("meta"):
        model = vitbench.build_model("timm:vit_small_patch14_dinov2", num_classes=0)
    assert sum(one.numel() for one in model.parameters()) == by_hand == 22_056_192


@pytest.mark.integration
@pytest.mark.parametrize("name", ["vit_basic", "vit_layer6_32", "vit_b16_finetune"])
def test_our_models_without_a_head_return_features(name: str) -> None:
    with torch.device("meta"):
        whole, backbone = (vitbench.build_model(name, num_classes=count).eval() for count in (10, 0))
        size = describe_model(name).image_size
        features = backbone(torch.empty(2, 3, *size))
    params = [sum(one.numel() for one in model.parameters()) for model in (whole, backbone)]
    assert features.dim() == 2
    assert params[0] - params[1] == 10 * (features.shape[1] + 1)


@pytest.mark.integration
def test_a_model_without_a_head_is_not_trained() -> None:
    with pytest.raises(UsageError, match="says num_classes = 0: models without a head cannot be trained"):
        vitbench.measure("vit_basic", num_classes=0, mode="train")
    with pytest.raises(UsageError, match="num_classes = 0, but its training data digits has 10 classes"):
        vitbench.run_suite("smoke", num_classes=0)
    with pytest.raises(UsageError, match="in_channels = 4, but the images of data sets have 3"):
        vitbench.run_suite("smoke", in_channels=4, models=["vit_basic"])
    with pytest.raises(UsageError, match="num_classes = 0 is not positive"):
        vitbench.train("vit_basic", data="digits", num_classes=0)
