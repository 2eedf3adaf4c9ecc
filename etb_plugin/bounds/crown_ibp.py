"""The bound `crown-ibp`."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from etb_plugin.bounds.ibp import spec_interval
from etb_plugin.bounds.linear import TAKES, by_rows
from etb_plugin.bounds.registry import BoundFunction, register_bound
from etb_plugin.graph.ends import interval_ends
from etb_plugin.graph.regions import Region
from etb_plugin.graph.relaxation import Relaxation
from etb_plugin.graph.tracing import trace

TwoStages = Callable[[Region, Tensor, Callable[[Tensor, Tensor], Tensor]], tuple[Tensor, Tensor, Tensor]]
"""(region, spec, choose) -> lower and upper ends of the spec's rows by IBP, and lower ends by CROWN-IBP of the rows
that `choose` makes of those two, [batch, rows, classes]."""


@register_bound("crown-ibp", sound=True, differentiable=True, balls=True, takes=TAKES, rigorous=True)
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


def after_ibp(network: nn.Module, input_shape: torch.Size) -> TwoStages:
    """Prepare IBP's interval and, of rows that depend on it, CROWN-IBP's lower ends: one interval walk serves both."""
    graph = trace(network, input_shape)

    def apply(
        region: Region, spec: Tensor, choose: Callable[[Tensor, Tensor], Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        ends, values = interval_ends(graph, region)
        low, high = spec_interval(graph, region, values, spec)
        return low, high, Relaxation(graph, region, ends).below(choose(low, high)).value

    return apply
