"""The lock as a file and what differs from it, in words; no model is built here."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vitbench.core.errors import UsageError
from vitbench.regression.change import Change, exit_code
from vitbench.regression.change_text import difference
from vitbench.regression.lock_diff import accept, compare_locks, describe_tensors, parse_rule, remaining
from vitbench.regression.lock_file import (
    BOUND,
    Entry,
    Lock,
    Place,
    digest,
    lock_to_text,
    metrics_of,
    minor_version,
    read_lock,
    write_lock,
)

MODEL = Place(model="vit_small", image_size=(32, 48), num_classes=10)
RUN = replace(MODEL, batch_size=8, dtype="fp32", mode="train")
OTHER = Place(model="timm:vit_other", image_size=(224, 224), num_classes=1000, attention="explicit")
STATE = {
    "blocks.0.norm.bias": "float32 4",
    "blocks.0.norm.weight": "float32 4",
    "head.bias": "float32 10",
    "head.weight": "float32 10x4",
    "table": "int64 5 buffer",
}
FIGURES: dict[str, Any] = {
    "params": 58,
    "trainable_params": 58,
    "buffers": 5,
    "state_dict": STATE,
    "output": "float32 1x10",
    "flops": 80,
    "training_flops": 480,
    "without_gradient": {},
    "uncounted": {},
    "graph_breaks": {"print": 1},
}
RUN_FIGURES: dict[str, Any] = {
    "output": "float32 8x10",
    "tensor_peak": 5000,
    "operators": {"aten.clone": 12, "aten.mm": 4},
}


def entry(place: Place, figures: dict[str, Any], **changes: Any) -> Entry:
    return Entry(place=place, figures={**figures, **changes}, absent={})


def make_lock(*entries: Entry, **changes: Any) -> Lock:
    given = entries or (entry(MODEL, FIGURES), entry(RUN, RUN_FIGURES), failed(OTHER, "no such operator"))
    fields: dict[str, Any] = {"torch": "2.15.0", "vitbench": "0.1.0", "libraries": {"timm": "1.0.31"}}
    return Lock(entries=tuple(sorted(given, key=lambda one: one.place)), **{**fields, **changes})


def failed(place: Place, why: str, *, gone: bool = False) -> Entry:
    return Entry(place=place, figures={}, absent={}, failed=why, gone=gone)


def changed(base: Lock, head: Lock) -> dict[str, Change]:
    """What is not the same, by cell and metric."""
    return {f"{one.cell}#{one.metric}": one for one in compare_locks(base, head) if one.verdict != "same"}


def change_of(name: str, value: Any, *, run: bool = False) -> Change:
    """The one change that another figure of that name makes."""
    head = [entry(MODEL, FIGURES, **({} if run else {name: value}))]
    head += [entry(RUN, RUN_FIGURES, **({name: value} if run else {})), failed(OTHER, "no such operator")]
    found = changed(make_lock(), make_lock(*head))
    assert list(found) == [f"{(RUN if run else MODEL).label}#{name}"]
    (change,) = found.values()
    assert (change.verdict, change.exact, change.gates) == ("worse", True, True)
    return change


# the file


def test_labels_name_what_an_entry_is_of() -> None:
    assert MODEL.label == "vit_small 32x48px 10 classes"
    assert RUN.label == "vit_small 32x48px 10 classes b8 fp32 train"
    assert OTHER.label == "timm:vit_other 224px 1000 classes explicit"
    assert RUN.of_model == MODEL


def test_a_lock_is_read_as_it_was_written(tmp_path: Path) -> None:
    absent = Entry(place=RUN, figures={"output": "float32 8x10"}, absent={"tensor_peak": "no", "operators": "numbers"})
    lock = make_lock(entry(MODEL, FIGURES), absent, failed(OTHER, "no such operator"))
    write_lock(tmp_path / "a.json", lock)
    assert read_lock(tmp_path / "a.json") == lock
    assert lock_to_text(read_lock(tmp_path / "a.json")) == (tmp_path / "a.json").read_text()


def test_each_figure_has_a_line_of_its_own() -> None:
    before = lock_to_text(make_lock()).splitlines()
    figures = {**FIGURES, "params": 59}
    after = lock_to_text(
        make_lock(entry(MODEL, figures), entry(RUN, RUN_FIGURES), failed(OTHER, "no such operator"))
    ).splitlines()
    different = [pair for pair in zip(before, after, strict=True) if pair[0] != pair[1]]
    assert [tuple(line.strip() for line in pair) for pair in different] == [('"params": 58,', '"params": 59,')]
    assert '      "head.weight": "float32 10x4",' in before


def test_the_order_of_entries_and_tensors_changes_nothing() -> None:
    turned = dict(reversed(STATE.items()))
    entries = (entry(RUN, RUN_FIGURES), failed(OTHER, "no such operator"), entry(MODEL, FIGURES, state_dict=turned))
    assert lock_to_text(make_lock(*entries)) == lock_to_text(make_lock())
    assert digest(turned) == digest(STATE)


def edited(**changes: Any) -> str:
    """A lock's text with other values at ``models__vit__params`` and the like; None removes a key."""
    content = json.loads(lock_to_text(make_lock()))
    for path, value in changes.items():
        *where, last = path.replace("MODEL", MODEL.label).replace("RUN", RUN.label).split("__")
        place = content
        for key in where:
            place = place[key]
        if value is None:
            del place[last]
        else:
            place[last] = value
    return json.dumps(content)


