"""What an objective and a method are, and the methods by name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Protocol

import torch
from torch import Tensor, nn

from etb_plugin.errors import ConfigError, unknown_name
from etb_plugin.objectives.recipe import Recipe


@dataclass(frozen=True)
class Point:
    """One point of the schedule: the radius eps (pixel units), the weight kappa of the objective's two parts, and where
    it stands between two bounds, `mix` from 0 to 1."""

    eps: float
    kappa: float
    mix: float = 0.0


@dataclass(frozen=True)
class Losses:
    """One batch's `total` loss with its gradient, and, detached, its `clean` and `robust` parts.

    `correct` is the number of clean images that the network gets right. All are scalars on the device.
    """

    total: Tensor
    clean: Tensor
    robust: Tensor
    correct: Tensor


Loss = Callable[[Tensor, Tensor, Point, torch.Generator], Losses]
"""(images [batch, *input], labels [batch], point, generator of whatever is random) -> losses of the batch."""


class Objective(Protocol):
    """A training loss, not yet bound to a network."""

    @property
    def bound(self) -> str | None:
        """The name of the bound that the objective trains with, if any."""

    @property
    def bound_options(self) -> Mapping[str, object]:
        """The options of that bound."""

    def prepare(self, network: nn.Module, input_shape: tuple[int, ...], classes: int) -> Loss:
        """Return the loss for `network`, whose weights are read at each call.

        Raises UnsupportedLayer, naming the layer, where the objective's bound cannot take the network.
        """


@dataclass(frozen=True)
class Method:
    """What `--methods` names. `summary` says in one line what it does and when to use it."""

    name: str
    summary: str
    objective: Objective
    recipe: Recipe


_registry: dict[str, Method] = {}


def register_method(method: Method) -> Method:
    """Make `method` known by its name. Raises ConfigError where the name is taken."""
    if method.name in _registry:
        raise ConfigError(f"method {method.name!r} is registered twice")
    _registry[method.name] = method
    return method


def methods() -> Mapping[str, Method]:
    """Return every registered method by name."""
    return dict(_registry)


def get_method(name: str) -> Method:
    """Return the method called `name`. Raises ConfigError with the nearest names where there is none."""
    if name not in _registry:
        raise unknown_name("method", name, _registry)
    return _registry[name]


def load_methods() -> None:
    """Import every file of this folder, so that each registers its methods."""
    for module in iter_modules([str(Path(__file__).parent)]):
        import_module(f"etb_plugin.objectives.{module.name}")
