"""Parts of an example that a network puts into the batch (frames, windows, heads), taken out of it again.

`x.flatten(0, 1)` of [batch, frames, ...] makes of each frame an example of its own. Here the frames stay a dimension
behind the batch's, and the calls up to where the network parts them again are written so that they leave it alone; one
without a form here is made part by part. Where the parts are is seen in two runs, of batches of two sizes.
"""

import contextlib
import inspect
import operator
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from etb_plugin.errors import UnsupportedLayer
from etb_plugin.graph.symbolic import called, dependent, shapes

_MOST_PARTS = 64
"""Parts that a call is made for one by one."""


class NotTaken(Exception):
    """Of a call with values or arguments that its form does not take."""


@dataclass(frozen=True)
class _Layout:
    """How the network has a value: its shape for the example, which dimension is the batch's (None of a constant), and
    how many parts of each example that holds, one example after another. Parts stand here in a dimension of their own,
    behind the batch's."""

    shape: torch.Size
    place: int | None
    parts: int

    @property
    def folded(self) -> bool:
        return self.parts > 1

    @property
    def here(self) -> list[int]:
        """The sizes here, of the batch -1."""
        sizes: list[int] = list(self.shape)
        if self.place is not None:
            sizes[self.place : self.place + 1] = [-1, self.parts] if self.folded else [-1]
        return sizes

    def dim(self, dim: int, more: int = 0) -> int:
        """Return where a dimension is here; with `more`, one that is put in."""
        assert self.place is not None
        dim %= len(self.shape) + more
        if dim == self.place and not more:
            raise NotTaken
        return dim + (dim > self.place)

    def dims(self, dims: Any) -> Any:
        if dims is None:
            raise NotTaken
        return self.dim(dims) if isinstance(dims, int) else [self.dim(d) for d in dims]


def unfolded(module: fx.GraphModule, example: Tensor) -> fx.GraphModule:
    """Return a network that computes what `module` does and keeps parts of examples out of the batch; `example` is a
    batch of inputs.

    Raises UnsupportedLayer, naming the layer, for one that mixes examples, puts them into an order of its own, or takes
    a batch of one size alone.
    """
    return _Unfolding(module, example).done()


class _Unfolding:
    """One pass over a graph; `env` holds what stands for each of its nodes in the new one."""

    def __init__(self, module: fx.GraphModule, example: Tensor) -> None:
        self.module, self.new = module, fx.Graph()
        self.tracer = fx.proxy.GraphAppendingTracer(self.new)
        self.env: dict[fx.Node, Any] = {}
        self.layouts = layouts(module, example)
        self.of_input = dependent(module.graph)

    def done(self) -> fx.GraphModule:
        for node in self.module.graph.nodes:
            self.env[node] = self._visited(node)
        found = fx.GraphModule(self.module, self.new, type(self.module).__name__)
        found.graph.eliminate_dead_code()
        found.recompile()
        return found

    def folded(self, node: fx.Node) -> bool:
        return node in self.layouts and self.layouts[node].folded

    def _visited(self, node: fx.Node) -> Any:
        if not any(map(self.folded, [node, *node.all_input_nodes])) or node.op == "output":
            return self.new.node_copy(node, self.env.__getitem__)
        if node not in self.of_input:
            return self.proxy(self.new.node_copy(node, self.env.__getitem__)).reshape(self.layouts[node].here).node
        call, form = _Call(self, node), _FORMS.get(node.target)
        if node.op == "call_module":
            form = next((form for kind, form in _LAYERS.items() if isinstance(call.layer, kind)), None)
        for one in filter(None, (form, _each)):
            with contextlib.suppress(NotTaken):
                return _nodes(call.by(one))
        raise UnsupportedLayer(f"layer '{node.name}' mixes the batch into the features")

    def proxy(self, node: Any) -> Any:
        return fx.Proxy(node, self.tracer)

    def proxies(self, argument: Any, stands: Callable[[fx.Node], Any]) -> Any:
        """Return an argument with what `stands` for its nodes, as proxies."""
        return fx.map_arg(fx.map_arg(argument, stands), self.proxy)


