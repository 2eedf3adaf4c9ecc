"""A network as torch.fx records it, with the layers written out that torch keeps whole: attention and its encoders,
recurrent layers."""

import contextlib
import operator
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from etb_plugin.errors import UnsupportedLayer
from etb_plugin.graph.beside import ReluBeside
from etb_plugin.graph.recurrent import stepped, without_zeros, written_out


def symbolic(network: nn.Module, example: Tensor | None = None) -> fx.GraphModule:
    """Return `network` as a graph of calls that shares its weights. With `example`, a batch of inputs, its forward may
    ask for sizes, all but the batch's, and branch on them.

    Raises what its forward raises where that branches on values, and UnsupportedLayer for an attention with a padding
    mask, or whose batch is not first.
    """
    held = set(vars(network))
    with _lengths_recorded(network), _filled_recorded():
        graph = _recorded(network, example)
        without_zeros(graph)
        found = fx.GraphModule(network, graph, type(network).__name__)
    for name in vars(network).keys() - held:  # constants, which fx puts there
        delattr(network, name)
    return found


def _recorded(network: nn.Module, example: Tensor | None) -> fx.Graph:
    try:
        graph = _Tracer().trace(network)
        if example is None or not any(_is_kept_whole(node.op, node.target) for node in graph.nodes):
            return graph
    except (fx.proxy.TraceError, TypeError, RuntimeError):  # a size that Python asks for, as likely as not
        if example is None:
            raise
    graph = _SizedTracer(example).trace(network)
    for node in graph.nodes:  # what a function kept whole came to would be kept whole itself, in all of torch
        node.meta.pop("is_wrapped", None)
    return graph


def _is_kept_whole(op: str, target: Any) -> bool:
    """Whether a call is of a function that torch.fx was told to keep whole (`torch.fx.wrap`)."""
    if op != "call_function" or not isinstance(target, FunctionType):
        return False
    return (target.__module__ or "").split(".")[0] not in ("torch", "etb_plugin")


CALLED = ("call_function", "call_method")


def argument(node: fx.Node, place: int, name: str, default: Any) -> Any:
    """Return an argument of a call, by its name or its place."""
    return node.kwargs.get(name, node.args[place] if len(node.args) > place else default)


def dependent(graph: fx.Graph) -> set[fx.Node]:
    """Return the nodes that depend on the network's input, itself among them."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" or not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return found


def called(module: nn.Module, node: fx.Node, read: Callable[[fx.Node], Any]) -> Any:
    """Return what a node computes from what `read` gives for the nodes that it names."""
    args, kwargs = fx.map_arg(node.args, read), fx.map_arg(node.kwargs, read)
    if node.op == "call_module":
        return module.get_submodule(str(node.target))(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    return node.target(*args, **kwargs)  # type: ignore[operator]


@torch.no_grad()
def shapes(module: fx.GraphModule, example: Tensor) -> dict[fx.Node, torch.Size]:
    """Return the shape of each value for a batch of inputs. Raises UnsupportedLayer, naming it, for a layer that
    fails."""
    run = _Shapes(module, len(example))
    run.run(example.clone())
    return run.known


class _Shapes(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, batch: int) -> None:
        super().__init__(module)
        self._batch = batch
        self.known: dict[fx.Node, torch.Size] = {}

    def run_node(self, n: fx.Node) -> Any:
        try:
            value = super().run_node(n)
        except RuntimeError as error:
            why = str(error).partition("\n")[0]
            raise UnsupportedLayer(f"layer '{n.name}' fails on a batch of {self._batch}: {why}") from error
        if isinstance(value, Tensor):
            self.known[n] = value.shape
        return value


@contextlib.contextmanager
def _lengths_recorded(network: nn.Module) -> Iterator[None]:
    """Let forwards ask for `len(x)`, which fx records only in files that say so: as a name of their own."""
    forwards = (getattr(type(module).forward, "__globals__", None) for module in network.modules())
    files = {id(names): names for names in forwards if names is not None and "len" not in names}
    for names in files.values():
        names["len"] = _length
    try:
        yield
    finally:
        for names in files.values():
            del names["len"]


@contextlib.contextmanager
def _filled_recorded() -> Iterator[None]:
    """Let forwards fill tensors of as many rows as there are examples."""

    def recorded(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            proxies: list[fx.Proxy] = []
            fx.node.map_aggregate((args, kwargs), lambda a: proxies.append(a) if isinstance(a, fx.Proxy) else None)
            if not proxies:
                return function(*args, **kwargs)
            return proxies[0].tracer.create_proxy("call_function", function, args, kwargs)

        return call

    functions = {name: getattr(torch, name) for name in ("zeros", "ones", "full", "empty")}
    for name, function in functions.items():
        setattr(torch, name, recorded(function))
    try:
        yield
    finally:
        for name, function in functions.items():
            setattr(torch, name, function)


def _length(value: Any) -> Any:
    return value.size(0) if isinstance(value, fx.Proxy) else len(value)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, _OPENED):
            return False
        return isinstance(m, ReluBeside) or super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        form = _FORMS.get(type(m))
        if form is not None:
            return form(m, *args, **kwargs)
        # Made as the network is called, such as a slice of an nn.Sequential: it is what it calls.
        installed = m in (self.submodule_paths or ())
        return super().call_module(m, forward, args, kwargs) if installed else forward(*args, **kwargs)


class _Sized(fx.Proxy):
    """A value whose sizes are known, all but the batch's."""

    tracer: "_SizedTracer"

    @property
    def shape(self) -> Any:
        return self.size()

    @property
    def ndim(self) -> Any:
        return self.dim()

    @property
    def dtype(self) -> torch.dtype:
        return self.tracer.known[self.node][0].dtype

    @property
    def device(self) -> torch.device:
        return self.tracer.known[self.node][0].device


