"""Networks of the user's own, `path/file.py:NAME`: a class or function in a file that is run because it was named."""

import importlib.util
import inspect
import sys
from collections.abc import Callable
from typing import Any

from torch import nn

from etb_plugin.errors import ConfigError
from etb_plugin.networks.registry import Layers, classes_of, networks, register_network
from etb_plugin.registry import own_code


def register_own(name: str) -> None:
    """Run the file that `path/file.py:NAME` names, once, and make the network known by that whole name.

    NAME is called with input_shape [channels, height, width] and the number of classes, or with nothing where it does
    not take these; it returns a module that gives logits. Raises ConfigError where the file is not there, stops with an
    error or holds nothing of that name.
    """
    found = own_code(name)
    if found is None or name in networks():
        return
    path, attribute = found
    if not path.is_file():
        raise ConfigError(f"there is no file {path}, which --model {name} names")
    spec = importlib.util.spec_from_file_location(f"etb_plugin_own_{path.stem}_{len(networks())}", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.resolve().parent))  # for what lies beside it, as when Python runs a file
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(f"{path} cannot be run: {_line(error)}") from error
    finally:
        sys.path.pop(0)
    make = getattr(module, attribute, None)
    if not callable(make):
        raise ConfigError(f"{path} has no class or function {attribute!r}")
    register_network(name, layers=f"{attribute} of {path}", source="your own")(_layers_of(name, make))


def _layers_of(name: str, make: Callable[..., Any]) -> Callable[[int, int, int], Layers]:
    def layers(channels: int, size: int, classes: int) -> Layers:
        shape = channels, size, size
        try:
            inspect.signature(make).bind(shape, classes)
            arguments: tuple[Any, ...] = shape, classes
        except TypeError:
            arguments = ()
        try:
            network = make(*arguments)
        except Exception as error:
            raise ConfigError(f"{name} fails for images {list(shape)} and {classes} classes: {_line(error)}") from error
        if not isinstance(network, nn.Module):
            raise ConfigError(f"{name} has to return a torch.nn.Module; got {type(network).__name__}")
        if (given := classes_of(network, shape)) != classes:
            raise ConfigError(f"{name} gives {given} logits; the data has {classes} classes")
        return [network]

    return layers


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]
