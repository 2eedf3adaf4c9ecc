"""ONNX operations as torch's: what `onnx` reads files with. A new operation is one function and its line in the table.

Whatever is built here is held against onnxruntime before it is used; what has no bound is read all the same, and
refused by name by the bounds that cannot take it.
"""

import itertools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from etb_plugin.errors import UnsupportedLayer
from etb_plugin.graph.recurrent import recurrence
from etb_plugin.networks import onnx_exponentials


@dataclass(frozen=True)
class Value:
    """What depends on the network's input: its node in the graph, and what it is for an input of zeros, [1, ...].

    Both have the batch first, and then all other dimensions in the file's order; there the batch is the dimension
    `batch`: recurrent networks have steps first. It may be in one with a dimension before and one behind it (`merged`,
    how many of each), as tokens and heads are for linear layers and attention.
    """

    node: fx.Node
    probe: Tensor
    batch: int = 0
    merged: tuple[int, int] = (0, 0)

    @property
    def filed(self) -> Tensor:
        """The probe as the file has it."""
        features, last = self.probe.shape[1:], self.batch + sum(self.merged)
        return self.probe.reshape(*features[: self.batch], math.prod(features[self.batch : last]), *features[last:])

    @property
    def plain(self) -> bool:
        """Whether the file has it as the node does."""
        return not self.batch and not any(self.merged)

    def like(self, other: "Value") -> "Value":
        """Return this value with the batch where another one has it."""
        return replace(self, batch=other.batch, merged=other.merged)

    def dimension(self, axis: int) -> int:
        """Return which dimension of the node an axis of the file is, the batch being 0."""
        axis %= self.filed.ndim
        if axis == self.batch:
            if any(self.merged):
                raise ValueError("works along a dimension that holds the batch")
            return 0
        return 1 + axis if axis < self.batch else axis + sum(self.merged)


Operand = Value | Tensor
"""A value, or a constant."""


class Builder:
    """An fx graph in the making."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.root, self.graph = nn.Module(), fx.Graph()
        self.input = self.value(self.graph.placeholder("x"), torch.zeros(1, *shape, dtype=dtype))
        self._held = 0

    def run(self, function: Callable[..., Tensor] | str, *arguments: Any, **keywords: Any) -> Value:
        """Add a function, or a tensor's method by its name, of values, constants and plain arguments."""
        nodes = self._nodes(arguments), self._nodes(keywords)
        values, named = _probes(arguments), _probes(keywords)
        with torch.no_grad():
            if isinstance(function, str):
                node = self.graph.call_method(function, nodes[0], nodes[1])
                probe = getattr(values[0], function)(*values[1:], **named)
            else:
                node, probe = self.graph.call_function(function, nodes[0], nodes[1]), function(*values, **named)
        return self.value(node, probe)

    def value(self, node: fx.Node, probe: Tensor) -> Value:
        """Return what stands for a node whose batch is its first dimension, and is what it is for an input of zeros."""
        node.meta["probe"] = probe  # which `onnx_exponentials` asks for shapes
        return Value(node, probe)

    def layer(self, layer: nn.Module, x: Value) -> Value:
        """Add a torch layer."""
        name = self._name("layer")
        self.root.add_module(name, layer.eval())
        with torch.no_grad():
            return self.value(self.graph.call_module(name, (x.node,)), layer(x.probe))

    def network(self, output: Value) -> fx.GraphModule:
        """Return the network whose output is `output`, in eval mode."""
        self.graph.output(output.node)
        network = fx.GraphModule(self.root, self.graph).eval()
        network.graph.eliminate_dead_code()  # a comparison that a softplus was told by
        network.recompile()
        return network

    def _name(self, kind: str) -> str:
        self._held += 1  # counted here: torch's own lists leave out what is held twice
        return f"{kind}{self._held}"

    def _nodes(self, argument: Any) -> Any:
        if isinstance(argument, Value):
            return argument.node
        if isinstance(argument, Tensor):
            name = self._name("constant")
            self.root.register_buffer(name, argument)
            return self.graph.get_attr(name)
        if isinstance(argument, list | tuple):
            return type(argument)(self._nodes(part) for part in argument)
        if isinstance(argument, dict):
            return {key: self._nodes(part) for key, part in argument.items()}
        return argument


def _probes(argument: Any) -> Any:
    if isinstance(argument, Value):
        return argument.probe
    if isinstance(argument, list | tuple):
        return type(argument)(_probes(part) for part in argument)
    if isinstance(argument, dict):
        return {key: _probes(part) for key, part in argument.items()}
    return argument


@dataclass(frozen=True)
class Call:
    """One ONNX node: its operands (None where one is left out), attributes and number of outputs."""

    builder: Builder
    kind: str
    label: str
    operands: Sequence[Operand | None]
    attributes: Mapping[str, Any]
    outputs: int

    def refused(self, why: str) -> UnsupportedLayer:
        return UnsupportedLayer(f"operation {self.label!r} ({self.kind}): {why}")

    def get(self, name: str, default: Any) -> Any:
        return self.attributes.get(name, default)

    @property
    def any(self) -> Value:
        """The first operand, which has to be a value."""
        x = self.operands[0]
        if not isinstance(x, Value):
            raise self.refused("its first input has to depend on the network's")
        return x

    @property
    def first(self) -> Value:
        """The first operand, which has to be a value whose batch is a dimension of its own, whichever."""
        if any(self.any.merged):
            self.refuse_moved(self.any)
        return self.any

    @property
    def x(self) -> Value:
        """The first operand, which has to be a value whose batch is first."""
        self.refuse_moved(self.first)
        return self.first

    def constant(self, place: int) -> Tensor | None:
        """Return the constant operand at `place`, or None where there is none."""
        found = self.operands[place] if place < len(self.operands) else None
        if isinstance(found, Value):
            raise self.refused(f"its input {place} has to be constant")
        return found

    def numbers(self, place: int, name: str) -> list[Any] | None:
        """Return numbers that are an attribute in old opsets and an operand in new ones."""
        if name in self.attributes:
            given = self.attributes[name]
            return list(given) if isinstance(given, list | tuple) else [given]
        value = self.constant(place)
        return None if value is None else value.flatten().tolist()

    def axis(self, axis: int, rank: int | None = None) -> int:
        """Return an axis counted from the front. Refuses the batch's."""
        found = axis % (self.x.probe.ndim if rank is None else rank)
        if found == 0:
            raise self.refused("works along the batch")
        return found

    def run(self, function: Callable[..., Tensor] | str, *arguments: Any, **keywords: Any) -> Value:
        """Add a function of values whose batch is first."""
        self.refuse_moved((arguments, keywords))
        return self.builder.run(function, *arguments, **keywords)

    def run_at(self, batch: int, function: Callable[..., Tensor] | str, *arguments: Any, **keywords: Any) -> Value:
        """Add a function of nodes, all with the batch first, of whose result the batch is dimension `batch` in the
        file."""
        return replace(self.builder.run(function, *arguments, **keywords), batch=batch)

    def layer(self, layer: nn.Module, x: Value | None = None) -> Value:
        return self.builder.layer(layer, self.x if x is None else x)

    def layer_behind(self, layer: nn.Module) -> Value:
        """Add a layer of the last dimension, or of each element, wherever the batch is before that."""
        x = self.any
        if x.batch == x.filed.ndim - 1:
            self.refuse_moved(x)
        return self.builder.layer(layer, x).like(x)

    def refuse_moved(self, argument: Any) -> None:
        """Raise UnsupportedLayer for a value, or one among several, whose batch is not its first dimension."""
        if isinstance(argument, Value) and any(argument.merged):
            raise self.refused("mixes the batch into the features: a reshape before it put both into one dimension")
        if isinstance(argument, Value) and argument.batch:
            raise self.refused(f"takes a value whose batch is dimension {argument.batch}; it has to be the first")
        if isinstance(argument, dict):
            argument = list(argument.values())
        if isinstance(argument, list | tuple):
            for part in argument:
                self.refuse_moved(part)


