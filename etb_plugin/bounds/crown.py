"""The bound `crown`."""

import torch
from torch import Tensor, nn

from etb_plugin.bounds.registry import BoundFunction, register_bound
from etb_plugin.graph.regions import Box
from etb_plugin.lirpa.bounds import TAKES, LirpaNetwork


@register_bound("crown", sound=True, differentiable=True, takes=TAKES)
def crown(network: nn.Module, input_shape: torch.Size, *, lower_only: bool = False) -> BoundFunction:
    """CROWN (Zhang et al. 2018): linear relaxations, backward from every layer, by auto_LiRPA.

    Cost: a transposed pass for every hidden unit. `lower_only` spares the last layer's upper side, +inf there.
    """
    converted = LirpaNetwork(network, input_shape)

    def apply(box: Box, spec: Tensor | None) -> tuple[Tensor, Tensor]:
        return converted.compute("CROWN", box, spec, lower_only=lower_only)

    return apply
