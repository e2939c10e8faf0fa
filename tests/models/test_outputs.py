"""Where the logits are in what a model returns, and which type of numbers a model takes."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vitbench.core.errors import Unsupported
from vitbench.models.outputs import heads_of, input_dtype, mean_logits, training_loss

LOGITS = torch.tensor([[1.0, 3.0, 2.0], [0.0, -1.0, 4.0]])
OTHER = LOGITS - 2
ATTENTION, FEATURES, TOKENS = torch.ones(2, 4, 5, 5), torch.ones(2, 192), torch.ones(2, 5, 192)

Named = namedtuple("Named", ["logits", "aux_logits"])


@dataclass
class Output:
    """As Hugging Face's outputs, with what it left out."""

    loss: Tensor | None
    logits: Tensor
    hidden_states: tuple[Tensor, ...]


FOUND: dict[str, tuple[Any, list[Tensor]]] = {
    "a tensor": (LOGITS, [LOGITS]),
    "logits and attention weights": ((LOGITS, ATTENTION), [LOGITS]),
    "attention weights first": ([ATTENTION, LOGITS], [LOGITS]),
    "logits, a list of attention weights and nothing": ((LOGITS, [ATTENTION, ATTENTION], None), [LOGITS]),
    "two heads of a distilled model": ((LOGITS, OTHER), [LOGITS, OTHER]),
    "deep supervision": ([LOGITS, OTHER, LOGITS], [LOGITS, OTHER, LOGITS]),
    "deep supervision and maps": (([LOGITS, OTHER], ATTENTION), [LOGITS, OTHER]),
    "a dictionary with features": ({"features": FEATURES, "logits": LOGITS}, [LOGITS]),
    "a dictionary with probabilities": ({"logits": LOGITS, "probabilities": LOGITS.softmax(-1)}, [LOGITS]),
    "a dictionary without the name": ({"out": LOGITS, "tokens": TOKENS}, [LOGITS]),
    "heads under the name": ({"logits": [LOGITS, OTHER], "features": FEATURES}, [LOGITS, OTHER]),
    "logits of another shape beside them": ({"logits": LOGITS, "mask_logits": FEATURES}, [LOGITS]),
    "a dataclass": (Output(None, LOGITS, (TOKENS, FEATURES)), [LOGITS]),
    "a named tuple with an auxiliary head": (Named(LOGITS, OTHER), [LOGITS, OTHER]),
    "an object": (SimpleNamespace(logits=LOGITS, features=FEATURES), [LOGITS]),
}


@pytest.mark.parametrize("case", FOUND)
def test_logits_are_found(case: str) -> None:
    output, expected = FOUND[case]
    found = heads_of(output)
    assert len(found) == len(expected)
    assert all(one is other for one, other in zip(found, expected, strict=True))
    assert torch.equal(mean_logits(output), torch.stack(expected).mean(0))


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (ATTENTION, r"the model returns float32 2x4x5x5: no logits \(images x classes\)\. Return logits alone"),
        ((LOGITS, FEATURES), r"returns \(float32 2x3, float32 2x192\): several that could be logits"),
        ({"a": LOGITS, "b": FEATURES}, r"returns \{a: float32 2x3, b: float32 2x192\}: several"),
        ({"logits": ATTENTION}, r"returns \{logits: float32 2x4x5x5\}: no logits"),
        (None, "the model returns NoneType: no logits"),
        ([], r"the model returns \(\): no logits"),
    ],
)
def test_what_has_no_clear_logits_is_one_line(output: Any, words: str) -> None:
    with pytest.raises(Unsupported, match=words) as caught:
        training_loss(nn.Identity(), output, torch.tensor([0, 1]))
    assert "\n" not in str(caught.value)


@pytest.mark.integration
def test_hugging_faces_outputs_have_logits() -> None:
    outputs = pytest.importorskip("transformers.modeling_outputs")
    plain = outputs.ImageClassifierOutput(logits=LOGITS, hidden_states=(TOKENS,), attentions=(ATTENTION,))
    assert heads_of(plain) == [LOGITS]
    assert heads_of(plain.to_tuple()) == [LOGITS]


def test_the_loss_is_that_of_the_logits_alone() -> None:
    labels = torch.tensor([1, 2])
    expected = nn.functional.cross_entropy(LOGITS, labels)
    assert training_loss(nn.Identity(), (LOGITS, ATTENTION), labels) == expected


class Parts(nn.Module):
    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


def test_a_module_takes_images_of_its_first_convolutions_type() -> None:
    trunk, head = nn.Conv2d(3, 4, 2).bfloat16(), nn.Linear(4, 2)
    assert input_dtype(Parts(trunk=trunk, head=head)) == torch.bfloat16
    assert input_dtype(Parts(head=head, trunk=trunk)) == torch.bfloat16
    assert input_dtype(nn.Sequential(nn.Linear(4, 2).double())) == torch.float64
    assert input_dtype(nn.Flatten()) == torch.float32


def test_weights_that_no_image_can_have_the_type_of_do_not_count() -> None:
    stored = nn.Module()
    stored.weight = nn.Parameter(torch.zeros(3, dtype=torch.int8), requires_grad=False)
    assert input_dtype(stored) == torch.float32
    stored.scale = nn.Parameter(torch.zeros(3, dtype=torch.float16))
    assert input_dtype(stored) == torch.float16
