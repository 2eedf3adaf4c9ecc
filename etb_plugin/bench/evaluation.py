"""The attack of an evaluation, which drops what it has broken, beside one that drops nothing.

How much that saves depends on how much stands: radii are sought at which a tenth, a half and nine tenths of the images
stand under a short attack.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from etb_plugin.attacks import Pgd, pgd
from etb_plugin.bounds import Box
from etb_plugin.data import Split, load, pixels
from etb_plugin.networks import build
from etb_plugin.objectives import get_method
from etb_plugin.shapes import fixed_shapes
from etb_plugin.training import Settings, train

_STANDING = (0.9, 0.5, 0.1)
_SHORT = Pgd(40, 2)
_HALVINGS = 12
_EPOCHS = 20


@dataclass(frozen=True)
class AttackCost:
    """At a radius (pixel units), on a network: the share of images that stands under the whole attack, its seconds,
    and those of the same attack that drops nothing."""

    model: str
    eps: float
    standing: float
    seconds: float
    dropping_nothing: float

    @property
    def ratio(self) -> float:
        """How many times as long it takes to drop nothing."""
        return self.dropping_nothing / self.seconds


def measure_attacks(model: str, attack: Pgd, device: str) -> Iterator[AttackCost]:
    """Yield what an attack costs on the test digits at three radii, for a network that is trained in a few seconds."""
    digits = load("digits", device=device)
    network = build(model, digits.input_shape, digits.classes, seed=0).to(device)
    train(network, get_method("nominal"), digits, Settings(0.1, _EPOCHS))
    yield from attack_costs(model, network, digits.test, attack)


def attack_costs(model: str, network: nn.Module, split: Split, attack: Pgd) -> Iterator[AttackCost]:
    """Yield what an attack costs on a split, taken as one batch, at three radii. The weights take no gradient then."""
    network.requires_grad_(False)
    images, labels = pixels(split.images), split.labels
    for share in _STANDING:
        low, high = 0.0, 1.0
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            stands, _ = _attacked(network, images, labels, middle, _SHORT)
            low, high = (middle, high) if stands > share else (low, middle)
        standing, seconds = _attacked(network, images, labels, low, attack)
        with fixed_shapes():
            _, whole = _attacked(network, images, labels, low, attack)
        yield AttackCost(model, low, standing, seconds, whole)


def _attacked(network: nn.Module, images: Tensor, labels: Tensor, eps: float, attack: Pgd) -> tuple[float, float]:
    """Return the share of images that stands, and the seconds that the attack took."""
    generator = torch.Generator(images.device).manual_seed(0)
    begun = time.perf_counter()
    _, broken = pgd(network, Box.around(images, eps), labels, attack, generator)
    stands = float((~broken).double().mean())  # waits for the device
    return stands, time.perf_counter() - begun
