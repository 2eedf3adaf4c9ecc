"""The method `crown-ibp`: CROWN over IBP's intervals, giving way to IBP (Zhang et al. 2020)."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from etb_plugin.bounds import Box
from etb_plugin.bounds.crown_ibp import after_ibp
from etb_plugin.networks import evaluating
from etb_plugin.objectives.annealed import Annealed
from etb_plugin.objectives.fusion import fused_cross_entropy
from etb_plugin.objectives.ibp import RECIPE
from etb_plugin.objectives.registry import Loss, Losses, Method, Point, register_method
from etb_plugin.objectives.worst_case import weighed


@dataclass(frozen=True)
class CrownIbp(Annealed):
    """CROWN-IBP annealed into IBP. With `fusion` the loss of the first is bounded as one row (`fused_cross_entropy`),
    and the two losses are mixed in place of the logits."""

    first: str = "crown-ibp"
    fusion: bool = True

    def prepare(self, network: nn.Module, input_shape: tuple[int, ...], classes: int) -> Loss:
        annealed = super().prepare(network, input_shape, classes)
        if not self.fusion:
            return annealed
        with evaluating(network):
            bounded = after_ibp(network, torch.Size(input_shape))

        def loss(images: Tensor, labels: Tensor, point: Point, generator: torch.Generator) -> Losses:
            if point.phase.mix == 1.0:
                return annealed(images, labels, point, generator)

            def robust() -> Tensor:
                fused, plain = fused_cross_entropy(bounded, Box.around(images, point.eps), labels, classes)
                return (1 - point.mix) * fused + point.mix * plain

            return weighed(network, images, labels, point, robust)

        return loss


register_method(
    Method(
        "crown-ibp",
        "CROWN over IBP's intervals while eps grows, IBP afterwards: mix=0 keeps CROWN-IBP to the end",
        CrownIbp(),
        replace(
            RECIPE,
            source="Zhang et al. 2020: as ibp, beta = 1 - mix from 1 to 0 while eps grows; the loss fused as by Xu et "
            "al. 2020; the shares of the run are ours",
            mix=RECIPE.eps_ramp,
        ),
    )
)
