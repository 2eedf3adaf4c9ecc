"""Builds a `Graph` from a plain `nn.Module`, through torch.fx.

Weights are read from the module at each use, so a graph stays right while its network trains. A layer that is
neither affine nor piecewise linear is refused here, by name, before any bound is computed.
"""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from etb_plugin.errors import ConfigError, UnsupportedLayer
from etb_plugin.graph.activations import PiecewiseLinear, Relu, clipped, leaky
from etb_plugin.graph.affine import Affine, Coherent, Conv, Linear, Reshape, Sum
from etb_plugin.graph.graph import Graph, Node

_PROBE_BATCH = 2  # batch norm refuses a batch of one in some layouts; two also tells batch from features


def trace(network: nn.Module, input_shape: torch.Size) -> Graph:
    """Return the graph of `network` for inputs of `input_shape` (without the batch).

    Raises UnsupportedLayer, naming the layer, for an operation that is neither affine nor piecewise linear,
    and ConfigError for a network in training mode whose layers then depend on the batch.
    """
    refuse_training_mode(network)
    try:
        module = fx.symbolic_trace(network)
    except Exception as error:
        raise UnsupportedLayer(
            f"{type(network).__name__} cannot be traced ({error}); its forward must not branch on values"
        ) from error
    return _Builder(module, input_shape).graph()


def refuse_training_mode(network: nn.Module) -> None:
    """Raise ConfigError where a layer of `network` behaves differently in training mode and is in it."""
    for name, layer in network.named_modules():
        if layer.training and isinstance(layer, nn.modules.batchnorm._BatchNorm | nn.modules.dropout._DropoutNd):
            raise ConfigError(
                f"layer '{name}' ({type(layer).__name__}) is in training mode, where outputs depend on the batch; "
                f"call network.eval() before bounding"
            )


def example_input(network: nn.Module, input_shape: torch.Size) -> Tensor:
    """Return zeros of a small batch in the dtype and on the device of the network's weights."""
    like = next(network.parameters(), torch.zeros(()))
    return torch.zeros(_PROBE_BATCH, *input_shape, dtype=like.dtype, device=like.device)


class _Builder:
    """One pass over an fx graph. `values` holds what each fx node gave for the probe; `positions` our nodes."""

    def __init__(self, module: fx.GraphModule, input_shape: torch.Size) -> None:
        self.module = module
        self.probe = example_input(module, input_shape)
        self.nodes: list[Node] = []
        self.positions: dict[fx.Node, int] = {}
        self.values: dict[fx.Node, Any] = {}

    def graph(self) -> Graph:
        interpreter = fx.Interpreter(self.module)
        with torch.no_grad():
            for node in self.module.graph.nodes:
                self._visit(node, interpreter)
        return Graph(tuple(self.nodes))

    def _visit(self, node: fx.Node, interpreter: fx.Interpreter) -> None:
        if node.op == "output":
            self._finish(node)
            return
        if node.op == "placeholder":
            if self.nodes:
                raise UnsupportedLayer("the network takes several inputs; bounds take networks of one")
            self.values[node] = self.probe
            self._append(node, None, ())
            return
        args = fx.map_arg(node.args, lambda n: self.values[n])
        kwargs = fx.map_arg(node.kwargs, lambda n: self.values[n])
        self.values[node] = getattr(interpreter, node.op)(node.target, args, kwargs)
        inputs = tuple(n for n in node.all_input_nodes if n in self.positions)
        if not inputs or not isinstance(self.values[node], Tensor):
            return  # a constant, or a size: part of the operations that use it
        operation = self._operation(node, inputs)
        if operation is None:
            self.positions[node] = self.positions[inputs[0]]
        else:
            self._append(node, operation, inputs)

    def _append(self, node: fx.Node, operation: Affine | PiecewiseLinear | None, inputs: tuple[fx.Node, ...]) -> None:
        self.positions[node] = len(self.nodes)
        shape = self.values[node].shape[1:]
        self.nodes.append(Node(self._name(node), operation, tuple(self.positions[n] for n in inputs), shape))

    def _finish(self, node: fx.Node) -> None:
        out = node.args[0]
        if not isinstance(out, fx.Node) or out not in self.positions or self.values[out].ndim != 2:
            raise UnsupportedLayer("the network must return one tensor of logits, [batch, classes]")
        # Layers behind the output would be walked for nothing.
        del self.nodes[self.positions[out] + 1 :]

    def _name(self, node: fx.Node) -> str:
        if node.op == "call_module":
            return f"'{node.target}' ({type(self.module.get_submodule(str(node.target))).__name__})"
        target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
        return f"'{node.name}' ({target})"

    def _operation(self, node: fx.Node, inputs: tuple[fx.Node, ...]) -> Affine | PiecewiseLinear | None:
        """Return the operation of `node`, or None where it passes its input on unchanged."""
        if node.op == "call_module":
            layer = self.module.get_submodule(str(node.target))
            for kind, make in _LAYERS.items():
                if isinstance(layer, kind):
                    return make(self, node, layer)
        elif (kind_of := _CALLS.get(node.target)) is not None:
            return kind_of(self, node, inputs)
        raise UnsupportedLayer(
            f"layer {self._name(node)} is neither affine nor elementwise piecewise linear; this bound cannot take it"
        )

    def closure(self, node: fx.Node, inputs: tuple[fx.Node, ...]) -> Callable[..., Tensor]:
        """Return the operation of `node` as a function of its inputs, everything else read afresh or fixed."""

        def read(argument: fx.Node, given: dict[fx.Node, Tensor]) -> Any:
            if argument in given:
                return given[argument]
            if argument.op == "get_attr":
                return _attribute(self.module, str(argument.target))
            return self.values[argument]

        def call(*tensors: Tensor) -> Tensor:
            given = dict(zip(inputs, tensors, strict=True))
            args = fx.map_arg(node.args, lambda n: read(n, given))
            kwargs = fx.map_arg(node.kwargs, lambda n: read(n, given))
            if node.op == "call_module":
                return self.module.get_submodule(str(node.target))(*args, **kwargs)
            if node.op == "call_method":
                return getattr(args[0], str(node.target))(*args[1:], **kwargs)
            return node.target(*args, **kwargs)  # type: ignore[operator]

        return call


