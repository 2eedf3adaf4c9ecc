"""Projected gradient descent in an l_inf box (Madry et al. 2018), for images, for properties, and for training."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from etb_plugin.attacks.jumps import ThroughJumps
from etb_plugin.bounds import Box
from etb_plugin.errors import ConfigError
from etb_plugin.shapes import are_fixed
from etb_plugin.stopping import check_time


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of each example, [batch]."""
    return F.cross_entropy(logits, labels, reduction="none")


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Return max over j != y of f_j - f_y for each example, [batch]: positive where the prediction is wrong."""
    true = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return others.amax(1) - true[:, 0]


Goal = Callable[[Tensor, Tensor], Tensor]
"""Outputs [some, classes] and their places in the batch [some] -> a value for each."""

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"cross-entropy": cross_entropy, "margin": margin}


@dataclass(frozen=True)
class Pgd:
    """Settings of projected gradient descent (Madry et al. 2018).

    Each restart starts afresh at a random point of the box, once for each loss. The step size starts at `step` times
    the box's radius and is halved after a half and again after three quarters of the steps. With `bfloat16` those that
    train, `perturb` and `polished`, take their gradients in that precision; attacks that count never do.
    """

    steps: int = 40
    restarts: int = 1
    step: float = 0.25
    losses: tuple[str, ...] = ("cross-entropy", "margin")
    bfloat16: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1:
            raise ConfigError(f"PGD needs at least 1 step and 1 restart; got {self.steps} and {self.restarts}")

    def step_at(self, i: int) -> float:
        """Return the size of step `i` in units of the box's radius."""
        return self.step / 2 ** ((i >= self.steps / 2) + (i >= self.steps * 3 / 4))


