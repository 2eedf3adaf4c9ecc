"""Calibration: how much wider the expected interval has to be to cover what attacks and samples reach.

Split conformal prediction (Vovk et al. 2005; Lei et al. 2018, theorem 2.2). The score of an image is the least factor
of the expected interval's radius at which the interval covers every margin that the network was seen to reach on the
image's box. With n calibration images, `factor` is the ceil((n + 1) (1 - alpha))-th smallest score. If the calibration
images and a new one are exchangeable,

    P(the new image's score <= factor) >= 1 - alpha,

over the draw of all n + 1 images together; without ties it is at most 1 - alpha + 1 / (n + 1) as well. The statement
is about images, not about weights, and relative to this attack and these samples with their seeds: a stronger attack
may reach further. It is coverage, never a certificate.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from etb_plugin.attacks import Pgd, reach
from etb_plugin.bounds import Box, Interval, PreparedBound, bound, margin_spec
from etb_plugin.data import Dataset
from etb_plugin.errors import ConfigError

ROUNDING = 1e-3
"""A factor may exceed 1 by so much and count as covered: where a network is linear, float32 meets an interval's end."""
_IMAGES_AT_ONCE = 25
"""Each image is attacked in every margin and both directions at once."""


@dataclass(frozen=True)
class Calibration:
    """The factor of the radius, the share of fresh images covered without and with it, and how many images."""

    factor: float
    covered_before: float
    covered_after: float
    images: int
    fresh_images: int


def conformal_factor(scores: Tensor, alpha: float) -> float:
    """Return the ceil((n + 1) (1 - alpha))-th smallest of n scores.

    Raises ConfigError for an alpha outside (0, 1), and where n is too small for it: n >= 1 / alpha - 1 is needed.
    """
    if not 0 < alpha < 1:
        raise ConfigError(f"alpha is {alpha}; it must lie between 0 and 1")
    # Guard the ceiling against a product such as 10.000000000000002.
    rank = math.ceil((len(scores) + 1) * (1 - alpha) - 1e-9)
    if rank > len(scores):
        raise ConfigError(
            f"{len(scores)} images are too few for alpha {alpha:g}: calibration needs {math.ceil(1 / alpha - 1 - 1e-9)}"
        )
    return float(scores.sort().values[rank - 1])


def factors(interval: Interval, lower: Tensor, upper: Tensor) -> Tensor:
    """Return the least factor of each row's radius at which the interval covers [lower, upper], [batch, rows].

    Where the radius is 0 it is 1 for a range inside and infinite for any other. An image's score is its largest.
    """
    center, radius = (interval.lower + interval.upper) / 2, interval.width / 2
    beyond = torch.maximum(upper - center, center - lower).clamp(min=0)
    return torch.where(radius > 0, beyond / radius, torch.where(beyond > 0, torch.inf, 1.0))


def covered(interval: Interval, lower: Tensor, upper: Tensor) -> Tensor:
    """Return the share of each row's range [lower, upper] that the interval covers, [batch, rows].

    Alsubaihi et al. (2019, section 4) call it Gamma. It is NaN where a range is one point.
    """
    meet = torch.minimum(interval.upper, upper) - torch.maximum(interval.lower, lower)
    return meet.clamp(min=0) / (upper - lower)


def covered_between(interval: Interval, inner: Interval, outer: Interval) -> tuple[Tensor, Tensor]:
    """Return the least and the greatest `covered` of any range between `inner` and `outer`, both [batch, rows]."""
    shares = [
        covered(interval, lower, upper) for lower in (inner.lower, outer.lower) for upper in (inner.upper, outer.upper)
    ]
    # The share falls on both sides of the interval's own ends.
    nearest_lower = interval.lower.clamp(outer.lower, inner.lower)
    nearest_upper = interval.upper.clamp(inner.upper, outer.upper)
    return torch.stack(shares).amin(0), covered(interval, nearest_lower, nearest_upper)


def reached(
    network: nn.Module, box: Box, spec: Tensor, attack: Pgd, generator: torch.Generator, *, samples: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Return the range of every row as far as PGD and samples reach, [batch, rows]: an inner estimate."""
    sampled = bound("sampled", network, box, spec, samples=samples, seed=seed)
    low, high = reach(network, box, spec, attack, generator)
    return torch.minimum(low, sampled.lower), torch.maximum(high, sampled.upper)


def calibrate(
    expected: PreparedBound,
    network: nn.Module,
    data: Dataset,
    eps: float,
    alpha: float,
    *,
    attack: Pgd,
    samples: int = 1000,
    seed: int = 0,
    watch: Callable[[int, int], None] = lambda done, total: None,
) -> Calibration:
    """Calibrate `expected` on the first half of the test images at radius `eps` (pixel units), check on the second.

    Raises ConfigError for an alpha that the first half is too small for.
    """
    split, half = data.test, len(data.test) // 2
    conformal_factor(torch.zeros(half), alpha)  # refused before the work
    generator = torch.Generator(split.labels.device).manual_seed(seed)
    parts, done = [], 0
    for images, labels in split.batches(_IMAGES_AT_ONCE):
        box, spec = Box.around(images, eps), margin_spec(labels, data.classes, images.dtype)
        with torch.no_grad():
            interval = expected(box, spec)
        low, high = reached(network, box, spec, attack, generator, samples=samples, seed=seed)
        parts.append(factors(interval, low, high).amax(1))
        done += len(labels)
        watch(done, len(split))
    every = torch.cat(parts)
    known, fresh = every[:half], every[half:]
    factor = conformal_factor(known, alpha)
    return Calibration(
        factor,
        covered_before=float((fresh <= 1 + ROUNDING).double().mean()),
        covered_after=float((fresh <= factor).double().mean()),
        images=half,
        fresh_images=len(fresh),
    )
