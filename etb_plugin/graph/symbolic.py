"""A network as torch.fx records it, with the layers written out that torch keeps whole: attention and its encoders,
recurrent layers."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import fx, nn
from torch.nn import functional as F

from etb_plugin.errors import UnsupportedLayer
from etb_plugin.graph.beside import ReluBeside
from etb_plugin.graph.recurrent import written_out


def symbolic(network: nn.Module) -> fx.GraphModule:
    """Return `network` as a graph of calls that shares its weights. Raises what its forward raises where that branches
    on values, and UnsupportedLayer for an attention with a mask, or whose batch is not first."""
    with _lengths_recorded(network):
        return fx.GraphModule(network, _Tracer().trace(network), type(network).__name__)


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


def _length(value: Any) -> Any:
    return value.size(0) if isinstance(value, fx.Proxy) else len(value)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, ReluBeside) or super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        form = _FORMS.get(type(m))
        return super().call_module(m, forward, args, kwargs) if form is None else form(m, *args, **kwargs)


def _attention(layer: nn.MultiheadAttention, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
    """Return the outputs and, in place of the weights, None."""
    _refuse_masks("MultiheadAttention", layer.batch_first, args, kwargs)
    if layer.bias_k is not None or layer.add_zero_attn:
        raise UnsupportedLayer("layer MultiheadAttention is taken without add_bias_kv and add_zero_attn")
    size, heads, bias = layer.embed_dim, layer.num_heads, layer.in_proj_bias
    separate = (layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight)

    def projected(x: Any, part: int) -> Any:
        some = slice(part * size, (part + 1) * size)
        weight = separate[part] if layer.in_proj_weight is None else layer.in_proj_weight[some]
        return F.linear(x, weight, None if bias is None else bias[some]).unflatten(-1, (heads, -1)).transpose(1, 2)

    found = F.scaled_dot_product_attention(projected(query, 0), projected(key, 1), projected(value, 2))
    return F.linear(found.transpose(1, 2).flatten(2), layer.out_proj.weight, layer.out_proj.bias), None


def _encoder_layer(layer: nn.TransformerEncoderLayer, x: Any, *args: Any, **kwargs: Any) -> Any:
    _refuse_masks("TransformerEncoderLayer", layer.self_attn.batch_first, args, kwargs)

    def attended(y: Any) -> Any:
        return layer.self_attn(y, y, y)[0]

    def fed_forward(y: Any) -> Any:
        return layer.linear2(layer.activation(layer.linear1(y)))

    if layer.norm_first:
        x = x + attended(layer.norm1(x))
        return x + fed_forward(layer.norm2(x))
    x = layer.norm1(x + attended(x))
    return layer.norm2(x + fed_forward(x))


def _encoder(layer: nn.TransformerEncoder, x: Any, *args: Any, **kwargs: Any) -> Any:
    _refuse_masks("TransformerEncoder", True, args, kwargs)
    for one in layer.layers:
        x = one(x)
    return x if layer.norm is None else layer.norm(x)


def _refuse_masks(name: str, batch_first: bool, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse whatever is given beside the values, but what the outputs do not depend on."""
    given = [value for key, value in kwargs.items() if key not in ("need_weights", "average_attn_weights")]
    if not batch_first or any(value is not None and value is not False for value in (*args, *given)):
        raise UnsupportedLayer(f"layer {name} is taken with batch_first=True, and without masks")


_FORMS: dict[type[nn.Module], Callable[..., Any]] = {
    nn.MultiheadAttention: _attention,
    nn.TransformerEncoderLayer: _encoder_layer,
    nn.TransformerEncoder: _encoder,
    **dict.fromkeys((nn.RNN, nn.LSTM, nn.GRU), written_out),
}