Results = Operand | Sequence[Operand]


def made(make: Callable[[Call], Results], call: Call) -> list[Operand]:
    """Return what an ONNX node gives. Where it does not take a value whose parts are examples in the file, it gets
    them as examples."""
    parts = {o.probe.shape[1] for o in call.operands if isinstance(o, Value) and o.batch == 0 and o.merged == (0, 1)}
    try:
        return _listed(make(call))
    except UnsupportedLayer as refusal:
        if len(parts) != 1 or any(isinstance(o, Value) and o.plain for o in call.operands):
            raise
        operands = [_as_examples(call.builder, o) if isinstance(o, Value) else o for o in call.operands]
        try:
            results = _listed(make(replace(call, operands=operands)))
        except UnsupportedLayer:
            raise refusal from None
    (number,) = parts
    return [_as_parts(call.builder, o, number) if isinstance(o, Value) else o for o in results]


def _listed(results: Results) -> list[Operand]:
    return [results] if isinstance(results, Value | Tensor) else list(results)


def _as_examples(builder: Builder, x: Value) -> Value:
    """Return a value whose parts, a dimension behind the batch, are examples; the probe is of one."""
    node = builder.graph.call_method("reshape", (x.node, -1, *x.probe.shape[2:]))
    return builder.value(node, x.probe[:, 0])


def _as_parts(builder: Builder, x: Value, number: int) -> Value:
    shape = x.probe.shape[1:]
    node = builder.graph.call_method("reshape", (x.node, -1, number, *shape))
    return replace(builder.value(node, x.probe.unsqueeze(1).expand(1, number, *shape)), merged=(0, 1))


def _elementwise(function: Callable[..., Tensor]) -> Callable[[Call], Results]:
    """A function of one value."""
    return lambda call: call.builder.run(function, call.any).like(call.any)


def _fold(function: Callable[..., Tensor]) -> Callable[[Call], Results]:
    """A function of two operands, or of several one after the other."""

    def make(call: Call) -> Results:
        like = _like(call)
        first, *others = (_fitting(like, operand) for operand in call.operands)
        for other in others:
            first = call.builder.run(function, first, other).like(like)
        assert first is not None
        return first

    return make


def _like(call: Call) -> Value:
    """Return an operand of an elementwise operation that has the batch where all have it: what is not constant has one
    rank there, and constants do not differ along it."""
    values = [operand for operand in call.operands if isinstance(operand, Value)]
    like = max(values, key=lambda value: (value.merged, value.batch, value.probe.ndim))
    if not like.plain:
        alike = all((v.batch, v.merged, v.probe.ndim) == (like.batch, like.merged, like.probe.ndim) for v in values)
        if not alike or any(_fitting(like, operand) is None for operand in call.operands):
            call.refuse_moved(values)
    return like


def _fitting(like: Value, operand: Operand | None) -> Operand | None:
    """Return an operand as the node of `like` has it: constants that reach to the batch's dimension with that in front.
    None for a constant that cannot be had there."""
    rank = like.filed.ndim
    if not isinstance(operand, Tensor) or like.plain or operand.ndim < rank - like.batch:
        return operand
    whole = operand.reshape(*[1] * (rank - operand.ndim), *operand.shape)
    return (
        None if any(like.merged) or whole.ndim > rank or whole.shape[like.batch] != 1 else whole.movedim(like.batch, 0)
    )


def _limit(function: Callable[..., Tensor], side: str) -> Callable[[Call], Results]:
    """The larger or the smaller of operands: a clamp where one number is the other, exact however far away it lies."""
    several = _fold(function)

    def make(call: Call) -> Results:
        numbers = [o for o in call.operands if isinstance(o, Tensor) and o.numel() == 1]
        values = [o for o in call.operands if isinstance(o, Value)]
        if len(numbers) == len(values) == 1 == len(call.operands) - 1 and numbers[0].ndim <= values[0].probe.ndim:
            number = numbers[0].item()
            if math.isinf(number) and (number < 0) == (side == "min"):
                return values[0]
            return call.run(torch.clamp, values[0], **{side: number})
        return several(call)

    return make


def _unless_written_out(
    function: Callable[..., Tensor],
    found: Callable[[fx.Node, fx.Node], onnx_exponentials.Found | None],
    name: Callable[..., Tensor],
    **options: Any,
) -> Callable[[Call], Results]:
    """A function of two operands, but where it is the last of those that come to another one, by name."""
    plain = _fold(function)

    def make(call: Call) -> Results:
        one, other = (*call.operands, None)[:2]
        plainly = [o for o in (one, other) if isinstance(o, Value) and o.plain]
        if len(plainly) == 2:
            written = found(*(o.node for o in plainly))
            if written is not None:
                node, dimension = written
                return call.run(name, Value(node, node.meta["probe"]), dimension, **options)
        return plain(call)

    return make


def _mean(call: Call) -> Results:
    total = _fold(operator.add)(call)
    return call.run(operator.truediv, total, float(len(call.operands)))


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=weight.dtype)
    layer.weight.data = weight.contiguous()
    if bias is not None:
        layer.bias.data = bias.expand(weight.shape[0]).contiguous()
    return layer


