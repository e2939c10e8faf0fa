"""Where a run was measured, in words: processor, memory, system, versions, commit."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from vitbench.core.text import one_line
from vitbench.reports.format import cell_text, without_paths
from vitbench.reports.model.runs import Run

_LIBRARIES = ("torch", "torchvision", "timm", "fvcore", "thop")


def machine_lines(run: Run) -> list[str]:
    """What is known of the places where ``run`` was measured and of the commands that measured it; [] if nothing is.

    Only environments that a record names count. Host, user and folder names are never among them.
    """
    environments = _mapping(run.environment.get("environments"))
    named = list(dict.fromkeys(record.environment for record in run.records))
    devices = {record.cell.device for record in run.records}
    known = [_mapping(environments[name]) for name in named if name in environments]
    lines = [text for environment in known if (text := _environment(environment, devices))]
    sessions = [_mapping(session) for session in run.environment.get("sessions") or []]
    versions = dict.fromkeys(text for session in sessions if (text := _version(session)))
    commands = dict.fromkeys(str(session["command_line"]) for session in sessions if session.get("command_line"))
    lines += [cell_text(", ".join(versions))] if versions else []
    return lines + [f"by `{_as_code(command)}`" for command in commands]


def _as_code(command: str) -> str:
    """A command as it stands between backticks, where nothing is escaped: on one line, without a backtick."""
    return one_line(without_paths(command), 1000).replace("`", "'")


def _environment(environment: Mapping[str, Any], devices: Collection[str]) -> str:
    system = _mapping(environment.get("system"))
    libraries = _mapping(environment.get("libraries"))
    versions = _mapping(libraries.get("versions"))
    parts = [str(system["cpu"])] if system.get("cpu") else []
    if system.get("usable_cores"):
        parts.append(f"{system['usable_cores']} usable of {system.get('logical_cores', '?')} logical cores")
    memory = [value for key in ("memory_bytes", "container_memory_bytes") if (value := system.get(key))]
    if memory:
        parts.append(f"{min(memory) / 1e9:.1f} GB of memory")
    facts = _mapping(environment.get("devices"))
    parts += [_device(name, _mapping(facts[name])) for name in sorted(devices) if name in facts]
    parts += [str(system["os"])] if system.get("os") else []
    parts += [f"Python {system['python']}"] if system.get("python") else []
    parts += [f"{name} {versions[name]}" for name in _LIBRARIES if versions.get(name)]
    parts += ["a debug build of torch"] if libraries.get("debug_build") else []
    return ("on " + cell_text(", ".join(part for part in parts if part), limit=1000)) if parts else ""


def _device(name: str, facts: Mapping[str, Any]) -> str:
    """``cuda:0 is NVIDIA H200 (150.1 GB)``; nothing for a processor, which is named already."""
    if name == "cpu" or not facts.get("name"):
        return ""
    memory = facts.get("memory_bytes")
    return f"{name} is {facts['name']}" + (f" ({memory / 1e9:.1f} GB)" if memory else "")


def _version(session: Mapping[str, Any]) -> str:
    commit = str(session.get("commit") or "")
    version = f"vitbench {session['vitbench']}" if session.get("vitbench") else ""
    return (
        f"{version} (commit {commit[:10]}{'+changes' if '+changes' in commit else ''})"
        if commit and version
        else version
    )


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
