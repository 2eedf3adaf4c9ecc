"""Calibration: the conformal factor and its finite-sample statement, and the range that attacks reach."""

import math

import pytest
import torch
from torch import nn

from etb_plugin.attacks import Pgd, reach
from etb_plugin.bounds import Box, Interval, bound, margin_spec, prepare
from etb_plugin.data import load
from etb_plugin.errors import ConfigError
from etb_plugin.evaluation.calibration import calibrate, conformal_factor, covered, covered_between, factors
from etb_plugin.networks import build
from tests.conftest import fully_connected


@pytest.mark.parametrize(
    ("n", "alpha", "rank"), [(9, 0.1, 9), (19, 0.1, 18), (20, 0.1, 19), (99, 0.05, 95), (4, 0.5, 3)]
)
def test_the_factor_is_the_order_statistic_of_the_theorem(n, alpha, rank):
    values = torch.randperm(n).double() + 1
    assert conformal_factor(values, alpha) == rank == math.ceil(round((n + 1) * (1 - alpha), 9))


def test_fresh_images_are_covered_as_often_as_the_theorem_says():
    """Over 4,000 draws of 29 scores and a new one: at least 1 - alpha, at most 1 - alpha + 1 / 30."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(4000, 30, generator=generator).exp()
    covered = sum(float(row[29]) <= conformal_factor(row[:29], 0.2) for row in drawn) / 4000
    noise = 3 * math.sqrt(0.2 * 0.8 / 4000)
    assert 0.8 - noise <= covered <= 0.8 + 1 / 30 + noise


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, math.nan])
def test_an_alpha_outside_0_to_1_is_refused(alpha):
    with pytest.raises(ConfigError, match="it must lie between 0 and 1"):
        conformal_factor(torch.ones(10), alpha)


def test_too_few_images_say_how_many_are_needed():
    conformal_factor(torch.ones(9), 0.1)
    with pytest.raises(ConfigError, match=r"8 images are too few for alpha 0\.1: calibration needs 9"):
        conformal_factor(torch.ones(8), 0.1)


def test_a_score_is_the_least_factor_that_covers_every_row():
    lower, upper = (
        torch.tensor([[-1.0, 0.0], [0.0, 2.0], [1.0, 1.0], [1.0, 1.0]]),
        torch.tensor([[1.0, 4.0], [4.0, 2.5], [1.0, 3.0], [1.0, 3.0]]),
    )
    low, high = (
        torch.tensor([[-0.5, 1.0], [-2.0, 2.1], [1.0, 2.0], [0.5, 2.0]]),
        torch.tensor([[0.5, 5.0], [4.0, 2.4], [1.0, 2.5], [1.0, 2.5]]),
    )
    assert factors(Interval(lower, upper, False), low, high).amax(1).tolist() == [1.5, 2.0, 1.0, math.inf]


def test_attacks_reach_the_true_range_of_an_affine_network_and_never_beyond():
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    box, spec = Box.around(torch.rand(3, 1, 3, 4), 0.2), margin_spec(torch.tensor([0, 1, 3]), 4)
    low, high = reach(network, box, spec, Pgd(steps=20), torch.Generator().manual_seed(0))
    true = bound("crown", network, box, spec)
    torch.testing.assert_close((low, high), (true.lower, true.upper))
    network = fully_connected(12, 30, 30, 4)
    low, high = reach(network, box, spec, Pgd(steps=20), torch.Generator().manual_seed(0))
    sound, sampled = bound("crown", network, box, spec), bound("sampled", network, box, spec)
    assert (sound.lower <= low + 1e-5).all()
    assert (high <= sound.upper + 1e-5).all()
    assert (high - low > 0.9 * sampled.width).all()  # sampled visits every corner here


def test_the_coverage_of_an_uncertain_range_lies_between_the_ends_that_are_attained():
    generator = torch.Generator().manual_seed(0)
    ends = torch.rand(200, 4, generator=generator, dtype=torch.float64).sort(1).values
    outer, inner = (Interval(ends[:, [i]], ends[:, [3 - i]], sound=False) for i in (0, 1))
    own = torch.rand(200, 2, generator=generator, dtype=torch.float64).sort(1).values
    interval = Interval(own[:, :1], own[:, 1:], sound=False)
    least, most = covered_between(interval, inner, outer)
    steps = torch.linspace(0, 1, 101, dtype=torch.float64)
    lower = (outer.lower + (inner.lower - outer.lower) * steps)[:, :, None]
    upper = (inner.upper + (outer.upper - inner.upper) * steps)[:, None, :]
    every = covered(Interval(interval.lower[..., None], interval.upper[..., None], sound=False), lower, upper)
    assert bool((least <= every.amin((1, 2))[:, None] + 1e-12).all())
    assert bool((most >= every.amax((1, 2))[:, None] - 1e-12).all())
    torch.testing.assert_close(least[:, 0], every.amin((1, 2)), rtol=0, atol=1e-12)
    torch.testing.assert_close(most[:, 0], every.amax((1, 2)), rtol=0, atol=0.05)


def test_calibration_covers_fresh_images():
    digits = load("digits", test_limit=120)
    network = build("mlp-30x3", digits.input_shape, 10, seed=0).eval()
    expected = prepare("expected", network, digits.input_shape, masks="center")
    seen = []
    found = calibrate(
        expected, network, digits, 0.1, 0.2, attack=Pgd(steps=10), samples=50, watch=lambda *a: seen.append(a)
    )
    assert (found.images, found.fresh_images, seen[-1]) == (60, 60, (120, 120))
    assert found.covered_before < 0.5 < found.covered_after
    assert found.covered_after > 0.8 - 3 * math.sqrt(0.16 / 60)
    images, labels = next(digits.test.batches(120))
    box, spec = Box.around(images, 0.1), margin_spec(labels, 10)
    scaled = bound("expected", network, box, spec, masks="center", scale=found.factor)
    sampled = bound("sampled", network, box, spec, samples=50)
    inside = ((scaled.lower <= sampled.lower + 1e-6) & (sampled.upper <= scaled.upper + 1e-6)).all(1)
    assert inside.double().mean() >= found.covered_after - 0.1
