"""The bound `alpha-crown`."""

import torch
from torch import Tensor, nn

from etb_plugin.bounds.linear import TAKES, by_rows
from etb_plugin.bounds.registry import BoundFunction, register_bound
from etb_plugin.errors import ConfigError
from etb_plugin.graph.ends import crown_ends
from etb_plugin.graph.regions import Region
from etb_plugin.graph.relaxation import optimized
from etb_plugin.graph.tracing import trace


@register_bound("alpha-crown", sound=True, differentiable=False, balls=True, takes=TAKES, rigorous=True)
def alpha_crown(
    network: nn.Module, input_shape: torch.Size, *, steps: int = 20, lower_only: bool = False
) -> BoundFunction:
    """CROWN with its lower slopes optimised by gradient ascent (Xu et al. 2021).

    Layer by layer, each unit's own bound has slopes of its own, `steps` steps for each; the rows of the spec come
    last. Cost: about three times `steps` that of CROWN; `lower_only` spares the upper side of the last layer and
    returns +inf there. The result carries no gradient.
    """
    if steps < 1:
        raise ConfigError(f"alpha-crown needs steps >= 1, got {steps}")
    graph = trace(network, input_shape)
    apply = by_rows(
        graph,
        lambda region: crown_ends(graph, region, steps=steps).ends,
        lambda relaxation, rows: optimized(relaxation, rows, steps=steps)[0],
        lower_only=lower_only,
    )

    @torch.no_grad()
    def frozen(region: Region, spec: Tensor | None) -> tuple[Tensor, Tensor]:
        return apply(region, spec)

    return frozen
