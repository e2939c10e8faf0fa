"""Where runs were measured, as a table: facts down, runs across, those that differ first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vitbench.reports.format import plain_text, without_paths
from vitbench.reports.model.runs import Run, as_mapping
from vitbench.reports.model.tables import Column, Table, Value, text_value


def environment_table(runs: Sequence[Run]) -> Table | None:
    """What is known of each run's machine, programs and commands; None if nothing is. No host, user or folder."""
    known = [facts_of(run) for run in runs]
    names = list(dict.fromkeys(name for facts in known for name in facts))
    differs = {name: len({facts.get(name) for facts in known}) > 1 for name in names}
    ordered = sorted(names, key=lambda name: not differs[name])
    lines = [
        (text_value(name), *(text_value(facts[name]) if name in facts else Value() for facts in known))
        for name in ordered
    ]
    columns = (Column(name="fact"), *(Column(name=run.name) for run in runs))
    return Table(columns, tuple(lines)) if lines else None


def facts_of(run: Run) -> dict[str, str]:
    """What is known, by name; of several environments or sessions all values."""
    environments = as_mapping(run.environment.get("environments"))
    sessions = [as_mapping(session) for session in run.environment.get("sessions") or []]
    devices = {record.cell.device for record in run.records}
    facts = [
        fact
        for name in dict.fromkeys(record.environment for record in run.records)
        for fact in _facts(as_mapping(environments.get(name)), devices)
    ]
    facts += [("vitbench", _version(session)) for session in sessions]
    facts += [("started", min(record.started_at for record in run.records))] if run.records else []
    facts += [("command", without_paths(str(session.get("command_line") or ""))) for session in sessions]
    found: dict[str, dict[str, None]] = {}
    for name, value in facts:
        if value:
            found.setdefault(name, {})[value] = None
    return {name: plain_text("; ".join(values), 1000) for name, values in found.items()}


def machine_text(run: Run) -> str:
    """``AMD EPYC, 2 of 2 cores, torch 2.14.1``: processor, cores, devices and torch; empty if nothing is known."""
    facts = facts_of(run)
    devices = sorted({record.cell.device for record in run.records} - {"cpu"})
    words = {"CPU": "{}", "usable cores": "{} cores", **dict.fromkeys(devices, "{}"), "torch": "torch {}"}
    return ", ".join(text.replace("{}", facts[name]) for name, text in words.items() if name in facts)


def _facts(environment: Mapping[str, Any], devices: set[str]) -> list[tuple[str, str]]:
    system, libraries = as_mapping(environment.get("system")), as_mapping(environment.get("libraries"))
    described = as_mapping(environment.get("devices"))
    memory = [value for key in ("memory_bytes", "container_memory_bytes") if (value := system.get(key))]
    cores = f"{system['usable_cores']} of {system.get('logical_cores', '?')}" if system.get("usable_cores") else ""
    facts = {
        "CPU": system.get("cpu"),
        "usable cores": cores,
        "memory": f"{min(memory) / 1e9:.1f} GB" if memory else "",
        **{device: _device(as_mapping(described.get(device))) for device in sorted(devices - {"cpu"})},
        "system": system.get("os"),
        "Python": system.get("python"),
        **as_mapping(libraries.get("versions")),
        "build of torch": "debug" if libraries.get("debug_build") else "",
    }
    return [(name, str(value)) for name, value in facts.items() if value]


def _device(facts: Mapping[str, Any]) -> str:
    """``NVIDIA H200 (150.1 GB)``."""
    memory = facts.get("memory_bytes")
    return str(facts.get("name") or "") + (f" ({memory / 1e9:.1f} GB)" if facts.get("name") and memory else "")


def _version(session: Mapping[str, Any]) -> str:
    """``0.1.0 (commit 0123456789)``."""
    version, commit = str(session.get("vitbench") or ""), str(session.get("commit") or "")
    changes = "+changes" if "+changes" in commit else ""
    return f"{version} (commit {commit[:10]}{changes})" if version and commit else version
