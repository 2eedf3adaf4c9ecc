"""convex_adversarial's own dual, `dual:by=convex_adversarial`: what ours is held against, and random projections."""

from collections import Counter

import torch
from convex_adversarial import Dense, DenseSequential, DualNetwork
from convex_adversarial.dual_inputs import InfBallBounded
from torch import Tensor, nn
from torch.nn import functional as F

from etb_plugin.bounds.registry import BoundFunction, register_bound
from etb_plugin.bounds.types import check_spec, identity_rows
from etb_plugin.errors import ConfigError, UnsupportedLayer
from etb_plugin.graph.activations import Relu
from etb_plugin.graph.affine import Conv, Linear, Reshape, Sum
from etb_plugin.graph.graph import Graph, Node
from etb_plugin.graph.regions import Box
from etb_plugin.graph.tracing import trace
from etb_plugin.networks import split_normalization


@register_bound(
    "dual",
    by="convex_adversarial",
    sound=True,
    differentiable=True,
    takes="2d convolutions, fully connected and ReLU layers, in sequence or with additive skips; no batch norm; boxes",
    unsound_with=("projections",),
)
def dual_by_convex_adversarial(
    network: nn.Module, input_shape: torch.Size, *, projections: int | None = None, lower_only: bool = False
) -> BoundFunction:
    """The dual bound, by its authors' convex_adversarial; exact, or by random projections.

    Exact (the default) it is a certificate, and its cost grows with the number of input elements and of unstable
    units. With `projections=k` l1 norms are medians of k Cauchy projections (Wong et al. 2018, scaling, section 3.2):
    much cheaper, random (torch's global generator), and NOT a certificate. `lower_only` spares
    the upper side, +inf there.
    """
    if projections is not None and projections < 1:
        raise ConfigError(f"dual needs projections >= 1, got {projections}")
    normalize, rest = split_normalization(network)
    graph = trace(rest, input_shape)
    dense_sequential(graph)  # refuses what it cannot take, before any work
    classes = graph.classes

    def apply(box: Box, spec: Tensor | None) -> tuple[Tensor, Tensor]:
        check_spec(spec, classes)
        solved = _dual_network(dense_sequential(graph), box.mapped(normalize), projections)
        if spec is None:
            spec = identity_rows(box.lower, classes).expand(len(box), -1, -1)
        lower = solved(spec)
        return lower, torch.full_like(lower, torch.inf) if lower_only else -solved(-spec)

    return apply


def _dual_network(dense: nn.Sequential, box: Box, projections: int | None) -> DualNetwork:
    """Return convex_adversarial's dual over `box`.

    It knows balls cut to a range; the ball of the largest radius cut to [lower, upper] is the box itself.
    """
    kind = {} if projections is None else {"proj": projections, "norm_type": "l1_median"}
    solved = DualNetwork(
        dense, box.center, box.radius.max(), bounded_input=True, input_l=box.lower, input_u=box.upper, **kind
    )
    source = solved.dual_net[0]
    if projections is not None and not isinstance(source, InfBallBounded):
        # The projected input's objective forgets the range: its exact form is known, and no dearer.
        source.objective = lambda *nus: InfBallBounded.objective(source, *nus)
    return solved


def dense_sequential(graph: Graph) -> DenseSequential:
    """Return the graph as convex_adversarial's DenseSequential, sharing the weights.

    Raises UnsupportedLayer, naming the layer, for what its dual layers cannot take.
    """
    folded = _terms_of_sums(graph)
    residual = any(isinstance(node.operation, Sum) for node in graph.nodes)
    place = {0: 0}  # a node's position among the outputs that DenseSequential keeps
    layers: list[nn.Module] = []
    for i, node in enumerate(graph.nodes[1:], start=1):
        if i in folded:
            continue
        if isinstance(node.operation, Sum):
            layers.append(_sum(graph, node, folded, place, len(layers)))
        elif place[node.inputs[0]] != len(layers):
            raise UnsupportedLayer(f"layer {node.name}: convex_adversarial takes branches only where they are summed")
        else:
            layer = _layer(graph, node)
            # A layer behind which a skip may start has to be a Dense one; the last one has to be plain.
            inner = residual and isinstance(node.operation, Conv | Linear) and i < len(graph.nodes) - 1
            layers.append(Dense(layer) if inner else layer)
        place[i] = len(layers)
    if not layers or not isinstance(layers[-1], nn.Linear):
        raise UnsupportedLayer("convex_adversarial needs a fully connected last layer")
    return DenseSequential(*layers)