class _Call:
    """A call as it stood, and its arguments in the new graph."""

    def __init__(self, unfolding: _Unfolding, node: fx.Node) -> None:
        self.unfolding, self.node = unfolding, node
        self.folded = [n for n in node.all_input_nodes if unfolding.folded(n)]
        self.args, self.kwargs = (unfolding.proxies(of, unfolding.env.__getitem__) for of in (node.args, node.kwargs))

    def by(self, form: Callable[..., Any]) -> Any:
        """Return what a form makes of the call; one that does not know an argument does not take it."""
        try:
            inspect.signature(form).bind(self, *self.args, **self.kwargs)
        except TypeError:
            raise NotTaken from None
        return form(self, *self.args, **self.kwargs)

    def layout(self, node: Any) -> _Layout:
        if node not in self.unfolding.layouts:
            raise NotTaken
        return self.unfolding.layouts[node]

    @property
    def given(self) -> _Layout:
        """How the first folded input is laid out; all agree in where the parts are, and how many."""
        if not self.folded:
            raise NotTaken
        first = self.layout(self.folded[0])
        if any((one.place, one.parts) != (first.place, first.parts) for one in map(self.layout, self.folded)):
            raise NotTaken
        return first

    @property
    def layer(self) -> Any:
        return self.unfolding.module.get_submodule(str(self.node.target))

    def weight(self, name: str) -> Any:
        if getattr(self.layer, name) is None:
            return None
        return self.unfolding.tracer.create_proxy("get_attr", f"{self.node.target}.{name}", (), {})

    def again(self, *args: Any, **kwargs: Any) -> Any:
        return self.unfolding.tracer.create_proxy(self.node.op, self.node.target, args, kwargs)


