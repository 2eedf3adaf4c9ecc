"""The bound `alpha-crown`."""

import torch
from torch import Tensor, nn

from etb_plugin.bounds.registry import BoundFunction, register_bound
from etb_plugin.graph.regions import Box
from etb_plugin.lirpa.bounds import TAKES, LirpaNetwork


@register_bound("alpha-crown", sound=True, differentiable=False, takes=TAKES)
def alpha_crown(network: nn.Module, input_shape: torch.Size, *, lower_only: bool = False) -> BoundFunction:
    """CROWN with its lower slopes optimised by gradient descent (Xu et al. 2021), by auto_LiRPA.

    Cost: CROWN, then 20 backward passes for each side; `lower_only` spares the upper side and returns +inf
    there. The result carries no gradient.
    """
    converted = LirpaNetwork(network, input_shape)

    def apply(box: Box, spec: Tensor | None) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            lower, upper = converted.compute("alpha-CROWN", box, spec, lower_only=lower_only, frozen=True)
        return lower.detach(), upper.detach()

    return apply
