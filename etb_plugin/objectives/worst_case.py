"""The objective of every bound: cross-entropy on the worst-case logits that a bound gives."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from etb_plugin.bounds import Box, PreparedBound, margin_spec, other_classes, prepare, prepare_lower
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
        prepare_ends = prepare_lower if self.elision else prepare  # margins need their lower ends only
        with evaluating(network):
            bounded = prepare_ends(self.bound, network, input_shape, **self.options)

        def loss(images: Tensor, labels: Tensor, point: Point, generator: torch.Generator) -> Losses:
            def worst() -> Tensor:
                box = Box.around(images, point.eps)
                return worst_logits(bounded, box, labels, classes, self.elision) / self.temperature

            return weighed(network, images, labels, self.weights(point.kappa), point.eps, worst)

        return loss


def weighed(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    weights: tuple[float, float],
    eps: float,
    worst: Callable[[], Tensor],
) -> Losses:
    """Return the clean cross-entropy and that of the logits `worst()`, by their `weights`.

    `worst` is called in eval mode, and not at all where it has no weight or eps is 0: its loss is then the clean one.
    """
    logits = network(images)
    clean = robust = F.cross_entropy(logits, labels)
    if weights[1] and eps:
        with evaluating(network):
            z = worst()
        robust = F.cross_entropy(z, labels)
    total = weights[0] * clean + weights[1] * robust
    return Losses(total, clean.detach(), robust.detach(), (logits.argmax(1) == labels).sum())


def worst_logits(bounded: PreparedBound, box: Box, labels: Tensor, classes: int, elision: bool = True) -> Tensor:
    """Return the worst-case logits z over the box, [batch, classes], as `WorstCase` says."""
    others = other_classes(labels, classes)
    if not elision:
        interval = bounded(box)
        return torch.where(others, interval.upper, interval.lower)
    margins = bounded(box, margin_spec(labels, classes, box.lower.dtype)).lower
    return torch.zeros_like(others, dtype=margins.dtype).masked_scatter(others, -margins)
