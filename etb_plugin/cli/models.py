"""`etb models`: what --model takes."""

from rich import box
from rich.table import Table

from etb_plugin.cli import options as o
from etb_plugin.errors import ConfigError

_SHAPES = {"digits": (1, 8, 8), "MNIST": (1, 28, 28), "CIFAR-10": (3, 32, 32)}
_FAMILIES = {"mlp-WIDTHxDEPTH": "mlp-100x3"}


def command() -> None:
    """List the architectures, with hidden units and parameters as built for three shapes of images.

    Example: etb models
    """
    from etb_plugin import networks

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("model", no_wrap=True)
    table.add_column("layers")
    for name in _SHAPES:
        table.add_column(f"{name}\nunits", justify="right")
        table.add_column("\nparameters", justify="right")
    table.add_column("source")
    for architecture in networks.networks().values():
        example = _FAMILIES.get(architecture.name, architecture.name)
        counts = [count for shape in _SHAPES.values() for count in _counts(example, shape)]
        shown = architecture.name if example == architecture.name else f"{architecture.name}\n(as {example})"
        table.add_row(shown, architecture.layers, *counts, architecture.source)
    o.stdout().print(table)


def _counts(name: str, shape: tuple[int, int, int]) -> tuple[str, str]:
    """Return hidden units and parameters for ten classes; dashes where the network does not fit the images."""
    from etb_plugin import networks

    try:
        network = networks.build(name, shape, 10, seed=0)
    except ConfigError:
        return "-", "-"
    return f"{networks.hidden_units(network, shape):,}", f"{networks.parameters(network):,}"