def _gemm(call: Call) -> Results:
    weight, bias = call.constant(1), call.constant(2)
    if weight is None or call.get("transA", 0) or call.any.batch or call.any.filed.ndim != 2:
        raise call.refused("needs an input [batch, features], not transposed")
    scaled = call.get("alpha", 1.0) * (weight if call.get("transB", 0) else weight.T)
    return call.layer_behind(_linear(scaled, None if bias is None else call.get("beta", 1.0) * bias.flatten()))


def _matmul(call: Call) -> Results:
    weight = call.operands[1]
    if isinstance(weight, Tensor) and weight.ndim == 2:
        return call.layer_behind(_linear(weight.T, None))
    like = _like(call)
    if like.batch >= like.filed.ndim - 2 > 0:
        call.refuse_moved(like)
    return call.builder.run(torch.matmul, *(_fitting(like, operand) for operand in call.operands)).like(like)


def _pads(call: Call, kernel: Sequence[int], size: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return the padding before and behind each dimension of the image."""
    n, auto = len(kernel), call.get("auto_pad", b"NOTSET")
    if auto in (b"NOTSET", b"VALID"):
        pads = list(call.get("pads", [0] * (2 * n))) if auto == b"NOTSET" else [0] * (2 * n)
        return pads[:n], pads[n:]
    strides, dilations = call.get("strides", [1] * n), call.get("dilations", [1] * n)
    first, last = [], []
    for length, k, stride, dilation in zip(size, kernel, strides, dilations, strict=True):
        total = max(0, (math.ceil(length / stride) - 1) * stride + dilation * (k - 1) + 1 - length)
        first.append(total // 2 if auto == b"SAME_UPPER" else total - total // 2)
        last.append(total - first[-1])
    return first, last


def _padded(call: Call, kernel: Sequence[int]) -> tuple[tuple[int, ...], Value, list[int]]:
    """Return symmetric padding; or, where two sides differ, none, the input padded with zeros already, and by what, as
    `F.pad` takes it."""
    first, last = _pads(call, kernel, call.x.probe.shape[2:])
    if first == last:
        return tuple(first), call.x, []
    flat = _flat(first, last)
    return (0,) * len(first), call.run(F.pad, call.x, flat), flat


def _flat(first: Sequence[int], last: Sequence[int]) -> list[int]:
    """Return padding before and behind each dimension as `F.pad` takes it."""
    return [side for pair in zip(reversed(first), reversed(last), strict=True) for side in pair]


def _conv(call: Call) -> Results:
    weight, bias = call.constant(1), call.constant(2)
    if weight is None or not 3 <= weight.ndim <= 5:
        raise call.refused("needs constant weights over one to three dimensions")
    size = weight.ndim - 2
    padding, x, _ = _padded(call, weight.shape[2:])
    groups = call.get("group", 1)
    kinds: tuple[Callable[..., nn.Conv1d | nn.Conv2d | nn.Conv3d], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    layer = kinds[size - 1](
        weight.shape[1] * groups,
        weight.shape[0],
        tuple(weight.shape[2:]),
        tuple(call.get("strides", [1] * size)),
        padding,
        tuple(call.get("dilations", [1] * size)),
        groups,
        bias is not None,
        dtype=weight.dtype,
    )
    layer.weight.data = weight
    if bias is not None and layer.bias is not None:
        layer.bias.data = bias
    return call.layer(layer, x)


def _conv_transpose(call: Call) -> Results:
    weight, bias = call.constant(1), call.constant(2)
    if weight is None or not 3 <= weight.ndim <= 5:
        raise call.refused("needs constant weights over one to three dimensions")
    n = weight.ndim - 2
    strides, dilations = call.get("strides", [1] * n), call.get("dilations", [1] * n)
    extra, size = call.get("output_padding", [0] * n), call.x.probe.shape[2:]
    first, last = _cut(call, weight.shape[2:], size, strides, dilations, extra)
    both = [min(pair) for pair in zip(first, last, strict=True)]
    function = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[n - 1]
    x = call.run(
        function,
        call.x,
        weight,
        bias,
        tuple(strides),
        tuple(both),
        tuple(extra),
        call.get("group", 1),
        tuple(dilations),
    )
    for axis, (before, behind, done) in enumerate(zip(first, last, both, strict=True), start=2):
        if before != behind:
            x = call.run("narrow", x, axis, before - done, x.probe.shape[axis] - (before - done) - (behind - done))
    return x


def _cut(
    call: Call,
    kernel: Sequence[int],
    size: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    extra: Sequence[int],
) -> tuple[list[int], list[int]]:
    """Return what a transposed convolution takes off before and behind each dimension of its image."""
    n, auto, wanted = len(kernel), call.get("auto_pad", b"NOTSET"), call.get("output_shape", None)
    if wanted is None and auto in (b"NOTSET", b"VALID"):
        return _pads(call, kernel, size)
    if wanted is None:
        wanted = [length * stride for length, stride in zip(size, strides, strict=True)]
    whole = [
        stride * (length - 1) + more + dilation * (k - 1) + 1
        for stride, length, more, dilation, k in zip(strides, size, extra, dilations, kernel, strict=True)
    ]
    total = [max(0, full - out) for full, out in zip(whole, wanted[-n:], strict=True)]
    halves, rests = [some // 2 for some in total], [some - some // 2 for some in total]
    return (halves, rests) if auto == b"SAME_UPPER" else (rests, halves)


def _batch_norm(call: Call) -> Results:
    scale, shift, mean, variance = (call.constant(place) for place in (1, 2, 3, 4))
    if scale is None or shift is None or mean is None or variance is None or call.get("training_mode", 0):
        raise call.refused("needs constant statistics")
    kinds = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
    layer = kinds[call.x.probe.ndim](len(scale), call.get("epsilon", 1e-5), dtype=scale.dtype)
    statistics = {"weight": scale, "bias": shift, "running_mean": mean, "running_var": variance}
    layer.load_state_dict(statistics, strict=False)
    return call.layer(layer)


def _layer_norm(call: Call) -> Results:
    scale, shift = call.constant(1), call.constant(2)
    if scale is None or call.outputs > 1:
        raise call.refused("needs a constant scale, and gives no statistics")
    x, axis = call.first, call.get("axis", -1)
    dimension = _of_features(call, x, axis)
    if axis % x.filed.ndim < x.batch:
        call.refuse_moved(x)
    shape = x.probe.shape[dimension:]
    terms = [None if term is None else term.expand(shape) for term in (scale, shift)]
    return call.run_at(x.batch, F.layer_norm, x, tuple(shape), terms[0], terms[1], call.get("epsilon", 1e-5))


def _group_norm(call: Call) -> Results:
    scale, shift = call.constant(1), call.constant(2)
    channels = call.x.probe.shape[1]
    if scale is None or shift is None or len(scale) != channels:
        raise call.refused("needs a constant scale and shift for every channel")
    groups = call.get("num_groups", channels)  # an instance norm has one for each
    layer = nn.GroupNorm(groups, channels, call.get("epsilon", 1e-5), dtype=scale.dtype)
    layer.load_state_dict({"weight": scale, "bias": shift})
    return call.layer(layer)


def _einsum(call: Call) -> Results:
    return call.run(torch.einsum, call.get("equation", b"").decode(), *call.operands)


def _average_pool(call: Call) -> Results:
    kernel = tuple(call.get("kernel_shape", []))
    padding, x, flat = _padded(call, kernel)
    counted = bool(call.get("count_include_pad", 0))
    if set(call.get("dilations", [1])) != {1}:
        raise call.refused("is dilated")
    kinds = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
    stride, ceil = tuple(call.get("strides", [1] * len(kernel))), bool(call.get("ceil_mode", 0))
    layer = kinds[len(kernel) - 1](kernel, stride, padding, ceil, counted)  # type: ignore[arg-type]
    found = call.layer(layer, x)
    if not flat or counted:
        return found
    inside = layer(F.pad(torch.ones_like(call.x.probe), flat))  # the share of each window that is no padding
    return call.run(operator.mul, found, 1 / inside)


def _max_pool(call: Call) -> Results:
    kernel = tuple(call.get("kernel_shape", []))
    x, n = call.x, len(kernel)
    first, last = _pads(call, kernel, x.probe.shape[2:])
    stride, dilation = tuple(call.get("strides", [1] * n)), tuple(call.get("dilations", [1] * n))
    if first != last:
        if set(dilation) != {1}:
            raise call.refused("is dilated, and pads its two sides differently")
        # A window that reaches beyond the image has the image's last element in it: once more changes nothing.
        for axis, pair in enumerate(zip(first, last, strict=True), start=2):
            x = _repeated(call, x, axis, pair, "edge")
        first = [0] * n
    kinds = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
    layer = kinds[n - 1](kernel, stride, tuple(first), dilation, ceil_mode=bool(call.get("ceil_mode", 0)))
    return call.layer(layer, x)


def _along(call: Call) -> tuple[list[int], bool]:
    """Return the dimensions of its value's node that a reduction works along, all but the batch's where none are named,
    and whether they stay."""
    axes, x = call.numbers(1, "axes"), call.first
    if not axes:
        if axes is not None and call.get("noop_with_empty_axes", 0):
            return [], True
        axes = list(range(x.filed.ndim))
    return [_of_features(call, x, int(axis)) for axis in axes], bool(call.get("keepdims", 1))


def _reduced(
    function: Callable[..., Tensor],
    before: Callable[..., Tensor] | None = None,
    after: Callable[..., Tensor] | None = None,
) -> Callable[[Call], Results]:
    """A function along some axes, of what `before` makes of each element; `after` takes what that gives."""

    def make(call: Call) -> Results:
        axes, keep = _along(call)
        x = call.first
        batch = x.batch if keep else x.batch - sum(axis <= x.batch for axis in axes)  # the node has the batch first
        x = x if before is None else call.run_at(x.batch, before, x)
        x = call.run_at(batch, function, x, axes, keepdim=keep) if axes else x
        return x if after is None else call.run_at(batch, after, x)

    return make


def _global_max(call: Call) -> Results:
    return call.run(torch.amax, call.x, list(range(2, call.x.probe.ndim)), keepdim=True)


def _global_average(call: Call) -> Results:
    return call.run(torch.mean, call.x, list(range(2, call.x.probe.ndim)), keepdim=True)


def _reshape(call: Call) -> Results:
    shape, x = call.numbers(1, "shape"), call.any
    if shape is None or (0 in shape and call.get("allowzero", 0)):
        raise call.refused("needs a constant shape, and no empty one")
    return _as(call, x, [x.filed.shape[i] if s == 0 else s for i, s in enumerate(shape)])


def _as(call: Call, x: Value, shape: Sequence[int]) -> Value:
    """Return a value with the file's elements in another shape. The batch is found again by the number of elements
    before it and behind it."""
    found = x.filed.reshape(shape).shape
    before = math.prod(x.probe.shape[1 : 1 + x.batch + x.merged[0]])
    places = [
        (k, before // ahead, ahead * size // before)
        for k, (ahead, size) in enumerate(zip(itertools.accumulate((1, *found), operator.mul), found, strict=False))
        if before % ahead == 0 and (ahead * size) % before == 0
    ]
    if not places:
        raise call.refused("mixes the batch into the features")
    # By itself if it can be, then with the dimension behind it, but not with features: these are last.
    own = [place for place in places if place[1:] == (1, 1)]
    ahead = [place for place in places if place[0] < len(found) - 1] or places
    batch, first, last = min(own, key=lambda place: place[0] != x.batch) if own else ahead[-1]
    sizes = [size for size in (first, last) if size > 1]
    made = call.builder.run("reshape", x, -1, *found[:batch], *sizes, *found[batch + 1 :])
    return replace(made, batch=batch, merged=(int(first > 1), int(last > 1)))


def _flatten(call: Call) -> Results:
    """Two dimensions: of those before an axis, and of the others."""
    if call.any.batch:
        call.refuse_moved(call.any)
    shape = call.any.filed.shape
    axis = call.get("axis", 1)
    axis += len(shape) if axis < 0 else 0
    return _as(call, call.any, [math.prod(shape[:axis]), math.prod(shape[axis:])])


def _transpose(call: Call) -> Results:
    x = call.any
    order = call.get("perm", list(reversed(range(x.filed.ndim))))
    together = [1 + x.batch + i for i in range(sum(x.merged))]
    features = [d for axis in order for d in (together if axis == x.batch else [x.dimension(axis)])]
    made = call.builder.run("permute", x, 0, *features)
    return replace(made, batch=order.index(x.batch), merged=x.merged)


def _squeezed(call: Call) -> Results:
    x, axes = call.first, call.numbers(1, "axes")
    value, batch = x.filed, x.batch
    if axes is None:  # all of size 1, but the batch's
        axes = [axis for axis, size in enumerate(value.shape) if size == 1 and axis != batch]
    if call.kind == "Squeeze":
        for axis in sorted((axis % value.ndim for axis in axes), reverse=True):
            if axis == batch:
                raise call.refused("mixes the batch into the features")
            value, batch = value.squeeze(axis), batch - (axis < batch)
    else:
        for axis in sorted(axis % (value.ndim + len(axes)) for axis in axes):
            value, batch = value.unsqueeze(axis), batch + (axis <= batch)
    return call.run_at(batch, "reshape", x, -1, *value.movedim(batch, 0).shape[1:])


def _expand(call: Call) -> Results:
    shape = call.numbers(1, "shape")
    if shape is None:
        raise call.refused("needs a constant shape")
    x = call.x
    whole = torch.broadcast_shapes(x.probe.shape, tuple(shape))
    if whole[0] != 1 or len(whole) > x.probe.ndim:
        raise call.refused("mixes the batch into the features")
    return call.run("expand", x, -1, *whole[1:])


def _tile(call: Call) -> Results:
    repeats = call.numbers(1, "repeats")
    if repeats is None or repeats[0] != 1:
        raise call.refused("needs constant repeats, and none of the batch")
    return call.run("repeat", call.x, *repeats)


def _picked(call: Call, x: Value, dimension: int, index: Sequence[int]) -> Value:
    """Return some of a value along a dimension of its node, by their places."""
    return call.run_at(x.batch, torch.index_select, x, dimension, torch.tensor(index, dtype=torch.long))


def _slice(call: Call) -> Results:
    starts, ends = call.numbers(1, "starts"), call.numbers(2, "ends")
    if starts is None or ends is None:
        raise call.refused("needs constant places")
    axes = call.numbers(3, "axes") or list(range(len(starts)))
    steps = call.numbers(4, "steps") or [1] * len(starts)
    x = call.first
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = x.probe.shape[x.dimension(int(axis))]
        index = _places(int(start), int(end), int(step), size)
        if index != list(range(size)):
            x = _picked(call, x, _of_features(call, x, int(axis)), index)
    return x


def _of_features(call: Call, x: Value, axis: int) -> int:
    """Return the dimension of a value's node that an axis of the file is. Refuses the batch's."""
    dimension = x.dimension(axis)
    if dimension == 0:
        raise call.refused("works along the batch")
    return dimension


def _places(start: int, end: int, step: int, size: int) -> list[int]:
    """Return the places that ONNX's Slice takes: ends count from behind where negative, and are cut to the size."""
    start, end = (place + size if place < 0 else place for place in (start, end))
    if step > 0:
        return list(range(min(max(start, 0), size), min(max(end, 0), size), step))
    return list(range(min(max(start, 0), size - 1), min(max(end, -1), size - 1), step))


def _gather(call: Call) -> Results:
    index = call.constant(1)
    if index is None:
        raise call.refused("needs constant places")
    x, axis = call.first, call.get("axis", 0)
    dimension, shape = _of_features(call, x, axis), x.probe.shape
    picked = _picked(call, x, dimension, (index.flatten() % shape[dimension]).tolist())
    batch = x.batch + (index.ndim - 1 if axis % len(shape) < x.batch else 0)
    return call.run_at(batch, "reshape", picked, -1, *shape[1:dimension], *index.shape, *shape[dimension + 1 :])


def _split(call: Call) -> Results:
    x, sizes = call.first, call.numbers(1, "split")
    dimension = _of_features(call, x, call.get("axis", 0))
    whole = x.probe.shape[dimension]
    if sizes is None:
        each = math.ceil(whole / call.outputs)
        sizes = [min(each, whole - each * i) for i in range(call.outputs)]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    parts = zip(starts, sizes, strict=True)
    return [call.run_at(x.batch, "narrow", x, dimension, start, size) for start, size in parts]


def _top(call: Call) -> Results:
    x, numbers = call.first, call.numbers(1, "k")
    if numbers is None:
        raise call.refused("needs a constant k")
    dimension, largest = _of_features(call, x, call.get("axis", -1)), bool(call.get("largest", 1))
    several = call.builder.graph.call_function(torch.topk, (x.node, int(numbers[0]), dimension, largest))
    node = call.builder.graph.call_function(operator.getitem, (several, 0))
    probe = x.probe.topk(int(numbers[0]), dimension, largest).values
    return replace(call.builder.value(node, probe), batch=x.batch)  # and no indices, which jump


def _pad(call: Call) -> Results:
    pads, mode = call.numbers(1, "pads"), call.get("mode", b"constant").decode()
    if pads is None:
        raise call.refused("needs constant pads")
    axes, x = call.numbers(3, "axes") or list(range(call.x.probe.ndim)), call.x
    first, last = [0] * x.probe.ndim, [0] * x.probe.ndim
    for axis, before, behind in zip(axes, pads[: len(axes)], pads[len(axes) :], strict=True):
        first[int(axis)], last[int(axis)] = int(before), int(behind)
    if first[0] or last[0]:
        raise call.refused("pads the batch")
    if mode == "constant":
        fill = call.numbers(2, "value") or [0.0]
        return call.run(F.pad, x, _flat(first[1:], last[1:]), value=float(fill[0]))
    for axis, pair in enumerate(zip(first, last, strict=True)):
        x = _repeated(call, x, axis, pair, mode)
    return x


def _repeated(call: Call, x: Value, axis: int, pair: tuple[int, int], mode: str) -> Value:
    """Return a value with elements of its own before and behind it along an axis, as numpy's mode has them."""
    if pair == (0, 0):
        return x
    places: Any = np.pad(np.arange(x.probe.shape[axis]), pair, mode)  # type: ignore[call-overload]
    return _picked(call, x, axis, places.tolist())


def _concat(call: Call) -> Results:
    rank = max(o.probe.ndim if isinstance(o, Value) else o.ndim for o in call.operands if o is not None)
    values = [operand for operand in call.operands if isinstance(operand, Value)]
    if len(values) == len(call.operands) and len({(x.batch, x.probe.ndim) for x in values}) == 1:
        dimension = _of_features(call, values[0], call.get("axis", 1))
        return call.run_at(values[0].batch, torch.cat, values, dimension)
    axis = call.axis(call.get("axis", 1), rank)
    # Constants hold one example: each value is padded to the whole, and the constants are added.
    like = next(o.probe for o in call.operands if isinstance(o, Value))
    sizes = [(o.probe if isinstance(o, Value) else o).shape[axis] for o in call.operands if o is not None]
    total: Value | None = None
    parts = []
    for i, operand in enumerate(call.operands):
        if isinstance(operand, Value):
            around = [0, 0] * (rank - axis - 1) + [sum(sizes[:i]), sum(sizes[i + 1 :])]
            padded = call.run(F.pad, operand, around)
            total = padded if total is None else call.run(operator.add, total, padded)
            parts.append(torch.zeros_like(operand.probe))
        elif operand is not None:
            parts.append(operand.to(like))
    return call.run(operator.add, total, torch.cat(parts, axis))


def _compare(call: Call) -> Results:
    return call.run(_COMPARISONS[call.kind], *call.operands)


def _equal(call: Call) -> Results:
    """Of a value with itself it is true: what asks so looks for what is not a number."""
    one, other = call.operands
    if isinstance(one, Value) and isinstance(other, Value) and one.node is other.node:
        return torch.ones_like(one.filed, dtype=torch.bool)
    return call.run(torch.eq, one, other)


def _never(call: Call) -> Results:
    """Whether a value is infinite, or no number."""
    return torch.zeros_like(call.first.filed, dtype=torch.bool)


def _where(call: Call) -> Results:
    condition, *two = call.operands
    if isinstance(condition, Tensor) and (bool(condition.all()) or not bool(condition.any())):
        chosen = two[int(not condition.all())]
        if isinstance(chosen, Value) and torch.broadcast_shapes(*map(_shape_of, call.operands)) == chosen.filed.shape:
            return chosen
    return call.run(torch.where, *call.operands)


def _shape_of(operand: Operand | None) -> torch.Size:
    assert operand is not None
    return operand.filed.shape if isinstance(operand, Value) else operand.shape


def _shrink(call: Call) -> Results:
    reach, bias = float(call.get("lambd", 0.5)), float(call.get("bias", 0.0))
    below = call.run(torch.where, call.run(torch.lt, call.x, -reach), call.run(operator.add, call.x, bias), 0.0)
    return call.run(torch.where, call.run(torch.gt, call.x, reach), call.run(operator.sub, call.x, bias), below)


def _thresholded(call: Call) -> Results:
    return call.run(torch.where, call.run(torch.gt, call.x, float(call.get("alpha", 1.0))), call.x, 0.0)


def _quantized(call: Call) -> Results:
    """Whole numbers, which stay of the network's dtype: round(x / scale) + zero, within what their type holds."""
    x, like = call.any, call.constant(2)
    kind = _QUANTIZED.get(call.get("output_dtype", 0)) if like is None else like.dtype
    if kind is None or kind not in _QUANTIZED.values():
        raise call.refused("quantizes to another type than 8 or 16 bits")
    scaled = call.builder.run(operator.truediv, x, _of_channels(call, 1))
    moved = call.builder.run(operator.add, call.builder.run(torch.round, scaled), _of_channels(call, 2))
    limits = torch.iinfo(kind)
    return call.builder.run(torch.clamp, moved, float(limits.min), float(limits.max)).like(x)


def _dequantized(call: Call) -> Results:
    moved = call.builder.run(operator.sub, call.any, _of_channels(call, 2))
    return call.builder.run(operator.mul, moved, _of_channels(call, 1)).like(call.any)


def _of_channels(call: Call, place: int) -> Tensor:
    """Return a scale or a zero point, in the network's dtype: one number, or one for each channel."""
    constant, dtype = call.constant(place), call.builder.input.probe.dtype
    if constant is None:
        return torch.zeros((), dtype=dtype)
    if constant.ndim > 1 or call.get("block_size", 0):
        raise call.refused("quantizes in blocks")
    if constant.numel() == 1:
        return constant.to(dtype).reshape(())
    behind = call.x.probe.ndim - 1 - call.axis(call.get("axis", 1))
    return constant.to(dtype).view(-1, *[1] * behind)


def _cast(call: Call) -> Results:
    """A condition becomes numbers; other casts are of indices and shapes, or to the precision of a network."""
    x = call.any
    to_numbers = call.get("to", 0) != _BOOL and x.probe.dtype is torch.bool
    return call.builder.run("to", x, call.builder.input.probe.dtype).like(x) if to_numbers else x


def _clip(call: Call) -> Results:
    ends = []
    for place, name in ((1, "min"), (2, "max")):
        found = call.attributes.get(name, call.constant(place))
        ends.append(None if found is None else float(found))
    if ends == [0.0, None]:
        return call.layer(nn.ReLU())
    return call.x if ends == [None, None] else call.run(torch.clamp, call.x, min=ends[0], max=ends[1])


def _prelu(call: Call) -> Results:
    slope = call.constant(1)
    if slope is None:
        raise call.refused("needs constant slopes")
    if slope.numel() == 1:
        return call.layer(nn.LeakyReLU(float(slope)))
    if slope.numel() == slope.shape[0] == call.x.probe.shape[1] and slope.ndim == max(1, call.x.probe.ndim - 1):
        layer = nn.PReLU(slope.numel(), dtype=slope.dtype)
        layer.weight.data = slope.flatten()
        return call.layer(layer)
    # max(x, 0) - slope max(-x, 0)
    below = call.run(torch.relu, call.run(operator.neg, call.x))
    return call.run(operator.sub, call.run(torch.relu, call.x), call.run(operator.mul, below, slope))


def _hard_sigmoid(call: Call) -> Value:
    scaled = call.run(operator.mul, call.x, float(call.get("alpha", 0.2)))
    return call.run(torch.clamp, call.run(operator.add, scaled, float(call.get("beta", 0.5))), min=0.0, max=1.0)


def _pow(call: Call) -> Results:
    exponent = call.constant(1)
    if exponent is not None and bool((exponent == 1).all()):
        return call.x
    one = exponent is not None and exponent.numel() == 1
    return call.run(torch.pow, call.operands[0], exponent.item() if one else call.operands[1])  # type: ignore[union-attr]


def _resize(call: Call) -> Results:
    """Any interpolation that is linear in its input: along each axis the matrix that onnx itself has for it."""
    from onnx import helper
    from onnx.reference import ReferenceEvaluator

    shape = call.x.probe.shape
    old = call.kind == "Upsample"
    scales = call.numbers(1 if old or len(call.operands) < 3 else 2, "scales")
    sizes = call.numbers(3, "sizes")
    axes = call.get("axes", list(range(len(shape))))
    given = sizes or scales
    if not given or call.get("keep_aspect_ratio_policy", b"stretch") != b"stretch":
        raise call.refused("needs constant scales or sizes")
    mode = call.get("coordinate_transformation_mode", b"asymmetric" if old else b"half_pixel")
    if mode == b"tf_crop_and_resize":
        raise call.refused("crops")
    x = call.x
    for axis, number in zip(axes, given, strict=True):
        length = shape[axis]
        out = int(number) if sizes else math.floor(length * number)
        if out == length:
            continue
        attributes = {k: v for k, v in call.attributes.items() if k in _RESIZE} | {
            "coordinate_transformation_mode": mode
        }
        wanted: dict[str, Any] = (
            {"sizes": np.array([length, out])} if sizes else {"scales": np.array([1.0, number], np.float32)}
        )
        names = ["eye", "", "scales" if scales and not sizes else "", "sizes" if sizes else ""]
        node = helper.make_node("Resize", names[: 4 if sizes else 3], ["out"], **attributes)
        results: Any = ReferenceEvaluator(node).run(None, {"eye": np.eye(length, dtype=np.float32), **wanted})
        weights = torch.from_numpy(np.ascontiguousarray(results[0])).to(x.probe)  # [in, out]
        largest, places = weights.max(0)
        if bool(((weights == 0) | (weights == 1)).all() and (weights.sum(0) == 1).all() and (largest == 1).all()):
            x = _picked(call, x, call.axis(axis), places.tolist())
        else:
            moved = call.run("transpose", x, axis, -1)
            x = call.run("transpose", call.run(torch.matmul, moved, weights), axis, -1)
    return x


_RESIZE = ("mode", "nearest_mode", "cubic_coeff_a", "exclude_outside", "extrapolation_value")


def _depth_to_space(call: Call) -> Results:
    block = call.get("blocksize", 1)
    channels, height, width = call.x.probe.shape[1:]
    deep = channels // block**2
    if call.get("mode", b"DCR") == b"DCR":
        shape, order = (block, block, deep, height, width), (0, 3, 4, 1, 5, 2)
    else:
        shape, order = (deep, block, block, height, width), (0, 1, 4, 2, 5, 3)
    turned = call.run("permute", call.run("reshape", call.x, -1, *shape), *order)
    return call.run("reshape", turned, -1, deep, height * block, width * block)


def _space_to_depth(call: Call) -> Results:
    block = call.get("blocksize", 1)
    channels, height, width = call.x.probe.shape[1:]
    split = call.run("reshape", call.x, -1, channels, height // block, block, width // block, block)
    turned = call.run("permute", split, 0, 3, 5, 1, 2, 4)
    return call.run("reshape", turned, -1, channels * block**2, height // block, width // block)


def _scaler(call: Call) -> Results:
    """scikit-learn's (ai.onnx.ml): (x - offset) scale."""
    offset, scale = (torch.tensor(call.get(name, [default])) for name, default in (("offset", 0.0), ("scale", 1.0)))
    return call.run(operator.mul, call.run(operator.sub, call.x, offset), scale)


def _recurrent(call: Call) -> Results:
    """All hidden states, the last ones, and an LSTM's last cells; [steps, directions, batch, hidden] in the file."""
    weights, recurrent, biases, lengths, *states, peepholes = (call.constant(place) for place in range(1, 8))
    x, first, way = call.first, call.get("layout", 0), call.get("direction", b"forward")
    ways = {b"forward": [False], b"reverse": [True]}.get(way, [False, True])
    order, usual = _GATES[call.kind]
    functions = [name.decode().lower() for name in call.get("activations", [])] or usual * len(ways)
    kind = functions[0] if call.kind == "RNN" else call.kind.lower()
    known = functions == usual * len(ways) or (call.kind == "RNN" and set(functions) == {"relu"})
    if not known or {"clip", "activation_alpha"} & {*call.attributes}:
        raise call.refused("has other activations than torch's")
    if (kind == "gru" and not call.get("linear_before_reset", 0)) or call.get("input_forget", 0):
        raise call.refused("has other equations than torch's (linear_before_reset = 0, or input_forget = 1)")
    if weights is None or recurrent is None:
        raise call.refused("needs constant weights")
    if lengths is not None or peepholes is not None or any(s is not None and s.any() for s in states):
        raise call.refused("is taken from states of zeros, over all steps, and without peepholes")
    if x.batch != 1 - first:
        raise call.refused(f"takes a value whose batch is dimension {x.batch}")
    hidden = recurrent.shape[2]

    def sorted_gates(whole: Tensor) -> Tensor:
        return torch.cat([whole[gate * hidden : (gate + 1) * hidden] for gate in order])

    results: dict[bool, list[Value]] = {False: [], True: []}
    for i, backwards in enumerate(ways):
        both = [None, None] if biases is None else [sorted_gates(part) for part in biases[i].chunk(2)]
        given = (sorted_gates(weights[i]), sorted_gates(recurrent[i]), *both, kind, backwards)
        for cells in (False, True)[: max(1, call.outputs - 1)]:
            results[cells].append(call.run_at(0, recurrence, x, *given, cells))

    def ends(some: list[Value]) -> Value:
        last = [
            call.run("select", one, 1, 0 if backwards else one.probe.shape[1] - 1)
            for one, backwards in zip(some, ways, strict=True)
        ]
        return call.run_at(1 - first, torch.stack, last, 1)

    outputs = call.run_at(0 if first else 2, torch.stack, results[False], 2)
    return [outputs, *(ends(some) for some in results.values() if some)]


_BOOL = 9
_QUANTIZED = {0: torch.uint8, 2: torch.uint8, 3: torch.int8, 4: torch.uint16, 5: torch.int16}
"""Types of whole numbers, by ONNX's numbers of them; 0 is said of none."""
"""onnx' number of the type of conditions."""
_GATES = {
    "RNN": ([0], ["tanh"]),
    "GRU": ([1, 0, 2], ["sigmoid", "tanh"]),
    "LSTM": ([0, 2, 3, 1], ["sigmoid", "tanh", "tanh"]),
}
"""Where torch's gates are among a file's, and the activations that they have."""


def _same(call: Call) -> Results:
    return call.any


def _shape(call: Call) -> Results:
    shape = list(call.any.filed.shape)
    return torch.tensor(shape[call.get("start", 0) : call.get("end", len(shape))])


def _gelu(call: Call) -> Results:
    return call.run(F.gelu, call.x, approximate=call.get("approximate", b"none").decode())


def _softmax(call: Call) -> Results:
    x = call.any
    dimension = x.dimension(call.get("axis", -1))
    if dimension == 0:
        raise call.refused("works along the batch")
    return call.builder.run(_SOFTMAXES[call.kind], x, dimension).like(x)


def _rms_norm(call: Call) -> Results:
    x, scale = call.x, call.constant(1)
    if scale is None or call.axis(call.get("axis", -1)) != x.probe.ndim - 1:
        raise call.refused("needs a constant scale, and the last axis")
    layer = nn.RMSNorm(x.probe.shape[-1], call.get("epsilon", 1e-5), dtype=x.probe.dtype)
    layer.weight.data = scale.expand(x.probe.shape[-1]).contiguous()
    return call.layer(layer, x)


def _attention(call: Call) -> Results:
    query, key, value, mask, *past = (*call.operands, None) if len(call.operands) == 3 else call.operands
    if call.x.probe.ndim != 4 or any(one is not None for one in past) or call.get("softcap", 0.0):
        raise call.refused("is taken of heads, [batch, heads, tokens, features], without a past and a cap")
    causal = bool(call.get("is_causal", 0))
    given = (query, key, value, mask, 0.0, causal)
    return call.run(F.scaled_dot_product_attention, *given, scale=call.get("scale", None))


def _local_response(call: Call) -> Results:
    size = call.get("size", 1)
    if size % 2 == 0:
        raise call.refused("has an even size")
    settings = (call.get(name, usual) for name, usual in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0)))
    return call.run(F.local_response_norm, call.x, size, *settings)


def _cumulated(call: Call) -> Results:
    axis = call.constant(1)
    if axis is None or call.get("exclusive", 0):
        raise call.refused("needs a constant axis, and to include each element")
    dimension, backwards = call.axis(int(axis)), call.get("reverse", 0)
    x = call.run("flip", call.x, [dimension]) if backwards else call.x
    x = call.run(torch.cumsum, x, dimension)
    return call.run("flip", x, [dimension]) if backwards else x


def _triangle(call: Call) -> Results:
    offset = call.constant(1)
    function = torch.triu if call.get("upper", 1) else torch.tril
    return call.run(function, call.x, 0 if offset is None else int(offset))


def _multiplied(call: Call) -> Results:
    axes, keep = _along(call)
    x = call.x
    for axis in sorted(axes, reverse=True):
        x = call.run(torch.prod, x, axis, keepdim=keep)
    return x


def _unit_length(call: Call) -> Results:
    if call.get("p", 2) != 2:
        raise call.refused("is taken with p = 2")
    return call.run(F.normalize, call.x, dim=call.axis(call.get("axis", -1)))


def _swish(call: Call) -> Results:
    alpha = call.get("alpha", 1.0)
    if alpha == 1:
        return call.run(F.silu, call.x)
    return call.run(operator.mul, call.x, call.run(torch.sigmoid, call.run(operator.mul, call.x, float(alpha))))


_COMPARISONS = {"Greater": torch.gt, "GreaterOrEqual": torch.ge, "Less": torch.lt, "LessOrEqual": torch.le}
_SOFTMAXES = {"LogSoftmax": F.log_softmax, "Softmax": F.softmax}

OPERATIONS: dict[str, Callable[[Call], Results]] = {
    "Abs": _elementwise(torch.abs),
    "Add": _unless_written_out(operator.add, onnx_exponentials.log_sum_exp, torch.logsumexp, keepdim=True),
    "Atan": _elementwise(torch.atan),
    "Attention": _attention,
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "And": _fold(torch.logical_and),
    "Cast": _cast,
    "Ceil": _elementwise(torch.ceil),
    "Celu": lambda call: call.run(F.celu, call.x, call.get("alpha", 1.0)),
    "Clip": _clip,
    **dict.fromkeys(_COMPARISONS, _compare),
    "Concat": _concat,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Cos": _elementwise(torch.cos),
    "Cosh": _elementwise(torch.cosh),
    "CumSum": _cumulated,
    "DepthToSpace": _depth_to_space,
    "DequantizeLinear": _dequantized,
    "Div": _unless_written_out(operator.truediv, onnx_exponentials.softmax, F.softmax),
    "Dropout": _same,
    "Einsum": _einsum,
    "Elu": lambda call: call.run(F.elu, call.x, call.get("alpha", 1.0)),
    "Equal": _equal,
    "Erf": _elementwise(torch.erf),
    "Exp": _elementwise(torch.exp),
    "Expand": _expand,
    "Flatten": _flatten,
    "Floor": _elementwise(torch.floor),
    "Gather": _gather,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_average,
    "GlobalMaxPool": _global_max,
    **dict.fromkeys(("GroupNormalization", "InstanceNormalization"), _group_norm),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _elementwise(F.hardswish),
    "Identity": _same,
    **dict.fromkeys(("IsInf", "IsNaN"), _never),
    "LayerNormalization": _layer_norm,
    "LRN": _local_response,
    "LeakyRelu": lambda call: call.layer(nn.LeakyReLU(call.get("alpha", 0.01))),
    "Log": _elementwise(torch.log),
    "LpNormalization": _unit_length,
    "MatMul": _matmul,
    "Max": _limit(torch.maximum, "min"),
    "MaxPool": _max_pool,
    "Mean": _mean,
    "Min": _limit(torch.minimum, "max"),
    "Mish": _elementwise(F.mish),
    "Mul": _fold(operator.mul),
    "Neg": _elementwise(torch.neg),
    "Not": _elementwise(torch.logical_not),
    "Or": _fold(torch.logical_or),
    "PRelu": _prelu,
    "Pad": _pad,
    "Pow": _pow,
    **dict.fromkeys(_GATES, _recurrent),
    "Reciprocal": _elementwise(torch.reciprocal),
    "ReduceL1": _reduced(torch.sum, before=torch.abs),
    "ReduceL2": _reduced(torch.sum, before=torch.square, after=torch.sqrt),
    "ReduceLogSum": _reduced(torch.sum, after=torch.log),
    "ReduceLogSumExp": _reduced(torch.logsumexp),
    "ReduceMax": _reduced(torch.amax),
    "ReduceMean": _reduced(torch.mean),
    "ReduceMin": _reduced(torch.amin),
    "ReduceProd": _multiplied,
    "ReduceSum": _reduced(torch.sum),
    "ReduceSumSquare": _reduced(torch.sum, before=torch.square),
    "Relu": lambda call: call.layer_behind(nn.ReLU()),
    "QuantizeLinear": _quantized,
    "RMSNormalization": _rms_norm,
    "Reshape": _reshape,
    "Resize": _resize,
    "Round": _elementwise(torch.round),
    "Scaler": _scaler,
    "Selu": _elementwise(F.selu),
    "Shape": _shape,
    "Shrink": _shrink,
    "Sigmoid": _elementwise(torch.sigmoid),
    "Sign": _elementwise(torch.sign),
    "Sin": _elementwise(torch.sin),
    "Sinh": _elementwise(torch.sinh),
    "Slice": _slice,
    **dict.fromkeys(_SOFTMAXES, _softmax),
    "Softplus": _elementwise(F.softplus),
    "Softsign": _elementwise(F.softsign),
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Sqrt": _elementwise(torch.sqrt),
    "Squeeze": _squeezed,
    "Sub": _unless_written_out(operator.sub, onnx_exponentials.log_softmax, F.log_softmax),
    "Sum": _fold(operator.add),
    "Swish": _swish,
    "Tanh": _elementwise(torch.tanh),
    "ThresholdedRelu": _thresholded,
    "Tile": _tile,
    "TopK": _top,
    "Transpose": _transpose,
    "Trilu": _triangle,
    "Unsqueeze": _squeezed,
    "Upsample": _resize,
    "Where": _where,
}
