"""What each layer and call of torch becomes in a graph: a new one is a function and its line in the tables.

A function takes the builder, the fx node, and the layer, or of a call the nodes that depend on the input. It returns an
operation, or the position of the graph's node that has the value, or None where that is the input's own.
"""

import itertools
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from etb_plugin.errors import UnsupportedLayer
from etb_plugin.graph.activations import Activation, Curved, PiecewiseLinear, Relu, clipped, leaky
from etb_plugin.graph.affine import Affine, Coherent, Conv, Dense, LargerOf, Linear, Reshape, Scale, Sum
from etb_plugin.graph.beside import ReluBeside, ReluDifference
from etb_plugin.graph.convex import EXP, LOG, RECIPROCAL, RSQRT, SQRT, SQUARE, Convex
from etb_plugin.graph.expansions import Steps, Value, hidden_by, without_infinity
from etb_plugin.graph.jumps import CEIL, FLOOR, ROUND, SIGN, Broken, Rounded, hard_shrink, step
from etb_plugin.graph.pieces import CONDITIONS
from etb_plugin.graph.recurrent import recurrence, unrolled
from etb_plugin.graph.smooth import (
    ATAN,
    ERF,
    GELU,
    GELU_TANH,
    HARD_SWISH,
    LOG_SIGMOID,
    MISH,
    SIGMOID,
    SILU,
    SOFTSIGN,
    TANH,
    TANHSHRINK,
    Smooth,
    elu,
    softplus,
)
from etb_plugin.graph.symbolic import argument
from etb_plugin.graph.waves import COS, SIN

if TYPE_CHECKING:  # a builder asks these tables
    from etb_plugin.graph.tracing import Builder

Operation = Affine | Activation