DAMAGED = {
    "nothing": ("", "Expecting value"),
    "half": (lock_to_text(make_lock())[:500], "cannot be used"),
    "another file": ('{"name": "package"}', 'it lacks "format"'),
    "a list": ("[1, 2]", "its content is a list, not an object"),
    "deep": ('{"a":' * 3000 + "1" + "}" * 3000, "nested too deeply"),
    "newer": (edited(schema=2), "schema 2 is newer than this vitbench reads (1): upgrade"),
    "schema": (edited(schema="1"), "schema is '1', not a whole number"),
    "NaN": ('{"format": "vitbench lock", "schema": NaN}', "schema is nan, not a"),
    "many digits": ('{"format": "vitbench lock", "schema": ' + "9" * 5000 + "}", "cannot be used"),
    "no table": (edited(models=[]), "models is a list, not an object"),
    "no figures": (edited(models__MODEL__figures={}), "lacks buffers"),
    "a figure less": (edited(models__MODEL__figures__flops=None), "lacks flops"),
    "a figure more": (edited(models__MODEL__figures__latency=3), "cannot have latency"),
    "a negative figure": (edited(models__MODEL__figures__params=-1), "params is -1: it should be greater than or equal to 0"),
    "words for a count": (edited(models__MODEL__figures__params="many"), "params is 'many', not a whole number"),
    "a count for words": (edited(models__MODEL__figures__output=3), "output is 3, not text"),
    "a flag": (edited(models__MODEL__figures__params=True), "params is true, not a whole number"),
    "a tensor": (edited(models__MODEL__figures__state_dict__tensors__table="int64 6 buffer"), "do not match the digest"),
    "another model": (edited(models__MODEL__model="vit_large"), "describes 'vit_large 32x48px 10 classes'"),
    "another size": (edited(models__MODEL__image_size="0"), "is not positive"),
    "a dtype": (edited(runs__RUN__dtype="fp64"), "should be 'fp32'"),
    "a batch": (edited(runs__RUN__batch_size=0), "should be greater than or equal to 1"),
    "a run alone": (edited(models__MODEL=None), "is a run of a model that has no entry"),
    "accepted": (edited(accepted=[{"pattern": "a"}]), "accepted[0].reason is missing"),
    "no text": (b"\xff\xfe", "utf-8"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_what_is_no_lock_is_told_of_in_one_line(tmp_path: Path, name: str) -> None:
    text, words = DAMAGED[name]
    path = tmp_path / "vitbench.lock.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UsageError) as caught:
        read_lock(path)
    assert words in str(caught.value)
    assert "vitbench snapshot" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_what_an_earlier_vitbench_did_not_record_is_not_compared(tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    path.write_text(edited(models__MODEL__figures__uncounted=None))
    old, new = read_lock(path), make_lock()
    assert "uncounted" not in old.entries[1].figures
    assert not changed(old, new)
    more = make_lock(entry(MODEL, FIGURES, uncounted={"mine::product": 1}), entry(RUN, RUN_FIGURES), new.entries[0])
    assert not changed(old, more)
    assert list(changed(new, more)) == [f"{MODEL.label}#uncounted"]


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"No such file or directory. Make one: vitbench snapshot"):
        read_lock(tmp_path / "none.json")
    with pytest.raises(UsageError, match="not a regular file"):
        read_lock(tmp_path)


# what differs


def test_equal_locks_have_no_change() -> None:
    changes = compare_locks(make_lock(), make_lock())
    assert {one.verdict for one in changes} == {"same"}
    assert len(changes) == len(FIGURES) + len(RUN_FIGURES) + 1
    assert exit_code(changes) == 0


def test_an_added_parameter_is_named() -> None:
    state = {**STATE, "blocks.0.mlp.extra.weight": "float32 32x32"}
    head = make_lock(
        entry(MODEL, FIGURES, params=58 + 1024, state_dict=state),
        entry(RUN, RUN_FIGURES),
        failed(OTHER, "no such operator"),
    )
    found = changed(make_lock(), head)
    assert found[f"{MODEL.label}#params"].detail == "+1,024 parameters: blocks.0.mlp.extra.weight added"
    assert found[f"{MODEL.label}#state_dict"].detail == "blocks.0.mlp.extra.weight added"
    assert exit_code(found.values()) == 1


def test_less_is_a_change_as_well() -> None:
    assert difference(change_of("flops", 70)) == "80 FLOP -> 70 FLOP (-10, -12.5 %)"
    assert difference(change_of("tensor_peak", 4000, run=True)) == "5,000 byte -> 4,000 byte (-1,000, -20.0 %)"
    assert difference(change_of("output", "float32 1x12")) == "float32 1x10 -> float32 1x12"


@pytest.mark.parametrize(
    ("head", "words"),
    [
        ({**STATE, "blocks.1.a": "float32 4", "blocks.1.b.c": "float32 4"}, "blocks.1 (2 tensors) added"),
        ({k: v for k, v in STATE.items() if "norm" not in k}, "blocks (2 tensors) removed"),
        ({k.replace("norm", "ln"): v for k, v in STATE.items()}, "blocks.0.norm (2 tensors) is blocks.0.ln now"),
        ({**STATE, "head.bias": "float16 10"}, "head.bias float32 -> float16"),
        ({**STATE, "head.bias": "float32 10 frozen"}, "head.bias trained -> frozen"),
        ({**STATE, "head.bias": "float32 12", "head.weight": "float32 12x4"}, "head.bias 10 -> 12, head.weight 10x4 -> 12x4"),
        ({k: v.replace("float32", "bfloat16") for k, v in STATE.items()},
         "4 tensors (blocks.0.norm.bias, blocks.0.norm.weight, head.bias, head.weight) float32 -> bfloat16"),
        ({**STATE, **{f"new{n}": f"float32 {n}" for n in range(9)}},
         "new0 added, new1 added, new2 added, new3 added and 5 more"),
    ],
)  # fmt: skip
def test_state_dicts_differ_in_words(head: dict[str, str], words: str) -> None:
    assert describe_tensors(STATE, head) == words
    assert change_of("state_dict", head).detail == words


def test_what_froze_is_named_with_the_trainable_parameters() -> None:
    state = {**STATE, "head.bias": "float32 10 frozen"}
    head = entry(MODEL, FIGURES, trainable_params=48, state_dict=state)
    found = changed(make_lock(entry(MODEL, FIGURES), entry(RUN, RUN_FIGURES)), make_lock(head, entry(RUN, RUN_FIGURES)))
    assert set(found) == {f"{MODEL.label}#trainable_params", f"{MODEL.label}#state_dict"}
    detail = found[f"{MODEL.label}#trainable_params"].detail
    assert detail == "-10 trainable parameters: head.bias trained -> frozen"


def test_operators_are_named_with_their_counts() -> None:
    change = change_of("operators", {"aten.clone": 24, "aten.mul": 1, "aten.mm": 4}, run=True)
    assert (change.base, change.head) == (16, 29)
    assert change.detail == "aten.clone 12 -> 24, aten.mul 0 -> 1"


def test_operators_that_took_each_others_place_are_a_change_too() -> None:
    change = change_of("operators", {"aten.clone": 11, "aten.mm": 5}, run=True)
    assert change.base == change.head == 16
    assert change.verdict == "worse"


def test_graph_breaks_and_parameters_without_gradient_tell_which() -> None:
    assert change_of("graph_breaks", {"print": 3, "item()": 1}).detail == "print 1 -> 3, new break: item()"
    assert change_of("graph_breaks", {}).detail == "no longer: print"
    assert change_of("without_gradient", {"head.bias": 10}).detail == "head.bias gets none now (10)"


def test_a_figure_that_cannot_be_told_any_more_is_a_change_with_the_reason() -> None:
    figures = {key: value for key, value in FIGURES.items() if key != "flops"}
    head = Entry(place=MODEL, figures=figures, absent={"flops": "it depends on numbers"})
    base = make_lock(entry(MODEL, FIGURES), entry(RUN, RUN_FIGURES))
    (change,) = changed(base, make_lock(head, entry(RUN, RUN_FIGURES))).values()
    assert (change.base, change.head, change.detail) == (80, "unavailable", "unavailable: it depends on numbers")
    reworded = replace(head, absent={"flops": "other words"})
    assert not changed(make_lock(head, entry(RUN, RUN_FIGURES)), make_lock(reworded, entry(RUN, RUN_FIGURES)))


def test_a_model_that_fails_is_one_change_and_its_runs_none() -> None:
    for gone, words in (
        (True, "the model no longer exists: Unknown model"),
        (False, "cannot be built or run any more: Un"),
    ):
        head = make_lock(*(failed(place, "Unknown model", gone=gone) for place in (MODEL, RUN, OTHER)))
        ((name, change),) = changed(make_lock(), head).items()
        assert name == f"{MODEL.label}#status"
        assert words in change.detail
        assert change.verdict == "worse"


def test_a_model_that_works_again_is_a_change() -> None:
    head = make_lock(entry(MODEL, FIGURES), entry(RUN, RUN_FIGURES), entry(OTHER, FIGURES))
    (change,) = changed(make_lock(), head).values()
    assert (change.base, change.head) == ("failed", "ok")
    assert "the baseline says: no such operator" in change.detail


def test_under_another_minor_version_of_torch_only_the_rest_gates() -> None:
    few = {key: value for key, value in FIGURES.items() if key not in BOUND}
    fewer = {key: value for key, value in RUN_FIGURES.items() if key not in BOUND}
    head = make_lock(entry(MODEL, few, params=59), entry(RUN, fewer), failed(OTHER, "no such operator"), torch="2.16.1")
    found = changed(make_lock(), head)
    assert found[f"{MODEL.label}#params"].verdict == "worse"
    versions = [one for one in found.values() if one.verdict == "not comparable"]
    assert {one.metric for one in versions} == set(BOUND)
    assert not any(one.gates for one in versions)
    assert {(one.base, one.head) for one in versions} == {("torch 2.15", "torch 2.16")}
    assert not changed(make_lock(), make_lock(torch="2.15.9"))
    assert minor_version("2.15.0+cu130") == "2.15"


def test_every_metric_belongs_to_its_kind_of_entry() -> None:
    assert set(metrics_of(MODEL)) == set(FIGURES)
    assert set(metrics_of(RUN)) == set(RUN_FIGURES)
    assert set(metrics_of(MODEL, bound=False)) | set(metrics_of(RUN, bound=False)) == {*FIGURES, "output"} - set(BOUND)


# accepting


def two_changes() -> tuple[Lock, Lock, list[Change]]:
    base = make_lock(entry(MODEL, FIGURES), entry(RUN, RUN_FIGURES))
    head = make_lock(entry(MODEL, FIGURES, flops=90), entry(RUN, RUN_FIGURES, tensor_peak=6000, output="float32 8x11"))
    return base, head, compare_locks(base, head)


def test_an_accepted_cell_has_its_new_figures_and_the_rest_still_fails() -> None:
    base, head, changes = two_changes()
    rules = [parse_rule(f"{MODEL.label}: wider on purpose")]
    lock = accept(base, head, changes, rules, "2026-01-31")
    assert lock.entries[0].figures["flops"] == 90
    assert lock.entries[1] == base.entries[1]
    (entry_of,) = lock.accepted
    assert (entry_of.pattern, entry_of.reason, entry_of.date) == (MODEL.label, "wider on purpose", "2026-01-31")
    assert entry_of.changes == (f"{MODEL.label}: flops 80 -> 90",)
    assert exit_code(remaining(changes, rules)) == 1
    assert {one.metric for one in compare_locks(lock, head) if one.verdict == "worse"} == {"tensor_peak", "output"}


def test_a_pattern_may_be_of_cells_and_of_metrics() -> None:
    base, head, changes = two_changes()
    rules = [parse_rule("vit_small *#tensor_*: more memory"), parse_rule("*b8*#output: eleven classes")]
    lock = accept(base, head, changes, rules, "2026-01-31")
    assert lock.entries[1] == head.entries[1]
    assert lock.entries[0] == base.entries[0]
    assert [one.pattern for one in lock.accepted] == ["vit_small *#tensor_*", "*b8*#output"]
    everything = [parse_rule("*: all of it")]
    assert exit_code(remaining(changes, everything)) == 0
    assert accept(base, head, changes, everything, "2026-01-31").entries == head.entries


def test_earlier_acceptances_are_kept() -> None:
    base, head, changes = two_changes()
    once = accept(base, head, changes, [parse_rule("*#flops: first")], "2026-01-30")
    twice = accept(once, head, compare_locks(once, head), [parse_rule("*: second")], "2026-01-31")
    assert [(one.reason, one.date) for one in twice.accepted] == [("first", "2026-01-30"), ("second", "2026-01-31")]


def test_a_model_that_is_gone_takes_its_entries_along() -> None:
    base = make_lock()
    head = make_lock(*(failed(place, "Unknown model", gone=True) for place in (MODEL, RUN)), failed(OTHER, "no"))
    lock = accept(base, head, compare_locks(base, head), [parse_rule("vit_small *: dropped")], "2026-01-31")
    assert [one.place for one in lock.entries] == [OTHER]


def test_a_model_that_fails_may_be_accepted_as_failing() -> None:
    base = make_lock()
    head = make_lock(*(failed(place, "no operator") for place in (MODEL, RUN)), failed(OTHER, "no"))
    lock = accept(base, head, compare_locks(base, head), [parse_rule("vit_small *: waits")], "2026-01-31")
    assert [one.failed for one in lock.entries] == ["no such operator", "no operator", "no operator"]
    assert not changed(lock, head)


@pytest.mark.parametrize(
    "text", ["vit_small", "vit_small:", "vit_small: ", ": why", "module:pkg:f", "a#: why", "a: b\nc"]
)
def test_a_reason_is_required(text: str) -> None:
    with pytest.raises(UsageError, match="Option --accept"):
        parse_rule(text)


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("vit_smal *", f"matches no changed cell. Changed: {MODEL.label}, {RUN.label}"),
        ("*#params", "matches no changed cell"),
    ],
)
def test_a_pattern_that_matches_no_changed_cell_is_wrong_usage(pattern: str, words: str) -> None:
    base, head, changes = two_changes()
    with pytest.raises(UsageError) as caught:
        accept(base, head, changes, [parse_rule(f"{pattern}: why")], "2026-01-31")
    assert words in str(caught.value)


def test_a_second_pattern_for_the_same_change_is_wrong_usage() -> None:
    base, head, changes = two_changes()
    rules = [parse_rule("*: all"), parse_rule("*#flops: again")]
    with pytest.raises(UsageError, match="accepted already"):
        accept(base, head, changes, rules, "2026-01-31")
    with pytest.raises(UsageError, match="nothing has"):
        accept(base, base, compare_locks(base, base), rules, "2026-01-31")
