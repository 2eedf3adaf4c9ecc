"""The bound `ibp`."""

from functools import partial

import torch
from torch import Tensor, nn

from etb_plugin.bounds.linear import TAKES
from etb_plugin.bounds.registry import BoundFunction, register_bound
from etb_plugin.bounds.types import check_spec
from etb_plugin.errors import ConfigError
from etb_plugin.graph.graph import Graph, reach
from etb_plugin.graph.regions import Region
from etb_plugin.graph.rounding import Slack, are_rigorous, gamma
from etb_plugin.graph.rows import Rows
from etb_plugin.graph.tracing import trace


@register_bound(
    "ibp", sound=True, differentiable=True, balls=True, takes=TAKES, unsound_with=("shrinkage",), rigorous=True
)
def ibp(network: nn.Module, input_shape: torch.Size, *, shrinkage: float | None = None) -> BoundFunction:
    """Interval bound propagation (Gowal et al. 2019, equations 6 and 7).

    Given a spec, the affine layers behind the last activations are folded into it (elision, section 3), which is
    tighter than bounding logits first. Cost: two forward passes.

    With `shrinkage` c the upper ends of the activations' inputs that cross 0 are taken c times (ReLU shrinkage, Müller
    et al. 2023): intervals that grow less, for training, and NO certificate.
    """
    if shrinkage is not None and not 0 < shrinkage <= 1:
        raise ConfigError(f"shrinkage is a factor beyond 0 and up to 1; got {shrinkage}")
    graph = trace(network, input_shape)

    tighten = None if shrinkage is None else partial(_shrunk, shrinkage)

    def apply(region: Region, spec: Tensor | None) -> tuple[Tensor, Tensor]:
        check_spec(spec, graph.classes)
        return spec_interval(graph, region, graph.intervals(region, tighten), spec)

    return apply


def _shrunk(factor: float, i: int, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    return low, torch.where((low < 0) & (high > 0), high * factor, high)


def spec_interval(
    graph: Graph, region: Region, values: list[tuple[Tensor, Tensor]], spec: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return lower and upper ends of the spec's rows, or the logits, from (centre, radius) at every node.

    Shapes: spec [batch, rows, classes], ends [batch, rows].
    """
    if spec is None:
        center, radius = values[-1]
        if are_rigorous():
            radius = radius + gamma() * (center.abs() + radius)
        return center - radius, center + radius
    rows = Rows(spec.to(region.center.dtype))
    slack = Slack(graph.sizes(values)) if are_rigorous() else None
    found, middle = graph.backward({graph.last: rows}, None, until=graph.activations, slack=slack)
    deviation: Tensor | float = 0.0
    for i, folded in found.items():
        center, radius = folded.over(*values[i]) if i else reach(region, folded)
        middle, deviation = middle + center, deviation + radius
        if slack is not None:
            slack.reach(i, folded)
    if slack is not None:
        deviation = deviation + slack.total
    return middle - deviation, middle + deviation  # type: ignore[return-value]