def _spread(value: Any, dimensions: int) -> tuple[int, ...]:
    return (value,) * dimensions if isinstance(value, int) else tuple(value) * (dimensions // len(tuple(value)))


# Layers.


def _linear(builder: "Builder", node: fx.Node, layer: Any) -> Affine:
    return Linear(lambda: layer.weight, lambda: layer.bias)


def _conv(builder: "Builder", node: fx.Node, layer: Any) -> Affine | int:
    padding, around = layer.padding, None
    if layer.padding_mode != "zeros":
        padding = (0,) * len(layer.kernel_size)
        around = partial(F.pad, pad=layer._reversed_padding_repeated_twice, mode=layer.padding_mode)
    return _convolution(
        builder, node, lambda: layer.weight, lambda: layer.bias, layer.stride, padding, layer.dilation,
        layer.groups, around,
    )  # fmt: skip


def _convolution(
    builder: "Builder",
    node: fx.Node,
    weight: Callable[[], Tensor],
    bias: Callable[[], Tensor | None],
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    around: Callable[[Tensor], Tensor] | None = None,
) -> Affine | int:
    """A convolution, of the value that `around` pads where that is not with zeros alike on both sides."""
    kernel = weight().shape[2:]
    n = len(kernel)
    if builder.values[node].ndim != n + 2:
        raise UnsupportedLayer(f"layer {builder.name(node)} takes the batch for channels")
    stride, dilation = _spread(stride, n), _spread(dilation, n)
    if isinstance(padding, str):
        spans = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        if padding == "same" and any(span % 2 for span in spans):  # one more behind, as torch has it
            around = partial(F.pad, pad=[side for s in reversed(spans) for side in (s // 2, s - s // 2)])
            padding = "valid"
        padding = tuple(span // 2 if padding == "same" else 0 for span in spans)
    layer = Conv(weight, bias, stride, _spread(padding, n), dilation, groups)
    if around is None:
        return layer
    steps = Steps(builder, node)
    padded = steps.moved(builder.value(node.all_input_nodes[0]), around)
    return steps.add(layer, builder.features(node), padded).position


def _reshape(builder: "Builder", node: fx.Node, _: Any) -> Affine:
    return Reshape(builder.features(node))


def _keep(builder: "Builder", node: fx.Node, _: Any) -> None:
    return None


def _dropout(builder: "Builder", node: fx.Node, _: Any) -> None:
    if argument(node, 2, "training", True):
        raise UnsupportedLayer(f"layer {builder.name(node)} is random; pass training=False, or trace in eval mode")


def _batch_norm(builder: "Builder", node: fx.Node, layer: Any) -> Affine:
    if layer.running_var is None:
        raise UnsupportedLayer(f"layer {builder.name(node)} keeps no statistics, so its outputs depend on the batch")
    shape = (1, -1, *[1] * (builder.values[node].ndim - 2))

    def factor() -> Tensor:
        scale = (layer.running_var + layer.eps).rsqrt()
        return (scale if layer.weight is None else scale * layer.weight).view(shape)

    def offset() -> Tensor:
        shift = -layer.running_mean.view(shape) * factor()
        return shift if layer.bias is None else shift + layer.bias.view(shape)

    def terms() -> Tensor:
        size = (layer.running_mean.view(shape) * factor()).abs()
        return size if layer.bias is None else size + layer.bias.view(shape).abs()

    return Scale(factor, offset, channels=True, terms=terms)


def _average(builder: "Builder", node: fx.Node, layer: Any) -> Affine:
    divisor = getattr(layer, "divisor_override", None)
    return _averaged(builder, node, layer.kernel_size, layer.stride, layer.padding, layer.count_include_pad, divisor)


def _average_call(builder: "Builder", node: fx.Node, inputs: tuple[fx.Node, ...]) -> Affine:
    kernel, stride = argument(node, 1, "kernel_size", None), argument(node, 2, "stride", None)
    padding, counted = argument(node, 3, "padding", 0), argument(node, 5, "count_include_pad", True)
    return _averaged(builder, node, kernel, stride, padding, counted, argument(node, 6, "divisor_override", None))


def _averaged(
    builder: "Builder", node: fx.Node, kernel: Any, stride: Any, padding: Any, counted: bool, override: int | None
) -> Affine:
    """Average pooling: the convolution that it is, where every output has one divisor."""
    shape = builder.features(node.all_input_nodes[0])
    n = len(shape) - 1
    kernel = _spread(kernel, n)
    stride, padding = _spread(stride or kernel, n), _spread(padding, n)
    plain = [(size + 2 * p - k) // s + 1 for size, k, s, p in zip(shape[1:], kernel, stride, padding, strict=True)]
    one_divisor = counted or not any(padding) or override
    weightless = next(builder.module.parameters(), None) is None  # whose inputs may be of any precision
    whole = tuple(plain) == tuple(builder.features(node)[1:]) and one_divisor  # no ceil_mode, no fewer at the rim
    if weightless or not whole:
        return _gather(builder, node, None)
    divisor = override or torch.Size(kernel).numel()
    weight = torch.full((shape[0], 1, *kernel), 1 / divisor, dtype=builder.probe.dtype, device=builder.probe.device)
    return Conv(lambda: weight, lambda: None, stride, padding, (1,) * n, shape[0])


def _max_pool(builder: "Builder", node: fx.Node, layer: Any) -> int:
    """Max pooling: the taps of its window, two by two."""
    if layer.return_indices:
        raise UnsupportedLayer(f"layer {builder.name(node)} returns indices")
    source = node.all_input_nodes[0]
    return _pooled(builder, node, source, layer.kernel_size, layer.stride, layer.padding, layer.dilation)


def _max_pool_call(builder: "Builder", node: fx.Node, inputs: tuple[fx.Node, ...]) -> int:
    kernel, stride = argument(node, 1, "kernel_size", None), argument(node, 2, "stride", None)
    padding, dilation = argument(node, 3, "padding", 0), argument(node, 4, "dilation", 1)
    return _pooled(builder, node, inputs[0], kernel, stride, padding, dilation)


def _pooled(
    builder: "Builder", node: fx.Node, source: fx.Node, kernel: Any, stride: Any, padding: Any, dilation: Any
) -> int:
    shape, out = builder.features(source), builder.features(node)
    n = len(shape) - 1
    kernel = _spread(kernel, n)
    stride = kernel if stride is None or stride == [] else _spread(stride, n)
    padding, dilation = _spread(padding, n), _spread(dilation, n)
    before, device = builder.positions[source], builder.probe.device
    reach = [
        step * (count - 1) - pad + dilate * (k - 1)
        for step, count, pad, dilate, k in zip(stride, out[1:], padding, dilation, kernel, strict=True)
    ]
    inner = not any(padding) and all(last < size for last, size in zip(reach, shape[1:], strict=True))
    taps = list(itertools.product(*(range(k) for k in kernel)))
    if inner:
        values = []
        for tap in taps:
            weight = torch.zeros(shape[0], 1, *kernel, dtype=builder.probe.dtype, device=device)
            weight.flatten(1)[:, int(np.ravel_multi_index(tap, kernel))] = 1
            operation = Conv(_always(weight), lambda: None, stride, (0,) * n, dilation, shape[0])
            values.append(builder.emit(node, operation, (before,)))
    else:  # outside the image there is nothing: an element of the window that is inside stands for it
        index = torch.zeros(len(taps), *out[1:], dtype=torch.long)
        known = torch.ones(len(taps), *out[1:], dtype=torch.bool)
        for d in range(n):
            places = torch.arange(out[1 + d]) * stride[d] - padding[d]
            along = places + dilation[d] * torch.tensor([tap[d] for tap in taps]).unsqueeze(1)
            along = along.view(len(taps), *[out[1 + d] if e == d else 1 for e in range(n)])
            known &= (along >= 0) & (along < shape[1 + d])
            index = index * shape[1 + d] + along.clamp(0, shape[1 + d] - 1)
        first = index.gather(0, known.int().argmax(0, keepdim=True))
        index = torch.where(known, index, first).to(device)
        values = []
        for tap_index in index:
            values.append(builder.emit(node, Coherent(partial(_picked, at=tap_index), homogeneous=True), (before,)))
    while len(values) > 1:
        pairs = zip(values[::2], values[1::2], strict=False)
        rest = values[-1:] if len(values) % 2 else []
        values = [_larger(builder, node, a, b, out) for a, b in pairs] + rest
    return values[0]


def _always(weight: Tensor) -> Callable[[], Tensor]:
    return lambda: weight


def _picked(x: Tensor, at: Tensor) -> Tensor:
    """Return the elements `at` [*out], by number, of every channel's image."""
    return x.flatten(2)[:, :, at]


def _larger(builder: "Builder", node: fx.Node, a: int, b: int, shape: torch.Size) -> int:
    """Return the position of the larger of two nodes' values: a + max(b - a, 0)."""
    difference = builder.emit(node, Sum(), (_negated(builder, node, a, shape), b), shape)
    hinge = builder.emit(node, Relu(), (difference,), shape)
    return builder.emit(node, LargerOf(), (a, b, hinge), shape)


def _negated(builder: "Builder", node: fx.Node, a: int, shape: torch.Size) -> int:
    return Steps(builder, node).scaled(Value(a, shape), -1.0).position


def _extreme(sign: int) -> Callable[..., int]:
    """Return the maker of an elementwise maximum (1) or minimum (-1)."""

    def make(builder: "Builder", node: fx.Node, inputs: tuple[fx.Node, ...]) -> int:
        shape = builder.features(node)
        if any(builder.features(n) != shape for n in inputs) or _occurrences(node, inputs[0]) != 1:
            raise UnsupportedLayer(f"layer {builder.name(node)} needs two values of one shape")
        if len(inputs) == 1:
            constant = builder.elementwise(node, next(a for a in node.args if a is not inputs[0]))
            return _beyond_constant(builder, node, builder.positions[inputs[0]], constant, sign)
        a, b = (builder.positions[n] for n in inputs)
        if sign > 0:
            return _larger(builder, node, a, b, shape)
        a, b = (_negated(builder, node, one, shape) for one in (a, b))
        return _negated(builder, node, _larger(builder, node, a, b, shape), shape)

    return make


def _beyond_constant(builder: "Builder", node: fx.Node, x: int, constant: Callable[[], Tensor], sign: int) -> int:
    """Return the position of max(x, c) = c + max(x - c, 0), or of min(x, c) = c - max(c - x, 0)."""
    shape = builder.features(node)
    factor = sign * _one(builder)(shape)
    moved = builder.emit(node, Scale(lambda: factor, lambda: -sign * constant()), (x,), shape)
    hinge = builder.emit(node, Relu(), (moved,), shape)
    return builder.emit(node, Scale(lambda: factor, constant), (hinge,), shape)


def _constant_like(builder: "Builder", node: fx.Node, inputs: tuple[fx.Node, ...]) -> int:
    """Zeros, ones or a number of the shape of a value."""
    filling, value = builder.values[node], builder.value(inputs[0])
    if filling.dtype != builder.probe.dtype:
        raise builder.unknown(node)
    return Steps(builder, node).scaled(value, 0.0, lambda: filling[:1]).position


def _chosen(builder: "Builder", node: fx.Node, inputs: tuple[fx.Node, ...]) -> Affine | int:
    """A choice by a constant condition. One by values is a known function (`composites`), or else a sum of a value and
    of what the other one is more, times the condition."""
    condition = argument(node, *((0, "condition") if node.target is torch.where else (1, "mask")), None)
    if condition in builder.positions:
        return _chosen_by_values(builder, node, condition)
    if bool(builder.values[node].isfinite().all()):
        return _rearrange(builder, node, inputs)
    if not _only_into_softmax(node):
        raise UnsupportedLayer(f"layer {builder.name(node)} puts in what is not finite")
    builder.features(node)
    choice = builder.closure(node, inputs)
    return Coherent(lambda *values: without_infinity(choice(*values)))


def _chosen_by_values(builder: "Builder", node: fx.Node, condition: fx.Node) -> int:
    steps, shape = Steps(builder, node), builder.features(node)
    if node.target is torch.where:
        taken, other = argument(node, 1, "input", None), argument(node, 2, "other", None)
    else:
        taken, other = argument(node, 2, "value", None), argument(node, 0, "input", None)
    values = [one for one in (condition, taken, other) if one in builder.positions]
    if any(builder.features(one) != shape for one in values):
        raise _no_choice(builder, node)
    chosen = builder.value(condition)
    one, two = (None if side in builder.positions else builder.elementwise(node, side) for side in (taken, other))
    if one and two:
        return steps.scaled(chosen, lambda: one() - two(), two).position
    first = builder.value(taken) if one is None else steps.scaled(chosen, 0.0, one)
    second = builder.value(other) if two is None else steps.scaled(chosen, 0.0, two)
    more = steps.product(chosen, steps.minus(first, second))
    return steps.add(Sum(), shape, second, more).position


def _only_into_softmax(node: fx.Node) -> bool:
    return all(CALLS.get(user.target) is _softmax for user in node.users)


def _compared(builder: "Builder", node: fx.Node, inputs: tuple[fx.Node, ...]) -> Broken | int:
    """1 where a value is above another one, or above a constant, and 0 where not."""
    word = node.target if isinstance(node.target, str) else node.target.__name__
    if word not in ("gt", "ge", "lt", "le") or len(node.args) != 2:
        raise _no_choice(builder, node)
    falls, at = word in ("lt", "le"), float(word in ("ge", "le"))
    if len(inputs) == 1 and node.args[0] is inputs[0] and isinstance(node.args[1], float | int):
        return step(float(node.args[1]), at, falls=falls)
    steps, shape = Steps(builder, node), builder.features(node)
    if len(inputs) == 2:
        if any(builder.features(n) != shape for n in inputs):
            raise _no_choice(builder, node)
        difference = steps.minus(builder.value(inputs[0]), builder.value(inputs[1]))
    else:
        constant = builder.elementwise(node, next(a for a in node.args if a is not inputs[0]))
        first = node.args[0] is inputs[0]
        difference = steps.scaled(builder.value(inputs[0]), 1.0, lambda: -constant())
        falls = falls == first
    return steps.add(step(0.0, at, falls=falls), shape, difference).position


def _no_choice(builder: "Builder", node: fx.Node) -> UnsupportedLayer:
    return UnsupportedLayer(
        f"layer {builder.name(node)} decides by values; taken are comparisons (>, >=, <, <=) of two values of one "
        f"shape, or with a constant, and choices between such values"
    )


# Activations.


def _relu(builder: "Builder", node: fx.Node, _: Any) -> Relu:
    return Relu()


def _relu_beside(builder: "Builder", node: fx.Node, _: Any) -> int:
    first, u, v = (builder.value(n) for n in node.args)
    steps, size = Steps(builder, node), first.shape.numel()
    both = Coherent(lambda x, y: torch.stack([x.flatten(1), y.flatten(1)], -1), homogeneous=True)
    joined = steps.add(both, (size, 2), u, steps.minus(v, u))
    difference = steps.reshaped(steps.add(ReluDifference(), (size,), joined), first.shape)
    return steps.add(Sum(), first.shape, first, difference).position


def _absolute(builder: "Builder", node: fx.Node, _: Any) -> PiecewiseLinear:
    return PiecewiseLinear(lambda: -1.0, 0.0, lambda: ((0.0, 2.0),))


def _leaky(builder: "Builder", node: fx.Node, layer: Any) -> PiecewiseLinear:
    return leaky(lambda: layer.negative_slope)


def _prelu(builder: "Builder", node: fx.Node, layer: Any) -> PiecewiseLinear:
    features = builder.values[node].ndim - 1
    return leaky(lambda: layer.weight.view(-1, *[1] * (features - 1)))


def _prelu_call(builder: "Builder", node: fx.Node, _: Any) -> PiecewiseLinear:
    features, weight = builder.values[node].ndim - 1, argument(node, 1, "weight", None)
    return leaky(lambda: builder.constant(weight).view(-1, *[1] * (features - 1)))


def _hardtanh(builder: "Builder", node: fx.Node, layer: Any) -> PiecewiseLinear:
    return clipped(layer.min_val, layer.max_val)


def _soft_shrink(builder: "Builder", node: fx.Node, layer: Any) -> PiecewiseLinear:
    reach = float(layer.lambd if node.op == "call_module" else argument(node, 1, "lambd", 0.5))
    return PiecewiseLinear(lambda: 1.0, reach, lambda: ((-reach, -1.0), (reach, 1.0)))


def _threshold(builder: "Builder", node: fx.Node, layer: Any) -> PiecewiseLinear | Broken:
    if node.op == "call_module":
        threshold, value = layer.threshold, layer.value
    else:
        threshold, value = argument(node, 1, "threshold", None), argument(node, 2, "value", None)
    if threshold != value:
        return Broken((float(threshold),), ((0.0, float(value)), (1.0, 0.0)), (float(value),))
    return PiecewiseLinear(lambda: 0.0, float(value), lambda: ((float(threshold), 1.0),))


def _hard_shrink(builder: "Builder", node: fx.Node, layer: Any) -> Broken:
    return hard_shrink(float(layer.lambd if node.op == "call_module" else argument(node, 1, "lambd", 0.5)))


def _heaviside(builder: "Builder", node: fx.Node, inputs: tuple[fx.Node, ...]) -> Broken:
    at = builder.constant(argument(node, 1, "values", None)) if len(inputs) == 1 else None
    if at is None or at.numel() != 1:
        raise builder.unknown(node)
    return step(0.0, float(at))


def _round(builder: "Builder", node: fx.Node, _: Any) -> Rounded:
    if node.kwargs.get("decimals"):
        raise UnsupportedLayer(f"layer {builder.name(node)} rounds to decimals; write round(10 * x) / 10")
    return ROUND


def _hard_sigmoid(builder: "Builder", node: fx.Node, _: Any) -> PiecewiseLinear:
    return PiecewiseLinear(lambda: 0.0, 0.0, lambda: ((-3.0, 1 / 6), (3.0, -1 / 6)))


def _leaky_call(builder: "Builder", node: fx.Node, _: Any) -> PiecewiseLinear:
    slope = argument(node, 1, "negative_slope", 0.01)
    return leaky(lambda: slope)


def _hardtanh_call(builder: "Builder", node: fx.Node, _: Any) -> PiecewiseLinear:
    return clipped(argument(node, 1, "min_val", -1.0), argument(node, 2, "max_val", 1.0))


def _clamp(builder: "Builder", node: fx.Node, _: Any) -> PiecewiseLinear | None:
    ends = argument(node, 1, "min", None), argument(node, 2, "max", None)
    low, high = (None if isinstance(end, float) and math.isinf(end) else end for end in ends)  # type: Any, Any
    if low is None and high is None:
        return None
    if not all(end is None or isinstance(end, int | float) for end in (low, high)):
        raise UnsupportedLayer(f"layer {builder.name(node)} needs numbers to clamp to")
    if low == 0 and high is None:
        return Relu()
    if high is None:
        return PiecewiseLinear(lambda: 0.0, low, lambda: ((low, 1.0),))
    if low is None:
        return PiecewiseLinear(lambda: 1.0, 0.0, lambda: ((high, -1.0),))
    return clipped(low, high)


def _elementwise(function: Curved) -> "_Maker":
    return lambda builder, node, _: function


def _gelu(builder: "Builder", node: fx.Node, layer: Any) -> Smooth:
    approximate = argument(node, 1, "approximate", "none") if node.op != "call_module" else layer.approximate
    return GELU if approximate == "none" else GELU_TANH


def _softplus(builder: "Builder", node: fx.Node, layer: Any) -> Smooth:
    if node.op == "call_module":
        beta, threshold = layer.beta, layer.threshold
    else:
        beta, threshold = argument(node, 1, "beta", 1.0), argument(node, 2, "threshold", 20.0)
    if not (beta > 0 and threshold >= 10):
        raise UnsupportedLayer(f"layer {builder.name(node)} needs beta > 0 and a threshold of 10 or more")
    return softplus(float(beta), float(threshold))


def _elu(builder: "Builder", node: fx.Node, layer: Any) -> Smooth:
    return elu(float(layer.alpha if node.op == "call_module" else argument(node, 1, "alpha", 1.0)))


def _celu(builder: "Builder", node: fx.Node, layer: Any) -> Smooth:
    alpha = float(layer.alpha if node.op == "call_module" else argument(node, 1, "alpha", 1.0))
    return elu(alpha, width=alpha)


_SELU = elu(1.6732632423543772848170429916717, scale=1.0507009873554804934193349852946)


# Affine calls.


def _gather(builder: "Builder", node: fx.Node, _: Any) -> Affine:
    builder.features(node)
    return Coherent(builder.closure(node, tuple(node.all_input_nodes)), homogeneous=True, gathering=True)


def _upsampled(builder: "Builder", node: fx.Node, layer: Any) -> Affine:
    return _interpolated(builder, node, layer.mode)


def _interpolated(builder: "Builder", node: fx.Node, mode: str) -> Affine:
    if mode == "bicubic":  # coefficients of both signs
        raise UnsupportedLayer(f"layer {builder.name(node)} interpolates by {mode}; nearest and linear ones are taken")
    return _gather(builder, node, None)


def _scale_and_shift(builder: "Builder", node: fx.Node, _: Any) -> Coherent:
    builder.features(node)
    return Coherent(builder.closure(node, tuple(n for n in node.all_input_nodes if n in builder.positions)))


def _normalized_call(builder: "Builder", node: fx.Node, inputs: tuple[fx.Node, ...]) -> Affine:
    if argument(node, 5, "training", False) or len(inputs) != 1:
        raise UnsupportedLayer(f"layer {builder.name(node)} normalises by the batch's own statistics")
    return replace(_scale_and_shift(builder, node, inputs), opaque=True)


def _attribute(builder: "Builder", node: fx.Node, inputs: tuple[fx.Node, ...]) -> Affine:
    if node.args[1] not in ("mT", "T"):
        raise builder.unknown(node)
    return _rearrange(builder, node, inputs)


def _rearrange(builder: "Builder", node: fx.Node, inputs: tuple[fx.Node, ...]) -> Affine:
    builder.features(node)
    return Coherent(builder.closure(node, inputs))


def _einsum(builder: "Builder", node: fx.Node, inputs: tuple[fx.Node, ...]) -> Affine | int:
    equation, *values = node.args
    if len(values) == 2 and all(v in builder.positions for v in values) and isinstance(equation, str):
        builder.features(node)
        return Steps(builder, node).einsum(equation, *(builder.value(v) for v in values)).position
    return _dense(builder, node, inputs)


def _dense(builder: "Builder", node: fx.Node, inputs: tuple[fx.Node, ...]) -> Affine:
    """A product with constants, in any order."""
    builder.features(node)
    if len(inputs) != 1 or _occurrences(node, inputs[0]) != 1:
        raise UnsupportedLayer(f"layer {builder.name(node)} multiplies two values that depend on the input")
    return Dense(builder.closure(node, inputs))


def _dense_layer(builder: "Builder", node: fx.Node, _: nn.Module) -> Affine:
    return _dense(builder, node, tuple(node.all_input_nodes))


def _occurrences(node: fx.Node, of: fx.Node) -> int:
    count = 0

    def visit(n: fx.Node) -> fx.Node:
        nonlocal count
        count += n is of
        return n

    fx.map_arg((node.args, node.kwargs), visit)
    return count


def _linear_call(builder: "Builder", node: fx.Node, inputs: tuple[fx.Node, ...]) -> Affine:
    weight, bias = argument(node, 1, "weight", None), argument(node, 2, "bias", None)
    if inputs != (node.args[0],):
        raise UnsupportedLayer(f"layer {builder.name(node)} multiplies two values that depend on the input")
    return Linear(lambda: builder.constant(weight), lambda: builder.constant(bias))


def _matmul(builder: "Builder", node: fx.Node, inputs: tuple[fx.Node, ...]) -> Affine | int:
    one, other = argument(node, 0, "input", None), argument(node, 1, _SECOND.get(node.target, "other"), None)
    if one in builder.positions and other in builder.positions:
        builder.features(node)
        return Steps(builder, node).matrix_product(builder.value(one), builder.value(other)).position
    if inputs == (one,) and builder.constant(other).ndim == 2:
        return Linear(lambda: builder.constant(other).t(), lambda: None)
    return _dense(builder, node, inputs)


def _conv_call(builder: "Builder", node: fx.Node, inputs: tuple[fx.Node, ...]) -> Affine | int:
    weight, bias = argument(node, 1, "weight", None), argument(node, 2, "bias", None)
    if inputs != (node.args[0],):
        raise UnsupportedLayer(f"layer {builder.name(node)} multiplies two values that depend on the input")
    return _convolution(
        builder, node, lambda: builder.constant(weight), lambda: builder.constant(bias),
        argument(node, 3, "stride", 1), argument(node, 4, "padding", 0), argument(node, 5, "dilation", 1),
        argument(node, 6, "groups", 1),
    )  # fmt: skip


def _one(builder: "Builder") -> Callable[[Sequence[int]], Tensor]:
    like = builder.probe
    return lambda shape: like.new_ones(1).expand(1, *shape)


def _add(builder: "Builder", node: fx.Node, inputs: tuple[fx.Node, ...]) -> Affine | int:
    return _sum(builder, node, inputs, 1)


def _subtract(builder: "Builder", node: fx.Node, inputs: tuple[fx.Node, ...]) -> Affine | int:
    return _sum(builder, node, inputs, -1)


def _sum(builder: "Builder", node: fx.Node, inputs: tuple[fx.Node, ...], sign: int) -> Affine | int:
    """A sum or a difference: of two branches, or of a value and a constant."""
    shape = builder.features(node)
    if len(node.args) != 2 or node.kwargs or any(builder.features(n) != shape for n in inputs):
        return _rearrange(builder, node, inputs)  # alpha=, or a branch that is broadcast
    one, two = node.args
    if len(inputs) == 2:
        a, b = (builder.positions[n] for n in (one, two))  # type: ignore[index]
        return builder.emit(node, Sum(), (a, b if sign > 0 else _negated(builder, node, b, shape)))
    if one is two:
        return _rearrange(builder, node, inputs)
    ones = _one(builder)(shape)
    if one is inputs[0]:
        offset = builder.elementwise(node, two)
        if _only_into_softmax(node):
            return Scale(lambda: ones, lambda: without_infinity(sign * offset()))
        return Scale(lambda: ones, lambda: sign * offset())
    offset = builder.elementwise(node, one)
    return Scale(lambda: sign * ones, offset)


def _negative(builder: "Builder", node: fx.Node, inputs: tuple[fx.Node, ...]) -> int:
    return _negated(builder, node, builder.positions[inputs[0]], builder.features(node))


def _product(builder: "Builder", node: fx.Node, inputs: tuple[fx.Node, ...]) -> Affine | int:
    one, other = argument(node, 0, "input", None), argument(node, 1, "other", None)
    if one in builder.positions and other in builder.positions:
        builder.features(node)
        return Steps(builder, node).product(builder.value(one), builder.value(other)).position
    if builder.features(inputs[0]) != builder.features(node) or node.kwargs:
        return Coherent(builder.closure(node, inputs), homogeneous=True)
    return Scale(builder.elementwise(node, next(a for a in node.args if a is not inputs[0])), lambda: None)


def _quotient(builder: "Builder", node: fx.Node, inputs: tuple[fx.Node, ...]) -> Affine | int:
    if node.kwargs.get("rounding_mode") is not None:
        raise UnsupportedLayer(f"layer {builder.name(node)} rounds")
    above, under = argument(node, 0, "input", None), argument(node, 1, "other", None)
    if isinstance(under, fx.Node) and under in builder.positions:
        builder.features(node)
        steps = Steps(builder, node)
        inverse = steps.reciprocal(builder.value(under))
        if isinstance(above, fx.Node) and above in builder.positions:
            return steps.product(builder.value(above), inverse).position
        if builder.features(under) != builder.features(node):
            raise UnsupportedLayer(f"layer {builder.name(node)} divides a constant that is larger than its divisor")
        return steps.scaled(inverse, builder.elementwise(node, above)).position
    if builder.features(inputs[0]) != builder.features(node):
        return Coherent(builder.closure(node, inputs), homogeneous=True)
    divisor = builder.elementwise(node, under)
    return Scale(lambda: 1 / divisor(), lambda: None)


# Several nodes.


def _convex(function: Convex) -> "_Maker":
    def make(builder: "Builder", node: fx.Node, _: Any) -> Convex:
        builder.features(node)
        return function

    return make


def _power(builder: "Builder", node: fx.Node, inputs: tuple[fx.Node, ...]) -> Convex | int:
    base, exponent = argument(node, 0, "input", None), argument(node, 1, "exponent", None)
    if isinstance(exponent, float | int) and base in builder.positions:
        if exponent == int(exponent) and 1 <= exponent <= 16:
            return Steps(builder, node).power(builder.value(base), int(exponent)).position
        if exponent in _POWERS:
            return _POWERS[exponent]
    raise UnsupportedLayer(
        f"layer {builder.name(node)} is a power; those of 1 to 16, 1/2, -1/2 and -1 of a value that depends on the "
        f"input are taken"
    )


_ROOT = replace(SQRT, floor=0.0)
"""Of a sum of squares."""
_POWERS = {0.5: SQRT, -0.5: RSQRT, -1.0: RECIPROCAL}


def _axis(builder: "Builder", node: fx.Node, dim: Any) -> int:
    """Return a dimension of a node's first input counted from the front, the batch being 0. Raises UnsupportedLayer for
    the batch's own, and for what is not one dimension."""
    dimensions = len(builder.features(node.all_input_nodes[0])) + 1
    if not isinstance(dim, int) or not dim % dimensions:
        raise UnsupportedLayer(f"layer {builder.name(node)} goes along the batch, or not along one dimension")
    return dim % dimensions


def _of_softmax(builder: "Builder", node: fx.Node, layer: Any) -> tuple[Value, int]:
    """Return the value that a softmax is taken of, and along which dimension."""
    value = builder.value(node.all_input_nodes[0])
    dim = layer.dim if node.op == "call_module" else argument(node, 1, "dim", None)
    if dim is None:
        dim = 0 if len(value.shape) == 2 else 1  # torch's own rule
    return value, _axis(builder, node, dim)


def _softmax(builder: "Builder", node: fx.Node, layer: Any) -> int:
    hidden = hidden_by(builder.values[node.all_input_nodes[0]])[0]  # by a mask before it
    return (
        Steps(builder, node)
        .softmax(*_of_softmax(builder, node, layer), hidden if bool(hidden.any()) else None)
        .position
    )


def _log_softmax(builder: "Builder", node: fx.Node, layer: Any) -> int:
    return Steps(builder, node).log_softmax(*_of_softmax(builder, node, layer)).position


def _log_sum_exp(builder: "Builder", node: fx.Node, inputs: tuple[fx.Node, ...]) -> int:
    dim = argument(node, 1, "dim", None)
    if isinstance(dim, tuple | list) and len(dim) == 1:
        (dim,) = dim
    value, keep = builder.value(inputs[0]), argument(node, 2, "keepdim", False)
    return Steps(builder, node).log_sum_exp(value, _axis(builder, node, dim), keep).position


def _variance(root: bool) -> "_Maker":
    """Return the maker of a variance or a standard deviation along some dimensions."""

    def make(builder: "Builder", node: fx.Node, inputs: tuple[fx.Node, ...]) -> int:
        value, steps = builder.value(inputs[0]), Steps(builder, node)
        dim, keep = argument(node, 1, "dim", None), bool(node.kwargs.get("keepdim", False))
        unbiased: Any = argument(node, 2, "unbiased", True)
        correction: Any = node.kwargs.get("correction", int(unbiased) if isinstance(unbiased, bool) else 0)
        if dim in (None, (), []) or not isinstance(unbiased, bool) or len(node.args) > 3:
            raise UnsupportedLayer(f"layer {builder.name(node)} is taken along dimensions that are named, by keywords")
        dims = [_axis(builder, node, d) for d in ([dim] if isinstance(dim, int) else dim)]
        count = math.prod(value.shape[d - 1] for d in dims)
        left = count - correction
        if left <= 0:
            raise UnsupportedLayer(f"layer {builder.name(node)} is of too few elements")
        found = steps.scaled(steps.mean_square(steps.centred(value, dims), dims, keep), count / left)
        return steps.add(_ROOT, found.shape, found).position if root else found.position

    return make


def _unit_length(builder: "Builder", node: fx.Node, inputs: tuple[fx.Node, ...]) -> int:
    """x / max(|x|, eps)"""
    value, steps = builder.value(inputs[0]), Steps(builder, node)
    power, dim, eps = (
        argument(node, i, name, old) for i, name, old in ((1, "p", 2.0), (2, "dim", 1), (3, "eps", 1e-12))
    )
    if power != 2:
        raise UnsupportedLayer(f"layer {builder.name(node)} is taken with p=2")
    along = partial(torch.sum, dim=_axis(builder, node, dim), keepdim=True)
    square = steps.gathered(steps.product(value, value), along)
    length = steps.add(
        PiecewiseLinear(lambda: 0.0, eps, lambda: ((eps, 1.0),)), square.shape, steps.add(_ROOT, square.shape, square)
    )
    return steps.product(value, steps.reciprocal(length)).position


def ends_in_softmax(builder: "Builder", node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(builder.module.get_submodule(str(node.target)), nn.Softmax | nn.LogSoftmax)
    return CALLS.get(node.target) in (_softmax, _log_softmax)


def _layer_norm(builder: "Builder", node: fx.Node, layer: Any) -> int:
    if node.op == "call_module":
        size, eps = len(layer.normalized_shape), layer.eps
        weight, bias = (lambda: layer.weight), (lambda: layer.bias)
    elif any(n in builder.positions for n in node.all_input_nodes[1:]):
        raise UnsupportedLayer(f"layer {builder.name(node)} has a weight that depends on the input")
    else:
        size, eps = len(argument(node, 1, "normalized_shape", ())), argument(node, 4, "eps", 1e-5)
        terms = [argument(node, place, name, None) for place, name in ((2, "weight"), (3, "bias"))]
        weight, bias = (partial(builder.constant, term) for term in terms)
    return _normalised(builder, node, size, eps, weight, bias)


def _rms_norm(builder: "Builder", node: fx.Node, layer: Any) -> int:
    eps = torch.finfo(builder.probe.dtype).eps if layer.eps is None else layer.eps
    return _normalised(
        builder, node, len(layer.normalized_shape), eps, lambda: layer.weight, lambda: None, centred=False
    )


def _normalised(
    builder: "Builder",
    node: fx.Node,
    size: int,
    eps: float,
    weight: Callable[[], Tensor | None],
    bias: Callable[[], Tensor | None],
    *,
    centred: bool = True,
) -> int:
    """Return the position of a value normalised over its last `size` dimensions, then scaled and shifted."""
    value, steps = builder.value(node.all_input_nodes[0]), Steps(builder, node)
    flat = steps.reshaped(value, (*value.shape[:-size], value.shape[-size:].numel()))
    found = steps.normalised(flat, eps, value.shape, centred=centred)
    if weight() is None:
        return found.position
    offset = None if bias() is None else bias
    return steps.scaled(found, weight, offset).position  # type: ignore[arg-type]


def _group_norm(builder: "Builder", node: fx.Node, layer: Any) -> int:
    value, steps = builder.value(node.all_input_nodes[0]), Steps(builder, node)
    if isinstance(layer, nn.GroupNorm):
        groups = layer.num_groups
    elif layer.track_running_stats:
        raise UnsupportedLayer(f"layer {builder.name(node)} normalises by running statistics")
    else:
        groups = value.shape[0]
    parts = steps.reshaped(value, (groups, value.shape.numel() // groups))
    found = steps.normalised(parts, layer.eps, value.shape)
    if layer.weight is None:
        return found.position
    shape = (1, -1, *[1] * (len(value.shape) - 1))
    return steps.scaled(found, lambda: layer.weight.view(shape), lambda: layer.bias.view(shape)).position


def _scaled_dot_product(builder: "Builder", node: fx.Node, inputs: tuple[fx.Node, ...]) -> int:
    three = [argument(node, place, name, None) for place, name in enumerate(("query", "key", "value"))]
    mask, causal = argument(node, 3, "attn_mask", None), argument(node, 5, "is_causal", False)
    others = (argument(node, 4, "dropout_p", 0.0), node.kwargs.get("enable_gqa", False), mask in builder.positions)
    if any(others) or not all(n in builder.positions for n in three):
        raise UnsupportedLayer(
            f"layer {builder.name(node)} is taken without dropout and groups, of values that depend on the input, "
            f"with a constant mask"
        )
    query, key, value = (builder.value(n) for n in three)
    tokens = query.shape[-2], key.shape[-2]
    like = builder.probe

    def added() -> Tensor:
        given = torch.ones(tokens, dtype=torch.bool, device=like.device).tril() if causal else builder.constant(mask)
        if given.dtype == torch.bool:
            given = torch.zeros_like(given, dtype=like.dtype).masked_fill(~given, -torch.inf)
        return given

    scale, offset = argument(node, 6, "scale", None), added if causal or mask is not None else None
    return Steps(builder, node).attention(query, key, value, scale, offset).position


_Maker = Callable[["Builder", fx.Node, Any], Operation | int | None]


LAYERS: dict[Any, _Maker] = {
    nn.Linear: _linear,
    nn.Conv1d | nn.Conv2d | nn.Conv3d: _conv,
    nn.ReLU: _relu,
    ReluBeside: _relu_beside,
    nn.Flatten | nn.Unflatten: _reshape,
    nn.Identity | nn.modules.dropout._DropoutNd: _keep,
    nn.LeakyReLU: _leaky,
    nn.PReLU: _prelu,
    nn.Hardtanh: _hardtanh,
    nn.Hardsigmoid: _hard_sigmoid,
    nn.Sigmoid: _elementwise(SIGMOID),
    nn.Tanh: _elementwise(TANH),
    nn.Softplus: _softplus,
    nn.GELU: _gelu,
    nn.SiLU: _elementwise(SILU),
    nn.Mish: _elementwise(MISH),
    nn.ELU: _elu,
    nn.CELU: _celu,
    nn.SELU: _elementwise(_SELU),
    nn.LogSigmoid: _elementwise(LOG_SIGMOID),
    nn.Softsign: _elementwise(SOFTSIGN),
    nn.Tanhshrink: _elementwise(TANHSHRINK),
    nn.Softshrink: _soft_shrink,
    nn.Hardshrink: _hard_shrink,
    nn.Threshold: _threshold,
    nn.Hardswish: _elementwise(HARD_SWISH),
    nn.MaxPool1d | nn.MaxPool2d | nn.MaxPool3d: _max_pool,
    nn.AvgPool1d | nn.AvgPool2d | nn.AvgPool3d: _average,
    nn.AdaptiveAvgPool1d | nn.AdaptiveAvgPool2d | nn.AdaptiveAvgPool3d: _gather,
    nn.modules.batchnorm._BatchNorm: _batch_norm,
    nn.Upsample: _upsampled,
    nn.PixelShuffle | nn.PixelUnshuffle | nn.ChannelShuffle: _gather,
    nn.modules.padding._ConstantPadNd | nn.modules.padding._ReflectionPadNd: _scale_and_shift,
    nn.modules.padding._ReplicationPadNd | nn.modules.padding._CircularPadNd: _scale_and_shift,
    nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d: _dense_layer,
    nn.Softmax: _softmax,
    nn.LogSoftmax: _log_softmax,
    nn.LayerNorm: _layer_norm,
    nn.RMSNorm: _rms_norm,
    nn.GroupNorm | nn.InstanceNorm1d | nn.InstanceNorm2d | nn.InstanceNorm3d: _group_norm,
}

MOVES = {
    *(torch.permute, "permute", torch.transpose, "transpose", torch.movedim, "movedim", torch.swapaxes, "swapaxes"),
    *(operator.getitem, torch.select, "select", torch.squeeze, "squeeze"),
}
"""What may make the batch another dimension than the first."""

CALLS: dict[Any, _Maker] = {
    **dict.fromkeys([torch.relu, torch.relu_, F.relu, F.relu_, "relu", "relu_"], _relu),
    **dict.fromkeys([torch.abs, "abs", "abs_", operator.abs], _absolute),
    **dict.fromkeys([F.leaky_relu, F.leaky_relu_], _leaky_call),
    **dict.fromkeys([torch.prelu, F.prelu, "prelu"], _prelu_call),
    F.hardtanh: _hardtanh_call,
    F.hardsigmoid: _hard_sigmoid,
    **dict.fromkeys([torch.sigmoid, torch.sigmoid_, F.sigmoid, "sigmoid", "sigmoid_"], _elementwise(SIGMOID)),
    **dict.fromkeys([torch.tanh, torch.tanh_, F.tanh, "tanh", "tanh_"], _elementwise(TANH)),
    **dict.fromkeys([torch.erf, torch.special.erf, "erf"], _elementwise(ERF)),
    F.softplus: _softplus,
    F.gelu: _gelu,
    F.silu: _elementwise(SILU),
    F.mish: _elementwise(MISH),
    F.elu: _elu,
    F.celu: _celu,
    **dict.fromkeys([F.selu, torch.selu], _elementwise(_SELU)),
    F.logsigmoid: _elementwise(LOG_SIGMOID),
    F.softsign: _elementwise(SOFTSIGN),
    **dict.fromkeys([F.hardshrink, torch.hardshrink], _hard_shrink),
    **dict.fromkeys([torch.sign, "sign", torch.sgn, "sgn"], _elementwise(SIGN)),
    **dict.fromkeys([torch.floor, "floor"], _elementwise(FLOOR)),
    **dict.fromkeys([torch.ceil, "ceil"], _elementwise(CEIL)),
    **dict.fromkeys([torch.round, "round"], _round),
    **dict.fromkeys([torch.heaviside, "heaviside"], _heaviside),
    F.tanhshrink: _elementwise(TANHSHRINK),
    F.softshrink: _soft_shrink,
    F.threshold: _threshold,
    **dict.fromkeys([torch.sin, "sin"], _elementwise(SIN)),
    **dict.fromkeys([torch.cos, "cos"], _elementwise(COS)),
    **dict.fromkeys([torch.atan, torch.arctan, "atan", "arctan"], _elementwise(ATAN)),
    F.hardswish: _elementwise(HARD_SWISH),
    F.relu6: lambda builder, node, _: clipped(0.0, 6.0),
    **dict.fromkeys([torch.clamp, torch.clip, "clamp", "clip", "clamp_", "clip_"], _clamp),
    **dict.fromkeys([torch.clamp_min, "clamp_min"], _clamp),
    **dict.fromkeys([torch.maximum, "maximum"], _extreme(1)),
    **dict.fromkeys([torch.minimum, "minimum"], _extreme(-1)),
    **dict.fromkeys([torch.where, torch.masked_fill, "masked_fill"], _chosen),
    **dict.fromkeys(CONDITIONS, _compared),
    **dict.fromkeys([torch.zeros_like, torch.ones_like, torch.full_like], _constant_like),
    **dict.fromkeys([F.max_pool1d, F.max_pool2d, F.max_pool3d, torch.max_pool1d, torch.max_pool2d], _max_pool_call),
    **dict.fromkeys(
        [
            *(torch.flatten, torch.reshape, torch.squeeze, torch.unsqueeze),
            *("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as", "reshape_as"),
        ],
        _reshape,
    ),
    **dict.fromkeys(["contiguous", "clone", torch.clone, "to", "type", "float", "double", "detach"], _keep),
    **dict.fromkeys([torch.nan_to_num, "nan_to_num"], _keep),
    F.dropout: _dropout,
    **dict.fromkeys([operator.add, operator.iadd, torch.add, "add", "add_"], _add),
    **dict.fromkeys([operator.sub, operator.isub, torch.sub, "sub", "sub_", torch.subtract, "subtract"], _subtract),
    **dict.fromkeys([operator.neg, torch.neg, "neg"], _negative),
    getattr: _attribute,
    **dict.fromkeys([torch.cat, torch.concat, torch.concatenate, torch.stack, torch.roll, torch.flip], _rearrange),
    **dict.fromkeys([F.pad, "flip", "roll", "narrow", "index_select", torch.narrow], _rearrange),
    **dict.fromkeys(["expand", "expand_as", "repeat", torch.tile, "tile"], _rearrange),
    **dict.fromkeys([F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d], _dense),
    **dict.fromkeys([torch.index_select, torch.rot90, "rot90", torch.fliplr, torch.flipud], _rearrange),
    **dict.fromkeys([torch.repeat_interleave, "repeat_interleave", torch.triu, "triu", torch.tril, "tril"], _rearrange),
    **dict.fromkeys([torch.diagonal, "diagonal", F.unfold], _rearrange),
    **dict.fromkeys([F.fold, torch.cumsum, "cumsum"], _gather),
    **dict.fromkeys([F.pixel_shuffle, F.pixel_unshuffle, torch.channel_shuffle], _gather),
    **dict.fromkeys([torch.diff, "diff"], _dense),
    **dict.fromkeys(MOVES - {torch.squeeze, "squeeze"}, _rearrange),
    **dict.fromkeys([torch.mean, "mean", torch.sum, "sum"], _gather),
    **dict.fromkeys([F.avg_pool1d, F.avg_pool2d, F.avg_pool3d], _average_call),
    **dict.fromkeys([F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d], _gather),
    **dict.fromkeys([operator.mul, operator.imul, torch.mul, "mul", "mul_", torch.multiply, "multiply"], _product),
    **dict.fromkeys([operator.truediv, operator.itruediv, torch.div, "div", "div_"], _quotient),
    **dict.fromkeys([torch.divide, "divide", torch.true_divide, "true_divide"], _quotient),
    F.linear: _linear_call,
    **dict.fromkeys([F.conv1d, F.conv2d, F.conv3d, torch.conv1d, torch.conv2d, torch.conv3d], _conv_call),
    **dict.fromkeys([torch.matmul, operator.matmul, "matmul", torch.mm, "mm", torch.bmm, "bmm"], _matmul),
    torch.einsum: _einsum,
    **dict.fromkeys([torch.addmm, torch.tensordot], _dense),
    **dict.fromkeys([torch.softmax, F.softmax, "softmax"], _softmax),
    **dict.fromkeys([torch.log_softmax, F.log_softmax, "log_softmax"], _log_softmax),
    **dict.fromkeys([torch.logsumexp, "logsumexp"], _log_sum_exp),
    recurrence: unrolled,
    F.scaled_dot_product_attention: _scaled_dot_product,
    F.layer_norm: _layer_norm,
    **dict.fromkeys([torch.var, "var"], _variance(root=False)),
    **dict.fromkeys([torch.std, "std"], _variance(root=True)),
    F.normalize: _unit_length,
    **dict.fromkeys([torch.exp, "exp"], _convex(EXP)),
    **dict.fromkeys([torch.log, "log"], _convex(LOG)),
    **dict.fromkeys([torch.square, "square"], _convex(SQUARE)),
    **dict.fromkeys([torch.sqrt, "sqrt"], _convex(SQRT)),
    **dict.fromkeys([torch.rsqrt, "rsqrt"], _convex(RSQRT)),
    **dict.fromkeys([torch.reciprocal, "reciprocal"], _convex(RECIPROCAL)),
    **dict.fromkeys([torch.pow, operator.pow, "pow"], _power),
    F.batch_norm: _normalized_call,
    F.interpolate: lambda builder, node, _: _interpolated(builder, node, argument(node, 3, "mode", "nearest")),
}

SIZES = {"size", "dim", "numel", "ndimension", getattr, len}
"""What may be asked of a value: its shape, and nothing that depends on its elements."""
SPLITS = {torch.chunk, torch.split, torch.unbind, "chunk", "split", "unbind"}
_SECOND = dict.fromkeys([torch.mm, torch.bmm, "mm", "bmm"], "mat2")
"""What the second factor is called, where it is not `other`."""
IN_PLACE = {operator.iadd, operator.isub, operator.imul, operator.itruediv}
