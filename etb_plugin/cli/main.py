"""The entry point: collects the subcommands, and turns errors into a line or two and an exit status."""

import atexit
import gc
import importlib
import inspect
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from etb_plugin import __version__
from etb_plugin.errors import CheckpointError, ConfigError, DataError, EtbError, Stopped, UnsupportedLayer

_REFUSALS = (ConfigError, DataError, UnsupportedLayer, CheckpointError)
"""Errors of the call or of a file: nothing was started, exit status 2. Any other is a failure of the work: 1."""

COMMANDS = (
    *("compare", "status", "train", "evaluate", "verify", "bounds", "study", "bench"),
    *("report", "leaderboard", "experiment", "export", "methods", "models", "new", "supports", "selftest", "cell"),
)
_FOR_MACHINES = ("cell", "status")
"""Subcommands that the list leaves out: for schedulers, and said as `etb compare status`."""


def build(arguments: Sequence[str]) -> typer.Typer:
    """Return the command line with the subcommand that is asked for, or with all of them.

    Each brings libraries that the others can do without.
    """
    app = typer.Typer(
        no_args_is_help=True,
        add_completion=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
        callback=_root,
    )
    asked = next((a for a in arguments if not a.startswith("-")), None)
    for name in (asked,) if asked in COMMANDS else () if {"--version", "--name"} & {*arguments} else COMMANDS:
        module = importlib.import_module(f"etb_plugin.cli.{name}")
        if hasattr(module, "app"):
            app.add_typer(module.app, name=name)
        else:
            app.command(name, hidden=name in _FOR_MACHINES)(module.command)
    for group in (app, *(info.typer_instance for info in app.registered_groups)):
        for command in group.registered_commands if group else ():
            command.help = _flowing(inspect.getdoc(command.callback) or "")
    return app


def _flowing(text: str) -> str:
    """Return paragraphs as one line each: a terminal breaks them where it ends."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


def _says(text: str) -> Callable[[bool], None]:
    """Return what prints a text and stops, for a flag."""

    def say(wanted: bool) -> None:
        if wanted:
            print(text)
            raise typer.Exit

    return say


def _root(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_says(__version__), is_eager=True, help="Show the version and stop.")
    ] = False,
    name: Annotated[
        bool,
        typer.Option("--name", callback=_says("etb_plugin"), is_eager=True, help="Show our name and stop."),
    ] = False,
) -> None:
    """Train, attack, certify and compare neural networks: the expected tight bound beside IBP, CROWN and the dual.

    Start with [bold]etb compare[/bold]: it needs no data and takes a minute.
    """


def main() -> None:
    """Run the command line and exit: 0 done, 1 the work failed, 2 the call or a file was wrong."""
    # A process that ends would look through all of torch for garbage, for a third of a second.
    atexit.register(gc.freeze)
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    if debug:  # it is understood anywhere, and belongs to no subcommand
        arguments = ["--debug", *(a for a in arguments if a != "--debug")]
    if arguments[:2] == ["compare", "status"]:
        arguments = arguments[1:]
    try:
        status = build(arguments)(arguments, prog_name="etb", standalone_mode=False)
        sys.stdout.flush()
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # another one, while this process ends, says nothing
        status = 130
    except BrokenPipeError:  # `etb ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    except Stopped as error:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        _say(str(error), debug, label="")
        sys.exit(error.status)
    except (EtbError, typer.TyperException) as error:
        _say(error.format_message() if isinstance(error, typer.TyperException) else str(error), debug)
        status = 2 if isinstance(error, (*_REFUSALS, typer.TyperException)) else 1
    except OSError as error:  # a full disk, a folder that may not be written to
        what = f"{error.strerror or error}: {error.filename}" if error.filename else str(error)
        _say(f"{what}\n  what is on disk is whole; the same command goes on", debug)
        status = 1
    except Exception as error:
        line = f"{type(error).__name__}: {error}".partition("\n")[0]
        _say(f"{line}\n  this was not foreseen: --debug shows where it happened", debug)
        status = 1
    if status == 130:
        Console(stderr=True).print("interrupted; the same command goes on from the last finished epoch")
    sys.exit(status or 0)


def _say(text: str, debug: bool, label: str = "error: ") -> None:
    """Say what ended the command, after the traceback of the error at hand where that was asked for."""
    if debug:
        traceback.print_exc()
    Console(stderr=True, soft_wrap=True).print(Text.assemble((label, "bold red"), text))
