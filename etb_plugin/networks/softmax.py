"""The softmax over the classes that a network may end with."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from etb_plugin.errors import UnsupportedLayer
from etb_plugin.graph.symbolic import argument, symbolic
from etb_plugin.graph.tracing import example_input, unwrapped

_PLAIN, _LOGARITHM = partial(F.softmax, dim=1), partial(F.log_softmax, dim=1)
_FORMS: dict[object, Callable[[Tensor], Tensor]] = {
    **dict.fromkeys((nn.Softmax, F.softmax, torch.softmax, "softmax"), _PLAIN),
    **dict.fromkeys((nn.LogSoftmax, F.log_softmax, torch.log_softmax, "log_softmax"), _LOGARITHM),
}
"""By layer, function or method."""
_DIMENSIONS = (None, 1, -1)


class _Trained(nn.Module):
    """A network as it is called, of which bounds see the logits alone: as `trace` looks through what torch compiled."""

    def __init__(self, network: nn.Module, logits: nn.Module) -> None:
        super().__init__()
        self.network, self._orig_mod = network, logits

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)


def bounded_before_logarithm(network: nn.Module, input_shape: tuple[int, ...]) -> nn.Module:
    """Return what trains `network`, in eval mode, by bounds of its logits where it ends with the logarithm of a softmax
    over its classes; itself where it does not.

    The logarithm changes neither a cross-entropy nor a difference between two outputs. Weights and layers are shared.
    """
    if type(network) is nn.Sequential and len(network) and _form_of(network[-1]) is _LOGARITHM:
        return network[:-1]
    logits = before_softmax(network, input_shape, (_LOGARITHM,))
    return network if logits is network else _Trained(network, logits)


def before_softmax(
    network: nn.Module,
    input_shape: tuple[int, ...],
    forms: tuple[Callable[[Tensor], Tensor], ...] = (_PLAIN, _LOGARITHM),
) -> nn.Module:
    """Return `network`, in eval mode, without the softmax over its classes, or its logarithm, that it ends with; itself
    where it ends with none.

    `forms` are those that are left out. Which class has the largest output does not change, and bounds are of logits.
    Weights are shared. Raises UnsupportedLayer where what is left, and a softmax behind it, does not give the network's
    outputs.
    """
    like = example_input(network, torch.Size(input_shape))
    try:
        traced = symbolic(unwrapped(network), like)
    except Exception:  # a bound that cannot trace it either says why
        return network
    end = next(node for node in reversed(traced.graph.nodes) if node.op == "output")
    last = end.args[0]
    form = _form(traced, last) if isinstance(last, fx.Node) else None
    if form not in forms:
        return network
    end.args = (last.all_input_nodes[0],)
    traced.graph.eliminate_dead_code()
    traced.recompile()
    points = torch.rand(like.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(like)
    with torch.no_grad():
        if not torch.allclose(form(traced(points)), network(points), equal_nan=True):
            raise UnsupportedLayer(f"{type(network).__name__} was read wrongly: its softmax is not its last step")
    return traced


def _form(module: fx.GraphModule, node: fx.Node) -> Callable[[Tensor], Tensor] | None:
    """Return the softmax over [batch, classes] that a node is, if it is one."""
    if node.op == "call_module":
        return _form_of(module.get_submodule(str(node.target)))
    return _FORMS.get(node.target) if argument(node, 1, "dim", None) in _DIMENSIONS else None


def _form_of(layer: nn.Module) -> Callable[[Tensor], Tensor] | None:
    return _FORMS.get(type(layer)) if getattr(layer, "dim", None) in _DIMENSIONS else None
