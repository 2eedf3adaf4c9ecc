"""Objectives that move from one bound to another over training: tight first, cheap or sound last."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from etb_plugin.bounds import Box, prepare, prepare_lower
from etb_plugin.networks import evaluating
from etb_plugin.objectives.registry import Loss, Losses, Objective, Point
from etb_plugin.objectives.worst_case import weighed, worst_logits


@dataclass(frozen=True)
class Annealed(Objective):
    """kappa CE(f) + (1 - kappa) CE(z) with z = (1 - mix) z of `first` + mix z of `bound`, both worst-case logits.

    At mix 1 `first` is not computed, and the loss is that of `bound` alone.
    """

    first: str
    first_options: Mapping[str, Any] = field(default_factory=dict)
    bound: str = "ibp"

    def prepare(self, network: nn.Module, input_shape: tuple[int, ...], classes: int) -> Loss:
        with evaluating(network):
            first = prepare_lower(self.first, network, input_shape, **self.first_options)
            last = prepare(self.bound, network, input_shape)

        def loss(images: Tensor, labels: Tensor, point: Point, generator: torch.Generator) -> Losses:
            def robust() -> Tensor:
                box = Box.around(images, point.eps)
                ends = ((point.mix, last, 0.0), (1 - point.mix, first, 1.0))
                parts = [
                    share * worst_logits(bound, box, labels, classes)
                    for share, bound, without in ends
                    if point.phase.mix != without
                ]
                return F.cross_entropy(torch.stack(parts).sum(0), labels)

            return weighed(network, images, labels, point, robust)

        return loss
