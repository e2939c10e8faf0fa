"""Check out two states of a git repository, each in a folder of its own, and find a Python to run it."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitbench.core.errors import UsageError, VitbenchError
from vitbench.devices.host.environment import environment_for_git

#: The head that means the working tree with its uncommitted changes.
WORKING_TREE = "."
#: Limits for git and for an installation.
_GIT_S = 300.0
_PREFIX = "vitbench-ab-"
_INSTALL_S = 3600.0


class InfrastructureError(VitbenchError):
    """Git, an installation or a process failed, which says nothing about the code under test."""

    cause = "infrastructure"


@dataclass(frozen=True)
class State:
    """One side: ``root`` is the folder with its files, ``python`` the interpreter that runs it.

    ``commit`` is the full hash, ``changed`` whether there are uncommitted changes, ``ref`` the given name,
    ``installed`` whether it has an environment of its own.
    """

    name: str
    ref: str
    commit: str
    changed: bool
    root: Path
    python: Path
    installed: bool = False

    @property
    def path(self) -> list[str]:
        """The first folders of its path: ``src``, if it exists, and the root."""
        source = self.root / "src"
        return [*([str(source)] if source.is_dir() else []), str(self.root)]

    @property
    def label(self) -> str:
        """``main (1a2b3c4d5e)``, with a plus for uncommitted changes."""
        short = self.commit[:10] + ("+" if self.changed else "")
        return short if self.ref in (self.commit, WORKING_TREE) else f"{self.ref} ({short})"


@contextlib.contextmanager
def check_out(
    base: str, head: str, *, install: bool = False, note: Callable[[str], None] = lambda text: None
) -> Iterator[tuple[State, State]]:
    """Check out ``base`` and ``head`` of the repository around the current folder, until the context ends.

    Each is a worktree in a folder whose path is as long as the other's, as the length shifts a process's memory; ``.``
    as the head is the working tree itself. ``install`` gives each an environment of its own: what is installed here,
    and on top what that side requires.

    Raises UsageError outside of a repository or for an unknown ref, InfrastructureError if git or pip fail.
    """
    top = _repository()
    commits = {name: _commit(top, ref) for name, ref in (("base", base), ("head", head))}
    _forget_killed_runs(top)
    with tempfile.TemporaryDirectory(prefix=_PREFIX, ignore_cleanup_errors=True) as folder:
        added: list[Path] = []
        try:
            states = []
            for name, ref in (("base", base), ("head", head)):
                root, changed = Path(folder).resolve() / name, False
                if ref == WORKING_TREE:
                    root, changed = top, bool(_git(top, "status", "--porcelain", "--untracked-files=no"))
                else:
                    added.append(root)  # first: a hook that fails leaves a worktree behind
                    _git(top, "worktree", "add", "--detach", "--quiet", str(root), commits[name])
                python = Path(sys.executable)
                if install:
                    note(f"Installing {name} into an environment of its own")
                    python = _install(Path(folder) / f"{name}-environment", root)
                states.append(State(name, ref, commits[name], changed, root, python, installed=install))
            yield states[0], states[1]
        finally:
            for root in added:
                _git(top, "worktree", "remove", "--force", str(root), check=False)
                shutil.rmtree(root, ignore_errors=True)


def _forget_killed_runs(top: Path) -> None:
    """Remove worktrees of killed comparisons, whose folders no longer exist. ``git worktree prune`` would also remove
    those of other people: a folder may be missing because its disk is not mounted now.
    """
    for line in _git(top, "worktree", "list", "--porcelain", check=False).splitlines():
        path = Path(line.removeprefix("worktree "))
        if line.startswith("worktree ") and path.parent.name.startswith(_PREFIX) and not path.parent.exists():
            _git(top, "worktree", "remove", "--force", str(path), check=False)


def _repository() -> Path:
    if shutil.which("git") is None:
        raise InfrastructureError("git is not installed: vitbench ab compares two states of a git repository")
    found = _run_git(Path.cwd(), "rev-parse", "--show-toplevel")
    if found.returncode != 0 or not found.stdout.strip():
        raise UsageError(f"{str(Path.cwd())!r} is not in a git repository: run vitbench ab inside the one to compare")
    return Path(found.stdout.strip())


def _commit(top: Path, ref: str) -> str:
    wanted = "HEAD" if ref == WORKING_TREE else ref
    found = _run_git(top, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{wanted}^{{commit}}")
    if found.returncode != 0:
        hint = "See: git branch --all, git log"
        if _git(top, "rev-parse", "--is-shallow-repository", check=False) == "true":
            hint = "The clone is shallow: git fetch --unshallow (actions/checkout: fetch-depth: 0)"
        raise UsageError(f"This repository has no commit {wanted!r}. {hint}")
    return found.stdout.strip()


def _git(top: Path, *arguments: str, check: bool = True) -> str:
    done = _run_git(top, *arguments)
    if check and done.returncode != 0:
        raise InfrastructureError(f"git {arguments[0]} failed: {last_line(done.stderr)}")
    return done.stdout.strip()


def _run_git(top: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["git", "-C", str(top), *arguments]
    return _run(command, f"git {arguments[0]}", timeout=_GIT_S, env=environment_for_git())


def _run(command: Sequence[str], what: str, **options: Any) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False, stdin=subprocess.DEVNULL, **options
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InfrastructureError(f"{what}: {error}") from error


def _install(folder: Path, root: Path) -> Path:
    """Make an environment with all that is installed here, and the project in ``root`` with its requirements."""
    venv.create(folder, with_pip=True, symlinks=os.name != "nt")
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    run = _run_installer([str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"])
    here = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    # its own packages come first on the path; addsitedir also follows editable installations
    lines = "".join(f"import site; site.addsitedir({path!r})\n" for path in here)
    (Path(run.strip()) / "vitbench_shared.pth").write_text(lines, encoding="utf-8")
    _run_installer([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", str(root)])
    return python


def _run_installer(command: Sequence[str]) -> str:
    done = _run(command, "--install", timeout=_INSTALL_S)
    if done.returncode != 0:
        errors = [line.strip() for line in f"{done.stdout}\n{done.stderr}".splitlines() if "error:" in line.lower()]
        # pip wraps a build's own message in names such as metadata-generation-failed
        plain = [line for line in errors if not line.endswith(("-error", "-failed"))]
        why = (plain or errors or [last_line(done.stderr or done.stdout)])[-1]
        raise InfrastructureError(f"--install: pip failed: {why}")
    return done.stdout


def last_line(text: str) -> str:
    """The last line of what a process printed."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it printed nothing"
