"""Builds a `Graph` from auto_LiRPA's own graph, by its operations' class names: in 0.3 and in 0.7."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from etb_plugin.errors import ConfigError, UnsupportedLayer
from etb_plugin.graph.activations import Activation, Relu, leaky
from etb_plugin.graph.affine import Affine, Coherent, Conv, Linear
from etb_plugin.graph.graph import Graph, Node
from etb_plugin.graph.smooth import SIGMOID, TANH


def convert(module: Any, source: Any) -> Graph:
    """Return auto_LiRPA's graph as ours, from the perturbed input to the final node."""
    positions: dict[str, int] = {source.name: 0}
    nodes = [Node(source.name, None, (), torch.Size(source.value.shape[1:]))]
    for node in _in_order(module):
        inputs = tuple(positions[n.name] for n in node.inputs if n.name in positions)
        if node.name in positions or not inputs or not node.perturbed:
            continue
        nodes.append(Node(_label(node), _operation(node), inputs, torch.Size(node.forward_value.shape[1:])))
        positions[node.name] = len(nodes) - 1
    if len(nodes[-1].shape) != 1:
        raise UnsupportedLayer(f"method='expected' needs outputs [batch, classes]; got {list(nodes[-1].shape)}")
    return Graph(tuple(nodes))


def _in_order(module: Any) -> list[Any]:
    """Return the nodes that the final node depends on, each after its inputs."""
    ordered: dict[str, Any] = {}
    stack = [(module[module.final_name], False)]
    while stack:
        node, inputs_done = stack.pop()
        if inputs_done:
            ordered[node.name] = node
        elif node.name not in ordered:
            stack.append((node, True))
            stack += [(n, False) for n in node.inputs]
    return list(ordered.values())


def _label(node: Any) -> str:
    return f"'{node.name}' ({_kind(node)})"


def _kind(node: Any) -> str:
    return type(node).__name__.removeprefix("Bound")


def _operation(node: Any) -> Affine | Activation:
    make = _OPERATIONS.get(_kind(node))
    if make is None:
        raise UnsupportedLayer(
            f"layer {_label(node)} is neither affine nor an elementwise function that method='expected' takes"
        )
    return make(node)


@dataclass(frozen=True)
class _NodeFunction:
    """An auto_LiRPA node's own forward as a function of its perturbed inputs, everything else at its value."""

    node: Any

    def __call__(self, *tensors: Tensor) -> Tensor:
        given = iter(tensors)
        return self.node.forward(*(next(given) if n.perturbed else n.forward_value for n in self.node.inputs))


@dataclass(frozen=True)
class _NodeMap(Coherent):
    """A coherent map by the node's own forward, whose constants may hold the batch size of this call: rows are no
    further examples to it."""

    def transpose(self, rows: Tensor, shapes: Any) -> list[Tensor]:
        assert isinstance(self.function, _NodeFunction)
        batch = len(self.function.node.forward_value)
        points = [rows.new_zeros(batch, *shape) for shape in shapes]
        derivative = torch.func.vjp(self.function, *points)[1]
        return list(torch.vmap(derivative, in_dims=1, out_dims=1)(rows.expand(batch, *rows.shape[1:])))

    def push(self, *columns: Tensor) -> Tensor:
        at_zero = self.function(*(torch.zeros_like(c[:, 0]) for c in columns))
        return torch.vmap(self.function, in_dims=1, out_dims=1)(*columns) - at_zero.unsqueeze(1)


def _coherent(node: Any) -> Affine:
    return _NodeMap(_NodeFunction(node))


def _gather(node: Any) -> Affine:
    return _NodeMap(_NodeFunction(node), gathering=True)


def _scaled(node: Any) -> Affine:
    """A product or quotient: affine only where the other operand is constant."""
    if sum(n.perturbed for n in node.inputs) != 1 or (_kind(node) == "Div" and node.inputs[1].perturbed):
        raise UnsupportedLayer(f"layer {_label(node)} combines two values that depend on the input")
    return _coherent(node)


def _batch_norm(node: Any) -> Affine:
    if node.training:
        raise ConfigError(f"layer {_label(node)} is in training mode; call eval() before bounding")
    return _coherent(node)


def _linear(node: Any) -> Affine:
    """A matrix product with a constant, in either order of ONNX's Gemm; auto_LiRPA's own code scales and transposes."""
    if not node.inputs[0].perturbed or any(n.perturbed for n in node.inputs[1:]):
        raise UnsupportedLayer(f"layer {_label(node)} needs the input on the left and a constant on the right")
    zero_row = torch.zeros_like(node.inputs[0].forward_value[:1])
    features = zero_row.shape[-1]

    def image(points: Tensor) -> Tensor:
        return node.forward(points, *(n.forward_value for n in node.inputs[1:]))

    def bias() -> Tensor:
        return image(zero_row).flatten(0, -2)[0]

    def weight() -> Tensor:
        if _kind(node) == "Linear" and not node.transA and node.attr.get("alpha", 1.0) == 1.0:
            matrix = node.inputs[1].forward_value
            return matrix if node.transB else matrix.t()
        eye = torch.eye(features, dtype=zero_row.dtype, device=zero_row.device)
        return (image(eye) - bias()).t()

    return Linear(weight, bias)


def _conv(node: Any) -> Affine:
    if any(n.perturbed for n in node.inputs[1:]):
        raise UnsupportedLayer(f"layer {_label(node)} has perturbed weights")
    weight = node.inputs[1].forward_value
    bias = node.inputs[2].forward_value if len(node.inputs) > 2 else None
    return Conv(
        lambda: weight,
        lambda: bias,
        stride=tuple(node.stride),
        padding=tuple(node.padding),
        dilation=tuple(node.dilation),
        groups=node.groups,
    )


def _keep(node: Any) -> Affine:
    return Coherent(lambda x: x, homogeneous=True)


_OPERATIONS: dict[str, Callable[[Any], Affine | Activation]] = {
    "Relu": lambda node: Relu(),
    "LeakyRelu": lambda node: leaky(lambda: node.alpha),
    "Sigmoid": lambda node: SIGMOID,
    "Tanh": lambda node: TANH,
    "Linear": _linear,
    "MatMul": _linear,
    "Conv": _conv,
    "BatchNormalization": _batch_norm,
    **dict.fromkeys(["Mul", "Div"], _scaled),
    **dict.fromkeys(["Identity", "Cast"], _keep),
    **dict.fromkeys(["Add", "Sub", "Neg", "Concat", "ConcatFromSequence", "Pad"], _coherent),
    **dict.fromkeys(["Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Expand"], _coherent),
    **dict.fromkeys(["Slice", "Split", "Gather", "GatherElements"], _coherent),
    **dict.fromkeys(["AveragePool", "GlobalAveragePool", "ReduceMean", "ReduceSum", "CumSum"], _gather),
}
"""auto_LiRPA's operations by class name without `Bound`, in 0.3 and in 0.7."""
