"""The method `robustra`: two networks, each made robust where the other can be attacked (Lin et al. 2019).

The paper's equations 8 and 9 derived again, in the terms of this package. On a box of centre m and radius r let the
dual bound give, for the margin of f and of the reference g,

    f_y(x) - f_j(x) >= p . x + q        and        g_y(x) - g_j(x) >= p' . x + q'.

Attacks on g lie where g_j - g_y >= t. For every such x and every eta >= 0

    f_j - f_y <= f_j - f_y + eta (g_j - g_y - t) <= -(p + eta p') . x - q - eta (q' + t),

and the greatest value over the box of what is on the right is

    h(eta) = -(p + eta p') . m + |p + eta p'| . r - q - eta (q' + t).

h is convex, and its slope a non-decreasing step function with steps at eta = -p_i / p'_i (theorem 1). With eta fixed at
the median of the positive steps, t is chosen so that the slope there is 0 (section 5.4), and what is left of h is

    h = -p . m - q + sum_i r_i sgn(p_i + eta p'_i) p_i.

That is the dual bound itself with some signs turned: an upper end of f_j - f_y among the attacks on g, and NOT a
certificate for f. Certificates come from evaluation, by the dual bound (the paper's "LP bound") or any other.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from etb_plugin.bounds import Box, margin_spec
from etb_plugin.bounds.dual import prepare_linear
from etb_plugin.networks import Pair, evaluating
from etb_plugin.objectives.dual import RECIPE
from etb_plugin.objectives.registry import Loss, Losses, Method, Objective, Point, register_method
from etb_plugin.objectives.worst_case import margin_logits


class Margins(NamedTuple):
    """p [batch, rows, inputs] and q [batch, rows]: f_y - f_j >= p . x + q on the box."""

    coefficients: Tensor
    constants: Tensor


@dataclass(frozen=True)
class AgainstReference(Objective):
    """Cross-entropy on the worst margins of each network of a pair among the attacks on the other.

    Both are trained at every step, each with the other's present weights for reference, without gradient; the paper
    takes turns, an epoch each. With `projections` the bounds of hidden units are estimated as in `dual-projected`.
    """

    projections: int | None = 50
    bound: str | None = None

    def prepare(self, network: nn.Module, input_shape: tuple[int, ...], classes: int) -> Loss:
        assert isinstance(network, Pair)
        with evaluating(network):
            shape = torch.Size(input_shape)
            first, second = (
                prepare_linear(member, shape, projections=self.projections)
                for member in (network.first, network.second)
            )

        def loss(images: Tensor, labels: Tensor, point: Point, generator: torch.Generator) -> Losses:
            with evaluating(network), torch.no_grad():
                logits = network(images)
            box, spec = Box.around(images, point.eps), margin_spec(labels, classes, images.dtype)
            with evaluating(network):
                f, g = Margins(*first(box, spec)), Margins(*second(box, spec))
            robust = [
                F.cross_entropy(margin_logits(upper_among_attacks(own, other, box), labels, classes), labels)
                for own, other in ((f, g), (g, f))
            ]
            correct = (logits.argmax(1) == labels).sum()
            return Losses(robust[0] + robust[1], F.cross_entropy(logits, labels), robust[0].detach(), correct)

        return loss


def upper_among_attacks(own: Margins, reference: Margins, box: Box) -> Tensor:
    """Return h at `chosen_eta` and its t: an upper end of f_j - f_y among the attacks on the reference, [batch, rows].

    The gradient is that of h at fixed eta and t.
    """
    p, p_reference = own.coefficients, reference.coefficients.detach()
    eta = chosen_eta(p.detach(), p_reference)
    signs = _signs(p.detach(), eta, p_reference)
    m, r = (end.flatten(1).unsqueeze(1) for end in (box.center, box.radius))
    return (p * (r * signs - m)).sum(2) - own.constants


def chosen_eta(p: Tensor, p_reference: Tensor) -> Tensor:
    """Return the median of the positive steps -p_i / p'_i, [batch, rows]; 0 where there are none."""
    steps = -p / p_reference
    steps = torch.where((steps > 0) & steps.isfinite(), steps, torch.nan)
    return steps.nanmedian(2).values.nan_to_num(0.0)


def dual_value(own: Margins, reference: Margins, box: Box, eta: Tensor, t: Tensor) -> Tensor:
    """Return h(eta) for attacks that raise the reference's margin to t, [batch, rows]."""
    p = own.coefficients + eta.unsqueeze(2) * reference.coefficients
    m, r = (end.flatten(1).unsqueeze(1) for end in (box.center, box.radius))
    return (p.abs() * r - p * m).sum(2) - own.constants - eta * (reference.constants + t)


def slope(own: Margins, reference: Margins, box: Box, eta: Tensor) -> Tensor:
    """Return the slope of h at eta for t = 0, [batch, rows]; for another t it is less by t. With eta infinite, the
    slope behind the last step."""
    m, r = (end.flatten(1).unsqueeze(1) for end in (box.center, box.radius))
    p = reference.coefficients
    near = _signs(own.coefficients, eta.masked_fill(eta.isinf(), 0.0), p)
    signs = torch.where(eta.isinf().unsqueeze(2), p.sign(), near)
    return (p * (signs * r - m)).sum(2) - reference.constants


def _signs(p: Tensor, eta: Tensor, p_reference: Tensor) -> Tensor:
    """Return sgn(p + eta p'), 0 where only rounding is left: at the step that eta was chosen from."""
    turned = p + eta.unsqueeze(2) * p_reference
    return turned.sign() * (turned.abs() > 4 * torch.finfo(p.dtype).eps * p.abs())


register_method(
    Method(
        "robustra",
        "two networks f and g by the projected dual, each robust where the other is attacked; twice dual-projected",
        AgainstReference(),
        replace(
            RECIPE,
            source="Lin et al. 2019: batch 50, Adam 1e-3 halved every 10 epochs after 20, eps from 0.01 over 20 of 100 "
            "epochs; here the shares of dual",
        ),
        pair=True,
    )
)
