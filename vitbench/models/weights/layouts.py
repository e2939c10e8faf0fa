"""How libraries name and shape the weights of a ViT, and how to map them to our names (timm's) and the model's shapes.

A layout is one entry of LAYOUTS. The names in a file and those of a model are both mapped to our names, so that any
layout loads into a model of any other. Nothing here reads a file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Layout:
    """The names of one library: ``marks`` are keys that no other layout has, ``names`` pairs of (theirs, ours), where
    ``{i}`` is a block's index and ``{p}`` weight or bias. Theirs may begin with one of the ``roots``.
    """

    name: str
    marks: frozenset[str]
    names: tuple[tuple[str, str], ...] = ()
    roots: tuple[str, ...] = ()

    @cached_property
    def _by_name(self) -> dict[str, str]:
        return dict(self.names)

    def our_name(self, key: str) -> str | None:
        """Our name for a key of this layout; None for a key that it does not know."""
        key = key.removeprefix(next((root for root in self.roots if key.startswith(root)), ""))
        found = re.fullmatch(r"(.*[._])(weight|bias)", key)
        name, p = (f"{found[1]}{{p}}", found[2]) if found else (key, "")
        if name in self._by_name:
            return self._by_name[name].format(p=p)
        index = re.search(r"[0-9]+", name)
        ours = self._by_name.get(f"{name[: index.start()]}{{i}}{name[index.end() :]}") if index else None
        return ours.format(p=p, i=index[0]) if ours and index else None


OURS = Layout(
    "timm or vitbench",
    frozenset({"cls_token", "pos_embed", "patch_embed.proj.weight"}),
    (  # of DINOv2, whose other names are timm's
        ("register_tokens", "reg_token"),
        ("blocks.{i}.mlp.w12.{p}", "blocks.{i}.mlp.fc1.{p}"),
        ("blocks.{i}.mlp.w3.{p}", "blocks.{i}.mlp.fc2.{p}"),
    ),
)

TORCHVISION = Layout(
    "torchvision",
    frozenset({"class_token", "conv_proj.weight", "encoder.pos_embedding"}),
    (
        ("class_token", "cls_token"),
        ("conv_proj.{p}", "patch_embed.proj.{p}"),
        ("encoder.pos_embedding", "pos_embed"),
        ("encoder.layers.encoder_layer_{i}.ln_1.{p}", "blocks.{i}.norm1.{p}"),
        ("encoder.layers.encoder_layer_{i}.ln_2.{p}", "blocks.{i}.norm2.{p}"),
        ("encoder.layers.encoder_layer_{i}.self_attention.in_proj_{p}", "blocks.{i}.attn.qkv.{p}"),
        ("encoder.layers.encoder_layer_{i}.self_attention.out_proj.{p}", "blocks.{i}.attn.proj.{p}"),
        ("encoder.layers.encoder_layer_{i}.mlp.0.{p}", "blocks.{i}.mlp.fc1.{p}"),
        ("encoder.layers.encoder_layer_{i}.mlp.3.{p}", "blocks.{i}.mlp.fc2.{p}"),
        # before torchvision 0.14
        ("encoder.layers.encoder_layer_{i}.mlp.linear_1.{p}", "blocks.{i}.mlp.fc1.{p}"),
        ("encoder.layers.encoder_layer_{i}.mlp.linear_2.{p}", "blocks.{i}.mlp.fc2.{p}"),
        ("encoder.ln.{p}", "norm.{p}"),
        ("heads.head.{p}", "head.{p}"),
        ("heads.{p}", "head.{p}"),  # heads replaced by one linear layer, as tutorials on transfer do
    ),
)

CIFAR10_VIT = Layout(
    "ViT-Classification-CIFAR10",
    frozenset({"embedding.cls_token", "embedding.pos_embedding", "embedding.conv1.weight"}),
    (
        ("embedding.cls_token", "cls_token"),
        ("embedding.pos_embedding", "pos_embed"),
        ("embedding.conv1.{p}", "patch_embed.proj.{p}"),
        ("encoder.{i}.norm1.{p}", "blocks.{i}.norm1.{p}"),
        ("encoder.{i}.attention.queries.{p}", "blocks.{i}.attn.q.{p}"),
        ("encoder.{i}.attention.keys.{p}", "blocks.{i}.attn.k.{p}"),
        ("encoder.{i}.attention.values.{p}", "blocks.{i}.attn.v.{p}"),
        ("encoder.{i}.attention.out_projection.{p}", "blocks.{i}.attn.proj.{p}"),
        ("encoder.{i}.norm2.{p}", "blocks.{i}.norm2.{p}"),
        ("encoder.{i}.fc1.{p}", "blocks.{i}.mlp.fc1.{p}"),
        ("encoder.{i}.fc2.{p}", "blocks.{i}.mlp.fc2.{p}"),
        ("norm.{p}", "norm.{p}"),
        ("classifier.fc1.{p}", "head.fc1.{p}"),
        ("classifier.fc2.{p}", "head.fc2.{p}"),
    ),
)

#: What the names of models with a head begin with; backbones have none.
_HUGGING_FACE_ROOTS = ("", "vit.", "deit.", "beit.", "dinov2.", "dinov2_with_registers.")

HUGGING_FACE = Layout(
    "Hugging Face",
    frozenset(
        f"{root}embeddings.{mark}"
        for root in _HUGGING_FACE_ROOTS
        for mark in ("cls_token", "position_embeddings", "patch_embeddings.projection.weight")
    ),
    (
        ("embeddings.cls_token", "cls_token"),
        ("embeddings.distillation_token", "dist_token"),
        ("embeddings.register_tokens", "reg_token"),
        ("embeddings.mask_token", "mask_token"),
        ("embeddings.position_embeddings", "pos_embed"),
        *(  # of BEiT, shared by all blocks
            (f"{where}.relative_position_{what}", f"rel_pos_bias.relative_position_{what}")
            for where in ("encoder.relative_position_bias", "shared_position_bias")
            for what in ("bias_table", "index")
        ),
        ("embeddings.patch_embeddings.projection.{p}", "patch_embed.proj.{p}"),
        *(
            (f"{block}.{theirs}", f"blocks.{{i}}.{ours}")
            # as published, and in the state dicts of transformers 5
            for block in ("encoder.layer.{i}", "layers.{i}")
            for theirs, ours in (
                ("layernorm_before.{p}", "norm1.{p}"),
                ("attention.attention.query.{p}", "attn.q.{p}"),
                ("attention.attention.key.{p}", "attn.k.{p}"),
                ("attention.attention.value.{p}", "attn.v.{p}"),
                ("attention.output.dense.{p}", "attn.proj.{p}"),
                ("attention.q_proj.{p}", "attn.q.{p}"),
                ("attention.k_proj.{p}", "attn.k.{p}"),
                ("attention.v_proj.{p}", "attn.v.{p}"),
                ("attention.o_proj.{p}", "attn.proj.{p}"),
                ("layernorm_after.{p}", "norm2.{p}"),
                ("intermediate.dense.{p}", "mlp.fc1.{p}"),
                ("output.dense.{p}", "mlp.fc2.{p}"),
                ("mlp.fc1.{p}", "mlp.fc1.{p}"),
                ("mlp.fc2.{p}", "mlp.fc2.{p}"),
                # BEiT
                ("lambda_1", "gamma_1"),
                ("lambda_2", "gamma_2"),
                *(
                    (f"{where}relative_position_bias.relative_position_{what}", f"attn.relative_position_{what}")
                    for where in ("attention.attention.", "")
                    for what in ("bias_table", "index")
                ),
                # DINOv2
                ("norm1.{p}", "norm1.{p}"),
                ("norm2.{p}", "norm2.{p}"),
                ("layer_scale1.lambda1", "ls1.gamma"),
                ("layer_scale2.lambda1", "ls2.gamma"),
                ("mlp.weights_in.{p}", "mlp.fc1.{p}"),
                ("mlp.weights_out.{p}", "mlp.fc2.{p}"),
                ("mlp.gate_proj.{p}", "mlp.fc1_g.{p}"),
                ("mlp.up_proj.{p}", "mlp.fc1_x.{p}"),
                ("mlp.down_proj.{p}", "mlp.fc2.{p}"),
            )
        ),
        ("layernorm.{p}", "norm.{p}"),
        ("pooler.layernorm.{p}", "fc_norm.{p}"),  # BEiT
        ("pooler.dense.{p}", "pooler.dense.{p}"),
        ("classifier.{p}", "head.{p}"),
        ("cls_classifier.{p}", "head.{p}"),  # DeiT, as distilled
        ("distillation_classifier.{p}", "head_dist.{p}"),
    ),
    _HUGGING_FACE_ROOTS[1:],
)

#: To add a layout, add it here.
LAYOUTS = (TORCHVISION, CIFAR10_VIT, HUGGING_FACE, OURS)

#: For other models, whose state dicts are not renamed.
UNKNOWN = Layout("as in the model", frozenset())

#: Of a model, in numbers.
_WIDEST = 1 << 16


def layout_of(keys: Iterable[str]) -> Layout:
    """The layout that these keys belong to, or UNKNOWN."""
    present = set(keys)
    return next((layout for layout in LAYOUTS if not layout.marks.isdisjoint(present)), UNKNOWN)


def common_prefix(keys: Collection[str], prefixes: tuple[str, ...] = ("module.", "_orig_mod.")) -> str:
    """The prefix that DataParallel and torch.compile give all keys: ``module._orig_mod.`` or ``""``."""
    found = ""
    while keys and (more := next((one for one in prefixes if all(key.startswith(found + one) for key in keys)), "")):
        found += more
    return found


@dataclass(frozen=True)
class Weight:
    """A tensor in a file, not read yet: its keys (several if it joins them), the shape that the file claims,
    torch's name of the dtype, and ``read``, which reads it to the CPU.
    """

    keys: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], Tensor]

    def reshaped(self, shape: tuple[int, ...]) -> Weight:
        return Weight(self.keys, shape, self.dtype, lambda: self.read().reshape(shape))


def match_parts(weights: Mapping[str, Weight], wanted: Collection[str]) -> dict[str, Weight]:
    """The same weights with q, k and v in one or apart, as ``wanted`` (our names) has them, and the gate of an MLP and
    its input in one; ``weights`` is unchanged.

    In one is q above k above v, (3D, D) for weights, and the gate above the input. A bias of q and v without one of k,
    as BEiT and EVA have it, has zeros for k. What cannot be taken apart or put together stays as it is.
    """
    result = dict(weights)
    for name in wanted:
        found = re.fullmatch(r"(.*attn\.)(qkv|q|q_proj)\.weight", name)
        for p in ("weight", "bias") if found else ():
            _match_one_qkv(result, found[1], p, wanted)  # type: ignore[index]
        apart = [name.replace(".fc1.", part) for part in (".fc1_g.", ".fc1_x.")]
        if name not in weights and all(part in weights for part in apart):
            parts = [result.pop(part) for part in apart]
            result[name] = _stacked(parts) if parts[0].shape else parts[0]
    return result


def _match_one_qkv(weights: dict[str, Weight], block: str, p: str, wanted: Collection[str]) -> None:
    whole = f"{block}qkv.{p}"
    ways = [
        tuple(f"{block}{form.format(part)}" for part in "qkv") for form in (f"{{}}.{p}", f"{{}}_proj.{p}", f"{{}}_{p}")
    ]
    apart = next((way for way in ways if way[0] in wanted), None)
    source = next((way for way in ways if way[0] in weights and way[2] in weights), None)
    if source is None and whole in weights:
        one = weights[whole]
        if apart is None or not one.shape or one.shape[0] % 3:
            return
        shape = (one.shape[0] // 3, *one.shape[1:])
        q, k, v = (Weight(one.keys, shape, one.dtype, partial(_third, one, index)) for index in range(3))
        source = (whole,)
    elif source is not None:
        q, v = weights[source[0]], weights[source[2]]
        zeros = Weight((), q.shape, q.dtype, lambda: torch.zeros_like(q.read()))
        k = weights.get(source[1], zeros) if p == "bias" or source[1] in weights else q
        if p == "weight" and source[1] not in weights:
            return
    else:
        return
    if apart is None:
        if whole not in wanted or not q.shape == k.shape == v.shape or not q.shape:
            return
        parts = {whole: _stacked([q, k, v])}
    else:
        parts = dict(zip(apart, (q, k, v), strict=True))
        if apart[1] not in wanted and _is_zero(k, q.shape):
            del parts[apart[1]]
    for name in source:
        weights.pop(name, None)
    weights.update(parts)


def _is_zero(bias: Weight, shape: tuple[int, ...]) -> bool:
    small = bias.shape == shape and math.prod(shape) <= _WIDEST  # a shape is a mere claim until it is read
    return not bias.keys or (small and not bias.read().any())


def _stacked(parts: list[Weight]) -> Weight:
    keys = tuple(key for part in parts for key in part.keys)
    shape = (len(parts) * parts[0].shape[0], *parts[0].shape[1:])
    return Weight(keys, shape, parts[0].dtype, lambda: torch.cat([part.read() for part in parts]))


def _third(whole: Weight, index: int) -> Tensor:
    return whole.read().chunk(3)[index]
