"""Recurrent layers: torch's RNN, LSTM and GRU as calls of `recurrence`, and what such a call becomes in a graph, step
by step."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from etb_plugin.errors import UnsupportedLayer
from etb_plugin.graph.activations import Activation, Known, Relu
from etb_plugin.graph.affine import Coherent, Linear, Sum
from etb_plugin.graph.expansions import Steps, Value
from etb_plugin.graph.smooth import SIGMOID, TANH

if TYPE_CHECKING:
    from etb_plugin.graph.tracing import Builder

_PLAIN = {"tanh": torch.tanh, "relu": torch.relu}


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
    those of torch.nn. A proxy of fx is recorded as one call.
    """
    if isinstance(x, fx.Proxy):
        given = (x, weight, recurrent, bias, recurrent_bias, kind, backwards, cells)
        return x.tracer.create_proxy("call_function", recurrence, given, {})
    before = nn.functional.linear(x, weight, bias)
    h = c = None
    found = []
    for step in _order(x.shape[1], backwards):
        back = recurrent_bias if h is None else nn.functional.linear(h, recurrent, recurrent_bias)
        h, c = _advanced(kind, before[:, step], back, h, c)
        found.append(c if cells else h)
    return torch.stack(found[::-1] if backwards else found, 1)


def _order(steps: int, backwards: bool) -> range:
    return range(steps - 1, -1, -1) if backwards else range(steps)


