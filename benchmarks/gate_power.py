"""False alarms and detections of ``vitbench ab`` on this machine, beside those of common gates.

Three steps, each of which can be interrupted and resumed, into one folder::

    python benchmarks/gate_power.py record FOLDER --pairs 320   # real pairs, half of them beside a busy neighbour
    python benchmarks/gate_power.py live FOLDER --runs 20       # whole runs of vitbench ab in a git repository
    python benchmarks/gate_power.py table FOLDER                # gate_power.md from what is there

Every recorded pair has five processes that take turns: base, its control, a head of the same code, and heads whose
forward pass has real work added, calibrated to 5 and 10 % of its CPU time. A draw is a contiguous sequence of pairs,
which the rule of ``vitbench ab`` judges like a run. Nothing else should run on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import math
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vitbench.regression.ab.cells import choose_cells, choose_suite
from vitbench.regression.ab.pairs import BASE, CLOCKS, CONTROL, HEAD, Pair, measure_pair
from vitbench.regression.ab.processes import Side
from vitbench.regression.ab.sequential import LOOKS, Rule, is_decided, weigh
from vitbench.regression.ab.worktrees import State

MODEL = "module:guarded:build"
#: What is added to the forward pass, by arm.
ARMS = {HEAD: 0.0, "slow5": 0.05, "slow10": 0.10}
ROUNDS = 60
DRAWS = 2000
BLOCK = 40
MARGIN = Rule().margin
NEIGHBOUR = """
import torch
torch.set_num_threads(1)
layers, x = torch.nn.Sequential(*[torch.nn.Linear(512, 512) for _ in range(8)]), torch.randn(64, 512)
while True:
    layers(x)
"""
#: The model, with ``columns`` more columns of a matrix product over its input: real work, of the kind that it does.
SOURCE = """
import torch
from vitbench.models import build_model


class Guarded(torch.nn.Module):
    def __init__(self, columns, **size):
        super().__init__()
        self.model = build_model("vit_layer6_32", **size)
        self.more = torch.nn.Parameter(torch.randn(512, columns)) if columns else None
        self.rows = torch.nn.Parameter(torch.randn(65, 512)) if columns else None

    def forward(self, images):
        if self.more is not None:
            self.rows @ self.more
        return self.model(images)


def build(*, image_size, num_classes):
    return Guarded({columns}, image_size=image_size, num_classes=num_classes)
"""
#: Widths that the work is calibrated with, and in how many pairs: near those that it comes to, since what a product
#: costs is no straight line in its width.
TRIED = {"few": 130, "many": 320}
CALIBRATION_PAIRS = 32


def main() -> None:
    """Carry out one step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    for name in ("record", "live", "table"):
        step = steps.add_parser(name)
        step.add_argument("folder", type=Path)
        step.add_argument("--pairs", type=int, default=320)
        step.add_argument("--runs", type=int, default=20)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # through all that has to be cleaned up: the neighbour goes
    if given.step == "record":
        record(given.folder, given.pairs)
    elif given.step == "live":
        run_live(given.folder, given.runs)
    else:
        text = table(given.folder)
        (given.folder / "gate_power.md").write_text(text, encoding="utf-8")
        print(text)


def widths(folder: Path) -> dict[str, int]:
    """How many columns each arm adds: calibrated once, by pairs as they are recorded later, and kept."""
    path = folder / "calibration.json"
    if not path.is_file():
        with processes_of({HEAD: 0, **TRIED}) as (sides, fields):
            shuffle = random.Random(0)
            pairs = [
                measure_pair(sides, fields, name="", number=number, shuffle=shuffle, rounds=ROUNDS)[0]
                for number in range(1, CALIBRATION_PAIRS + 1)
            ]
        found = {
            arm: math.expm1(statistics.median(known(pair, "cpu", arm, (BASE, CONTROL, HEAD)) for pair in pairs))
            for arm in TRIED
        }
        # a line in the number of columns, above what the added call costs by itself
        slope = (found["many"] - found["few"]) / (TRIED["many"] - TRIED["few"])
        start = found["few"] - slope * TRIED["few"]
        chosen = {arm: max(round((share - start) / slope), 1) if share else 0 for arm, share in ARMS.items()}
        kept = {"columns": chosen, "tried": TRIED, "found": found, "pairs": CALIBRATION_PAIRS}
        path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
        print(json.dumps(kept), flush=True)
    return dict(json.loads(path.read_text(encoding="utf-8"))["columns"])


