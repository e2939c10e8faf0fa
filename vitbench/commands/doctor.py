"""``vitbench doctor``: what this machine is, and which metrics work on it."""

from __future__ import annotations

from vitbench.commands import options
from vitbench.commands.output import print_json

EXAMPLES = """
vitbench doctor
vitbench doctor --json > machine.json
"""


def doctor(json: options.JsonObject = False) -> int:
    """Check this machine: environment, advice, and whether each metric works here."""
    from vitbench.core.text import printable_lines
    from vitbench.runner.doctor import examine, to_text
    from vitbench.runner.progress import make_progress

    result = examine(make_progress())
    if json:
        print_json(result)
    else:
        print(printable_lines(to_text(result)))
    statuses = {check["status"] for checks in result["checks"].values() for check in checks.values()}
    return 1 if statuses - {"ok", "oom", "unsupported"} else 0
