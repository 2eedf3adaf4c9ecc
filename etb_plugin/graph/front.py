"""Values whose batch is another dimension than the first, as transformers have them by default, with it in front.

A call that has a form here is written for the batch in front; any other gets its values as they stood, and what it
gives is moved. Where the batch is, is seen in two runs, of batches of two sizes.
"""

import contextlib
import operator
from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from etb_plugin.graph.unfolding import ELEMENTWISE, ELEMENTWISE_LAYERS, JOINED, NotTaken, layouts


def fronted(module: fx.GraphModule, example: Tensor) -> fx.GraphModule:
    """Return a network that computes what `module` does, of values whose batch is in front where there is a form;
    `example` is a batch of inputs."""
    known = layouts(module, example)
    shapes = {node: (layout.shape, layout.place) for node, layout in known.items() if not layout.folded}
    new = fx.Graph()
    tracer = fx.proxy.GraphAppendingTracer(new)
    env: dict[fx.Node, Any] = {}
    for node in module.graph.nodes:
        env[node] = _Call(module, node, shapes, env, tracer).done()
    found = fx.GraphModule(module, new, type(module).__name__)
    found.graph.eliminate_dead_code()
    found.recompile()
    return found


class _Call:
    """A call as it stood, what stands for the values before it (those whose batch was behind: with it in front), and
    the shape of each value and which dimension its batch was."""

    def __init__(
        self,
        module: fx.GraphModule,
        node: fx.Node,
        shapes: dict[fx.Node, tuple[torch.Size, int | None]],
        env: dict[fx.Node, Any],
        tracer: fx.proxy.GraphAppendingTracer,
    ) -> None:
        self.module, self.node, self.shapes, self.env, self.tracer = module, node, shapes, env, tracer
        self.behind = [n for n in node.all_input_nodes if self.place(n)]

    def place(self, node: fx.Node) -> int:
        return (self.shapes[node][1] or 0) if node in self.shapes else 0

    @property
    def given(self) -> tuple[int, int]:
        """The number of dimensions of the first value whose batch is behind, and which that is."""
        return len(self.shapes[self.behind[0]][0]), self.place(self.behind[0])

    def done(self) -> Any:
        """Return the node that stands for the call's value."""
        node = self.node
        of = node.args[0] if node.args else None
        if node.target is operator.getitem and isinstance(of, fx.Node) and isinstance(self.env[of], tuple):
            return self.env[of][node.args[1]]
        if node.op == "output" or not (self.behind or self.place(node)):
            return self.tracer.graph.node_copy(node, self.as_it_stood)
        if node.target == "size" and len(node.args) > 1:
            return self.sizes()[node.args[1]]  # type: ignore[index]
        if node.target in ("size", getattr) and node.args[1:] in ((), ("shape",)):
            return self.sizes()
        form = _FORMS.get(node.target)
        if node.op == "call_module":
            layer = self.module.get_submodule(str(node.target))
            form = _last if isinstance(layer, ELEMENTWISE_LAYERS | nn.Linear | nn.LayerNorm | nn.RMSNorm) else None
        if form is not None and self.behind:
            given: Any = fx.map_arg((node.args, node.kwargs), self.proxy)
            with contextlib.suppress(NotTaken):
                return form(self, *given[0], **given[1]).node
        copied = self.tracer.graph.node_copy(node, self.as_it_stood)
        place = self.place(node)
        return fx.Proxy(copied, self.tracer).movedim(place, 0).node if place else copied

    def sizes(self) -> tuple[Any, ...]:
        """Return the shape of the value as it stood: numbers, and a node for the batch's size."""
        (value, *_) = self.behind
        shape, place = self.shapes[value][0], self.place(value)
        batch = self.proxy(value).size(0).node
        return (*shape[:place], batch, *shape[place + 1 :])

    def as_it_stood(self, node: fx.Node) -> Any:
        place, stands = self.place(node), self.env[node]
        return fx.Proxy(stands, self.tracer).movedim(0, place).node if place else stands

    def proxy(self, node: fx.Node) -> Any:
        stands = self.env[node]
        return fx.Proxy(stands, self.tracer) if isinstance(stands, fx.Node) else stands  # a number is itself

    def again(self, *args: Any, **kwargs: Any) -> Any:
        return self.tracer.create_proxy(self.node.op, self.node.target, args, kwargs)

    def dim(self, dim: int) -> int:
        """Return where a dimension is with the batch in front."""
        rank, place = self.given
        dim %= rank
        if dim == place:
            raise NotTaken
        return dim + (dim < place)


# The forms. Each takes the call, and its arguments in the new graph.


def _last(call: _Call, *args: Any, **kwargs: Any) -> Any:
    """What is about the last dimension alone, or about each element by itself."""
    rank, place = call.given
    if len(call.behind) > 1 or place == rank - 1:
        raise NotTaken
    return call.again(*args, **kwargs)


def _joined(call: _Call, *args: Any, **kwargs: Any) -> Any:
    """Arithmetic of values alike; of constants what stands at the batch's place is moved, too."""
    rank, place = call.given

    def fitting(value: Any, node: Any) -> Any:
        if not isinstance(node, fx.Node) or node not in call.shapes:
            return value
        shape, own = call.shapes[node]
        if own is not None:
            if (len(shape), own) != call.given:
                raise NotTaken
            return value
        if len(shape) > rank:
            raise NotTaken
        for _ in range(rank - len(shape)) if len(shape) >= rank - place else ():
            value = value.unsqueeze(0)
        return value.movedim(place, 0) if len(shape) >= rank - place else value

    return call.again(*map(fitting, args, call.node.args), **kwargs)


def _along(name: str, call: _Call, *args: Any, **kwargs: Any) -> Any:
    """What works along dimensions that its second argument, or one that is called `name`, says."""
    given = args[1] if len(args) > 1 else kwargs.get(name)
    if len(call.behind) > 1 or not isinstance(given, int | tuple | list):
        raise NotTaken
    dims = call.dim(given) if isinstance(given, int) else [call.dim(d) for d in given]
    if len(args) > 1:
        return call.again(args[0], dims, *args[2:], **kwargs)
    return call.again(*args, **kwargs | {name: dims})


def _reshaped(call: _Call, x: Any, *_: Any, **__: Any) -> Any:
    """What keeps the batch a dimension of its own."""
    shape, place = call.shapes[call.behind[0]]
    made, stays = call.shapes.get(call.node, (shape, None))
    if stays is None or prod(made[:stays]) != prod(shape[:place]):
        raise NotTaken
    return x.reshape(-1, *made[:stays], *made[stays + 1 :])


_FORMS: dict[Any, Callable[..., Any]] = {
    **dict.fromkeys([*ELEMENTWISE, F.linear, F.layer_norm], _last),
    **dict.fromkeys(JOINED, _joined),
    **dict.fromkeys(
        [
            *(torch.softmax, F.softmax, "softmax", torch.mean, "mean", torch.sum, "sum"),
            *(torch.amax, "amax", torch.amin, "amin"),
        ],
        partial(_along, "dim"),
    ),
    **dict.fromkeys(
        [torch.reshape, "reshape", "view", torch.flatten, "flatten", torch.unflatten, "unflatten"], _reshaped
    ),
}