@contextlib.contextmanager
def processes_of(columns: dict[str, int]) -> Iterator[tuple[dict[str, Side], dict[str, Any]]]:
    """A side for each arm, base and control included, whose model has so many columns more; and the cell's fields."""
    suite = choose_suite(None, {"models": [MODEL], "image_sizes": [32], "num_classes": 10})
    (cell,) = choose_cells(suite, allow_import=True)
    fields = dict(vars(cell))
    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as stack:
        sides = {}
        for arm, count in {BASE: 0, **columns}.items():
            root = Path(place) / arm
            root.mkdir()
            (root / "guarded.py").write_text(SOURCE.format(columns=count), encoding="utf-8")
            sides[arm] = stack.enter_context(Side(State(arm, arm, "", False, root, Path(sys.executable))))
        yield {**sides, CONTROL: sides[BASE]}, fields


@contextlib.contextmanager
def neighbour(wanted: bool) -> Iterator[None]:
    """A process beside that keeps one core busy, if it is wanted."""
    if not wanted:
        yield
        return
    with subprocess.Popen([sys.executable, "-c", NEIGHBOUR]) as process:
        try:
            yield
        finally:
            process.kill()


def record(folder: Path, pairs: int) -> None:
    """Add pairs to ``pairs.jsonl`` until there are so many, in blocks: quiet, beside a neighbour, and so on."""
    columns = widths(folder)
    path = folder / "pairs.jsonl"
    done = len(path.read_text(encoding="utf-8").splitlines()) if path.is_file() else 0
    shuffle = random.Random(done)
    with processes_of(columns) as (sides, fields), path.open("a", encoding="utf-8") as file:
        while done < pairs:
            busy = done // BLOCK % 2 == 1
            with neighbour(busy):
                for number in range(done + 1, min(done - done % BLOCK + BLOCK, pairs) + 1):
                    name = "busy" if busy else "quiet"
                    begin = time.perf_counter()
                    pair, _ = measure_pair(sides, fields, name=name, number=number, shuffle=shuffle, rounds=ROUNDS)
                    file.write(pair.to_json() + "\n")
                    file.flush()
                    done = number
                    print(f"{done}/{pairs} {name} {time.perf_counter() - begin:.1f} s", flush=True)


def run_live(folder: Path, runs: int) -> None:
    """Whole runs of the command in a repository whose base is the plain model, with the exit code and the time of each:
    the same code and 5 % more work by turns, every second pair of runs beside a neighbour.
    """
    columns = widths(folder)
    path = folder / "live.csv"
    with tempfile.TemporaryDirectory() as place:
        repository = Path(place)

        def git(*arguments: str) -> None:
            who = ["-c", "user.name=gate", "-c", "user.email=gate@example.invalid"]
            subprocess.run(["git", *who, *arguments], cwd=repository, check=True, capture_output=True)

        git("init", "--quiet")
        for name in (BASE, "same", "slow5"):
            text = SOURCE.format(columns=columns["slow5"] if name == "slow5" else 0)
            (repository / "guarded.py").write_text(f"# {name}\n{text}", encoding="utf-8")
            git("add", "guarded.py")
            git("commit", "--quiet", "--message", name)
            git("tag", f"state-{name}")
        for number in range(runs):
            arm, busy = ("same", "slow5")[number % 2], number // 2 % 2 == 1
            command = [sys.executable, "-m", "vitbench", "ab", "--base", f"state-{BASE}", "--head", f"state-{arm}"]
            command += ["--models", MODEL, "--image-sizes", "32", "--num-classes", "10", "--allow-import"]
            command += ["--seed", str(number), "--out", str(repository / f"run-{number}")]
            with neighbour(busy):
                begin = time.perf_counter()
                done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
                seconds = time.perf_counter() - begin
            count = len((repository / f"run-{number}" / "pairs.jsonl").read_text(encoding="utf-8").splitlines())
            unclear = "inconclusive. Give" in done.stderr
            said = {0: "inconclusive" if unclear else "same", 1: "worse"}.get(done.returncode, "?")
            row = [arm, "busy" if busy else "quiet", done.returncode, said, count, round(seconds, 1)]
            with path.open("a", encoding="utf-8", newline="") as file:
                csv.writer(file).writerow(row)
            print(*row, flush=True)


def judge(differences: Mapping[str, Sequence[float]], rule: Rule) -> tuple[str, int]:
    """What a run whose pairs come in this order says, and after how many of them. ``differences`` by clock."""
    there = len(differences["cpu"])
    for look in rule.looks:
        if look > there:
            return "open", there
        cpu, wall = (weigh(differences[clock][:look], rule, tests=len(CLOCKS)) for clock in ("cpu", "wall"))
        if is_decided(cpu, [wall], rule, tests=len(CLOCKS)):
            return "worse" if min(cpu.slower, wall.slower) <= rule.alpha / len(CLOCKS) else "same", look
    return "inconclusive", rule.looks[-1]


