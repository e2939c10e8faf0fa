"""The command line: register the commands of ``commands/``, run one, turn errors into one line and an exit code."""

from __future__ import annotations

import errno
import importlib
import io
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from vitbench.commands.output import INTERRUPTED, complain, interruptible, show_warning
from vitbench.core.errors import UsageError, VitbenchError

#: The commands by panel of the help: each is the function of its name in the module of that name in ``commands/``.
_PANELS = {
    "Measure": ("run", "frontier", "report", "plot", "doctor"),
    "Inspect": ("list_", "show", "flops", "claims"),
    "Analyze": ("analyze", "fit", "scale", "roofline"),
    "Train": ("train", "sweep", "evaluate", "predict", "attention"),
    "Compare": ("compare", "ab", "history"),
    "Guard": ("snapshot", "check"),
}
_EXAMPLES = "\b\nExamples:\n  "


class _Panels(TyperGroup):
    """Help that lists the commands by panel, without rich, which takes longer to load than all the rest."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        width = max(map(len, self.commands))
        for panel in _PANELS:
            commands = [one for one in self.commands.values() if getattr(one, "rich_help_panel", None) == panel]
            texts = [one.get_short_help_str(formatter.width - width - 6) for one in commands]
            with formatter.section(panel):
                formatter.write_dl(
                    [(str(one.name).ljust(width), text) for one, text in zip(commands, texts, strict=True)]
                )


app = typer.Typer(
    name="vitbench",
    cls=_Panels,
    help="Benchmark Vision Transformers: parameters, FLOPs, peak memory, latency, throughput and accuracy.",
    epilog=f"{_EXAMPLES}vitbench run --suite lightweight\n  vitbench show vit_base16\n  vitbench run --help",
    context_settings={"max_content_width": 100},
    rich_markup_mode=None,
    add_completion=False,
    pretty_exceptions_enable=False,
)

#: The usage errors of the library under typer, whichever it is (click, or typer's own copy of it).
_PARSER_ERROR: type[Exception] = typer.BadParameter.__mro__[1]

#: What the system may report of a path from the command line, and the way out.
_PATH_TROUBLES = {
    errno.ENAMETOOLONG: "Give a shorter path",
    **dict.fromkeys((errno.EACCES, errno.EPERM), "Give another path, or have its permissions changed"),
}


def main() -> None:
    """Run the command line and exit with its code."""
    warnings.showwarning = show_warning
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a class may have a name that the output's encoding lacks
            stream.reconfigure(errors="backslashreplace")
    sys.exit(run_command(sys.argv[1:]))


def run_command(arguments: list[str]) -> int:
    """The exit code of a command; an expected error is one line on stderr."""
    try:
        Path.cwd()  # libraries that load in a deleted folder fail in ways of their own
    except FileNotFoundError:
        return complain("The current folder is gone. Change to one that is there", 2)
    try:
        result = app(args=arguments, prog_name="vitbench", standalone_mode=False)
    except _PARSER_ERROR as error:
        text = error.format_message() if hasattr(error, "format_message") else str(error)
        text = " ".join(text.split()).rstrip(".")
        command = next((word for word in arguments if not word.startswith("-")), "")
        command = (
            f"{command} " if any(command == name.rstrip("_") for names in _PANELS.values() for name in names) else ""
        )
        return complain(f"{text}{'' if text.endswith('?') else '.'} See: vitbench {command}--help", 2)
    except UsageError as error:
        return complain(str(error), 2)
    except VitbenchError as error:
        return complain(str(error), 1)
    except (KeyboardInterrupt, typer.Abort) as error:
        return complain(str(error) or "Interrupted.", INTERRUPTED)
    except BrokenPipeError:  # the reader of our output (head, less) has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except OSError as error:
        if error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return complain(f"The output cannot be written: {error.strerror}. Make room there", 1)
        way_out = _PATH_TROUBLES.get(error.errno or 0) if error.filename is not None else None
        if way_out is None:
            raise
        return complain(f"{str(error.filename)[:200]!r}: {error.strerror}. {way_out}", 2)
    return result if isinstance(result, int) else 0


def _version(wanted: bool) -> None:
    if wanted:
        from vitbench import __version__

        print(f"vitbench {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _global_options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


for _panel, _names in _PANELS.items():
    for _name in _names:
        _module = importlib.import_module(f"vitbench.commands.{_name}")
        _epilog = _EXAMPLES + _module.EXAMPLES.strip().replace("\n", "\n  ")
        app.command(_name.rstrip("_"), epilog=_epilog, rich_help_panel=_panel)(interruptible(getattr(_module, _name)))
