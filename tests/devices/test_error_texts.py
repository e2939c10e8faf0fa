"""What failures say and what it means: a corpus of texts as they were seen, and what must not be taken for one of them."""

from __future__ import annotations

import builtins
import errno
import os
import signal
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vitbench
from tests.launching import lending
from vitbench.core.errors import DataError, StorageError, Unsupported, UsageError, VitbenchError
from vitbench.core.records import STATUSES, Cell
from vitbench.devices import Failure, failures, open_device
from vitbench.devices.cuda import CudaDevice
from vitbench.devices.mps import MpsDevice
from vitbench.executors.conversation import classify_death, converse
from vitbench.executors.launcher import Launcher
from vitbench.executors.protocol import Measure
from vitbench.metrics.support.in_process import failure_of
from vitbench.models.tracebacks import model_places, with_places
from vitbench.runner import run as runner

ROOT = Path(__file__).parents[2]
ENTRIES: list[dict[str, Any]] = tomllib.loads((ROOT / "tests" / "data" / "error_texts.toml").read_text())["entry"]
DEVICES = ("cpu", "cuda", "mps")
#: Every cause that a text or a class can have.
CAUSES = {
    "oom": {"out_of_memory", "oom_single_buffer", "library_workspace"},
    "unsupported": {"unsupported_operator", "unsupported_dtype", "architecture", "compiler", "limit"},
    "error": {"driver", "device_lost", "disk_full", "compile", "exception", "exit"},
    "killed": {"crash", "device_lost", "tensor_too_large"},
}


def is_death(entry: dict[str, Any]) -> bool:
    return entry["exception"].startswith(("SIG", "exit "))


def error_of(entry: dict[str, Any]) -> Exception:
    """The exception as it comes: torch's own classes, and classes of the names of those that need not be installed."""
    import numpy as np

    name, text = entry["exception"], entry["text"].strip()
    if name == "numpy.ArrayMemoryError":
        error = np._core._exceptions._ArrayMemoryError((402653184,), np.dtype("float64"))
        assert str(error) == text
        return error
    if name == "OSError":
        return OSError(entry["errno"], text) if "errno" in entry else OSError(text)
    known = {
        "torch.OutOfMemoryError": torch.OutOfMemoryError,
        "torch.AcceleratorError": torch.AcceleratorError,
        "torch.linalg.LinAlgError": torch.linalg.LinAlgError,
        "torch.distributed.DistBackendError": torch.distributed.DistBackendError,
    }
    if name in known:
        return known[name](text)
    module, _, plain = name.rpartition(".")
    if not module:
        return getattr(builtins, name)(text)  # type: ignore[no-any-return]
    base = (
        RuntimeError if module.startswith("torch.") else Exception
    )  # as torch's are, and safetensors' and triton's are not
    return type(plain, (base,), {"__module__": module})(text)


def failure_of_entry(entry: dict[str, Any], device: str) -> Failure:
    if not is_death(entry):
        return open_device(device).classify(error_of(entry))
    name = entry["exception"]
    code = int(name.removeprefix("exit ")) if name.startswith("exit") else -int(getattr(signal, name))
    return classify_death(code, entry["text"].strip(), device, memory_evidence=False)[0]


def label(entry: dict[str, Any]) -> str:
    return f"{entry['device']}-{entry['exception']}-{' '.join(entry['text'].split())[:50]}"


@pytest.mark.parametrize("entry", ENTRIES, ids=label)
def test_every_text_of_the_corpus_has_its_status_and_cause(entry: dict[str, Any]) -> None:
    failure = failure_of_entry(entry, entry["device"])
    assert (failure.status, failure.cause) == (entry["status"], entry["cause"])
    assert failure.detail
    if not is_death(entry) and entry["text"]:
        assert entry["text"].strip() in failure.detail  # raw text is kept


