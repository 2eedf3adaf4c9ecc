"""Networks of the user's own, `path/file.py:NAME`."""

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from etb_plugin.errors import ConfigError
from etb_plugin.networks.registry import Layers, classes_of, networks, register_network
from etb_plugin.own import found_in_own, what_failed
from etb_plugin.registry import own_code


def register_own(name: str) -> None:
    """Run the file that `path/file.py:NAME` names, if it does, and make the network known by that whole name.

    NAME is called with input_shape [channels, height, width] and the number of classes, or with nothing where it does
    not take these; it returns a module that gives logits. Raises ConfigError as `own.found_in_own` does.
    """
    if own_code(name) is None or name in networks():
        return
    make = found_in_own(name, "--model")
    register_network(name, layers=name, source="your own")(_layers_of(name, make))


def _layers_of(name: str, make: Callable[..., Any]) -> Callable[[int, int, int], Layers]:
    def layers(channels: int, size: int, classes: int) -> Layers:
        shape = channels, size, size
        try:
            network = make(*((shape, classes) if _takes_shape(make) else ()))
        except Exception as error:
            raise ConfigError(
                f"{name} fails for images {list(shape)} and {classes} classes: {what_failed(error)}"
            ) from error
        if not isinstance(network, nn.Module):
            raise ConfigError(f"{name} has to return a torch.nn.Module; got {type(network).__name__}")
        if (given := classes_of(network, shape)) != classes:
            raise ConfigError(f"{name} gives {given} logits; the data has {classes} classes")
        return [network]

    return layers


def _takes_shape(make: Callable[..., Any]) -> bool:
    """Whether `make` is called with a shape and a number of classes: where it needs two, or names a shape among what it
    may do without."""
    signature = inspect.signature(make)
    try:
        signature.bind(None, None)
    except TypeError:
        return False
    needed = any(one.default is one.empty for one in signature.parameters.values())
    return needed or any("shape" in name for name in signature.parameters)
