"""Predicted against measured peaks of tensor bytes, and ``fit``'s answers against direct traces, over many models.

``python -m benchmarks.predicted_memory --kept FILE [--out PAGE] [--dtypes fp32,amp] [MODEL ...]``: every model of ours
and sixty of timm and torchvision, inference and training at three batches, each model in a fresh process (Linux). What
is in FILE is not run again, so that a stopped run continues. Prints a page of Markdown.

Predicted: by arithmetic from two traces on fake tensors. Measured: the account of a real call. Both are tensor bytes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

BATCHES = (1, 2, 5)
#: What ``fit`` is asked: whether this much memory is enough, and for how many images.
MEMORY = 4 * 2**30
TIMEOUT_S = 1200

TIMM = """
vit_tiny_patch16_224 vit_small_patch32_224 vit_base_patch32_224 vit_relpos_small_patch16_224 flexivit_small
deit_tiny_patch16_224 deit_small_distilled_patch16_224 deit3_small_patch16_224 beit_base_patch16_224
eva02_tiny_patch14_224 cait_xxs24_224 xcit_tiny_12_p16_224 convit_tiny crossvit_tiny_240 pit_ti_224 pit_s_224
tnt_s_legacy_patch16_224 swin_tiny_patch4_window7_224 swinv2_cr_tiny_ns_224 swin_s3_tiny_224 pvt_v2_b0
pvt_v2_b1 twins_pcpvt_small twins_svt_small coat_lite_tiny coat_tiny levit_128s visformer_tiny mobilevit_xxs
mobilevit_s mobilevitv2_050 edgenext_xx_small efficientformer_l1 efficientformerv2_s0 efficientvit_b0
efficientvit_m0 tiny_vit_5m_224 fastvit_t8 repvit_m0_9 poolformer_s12 caformer_s18 coatnet_nano_rw_224
maxvit_rmlp_nano_rw_256 gcvit_xxtiny davit_tiny nest_tiny mvitv2_tiny hiera_tiny_224 mixer_s32_224
resmlp_12_224 convnext_atto resnet18
"""
TORCHVISION = "vit_b_32 swin_t swin_v2_t maxvit_t convnext_tiny efficientnet_b0 mobilenet_v3_small resnet50"


def main() -> None:
    """Run what is missing in the file, and print the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*")
    parser.add_argument("--kept", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--dtypes", default="fp32,amp")
    asked = parser.parse_args()
    rows = [json.loads(line) for line in asked.kept.read_text().splitlines()] if asked.kept.exists() else []
    known = {row["model"] for row in rows}
    for name in asked.models or all_models():
        if name not in known:
            begin = time.perf_counter()
            found = in_fresh_process(name, asked.dtypes.split(","))
            rows += found
            with asked.kept.open("a") as file:
                file.writelines(json.dumps(row) + "\n" for row in found)
            print(f"{name}: {time.perf_counter() - begin:.0f} s", file=sys.stderr, flush=True)
    page = "\n".join(page_of(rows))
    print(page)
    if asked.out:
        asked.out.write_text(page + "\n")


def all_models() -> list[str]:
    """The models of ours, of timm and of torchvision."""
    from vitbench.models.cards import model_registry

    of_timm, of_torchvision = TIMM.split(), TORCHVISION.split()
    return [*model_registry(), *(f"timm:{one}" for one in of_timm), *(f"torchvision:{one}" for one in of_torchvision)]


def in_fresh_process(name: str, dtypes: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of a model, measured in a process forked from this one, which has the libraries loaded."""
    import timm
    import torch
    import torchvision  # noqa: F401

    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=lambda: sender.send(rows_of(name, dtypes)))
    child.start()
    sender.close()
    try:
        rows: list[dict[str, Any]] = receiver.recv() if receiver.poll(TIMEOUT_S) else []
    except EOFError:
        rows = []
    child.kill()
    child.join()
    facts = {"model": name, "torch": torch.__version__, "timm": timm.__version__}
    return [facts | row for row in rows or [{"failed": f"no answer; exit code {child.exitcode}"}]]


def rows_of(name: str, dtypes: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each mode and dtype: bytes by batch, predicted and measured, and what ``fit`` answers."""
    from dataclasses import replace

    from vitbench.analysis.model_summary import open_subject
    from vitbench.core.errors import Unsupported
    from vitbench.metrics.support.in_process import subject_of
    from vitbench.metrics.support.memory_trace import BatchTrace
    from vitbench.metrics.support.tensor_memory import follow_call
    from vitbench.models import describe_model

    card = describe_model(name)
    base = open_subject(name, card.image_size, card.num_classes)
    rows = []
    for mode in ("infer", "train"):
        for dtype in dtypes:
            cell = replace(base.cell, mode=mode, dtype=dtype)
            row: dict[str, Any] = {"mode": mode, "dtype": dtype}
            rows.append(row)
            try:
                trace = BatchTrace(subject_of(cell, base.build))
                largest = trace.largest(MEMORY)
                direct = [trace.direct(batch).bytes if batch else 0 for batch in (largest, largest + 1)]
            except Unsupported as reason:
                row["unsupported"] = str(reason)
                continue
            row["fit"] = {"memory": MEMORY, "largest": largest, "direct": direct}
            row["bytes"] = {}
            for batch in BATCHES:
                subject = subject_of(replace(cell, batch_size=batch), base.build)
                try:
                    subject.warm_up()
                    measured = sum(follow_call(subject).peak().values())
                except (RuntimeError, ValueError, Unsupported) as error:  # batch norm refuses one image in training
                    row.setdefault("not_measured", {})[str(batch)] = str(error).splitlines()[0]
                else:
                    row["bytes"][str(batch)] = [trace.peak(batch).bytes, measured]
                subject.close()
                del subject
    return rows


def page_of(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The distribution of predicted over measured, what differs, what no trace tells, and ``fit``'s answers."""
    facts = next(row for row in rows)
    lines = [
        f"Peaks of {len({row['model'] for row in rows})} models at {', '.join(map(str, BATCHES))} images "
        f"(torch {facts['torch']}, timm {facts['timm']}): bytes of tensors, predicted over measured.",
        "",
        "| mode | dtype | peaks | equal to the byte | within 0.2 % | smallest | median | largest |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    keys = sorted({(row["mode"], row["dtype"]) for row in rows if "mode" in row})
    for mode, dtype in keys:
        pairs = [pair for row in rows if (row.get("mode"), row.get("dtype")) == (mode, dtype) for pair in peaks_of(row)]
        if pairs:
            lines.append(f"| {mode} | {dtype} | {' | '.join(distribution(pairs))} |")
    different = [
        f"| {row['model']} | {row['mode']} | {row['dtype']} | {batch} | {predicted:,} | {measured:,} "
        f"| {100 * (predicted / measured - 1):+.4f} % |"
        for row in rows
        for batch, (predicted, measured) in row.get("bytes", {}).items()
        if predicted != measured
    ]
    if different:
        lines += ["", "| not equal | mode | dtype | images | predicted | measured | |", "|---|---|---|--:|--:|--:|--:|"]
        lines += different
    asked = [row["fit"] for row in rows if "fit" in row]
    right = sum(one["direct"][0] <= one["memory"] < one["direct"][1] for one in asked)
    asked_for = f"`fit` for {MEMORY / 2**30:.0f} GiB: of {len(asked)} answers, {right}"
    lines += ["", f"{asked_for} fit in a direct trace while one image more does not."]
    for row in rows:
        for key in ("unsupported", "failed"):
            if key in row:
                lines.append(f"- {row['model']} {row.get('mode', '')} {row.get('dtype', '')}: {key}, {row[key]}")
    missing = sum(len(row.get("not_measured", ())) for row in rows)
    return lines + ([f"- {missing} peaks were not measured: torch refuses the batch."] if missing else [])


def peaks_of(row: dict[str, Any]) -> Iterable[tuple[int, int]]:
    """Predicted and measured bytes."""
    return [(predicted, measured) for predicted, measured in row.get("bytes", {}).values()]


def distribution(pairs: Sequence[tuple[int, int]]) -> list[str]:
    """Cells of the table."""
    ratios = [predicted / measured for predicted, measured in pairs]
    equal = sum(predicted == measured for predicted, measured in pairs)
    near = sum(abs(ratio - 1) <= 0.002 for ratio in ratios)
    shown = (min(ratios), statistics.median(ratios), max(ratios))
    return [str(len(pairs)), str(equal), str(near), *(f"{ratio:.5f}" for ratio in shown)]


if __name__ == "__main__":
    main()
