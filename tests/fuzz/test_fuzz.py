"""Soundness is tested, not believed: every sound bound on random networks, and laws that hold between bounds.

A failing network prints its seed, shrunk to the blocks that matter; `python -m etb_plugin.selftest` goes on from
there.
"""

import copy
from copy import copy as shallow
from dataclasses import replace

import pytest
import torch
from torch import nn

from etb_plugin import Box, bound
from etb_plugin.bounds import bounds, register_bound, registry
from etb_plugin.graph.ends import crown_ends
from etb_plugin.graph.relaxation import Relaxation
from etb_plugin.graph.tracing import trace
from etb_plugin.selftest.fuzz import OPTIONS, Referee, arithmetic, reached, told
from etb_plugin.selftest.networks import corners, drawn
from etb_plugin.verification import robustness
from etb_plugin.verification.units import UnitTree
from tests.conftest import fully_connected
from tests.verification.branches import met

CASES_AT_ONCE = 10


def check(first: int, count: int) -> None:
    for seed in range(first, first + count):
        case = drawn(seed)
        referee = Referee(case)
        for name, options in OPTIONS.items():
            if referee.fault(name, options) is not None:
                pytest.fail(told(case, name, options))


def test_every_sound_bound_goes_through_the_fuzz():
    by_programs = {"exact", "lp"}  # float64, and exponential: below
    assert {name for name, entry in bounds().items() if entry.sound} == {*OPTIONS, *by_programs}


# 10 to 19 take longer than all others: attention and two recurrent layers, by alpha-CROWN.
@pytest.mark.parametrize("first", [0, 20, 30, pytest.param(10, marks=pytest.mark.slow)])
def test_150_pairs_of_networks_and_bounds(first):
    check(first, CASES_AT_ONCE)


def outside_of_a_branch(seed):
    """Return how far outputs lie below the bound of a branch that has the point, beyond what rounding explains, and how
    many branches had one; of branches on units, whatever the network."""
    case = replace(drawn(seed), dtype=torch.float64)
    case = case if case.region in ("box", "open", "one-sided") else replace(case, region="open")
    network, region = case.network.requires_grad_(False), case.around()
    box = Box(region.lower[:1], region.upper[:1])
    graph = trace(network, box.shape)
    if not graph.activations:
        return -torch.inf, 0
    root = crown_ends(graph, box, steps=2)
    tree = UnitTree(network, Relaxation(graph, box, root.ends), root, robustness(box, 0, 3))
    generator = torch.Generator().manual_seed(seed)
    inner = torch.rand(2000, *box.shape, generator=generator, dtype=torch.float64)
    points = torch.cat([box.lower + (box.upper - box.lower) * inner, corners(box, 64, generator)[:, 0]])
    slack = 2 * float(arithmetic(network, box).sum())
    branches = tree.bounded(tree.root_branches(torch.arange(2)))
    found = []
    for cuts in range(5):
        if cuts == 3:
            branches = tree.tightened(branches)
        branches = branches[~tree.whole(branches)]
        if not len(branches):
            break
        branches = tree.bounded(tree.split(branches))
        found += met(tree, branches, points)
        branches = branches[branches.above.argsort()[:6]]
    return max((above - least - slack for above, least in found), default=-torch.inf), len(found)


@pytest.mark.parametrize("first", [0, *(pytest.param(first, marks=pytest.mark.slow) for first in range(5, 400, 5))])
def test_no_point_of_a_branch_lies_below_its_bound(first):
    found = [outside_of_a_branch(seed) for seed in range(first, first + 5)]
    assert max(worst for worst, _ in found) <= 0
    assert sum(count for _, count in found) > 10


@pytest.mark.slow
@pytest.mark.parametrize("first", range(40, 2000, 50))
def test_the_rest_of_10000_pairs(first):
    check(first, 50)


