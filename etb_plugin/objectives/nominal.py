"""The method `nominal`: cross-entropy on the images as they are."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from etb_plugin.objectives.recipe import Recipe
from etb_plugin.objectives.registry import Loss, Losses, Method, Objective, Point, register_method


@dataclass(frozen=True)
class Nominal(Objective):
    """Cross-entropy; eps and kappa play no part."""

    bound: str | None = None

    def prepare(self, network: nn.Module, input_shape: tuple[int, ...], classes: int) -> Loss:
        def loss(images: Tensor, labels: Tensor, point: Point, generator: torch.Generator) -> Losses:
            logits = network(images)
            clean = F.cross_entropy(logits, labels)
            return Losses(clean, clean.detach(), clean.detach(), (logits.argmax(1) == labels).sum())

        return loss


register_method(
    Method(
        "nominal",
        "cross-entropy only: the baseline, with no defence at all",
        Nominal(),
        Recipe("Adam 1e-3 with tenfold decays, as Gowal et al. 2019 (appendix A) train MNIST", decay_at=(0.7, 0.9)),
        uses_eps=False,
    )
)