@pytest.mark.parametrize("entry", [one for one in ENTRIES if one["device"] == "cpu"], ids=label)
def test_the_hosts_failures_mean_the_same_on_every_device(entry: dict[str, Any]) -> None:
    found = {(one.status, one.cause) for one in (failure_of_entry(entry, device) for device in DEVICES)}
    assert found == {(entry["status"], entry["cause"])}


def test_the_corpus_covers_each_device_and_each_cause() -> None:
    assert len(ENTRIES) >= 150
    assert min(Counter(entry["device"] for entry in ENTRIES).values()) >= 30
    found = {(entry["status"], entry["cause"]) for entry in ENTRIES}
    assert found == {(status, cause) for status, causes in CAUSES.items() for cause in causes}
    assert all(entry["source"] for entry in ENTRIES)
    assert len({(entry["device"], entry["exception"], entry["text"]) for entry in ENTRIES}) == len(ENTRIES)


def explained_by(entry: dict[str, Any]) -> Failure | None:
    """Like ``failure_of_entry``, and None where nothing is known: what is known to be unknown differs from that."""
    if is_death(entry):
        return failure_of_entry(entry, entry["device"])
    return open_device(entry["device"]).explain(error_of(entry))


def all_patterns() -> Iterator[tuple[str, str, int]]:
    for kind, table in (
        ("general", failures.GENERAL_ERROR_TEXTS),
        ("cuda", CudaDevice.error_texts),
        ("mps", MpsDevice.error_texts),
    ):
        yield from ((kind, pattern, number) for number, (pattern, _, _) in enumerate(table))


