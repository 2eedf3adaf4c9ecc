"""The methods `expected` and `expected-ibp-masks`: training on the expected tight bound (Alsubaihi et al. 2019).

Neither certifies anything. They differ in the masks only: ours keep the pieces that hold at the image, and trained
more robust networks in `etb study masks` from some hundred steps on (compare/results); the paper's keep those at IBP's
upper ends.
"""

from dataclasses import dataclass

import torch
from torch import nn

from etb_plugin.bounds.expected import worst_corner
from etb_plugin.objectives.recipe import Recipe
from etb_plugin.objectives.registry import Method, register_method
from etb_plugin.objectives.worst_case import Worst, WorstCase

RECIPE = Recipe(
    "Alsubaihi et al. 2019, section 4: eps and kappa constant. The paper searches kappa, learning rate and "
    "temperature on grids; here kappa 1, temperature 1 and the optimizer of nominal",
    decay_at=(0.7, 0.9),
)


@dataclass(frozen=True)
class ExpectedBound(WorstCase):
    """`WorstCase` of the expected bound. Its option rows="fused" (ours) takes the logits at one corner of the box, that
    of the worst cross-entropy, in place of each margin's own worst: one row instead of one for each class."""

    bound: str = "expected"

    def worst(self, network: nn.Module, input_shape: tuple[int, ...], classes: int) -> Worst:
        if self.options.get("rows") != "fused":
            return super().worst(network, input_shape, classes)
        return worst_corner(network, torch.Size(input_shape), **self.options)


register_method(
    Method(
        "expected",
        "the expected tight bound, masks from the image (ours): tight without any ramp, and no certificate",
        ExpectedBound(options={"masks": "center"}, form="additive"),
        RECIPE,
    )
)
register_method(
    Method(
        "expected-ibp-masks",
        "the expected tight bound as published, masks from IBP: ahead in very short runs, and no certificate",
        ExpectedBound(form="additive"),
        RECIPE,
    )
)
