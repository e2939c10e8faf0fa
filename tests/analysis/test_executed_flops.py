"""FLOPs of models whose work depends on the image: executed on the CPU, to the unit; all others stay on meta."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tests.analysis.kinds import smallest_of_each_kind
from tests.data_dependent_models import KeepsLongTokens, Recurrent
from vitbench.analysis.flops import count_forward
from vitbench.analysis.flops_audit import audit_flops
from vitbench.cli import run_command
from vitbench.core.records import Cell, Measurement
from vitbench.executors.protocol import Event, Measure, MeasurementTaken, from_line, to_line
from vitbench.executors.worker import handle
from vitbench.metrics.flops import PICTURES, _same_operators_as_on_meta, execute, needs_values
from vitbench.metrics.support.in_process import make_subject, run_metric
from vitbench.metrics.support.operator_counter import OperatorCounter
from vitbench.models import imported
from vitbench.models.cards import load_model_cards

pytestmark = pytest.mark.integration

SIZE = 48
HERE = "module:tests.data_dependent_models"
DEPENDENT = ["keeps_long_tokens", "insists_on_fused", "leaves_early", "tokens_halt", "own_encoder", "dense_in_training"]


@pytest.fixture(autouse=True)
def _imports_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imported, "_allowed", True)  # put back afterwards, whatever a command sets


def make_cell(model: str, *, size: int = SIZE, classes: int = 10, **more: Any) -> Cell:
    fields = {"image_size": (size, size), "num_classes": classes, "batch_size": 4, "device": "cpu", "threads": 1}
    return Cell(model=model, **{**fields, **more})


def measured(cell: Cell) -> dict[str, Measurement]:
    return {one.metric: one for one in run_metric("flops", make_subject(cell))}


def by_closed_form(name: str, seed: int = 0) -> list[int]:
    """FLOPs of each image, with images and weights drawn as documented."""
    model = make_subject(make_cell(f"{HERE}:{name}", seed=seed)).build()
    assert isinstance(model, KeepsLongTokens)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        pictures = [torch.randn(1, 3, SIZE, SIZE, generator=generator) for _ in range(16)]
        return [model.closed_form(picture) for picture in pictures]


@pytest.mark.parametrize("attention", ["fused", "explicit"])
@pytest.mark.parametrize("name", DEPENDENT)
def test_audit_and_metric_equal_the_closed_form_to_the_unit(name: str, attention: str) -> None:
    exact = by_closed_form(name)
    assert len(set(exact)) > 2  # else it would show nothing
    mean = round(sum(exact) / 16)
    (audit,) = audit_flops([f"{HERE}:{name}"], image_size=str(SIZE), num_classes=10, attention=attention)
    assert audit["executed"]["flops"] == exact
    assert (audit["executed"]["pictures"], audit["executed"]["mean"]) == (PICTURES, mean) == (16, audit["flops"])
    assert (audit["executed"]["min"], audit["executed"]["max"]) == (min(exact), max(exact))
    assert sum(one["flops"] for one in audit["operators"].values()) == sum(exact) / 16
    assert audit["without_formula"] == {}
    assert audit["warnings"] == []
    found = measured(make_cell(f"{HERE}:{name}", attention=attention))
    assert (found["flops"].value, found["macs"].value) == (mean, mean // 2)
    spread = f"executed on the CPU, mean of 16 pictures of random numbers, from {min(exact)} to {max(exact)} FLOPs"
    for text in (found["flops"].method, found["macs"].method, audit["method"]):
        assert spread in text
    assert found["flops"].detail == f"min {min(exact)}, max {max(exact)} FLOPs, with the weights as built, seed 0"


def test_images_and_weights_are_those_of_the_seed() -> None:
    values = [measured(make_cell(f"{HERE}:keeps_long_tokens", seed=seed))["flops"].value for seed in (0, 1, 1)]
    assert values == [round(sum(by_closed_form("keeps_long_tokens", seed)) / 16) for seed in (0, 1, 1)]
    assert values[0] != values[1]


#: The two others of vit_b16 are torchvision's vit_b_16, which differs from vit_b_32 in its patches alone.
EXECUTED = [*smallest_of_each_kind(by_config=False), "torchvision:vit_b_32"]


@pytest.mark.parametrize("name", [one for one in EXECUTED if one not in ("vit_b16_transfer", "vit_b16_finetune")])
def test_a_model_that_runs_on_meta_takes_the_same_on_the_cpu_to_the_unit(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = next((card for card in load_model_cards() if card.name == name), None)
    size = 32 if card is None else next(size for size in (32, 64, 96, 224) if fits(card, size))
    monkeypatch.setattr("vitbench.metrics.flops.PICTURES", 1)
    subject = make_subject(make_cell(name, size=size))
    with subject.on_meta(1) as (model, images), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(images)
    (executed,) = execute(subject)
    with subject.on_meta(1) as (model, images):
        counts = count_forward(model, images)
    assert executed.flops == counts.flops == counter.get_total_flops()
    assert executed.elementwise_flops == counts.elementwise_flops
    assert executed.without_formula == {}


def fits(card: Any, size: int) -> bool:
    try:
        card.check_image_size((size, size))
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("name", ["encoder", "recurrent", "attention"])
def test_what_counters_do_not_see_through_on_the_cpu_is_off(name: str) -> None:
    class Fused(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None])[:, 0]

    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    built = {"encoder": nn.TransformerEncoder(layer, 2), "recurrent": Recurrent(), "attention": Fused()}[name]
    model, x = built.eval().requires_grad_(False), torch.randn(1, 7, 16)
    with torch.no_grad(), _same_operators_as_on_meta(), OperatorCounter() as on_cpu:
        model(x)
    with torch.no_grad(), OperatorCounter() as on_meta:
        model.to("meta")(x.to("meta"))
    by_operator = [{name: one.flops for name, one in run.counts.products.items()} for run in (on_cpu, on_meta)]
    assert by_operator[0] == by_operator[1] != {}


def test_switches_are_put_back_also_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", True)  # whatever an earlier test has left

    def switches() -> tuple[bool, ...]:
        own: Any = torch.backends.mkldnn
        cuda = torch.backends.cuda
        return (
            torch.backends.mha.get_fastpath_enabled(),
            own.enabled,
            cuda.flash_sdp_enabled(),
            cuda.mem_efficient_sdp_enabled(),
            cuda.math_sdp_enabled(),
        )

    before = switches()
    measured(make_cell(f"{HERE}:keeps_long_tokens"))
    assert switches() == before
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        measured(make_cell(f"{HERE}:broken_behind"))
    assert switches() == before
    assert measured(make_cell("vit_layer6_32", size=32))["flops"].value == 2 * 58_018_560


def test_pruning_to_a_fixed_share_stays_on_meta(monkeypatch: pytest.MonkeyPatch) -> None:
    def no(*_: Any) -> Any:
        raise AssertionError("executed")

    monkeypatch.setattr("vitbench.metrics.flops.execute", no)
    monkeypatch.setattr("vitbench.analysis.flops_audit.execute", no)
    names = ["cifar_dynamic_vit_pruned", "cifar_dynamic_vit_learned"]
    for name in names:
        (audit,) = audit_flops([name], others=False)
        assert "executed" not in audit
        assert audit["flops"] == audit["closed_form"]["flops"]
        found = measured(make_cell(name, size=audit["image_size"][0], classes=audit["num_classes"]))["flops"]
        assert (found.value, found.detail) == (audit["flops"], "")
        assert found.method.startswith("operators dispatched on meta, batch of 1, torch ")


def test_a_training_step_is_counted_where_it_runs_on_meta_and_has_a_reason_elsewhere() -> None:
    audits = audit_flops([f"{HERE}:keeps_long_tokens", f"{HERE}:dense_in_training"], image_size=str(SIZE))
    assert "does not run on meta: NotImplementedError" in audits[0]["training"]["reason"]
    assert "reason" not in audits[1]["training"]
    patches = (SIZE // 8) ** 2
    dense = 2 * patches * 3 * 64 * 16 + 4 * (2 * patches * 16 * 64 + 4 * patches**2 * 16) + 2 * 16 * 1000
    assert audits[1]["training"]["forward_flops"] == dense


def test_other_failures_stay_failures(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("broken", "broken_behind"):
        (audit,) = audit_flops([f"{HERE}:{name}"], image_size=str(SIZE))
        assert audit["error"].startswith("RuntimeError: ")
        assert audit["usage"] is False
        with pytest.raises(RuntimeError):
            measured(make_cell(f"{HERE}:{name}"))
    assert run_command(["flops", f"{HERE}:broken", "--image-size", str(SIZE)]) == 1
    assert capsys.readouterr().err.startswith("Error: RuntimeError: ")


def test_the_command_asks_for_allow_import_and_prints_minimum_mean_and_maximum(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imported, "_allowed", False)
    command = ["flops", f"{HERE}:keeps_long_tokens", "--image-size", str(SIZE), "--num-classes", "10"]
    assert run_command(command) == 2
    assert "add --allow-import" in capsys.readouterr().err
    exact = by_closed_form_allowed(monkeypatch)
    assert run_command([*command, "--allow-import", "--json"]) == 0
    (audit,) = json.loads(capsys.readouterr().out)
    assert audit["executed"]["flops"] == exact
    assert audit["fvcore"] == audit["thop"]
    assert "depend on the image" in audit["fvcore"]["reason"]
    assert run_command([*command, "--allow-import"]) == 0
    text = capsys.readouterr().out
    least, mean, most = (f"{flops / 1e9:.4g}" for flops in (min(exact), sum(exact) / 16, max(exact)))
    assert f"FLOPs depend on the image: min {least}, mean {mean}, max {most} GFLOPs of 16 random images" in text
    assert "dispatcher, executed" in text
    assert "training step: unavailable, a training step does not run on meta" in text
    assert "WARNING" not in text


def by_closed_form_allowed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    with monkeypatch.context() as patch:
        patch.setattr(imported, "_allowed", True)
        return by_closed_form("keeps_long_tokens")


def test_a_static_worker_answers_with_one_sample_that_json_carries() -> None:
    cell = make_cell(f"{HERE}:leaves_early")
    events: list[Event] = []
    threads = torch.get_num_threads()
    try:
        assert handle(Measure(process="static", metrics=("params", "flops"), cell=cell), events.append)
    finally:
        torch.set_num_threads(threads)
    found = {event.measurement.metric: event.measurement for event in events if isinstance(event, MeasurementTaken)}
    assert found["flops"].samples == ((round(sum(by_closed_form("leaves_early")) / 16),),)
    assert found["flops"].status == "ok"
    assert [from_line(to_line(event)) for event in events] == events


META = torch.device("meta")
VALUES: dict[str, Callable[[Tensor], Any]] = {
    "item": lambda x: x.sum().item(),
    "branch": lambda x: 1 if x.sum() > 0 else 2,
    "slice": lambda x: x[: x.sum().long()],
    "mask": lambda x: x[x > 0],
    "nonzero": lambda x: x.nonzero(),
    "where": lambda x: torch.where(x > 0),
    "masked_select": lambda x: x.masked_select(x > 0),
    "unique": lambda x: x.unique(),
    "equal": lambda x: torch.equal(x, x),
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "numpy": lambda x: x.numpy(),
    "repeat": lambda x: x.repeat_interleave(torch.ones(4, dtype=torch.long, device=META), dim=0),
    "one_hot": lambda x: F.one_hot(x.long()),
}
OTHERS: dict[str, Callable[[Tensor], Any]] = {
    "shapes": lambda x: x @ torch.ones(7, 7, device=META),
    "devices": lambda x: x + torch.ones(4, 5, device="cpu"),
    "dtypes": lambda x: F.embedding(x, x),
    "types": lambda x: x + None,
    "attribute": lambda x: x.no_such_thing,
    "index": lambda x: x[7],
    "view": lambda x: x.view(3, 3),
    "no kernel": lambda x: x.to_sparse(),  # misses its kernel, but no tag says that data decide
}


@pytest.mark.parametrize("ask", VALUES.values(), ids=VALUES)
def test_reading_values_on_meta_is_recognised(ask: Callable[[Tensor], Any]) -> None:
    with pytest.raises((RuntimeError, TypeError)) as caught:
        ask(torch.empty(4, 5, device=META))
    assert needs_values(caught.value)


@pytest.mark.parametrize("ask", OTHERS.values(), ids=OTHERS)
def test_other_failures_are_not_taken_for_reading_values(ask: Callable[[Tensor], Any]) -> None:
    with pytest.raises(Exception) as caught:  # noqa: PT011
        ask(torch.empty(4, 5, device=META))
    assert not needs_values(caught.value)


def test_a_text_that_names_an_unknown_operator_is_no_request_for_values() -> None:
    text = "mine::pruned: attempted to run this operator with Meta tensors, but there was no fake impl"
    assert not needs_values(NotImplementedError(text))
    assert not needs_values(ValueError("Cannot copy out of meta tensor; no data!"))


def test_modules_of_the_caller_keep_their_weights() -> None:
    from vitbench.api import measure

    torch.manual_seed(3)
    model = KeepsLongTokens(10)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    record = measure(model, image_size=SIZE, metrics=["flops"])
    found = record.measurement("flops")
    assert found is not None
    assert found.detail.endswith("with the module's own weights")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        exact = [model.closed_form(torch.randn(1, 3, SIZE, SIZE, generator=generator)) for _ in range(16)]
    assert found.value == round(sum(exact) / 16)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model.training
