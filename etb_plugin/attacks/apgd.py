"""Auto-PGD (Croce and Hein 2020): PGD with momentum, whose step size is halved where it no longer helps."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from etb_plugin.attacks.pgd import cross_entropy, gradient_of
from etb_plugin.attacks.registry import register_attack
from etb_plugin.bounds import Box

_MOMENTUM = 0.75
_ENOUGH = 0.75
"""Share of a period's steps that have to raise the loss."""

Climbed = Callable[[Tensor, Tensor], Tensor]
"""(logits [batch, classes], labels or whatever goes along, [batch, ...]) -> what is climbed, [batch]."""


def targeted_ratio(logits: Tensor, pairs: Tensor) -> Tensor:
    """Return -(f_y - f_t) / (f_1st - (f_3rd + f_4th) / 2), [batch], for `pairs` [batch, 2] of y and the target t (the
    targeted difference of logits ratio, equation 7). With fewer than four classes it is the difference alone."""
    true, target = logits.gather(1, pairs).unbind(1)
    if logits.shape[1] < 4:
        return target - true
    first, _, third, fourth = logits.topk(4, 1).values.unbind(1)
    return (target - true) / (first - (third + fourth) / 2 + 1e-12)


@register_attack("apgd-ce")
def apgd_ce(
    network: nn.Module, box: Box, labels: Tensor, generator: torch.Generator, steps: int = 100
) -> tuple[Tensor, Tensor]:
    """Return points of the box, [batch, *input], and whether the network gets each wrong, [batch]: APGD on the
    cross-entropy, one run."""
    return climbed(network, box, labels, labels, cross_entropy, steps, generator)


@register_attack("apgd-targeted")
def apgd_targeted(
    network: nn.Module, box: Box, labels: Tensor, generator: torch.Generator, steps: int = 100, targets: int = 9
) -> tuple[Tensor, Tensor]:
    """Return as `apgd_ce` what APGD on the targeted ratio finds, one run for each of the `targets` classes that come
    next behind the true one at the box's centre. Examples that are broken take no part in further runs."""
    points, broken = box.center.clone(), torch.zeros_like(labels, dtype=torch.bool)
    with torch.no_grad():
        order = network(points).scatter(1, labels[:, None], -math.inf).argsort(1, descending=True)
    for k in range(min(targets, order.shape[1] - 1)):
        left = (~broken).nonzero()[:, 0]
        if not len(left):
            break
        pairs = torch.stack([labels[left], order[left, k]], 1)
        points[left], broken[left] = climbed(network, box[left], labels[left], pairs, targeted_ratio, steps, generator)
    return points, broken


def climbed(
    network: nn.Module,
    box: Box,
    labels: Tensor,
    along: Tensor,
    loss: Climbed,
    steps: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Run APGD (algorithm 1) on `loss` of the logits and `along`, from a random point of the box."""
    x = box.drawn(generator)
    shape = (-1, *[1] * (x.ndim - 1))
    size = 2 * box.radius.flatten(1).amax(1)
    gradient, logits = gradient_of(network, x, along, loss)
    value = loss(logits, along)
    best, best_value, best_gradient = x, value, gradient
    broken = logits.argmax(1) != labels
    found = x
    before = x
    rises, changed, value_then = torch.zeros_like(size), torch.ones_like(broken), best_value
    checkpoints = set(_checkpoints(steps))
    last = 0
    for step in range(1, steps + 1):
        stepped = box.nearest(x + size.view(shape) * gradient.sign())
        share = 1.0 if step == 1 else _MOMENTUM
        x, before = box.nearest(x + share * (stepped - x) + (1 - share) * (x - before)), x
        gradient, logits = gradient_of(network, x, along, loss)
        now = loss(logits, along)
        wrong = (logits.argmax(1) != labels) & ~broken
        found, broken = torch.where(wrong.view(shape), x, found), broken | wrong
        rises = rises + (now > value)
        value = now
        better = now > best_value
        best = torch.where(better.view(shape), x, best)
        best_gradient = torch.where(better.view(shape), gradient, best_gradient)
        best_value = torch.where(better, now, best_value)
        if step in checkpoints:
            stuck = ~changed & (best_value <= value_then)
            halve = (rises < _ENOUGH * (step - last)) | stuck
            size = torch.where(halve, size / 2, size)
            x = torch.where(halve.view(shape), best, x)
            gradient = torch.where(halve.view(shape), best_gradient, gradient)
            value = torch.where(halve, best_value, value)
            changed, value_then, rises, last = halve, best_value, torch.zeros_like(size), step
    return torch.where(broken.view(shape), found, best), broken


def _checkpoints(steps: int) -> Iterator[int]:
    """Yield the steps after which the step size is looked at (section 3.2)."""
    before, now = 0.0, 0.22
    while now <= 1:
        yield math.ceil(now * steps)
        before, now = now, now + max(now - before - 0.03, 0.06)
