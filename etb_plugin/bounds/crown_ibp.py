"""The bound `crown-ibp`."""

import torch
from torch import Tensor, nn

from etb_plugin.bounds.registry import BoundFunction, register_bound
from etb_plugin.graph.regions import Box
from etb_plugin.lirpa.bounds import TAKES, LirpaNetwork


@register_bound("crown-ibp", sound=True, differentiable=True, takes=TAKES)
def crown_ibp(network: nn.Module, input_shape: torch.Size, *, lower_only: bool = False) -> BoundFunction:
    """CROWN's backward pass over IBP's intermediate bounds (Zhang et al. 2020), by auto_LiRPA.

    Cost: IBP, and one transposed pass per row and side; `lower_only` spares the upper side and returns +inf there.
    """
    converted = LirpaNetwork(network, input_shape)

    def apply(box: Box, spec: Tensor | None) -> tuple[Tensor, Tensor]:
        return converted.compute("CROWN-IBP", box, spec, lower_only=lower_only)

    return apply