def _attribute(module: nn.Module, path: str) -> Any:
    value: Any = module
    for part in path.split("."):
        value = getattr(value, part)
    return value


def _linear(builder: _Builder, node: fx.Node, layer: Any) -> Affine:
    return Linear(lambda: layer.weight, lambda: layer.bias)


def _conv(builder: _Builder, node: fx.Node, layer: Any) -> Affine:
    if layer.padding_mode != "zeros":
        raise UnsupportedLayer(f"layer {builder._name(node)} pads with {layer.padding_mode}; only zeros are taken")
    padding = layer.padding
    if isinstance(padding, str):
        spans = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        if padding == "same" and any(span % 2 for span in spans):
            raise UnsupportedLayer(f"layer {builder._name(node)} pads its two sides differently")
        padding = tuple(span // 2 if padding == "same" else 0 for span in spans)
    return Conv(lambda: layer.weight, lambda: layer.bias, layer.stride, padding, layer.dilation, layer.groups)


def _check_batch(builder: _Builder, node: fx.Node) -> None:
    if builder.values[node].shape[0] != _PROBE_BATCH:
        raise UnsupportedLayer(f"layer {builder._name(node)} mixes the batch into the features")


def _reshape(builder: _Builder, node: fx.Node, _: Any) -> Affine:
    _check_batch(builder, node)
    return Reshape(builder.values[node].shape[1:])


def _keep(builder: _Builder, node: fx.Node, _: Any) -> None:
    return None


def _dropout(builder: _Builder, node: fx.Node, _: Any) -> None:
    if _argument(node, 2, "training", True):
        raise UnsupportedLayer(f"layer {builder._name(node)} is random; pass training=False, or trace in eval mode")


def _relu(builder: _Builder, node: fx.Node, _: Any) -> Relu:
    return Relu()


def _argument(node: fx.Node, place: int, name: str, default: Any) -> Any:
    return node.kwargs.get(name, node.args[place] if len(node.args) > place else default)


def _leaky(builder: _Builder, node: fx.Node, layer: Any) -> PiecewiseLinear:
    return leaky(lambda: layer.negative_slope)


def _prelu(builder: _Builder, node: fx.Node, layer: Any) -> PiecewiseLinear:
    features = builder.values[node].ndim - 1
    return leaky(lambda: layer.weight.view(-1, *[1] * (features - 1)))


def _hardtanh(builder: _Builder, node: fx.Node, layer: Any) -> PiecewiseLinear:
    return clipped(layer.min_val, layer.max_val)


def _leaky_call(builder: _Builder, node: fx.Node, _: Any) -> PiecewiseLinear:
    slope = _argument(node, 1, "negative_slope", 0.01)
    return leaky(lambda: slope)


def _hardtanh_call(builder: _Builder, node: fx.Node, _: Any) -> PiecewiseLinear:
    return clipped(_argument(node, 1, "min_val", -1.0), _argument(node, 2, "max_val", 1.0))


def _clamp(builder: _Builder, node: fx.Node, _: Any) -> PiecewiseLinear:
    low, high = _argument(node, 1, "min", None), _argument(node, 2, "max", None)
    if low == 0 and high is None:
        return Relu()
    if not all(isinstance(end, int | float) for end in (low, high)):
        raise UnsupportedLayer(f"layer {builder._name(node)} needs two numbers to clamp to, or min=0 alone")
    return clipped(low, high)


def _gather(builder: _Builder, node: fx.Node, _: Any) -> Affine:
    _check_batch(builder, node)
    return Coherent(builder.closure(node, tuple(node.all_input_nodes)), homogeneous=True, gathering=True)


def _scale_and_shift(builder: _Builder, node: fx.Node, _: Any) -> Affine:
    return Coherent(builder.closure(node, tuple(node.all_input_nodes)))


def _rearrange(builder: _Builder, node: fx.Node, inputs: tuple[fx.Node, ...]) -> Affine:
    _check_batch(builder, node)
    return Coherent(builder.closure(node, inputs))


def _add(builder: _Builder, node: fx.Node, inputs: tuple[fx.Node, ...]) -> Affine:
    operands = [builder.values[n] for n in inputs]
    plain = len(node.args) == 2 and not node.kwargs and all(a in inputs for a in node.args)
    if plain and len(inputs) == 2 and operands[0].shape == operands[1].shape:
        return Sum()
    return _rearrange(builder, node, inputs)


def _product(builder: _Builder, node: fx.Node, inputs: tuple[fx.Node, ...]) -> Affine:
    if len(inputs) != 1 or sum(a is inputs[0] for a in node.args) != 1:
        raise UnsupportedLayer(f"layer {builder._name(node)} multiplies two values that depend on the input")
    return Coherent(builder.closure(node, inputs), homogeneous=True)


def _quotient(builder: _Builder, node: fx.Node, inputs: tuple[fx.Node, ...]) -> Affine:
    if node.args[0] is not inputs[0] or len(inputs) != 1 or node.args[1] is inputs[0]:
        raise UnsupportedLayer(f"layer {builder._name(node)} divides by a value that depends on the input")
    return Coherent(builder.closure(node, inputs), homogeneous=True)


_LAYERS: dict[Any, Callable[[_Builder, fx.Node, Any], Affine | PiecewiseLinear | None]] = {
    nn.Linear: _linear,
    nn.Conv1d | nn.Conv2d | nn.Conv3d: _conv,
    nn.ReLU: _relu,
    nn.Flatten | nn.Unflatten: _reshape,
    nn.Identity | nn.modules.dropout._DropoutNd: _keep,
    nn.LeakyReLU: _leaky,
    nn.PReLU: _prelu,
    nn.Hardtanh: _hardtanh,
    nn.AvgPool1d | nn.AvgPool2d | nn.AvgPool3d: _gather,
    nn.AdaptiveAvgPool1d | nn.AdaptiveAvgPool2d | nn.AdaptiveAvgPool3d: _gather,
    nn.modules.batchnorm._BatchNorm: _scale_and_shift,
    nn.ZeroPad2d | nn.ConstantPad1d | nn.ConstantPad2d | nn.ConstantPad3d: _scale_and_shift,
}

_CALLS: dict[Any, Callable[[_Builder, fx.Node, Any], Affine | PiecewiseLinear | None]] = {
    **dict.fromkeys([torch.relu, F.relu, "relu"], _relu),
    F.leaky_relu: _leaky_call,
    F.hardtanh: _hardtanh_call,
    F.relu6: lambda builder, node, _: clipped(0.0, 6.0),
    **dict.fromkeys([torch.clamp, torch.clip, "clamp", "clip"], _clamp),
    **dict.fromkeys(
        [
            *(torch.flatten, torch.reshape, torch.squeeze, torch.unsqueeze),
            *("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze"),
        ],
        _reshape,
    ),
    "contiguous": _keep,
    F.dropout: _dropout,
    **dict.fromkeys([operator.add, operator.iadd, torch.add, "add"], _add),
    **dict.fromkeys([operator.sub, torch.sub, "sub"], _rearrange),
    **dict.fromkeys([operator.neg, torch.neg, "neg", torch.cat, torch.concat], _rearrange),
    **dict.fromkeys([torch.permute, "permute", torch.transpose, "transpose", operator.getitem, F.pad], _rearrange),
    **dict.fromkeys([torch.mean, "mean", torch.sum, "sum", F.avg_pool2d, F.adaptive_avg_pool2d], _gather),
    **dict.fromkeys([operator.mul, torch.mul, "mul"], _product),
    **dict.fromkeys([operator.truediv, torch.div, "div"], _quotient),
}
