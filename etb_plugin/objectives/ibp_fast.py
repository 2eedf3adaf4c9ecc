"""The method `ibp-fast`: IBP with the initialisation and the warm-up regularisers of Shi et al. 2021."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from etb_plugin.bounds import Box
from etb_plugin.graph.graph import Graph
from etb_plugin.graph.tracing import trace
from etb_plugin.networks import evaluating
from etb_plugin.objectives.recipe import Ramp, Recipe
from etb_plugin.objectives.registry import Loss, Losses, Method, Point, register_method
from etb_plugin.objectives.worst_case import WorstCase

_LEAST_EPS = 1e-6
"""While eps is still 0 the regularisers are taken at this radius: widths in proportion are what they look at."""
_TINY = 1e-12


@dataclass(frozen=True)
class RegularisedWorstCase(WorstCase):
    """`WorstCase` plus mix `regulariser` (tightness + balance), section 3.3 of Shi et al. 2021, over the m activations.

    tightness = mean relu(tau - width_0 / width_i) / tau keeps the intervals' mean widths from growing over the layers;
    balance = mean [relu(tau - r_i) + relu(tau - v_i)] / tau keeps active units and inactive ones of one weight, where
    r_i (v_i) is the ratio of the active units' and the inactive units' centres (squared distances from the mean
    centre), the lesser over the greater. tau is `tolerance`.
    """

    regulariser: float = 0.5
    tolerance: float = 0.5

    def prepare(self, network: nn.Module, input_shape: tuple[int, ...], classes: int) -> Loss:
        plain = super().prepare(network, input_shape, classes)
        with evaluating(network):
            graph = trace(network, torch.Size(input_shape))

        def loss(images: Tensor, labels: Tensor, point: Point, generator: torch.Generator) -> Losses:
            losses = plain(images, labels, point, generator)
            if point.phase.mix == 0.0:
                return losses
            with evaluating(network):
                added = regularisers(
                    graph, Box.around(images, point.eps if point.phase.bounded else _LEAST_EPS), self.tolerance
                )
            return replace(losses, total=losses.total + point.mix * self.regulariser * added)

        return loss


def regularisers(graph: Graph, box: Box, tolerance: float) -> Tensor:
    """Return tightness + balance of the intervals before the graph's activations, a scalar."""
    intervals = graph.intervals(box)
    first, terms = box.radius.mean(), []
    for i in graph.activations:
        center, radius = intervals[graph.nodes[i].inputs[0]]
        active, inactive = center - radius > 0, center + radius < 0
        far = (center - center.mean()).square()
        ratios = (
            first / radius.mean().clamp(min=_TINY),
            _lesser_over_greater((center * active).mean(), -(center * inactive).mean()),
            _lesser_over_greater((far * active).mean(), (far * inactive).mean()),
        )
        terms.append(sum(((tolerance - ratio).clamp(min=0) for ratio in ratios), torch.zeros_like(first)))
    return torch.stack(terms).mean() / tolerance


def _lesser_over_greater(one: Tensor, other: Tensor) -> Tensor:
    return torch.minimum(one, other) / torch.maximum(one, other).clamp(min=_TINY)


register_method(
    Method(
        "ibp-fast",
        "ibp for short runs and deep networks: its own initialisation, and regularisers while eps grows (cnn7-bn)",
        RegularisedWorstCase("ibp"),
        Recipe(
            "Shi et al. 2021 for MNIST, in shares of its 70 epochs: 1 epoch at eps 0, 19 of growth, regularisers of "
            "weight 0.5 fading with it, Adam 5e-4 cut to a fifth after 50 and 60, gradients cut at 8; eps grows "
            "linearly here",
            learning_rate=5e-4,
            decay_at=(5 / 7, 6 / 7),
            decay=0.2,
            gradient_clip=8.0,
            initialization="ibp",
            eps_ramp=Ramp(0.0, 1.0, wait=1 / 70, length=19 / 70),
            kappa=Ramp(0.0, 0.0),
            mix=Ramp(1.0, 0.0, wait=1 / 70, length=19 / 70),
        ),
    )
)
