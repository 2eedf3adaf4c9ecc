"""The objective of every bound: cross-entropy on the worst-case logits that a bound gives."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from etb_plugin.bounds import Box, PreparedBound, bounds, margin_spec, other_classes, prepare
from etb_plugin.networks import evaluating
from etb_plugin.objectives.registry import Loss, Losses, Point


@dataclass(frozen=True)
class WorstCase:
    """Clean cross-entropy and cross-entropy on worst-case logits z, weighed by kappa.

    `form` "convex" is kappa CE(f) + (1 - kappa) CE(z) (Gowal et al. 2019, equation 12); "additive" is
    CE(f) + kappa CE(z) (Alsubaihi et al. 2019, section 4).

    With `elision` each margin f_y - f_j is bounded as one row, the last layer folded into it, and z_j = -lower
    (z_y = 0). Without, z takes the lower end of the true logit and the upper ends of the others. z is divided by
    `temperature`.

    Batch norm takes its statistics from the clean images; the bound sees the running ones, as at evaluation.
    Where the bound has no weight, or eps is 0 and every bound is the network itself, it is not computed.
    """

    bound: str
    options: Mapping[str, object] = field(default_factory=dict)
    form: Literal["convex", "additive"] = "convex"
    elision: bool = True
    temperature: float = 1.0

    @property
    def bound_options(self) -> Mapping[str, object]:
        return self.options

    def weights(self, kappa: float) -> tuple[float, float]:
        """Return the weights of the clean and of the worst-case cross-entropy."""
        return (kappa, 1 - kappa) if self.form == "convex" else (1.0, kappa)

    def prepare(self, network: nn.Module, input_shape: tuple[int, ...], classes: int) -> Loss:
        # One side is enough for margins, and half the work where a bound can spare the other.
        one_side = {"lower_only": True} if self.elision and "lower_only" in bounds()[self.bound].options else {}
        with evaluating(network):
            bounded = prepare(self.bound, network, input_shape, **{**one_side, **self.options})

        def loss(images: Tensor, labels: Tensor, point: Point, generator: torch.Generator) -> Losses:
            logits = network(images)
            clean = F.cross_entropy(logits, labels)
            clean_weight, robust_weight = self.weights(point.kappa)
            robust = clean
            if robust_weight and point.eps:
                with evaluating(network):
                    z = worst_logits(bounded, Box.around(images, point.eps), labels, classes, self.elision)
                robust = F.cross_entropy(z / self.temperature, labels)
            total = clean_weight * clean + robust_weight * robust
            return Losses(total, clean.detach(), robust.detach(), (logits.argmax(1) == labels).sum())

        return loss


def worst_logits(bounded: PreparedBound, box: Box, labels: Tensor, classes: int, elision: bool = True) -> Tensor:
    """Return the worst-case logits z over the box, [batch, classes], as `WorstCase` says."""
    others = other_classes(labels, classes)
    if not elision:
        interval = bounded(box)
        return torch.where(others, interval.upper, interval.lower)
    margins = bounded(box, margin_spec(labels, classes, box.lower.dtype)).lower
    return torch.zeros_like(others, dtype=margins.dtype).masked_scatter(others, -margins)