def _terms_of_sums(graph: Graph) -> set[int]:
    """Return the affine maps whose only use is a sum: they become terms of one Dense layer."""
    uses = Counter(j for node in graph.nodes for j in node.inputs)
    return {
        j
        for node in graph.nodes
        if isinstance(node.operation, Sum)
        for j in node.inputs
        if uses[j] == 1 and isinstance(graph.nodes[j].operation, Conv | Linear)
    }


def _sum(graph: Graph, node: Node, folded: set[int], place: dict[int, int], last: int) -> nn.Module:
    terms: dict[int, nn.Module] = {}
    for j in node.inputs:
        term = graph.nodes[j]
        if j in folded:
            terms[place[term.inputs[0]]] = _layer(graph, term)
        else:
            terms[place[j]] = nn.Sequential()  # convex_adversarial's identity
    if len(terms) != len(node.inputs) or last not in terms:
        raise UnsupportedLayer(f"layer {node.name}: convex_adversarial sums the last output and an earlier one")
    return Dense(*(terms.get(at) for at in range(min(terms), last + 1)))


def _layer(graph: Graph, node: Node) -> nn.Module:
    """Return the torch layer of `node`, holding the very same parameters."""
    operation = node.operation
    if isinstance(operation, Relu):
        return nn.ReLU()
    if isinstance(operation, Reshape) and len(operation.shape) == 1:
        return nn.Flatten()
    if isinstance(operation, Linear) and len(node.shape) == 1:
        weight = operation.weight()
        out, into = weight.shape
        return _filled(nn.Linear(into, out, device="meta"), node, weight, operation.bias())
    if isinstance(operation, Conv) and len(operation.stride) == 2:
        if operation.groups != 1 or set(operation.dilation) != {1}:
            raise UnsupportedLayer(f"layer {node.name}: convex_adversarial takes no groups and no dilation")
        weight = _covering_kernel(operation, node, graph.nodes[node.inputs[0]].shape)
        out, into, height, width = weight.shape
        layer = nn.Conv2d(into, out, (height, width), (1, 1), device="meta")
        layer.stride, layer.padding = operation.stride, operation.padding
        return _filled(layer, node, weight, operation.bias())
    raise UnsupportedLayer(f"layer {node.name}: convex_adversarial has no dual layer for it")


def _filled(layer: nn.Module, node: Node, weight: Tensor, bias: Tensor | None) -> nn.Module:
    if bias is None:
        raise UnsupportedLayer(f"layer {node.name}: convex_adversarial needs a bias")
    for name, value in (("weight", weight), ("bias", bias)):
        delattr(layer, name)
        setattr(layer, name, value)
    return layer


def _covering_kernel(conv: Conv, node: Node, before: torch.Size) -> Tensor:
    """Return the kernel, with zeros behind it where the stride leaves the last rows or columns unused.

    convex_adversarial's transposed convolution gives back the covered rows only; the longer kernel covers all
    and is the same map.
    """
    weight = conv.weight()
    missing = [
        size + 2 * pad - kernel - (out - 1) * step
        for size, pad, kernel, out, step in zip(
            before[1:], conv.padding, weight.shape[2:], node.shape[1:], conv.stride, strict=True
        )
    ]
    return F.pad(weight, (0, missing[1], 0, missing[0])) if any(missing) else weight
