"""Recurrent layers: torch's RNN, LSTM and GRU as calls of `recurrence`, and what such a call becomes in a graph, step
by step."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from etb_plugin.errors import UnsupportedLayer
from etb_plugin.graph.activations import Known, Relu
from etb_plugin.graph.affine import Coherent, Linear, Sum
from etb_plugin.graph.expansions import Steps, Value
from etb_plugin.graph.smooth import SIGMOID, TANH

if TYPE_CHECKING:
    from etb_plugin.graph.tracing import Builder

_PLAIN = {"tanh": torch.tanh, "relu": torch.relu}
_PARTS = {"tanh": 1, "relu": 1, "gru": 3, "lstm": 4}
"""The gates of a kind, torch's order of which its weights have."""


def recurrence(
    x: Tensor,
    weight: Tensor,
    recurrent: Tensor,
    bias: Tensor | None,
    recurrent_bias: Tensor | None,
    kind: str,
    backwards: bool = False,
    cells: bool = False,
) -> Tensor:
    """Return a recurrent layer's hidden states, or an LSTM's cells, from states of zeros, in one direction.

    Shapes: x [batch, steps, features], `weight` [gates * hidden, features], `recurrent` [gates * hidden, hidden] ->
    [batch, steps, hidden], by step whatever the direction. The kind is "tanh", "relu", "lstm" or "gru", the equations
    those of torch.nn.
    """
    before = nn.functional.linear(x, weight, bias)
    h = x.new_zeros(len(x), recurrent.shape[1])
    c, found = h, []
    for step in _order(x.shape[1], backwards):
        fed, back = before[:, step], nn.functional.linear(h, recurrent, recurrent_bias)
        if kind in _PLAIN:
            h = _PLAIN[kind](fed + back)
        elif kind == "lstm":
            i, f, g, o = (fed + back).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        else:
            (r, z, n), (rh, zh, nh) = fed.chunk(3, 1), back.chunk(3, 1)
            z, n = (z + zh).sigmoid(), (n + (r + rh).sigmoid() * nh).tanh()
            h = (1 - z) * n + z * h
        found.append(c if cells else h)
    return torch.stack(found[::-1] if backwards else found, 1)


def _order(steps: int, backwards: bool) -> range:
    return range(steps - 1, -1, -1) if backwards else range(steps)