def test_the_fuzz_finds_a_bound_that_is_a_little_too_tight(monkeypatch):
    monkeypatch.setattr(registry, "_registry", shallow(registry._registry))

    @register_bound("liar", sound=True, differentiable=False, balls=True, takes="anything")
    def liar(network, input_shape):
        crown = bounds()["crown"].prepare(network, input_shape)

        def apply(box, spec):
            lower, upper = crown(box, spec)
            return lower + 0.2 * (upper - lower), upper

        return apply

    found = [case for case in map(drawn, range(40)) if case.eps and Referee(case).fault("liar", {})]
    assert len(found) > 10
    assert "outside by" in told(found[0], "liar", {})


@pytest.mark.parametrize("seed", range(6))
def test_exact_lies_in_lp_and_lp_in_crown_on_small_networks(seed):
    """Both programs start from CROWN's ends, so that theory orders them; and nothing that is met lies outside."""
    torch.manual_seed(seed)
    network = fully_connected(3, 5, 4, 3).double().requires_grad_(False)
    box = Box.around(torch.rand(2, 3).double(), (0.05, 0.3, 1.0)[seed % 3])
    spec = torch.eye(3).double().expand(2, 3, 3)
    exact, lp, crown = (bound(name, network, box, spec) for name in ("exact", "lp", "crown"))
    low, high = reached(network, box, spec, seed)
    for tighter, looser in ((exact, lp), (lp, crown)):
        assert (tighter.lower >= looser.lower - 1e-6).all()
        assert (tighter.upper <= looser.upper + 1e-6).all()
    assert (exact.lower <= low + 1e-6).all()
    assert (exact.upper >= high - 1e-6).all()


SLOW = {"alpha-crown": pytest.mark.slow}


@pytest.mark.parametrize("name", [pytest.param(name, marks=SLOW.get(name, ())) for name in OPTIONS])
def test_a_smaller_box_has_no_wider_ibp_interval_and_no_wider_output_is_met(name):
    """IBP is monotone in the region; every bound of the larger box holds for the smaller one."""
    for seed in range(0, 60, 3):
        case = drawn(seed)
        network, region = case.network.double().requires_grad_(False), case.around()
        if not isinstance(region, Box):
            continue
        large = Box(region.lower.double(), region.upper.double())
        small = Box(large.center - large.radius / 2, large.center + large.radius / 2)
        outer = bound(name, network, large, **OPTIONS[name])
        slack = arithmetic(network, large)
        low, high = reached(network, small, torch.eye(3).double().expand(2, 3, 3), seed)
        assert (outer.lower <= low + slack).all()
        assert (outer.upper >= high - slack).all()
        if name == "ibp":
            inner = bound(name, network, small)
            assert (inner.lower >= outer.lower - slack).all()
            assert (inner.upper <= outer.upper + slack).all()


@pytest.mark.parametrize("name", OPTIONS)
def test_permuted_and_scaled_networks_have_permuted_and_scaled_bounds(name):
    """Hidden channels in another order, times powers of two that the next layer takes back; outputs likewise."""
    torch.manual_seed(1)
    network = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3, stride=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(16, 5), nn.ReLU(), nn.Linear(5, 4),
    ).double().eval().requires_grad_(False)  # fmt: skip
    box = Box.around(torch.rand(3, 2, 6, 6).double(), 0.05)
    other = copy.deepcopy(network)
    order, factors = torch.randperm(6), 2.0 ** torch.randint(-3, 4, (6,)).double()
    first, norm, second, last = other[0], other[1], other[3], other[8]
    first.weight.data = first.weight[order]
    first.bias.data = first.bias[order]
    norm.weight.data = norm.weight[order] * factors
    norm.bias.data = norm.bias[order] * factors
    norm.running_mean = norm.running_mean[order]
    norm.running_var = norm.running_var[order]
    second.weight.data = second.weight[:, order] / factors.view(1, -1, 1, 1)
    turned = torch.tensor([2, 0, 3, 1])
    last.weight.data, last.bias.data = 4 * last.weight[turned], 4 * last.bias[turned]
    one, two = (bound(name, net, box, **OPTIONS[name]) for net in (network, other))
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if name == "alpha-crown" else {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(two.lower, 4 * one.lower[:, turned], **tolerance)
    torch.testing.assert_close(two.upper, 4 * one.upper[:, turned], **tolerance)
