"""The methods `mtl-ibp`, `cc-ibp` and `exp-ibp` (De Palma et al. 2024), and `mtl-expected`, `cc-expected` and
`exp-expected` (ours), which have the expected bound where those have an attack.

Each lies between a loss that underestimates the worst case and IBP's, which overestimates it, by one coefficient.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from etb_plugin.attacks import Pgd, perturb
from etb_plugin.bounds import Box, prepare_lower
from etb_plugin.errors import ConfigError
from etb_plugin.networks import evaluating
from etb_plugin.objectives.benchmark import ATTACK, RECIPE
from etb_plugin.objectives.expected import ExpectedBound
from etb_plugin.objectives.registry import Loss, Losses, Method, Objective, Point, register_method
from etb_plugin.objectives.worst_case import weighed, worst_logits

Between = Literal["losses", "logits", "logarithms"]
Inner = Callable[[Tensor, Tensor, Point, torch.Generator], Tensor]
"""(images, labels, point, generator) -> logits that underestimate the worst case, [batch, classes]."""


@dataclass(frozen=True)
class Combined(Objective):
    """A combination of IBP's worst-case logits z and of inner ones z', with alpha the `coefficient` of IBP.

    `between` "losses" is alpha CE(z) + (1 - alpha) CE(z'), "logits" CE(alpha z + (1 - alpha) z'), and "logarithms"
    CE(z)^alpha CE(z')^(1 - alpha) (De Palma et al. 2024: MTL-IBP, CC-IBP and Exp-IBP), image by image. It is weighed
    against the clean loss as `WorstCase`'s convex form.
    """

    between: Between
    bound: str = "ibp"
    coefficient: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.coefficient <= 1:
            raise ConfigError(f"coefficient is IBP's share, from 0 to 1; got {self.coefficient}")

    def inner(self, network: nn.Module, input_shape: tuple[int, ...], classes: int) -> Inner:
        """Return what gives the inner logits."""
        raise NotImplementedError

    def prepare(self, network: nn.Module, input_shape: tuple[int, ...], classes: int) -> Loss:
        with evaluating(network):
            bounded = prepare_lower(self.bound, network, input_shape)
            inner = self.inner(network, input_shape, classes)

        def loss(images: Tensor, labels: Tensor, point: Point, generator: torch.Generator) -> Losses:
            def robust() -> Tensor:
                worst = worst_logits(bounded, Box.around(images, point.eps), labels, classes)
                return combined(self.between, self.coefficient, worst, inner(images, labels, point, generator), labels)

            return weighed(network, images, labels, point, robust)

        return loss


def combined(between: Between, coefficient: float, worst: Tensor, inner: Tensor, labels: Tensor) -> Tensor:
    """Return the loss that `Combined` says, a scalar. Shapes: logits [batch, classes], labels [batch]."""
    if between == "logits":  # the cross-entropy does not see what is added to all logits of an image
        return F.cross_entropy(coefficient * worst + (1 - coefficient) * inner, labels)
    ours, theirs = (F.cross_entropy(logits, labels, reduction="none") for logits in (worst, inner))
    if between == "losses":
        return (coefficient * ours + (1 - coefficient) * theirs).mean()
    tiny = torch.finfo(ours.dtype).tiny  # a loss of 0 has no logarithm
    outer, inner = (loss.clamp_min(tiny).log() for loss in (ours, theirs))
    return (coefficient * outer + (1 - coefficient) * inner).exp().mean()


@dataclass(frozen=True)
class WithAttack(Combined):
    """`Combined` with the logits at PGD's example, sought in `attack_ratio` times the radius."""

    attack: Pgd = ATTACK
    attack_ratio: float = 1.0

    def inner(self, network: nn.Module, input_shape: tuple[int, ...], classes: int) -> Inner:
        def attacked(images: Tensor, labels: Tensor, point: Point, generator: torch.Generator) -> Tensor:
            box = Box.around(images, point.eps * self.attack_ratio)
            return network(perturb(network, box, labels, self.attack, generator))

        return attacked


@dataclass(frozen=True)
class WithExpected(Combined):
    """`Combined` with the worst-case logits of the expected bound, `expected` being its options: one pass backward in
    place of an attack's many."""

    expected: Mapping[str, object] = field(default_factory=lambda: {"masks": "center", "rows": "fused"})

    def inner(self, network: nn.Module, input_shape: tuple[int, ...], classes: int) -> Inner:
        worst = ExpectedBound(options=self.expected).worst(network, input_shape, classes)
        return lambda images, labels, point, _: worst(Box.around(images, point.eps), labels)


_THEIRS = replace(
    RECIPE, source="De Palma et al. 2024, who give IBP's coefficient for each data set; ours is 0.1. " + RECIPE.source
)
_OURS = replace(RECIPE, source="ours, after De Palma et al. 2024. " + RECIPE.source)

register_method(
    Method("mtl-ibp", "an attack's loss and IBP's, their mean: clean against certified by a coefficient",
           WithAttack("losses"), _THEIRS)
)  # fmt: skip
register_method(Method("cc-ibp", "as mtl-ibp, with the loss of the mean logits", WithAttack("logits"), _THEIRS))
register_method(
    Method("exp-ibp", "as mtl-ibp, with the geometric mean of the two losses", WithAttack("logarithms"), _THEIRS)
)
register_method(
    Method("mtl-expected", "as mtl-ibp, the expected bound in place of the attack: ours, less time a step",
           WithExpected("losses", coefficient=0.5), _OURS)
)  # fmt: skip
register_method(
    Method("cc-expected", "as cc-ibp, the expected bound in place of the attack: ours",
           WithExpected("logits", coefficient=0.5), _OURS)
)  # fmt: skip
register_method(
    Method("exp-expected", "as exp-ibp, the expected bound in place of the attack: ours",
           WithExpected("logarithms", coefficient=0.5), _OURS)
)  # fmt: skip