@pytest.mark.parametrize(("kind", "pattern", "number"), all_patterns(), ids=lambda value: str(value)[:40])
def test_every_pattern_is_needed(kind: str, pattern: str, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it something of the corpus would be taken for something else."""
    entries = [entry for entry in ENTRIES if kind in ("general", entry["device"])]
    before = [explained_by(entry) for entry in entries]
    place: Any = {"general": failures, "cuda": CudaDevice, "mps": MpsDevice}[kind]
    name = "GENERAL_ERROR_TEXTS" if kind == "general" else "error_texts"
    table = getattr(place, name)
    monkeypatch.setattr(place, name, (*table[:number], *table[number + 1 :]))
    assert [explained_by(entry) for entry in entries] != before


# what must not be taken for out of memory


class OfItsOwn(Exception):  # noqa: N818
    """A class that a model may define."""


MEMORY = [entry for entry in ENTRIES if entry["status"] == "oom" and entry["text"] and not is_death(entry)]


@pytest.mark.parametrize(
    "kind", [ValueError, KeyError, IndexError, AssertionError, AttributeError, TypeError, OfItsOwn]
)
def test_a_text_that_is_only_quoted_is_no_want_of_memory(kind: type[Exception]) -> None:
    for entry in MEMORY:
        for text in (entry["text"], f"cannot parse the log line {entry['text']!r}"):
            failure = open_device(entry["device"]).classify(kind(text))
            assert (failure.status, failure.cause) == ("error", "exception"), text


WORDS = st.sampled_from(
    [
        "out",
        "of",
        "memory",
        "CUDA",
        "MPS",
        "backend",
        "buffer",
        "size",
        "allocate",
        "cannot",
        "invalid",
        "Cannot",
        "HIP",
        "error:",
        "not",
        "enough",
        "12",
        "GiB",
        "GB",
        "failed",
    ]
)


@settings(max_examples=150, deadline=None)
@given(st.lists(WORDS, min_size=1, max_size=6).map(" ".join))
def test_the_words_of_the_known_texts_in_any_other_order_are_an_error(text: str) -> None:
    """Unless they happen to begin like a known text, which six words in the wrong order do not do: they lack its figures."""
    begins = ("mps backend out of memory", "cuda error: out of memory", "hip error: out of memory")
    for device in DEVICES:
        failure = open_device(device).classify(RuntimeError(text))
        if not any(one in text.lower() for one in begins):
            assert failure.status == "error", (device, text)


@pytest.mark.integration
@settings(max_examples=100, deadline=None)
@given(st.text(max_size=200), st.sampled_from([RuntimeError, ValueError, OSError, NotImplementedError, TypeError]))
def test_unknown_texts_are_errors_and_nothing_is_raised(text: str, kind: type[Exception]) -> None:
    for device in DEVICES:
        failure = open_device(device).classify(kind(text))
        assert (failure.status, failure.cause) == ("error", "exception")


def test_an_exception_without_a_text_is_an_error() -> None:
    class Mute(RuntimeError):  # noqa: N818
        def __str__(self) -> str:
            raise KeyError("no text")

    assert open_device("cpu").classify(Mute()) == Failure("error", "exception", "Mute: (its text is unavailable)")


def test_a_text_as_long_as_a_program_is_cut() -> None:
    failure = open_device("cpu").classify(RuntimeError("x" * 1_000_000))
    assert len(failure.detail) < 5000


# classes


def test_torchs_own_class_means_out_of_memory_whatever_its_text() -> None:
    for device in DEVICES:
        assert open_device(device).classify(torch.OutOfMemoryError("no room")).status == "oom"


@pytest.mark.parametrize(
    ("error", "status", "cause"),
    [
        (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), "oom", "out_of_memory"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "error", "disk_full"),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), "error", "disk_full"),
        (OSError(errno.ENOENT, os.strerror(errno.ENOENT), "weights.pt"), "error", "exception"),
        (StorageError("Cannot write records.jsonl"), "error", "disk_full"),
        (UsageError("No such size. Out of memory is not the reason"), "error", "usage"),
        (Unsupported("this device keeps its memory to itself"), "unsupported", "unsupported"),
        (
            VitbenchError("CUDA out of memory. Tried to allocate 2 GiB"),
            "error",
            "exception",
        ),  # ours, and not from a device
    ],
)
def test_some_classes_decide_without_their_text(error: Exception, status: str, cause: str) -> None:
    failure = open_device("cuda").classify(error)
    assert (failure.status, failure.cause) == (status, cause)


def raised_from(outer: Exception, inner: Exception) -> Exception:
    try:
        raise outer from inner
    except Exception as error:
        return error


def test_what_an_exception_was_raised_from_explains_it() -> None:
    full = raised_from(DataError("Cannot write the data set"), OSError(errno.ENOSPC, "No space left on device"))
    assert open_device("cpu").classify(full).cause == "disk_full"
    hidden = raised_from(
        ValueError("the block failed"), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
    )
    failure = open_device("cuda").classify(hidden)
    assert (failure.status, failure.cause) == ("oom", "out_of_memory")
    assert failure.detail == (
        "ValueError: the block failed (from OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB)"
    )


def test_what_merely_happened_before_an_exception_does_not_explain_it() -> None:
    with pytest.raises(ValueError, match="and then this") as caught:  # noqa: PT012
        try:
            raise MemoryError
        except MemoryError:
            raise ValueError("and then this")  # noqa: B904
    assert open_device("cpu").classify(caught.value).status == "error"


def test_exceptions_that_were_raised_from_each_other_in_a_circle_end() -> None:
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    assert open_device("cpu").classify(first).cause == "exception"


# deaths


@pytest.mark.parametrize(
    ("code", "status", "cause", "number"),
    [
        (-9, "killed", "probable_oom", 9),
        (137, "killed", "probable_oom", 9),  # the same through a shell
        (-11, "killed", "crash", 11),
        (139, "killed", "crash", 11),
        (-6, "killed", "crash", 6),
        (-15, "killed", "terminated", 15),
        (143, "killed", "terminated", 15),
        (-2, "killed", "terminated", 2),
        (1, "error", "exit", None),
        (7, "error", "exit", None),
        (128, "error", "exit", None),
        (255, "error", "exit", None),
        (0, "error", "exit", None),
        (None, "error", "exit", None),
        (0xC0000005, "killed", "crash", None),  # Windows: access violation
        (0xC0000017, "oom", "out_of_memory", None),  # no memory
        (0xC000012D, "oom", "out_of_memory", None),  # the commitment limit
    ],
)
def test_the_exit_of_a_worker_has_a_status(code: int | None, status: str, cause: str, number: int | None) -> None:
    failure, found = classify_death(code, "", "cpu", memory_evidence=False)
    assert (failure.status, failure.cause, found) == (status, cause, number)


def test_evidence_makes_a_sigkill_want_of_memory_and_nothing_else() -> None:
    found = {code: classify_death(code, "", "cpu", memory_evidence=True)[0].cause for code in (-9, 137, -11, 1)}
    assert found == {-9: "oom_kill", 137: "oom_kill", -11: "crash", 1: "exit"}


def test_the_traceback_of_an_earlier_failure_does_not_explain_a_crash() -> None:
    earlier = 'Traceback (most recent call last):\n  File "m.py", line 1, in forward\nMemoryError\nand then went on\n'
    assert classify_death(1, earlier, "cpu", memory_evidence=False)[0].cause == "exit"
    assert classify_death(-11, earlier + "Fatal Python error: Segmentation fault", "cpu", memory_evidence=False)[
        0
    ].cause == ("crash")


def test_the_end_of_stderr_is_in_the_detail() -> None:
    words = "terminate called after throwing an instance of 'c10::AcceleratorError'\n  what():  CUDA error: misaligned address"
    failure, _ = classify_death(-6, words, "cuda", memory_evidence=False)
    assert failure.detail == "the worker crashed with SIGABRT: AcceleratorError: CUDA error: misaligned address"


# whose mistake it is


def cell_of(model: str, **changes: Any) -> Cell:
    fields = {"image_size": (8, 8), "num_classes": 10, "batch_size": 1, "device": "cpu", "threads": 1, **changes}
    return Cell(model=model, **fields)


def test_places_go_to_the_end_of_the_first_line() -> None:
    assert with_places("ValueError: no\nmore", ("a.py:1 in f", "b.py:2 in g")) == (
        "ValueError: no (a.py:1 in f, called at b.py:2 in g)\nmore"
    )
    assert with_places("ValueError: no", ()) == "ValueError: no"


def test_an_error_outside_of_a_model_is_not_attributed_to_it() -> None:
    with pytest.raises(ValueError, match="here") as caught:
        raise ValueError("here")
    assert model_places(caught.value) == ()
    assert failure_of(caught.value, cell_of("vit_basic")) == Failure("error", "exception", "ValueError: here")


def test_an_error_in_our_own_hook_is_not_attributed_to_the_model() -> None:
    from vitbench.core.stats.intervals import estimate

    module = torch.nn.Linear(2, 2)
    module.register_forward_hook(lambda *_: estimate(None))  # type: ignore[arg-type]
    with pytest.raises(Exception) as caught:  # noqa: PT011
        module(torch.zeros(1, 2))
    assert model_places(caught.value) == ()


def test_a_bug_in_a_builtin_model_is_a_bug_of_that_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model = vitbench.build_model("vit_layer6_32", image_size=32, num_classes=10)
    with pytest.raises(Exception) as caught:  # noqa: PT011
        model(torch.zeros(1, 5, 32, 32))
    failure = failure_of(caught.value, cell_of("vit_layer6_32"))
    assert failure.cause == "model_bug"
    assert "vit.py" in failure.detail or "blocks.py" in failure.detail or ".py:" in failure.detail
    assert "/" not in failure.detail.split("(")[-1]


def test_known_texts_are_never_a_models_bug() -> None:
    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise self.error

    model = Model()
    for entry in ENTRIES:
        if is_death(entry) or (entry["status"], entry["cause"]) == ("error", "exception"):
            continue
        model.error = error_of(entry)  # type: ignore[assignment]
        with pytest.raises(type(model.error)) as caught:  # type: ignore[arg-type]
            model(torch.zeros(1))
        failure = failure_of(caught.value, cell_of("x", device=entry["device"]))
        assert (failure.status, failure.cause) == (entry["status"], entry["cause"])


@pytest.mark.parametrize("text", ["could not create a primitive", "CUDA error: invalid device ordinal", "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"])  # fmt: skip
def test_a_library_that_fails_without_a_reason_is_not_a_models_bug(text: str) -> None:
    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError(text)

    with pytest.raises(RuntimeError) as caught:
        Model()(torch.zeros(1))
    failure = failure_of(caught.value, cell_of("x", device="cuda"))
    assert (failure.status, failure.cause) == ("error", "exception")


# in real workers


def builders(*names: str) -> list[str]:
    return [f"module:tests.devices.device_models:{name}" for name in names]


@pytest.fixture(scope="module")
def server(fork_server: Launcher) -> Iterator[None]:
    with lending(fork_server), pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        yield


def run_of(folder: Path, models: list[str], **keys: Any) -> dict[str, Any]:
    summary = vitbench.run_suite(
        "smoke",
        models=models,
        image_sizes=[8],
        batch_sizes=[1],
        **{"modes": ["infer"], "metrics": ["memory"], **keys},
        threads=[1],
        measure={"processes": 1, "seconds": 0.05, "min_samples": 2},
        data="none",
        out=folder,
        allow_import=True,
    )
    return {record.cell.model.rpartition(":")[2]: record for record in summary.records}


@pytest.mark.integration
def test_a_lost_device_ends_its_worker_and_the_next_cell_starts_clean(
    server: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    works = "module:tests.failing_models:works"
    found = run_of(tmp_path / "run", [*builders("loses_the_device"), works, *builders("multiplies_wrong_shapes")])
    assert {name: (one.status, one.cause) for name, one in found.items()} == {
        "loses_the_device": ("error", "device_lost"),
        "works": ("ok", ""),
        "multiplies_wrong_shapes": ("error", "model_bug"),
    }
    assert found["loses_the_device"].detail.startswith("RuntimeError: CUDA error: an illegal memory access")
    assert "(linear.py:" in found["multiplies_wrong_shapes"].detail  # it has no line of its own


@pytest.mark.integration
def test_a_bug_in_a_models_backward_is_the_models(server: None, tmp_path: Path) -> None:
    found = run_of(tmp_path / "run", builders("fails_in_backward"), modes=["train"], exclude=[])
    record = found["fails_in_backward"]
    assert (record.status, record.cause) == ("error", "model_bug")
    assert record.detail.startswith("ZeroDivisionError: no gradient for this one (device_models.py:")
    assert "in backward" in record.detail


@pytest.mark.integration
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the workers of the other systems are slow to start")
@pytest.mark.parametrize(
    ("name", "cause", "ends"),
    [
        ("module:tests.devices.device_models:loses_the_device_when_built", "device_lost", True),
        ("module:tests.devices.device_models:runs_out_when_built", "out_of_memory", True),
        ("module:tests.failing_models:raises_when_built", "model_bug", False),
    ],
)
def test_a_counting_worker_continues_after_a_bug_and_ends_after_a_lost_device(
    server: None, name: str, cause: str, ends: bool
) -> None:
    launcher = runner.make_launcher(allow_import=True)
    worker = launcher.start()
    outcome = converse(worker, Measure(process="static", metrics=("params",), cell=cell_of(name)), timeout_s=60)
    assert outcome.failure is not None
    assert outcome.failure.cause == cause
    if ends:
        assert worker.wait(10) == 0  # although its input is still open
    else:
        again = converse(
            worker,
            Measure(process="static", metrics=("params",), cell=cell_of("vit_basic", image_size=(32, 32))),
            timeout_s=60,
        )
        assert again.failure is None
        assert worker.end() == 0


def test_every_status_of_the_corpus_is_one_that_records_know() -> None:
    assert {entry["status"] for entry in ENTRIES} <= set(STATUSES)
    assert asdict(Failure("oom", "out_of_memory", "x"))["status"] in STATUSES
