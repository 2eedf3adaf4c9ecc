"""Makes the expected bound a method of auto_LiRPA's own `BoundedModule.compute_bounds`.

    BoundedModule(net, x).compute_bounds(x=(BoundedTensor(x, PerturbationLpNorm(eps=0.1)),), C=C, method="expected")

works on every graph that auto_LiRPA converts, by the same walks as `bound("expected", net, box)`. Every other method
name goes to auto_LiRPA's own code untouched. Options travel where auto_LiRPA keeps its own:
`BoundedModule(net, x, bound_opts={"expected": {"masks": "blockwise"}})`.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from etb_plugin.bounds.expected import Expected
from etb_plugin.bounds.registry import get_bound
from etb_plugin.errors import ConfigError, UnsupportedLayer
from etb_plugin.graph.activations import PiecewiseLinear, Relu, leaky
from etb_plugin.graph.affine import Affine, Coherent, Conv, Linear
from etb_plugin.graph.graph import Graph, Node
from etb_plugin.graph.regions import Ball, Box, Region
from etb_plugin.lirpa.bounds import BoundedModule

METHOD = "expected"


def register() -> None:
    """Add `method="expected"` to auto_LiRPA. Calling it again changes nothing; importing the package does it."""
    original = BoundedModule.compute_bounds
    if getattr(original, "takes_expected", False):
        return

    @functools.wraps(original)
    def compute_bounds(self: Any, x: Any = None, aux: Any = None, C: Any = None, *args: Any, **kwargs: Any) -> Any:
        method = args[0] if args else kwargs.get("method")
        if isinstance(method, str) and method.lower() == METHOD:
            return _expected(self, x, C, *args[1:], **{k: v for k, v in kwargs.items() if k != "method"})
        return original(self, x, aux, C, *args, **kwargs)

    compute_bounds.takes_expected = True  # type: ignore[attr-defined]
    BoundedModule.compute_bounds = compute_bounds


def _expected(
    module: Any,
    x: Any,
    C: Tensor | None,
    *,
    bound_lower: bool = True,
    bound_upper: bool = True,
    **unused: Any,
) -> tuple[Tensor | None, Tensor | None]:
    """Return lower and upper, [batch, rows], as `compute_bounds` would; an end not asked for is None."""
    if unused:
        raise ConfigError(f"method='expected' takes no argument {min(unused)!r} of compute_bounds")
    entry, given = get_bound(METHOD), module.bound_opts.get(METHOD, {})
    entry.check_options(given)
    settings = Expected(**{**entry.options, **given})
    if x is not None:
        module._set_input(*x)
    source, region = _input_region(module)
    module.get_forward_value(module[module.final_name])
    graph = _convert(module, source)
    lower, upper = settings.interval(graph, region, C)
    return (lower if bound_lower else None), (upper if bound_upper else None)


def _input_region(module: Any) -> tuple[Any, Region]:
    """Return auto_LiRPA's one perturbed input node, and the box or ball around it."""
    perturbed = [n for n in module._modules.values() if getattr(n, "perturbation", None) is not None]
    if len(perturbed) != 1 or getattr(perturbed[0], "input_index", None) is None:
        raise ConfigError(
            f"method='expected' takes one perturbed input, and no perturbed weights; {len(perturbed)} nodes are"
        )
    node = perturbed[0]
    ball, value = node.perturbation, torch.as_tensor(node.value.data)
    norm = getattr(ball, "norm", None)
    if norm in (1, 2):
        return node, Ball(value, ball.eps, norm)
    if norm != math.inf:
        raise ConfigError(f"method='expected' takes l_inf, l_2 and l_1 balls; got {ball}")
    lower = value - ball.eps if ball.x_L is None else ball.x_L
    upper = value + ball.eps if ball.x_U is None else ball.x_U
    return node, Box(lower.expand_as(value), upper.expand_as(value), ordered=True)


def _convert(module: Any, source: Any) -> Graph:
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


def _operation(node: Any) -> Affine | PiecewiseLinear:
    make = _OPERATIONS.get(_kind(node))
    if make is None:
        raise UnsupportedLayer(
            f"layer {_label(node)} is neither affine nor elementwise piecewise linear; method='expected' cannot take it"
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
    """A coherent map by the node's own forward, whose constants may hold the batch size of this call."""

    def transpose(self, rows: Tensor, shapes: Any) -> list[Tensor]:
        assert isinstance(self.function, _NodeFunction)
        batch = len(self.function.node.forward_value)
        return super().transpose(rows.expand(batch, *rows.shape[1:]), shapes)


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


_OPERATIONS: dict[str, Callable[[Any], Affine | PiecewiseLinear]] = {
    "Relu": lambda node: Relu(),
    "LeakyRelu": lambda node: leaky(lambda: node.alpha),
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