class _SizedTracer(_Tracer):
    """Runs each call for batches of two sizes as it is recorded: what Python asks of sizes is told where both agree.
    Calls kept whole are recorded as what they call. Takes two forward passes."""

    def __init__(self, example: Tensor) -> None:
        super().__init__()
        self._batches = (example, torch.cat([example, example[:1]]))
        self.known: dict[fx.Node, tuple[Any, Any]] = {}
        self._running = False

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        return forward(*args, **kwargs) if self._running else super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return attr_val if self._running else super().getattr(attr, attr_val, parameter_proxy_cache)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Sized(node, self)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *others: Any, **named: Any) -> Any:
        if _is_kept_whole(kind, target):
            return target(*args, **kwargs)
        if kind == "call_method" and target == "size":
            return self._size(*args, **kwargs)
        made = super().create_proxy(kind, target, args, kwargs, *others, **named)
        if kind == "output":
            return made
        with torch.no_grad():
            one, other = self.known[made.node] = (self._value(made.node, 0), self._value(made.node, 1))
        filled = kind == "call_method" and target in _MADE_NEW and one.shape == other.shape
        if filled or self._is_told(made.node, one, other):
            self.graph.erase_node(made.node)
            return one
        return made

    def _is_told(self, node: fx.Node, one: Any, other: Any) -> bool:
        """Whether Python may have what a call gives: a number that is neither the batch's nor of a value's elements. A
        comparison of the batch's with another may come out otherwise for a batch of a third size."""
        if not isinstance(one, bool | int) or one != other:
            return False
        of_value = any(isinstance(self._value(n, 0), Tensor) for n in node.all_input_nodes)
        return node.target in _ASKED or not (of_value or isinstance(one, bool))

    def _value(self, node: fx.Node, which: int) -> Any:
        if node in self.known:
            return self.known[node][which]
        if node.op == "placeholder":
            first = not any(known.op == "placeholder" for known in self.known)
            return self._batches[which].clone() if first else node.args[0]
        given = {n: self._value(n, which) for n in node.all_input_nodes}
        self._running = True
        try:
            if node.op == "get_attr":
                return operator.attrgetter(str(node.target))(self.root)
            return called(self.root, node, given.__getitem__)
        finally:
            self._running = False

    def _size(self, x: _Sized, dim: int | None = None) -> Any:
        one, other = (value.shape for value in self.known[x.node])
        if dim is None:
            return tuple(self._size(x, d) for d in range(len(one)))
        if one[dim] == other[dim]:
            return one[dim]
        made = super().create_proxy("call_method", "size", (x, dim), {})
        self.known[made.node] = one[dim], other[dim]
        return made

    def to_bool(self, obj: fx.Proxy) -> bool:
        raise fx.proxy.TraceError("a branch that depends on values, or on the number of examples")

    def iter(self, obj: Any) -> Iterator[Any]:
        known = self.known[obj.node][0]
        if not isinstance(known, list | tuple):
            return super().iter(obj)
        return iter([obj[i] for i in range(len(known))])


_ASKED = {"dim", "numel", "ndimension", "is_floating_point", "is_complex", "is_contiguous", "element_size"}
"""Methods that ask nothing of a value's elements."""
_MADE_NEW = {"new_zeros", "new_ones", "new_full", "new_empty"}
"""Methods whose value does not depend on what they are called on, and which Python may go on to fill."""


