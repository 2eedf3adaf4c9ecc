"""The objective of every bound: a loss of the worst-case logits that the bound gives, beside the clean one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from etb_plugin.bounds import Box, PreparedBound, margin_spec, other_classes, prepare, prepare_lower
from etb_plugin.networks import evaluating
from etb_plugin.objectives.registry import Loss, Losses, Point

Form = Literal["convex", "additive"]
Worst = Callable[[Box, Tensor], Tensor]
"""(box, labels [batch]) -> worst-case logits, [batch, classes]."""


@dataclass(frozen=True)
class WorstCase:
    """Clean cross-entropy and a loss of worst-case logits z, weighed by kappa.

    `form` "convex" is kappa CE(f) + (1 - kappa) loss(z) (Gowal et al. 2019, equation 12); "additive" is
    CE(f) + kappa loss(z) (Alsubaihi et al. 2019, section 4). `loss` is the cross-entropy, or softplus(z_j - z_y)
    summed over the other classes j (the alternative of Gowal et al. 2019, table 5).

    With `elision` each margin f_y - f_j is bounded as one row, the last layer folded into it, and z_j = -lower
    (z_y = 0). Without, z takes the lower end of the true logit and the upper ends of the others. z is divided by
    `temperature`, and with `relative` by max |z| of its image too (what the code of Alsubaihi et al. does).

    Batch norm takes its statistics from the clean images; the bound sees the running ones, as at evaluation, or with
    the recipe's `bn` "clean" the same.
    Where the bound has no weight, or eps is 0 and every bound is the network itself, it is not computed.
    """

    bound: str
    options: Mapping[str, object] = field(default_factory=dict)
    form: Form = "convex"
    loss: Literal["cross-entropy", "softplus"] = "cross-entropy"
    elision: bool = True
    temperature: float = 1.0
    relative: bool = False

    @property
    def bound_options(self) -> Mapping[str, object]:
        return self.options

    def worst(self, network: nn.Module, input_shape: tuple[int, ...], classes: int) -> Worst:
        """Return (box, labels) -> the worst-case logits z, [batch, classes]."""
        prepare_ends = prepare_lower if self.elision else prepare  # margins need their lower ends only
        bounded = prepare_ends(self.bound, network, input_shape, **self.options)
        return lambda box, labels: worst_logits(bounded, box, labels, classes, self.elision)

    def prepare(self, network: nn.Module, input_shape: tuple[int, ...], classes: int) -> Loss:
        with evaluating(network):
            worst = self.worst(network, input_shape, classes)

        def loss(images: Tensor, labels: Tensor, point: Point, generator: torch.Generator) -> Losses:
            def robust() -> Tensor:
                z = worst(Box.around(images, point.eps), labels)
                if self.relative:
                    z = z / z.abs().amax(1, keepdim=True)
                return _LOSSES[self.loss](z / self.temperature, labels)

            return weighed(network, images, labels, point, robust, self.form)

        return loss


def weighed(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    point: Point,
    robust_loss: Callable[[], Tensor],
    form: Form = "convex",
) -> Losses:
    """Return the clean cross-entropy and `robust_loss()`, weighed by kappa as `WorstCase` says of its forms.

    `robust_loss` is called in eval mode, and not at all where it has no weight or eps is 0: the clean loss then
    stands for it.
    """
    convex, kappa = form == "convex", point.kappa
    weights = (kappa, 1 - kappa) if convex else (1.0, kappa)
    logits = network(images)
    clean = robust = F.cross_entropy(logits, labels)
    if point.phase.bounded and point.phase.kappa != (1.0 if convex else 0.0):
        with evaluating(network):
            robust = robust_loss()
    total = weights[0] * clean + weights[1] * robust
    return Losses(total, clean.detach(), robust.detach(), (logits.argmax(1) == labels).sum())


def worst_logits(bounded: PreparedBound, box: Box, labels: Tensor, classes: int, elision: bool = True) -> Tensor:
    """Return the worst-case logits z over the box, [batch, classes], as `WorstCase` says."""
    if not elision:
        interval = bounded(box)
        true = labels.unsqueeze(1)
        return interval.upper.scatter(1, true, interval.lower.gather(1, true))
    return margin_logits(-bounded(box, margin_spec(labels, classes, box.lower.dtype)).lower, labels, classes)


def margin_logits(upper: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return logits z with z_j - z_y = `upper` for the other classes j in order, [batch, classes - 1], and z_y = 0."""
    return upper.new_zeros(len(labels), classes).scatter(1, other_classes(labels, classes), upper)


def _softplus(z: Tensor, labels: Tensor) -> Tensor:
    margins = z.gather(1, other_classes(labels, z.shape[1])) - z.gather(1, labels.unsqueeze(1))
    return F.softplus(margins).sum(1).mean()


_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"cross-entropy": F.cross_entropy, "softplus": _softplus}