def layouts(module: fx.GraphModule, example: Tensor) -> dict[fx.Node, _Layout]:
    """Return how values are laid out, without those whose batch is in none of their dimensions, or in two."""
    more = torch.cat([example, example[:1]])
    found = {}
    for (node, shape), larger in zip(shapes(module, example).items(), shapes(module, more).values(), strict=True):
        places = [d for d, sizes in enumerate(zip(shape, larger, strict=False)) if len(set(sizes)) > 1]
        if not places:
            found[node] = _Layout(shape, None, 1)
        elif len(places) == 1 and shape[places[0]] * len(more) == larger[places[0]] * len(example):
            found[node] = _Layout(shape, places[0], shape[places[0]] // len(example))
    return found


def _nodes(made: Any) -> Any:
    """Return what was made with nodes in place of proxies."""
    if isinstance(made, fx.Proxy):
        return made.node
    return type(made)(map(_nodes, made)) if isinstance(made, list | tuple) else made


# The forms. Each takes the call, and its arguments in the new graph.


def _each(call: _Call, *_: Any, **__: Any) -> Any:
    """The call, once for each part."""
    layout, value, env = call.given, call.layout(call.node), call.unfolding.env
    if layout.place or value.place or value.parts != layout.parts or layout.parts > _MOST_PARTS:
        raise NotTaken

    def made(part: int) -> Any:
        def stands(node: fx.Node) -> Any:
            return call.unfolding.proxy(env[node]).select(1, part).node if node in call.folded else env[node]

        args, kwargs = (call.unfolding.proxies(of, stands) for of in (call.node.args, call.node.kwargs))
        return call.again(*args, **kwargs)

    return torch.stack([made(part) for part in range(layout.parts)], 1)


def _last(call: _Call, *args: Any, **kwargs: Any) -> Any:
    """What is about the last dimension alone, or about each element by itself."""
    if call.given.place == len(call.given.shape) - 1:
        raise NotTaken
    return call.again(*args, **kwargs)


def _elementwise(call: _Call, x: Any, *args: Any, **kwargs: Any) -> Any:
    """A function of each element, in front of where parts are put behind channels (`_behind_channels`)."""
    inner = _put_back(x)
    return call.again(x, *args, **kwargs) if inner is None else call.again(inner, *args, **kwargs).transpose(1, 2)


def _joined(call: _Call, *args: Any, **kwargs: Any) -> Any:
    """Arithmetic of values, of which constants get a dimension for the parts where they have one for the batch."""
    layout = call.given
    first = (layout.place or 0) - len(layout.shape)

    def fitting(value: Any, node: Any) -> Any:
        known = call.unfolding.layouts.get(node) if isinstance(node, fx.Node) else None
        if known is None or node in call.folded:  # a number, or what has the dimension
            return value
        place = first + len(known.shape)
        if known.place is not None or (place >= 0 and known.shape[place] != 1):
            raise NotTaken
        return value.unsqueeze(place + 1) if place >= 0 else value

    return call.again(*map(fitting, args, call.node.args), **kwargs)


def _multiplied(call: _Call, x: Any, y: Any) -> Any:
    """A product of matrices: of parts each, or with one constant on the right."""
    one, *others = (call.layout(n) for n in call.node.all_input_nodes)
    fit = (len(o.shape) >= 3 if o.folded else len(o.shape) == 2 for o in others)
    if call.given.place or not one.folded or not all(fit):
        raise NotTaken
    return torch.matmul(x, y)


def _reshaped(call: _Call, x: Any, *_: Any, **__: Any) -> Any:
    """What keeps all elements in their order, with as many in front of the batch as before."""
    source, value = call.layout(call.node.all_input_nodes[0]), call.layout(call.node)
    if source.place is None or value.place is None:
        raise NotTaken
    if prod(source.shape[: source.place]) != prod(value.shape[: value.place]):
        raise NotTaken
    return x.reshape(value.here)


def _moved(call: _Call, x: Any, *_: Any, **__: Any) -> Any:
    """What puts dimensions into another order."""
    layout = call.given
    if len(call.node.all_input_nodes) > 1:
        raise NotTaken
    sizes = torch.empty(tuple(range(2, 2 + len(layout.shape))), device="meta")
    order = [size - 2 for size in called(call.unfolding.module, call.node, lambda _: sizes).shape]
    assert layout.place is not None
    here = [layout.dim(d, more=1) if d > layout.place else d for d in order]
    at = order.index(layout.place)
    return x.permute(*here[: at + 1], layout.place + 1, *here[at + 1 :])


def _taken(call: _Call, x: Any, index: Any) -> Any:
    """What `x[index]` takes of all parts; of a tuple one of its values."""
    source = call.node.args[0]
    if source not in call.unfolding.layouts:
        return call.again(x, index)
    layout, indices = call.given, list(index) if isinstance(index, tuple) else [index]
    if any(isinstance(one, fx.Proxy) for one in indices):
        raise NotTaken  # several of them together put their dimension elsewhere
    if ... in indices:
        rest = len(layout.shape) - sum(i is not None and i is not ... for i in indices)
        at = indices.index(...)
        indices[at : at + 1] = [slice(None)] * rest
    dimension = 0
    for n, one in enumerate(indices):
        if dimension == layout.place:
            if one != slice(None):
                raise NotTaken
            indices.insert(n, one)
            break
        dimension += one is not None
    return operator.getitem(x, tuple(indices))


def _along(place: int, name: str, default: Any = None) -> Callable[..., Any]:
    """Return the form of a call along dimensions that its argument `name` says, which may stand at `place`."""

    def form(call: _Call, *args: Any, **kwargs: Any) -> Any:
        layout, given = call.given, list(args)
        if len(given) > place:
            given[place] = layout.dims(given[place])
        else:
            kwargs[name] = layout.dims(kwargs.get(name, default))
        return call.again(*given, **kwargs)

    return form


def _together(put_in: int) -> Callable[..., Any]:
    """Return the form of what joins several values: along a dimension, or one that is put in."""

    def form(call: _Call, values: Any, dim: int = 0) -> Any:
        if len(call.folded) != len(call.node.all_input_nodes):
            raise NotTaken
        layout = call.given
        if put_in and dim % (len(layout.shape) + 1) <= (layout.place or 0):
            return call.again(values, dim % (len(layout.shape) + 1))
        return call.again(values, layout.dim(dim, put_in))

    return form


def _size(call: _Call, x: Any, dim: Any = None) -> Any:
    """What the network takes for the size of a value."""
    layout = call.given
    assert layout.place is not None
    sizes: list[Any] = list(layout.shape)
    sizes[layout.place] = x.size(layout.place) * layout.parts
    return tuple(sizes) if dim is None else sizes[dim]


def _attribute(call: _Call, x: Any, name: str) -> Any:
    if name == "shape":
        return _size(call, x)
    if name == "ndim":
        return len(call.given.shape)
    raise NotTaken


# Layers of channels and places: parts go behind the channels, as a dimension of places that the layer leaves alone.


def _put_back(x: Any) -> Any:
    """Return the value whose parts stand behind its channels, where `x` is that with them in front."""
    node = x.node
    return fx.Proxy(node.args[0], x.tracer) if node.target == "transpose" and node.args[1:] == (1, 2) else None


def _behind_channels(call: _Call, x: Any, dimensions: int) -> Any:
    """Return an input of `dimensions` dimensions of places with the parts behind its channels."""
    layout = call.given
    if layout.place != 0 or len(layout.shape) != dimensions + 2 or call.layout(call.node).parts != layout.parts:
        raise NotTaken
    inner = _put_back(x)
    return x.transpose(1, 2) if inner is None else inner


def _more(value: Any, dimensions: int, first: int) -> Any:
    """Return an argument about places, one number or several, with the parts' before them."""
    if isinstance(value, str):
        return value
    return (first, *((value,) * dimensions if isinstance(value, int) else value))


_Layer = Callable[..., Any]
_CONVOLUTIONS: dict[int, _Layer] = {1: F.conv2d, 2: F.conv3d}
_LARGEST: dict[int, _Layer] = {1: F.max_pool2d, 2: F.max_pool3d}
_MEANS: dict[int, _Layer] = {1: F.avg_pool2d, 2: F.avg_pool3d}
_ADAPTIVE: dict[int, _Layer] = {1: F.adaptive_avg_pool2d, 2: F.adaptive_avg_pool3d}


def _convolved(
    call: _Call, n: int, x: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, groups: int
) -> Any:
    x = _behind_channels(call, x, n)
    settings = _more(stride, n, 1), _more(padding, n, 0), _more(dilation, n, 1)
    return _CONVOLUTIONS[n](x, weight.unsqueeze(2), bias, *settings, groups).transpose(1, 2)


def _conv_layer(call: _Call, x: Any) -> Any:
    layer, n = call.layer, len(call.layer.kernel_size)
    if n > 2 or layer.padding_mode != "zeros":
        raise NotTaken
    settings = layer.stride, layer.padding, layer.dilation, layer.groups
    return _convolved(call, n, x, call.weight("weight"), call.weight("bias"), *settings)


def _conv_call(n: int) -> Callable[..., Any]:
    def form(
        call: _Call, input: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
        groups: int = 1,
    ) -> Any:  # fmt: skip
        return _convolved(call, n, input, weight, bias, stride, padding, dilation, groups)

    return form


def _windows(n: int, kernel: Any, stride: Any, padding: Any) -> tuple[Any, Any, Any]:
    kernel = _more(kernel, n, 1)
    return kernel, kernel if stride is None or stride == [] else _more(stride, n, 1), _more(padding, n, 0)


def _max_pool(n: int) -> Callable[..., Any]:
    def form(
        call: _Call, input: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
        ceil_mode: bool = False, return_indices: bool = False,
    ) -> Any:  # fmt: skip
        if return_indices:
            raise NotTaken
        windows = _windows(n, kernel_size, stride, padding)
        return _LARGEST[n](_behind_channels(call, input, n), *windows, _more(dilation, n, 1), ceil_mode).transpose(1, 2)

    return form


def _average(n: int) -> Callable[..., Any]:
    def form(
        call: _Call, input: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
        count_include_pad: bool = True, divisor_override: Any = None,
    ) -> Any:  # fmt: skip
        settings = *_windows(n, kernel_size, stride, padding), ceil_mode, count_include_pad, divisor_override
        return _MEANS[n](_behind_channels(call, input, n), *settings).transpose(1, 2)

    return form


def _adaptive(n: int) -> Callable[..., Any]:
    def form(call: _Call, input: Any, output_size: Any) -> Any:
        x = _behind_channels(call, input, n)
        return _ADAPTIVE[n](x, _more(output_size, n, call.given.parts)).transpose(1, 2)

    return form


def _of_layer(form: Callable[..., Any], *names: str) -> Callable[..., Any]:
    """Return the form of a layer whose call has the attributes `names` for arguments."""
    return lambda call, x: form(call, x, *(getattr(call.layer, name, None) for name in names))


def _batch_norm(call: _Call, x: Any) -> Any:
    layer, n = call.layer, len(call.given.shape) - 2
    mean, variance = call.weight("running_mean"), call.weight("running_var")
    if mean is None:
        raise NotTaken
    x = _behind_channels(call, x, n)
    weights = call.weight("weight"), call.weight("bias")
    return F.batch_norm(x, mean, variance, *weights, False, 0.0, layer.eps).transpose(1, 2)


def _softmax_layer(call: _Call, x: Any) -> Any:
    return F.softmax(x, call.given.dims(call.layer.dim))


ELEMENTWISE = (
    *(torch.relu, F.relu, "relu", torch.sigmoid, F.sigmoid, "sigmoid", torch.tanh, F.tanh, "tanh", F.gelu, F.silu),
    *(F.leaky_relu, F.elu, F.softplus, F.hardtanh, F.relu6, F.hardswish, F.mish, torch.exp, "exp", torch.log, "log"),
    *(torch.sqrt, "sqrt", torch.square, "square", torch.abs, "abs", operator.neg, torch.neg, "neg"),
    *("contiguous", "clone", torch.clone, "to", "float", "double", F.dropout, torch.clamp, "clamp"),
)
"""Calls about each element by itself."""
ELEMENTWISE_LAYERS = (
    nn.ReLU | nn.LeakyReLU | nn.Hardtanh | nn.Sigmoid | nn.Tanh | nn.GELU | nn.SiLU | nn.Mish | nn.ELU | nn.Softplus
    | nn.Hardswish | nn.Hardsigmoid | nn.Identity | nn.modules.dropout._DropoutNd
)  # fmt: skip
JOINED = (
    *(operator.add, torch.add, "add", "add_", operator.iadd, operator.sub, torch.sub, "sub", operator.isub),
    *(operator.mul, torch.mul, "mul", operator.imul, operator.truediv, torch.div, "div", torch.maximum, torch.minimum),
    *(operator.pow, torch.pow, "pow", torch.masked_fill, "masked_fill"),
)
"""Arithmetic of values."""
_LARGEST_BY = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
_MEANS_BY = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
_LAYERS: dict[Any, Callable[..., Any]] = {
    nn.Linear | nn.LayerNorm | nn.RMSNorm: _last,
    ELEMENTWISE_LAYERS: _elementwise,
    nn.Flatten | nn.Unflatten: _reshaped,
    nn.Conv1d | nn.Conv2d: _conv_layer,
    nn.modules.batchnorm._BatchNorm: _batch_norm,
    nn.MaxPool1d: _of_layer(_max_pool(1), *_LARGEST_BY),
    nn.MaxPool2d: _of_layer(_max_pool(2), *_LARGEST_BY),
    nn.AvgPool1d: _of_layer(_average(1), *_MEANS_BY),
    nn.AvgPool2d: _of_layer(_average(2), *_MEANS_BY),
    nn.AdaptiveAvgPool1d: _of_layer(_adaptive(1), "output_size"),
    nn.AdaptiveAvgPool2d: _of_layer(_adaptive(2), "output_size"),
    nn.Softmax: _softmax_layer,
}
_FORMS: dict[Any, Callable[..., Any]] = {
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    **dict.fromkeys([F.linear, F.layer_norm, F.pad, F.scaled_dot_product_attention], _last),
    **dict.fromkeys(JOINED, _joined),
    **dict.fromkeys([torch.matmul, operator.matmul, "matmul", torch.bmm, "bmm"], _multiplied),
    **dict.fromkeys([torch.reshape, "reshape", "view", torch.flatten, "flatten", "unflatten", "view_as"], _reshaped),
    **dict.fromkeys([torch.unflatten, "reshape_as", torch.squeeze, "squeeze", torch.unsqueeze], _reshaped),
    "unsqueeze": _reshaped,
    **dict.fromkeys([torch.permute, "permute", torch.transpose, "transpose", torch.movedim, "movedim"], _moved),
    **dict.fromkeys([torch.swapaxes, "swapaxes"], _moved),
    operator.getitem: _taken,
    **dict.fromkeys([torch.softmax, F.softmax, "softmax", torch.mean, "mean", torch.sum, "sum"], _along(1, "dim")),
    **dict.fromkeys([torch.narrow, "narrow", "select", torch.select, torch.cumsum, "cumsum"], _along(1, "dim")),
    **dict.fromkeys([torch.flip, "flip"], _along(1, "dims")),
    **dict.fromkeys([torch.roll, "roll"], _along(2, "dims")),
    **dict.fromkeys([torch.chunk, "chunk", torch.split, "split"], _along(2, "dim", 0)),
    **dict.fromkeys([torch.unbind, "unbind"], _along(1, "dim", 0)),
    **dict.fromkeys([torch.cat, torch.concat], _together(0)),
    torch.stack: _together(1),
    "size": _size,
    getattr: _attribute,
    **dict.fromkeys([F.conv1d, torch.conv1d], _conv_call(1)),
    **dict.fromkeys([F.conv2d, torch.conv2d], _conv_call(2)),
    **dict.fromkeys([F.max_pool1d, torch.max_pool1d], _max_pool(1)),
    **dict.fromkeys([F.max_pool2d, torch.max_pool2d], _max_pool(2)),
    F.avg_pool1d: _average(1),
    F.avg_pool2d: _average(2),
    F.adaptive_avg_pool1d: _adaptive(1),
    F.adaptive_avg_pool2d: _adaptive(2),
}
