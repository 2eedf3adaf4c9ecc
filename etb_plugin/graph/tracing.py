"""Builds a `Graph` from a plain `nn.Module`, through torch.fx.

Weights, and what is computed from them alone, are read from the module at each use, so a graph stays right while its
network trains. What is neither affine nor a known function is refused here, by name, before any work, and a graph
that does not compute its network, on points in and far around the range of data, is refused too.

fx and not torch.export: export makes in-place operations functional and leaves few operations, but takes seconds for a
network that fx traces in milliseconds. What fx reads wrongly (a view changed in place) the comparison of the values
finds.
"""

import contextlib
import operator
import weakref
from collections.abc import Callable
from dataclasses import replace
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, fx, nn

from etb_plugin.errors import ConfigError, UnsupportedLayer
from etb_plugin.graph.activations import Activation
from etb_plugin.graph.affine import Coherent, Conv, Linear, Scale
from etb_plugin.graph.composites import composites
from etb_plugin.graph.decompositions import decomposed
from etb_plugin.graph.expansions import Value
from etb_plugin.graph.front import fronted
from etb_plugin.graph.graph import Graph, Node
from etb_plugin.graph.layers import CALLS, IN_PLACE, LAYERS, MOVES, SIZES, SPLITS, Operation, ends_in_softmax
from etb_plugin.graph.symbolic import called, symbolic
from etb_plugin.graph.unfolding import unfolded

_PROBE_BATCH = 2  # batch norm refuses a batch of one in some layouts; two also tells batch from features
_CHECKED_BATCH = 3  # not the probe's: a graph that has taken in the probe's batch is found out


def trace(network: nn.Module, input_shape: torch.Size) -> Graph:
    """Return the graph of `network` for inputs of `input_shape` (without the batch).

    Raises UnsupportedLayer, naming the layer, for an operation that is neither affine nor a known function, and for a
    network that the graph does not compute; ConfigError for a network in training mode whose layers then depend on
    the batch.
    """
    network = unwrapped(network)
    refuse_training_mode(network)
    example, structure = example_input(network, input_shape), (input_shape, _structure(network))
    known = _traced.get(network)
    if known is not None and known[0] == structure:
        # A forward may read more than a structure shows (a global, an object changed in place): compare values anew.
        with contextlib.suppress(UnsupportedLayer, RuntimeError):
            check_values(known[1], network, example)
            return known[1]
    try:
        module = decomposed(symbolic(network, example), example)
    except UnsupportedLayer:
        raise
    except Exception as error:
        why = str(error).partition("\n")[0]
        raise UnsupportedLayer(
            f"{type(network).__name__} cannot be traced ({why}); its forward must not branch on values"
        ) from error
    graph = _graph(module, example)
    check_values(graph, network, example)
    _traced[network] = structure, graph
    return graph


def _graph(module: fx.GraphModule, example: Tensor) -> Graph:
    builder = Builder(module, example)
    with contextlib.suppress(_MixedBatch):
        return builder.graph()
    if builder.second:
        module = decomposed(fronted(module, example), example)
        with contextlib.suppress(_MixedBatch):
            return Builder(module, example).graph()
    return Builder(unfolded(module, example), example).graph()


class _MixedBatch(UnsupportedLayer):
    """Of a value whose first dimension is not the batch alone."""


def unwrapped(network: nn.Module) -> nn.Module:
    """Return the network that was compiled by torch, or put on several devices."""
    while True:
        if isinstance(network, nn.DataParallel | nn.parallel.DistributedDataParallel):
            network = network.module
        elif isinstance(compiled := getattr(network, "_orig_mod", None), nn.Module):
            network = compiled
        else:
            return network


_traced: "weakref.WeakKeyDictionary[nn.Module, tuple[Any, Graph]]" = weakref.WeakKeyDictionary()
"""What was traced last of each network, as long as that lives: a loop that calls `bound` traces once."""


