"""The expected tight bound (Alsubaihi et al. 2019, equations 1, 3 and 6). Not a certificate.

For f = A_L relu(... relu(A_1 x + b_1) ...) + b_L on the box of centre m and radius r, each activation is
replaced by the diagonal M_i = diag(1{u_i >= 0}), u_i being an upper bound of its input. What is left is affine,
G x + g, and its range over the box is (G m + g) -/+ |G| r. Theorem 1 makes that interval cover the true range
*in expectation over random Gaussian weights* of a wide enough network; on a given network it may not.

Two facts keep it cheap. G m + g is one forward pass of the masked network at m, so biases need no rows. And the
rows of G come from one batched transposed pass, whose gradient is an ordinary one: masks carry no gradient and
nothing is differentiated twice. Stored for the gradient: the rows at each layer, batch x rows x features.

The name `masks` selects u_i:
- "ibp" (the default; the paper's choice for convolutions, and the authors' code): interval bound propagation.
- "blockwise" (equation 6): u_i = G_{i-1} m + g_{i-1} + |G_{i-1}| r, the bound's own upper end at that layer; exact to
  the paper and quadratic in the number of units. Both agree on a network of two layers.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from etb_plugin.bounds.graph import Graph
from etb_plugin.bounds.registry import BoundFunction, register_bound
from etb_plugin.bounds.tracing import trace
from etb_plugin.bounds.types import Box, check_spec
from etb_plugin.errors import unknown_name

CENTERS = ("masked", "network")
_ROWS_AT_ONCE = 2**24
"""Elements of the rows that a blockwise layer may hold at the input, in any one step."""


@register_bound(
    "expected",
    sound=False,
    differentiable=True,
    takes="affine and ReLU layers in any graph: residual, batch norm (eval mode), average pooling, concatenation",
)
def expected(
    network: nn.Module, input_shape: torch.Size, *, masks: str = "ibp", center: str = "masked"
) -> BoundFunction:
    """The expected tight bound of Alsubaihi et al. (equations 3 and 6). NOT a certificate.

    `masks` is "ibp" or "blockwise" (see the module's text); `center` is "masked", the paper's G m + g, or
    "network", which puts f(m) there as the authors' training code does. Cost: with masks="ibp" two forward passes
    of the network, one of the masked network, and one transposed pass per row.
    """
    check_options(masks, center)
    graph = trace(network, input_shape)

    def apply(box: Box, spec: Tensor | None) -> tuple[Tensor, Tensor]:
        return expected_interval(graph, box, spec, masks=masks, center=center)

    return apply


def check_options(masks: str, center: str) -> None:
    """Raise ConfigError for a kind of masks or of centre that does not exist."""
    if masks not in MASKS:
        raise unknown_name("masks", masks, MASKS)
    if center not in CENTERS:
        raise unknown_name("center", center, CENTERS)


def expected_interval(graph: Graph, box: Box, spec: Tensor | None, *, masks: str, center: str) -> tuple[Tensor, Tensor]:
    """Return lower and upper, [batch, rows], of the expected bound on `graph` (equations 3 and 6)."""
    check_spec(spec, graph.nodes[-1].shape[0])
    m, r = box.center, box.radius
    with torch.no_grad():
        slopes = MASKS[masks](graph, m, r)
    middle = _masked_forward(graph, m, slopes if center == "masked" else {})
    if spec is None:
        rows = torch.eye(middle.shape[1], dtype=middle.dtype, device=middle.device).unsqueeze(0)
    else:
        rows = spec.to(middle.dtype)
        middle = torch.einsum("brk,bk->br", rows, middle)
    deviation = _spread(graph.pull_back(len(graph.nodes) - 1, rows, slopes), r)
    return middle - deviation, middle + deviation


def _spread(rows: Tensor, r: Tensor) -> Tensor:
    """Return |rows| r, [batch, rows], for rows [batch or 1, rows, *input] and r [batch, *input]."""
    return (rows.flatten(2).abs() @ r.flatten(1).unsqueeze(2)).squeeze(2)


def _masked_forward(graph: Graph, m: Tensor, slopes: dict[int, Tensor]) -> Tensor:
    """Return the output at `m` of the network whose activations are the diagonals `slopes`.

    An activation without one is applied as it is, so that no slopes at all give f(m).
    """
    values = [m]
    for i in range(1, len(graph.nodes)):
        values.append(_step(graph, i, values, slopes))
    return values[-1]


def _step(graph: Graph, i: int, values: list[Tensor], slopes: dict[int, Tensor]) -> Tensor:
    node = graph.nodes[i]
    assert node.operation is not None
    if i in slopes:
        return values[node.inputs[0]] * slopes[i]
    return node.operation.forward(*(values[j] for j in node.inputs))


def _ibp_masks(graph: Graph, m: Tensor, r: Tensor) -> dict[int, Tensor]:
    """u_i by interval bound propagation (section 4, "easy-to-compute IBP upper bounds")."""
    intervals = graph.intervals(m, r)
    slopes = {}
    for i, relu in graph.activations.items():
        center, radius = intervals[graph.nodes[i].inputs[0]]
        slopes[i] = relu.slope(center + radius)
    return slopes


def _blockwise_masks(graph: Graph, m: Tensor, r: Tensor) -> dict[int, Tensor]:
    """u_i = G_{i-1} m + g_{i-1} + |G_{i-1}| r (equation 6), layer after layer."""
    slopes: dict[int, Tensor] = {}
    activations, values = graph.activations, [m]
    for i in range(1, len(graph.nodes)):
        if i in activations:
            source = graph.nodes[i].inputs[0]
            upper = values[source] + _deviation_of_units(graph, source, slopes, r)
            slopes[i] = activations[i].slope(upper)
        values.append(_step(graph, i, values, slopes))
    return slopes


def _deviation_of_units(graph: Graph, position: int, slopes: dict[int, Tensor], r: Tensor) -> Tensor:
    """Return |G| r for every unit of a node, [batch, *features], some units' rows at a time."""
    shape = graph.nodes[position].shape
    at_once = max(1, _ROWS_AT_ONCE // r.numel())
    parts = []
    for start in range(0, shape.numel(), at_once):
        units = torch.arange(start, min(start + at_once, shape.numel()), device=r.device)
        rows = torch.zeros(1, len(units), shape.numel(), dtype=r.dtype, device=r.device)
        rows[0, torch.arange(len(units), device=r.device), units] = 1
        rows = graph.pull_back(position, rows.unflatten(2, shape), slopes)
        parts.append(_spread(rows, r))
    return torch.cat(parts, dim=1).unflatten(1, shape)


MASKS: dict[str, Callable[[Graph, Tensor, Tensor], dict[int, Tensor]]] = {
    "ibp": _ibp_masks,
    "blockwise": _blockwise_masks,
}
"""Kinds of masks: (graph, centre, radius) -> the diagonal of each activation, [batch, *features], by position."""
