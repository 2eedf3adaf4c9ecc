"""`etb methods`: what --methods takes."""

from rich import box
from rich.table import Table

from etb_plugin.bounds import bounds
from etb_plugin.cli import options as o
from etb_plugin.objectives import methods


def command() -> None:
    """List the training methods and the bounds, with what each promises and where its defaults come from.

    Example: etb methods
    """
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
        options = ", ".join(f"{key}={value}" for key, value in bound.options.items())
        sound = "[bold green]yes[/]" if bound.sound else "[magenta]NO[/]"
        sound += "".join(f"; not with {name}" for name in bound.unsound_with)
        bounded.add_row(bound.name, sound, "yes" if bound.differentiable else "no", bound.takes, options)
    o.stdout().print(trained, bounded)