def written_out(layer: nn.RNNBase, x: Any, states: Any = None) -> tuple[Any, Any]:
    """Return what `layer` gives for the proxy `x`, in calls of `recurrence`: outputs, and the last states."""
    if not isinstance(x, fx.Proxy) or states is not None or layer.proj_size:
        raise UnsupportedLayer(
            f"layer {type(layer).__name__} is taken from states of zeros that are not given, and without proj_size"
        )
    if not layer.batch_first:
        x = x.transpose(0, 1)
    kind = {"RNN_TANH": "tanh", "RNN_RELU": "relu"}.get(layer.mode, layer.mode.lower())
    last: list[Any] = []
    cells: list[Any] = []
    for level in range(layer.num_layers):
        ways = []
        for suffix in ("", "_reverse")[: 1 + layer.bidirectional]:
            names = (f"{name}_l{level}{suffix}" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
            call = (x, *(getattr(layer, name, None) for name in names), kind, bool(suffix))
            ways.append(x.tracer.create_proxy("call_function", recurrence, call, {}))
            last.append(ways[-1][:, 0 if suffix else -1])
            if kind == "lstm":  # nobody walks them where nobody asks for the cells
                both = x.tracer.create_proxy("call_function", recurrence, call, {"cells": True})
                cells.append(both[:, 0 if suffix else -1])
        x = ways[0] if len(ways) == 1 else torch.cat(ways, 2)
    states = [torch.stack(some, 1).transpose(0, 1) for some in (last, cells) if some]
    return (x if layer.batch_first else x.transpose(0, 1)), states[0] if kind != "lstm" else tuple(states)


def unrolled(builder: "Builder", node: fx.Node, inputs: tuple[fx.Node, ...]) -> int:
    """Return the position of what a call of `recurrence` gives."""
    x, *weights = node.args[:5]
    if inputs != (x,):
        raise UnsupportedLayer(f"layer {builder.name(node)} has weights that depend on the input")
    kind, backwards = node.args[5:7]
    weight, recurrent, bias, recurrent_bias = (partial(builder.constant, one) for one in weights)
    value, steps = builder.value(x), Steps(builder, node)
    hidden = recurrent().shape[1]
    size = (_PARTS[kind] * hidden,)
    before = steps.add(Linear(weight, bias), (value.shape[0], *size), value)
    state: tuple[Value, ...] = ()
    found: list[Value] = []
    for step in _order(value.shape[0], backwards):
        fed = steps.moved(before, partial(torch.select, dim=1, index=step))
        if state:
            back: Value | None = steps.add(Linear(recurrent, recurrent_bias), size, state[0])
        else:
            back = None
        state = _STEPS[kind](steps, fed, back, state, recurrent_bias)
        found.append(state[-1] if node.kwargs.get("cells") else state[0])
    stacked = Coherent(lambda *states: torch.stack(states, 1), homogeneous=True)
    return steps.add(stacked, (len(found), hidden), *(found[::-1] if backwards else found)).position


_Constant = Callable[[], Tensor | None]


def _total(steps: Steps, fed: Value, back: Value | None, recurrent_bias: _Constant) -> Value:
    """Return what is fed in plus what comes back: at the first step the bias of that alone."""
    if back is not None:
        return steps.add(Sum(), fed.shape, fed, back)
    return fed if recurrent_bias() is None else steps.scaled(fed, 1.0, recurrent_bias)  # type: ignore[arg-type]


def _part(steps: Steps, x: Value, number: int, of: int) -> Value:
    size = x.shape[0] // of
    return steps.moved(x, lambda t: t[:, number * size : (number + 1) * size])


def _plain(
    steps: Steps, fed: Value, back: Value | None, state: tuple[Value, ...], recurrent_bias: _Constant, *, relu: bool
) -> tuple[Value, ...]:
    total = _total(steps, fed, back, recurrent_bias)
    return (steps.add(Relu() if relu else TANH, total.shape, total),)


def _lstm(
    steps: Steps, fed: Value, back: Value | None, state: tuple[Value, ...], recurrent_bias: _Constant
) -> tuple[Value, ...]:
    total = _total(steps, fed, back, recurrent_bias)
    i, f, g, o = (_part(steps, total, number, 4) for number in range(4))
    c = steps.product(steps.add(SIGMOID, i.shape, i), steps.add(TANH, g.shape, g))
    if state:
        kept = steps.product(steps.add(SIGMOID, f.shape, f), state[1])
        c = steps.add(Sum(), c.shape, kept, c)
    return steps.product(steps.add(SIGMOID, o.shape, o), steps.add(TANH, c.shape, c)), c


def _gru(
    steps: Steps, fed: Value, back: Value | None, state: tuple[Value, ...], recurrent_bias: _Constant
) -> tuple[Value, ...]:
    size = fed.shape[0] // 3

    def third(number: int) -> _Constant:
        return lambda: None if (b := recurrent_bias()) is None else b[number * size : (number + 1) * size]

    def gate(number: int) -> Value:
        return _total(
            steps,
            _part(steps, fed, number, 3),
            None if back is None else _part(steps, back, number, 3),
            third(number),
        )

    r, z = (steps.add(SIGMOID, one.shape, one) for one in (gate(0), gate(1)))
    n = _part(steps, fed, 2, 3)
    if back is not None:
        n = steps.add(Sum(), n.shape, n, steps.product(r, _part(steps, back, 2, 3)))
    elif recurrent_bias() is not None:
        n = steps.add(Sum(), n.shape, n, steps.scaled(r, third(2)))  # type: ignore[arg-type]
    n = steps.add(TANH, n.shape, n)
    # (1 - z) n + z h, which lies between n and h
    h = steps.product(steps.scaled(z, -1.0, lambda: steps.builder.probe.new_ones(())), n)
    if state:
        h = steps.add(Sum(), h.shape, h, steps.product(z, state[0]))
    return (steps.add(Known(-1.0, 1.0), h.shape, h),)


_STEPS: dict[str, Callable[..., tuple[Value, ...]]] = {
    "tanh": partial(_plain, relu=False),
    "relu": partial(_plain, relu=True),
    "lstm": _lstm,
    "gru": _gru,
}
