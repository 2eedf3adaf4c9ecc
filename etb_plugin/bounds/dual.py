"""The bound `dual`."""

import torch
from torch import Tensor, nn

from etb_plugin.bounds.linear import TAKES, in_blocks
from etb_plugin.bounds.registry import BoundFunction, register_bound
from etb_plugin.graph.ends import dual_ends
from etb_plugin.graph.regions import Region
from etb_plugin.graph.relaxation import Relaxation
from etb_plugin.graph.tracing import trace


@register_bound("dual", sound=True, differentiable=True, balls=True, takes=TAKES)
def dual(network: nn.Module, input_shape: torch.Size, *, lower_only: bool = False) -> BoundFunction:
    """The dual bound of Wong and Kolter (2018), Fast-Lin: the chord's slope on both sides of every activation.

    Layer by layer, from the same bound of every unit. A certificate. Cost: a row for every unit, over the window of
    the image that it looks at; both ends come from one. `lower_only` gives +inf for upper ends, and spares nothing.
    """
    graph = trace(network, input_shape)

    def bounded(region: Region, rows: Tensor) -> tuple[Tensor, Tensor]:
        lower, upper, _, _ = Relaxation(graph, region, dual_ends(graph, region)).between(rows)
        return lower, torch.full_like(upper, torch.inf) if lower_only else upper

    return in_blocks(graph, bounded)
