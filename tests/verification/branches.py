"""What is met in the branches of a tree."""

import torch
from torch import Tensor

from etb_plugin.verification.units import UnitTree


def met(tree: UnitTree, branches, points: Tensor) -> list[tuple[float, float]]:
    """Return for each branch that has some of `points` how far its bound, and the least of the outputs there, lie above
    0, for properties of one row each."""
    graph, found = tree.relaxation.graph, []
    with torch.no_grad():
        values = graph.values(points)
    for branch in branches.each():
        inside = torch.ones(len(points), dtype=torch.bool)
        for i, (low, high) in tree.ends(branch).items():
            value = values[graph.nodes[i].inputs[0]]
            inside &= ((value >= low) & (value <= high)).flatten(1).all(1)
        if inside.any():
            least = (values[-1][inside] @ tree.rows[int(branch.part), 0]).nan_to_num(torch.inf).min()
            found.append((float(branch.above[0].nan_to_num(-torch.inf)), float(least)))
    return found