def written_out(layer: nn.RNNBase, x: Any, states: Any = None) -> tuple[Any, Any]:
    """Return what `layer` gives for the proxy `x`, in calls of `recurrence`: outputs, and the last states."""
    if not isinstance(x, fx.Proxy) or not _are_zeros(states) or layer.proj_size:
        raise UnsupportedLayer(f"layer {type(layer).__name__} is taken from states of zeros, and without proj_size")
    if not layer.batch_first:
        x = x.transpose(0, 1)
    kind = {"RNN_TANH": "tanh", "RNN_RELU": "relu"}.get(layer.mode, layer.mode.lower())
    every = (False, True) if kind == "lstm" else (False,)  # states alone, or cells too, walked where they are asked for
    last: list[list[Any]] = [[] for _ in every]
    for level in range(layer.num_layers):
        ways = []
        for suffix in ("", "_reverse")[: 1 + layer.bidirectional]:
            names = (f"{name}_l{level}{suffix}" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
            given: Any = (x, *(getattr(layer, name, None) for name in names), kind, bool(suffix))
            found = [recurrence(*(*given, cells)) for cells in every]
            ways.append(found[0])
            for ends, one in zip(last, found, strict=True):
                ends.append(one[:, 0 if suffix else -1])
        x = ways[0] if len(ways) == 1 else torch.cat(ways, 2)
    states = [torch.stack(ends, 1).transpose(0, 1) for ends in last]
    return (x if layer.batch_first else x.transpose(0, 1)), states[0] if kind != "lstm" else tuple(states)


def _are_zeros(states: Any) -> bool:
    """Whether states are none, or what `torch.zeros` and its like made."""
    if isinstance(states, tuple | list):
        return all(map(_are_zeros, states))
    return states is None if not isinstance(states, fx.Proxy) else _is_zeros(states.node)


def _is_zeros(node: fx.Node) -> bool:
    if node.target in _ALIKE and isinstance(node.args[0], fx.Node):
        return _is_zeros(node.args[0])
    # By its name: while a network is recorded, torch's own stands behind another.
    return getattr(node.target, "__name__", node.target) in ("zeros", "zeros_like", "new_zeros")


def without_zeros(graph: fx.Graph) -> None:
    """Take out the zeros that nothing needs: recurrent layers begin with them untold."""
    for node in reversed(graph.nodes):
        if not node.users and _is_zeros(node):
            graph.erase_node(node)


_ALIKE = ("to", "type_as", "type", "float", "double", "cuda", "cpu", "detach", "contiguous", "clone", "requires_grad_")


def stepped(layer: nn.RNNCellBase, x: Any, state: Any = None) -> Any:
    """Return what a cell of one step gives for the proxy `x`: h, and an LSTM's c too; from zeros unless told."""
    kind = layer.nonlinearity if isinstance(layer, nn.RNNCell) else "lstm" if isinstance(layer, nn.LSTMCell) else "gru"
    h, c = state if kind == "lstm" and state is not None else (state, None)
    fed = nn.functional.linear(x, layer.weight_ih, layer.bias_ih)
    back = layer.bias_hh if h is None else nn.functional.linear(h, layer.weight_hh, layer.bias_hh)
    h, c = _advanced(kind, fed, back, h, c)
    return (h, c) if kind == "lstm" else h


def _advanced(kind: str, fed: Any, back: Any, h: Any, c: Any) -> tuple[Any, Any]:
    """Return the state behind h, and the cell behind an LSTM's c, from what the input and h feed into the gates.

    None is zeros.
    """
    if kind == "gru":
        gates, parts = fed.chunk(3, 1), None if back is None else back.chunk(3, -1)
        r, z = ((gates[i] if parts is None else gates[i] + parts[i]).sigmoid() for i in range(2))
        n = (gates[2] if parts is None else gates[2] + r * parts[2]).tanh()
        return (1 - z) * n if h is None else (1 - z) * n + z * h, None
    total = fed if back is None else fed + back
    if kind in _PLAIN:
        return _PLAIN[kind](total), None
    i, f, g, o = total.chunk(4, 1)
    c = i.sigmoid() * g.tanh() if c is None else f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def unrolled(builder: "Builder", node: fx.Node, inputs: tuple[fx.Node, ...]) -> int:
    """Return the position of what a call of `recurrence` gives."""
    given: Any = node.args  # a proxy records them all
    x, *weights, kind, backwards, cells = given
    if inputs != (x,):
        raise UnsupportedLayer(f"layer {builder.name(node)} has weights that depend on the input")
    value, steps = builder.value(x), Steps(builder, node)
    cell = _Cell(steps, *(partial(builder.constant, one) for one in weights))
    state: tuple[Value, ...] = ()
    found: list[Value] = []
    for step in _order(value.shape[0], backwards):
        state = _CELLS[kind](cell, steps.moved(value, partial(torch.select, dim=1, index=step)), state)
        found.append(state[-1] if cells else state[0])
    stacked = Coherent(lambda *states: torch.stack(states, 1), homogeneous=True)
    return steps.add(stacked, (len(found), cell.hidden), *(found[::-1] if backwards else found)).position


@dataclass(frozen=True)
class _Cell:
    """The weights of a recurrent layer, of which each gate has its part; a step's state is h, and an LSTM's c."""

    steps: Steps
    weight: Callable[[], Tensor]
    recurrent: Callable[[], Tensor]
    bias: Callable[[], Tensor | None]
    recurrent_bias: Callable[[], Tensor | None]

    @property
    def hidden(self) -> int:
        return self.recurrent().shape[1]

    def fed(self, gate: int, x: Value, *biases: Callable[[], Tensor | None]) -> Value:
        """Return what a gate takes from x, plus biases."""
        return self._linear(gate, self.weight, x, *biases)

    def back(self, gate: int, h: Value, *biases: Callable[[], Tensor | None]) -> Value:
        """Return what a gate takes from the state before, plus biases."""
        return self._linear(gate, self.recurrent, h, *biases)

    def gate(self, gate: int, function: Activation, x: Value, state: tuple[Value, ...]) -> Value:
        """Return the function of all that a gate takes."""
        total = self.fed(gate, x, self.bias, self.recurrent_bias)
        if state:
            total = self.sum(total, self.back(gate, state[0]))
        return self.of(function, total)

    def of(self, function: Activation, x: Value) -> Value:
        return self.steps.add(function, x.shape, x)

    def sum(self, x: Value, y: Value) -> Value:
        return self.steps.add(Sum(), x.shape, x, y)

    def part(self, gate: int, of: Callable[[], Tensor | None]) -> Callable[[], Tensor | None]:
        """Return a gate's part of weights or biases, as of now."""
        size = self.hidden
        return lambda: None if (whole := of()) is None else whole[gate * size : (gate + 1) * size]

    def _linear(self, gate: int, weight: Callable[[], Tensor], x: Value, *biases: Callable[[], Tensor | None]) -> Value:
        parts = [self.part(gate, bias) for bias in biases if bias() is not None]
        layer = Linear(
            self.part(gate, weight),  # type: ignore[arg-type]
            lambda: torch.stack([part() for part in parts]).sum(0) if parts else None,  # type: ignore[misc]
        )
        return self.steps.add(layer, (self.hidden,), x)


def _plain(function: Activation) -> Callable[[_Cell, Value, tuple[Value, ...]], tuple[Value, ...]]:
    return lambda cell, x, state: (cell.gate(0, function, x, state),)


def _lstm(cell: _Cell, x: Value, state: tuple[Value, ...]) -> tuple[Value, ...]:
    i, f, g, o = (cell.gate(k, TANH if k == 2 else SIGMOID, x, state) for k in range(4))
    c = cell.steps.product(i, g)
    if state:
        c = cell.sum(cell.steps.product(f, state[1]), c)
    return cell.steps.product(o, cell.of(TANH, c)), c


def _gru(cell: _Cell, x: Value, state: tuple[Value, ...]) -> tuple[Value, ...]:
    steps = cell.steps
    r, z = (cell.gate(k, SIGMOID, x, state) for k in range(2))
    n = cell.fed(2, x, cell.bias)
    if state:
        n = cell.sum(n, steps.product(r, cell.back(2, state[0], cell.recurrent_bias)))
    elif cell.recurrent_bias() is not None:
        n = cell.sum(n, steps.scaled(r, cell.part(2, cell.recurrent_bias)))  # type: ignore[arg-type]
    n = cell.of(TANH, n)
    # (1 - z) n + z h, which lies between n and h
    h = steps.product(steps.scaled(z, -1.0, lambda: steps.builder.probe.new_ones(())), n)
    if state:
        h = cell.sum(h, steps.product(z, state[0]))
    return (cell.of(Known(-1.0, 1.0), h),)


_CELLS = {"tanh": _plain(TANH), "relu": _plain(Relu()), "lstm": _lstm, "gru": _gru}
