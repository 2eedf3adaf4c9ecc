"""The method `sabr`: intervals of small boxes around adversarial examples (Müller et al. 2023)."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from etb_plugin.attacks import Pgd, perturb
from etb_plugin.bounds import Box, prepare_lower
from etb_plugin.networks import evaluating
from etb_plugin.objectives.ibp import RECIPE
from etb_plugin.objectives.registry import Loss, Losses, Method, Objective, Point, register_method
from etb_plugin.objectives.worst_case import weighed, worst_logits

ATTACK = Pgd(steps=8, step=0.5, losses=("cross-entropy",))
"""Of `sabr` and `mtl-ibp`."""


@dataclass(frozen=True)
class SmallBox(Objective):
    """Cross-entropy on the worst-case logits of a box of radius `share` eps inside the box of radius eps.

    PGD finds the small box's centre in what the large box leaves around it (equation 3 and section 3), so that the
    small box lies in the large one. The loss is weighed against the clean one as in `WorstCase`'s convex form.
    """

    bound: str = "ibp"
    share: float = 0.4
    attack: Pgd = ATTACK

    def prepare(self, network: nn.Module, input_shape: tuple[int, ...], classes: int) -> Loss:
        with evaluating(network):
            bounded = prepare_lower(self.bound, network, input_shape)

        def loss(images: Tensor, labels: Tensor, point: Point, generator: torch.Generator) -> Losses:
            def robust() -> Tensor:
                # The attack moves in the box that is left when the small one is taken off at each side.
                outer = Box.around(images, point.eps)
                radius = self.share * outer.radius
                room = Box(outer.lower + radius, outer.upper - radius, ordered=True)
                center = perturb(network, room, labels, self.attack, generator)
                small = Box(center - radius, center + radius, ordered=True)
                return F.cross_entropy(worst_logits(bounded, small, labels, classes), labels)

            return weighed(network, images, labels, point, robust)

        return loss


register_method(
    Method(
        "sabr",
        "IBP on small boxes around adversarial examples: more accurate than ibp, certified by tighter bounds than IBP",
        SmallBox(),
        replace(
            RECIPE,
            source="Müller et al. 2023: 8 attack steps, small boxes of 0.4 eps (theirs for MNIST at 0.1), the "
            "worst-case loss alone in the end; optimizer and ramps as ibp here, without their initialisation and "
            "regulariser",
            kappa=replace(RECIPE.kappa, end=0.0),
        ),
    )
)
