"""Two networks that are built alike, as one that computes the second by its differences from the first."""

from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from etb_plugin.errors import UnsupportedLayer
from etb_plugin.graph.beside import ReluBeside
from etb_plugin.graph.symbolic import symbolic


def paired(first: nn.Module, second: nn.Module) -> nn.Module | None:
    """Return (x, y) -> (first(x), second(y)), where each ReLU of the second is the first's and a difference; None where
    the two are not built alike, or have none."""
    try:
        both = symbolic(first), symbolic(second)
    except (UnsupportedLayer, fx.proxy.TraceError):
        return None
    root, graph = nn.Module(), fx.Graph()
    root.add_module("first", both[0])
    root.add_module("second", both[1])
    root.add_module("beside", ReluBeside())
    nodes = [list(module.graph.nodes) for module in both]
    if len(nodes[0]) != len(nodes[1]):
        return None
    made: dict[fx.Node, fx.Node] = {}
    partner = dict(zip(nodes[1], nodes[0], strict=True))
    outputs = None
    for one, other in zip(*nodes, strict=True):
        if not _alike(both, one, other, partner):
            return None
        if one.op == "output":
            outputs = tuple(made[node.args[0]] for node in (one, other))
            continue
        for name, node in (("first", one), ("second", other)):
            if node.op == "placeholder":
                made[node] = graph.placeholder(f"{name}_input")
                continue
            made[node] = graph.node_copy(node, made.__getitem__)
            if node.op in ("call_module", "get_attr"):
                made[node].target = f"{name}.{node.target}"
        if _is_relu(both[0], one):
            inputs = made[one], made[one.all_input_nodes[0]], made[other.all_input_nodes[0]]
            graph.erase_node(made[other])
            made[other] = graph.call_module("beside", inputs)
    graph.output(outputs)
    network = fx.GraphModule(root, graph).eval()
    return network if any(node.target == "beside" for node in graph.nodes) else None


def _alike(
    both: tuple[fx.GraphModule, fx.GraphModule], one: fx.Node, other: fx.Node, partner: dict[fx.Node, fx.Node]
) -> bool:
    """Whether two nodes do the same to nodes that do."""

    def plain(argument: Any, node: fx.Node) -> Any:
        return fx.map_arg(argument, lambda n: partner.get(n, n).name if node is other else n.name)

    if one.op != other.op or plain((one.args, one.kwargs), one) != plain((other.args, other.kwargs), other):
        return False
    if one.op == "call_module":
        layers = [module.get_submodule(str(node.target)) for module, node in zip(both, (one, other), strict=True)]
        return type(layers[0]) is type(layers[1]) and layers[0].extra_repr() == layers[1].extra_repr()
    return one.op in ("placeholder", "get_attr", "output") or one.target == other.target


def _is_relu(module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return type(module.get_submodule(str(node.target))) is nn.ReLU
    return node.target in (F.relu, torch.relu, "relu")
