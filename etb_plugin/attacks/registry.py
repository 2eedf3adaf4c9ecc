"""Attacks by name: what `--attack` puts images to that PGD leaves standing."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from etb_plugin.bounds import Box
from etb_plugin.registry import Registry

Attack = Callable[[nn.Module, Box, Tensor, torch.Generator], tuple[Tensor, Tensor]]
"""(network in eval mode, box with sides [batch, *input], labels [batch], generator) -> points of the box, and whether
the network gets each wrong, [batch]."""

_registry: Registry[Attack] = Registry("attack")


def register_attack(name: str) -> Callable[[Attack], Attack]:
    """Register the decorated attack by its name. Raises ConfigError where the name is taken."""

    def register(attack: Attack) -> Attack:
        _registry.add(name, attack, attack.__module__)
        return attack

    return register


def attacks() -> Mapping[str, Attack]:
    """Return every registered attack by name."""
    return _registry


def get_attack(name: str) -> Attack:
    """Return the attack called `name`. Raises ConfigError with the nearest names where there is none."""
    return _registry.find(name)
