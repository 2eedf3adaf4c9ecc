"""`etb methods`: what --methods takes."""

from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table

from etb_plugin.catalogue import catalogue, check_spelling, others_register
from etb_plugin.cli import options as o
from etb_plugin.experiment import changed_text, ramp_text


def command(
    name: Annotated[
        str | None,
        typer.Argument(help="A method, to see what can be changed of it.", autocompletion=o.complete("method")),
    ] = None,
) -> None:
    """List the training methods and the bounds; of one method, every number that can be changed, with its default.

    Example: etb methods expected
    """
    if name is not None:
        check_spelling("method", name)
        _show(name)
        return
    trained = Table(box=box.SIMPLE_HEAD, title="Training methods (--methods)", title_justify="left", pad_edge=False)
    for heading in ("method", "what it does"):
        trained.add_column(heading, no_wrap=heading == "method")
    for method in catalogue("method").values():
        trained.add_row(method.name, method.arguments[0])
    if others_register("method"):
        from etb_plugin.objectives import methods

        for name, theirs in methods().items():
            if name not in catalogue("method"):
                trained.add_row(name, theirs.summary)
    bounded = Table(
        box=box.SIMPLE_HEAD, title="Bounds (--certify takes sound ones)", title_justify="left", pad_edge=False
    )
    for heading in ("bound", "sound", "gradient", "what it is", "options"):
        bounded.add_column(heading, no_wrap=heading == "bound")
    for bound in catalogue("bound").values():
        promises, unsound_with = bound.keywords, bound.keywords.get("unsound_with", ())
        row = (promises["sound"], promises["differentiable"], unsound_with, bound.summary, bound.options or {})
        bounded.add_row(bound.name, *_bound_cells(*row))
    if others_register("bound"):
        from etb_plugin.bounds import bounds

        for name, entry in bounds().items():
            if name not in catalogue("bound"):
                row = (entry.sound, entry.differentiable, tuple(entry.unsound_with), entry.summary, entry.options)
                bounded.add_row(name, *_bound_cells(*row))
    o.stdout().print(trained, bounded)
    o.stdout().print(
        "etb methods NAME: a method's source and all its numbers. The toolkits' own bounds: crown:by=auto_LiRPA, "
        "dual:by=convex_adversarial.",
        highlight=False,
    )


def _bound_cells(
    sound: bool, differentiable: bool, unsound_with: tuple[str, ...], summary: str, options: Mapping[str, Any]
) -> tuple[str, ...]:
    promise = "[bold green]yes[/]" if sound else "[magenta]NO[/]"
    promise += "".join(f"; not with {option}" for option in unsound_with)
    return promise, "yes" if differentiable else "no", summary, ", ".join(f"{k}={v}" for k, v in options.items())


def _show(name: str) -> None:
    """Show a method, what can be changed of it, and how."""
    from etb_plugin.objectives import get_method

    method = get_method(name)
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
        f"{method.name}: {{kappa: 0.5}}.\nA ramp, {{start, end, wait, length, form: linear or smooth}}, "
        f'is timed in shares of the run, "10 epochs" or "2000 steps".',
        highlight=False,
    )


def _value(value: object) -> str:
    from etb_plugin.objectives import Ramp

    if isinstance(value, Ramp):
        return ramp_text(**asdict(value))
    if is_dataclass(value) and not isinstance(value, type):
        return ", ".join(f"{key} {_value(part)}" for key, part in asdict(value).items())
    if isinstance(value, tuple):
        return ", ".join(map(_value, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)
