"""The method `expected-ibp` (ours): the expected interval annealed into IBP's, so that training ends sound."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from etb_plugin.bounds import Box, prepare_lower
from etb_plugin.networks import evaluating
from etb_plugin.objectives.ibp import RECIPE
from etb_plugin.objectives.recipe import Ramp
from etb_plugin.objectives.registry import Loss, Losses, Method, Point, register_method
from etb_plugin.objectives.worst_case import weighed, worst_logits


@dataclass(frozen=True)
class Annealed:
    """The convex form of `WorstCase` on logits between two bounds': (1 - mix) z of `first` + mix z of `bound`.

    At mix 1 `first` is not computed, and the loss is that of `bound` alone.
    """

    first: str = "expected"
    first_options: Mapping[str, Any] = field(default_factory=lambda: {"masks": "center"})
    bound: str = "ibp"

    @property
    def bound_options(self) -> Mapping[str, Any]:
        return {}

    def prepare(self, network: nn.Module, input_shape: tuple[int, ...], classes: int) -> Loss:
        with evaluating(network):
            first = prepare_lower(self.first, network, input_shape, **self.first_options)
            last = prepare_lower(self.bound, network, input_shape)

        def loss(images: Tensor, labels: Tensor, point: Point, generator: torch.Generator) -> Losses:
            def worst() -> Tensor:
                box = Box.around(images, point.eps)
                ends = ((point.mix, last), (1 - point.mix, first))
                parts = [share * worst_logits(bound, box, labels, classes) for share, bound in ends if share]
                return torch.stack(parts).sum(0)

            return weighed(network, images, labels, (point.kappa, 1 - point.kappa), point.eps, worst)

        return loss


register_method(
    Method(
        "expected-ibp",
        "starts on the expected bound and ends on IBP's: ours, a certificate at the end of training only",
        Annealed(),
        replace(
            RECIPE,
            source="ours: eps and kappa as ibp (Gowal et al. 2019), the interval moving from the expected one to IBP's "
            "over the same half of the run",
            mix=Ramp(0.0, 1.0, wait=0.05, length=0.5),
        ),
    )
)
