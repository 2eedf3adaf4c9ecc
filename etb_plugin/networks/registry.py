"""Architectures by name. One file per family registers each of its architectures with the decorator."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from etb_plugin.errors import ConfigError, unknown_name
from etb_plugin.graph.tracing import example_input
from etb_plugin.networks.layers import Normalize
from etb_plugin.networks.statistics import evaluating
from etb_plugin.registry import Registry, own_code

Layers = list[nn.Module]


@dataclass(frozen=True)
class Architecture:
    """A registered architecture: its name (a pattern for a family), its layers in words, its source."""

    name: str
    layers: str
    source: str
    make: Callable[..., Layers]
    pattern: re.Pattern[str]


_registry: Registry[Architecture] = Registry("network")


def register_network(
    name: str, *, layers: str, source: str, pattern: str | None = None
) -> Callable[[Callable[..., Layers]], Callable[..., Layers]]:
    """Register the decorated `(channels, size, classes) -> layers` as the architecture `name`.

    With a `pattern` the name stands for a family, and the pattern's named groups are passed on as integers.
    Raises ConfigError where the name is taken.
    """

    def register(make: Callable[..., Layers]) -> Callable[..., Layers]:
        _registry.add(name, Architecture(name, layers, source, make, re.compile(pattern or re.escape(name))))
        return make

    return register


def networks() -> Mapping[str, Architecture]:
    """Return every registered architecture by name."""
    return _registry


def check_network(name: str) -> None:
    """Raise ConfigError, with the nearest names, where no architecture is called `name`. A user's own code may only be
    known when the network is built."""
    if own_code(name) is None:
        _find(name)


def build(
    name: str,
    input_shape: tuple[int, ...],
    classes: int,
    *,
    normalization: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
    seed: int | None = None,
) -> nn.Sequential:
    """Return a new network called `name` for inputs of `input_shape` [channels, height, width].

    With `normalization` (mean and deviation of each channel, in pixel units) the first layer normalises, so that
    boxes and attacks stay in pixel units. With `seed` the initial weights are repeatable and torch's generator
    is left as it was. Raises ConfigError for an unknown name, or an input that the network does not fit.
    """
    architecture, numbers = _find(name)
    channels, height, width = input_shape
    if height != width:
        raise ConfigError(f"network {name!r} takes square images; got {height} x {width}")
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        try:
            layers = architecture.make(channels, height, classes, **numbers)
        except _TooSmall:
            raise ConfigError(
                f"network {name!r} does not fit images of {height} x {width} pixels (a layer would be empty); "
                f"for small images use tiny or mlp-WIDTHxDEPTH"
            ) from None
    if normalization is not None:
        layers = [Normalize(*normalization), *layers]
    return nn.Sequential(*layers)


def hidden_units(network: nn.Module, input_shape: tuple[int, ...]) -> int:
    """Return the number of ReLU units of `network` for one input."""
    count = 0

    def add(_: nn.Module, __: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal count
        count += output[0].numel()

    hooks = [m.register_forward_hook(add) for m in network.modules() if isinstance(m, nn.ReLU)]
    try:
        with torch.no_grad(), evaluating(network):
            network(torch.zeros(1, *input_shape))
    finally:
        for hook in hooks:
            hook.remove()
    return count


def parameters(network: nn.Module) -> int:
    """Return the number of parameters of `network`."""
    return sum(p.numel() for p in network.parameters())


class _TooSmall(Exception):
    pass


def convolved(size: int, kernel: int, stride: int, padding: int) -> int:
    """Return the size of a convolution's output; `build` refuses the network where nothing is left of it."""
    out = (size + 2 * padding - kernel) // stride + 1
    if out < 1:
        raise _TooSmall
    return out


def _find(name: str) -> tuple[Architecture, dict[str, int]]:
    for architecture in _registry.values():
        match = architecture.pattern.fullmatch(name)
        if match:
            return architecture, {key: int(value) for key, value in match.groupdict().items()}
    if own_code(name) is not None:
        raise ConfigError(f"network {name} is code of your own, which runs where the command names it: --model {name}")
    raise unknown_name("network", name, _registry)


def check_kind(network: nn.Module, given: Tensor, what: str) -> None:
    """Raise ConfigError, whose message begins with `what`, where `given` is not of the network's dtype and device."""
    like = next((p for p in network.parameters() if p.is_floating_point()), given)
    if (given.dtype, given.device) != (like.dtype, like.device):
        raise ConfigError(
            f"{what} {given.dtype} on {given.device}, the network {like.dtype} on {like.device}: move either"
        )


def classes_of(network: nn.Module, input_shape: tuple[int, ...]) -> int:
    """Return how many logits `network`, in eval mode, gives for [batch, *input_shape]. Raises ConfigError where it does
    not give [batch, classes], with 2 classes or more."""
    like = example_input(network, torch.Size(input_shape))
    with torch.no_grad(), evaluating(network):
        try:
            found = network(like)
        except (RuntimeError, ValueError, TypeError) as error:
            why = str(error).partition("\n")[0]
            raise ConfigError(f"the network does not take {list(like.shape)}: {why}") from error
    shape = tuple(getattr(found, "shape", ()))
    if len(shape) != 2 or shape[0] != len(like) or shape[1] < 2:
        got = list(shape) if isinstance(found, Tensor) else type(found).__name__
        raise ConfigError(f"the network has to give logits [batch, classes]; for a batch of {len(like)} it gives {got}")
    return int(shape[1])