def _attention(
    layer: nn.MultiheadAttention,
    query: Any,
    key: Any,
    value: Any,
    key_padding_mask: Any = None,
    need_weights: bool = True,
    attn_mask: Any = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> Any:
    """Return the outputs and, in place of the weights, None."""
    if key_padding_mask is not None:
        raise UnsupportedLayer("layer MultiheadAttention is taken without key_padding_mask")
    if layer.bias_k is not None or layer.add_zero_attn:
        raise UnsupportedLayer("layer MultiheadAttention is taken without add_bias_kv and add_zero_attn")
    size, heads, bias = layer.embed_dim, layer.num_heads, layer.in_proj_bias
    separate = (layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight)

    def projected(x: Any, part: int) -> Any:
        some = slice(part * size, (part + 1) * size)
        weight = separate[part] if layer.in_proj_weight is None else layer.in_proj_weight[some]
        x = x if layer.batch_first else x.transpose(0, 1)
        return F.linear(x, weight, None if bias is None else bias[some]).unflatten(-1, (heads, -1)).transpose(1, 2)

    mask = None if attn_mask is None else _kept(attn_mask)
    found = F.scaled_dot_product_attention(projected(query, 0), projected(key, 1), projected(value, 2), mask)
    found = F.linear(found.transpose(1, 2).flatten(2), layer.out_proj.weight, layer.out_proj.bias)
    return (found if layer.batch_first else found.transpose(0, 1)), None


def _kept(mask: Any) -> Any:
    """Return a mask as attention without layers has it: of a Boolean one what is True is taken out here, and stays
    there."""
    if isinstance(mask, fx.Proxy):
        return mask.tracer.create_proxy("call_function", _kept, (mask,), {})
    return ~mask if mask.dtype == torch.bool else mask


def _encoder_layer(
    layer: nn.TransformerEncoderLayer,
    src: Any,
    src_mask: Any = None,
    src_key_padding_mask: Any = None,
    is_causal: bool = False,
) -> Any:
    if src_key_padding_mask is not None:
        raise UnsupportedLayer("layer TransformerEncoderLayer is taken without padding masks")

    def attended(y: Any) -> Any:
        return layer.self_attn(y, y, y, attn_mask=src_mask)[0]

    def fed_forward(y: Any) -> Any:
        return layer.linear2(layer.activation(layer.linear1(y)))

    x = src
    if layer.norm_first:
        x = x + attended(layer.norm1(x))
        return x + fed_forward(layer.norm2(x))
    x = layer.norm1(x + attended(x))
    return layer.norm2(x + fed_forward(x))


def _decoder_layer(
    layer: nn.TransformerDecoderLayer,
    tgt: Any,
    memory: Any,
    tgt_mask: Any = None,
    memory_mask: Any = None,
    tgt_key_padding_mask: Any = None,
    memory_key_padding_mask: Any = None,
    tgt_is_causal: bool = False,
    memory_is_causal: bool = False,
) -> Any:
    if tgt_key_padding_mask is not None or memory_key_padding_mask is not None:
        raise UnsupportedLayer("layer TransformerDecoderLayer is taken without padding masks")
    parts = (
        (layer.norm1, lambda y: layer.self_attn(y, y, y, attn_mask=tgt_mask)[0]),
        (layer.norm2, lambda y: layer.multihead_attn(y, memory, memory, attn_mask=memory_mask)[0]),
        (layer.norm3, lambda y: layer.linear2(layer.activation(layer.linear1(y)))),
    )
    x = tgt
    for norm, part in parts:
        x = x + part(norm(x)) if layer.norm_first else norm(x + part(x))
    return x


def _encoder(
    layer: nn.TransformerEncoder,
    src: Any,
    mask: Any = None,
    src_key_padding_mask: Any = None,
    is_causal: bool | None = None,
) -> Any:
    x = src
    for one in layer.layers:
        x = one(x, src_mask=mask, src_key_padding_mask=src_key_padding_mask)
    return x if layer.norm is None else layer.norm(x)


def _decoder(layer: nn.TransformerDecoder, tgt: Any, memory: Any, *masks: Any, **named: Any) -> Any:
    x = tgt
    for one in layer.layers:
        x = one(x, memory, *masks, **named)
    return x if layer.norm is None else layer.norm(x)


_OPENED = (
    *(nn.GLU, nn.Softmin, nn.RReLU, nn.LPPool1d, nn.LPPool2d, nn.LocalResponseNorm, nn.Bilinear),
    *(nn.CosineSimilarity, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d, nn.Unfold, nn.Fold),
)
"""Layers that are recorded as what they call."""
_FORMS: dict[type[nn.Module], Callable[..., Any]] = {
    nn.Softmax2d: lambda layer, x: F.softmax(x, -3),
    nn.MultiheadAttention: _attention,
    nn.TransformerEncoderLayer: _encoder_layer,
    nn.TransformerEncoder: _encoder,
    nn.TransformerDecoderLayer: _decoder_layer,
    nn.TransformerDecoder: _decoder,
    **dict.fromkeys((nn.RNNCell, nn.LSTMCell, nn.GRUCell), stepped),
    **dict.fromkeys((nn.RNN, nn.LSTM, nn.GRU), written_out),
}