def _structure(network: nn.Module) -> list[Any]:
    """Return what a trace of `network` depends on: its modules, their attributes, and which tensors they hold."""
    internal = vars(nn.Module()).keys() - {"training"}
    found: list[Any] = []
    for name, module in network.named_modules():
        plain = tuple(
            (key, repr(value) if isinstance(value, bool | int | float | str | list | tuple | dict) else id(value))
            for key, value in vars(module).items()
            if key not in internal
        )
        tensors = [*module._parameters.values(), *module._buffers.values()]
        held = tuple(None if t is None else (id(t), t.dtype, t.device, t.shape) for t in tensors)
        found.append((name, id(module), type(module), plain, held))
    return found


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
    like = next(network.parameters(), next(network.buffers(), torch.zeros(())))
    dtype = like.dtype if like.is_floating_point() else torch.get_default_dtype()
    return torch.zeros(_PROBE_BATCH, *input_shape, dtype=dtype, device=like.device)


@torch.no_grad()
def check_values(graph: Graph, network: Callable[[Tensor], Tensor], like: Tensor) -> None:
    """Raise UnsupportedLayer where `graph` and `network` differ on points in [0, 1] or far around it."""
    generator = torch.Generator().manual_seed(0)
    shape = (_CHECKED_BATCH, *like.shape[1:])
    near = torch.rand(shape, generator=generator, dtype=torch.float64)
    far = 10 * torch.randn(shape, generator=generator, dtype=torch.float64)
    for x in (near, far):
        x = x.to(like)
        want = network(x.clone())
        try:
            got = graph.values(x)[-1].expand_as(want)
        except RuntimeError as failed:
            why = str(failed).partition("\n")[0]
            raise UnsupportedLayer(
                f"{type(network).__name__} was read wrongly: its graph fails on a batch of {_CHECKED_BATCH}: {why}"
            ) from failed
        error, scale = (got - want).abs().max(), want.abs().max()
        if bool(error <= 100 * torch.finfo(want.dtype).eps ** 0.75 * (scale + 1)) or not bool(want.isfinite().all()):
            continue
        if not bool(error <= 1000 * shaken(network, x, want, generator)):
            raise UnsupportedLayer(
                f"{type(network).__name__} was read wrongly: its outputs are up to {float(scale):.3g}, and the graph's "
                f"differ by {float(error):.3g}; look for a view that is changed in place, or for random numbers"
            )


def shaken(network: Callable[[Tensor], Tensor], x: Tensor, values: Tensor, generator: torch.Generator) -> Tensor:
    """Return by how much the network's `values` at x change where x is rounded otherwise: waves of steep waves turn
    rounding into anything. 0 where it gives other values for the same x."""
    if not torch.equal(network(x.clone()), values):
        return values.new_zeros(())
    signs = torch.randint(0, 2, (8, *x.shape), generator=generator) * 2 - 1
    others = [network(x * (1 + torch.finfo(x.dtype).eps * sign.to(x))) for sign in signs]
    return torch.stack([(other - values).abs().max() for other in others]).max()


