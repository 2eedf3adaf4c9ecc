"""The AutoAttack standard (Croce and Hein 2020) without its FAB: APGD on two losses, then Square, no parameters."""

import torch
from torch import Tensor, nn

from etb_plugin.attacks.apgd import apgd_ce, apgd_targeted
from etb_plugin.attacks.registry import register_attack
from etb_plugin.attacks.square import square
from etb_plugin.bounds import Box


@register_attack("autoattack")
def autoattack(network: nn.Module, box: Box, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return points of the box, [batch, *input], and whether the network gets each wrong, [batch].

    APGD on the cross-entropy (100 steps), on the targeted ratio (100 steps for each of 9 targets), and Square (5,000
    queries), each on what the ones before have left. FAB, the fourth of the standard, is left out: it minimises a
    distance, and breaks next to nothing at a given radius that the others have not.
    """
    with torch.no_grad():
        points = box.center.clone()
        broken = network(points).argmax(1) != labels
    for attack in (apgd_ce, apgd_targeted, square):
        left = (~broken).nonzero()[:, 0]
        if not len(left):
            break
        points[left], broken[left] = attack(network, box[left], labels[left], generator)
    return points, broken
