"""The bound `crown`."""

import torch
from torch import nn

from etb_plugin.bounds.linear import TAKES, by_rows
from etb_plugin.bounds.registry import BoundFunction, register_bound
from etb_plugin.graph.ends import crown_ends
from etb_plugin.graph.tracing import trace


@register_bound("crown", sound=True, differentiable=True, balls=True, takes=TAKES, rigorous=True)
def crown(network: nn.Module, input_shape: torch.Size, *, lower_only: bool = False) -> BoundFunction:
    """CROWN (Zhang et al. 2018): linear relaxations, backward from every layer.

    Where interval arithmetic over the ends before already decides a unit, its ends are kept; the tighter of both is
    taken elsewhere (auto_LiRPA takes the rows' ends there; docs/soundness.md says what that changes). Cost: two rows
    for every unit that is left unstable, over the window of the image that it looks at. `lower_only` spares the last
    layer's upper side, +inf there.
    """
    graph = trace(network, input_shape)
    return by_rows(
        graph,
        lambda region: crown_ends(graph, region).ends,
        lambda relaxation, rows: relaxation.below(rows).value,
        lower_only=lower_only,
    )
