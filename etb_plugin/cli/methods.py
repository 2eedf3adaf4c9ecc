"""`etb methods`: what --methods takes."""

from dataclasses import asdict, is_dataclass
from typing import Annotated

import typer
from rich import box
from rich.table import Table

from etb_plugin.bounds import bounds
from etb_plugin.cli import options as o
from etb_plugin.experiment import changed_text
from etb_plugin.objectives import Method, Ramp, get_method, methods


def command(
    name: Annotated[str | None, typer.Argument(help="A method, to see what can be changed of it.")] = None,
) -> None:
    """List the training methods and the bounds; of one method, every number that can be changed, with its default.

    Example: etb methods expected
    """
    if name is not None:
        _show(get_method(name))
        return
    trained = Table(box=box.SIMPLE_HEAD, title="Training methods (--methods)", title_justify="left", pad_edge=False)
    for name in ("method", "what it does", "defaults"):
        trained.add_column(name, no_wrap=name == "method")
    for method in methods().values():
        trained.add_row(method.name, method.summary, method.recipe.source)
    bounded = Table(
        box=box.SIMPLE_HEAD, title="Bounds (--certify takes sound ones)", title_justify="left", pad_edge=False
    )
    for name in ("bound", "sound", "gradient", "takes", "options"):
        bounded.add_column(name, no_wrap=name == "bound")
    for bound in bounds().values():
        defaults = bound.options | ({"by": " or ".join(bound.by)} if bound.by else {})
        options = ", ".join(f"{key}={value}" for key, value in defaults.items())
        sound = "[bold green]yes[/]" if bound.sound else "[magenta]NO[/]"
        sound += "".join(f"; not with {name}" for name in bound.unsound_with)
        bounded.add_row(bound.name, sound, "yes" if bound.differentiable else "no", bound.takes, options)
    o.stdout().print(trained, bounded)


def _show(method: Method) -> None:
    """Show a method, what can be changed of it, and how."""
    keys = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("key", "default"):
        keys.add_column(heading)
    for key, value in sorted(method.changeable.items()):
        keys.add_row(key, _value(value))
    example = changed_text(method.name, {"kappa": 0.5, "eps": 0.2}).replace(" ", ":")
    o.stdout().print(f"[bold]{method.name}[/]: {method.summary}\nDefaults: {method.recipe.source}", highlight=False)
    o.stdout().print(keys)
    o.stdout().print(
        f"Changed as in --methods {example} (eps: the training radius), or in a file as "
        f"{method.name}: {{kappa: 0.5}}.\nA ramp, {{start, end, wait, length}}, is timed in shares of the run, "
        f'"10 epochs" or "2000 steps".',
        highlight=False,
    )


def _value(value: object) -> str:
    if isinstance(value, Ramp):
        moves = f" (wait {value.wait}, length {value.length})" if value.start != value.end else ""
        return f"{value.start:g}" if not moves else f"{value.start:g} to {value.end:g}{moves}"
    if is_dataclass(value) and not isinstance(value, type):
        return ", ".join(f"{key} {part}" for key, part in asdict(value).items())
    return str(list(value) if isinstance(value, tuple) else value)
