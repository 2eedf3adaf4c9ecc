"""Robustra's dual: derived in its docstring, proved here by sampling."""

import pytest
import torch
from torch import nn

from etb_plugin.bounds import Box, bound, margin_spec
from etb_plugin.bounds.dual import prepare_linear
from etb_plugin.errors import UnsupportedLayer
from etb_plugin.networks import Pair, build, members
from etb_plugin.objectives import Point, get_method
from etb_plugin.objectives.robustra import Margins, chosen_eta, dual_value, slope, upper_among_attacks
from tests.conftest import Bessel, fully_connected

ETAS = (0.0, 0.01, 0.1, 0.5, 1.0, 3.0, 30.0)


@pytest.fixture
def case():
    """Two networks of three classes, a box cut by [0, 1] in places, and both linear bounds of the margins."""
    torch.manual_seed(3)
    f, g = fully_connected(6, 8, 8, 3).double(), fully_connected(6, 8, 8, 3).double()
    images, labels = torch.rand(4, 1, 2, 3).double(), torch.tensor([0, 1, 2, 1])
    box, spec = Box.around(images, 0.15), margin_spec(labels, 3, torch.float64)
    own, reference = (Margins(*prepare_linear(net, images.shape[1:])(box, spec)) for net in (f, g))
    return f, g, box, spec, own, reference


def sampled(network, box, spec, number=2000):
    generator = torch.Generator().manual_seed(0)
    shape = (number, *box.lower.shape)
    x = box.lower + (box.upper - box.lower) * torch.rand(shape, generator=generator, dtype=torch.float64)
    x[number // 2 :] = box.lower + (box.upper - box.lower) * (x[number // 2 :] > box.center)  # corners
    with torch.no_grad():
        logits = network(x.flatten(0, 1)).unflatten(0, shape[:2])
    return -torch.einsum("brk,nbk->nbr", spec, logits)  # f_j - f_y


def test_the_linear_bound_lies_below_the_network_and_is_the_dual_bound_at_its_least(case):
    f, _, box, spec, own, _ = case
    at = ETAS[0]
    least = -dual_value(own, own, box, torch.full_like(own.constants, at), torch.zeros_like(own.constants))
    torch.testing.assert_close(least, bound("dual", f, box, spec).lower)
    generator = torch.Generator().manual_seed(1)
    for _ in range(200):
        x = box.lower + (box.upper - box.lower) * torch.rand(box.lower.shape, generator=generator, dtype=torch.float64)
        line = torch.einsum("brn,bn->br", own.coefficients, x.flatten(1)) + own.constants
        with torch.no_grad():
            assert bool((torch.einsum("brk,bk->br", spec, f(x)) >= line - 1e-9).all())


def test_no_attack_on_the_reference_exceeds_h_at_any_eta(case):
    f, g, box, spec, own, reference = case
    ours, theirs = sampled(f, box, spec), sampled(g, box, spec)
    for share in (0.0, 0.3, 0.6, 0.9, 0.99):
        t = theirs.quantile(share, dim=0)  # cuts off this share of the points, row by row
        worst = torch.where(theirs >= t, ours, -torch.inf).amax(0)
        for eta in ETAS:
            assert bool((worst <= dual_value(own, reference, box, torch.full_like(worst, eta), t) + 1e-9).all())


def test_the_chosen_eta_minimises_h_at_the_chosen_t(case):
    f, g, box, spec, own, reference = case
    eta = chosen_eta(own.coefficients, reference.coefficients)
    assert (eta > 0).any()
    step = 1e-7 * eta
    t = slope(own, reference, box, eta)
    chosen = upper_among_attacks(own, reference, box)
    torch.testing.assert_close(chosen, dual_value(own, reference, box, eta, t))
    for other in (*ETAS, 0.9, 1.1):
        near = eta * other if other in (0.9, 1.1) else torch.full_like(eta, other)
        assert bool((dual_value(own, reference, box, near, t) >= chosen - 1e-9).all())
    unconstrained = dual_value(own, reference, box, torch.zeros_like(eta), t)
    assert bool((chosen <= unconstrained + 1e-12).all())
    assert bool((slope(own, reference, box, eta - step) <= slope(own, reference, box, eta + step) + 1e-12).all())
    worst = torch.where(sampled(g, box, spec) >= t, sampled(f, box, spec), -torch.inf).amax(0)
    assert bool((worst <= chosen + 1e-9).all())


def test_slopes_of_h_never_fall(case):
    *_, box, _, own, reference = case
    before = slope(own, reference, box, torch.zeros_like(own.constants))
    for eta in (*ETAS[1:], torch.inf):
        here = slope(own, reference, box, torch.full_like(own.constants, eta))
        assert bool((here >= before - 1e-12).all())
        before = here


def test_the_gradient_is_that_of_h_at_fixed_eta_and_t(case):
    f, _, box, spec, own, reference = case
    weight, direction = f[1].weight, torch.randn_like(f[1].weight)
    eta = chosen_eta(own.coefficients.detach(), reference.coefficients)
    t = slope(own, reference, box, eta).detach()
    eta = eta.detach()
    linear = prepare_linear(f, box.lower.shape[1:])
    upper_among_attacks(Margins(*linear(box, spec)), reference, box).sum().backward()
    values = []
    with torch.no_grad():
        for step in (1e-6, -2e-6):
            weight += step * direction
            values.append(dual_value(Margins(*linear(box, spec)), reference, box, eta, t).sum())
    torch.testing.assert_close((weight.grad * direction).sum(), (values[0] - values[1]) / 2e-6, rtol=1e-4, atol=1e-6)


def test_both_networks_of_a_pair_learn():
    pair = Pair(*(build("mlp-12x2", (1, 8, 8), 10, seed=seed) for seed in (0, 1)))
    assert list(members(pair)) == [" f", " g"]
    loss = get_method("robustra").objective.prepare(pair, (1, 8, 8), 10)
    images, labels = torch.rand(5, 1, 8, 8), torch.arange(5)
    losses = loss(images, labels, Point(0.05, 0.0), torch.Generator())
    losses.total.backward()
    assert all(bool((p.grad != 0).any()) for net in (pair.first, pair.second) for p in net.parameters())


def test_a_layer_that_the_dual_cannot_take_is_named():
    pair = Pair(*(nn.Sequential(nn.Flatten(), nn.Linear(64, 16), Bessel(), nn.Linear(16, 10)) for _ in range(2)))
    with pytest.raises(UnsupportedLayer, match=r"layer 'special_i0' \(special_i0\)"):
        get_method("robustra").objective.prepare(pair, (1, 8, 8), 10)
