"""The models of timm (``timm:NAME``) and torchvision (``torchvision:NAME``), built as they are.

Each library is loaded by its own names only: torchvision takes 4 to 6 s and timm 5 s.
"""

from __future__ import annotations

import contextlib
import fnmatch
import logging
import pickle
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from vitbench.core.errors import ImageSizeError, UnknownNameError, UsageError
from vitbench.core.records import format_image_size
from vitbench.models.cards import HALVES, Claim, ModelCard

#: What constructors raise for a size that they cannot take. Not RuntimeError: memory that runs out is one.
SIZE_ERRORS = (AssertionError, ValueError, ZeroDivisionError, IndexError)

IMAGENET_CLASSES = 1000
#: What torchvision normalises by unless its weights say otherwise.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
#: Their weights were trained with mean and std 0.5. torchvision's own loading turns ImageNet's normalisation into that
#: inside the model (``transform_input``), which a checkpoint of the model would not tell.
_TAKE_HALVES = ("googlenet", "inception_v3")


def describe_timm(name: str) -> ModelCard:
    """The card of ``timm:ARCHITECTURE`` or ``timm:ARCHITECTURE.TAG`` at the input size of its (default) weights.

    Backbones that were published without a classifier get 1000 classes. Raises UnknownNameError.
    """
    import timm

    architecture = name.removeprefix("timm:")
    bare, _, tag = architecture.partition(".")
    tags = timm.list_pretrained(f"{bare}.*") if tag else []
    if not timm.is_model(bare) or (tag and architecture not in tags):
        known = tags or timm.list_models()
        raise UnknownNameError("model", name, (f"timm:{one}" for one in known), "timm.list_models() in Python")
    weights = timm.get_pretrained_cfg(architecture)
    _, height, width = weights.input_size
    return ModelCard(
        name=name,
        builder="vitbench.models.zoo:build_timm",
        summary=f"{architecture} of timm {timm.__version__}",
        family="timm",
        source="timm",
        image_size=(height, width),
        num_classes=weights.num_classes or IMAGENET_CLASSES,
        patch=1,
        size_rule="any",
        published_weights=(weights.tag or architecture) if weights.has_weights else "",
        published_classes=weights.num_classes,
        mean=tuple(weights.mean),
        std=tuple(weights.std),
        config={"architecture": architecture},
    )


def match_external(pattern: str) -> list[str]:
    """The names that ``timm:PATTERN`` or ``torchvision:PATTERN`` means, sorted. Raises UnknownNameError for none."""
    library, _, bare = pattern.partition(":")
    if library == "timm":
        import timm

        known = timm.list_models()
    else:
        from torchvision import models

        known = models.list_models(module=models)
    found = sorted(name for name in known if fnmatch.fnmatchcase(name, bare))
    if not found:
        listing = f"{'timm' if library == 'timm' else 'torchvision.models'}.list_models() in Python"
        raise UnknownNameError("model", pattern, (f"{library}:{name}" for name in known), listing)
    return [f"{library}:{name}" for name in found]


def build_timm(
    *, architecture: str, image_size: tuple[int, int], num_classes: int, in_channels: int = 3, pretrained: bool = False
) -> nn.Module:
    """A model of timm for (height, width) px; ``img_size`` is passed to those that have it.

    Raises ImageSizeError where the constructor tells, UsageError if the weights cannot be downloaded.
    """
    import timm

    weights = timm.get_pretrained_cfg(architecture)
    name = f"timm:{architecture}"
    own = tuple(weights.input_size[1:])

    def create(**size: Any) -> nn.Module:
        with _downloading(name) if pretrained else contextlib.nullcontext():
            model: nn.Module = timm.create_model(
                architecture, pretrained=pretrained, num_classes=num_classes, in_chans=in_channels, **size
            )
        return model

    if image_size == own:
        return create()
    height, width = image_size
    try:
        # a side where it does: some constructors take no pair
        model = create(img_size=height if height == width else image_size)
    except TypeError as error:
        if "img_size" not in str(error) and "image_size" not in str(error):
            raise
        if weights.fixed_input_size:
            raise ImageSizeError(
                f"Image size {format_image_size(image_size)} does not fit {name}: its size is fixed. "
                f"Give {format_image_size((own[0], own[1]))}"
            ) from error
    except SIZE_ERRORS as error:
        raise _size_error(name, image_size, error) from error
    else:
        _refuse_what_patches_would_cut_off(name, model, image_size)
        return model
    return create()  # a constructor without img_size, for any size