def pgd(
    network: nn.Module, box: Box, labels: Tensor, settings: Pgd, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return points of the box, [batch, *input], and whether the network gets each wrong, [batch].

    `labels` [batch] is what the prediction should stay. An example is worked on until it is broken; where nothing
    breaks it, its last point is returned.
    """

    def climb(name: str) -> Goal:
        return lambda outputs, some: LOSSES[name](outputs, labels[some])

    def wrong(outputs: Tensor, some: Tensor) -> Tensor:
        return outputs.argmax(1) != labels[some]

    return _attacked(network, box, [climb(name) for name in settings.losses], wrong, settings, generator)


def falsify(
    network: nn.Module, box: Box, unsafety: Goal, settings: Pgd, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return points of the box, [batch, *input], and whether each gives an unsafe output, [batch].

    `unsafety` takes outputs and their places in the batch, and returns [outputs, parts]: how far each output is inside
    of each unsafe part, one where any is 0 or more. With the margins f_j - f_y as parts this is `pgd`: the largest
    part is climbed for its loss `margin`, and a smooth maximum of 0 and the parts for `cross-entropy`.
    """

    def smooth(outputs: Tensor, some: Tensor) -> Tensor:
        return F.pad(unsafety(outputs, some), (1, 0)).logsumexp(1)

    def largest(outputs: Tensor, some: Tensor) -> Tensor:
        return unsafety(outputs, some).amax(1)

    climbs: dict[str, Goal] = {"cross-entropy": smooth, "margin": largest}
    goals = [climbs[name] for name in settings.losses]
    return _attacked(network, box, goals, lambda y, some: largest(y, some) >= 0, settings, generator)


def polished(network: nn.Module, box: Box, points: Tensor, unsafety: Goal, settings: Pgd) -> Tensor:
    """Return for each of `points` [batch, *input] the most unsafe that one run from there meets, itself among them.

    `unsafety` is that of `falsify`; its largest part is climbed. `box` is one for all (a batch of 1), or one for each.
    """
    places = torch.arange(len(points), device=points.device)
    best, most = points, torch.full((len(points),), -torch.inf, dtype=points.dtype, device=points.device)

    def largest(outputs: Tensor, some: Tensor) -> Tensor:
        return unsafety(outputs, some).amax(1)

    x = points
    for i in range(settings.steps + 1):
        with torch.autocast(x.device.type, torch.bfloat16, enabled=settings.bfloat16):
            gradient, outputs = gradient_of(network, x, places, largest)
        value = largest(outputs.to(points.dtype), places)
        better = value > most
        best = torch.where(like(better, x), x, best)
        most = torch.where(better, value, most)
        if i < settings.steps:
            x = moved(x, gradient, box, settings.step_at(i))
    return best


def perturb(network: nn.Module, box: Box, labels: Tensor, settings: Pgd, generator: torch.Generator) -> Tensor:
    """Return one run of PGD on the first loss with a fixed number of steps, for training: [batch, *input].

    Nothing is dropped and nothing waits for the device.
    """
    x = box.drawn(generator)
    for i in range(settings.steps):
        with torch.autocast(x.device.type, torch.bfloat16, enabled=settings.bfloat16):
            gradient, _ = gradient_of(network, x, labels, LOSSES[settings.losses[0]], through_jumps=False)
        x = moved(x, gradient, box, settings.step_at(i))
    return x


def reach(
    network: nn.Module, box: Box, spec: Tensor, settings: Pgd, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return the least and the greatest value of each row of `spec` that PGD finds in the box, [batch, rows].

    Each row is climbed and descended by itself, from random points, by the settings' steps and restarts (their losses
    play no part): an inner estimate of the range. Shapes: spec [batch, rows, classes].
    """
    batch, rows, _ = spec.shape
    both = torch.cat([spec, -spec], 1)
    targets = both.flatten(0, 1)
    lower, upper = (end.repeat_interleave(2 * rows, 0) for end in (box.lower, box.upper))
    everywhere = Box(lower, upper, ordered=True)
    best = torch.full((len(targets),), -torch.inf, dtype=spec.dtype, device=spec.device)

    def value(logits: Tensor, _: Tensor) -> Tensor:
        return (logits * targets).sum(1)

    for _ in range(settings.restarts):
        x = everywhere.drawn(generator)
        for i in range(settings.steps + 1):
            gradient, logits = gradient_of(network, x, targets, value)
            best = torch.maximum(best, value(logits, targets))
            if i < settings.steps:
                x = moved(x, gradient, everywhere, settings.step_at(i))
    upper, negated = best.view(batch, 2, rows).unbind(1)
    return -negated, upper


def _attacked(
    network: nn.Module, box: Box, goals: list[Goal], broken_by: Goal, settings: Pgd, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return the last points and whether each is broken: every goal climbed once in each restart."""
    points = box.center.clone()
    with torch.no_grad():
        broken = broken_by(network(points), torch.arange(len(points), device=points.device))
    for goal in goals * settings.restarts:
        if are_fixed():
            reached, hit = _climb_all(network, box, goal, broken_by, settings, generator)
            points = torch.where(like(broken, points), points, reached)
            broken = broken | hit
            continue
        remaining = (~broken).nonzero()[:, 0]
        if not len(remaining):
            break
        points[remaining], broken[remaining] = _climb(
            network, box[remaining], remaining, goal, broken_by, settings, generator
        )
    return points, broken


def _climb(
    network: nn.Module,
    box: Box,
    places: Tensor,
    goal: Goal,
    broken_by: Goal,
    settings: Pgd,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """One run from a random point for the examples at `places` of the batch. Broken examples leave it."""
    x = box.drawn(generator)
    points, broken = x.clone(), torch.zeros(len(x), dtype=torch.bool, device=x.device)
    active = torch.arange(len(x), device=x.device)
    for i in range(settings.steps + 1):
        gradient, outputs = gradient_of(network, x, places, goal)
        done = broken_by(outputs, places)
        if i == settings.steps or bool(done.any()):  # copies that cost as much as a step of a small network
            points[active], broken[active] = x, done
            left = ~done
            active, places, box, x, gradient = active[left], places[left], box[left], x[left], gradient[left]
        if i == settings.steps or not len(active):
            break
        x = moved(x, gradient, box, settings.step_at(i))
    return points, broken


def _climb_all(
    network: nn.Module, box: Box, goal: Goal, broken_by: Goal, settings: Pgd, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """`_climb` for the whole batch and to the end: the first broken point of each example is kept, and none leaves."""
    x = box.drawn(generator)
    points, broken = x, torch.zeros(len(x), dtype=torch.bool, device=x.device)
    every = torch.arange(len(x), device=x.device)
    for i in range(settings.steps + 1):
        gradient, outputs = gradient_of(network, x, every, goal)
        points = torch.where(like(broken, x), points, x)
        broken = broken | broken_by(outputs, every)
        if i < settings.steps:
            x = moved(x, gradient, box, settings.step_at(i))
    return points, broken


def like(flags: Tensor, points: Tensor) -> Tensor:
    """Return flags [batch] in a shape that goes with points [batch, *input]."""
    return flags.view(-1, *[1] * (points.ndim - 1))


def moved(x: Tensor, gradient: Tensor, box: Box, step: float | Tensor) -> Tensor:
    """Climb along the gradient's sign by `step` times the box's radius, and back into the box."""
    # In place from the signs on: memory is what a step in a box behind layers, with a copy for each class, waits for.
    towards = gradient.sign().mul_(box.upper - box.lower).mul_(step / 2)
    return towards.add_(x).clamp_(box.lower, box.upper)


def gradient_of(
    network: nn.Module,
    x: Tensor,
    labels: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    through_jumps: bool = True,
) -> tuple[Tensor, Tensor]:
    """Return the gradient of the loss at x, [batch, *input], and the logits. Weights take no gradient.

    Where it is 0 for the whole batch, as behind a sign, it is taken through jumps, unless told otherwise or recorded:
    to look at it waits for the device.
    """
    check_time()
    if torch.is_inference_mode_enabled():  # a gradient of nothing but zeros would look like a network that stands
        raise ConfigError("torch.inference_mode has no gradients, which attacks climb by: take torch.no_grad() there")

    def found() -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            inputs = x.detach().requires_grad_()
            logits = network(inputs)
            value = loss(logits, labels).sum()
            if not value.requires_grad:  # nothing but comparisons
                return torch.zeros_like(x), logits.detach()
            (gradient,) = torch.autograd.grad(value, inputs)
        return gradient, logits.detach()

    gradient, logits = found()
    recorded = are_fixed() or (x.is_cuda and torch.cuda.is_current_stream_capturing())
    if through_jumps and not recorded and not bool(gradient.any()):
        with ThroughJumps():
            gradient, _ = found()
    return gradient, logits
