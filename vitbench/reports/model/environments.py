"""Where runs were measured, as a table: facts down, runs across, those that differ first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vitbench.reports.format import plain_text, without_paths
from vitbench.reports.model.runs import Run, machine_of
from vitbench.reports.model.tables import Column, Table, Value, text_value


def environment_table(runs: Sequence[Run]) -> Table | None:
    """What is known of each run's machine, programs and commands; None if nothing is. No host, user or folder."""
    known = [_facts_of(run) for run in runs]
    names = list(dict.fromkeys(name for facts in known for name in facts))
    differs = {name: len({facts.get(name) for facts in known}) > 1 for name in names}
    ordered = sorted(names, key=lambda name: not differs[name])
    lines = [
        (text_value(name), *(text_value(facts[name]) if name in facts else Value() for facts in known))
        for name in ordered
    ]
    columns = (Column(name="fact"), *(Column(name=run.name) for run in runs))
    return Table(columns, tuple(lines)) if lines else None


def _facts_of(run: Run) -> dict[str, str]:
    """By name; of several environments of one run all values."""
    environments = run.environment.get("environments") or {}
    devices = {record.cell.device for record in run.records}
    found: dict[str, dict[str, None]] = {}
    for name in dict.fromkeys(record.environment for record in run.records):
        for fact, value in _facts(environments.get(name) or {}, devices):
            found.setdefault(fact, {})[value] = None
    machine = machine_of(run)
    found["vitbench"] = dict.fromkeys(machine.versions)
    found["started"] = dict.fromkeys([min(record.started_at for record in run.records)] if run.records else [])
    found["command"] = dict.fromkeys(map(without_paths, machine.commands))
    return {fact: plain_text("; ".join(values), 1000) for fact, values in found.items() if values}


def _facts(environment: Mapping[str, Any], devices: set[str]) -> list[tuple[str, str]]:
    system, libraries = environment.get("system") or {}, environment.get("libraries") or {}
    described = environment.get("devices") or {}
    memory = [value for key in ("memory_bytes", "container_memory_bytes") if (value := system.get(key))]
    cores = f"{system.get('usable_cores')} of {system.get('logical_cores', '?')}" if system.get("usable_cores") else ""
    facts = {
        "CPU": system.get("cpu"),
        "usable cores": cores,
        "memory": f"{min(memory) / 1e9:.1f} GB" if memory else "",
        **{device: described[device].get("name") for device in sorted(devices - {"cpu"}) if device in described},
        "system": system.get("os"),
        "Python": system.get("python"),
        **(libraries.get("versions") or {}),
    }
    return [(name, str(value)) for name, value in facts.items() if value]
