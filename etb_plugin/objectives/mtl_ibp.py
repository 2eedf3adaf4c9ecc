"""The method `mtl-ibp`: adversarial and IBP losses added up (De Palma et al. 2024)."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from etb_plugin.attacks import Pgd, perturb
from etb_plugin.bounds import Box, prepare_lower
from etb_plugin.networks import evaluating
from etb_plugin.objectives.ibp import RECIPE
from etb_plugin.objectives.registry import Loss, Losses, Method, Objective, Point, register_method
from etb_plugin.objectives.sabr import ATTACK
from etb_plugin.objectives.worst_case import worst_logits


@dataclass(frozen=True)
class AdversarialAndBound(Objective):
    """kappa CE at PGD's example + (1 - kappa) CE on the bound's worst-case logits (De Palma et al. 2024, section 4).

    At kappa near 1 it is adversarial training with a little IBP: the weights of IBP's loss need to be small because
    the loss is so large.
    """

    bound: str = "ibp"
    attack: Pgd = ATTACK

    def prepare(self, network: nn.Module, input_shape: tuple[int, ...], classes: int) -> Loss:
        with evaluating(network):
            bounded = prepare_lower(self.bound, network, input_shape)

        def loss(images: Tensor, labels: Tensor, point: Point, generator: torch.Generator) -> Losses:
            box = Box.around(images, point.eps)
            with evaluating(network):
                attacked = perturb(network, box, labels, self.attack, generator)
                with torch.no_grad():
                    clean_logits = network(images)
                z = worst_logits(bounded, box, labels, classes)
            bounded_loss = F.cross_entropy(z, labels)
            total = point.kappa * F.cross_entropy(network(attacked), labels) + (1 - point.kappa) * bounded_loss
            correct = (clean_logits.argmax(1) == labels).sum()
            return Losses(total, F.cross_entropy(clean_logits, labels), bounded_loss.detach(), correct)

        return loss


register_method(
    Method(
        "mtl-ibp",
        "adversarial training with a share of IBP's loss: trades clean against certified accuracy by one weight",
        AdversarialAndBound(),
        replace(
            RECIPE,
            source="De Palma et al. 2024: 8 attack steps; the weight of IBP's loss, 0.1, is ours (theirs differs by "
            "data set and is smaller); optimizer and ramps as ibp here, without their initialisation and regulariser",
            kappa=replace(RECIPE.kappa, end=0.9),
        ),
    )
)
