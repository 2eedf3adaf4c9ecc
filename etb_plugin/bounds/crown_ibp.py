"""The bound `crown-ibp`."""

import torch
from torch import nn

from etb_plugin.bounds.linear import TAKES, by_rows
from etb_plugin.bounds.registry import BoundFunction, register_bound
from etb_plugin.graph.ends import interval_ends
from etb_plugin.graph.tracing import trace


@register_bound("crown-ibp", sound=True, differentiable=True, balls=True, takes=TAKES)
def crown_ibp(network: nn.Module, input_shape: torch.Size, *, lower_only: bool = False) -> BoundFunction:
    """CROWN's backward pass over interval arithmetic's ends (Zhang et al. 2020).

    Cost: IBP, and one transposed pass per row and side; `lower_only` spares the upper side and returns +inf there.
    """
    graph = trace(network, input_shape)
    return by_rows(
        graph,
        lambda region: interval_ends(graph, region)[0],
        lambda relaxation, rows: relaxation.below(rows).value,
        lower_only=lower_only,
    )