def clopper_pearson(count: int, total: int, *, upper: bool) -> float:
    """The one-sided 95 % limit of a share (Clopper and Pearson 1934)."""
    from scipy.special import betaincinv

    if upper:
        return 1.0 if count == total else float(betaincinv(count + 1, total - count, 0.95))
    return 0.0 if count == 0 else float(betaincinv(count, total - count + 1, 0.05))


def table(folder: Path) -> str:
    """``gate_power.md``."""
    pairs = [Pair.from_json(line) for line in (folder / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    kinds = sorted({pair.cell for pair in pairs}, reverse=True)
    lines = [
        "# False alarms and power of the timing gate",
        "",
        f"{len(pairs)} recorded pairs of vit_layer6_32 (32 px, batch 1, one thread), of them "
        f"{sum(pair.cell == 'busy' for pair in pairs)} beside a process that keeps a core busy. A draw is a contiguous "
        f"stretch of up to {LOOKS[-1]} pairs of one kind (from the last on to the first), judged as a run would. "
        "Limits are one-sided, 95 %, as if draws were independent; they overlap. *In a row*: runs one after the other, "
        "each on the pairs that the run before left, so that no two share any: how many said worse. *At the margin*: "
        f"the differences of the same code with log {1 + MARGIN:g} added, where a false alarm is likeliest.",
        "",
        "| machine | head | recorded pairs | head over base (CPU, wall) | spread of a pair | draws | worse | limit "
        "| same | pairs, median | worse in a row |",
        "|:--|:--|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    generator = random.Random(0)
    arms = sorted({arm for pair in pairs for arm in pair.cpu} - {BASE, CONTROL, HEAD}, key=_percentage)
    for arm in (HEAD, *arms):
        for kind in (*kinds, "all"):
            parts = [[p for p in pairs if p.cell == one and arm in p.cpu] for one in kinds if kind in (one, "all")]
            parts = [part for part in parts if len(part) >= LOOKS[-1]]
            if parts and (kind != "all" or len(parts) > 1):
                lines.append(row(kind, arm, parts, generator))
                if arm == HEAD:
                    lines.append(row(kind, arm, parts, generator, added=math.log1p(MARGIN)))
    lines += ["", *others_table(pairs), "", *live_table(folder)]
    return "\n".join(lines) + "\n"


def row(kind: str, arm: str, parts: list[list[Pair]], generator: random.Random, *, added: float = 0.0) -> str:
    """What draws from ``parts`` come to, for one head; ``added`` to each of its differences."""
    # the three processes of the same code can each be the head
    roles = [(HEAD, (BASE, CONTROL)), (BASE, (HEAD, CONTROL)), (CONTROL, (BASE, HEAD))]
    said = []
    for _ in range(DRAWS):
        part = generator.choices(parts, [len(one) for one in parts])[0]
        own, others = generator.choice(roles) if arm == HEAD else (arm, (BASE, CONTROL))
        start = generator.randrange(len(part))
        drawn = [part[(start + number) % len(part)] for number in range(LOOKS[-1])]
        said.append(judge(differences_of(drawn, own, others, added), Rule()))
    in_row = [verdict for part in parts for verdict in judge_in_a_row(part, arm, added)]
    differences = differences_of([pair for part in parts for pair in part], arm, (BASE, CONTROL), added)
    medians = (statistics.median(differences[clock]) for clock in ("cpu", "wall"))
    effect = ", ".join(f"{100 * math.expm1(value):+.1f} %" for value in medians)
    worse, same = (sum(verdict == one for verdict, _ in said) for one in ("worse", "same"))
    limit = clopper_pearson(worse, len(said), upper=arm == HEAD)
    name = "work added" if arm != HEAD else "at the margin" if added else "the same code"
    cells = [
        kind, name, str(sum(map(len, parts))), effect, f"{100 * statistics.stdev(differences['cpu']):.1f} %",
        str(len(said)), f"{100 * worse / len(said):.1f} %", f"{'≤' if arm == HEAD else '≥'} {100 * limit:.1f} %",
        f"{100 * same / len(said):.1f} %", f"{statistics.median(count for _, count in said):g}",
        f"{sum(verdict == 'worse' for verdict in in_row)} of {len(in_row)}",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def differences_of(pairs: Sequence[Pair], own: str, others: Sequence[str], added: float) -> dict[str, list[float]]:
    """Each pair's difference, by clock, with ``added`` to it."""
    return {clock: [known(pair, clock, own, others) + added for pair in pairs] for clock in CLOCKS}


def judge_in_a_row(pairs: Sequence[Pair], arm: str, added: float) -> list[str]:
    """The verdicts of one run after the other, each of which begins with the pair after the last that was looked at,
    until the pairs that are left do not suffice for one.
    """
    found: list[str] = []
    start = 0
    while True:
        verdict, looked = judge(differences_of(pairs[start:], arm, (BASE, CONTROL), added), Rule())
        if verdict == "open":
            return found
        found.append(verdict)
        start += looked


def _percentage(arm: str) -> int:
    return int("".join(sign for sign in arm if sign.isdigit()) or 0)


def known(pair: Pair, clock: str, own: str, others: Sequence[str]) -> float:
    """The pair's difference; clocks here see every call."""
    found = pair.difference(clock, own, others)
    assert found is not None
    return found


def others_table(pairs: Sequence[Pair]) -> list[str]:
    """What gates that others use say of the same processes: base from some pairs, head from those that came next."""
    arms = sorted({arm for pair in pairs for arm in pair.cpu} - {BASE, CONTROL, HEAD}, key=_percentage)

    def in_order(
        arm: str, size: int, value: Callable[[Sequence[float]], float]
    ) -> list[tuple[list[float], list[float]]]:
        some = [pair for pair in pairs if arm in pair.wall]
        base, head = ([value(pair.wall[role]) for pair in some] for role in (BASE, arm))
        return [
            (base[i : i + size], head[i + size : i + 2 * size])
            for i in range(len(some) - 2 * size + 1)
            if some[i].cell == some[i + 2 * size - 1].cell
        ]

    def t_test(base: Sequence[float], head: Sequence[float]) -> bool:
        from scipy.stats import ttest_ind

        return bool(ttest_ind(head, base, equal_var=False, alternative="greater").pvalue < 0.05)

    rules: dict[str, tuple[int, Callable[[Sequence[float]], float], Callable[..., bool]]] = {
        "pytest-benchmark, mean:5% (one process each)": (
            1,
            statistics.fmean,
            lambda base, head: head[0] > 1.05 * base[0],
        ),
        "medians of 5 processes differ by 7 % (two-sided)": (
            5,
            statistics.median,
            lambda base, head: abs(statistics.median(head) / statistics.median(base) - 1) > 0.07,
        ),
        "t test at 5 %, 10 processes, one after the other": (10, statistics.median, t_test),
    }
    effects = {
        arm: math.expm1(statistics.median(known(p, "cpu", arm, (BASE, CONTROL)) for p in pairs if arm in p.cpu))
        for arm in arms
    }
    found = [f"finds {100 * effect:.0f} %" for effect in effects.values()]
    lines = [
        f"| other gates, the same processes | alarms, same code | {' | '.join(found)} |",
        "|:--|--:|" + "--:|" * len(arms),
    ]
    for name, (size, value, alarms) in rules.items():
        shares = [
            statistics.fmean(alarms(base, head) for base, head in in_order(arm, size, value)) for arm in (HEAD, *arms)
        ]
        lines.append(f"| {name} | {' | '.join(f'{100 * share:.0f} %' for share in shares)} |")
    return lines


def live_table(folder: Path) -> list[str]:
    """Whole runs."""
    path = folder / "live.csv"
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    lines = [
        f"{len(rows)} whole runs of `vitbench ab`, from the command to its exit:",
        "",
        "| code | machine | runs | worse | same | inconclusive | pairs, median | seconds, median (longest) |",
        "|:--|:--|--:|--:|--:|--:|--:|--:|",
    ]
    for arm, kind in sorted({(row[0], row[1]) for row in rows}):
        some = [row for row in rows if (row[0], row[1]) == (arm, kind)]
        counts = [sum(row[3] == verdict for row in some) for verdict in ("worse", "same", "inconclusive")]
        seconds = [float(row[5]) for row in some]
        lines.append(
            f"| {arm} | {kind} | {len(some)} | {' | '.join(map(str, counts))} "
            f"| {statistics.median(int(row[4]) for row in some):g} "
            f"| {statistics.median(seconds):.0f} ({max(seconds):.0f}) |"
        )
    every = [float(row[5]) for row in rows]
    lines += ["", f"Median time to a verdict over all of them: {statistics.median(every):.0f} s."]
    return lines


if __name__ == "__main__":
    main()
