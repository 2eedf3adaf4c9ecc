"""The bound `ibp`."""

import torch
from torch import Tensor, nn

from etb_plugin.bounds.registry import BoundFunction, register_bound
from etb_plugin.graph.regions import Box
from etb_plugin.lirpa.bounds import TAKES, LirpaNetwork


@register_bound("ibp", sound=True, differentiable=True, takes=TAKES)
def ibp(network: nn.Module, input_shape: torch.Size) -> BoundFunction:
    """Interval bound propagation (Gowal et al. 2019, equations 6 and 7), by auto_LiRPA.

    Given a spec, the last linear layer is folded into it (elision, section 3), which is tighter than bounding
    logits first. Cost: two forward passes.
    """
    converted = LirpaNetwork(network, input_shape)

    def apply(box: Box, spec: Tensor | None) -> tuple[Tensor, Tensor]:
        return converted.compute("IBP", box, spec)

    return apply