class Builder:
    """One pass over an fx graph. `values` holds what each fx node gave for the probe; `positions` our nodes."""

    def __init__(self, module: fx.GraphModule, probe: Tensor) -> None:
        self.module = module
        self.probe = probe
        self.nodes: list[Node] = []
        self.positions: dict[fx.Node, int] = {}
        self.several: set[fx.Node] = set()  # tuples of values, such as chunks
        self.second: set[fx.Node] = set()  # whose batch is their second dimension: here it is the first all the same
        self.sized: set[fx.Node] = set()  # what depends on the number of examples
        self.repeated: set[fx.Node] = set()  # of that, what has as many parts, all alike, such as a class token
        self.values: dict[fx.Node, Any] = {}
        self.composites = composites(module, self.probe.dtype)

    def graph(self) -> Graph:
        interpreter = fx.Interpreter(self.module)
        with torch.no_grad():
            for node in self._needed():
                self._visit(node, interpreter)
        return Graph(tuple(_pruned(_folded(self.nodes))))

    def _needed(self) -> list[fx.Node]:
        """Return the nodes in order, without what only goes into functions that are known as a whole."""
        if not self.composites:
            return list(self.module.graph.nodes)
        needed, pending = set(), [n for n in self.module.graph.nodes if n.op in ("placeholder", "output")]
        while pending:
            node = pending.pop()
            if node not in needed:
                needed.add(node)
                known = self.composites.get(node)
                pending += node.all_input_nodes if known is None else [known.source]
        return [n for n in self.module.graph.nodes if n in needed]

    def _visit(self, node: fx.Node, interpreter: fx.Interpreter) -> None:
        if node.op == "output":
            self._finish(node)
            return
        if node.op == "placeholder":
            if self.nodes:
                raise UnsupportedLayer("the network takes several inputs; bounds take networks of one")
            self.values[node] = self.probe
            self.positions[node] = self.emit(node, None, ())
            return
        if node in self.composites:
            known = self.composites[node]
            self.values[node] = known.function.forward(self.values[known.source])
            self.positions[node] = self.emit(node, known.function, (self.positions[known.source],))
            return
        args = fx.map_arg(node.args, lambda n: self.values[n])
        kwargs = fx.map_arg(node.kwargs, lambda n: self.values[n])
        try:
            value = self.values[node] = getattr(interpreter, node.op)(node.target, args, kwargs)
        except RuntimeError as error:
            why = str(error).partition("\n")[0]
            raise UnsupportedLayer(f"layer {self.name(node)} fails on a batch of {_PROBE_BATCH}: {why}") from error
        if node.target in ("to", "type_as") and node.args[0] not in self.positions and isinstance(value, Tensor):
            node.target, node.args = "to", (node.args[0], value.device, value.dtype)  # of the input it takes no more
        inputs = tuple(n for n in node.all_input_nodes if n in self.positions or n in self.several)
        if not inputs:  # a constant, or a size: part of the operations that use it
            if any(n in self.sized for n in node.all_input_nodes) and not self._size_of_features(node):
                self.sized.add(node)
                if isinstance(value, Tensor) and value.shape[:1] == (_PROBE_BATCH,):
                    self.repeated.add(node)
            return
        if not isinstance(value, Tensor):
            if node.target in SPLITS:
                self.several.add(node)
            elif node.target in SIZES:
                if not self._size_of_features(node):
                    self.sized.add(node)
            else:
                raise UnsupportedLayer(f"layer {self.name(node)} takes a value out of the network; no bound can follow")
            return
        self._tell_sizes(node)
        operation = self._operation(node, inputs) if node.target not in MOVES else self._moved(node, inputs)
        if node.target not in MOVES and any(n in self.second for n in inputs):
            if not (operation is None or isinstance(operation, Activation | Linear)):
                raise _MixedBatch(f"layer {self.name(node)} takes a value whose batch is not the first dimension")
            self.second.add(node)
        if operation is None:
            self.positions[node] = self.positions[inputs[0]]
        elif isinstance(operation, int):
            self.positions[node] = operation
        else:
            self.positions[node] = self.emit(node, operation, tuple(self.positions[n] for n in inputs))
        changed = node.args[0] if self._in_place(node) else None
        if isinstance(changed, fx.Node) and changed in self.positions:
            self.positions[changed] = self.positions[node]

    def _size_of_features(self, node: fx.Node) -> bool:
        """Whether a node asks for sizes of other dimensions than the batch's, of a value or of its shape."""
        if node.target not in ("size", operator.getitem) or len(node.args) < 2:
            return False
        source, index = node.args[:2]
        if not isinstance(source, fx.Node) or not isinstance(index, int | slice):
            return False
        value, shape = source, self.values[source]
        if node.target == "size":
            shape = shape.shape
        elif isinstance(shape, tuple) and source.all_input_nodes:
            value = source.all_input_nodes[0]
        else:
            return False
        asked, batch = range(len(shape))[index], int(value in self.second)
        return asked != batch if isinstance(asked, int) else batch not in asked

    def _tell_sizes(self, node: fx.Node) -> None:
        """Put numbers for the sizes that a call names, all but the batch's: kernels of pooling are read before it."""

        def number(argument: fx.Node) -> Any:
            value = self.values[argument]
            sizes = value if isinstance(value, tuple) else (value,)
            told = argument not in self.sized and all(isinstance(size, int) for size in sizes)
            return value if told else argument

        node.args, node.kwargs = fx.map_arg(node.args, number), fx.map_arg(node.kwargs, number)

    def emit(
        self, node: fx.Node, operation: Operation | None, inputs: tuple[int, ...], shape: torch.Size | None = None
    ) -> int:
        """Add a node, of the shape of the fx node's value unless told, and return its position."""
        shape = shape or self.values[node].movedim(int(node in self.second), 0).shape[1:]
        self.nodes.append(Node(self.name(node), operation, inputs, shape))
        return len(self.nodes) - 1

    def _finish(self, node: fx.Node) -> None:
        out = node.args[0]
        if (
            not isinstance(out, fx.Node)
            or out not in self.positions
            or self.values[out].ndim != 2
            or out in self.second
        ):
            raise UnsupportedLayer("the network must return one tensor of logits, [batch, classes]")
        if ends_in_softmax(self, out):
            raise self.unknown(out)
        # Layers behind the output would be walked for nothing.
        del self.nodes[self.positions[out] + 1 :]

    def name(self, node: fx.Node) -> str:
        if node.op == "call_module":
            return f"'{node.target}' ({type(self.module.get_submodule(str(node.target))).__name__})"
        target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
        return f"'{node.name}' ({target})"

    def _operation(self, node: fx.Node, inputs: tuple[fx.Node, ...]) -> Operation | int | None:
        """Return the operation of `node`, its position, or None where it passes its input on unchanged."""
        if node.op == "call_module":
            layer = self.module.get_submodule(str(node.target))
            for kind, make in LAYERS.items():
                if isinstance(layer, kind):
                    return make(self, node, layer)
        elif inputs[0] in self.several:
            return self._part(node, inputs)
        elif (kind_of := CALLS.get(node.target)) is not None:
            return kind_of(self, node, inputs)
        elif isinstance(node.target, FunctionType) and self.values[node] is self.values[inputs[0]]:
            return None  # what gives its input back in eval mode, such as dropout of channels
        raise self.unknown(node)

    def unknown(self, node: fx.Node) -> UnsupportedLayer:
        what = "is neither affine nor a function that is known; no bound takes it"
        if "oftmax" in (name := self.name(node)):
            what += ". At the end of a network leave it out: methods take logits"
        return UnsupportedLayer(f"layer {name} {what}")

    def value(self, node: Any) -> Value:
        """Return the position and shape of a node that depends on the input."""
        return Value(self.positions[node], self.features(node))

    def _part(self, node: fx.Node, inputs: tuple[fx.Node, ...]) -> int:
        """Return the position of one of several values that a split gave."""
        (split,) = inputs
        (source,) = (n for n in split.all_input_nodes if n in self.positions)
        whole, index = self.closure(split, (source,)), node.args[1]
        if node.target is not operator.getitem or not isinstance(index, int):
            raise UnsupportedLayer(f"layer {self.name(node)} takes several values at once")
        return self._move(node, source, lambda x: whole(x)[index])

    def _moved(self, node: fx.Node, inputs: tuple[fx.Node, ...]) -> Operation | int | None:
        """Return what puts dimensions in another order or takes some out, where the batch may become the second
        dimension, as recurrent layers have it, or the first again."""
        (source, *others) = inputs
        if others or source in self.several:
            return self._operation(node, inputs)
        function = self.closure(node, (source,))
        if source not in self.second and _followed(function, self.values[source].shape, 0) != 1:
            return self._operation(node, inputs)
        return self._move(node, source, function)

    def _move(self, node: fx.Node, source: fx.Node, function: Callable[[Tensor], Tensor]) -> int:
        """Return the position of what `function` makes of the value of `source`, whose batch it does not divide."""
        behind = source in self.second
        dimension = _followed(function, self.values[source].shape, int(behind))
        if dimension not in (0, 1):
            raise _MixedBatch(f"layer {self.name(node)} mixes the batch into the features")
        if dimension == 1:
            self.second.add(node)

        def move(x: Tensor) -> Tensor:
            found = function(x.transpose(0, 1) if behind else x)
            return found.transpose(0, 1) if dimension == 1 else found

        return self.emit(node, Coherent(move, homogeneous=True), (self.positions[source],))

    def _in_place(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return bool(getattr(self.module.get_submodule(str(node.target)), "inplace", False))
        if node.kwargs.get("inplace", False):
            return True
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        return (name.endswith("_") and not name.endswith("__")) or node.target in IN_PLACE

    def constant(self, argument: Any) -> Any:
        """Return an argument that does not depend on the input: weights, and what is computed from them, as of now."""
        if isinstance(argument, fx.Node):
            if argument.op == "get_attr":
                return operator.attrgetter(str(argument.target))(self.module)
            if not isinstance(self.values[argument], Tensor):
                return self.values[argument]
            value = called(self.module, argument, self.constant)
            return value[:1] if argument in self.repeated else value
        if isinstance(argument, list | tuple):
            return type(argument)(self.constant(part) for part in argument)
        return argument

    def closure(self, node: fx.Node, inputs: tuple[fx.Node, ...]) -> Callable[..., Any]:
        """Return the operation of `node` as a function of its inputs, everything else read afresh."""

        def call(*tensors: Tensor) -> Any:
            given = dict(zip(inputs, tensors, strict=True))

            def read(n: fx.Node) -> Any:
                if n in given:
                    return given[n]
                value = self.constant(n)
                return value.expand(len(tensors[0]), *value.shape[1:]) if n in self.repeated else value

            return called(self.module, node, read)

        return call

    def features(self, node: fx.Node) -> torch.Size:
        """Return the shape of a node's value without the batch. Raises UnsupportedLayer where it has none."""
        shape = self.values[node].shape
        if not shape or shape[0] != _PROBE_BATCH or node in self.second:
            raise _MixedBatch(f"layer {self.name(node)} mixes the batch into the features")
        return shape[1:]

    def elementwise(self, node: fx.Node, argument: Any) -> Callable[[], Tensor]:
        """Return a constant of an elementwise operation as a function without arguments, [1, *features]."""
        shape, like = self.features(node), self.probe

        def read() -> Tensor:
            value = self.constant(argument)
            if not isinstance(value, Tensor):
                value = torch.tensor(value, dtype=like.dtype, device=like.device)
            return value.to(like.dtype).expand(1, *shape)

        try:
            read()
        except RuntimeError:
            raise UnsupportedLayer(
                f"layer {self.name(node)} has a constant of shape {list(self.constant(argument).shape)}, which differs "
                f"between the examples of a batch or does not fit [{', '.join(map(str, shape))}]"
            ) from None
        return read


def _followed(move: Callable[[Tensor], Tensor], shape: torch.Size, batch: int) -> int | None:
    """Return which dimension the batch is after `move`, of a value of `shape` whose dimension `batch` it is; None where
    it is none of them."""

    def numbered(shape: torch.Size, batch: int) -> Tensor:
        return torch.arange(shape[batch]).view(-1, *[1] * (len(shape) - batch - 1)).expand(shape)

    found = move(numbered(shape, batch))
    places = [
        d for d, size in enumerate(found.shape) if size == shape[batch] and torch.equal(found, numbered(found.shape, d))
    ]
    return places[0] if places else None


def _folded(nodes: list[Node]) -> list[Node]:
    """Return the nodes with each elementwise scale of channels (batch norm) folded into the layer before it, where
    that has no other use: one pass less everywhere."""
    uses = [0] * len(nodes)
    for node in nodes:
        for j in node.inputs:
            uses[j] += 1
    out = list(nodes)
    for i, node in enumerate(nodes):
        before = out[node.inputs[0]] if len(node.inputs) == 1 else None
        if (
            isinstance(node.operation, Scale)
            and node.operation.channels
            and before is not None
            and isinstance(before.operation, Conv | Linear)
            and len(before.shape) == (1 if isinstance(before.operation, Linear) else len(before.operation.stride) + 1)
            and uses[node.inputs[0]] == 1
        ):
            out[i] = replace(node, operation=_scaled(before.operation, node.operation), inputs=before.inputs)
    return out


def _scaled(layer: Conv | Linear, scale: Scale) -> Conv | Linear:
    def weight() -> Tensor:
        value, factor = layer.weight(), scale.factor()
        return value * factor.view(-1, *[1] * (value.ndim - 1))

    def bias() -> Tensor | None:
        first, offset = layer.bias(), scale.offset()
        if first is None:
            return None if offset is None else offset.flatten()
        scaled = first * scale.factor().flatten()
        return scaled if offset is None else scaled + offset.flatten()

    return replace(layer, weight=weight, bias=bias)


def _pruned(nodes: list[Node]) -> list[Node]:
    """Return the nodes that the last one depends on, and the input."""
    wanted = {0, len(nodes) - 1}
    for i in range(len(nodes) - 1, 0, -1):
        if i in wanted:
            wanted.update(nodes[i].inputs)
    places = {old: new for new, old in enumerate(sorted(wanted))}
    return [replace(nodes[i], inputs=tuple(places[j] for j in nodes[i].inputs)) for i in sorted(wanted)]
