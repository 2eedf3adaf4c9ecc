"""What is met in the branches of a tree."""

import torch
from torch import Tensor

from etb_plugin.verification.branch import Branches, Tree
from etb_plugin.verification.hinges import HingeTree


def met(tree: Tree, branches: Branches, points: Tensor) -> list[tuple[float, float]]:
    """Return for each branch that has some of `points` how far its bound lies above 0, and the least that any of its
    points does, of the row that does most."""
    found = []
    with torch.no_grad():
        values = tree.relaxation.graph.values(points)
    for branch in branches.each():
        inside = _inside(tree, branch, values)
        if inside.any():
            part = int(branch.part)
            outputs = values[-1][inside].nan_to_num(torch.inf)
            least = (outputs @ tree.rows[part].T - tree.most[part]).amax(1).min()
            found.append((float(branch.above[0].nan_to_num(-torch.inf)), float(least)))
    return found


def _inside(tree: Tree, branch: Branches, values: list[Tensor]) -> Tensor:
    graph = tree.relaxation.graph
    inside = torch.ones(len(values[-1]), dtype=torch.bool)
    for i, (low, high) in tree.ends(branch).items():
        value = values[graph.nodes[i].inputs[0]]
        inside &= ((value >= low) & (value <= high)).flatten(1).all(1)
    if isinstance(tree, HingeTree):
        for (i, h), sign in tree.choice(branch).signs.items():
            value = values[graph.nodes[i].inputs[0]] - graph.activations[i].hinges()[h][0]
            inside &= (value * sign[0] >= 0).flatten(1).all(1)
    return inside