def _refuse_what_patches_would_cut_off(name: str, model: nn.Module, image_size: tuple[int, int]) -> None:
    """timm drops the pixels that fill no patch, in silence. Raises ImageSizeError if there are any."""
    embedding = getattr(model, "patch_embed", None)
    patch = getattr(embedding, "patch_size", None)
    if isinstance(patch, int):
        patch = (patch, patch)
    if not isinstance(patch, tuple) or getattr(embedding, "dynamic_img_pad", False):
        return
    if any(side % size for side, size in zip(image_size, patch, strict=True)):
        fitting = tuple(max(side // size, 1) * size for side, size in zip(image_size, patch, strict=True))
        raise ImageSizeError(
            f"Image size {format_image_size(image_size)} does not fit {name}: its patch of {patch[0]} px does not "
            f"divide it. Give multiples, such as {format_image_size((fitting[0], fitting[1]))}"
        )


def describe_torchvision(name: str) -> ModelCard:
    """The card of ``torchvision:NAME`` at the input size of its default weights. Raises UnknownNameError."""
    import torchvision
    from torchvision import models

    architecture = name.removeprefix("torchvision:")
    known = models.list_models(module=models)  # classification only
    if architecture not in known:
        listing = "torchvision.models.list_models() in Python"
        raise UnknownNameError("model", name, (f"torchvision:{one}" for one in known), listing)
    weights = models.get_model_weights(architecture).DEFAULT
    preparation = weights.transforms.keywords
    side = preparation["crop_size"]
    meta = weights.meta
    smallest = max(meta["min_size"])
    return ModelCard(
        name=name,
        builder="vitbench.models.zoo:build_torchvision",
        summary=f"{architecture} of torchvision {torchvision.__version__}",
        family="torchvision",
        source="torchvision",
        image_size=(side, side),
        num_classes=len(meta["categories"]),
        patch=1,
        size_rule="any",
        published_weights=str(weights).rpartition(".")[2],
        published_classes=len(meta["categories"]),
        mean=HALVES if architecture in _TAKE_HALVES else tuple(preparation.get("mean", IMAGENET_MEAN)),
        std=HALVES if architecture in _TAKE_HALVES else tuple(preparation.get("std", IMAGENET_STD)),
        min_size=smallest if smallest < side else 1,  # ViT and Swin name their own size, though they take smaller ones
        config={"architecture": architecture},
        claims=_published(weights, f"torchvision {torchvision.__version__}, {weights}"),
    )


def _published(weights: Any, source: str) -> tuple[Claim, ...]:
    """The values in torchvision's metadata. What it prints as GFLOPs are multiply-adds / 1e9."""
    params, giga = weights.meta["num_params"], weights.meta["_ops"]
    claims = [
        Claim(quantity="params", value=params, printed=f"{params:,} params", source=source),
        Claim(quantity="flops", value=giga * 1e9, printed=f"{giga} GFLOPS", source=source),
    ]
    top1 = weights.meta["_metrics"].get("ImageNet-1K", {}).get("acc@1")
    if top1 is not None:
        claims.append(Claim(quantity="top1", value=top1 / 100, printed=f"{top1} %", source=source, data="ImageNet-1K"))
    return tuple(claims)


def build_torchvision(
    *, architecture: str, image_size: tuple[int, int], num_classes: int, pretrained: bool = False
) -> nn.Module:
    """A classification model of torchvision for (height, width) px.

    With ``pretrained`` all weights of the default set are loaded, but those of a head of another class count are left
    random, and a ViT's position embedding is interpolated to another size.
    Raises ImageSizeError where the constructor tells, UsageError if the weights cannot be downloaded.
    """
    from torchvision import models

    name = f"torchvision:{architecture}"
    options: dict[str, Any] = {}
    if architecture.startswith("vit_"):
        if image_size[0] != image_size[1]:
            raise ImageSizeError(
                f"Image size {format_image_size(image_size)} does not fit {name}: it takes squares only. "
                f"Give one side, such as {min(image_size)}"
            )
        options = {"image_size": image_size[0]}
    elif architecture.startswith("maxvit"):
        options = {"input_size": image_size}
    try:
        model: nn.Module = models.get_model(architecture, weights=None, num_classes=num_classes, **options)
    except SIZE_ERRORS as error:
        raise _size_error(name, image_size, error) from error
    if pretrained:
        with _downloading(name):
            state = models.get_model_weights(architecture).DEFAULT.get_state_dict(progress=False, check_hash=True)
        if architecture.startswith("vit_"):
            vit: Any = model
            state = models.vision_transformer.interpolate_embeddings(image_size[0], vit.patch_size, state)
        _load_all_but_head(model, state, num_classes)
    return model


def _load_all_but_head(model: nn.Module, state: Mapping[str, Any], num_classes: int) -> None:
    """Load ``state``, except what has another number of classes: a head, which stays as it is."""
    own = model.state_dict()
    other_classes = {
        key
        for key, value in state.items()
        if key in own and value.shape != own[key].shape and own[key].shape[:1] == (num_classes,)
    }
    kept = {key: own[key] if key in other_classes else value for key, value in state.items()}
    model.load_state_dict(kept, strict=True)


@contextlib.contextmanager
def _downloading(name: str) -> Iterator[None]:
    """Turn a failed download into one line, without the hub's lines about its retries."""
    from safetensors import SafetensorError

    hub = logging.getLogger("huggingface_hub")
    level = hub.level
    hub.setLevel(logging.ERROR)
    try:
        yield
    except (pickle.UnpicklingError, EOFError, SafetensorError) as error:
        raise UsageError(
            f"The downloaded weights of {name} are damaged ({type(error).__name__}). Delete them from the cache "
            "(~/.cache/huggingface, ~/.cache/torch), or leave out pretrained"
        ) from error
    except OSError as error:  # URLError of torch.hub, LocalEntryNotFoundError of the Hugging Face hub
        raise UsageError(
            f"Could not download the weights of {name} ({type(error).__name__}). Connect to the network once, copy the "
            "cache of a machine that has them (~/.cache/huggingface, ~/.cache/torch), or leave out pretrained"
        ) from error
    finally:
        hub.setLevel(level)


def _size_error(name: str, size: tuple[int, int], error: Exception) -> ImageSizeError:
    reason = (str(error).splitlines() or [""])[0] or type(error).__name__
    return ImageSizeError(f"Image size {format_image_size(size)} does not fit {name}: {reason}")
