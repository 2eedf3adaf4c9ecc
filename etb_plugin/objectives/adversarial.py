"""The method `pgd`: adversarial training (Madry et al. 2018, equation 2.1)."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from etb_plugin.attacks import Pgd, perturb
from etb_plugin.bounds import Box
from etb_plugin.networks import evaluating
from etb_plugin.objectives.recipe import Ramp, Recipe
from etb_plugin.objectives.registry import Loss, Losses, Method, Objective, Point, register_method


@dataclass(frozen=True)
class Adversarial(Objective):
    """Cross-entropy at a point of the box that PGD finds; the clean loss is only reported. Kappa plays no part.

    The attack runs in eval mode. Batch norm takes its statistics from the attacked images, which are trained on.
    """

    attack: Pgd = field(default_factory=lambda: Pgd(steps=7, losses=("cross-entropy",)))
    bound: str | None = None

    def prepare(self, network: nn.Module, input_shape: tuple[int, ...], classes: int) -> Loss:
        def loss(images: Tensor, labels: Tensor, point: Point, generator: torch.Generator) -> Losses:
            with evaluating(network):
                attacked = perturb(network, Box.around(images, point.eps), labels, self.attack, generator)
                with torch.no_grad():
                    logits = network(images)
            robust = F.cross_entropy(network(attacked), labels)
            clean = F.cross_entropy(logits, labels)
            return Losses(robust, clean, robust.detach(), (logits.argmax(1) == labels).sum())

        return loss


register_method(
    Method(
        "pgd",
        "adversarial training with 7 steps of PGD: strong against attacks, hard to certify",
        Adversarial(),
        Recipe(
            "7 attack steps as Madry et al. 2018; optimizer as nominal; eps grows over the first tenth (ours)",
            decay_at=(0.7, 0.9),
            eps_ramp=Ramp(0.0, 1.0, length=0.1),
        ),
    )
)
