"""The bound `dual`, exact or by random projections, and the linear functions behind it."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from etb_plugin.bounds.linear import TAKES, in_blocks
from etb_plugin.bounds.registry import BoundFunction, register_bound
from etb_plugin.errors import ConfigError
from etb_plugin.graph.ends import dual_ends
from etb_plugin.graph.graph import Graph
from etb_plugin.graph.projections import projected_ends
from etb_plugin.graph.regions import Box, Region
from etb_plugin.graph.relaxation import Relaxation
from etb_plugin.graph.tracing import trace

LinearBound = Callable[[Box, Tensor], tuple[Tensor, Tensor]]
"""(box, spec) -> coefficients [batch, rows, inputs] and constants [batch, rows]: on the box each row of the spec is at
least coefficients . x + constant, x being the input, flat."""


@register_bound("dual", sound=True, differentiable=True, balls=True, takes=TAKES, unsound_with=("projections",))
def dual(
    network: nn.Module, input_shape: torch.Size, *, projections: int | None = None, lower_only: bool = False
) -> BoundFunction:
    """The dual bound of Wong and Kolter (2018), Fast-Lin: the chord's slope on both sides of every activation.

    Layer by layer, from the same bound of every unit. A certificate. Cost: a row for every unit, over the window of
    the image that it looks at; both ends come from one. With `projections=k` the bounds of hidden units, of boxes, are
    estimated by k Cauchy columns (Wong et al. 2018, scaling, section 3.2; one set of columns for all layers): k forward
    passes, random (torch's own generator), and NOT a certificate. `lower_only` gives +inf for upper ends, and spares
    nothing.
    """
    graph = trace(network, input_shape)
    relaxed = _relaxed(graph, projections)

    def bounded(region: Region, rows: Tensor) -> tuple[Tensor, Tensor]:
        lower, upper, _, _ = relaxed(region).between(rows)
        return lower, torch.full_like(upper, torch.inf) if lower_only else upper

    return in_blocks(graph, bounded, columns=projections)


def prepare_linear(network: nn.Module, input_shape: torch.Size, *, projections: int | None = None) -> LinearBound:
    """Make ready the linear functions of the input behind the dual bound, whose least values over the box it is. Raises
    like `dual`."""
    graph = trace(network, input_shape)
    relaxed = _relaxed(graph, projections)

    def linear(box: Box, spec: Tensor) -> tuple[Tensor, Tensor]:
        _, _, rows, constants = relaxed(box).between(spec)
        return rows.values.flatten(2), constants

    return linear


def _relaxed(graph: Graph, projections: int | None) -> Callable[[Region], Relaxation]:
    if projections is not None and projections < 1:
        raise ConfigError(f"dual needs projections >= 1, got {projections}")

    def relaxed(region: Region) -> Relaxation:
        if projections is None:
            return Relaxation(graph, region, dual_ends(graph, region))
        if not isinstance(region, Box):
            raise ConfigError("dual with projections bounds boxes only: leave projections out for a ball")
        return Relaxation(graph, region, projected_ends(graph, region, projections))

    return relaxed
