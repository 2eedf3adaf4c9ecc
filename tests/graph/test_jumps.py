"""Functions that jump: ranges and lines against grids that have the jumps and what is beside them, and networks."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from etb_plugin import Box, bound
from etb_plugin.attacks import Pgd
from etb_plugin.attacks.pgd import pgd
from etb_plugin.errors import UnsupportedLayer
from etb_plugin.graph.jumps import Broken, Jumping, Rounded
from etb_plugin.graph.tracing import trace
from etb_plugin.verification import Cascade, Settings, Verdict, robustness

HALF = torch.tensor(0.5, dtype=torch.float64)
JUMPS = {
    "sign": torch.sign,
    "heaviside": lambda x: torch.heaviside(x, HALF),
    "floor": torch.floor,
    "ceil": torch.ceil,
    "round": torch.round,
    "hard shrink": lambda x: F.hardshrink(x, 0.75),
    "threshold": lambda x: F.threshold(x, 0.25, -0.5),
    "above": lambda x: (x > 0.5).to(x.dtype),
    "at least": lambda x: (x >= 0.5).double(),
    "below": lambda x: (x < -0.25).to(x.dtype),
    "at most": lambda x: (x <= -0.25).to(x.dtype),
    "a constant above": lambda x: torch.gt(torch.full((6,), 0.5, dtype=x.dtype), x).to(x.dtype),
    "chosen": lambda x: torch.where(x > 0.25, x + 1, torch.where(x <= -0.5, -2 * x, 0.0)),
    "chosen, constants": lambda x: torch.where(x > 0, torch.ones_like(x), -1.0),
    "filled": lambda x: x.masked_fill(x < 0.25, -1.0),
    "masked": lambda x: x * (x > 0.5).to(x.dtype),
    "nowhere but at 0": lambda x: (x > 0).to(x.dtype) + (x < 0).to(x.dtype),
    "at 0 alone": lambda x: torch.where((x >= 0) & (x <= 0), 5.0, torch.relu(x)),
    "steps of several heights": lambda x: torch.sign(x) + 2 * (x > 0.5).to(x.dtype) - (x > 1).to(x.dtype) * x,
}
SEVERAL = {"steps of several heights"}
"""Sums of functions, each bounded by itself."""


class Elementwise(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function
        self.register_buffer("precision", torch.ones((), dtype=torch.float64))

    def forward(self, x):
        return self.function(x)


def ranges():
    """Ranges around, at, beside and far from jumps, points among them, six to an example: [ranges, 6]."""
    ends = torch.tensor(
        [-3.0, -1.5, -1, -0.75, -0.5, -0.3, -0.25, 0, 0.1, 0.25, 0.5, 0.6, 1, 2.25, 4], dtype=torch.float64
    )
    pairs = torch.cartesian_prod(ends, ends)
    pairs = pairs[pairs[:, 0] <= pairs[:, 1]]
    return pairs.T.reshape(2, -1, 6)


@pytest.mark.parametrize("name", JUMPS)
def test_ranges_are_what_a_grid_meets_and_lines_pass_it(name):
    network = Elementwise(JUMPS[name])
    low, high = ranges()
    box = Box(low, high)
    shares = torch.linspace(0, 1, 241, dtype=torch.float64).view(-1, 1, 1)
    knots = torch.cat([torch.arange(-4, 5) / 2.0, torch.tensor([-0.75, 0.75, 0.25, -0.25])]).double().view(-1, 1, 1)
    beside = torch.cat([knots - 1e-9, knots, knots + 1e-9])
    points = torch.cat([torch.lerp(low, high, shares), beside.maximum(low).minimum(high)])
    values = network(points)
    for method, options in (("ibp", {}), ("crown", {}), ("alpha-crown", {"steps": 3}), ("dual", {})):
        found = bound(method, network, box, **options)
        assert (found.lower <= values.amin(0) + 1e-12).all(), method
        assert (values.amax(0) <= found.upper + 1e-12).all(), method
        if method == "ibp" and name not in SEVERAL:
            torch.testing.assert_close(found.lower, values.amin(0), rtol=0, atol=1e-7)
            torch.testing.assert_close(found.upper, values.amax(0), rtol=0, atol=1e-7)
    for node in trace(network, torch.Size([6])).nodes:
        if isinstance(node.operation, Jumping) and name not in SEVERAL:
            lines = [(node.operation.line(low, high, sign), sign) for sign in (1, -1)]
            lines += [
                (node.operation.chosen(s, low, high, n), n) for s in torch.rand(9, *low.shape).double() for n in (1, -1)
            ]
            slope, below, above = node.operation.parallel(low, high)
            lines += [((slope, below), 1), ((slope, above), -1)]
            own, within = node.operation.forward(points), (points >= low) & (points <= high)
            for (slope, intercept), sign in lines:
                assert ((sign * (own - slope * points - intercept) >= -1e-12) | ~within).all()


def test_a_line_leaves_the_smallest_area():
    """Of many slopes, each with its best intercept."""
    low, high = torch.tensor([-1.0, -0.1, -2.3, -0.9], dtype=torch.float64), torch.tensor([0.2, 1.0, 3.1, 0.8]).double()
    z = torch.linspace(0, 1, 4001, dtype=torch.float64).unsqueeze(1) * (high - low) + low
    for operation in (Broken((0.0,), ((0.0, -1.0), (0.0, 1.0)), (0.0,)), Rounded(torch.round, 0.5, 0.5)):
        values = operation.forward(z)
        for sign in (1, -1):
            slope, intercept = operation.line(low, high, sign)
            reached = sign * (slope * (low + high) / 2 + intercept)
            for other in torch.linspace(-3, 3, 121, dtype=torch.float64):
                best = (sign * (values - other * z)).amin(0)
                assert (reached >= sign * other * (low + high) / 2 + best - 2e-3).all()


def test_an_end_within_rounding_of_a_jump_has_both_sides():
    hair = 3e-16
    for name, at, both in (("sign", 1.0, False), ("round", 0.5, True), ("ceil", 1.0, True), ("above", 0.5, True)):
        operation = trace(Elementwise(JUMPS[name]), torch.Size([6])).nodes[1].operation
        for low, high in ((at + hair, at + 0.25), (at - 0.25, at - hair)):
            least, most = operation.range(*torch.tensor([low, high], dtype=torch.float64))
            assert bool(most - least > 0.9) == both


class Network(nn.Module):
    def __init__(self, function, inputs=2, hidden=7):
        super().__init__()
        self.first, self.last, self.function = nn.Linear(inputs, hidden), nn.Linear(hidden, 3), function

    def forward(self, x):
        return self.last(self.function(self.first(x)))


@pytest.mark.parametrize("seed", [0, 1, 3, 6])
@pytest.mark.parametrize("name", ["sign", "round", "chosen"])
def test_a_search_decides_what_a_grid_says(name, seed):
    """Small networks: each is robust where no point of a grid, jumps' own sides among them, breaks it."""
    torch.manual_seed(seed)
    network = Network(lambda x: JUMPS[name](3 * x)).double().eval()
    x = torch.rand(1, 2, dtype=torch.float64)
    label = int(network(x).argmax())
    verdicts = set()
    for eps in (0.02, 0.15, 0.5):
        box = Box.around(x, eps, clip=None)
        axes = [
            torch.linspace(float(a), float(b), 400, dtype=torch.float64)
            for a, b in zip(box.lower[0], box.upper[0], strict=True)
        ]
        outputs = network(torch.cartesian_prod(*axes)).detach()
        gap = (outputs[:, label : label + 1] - outputs).index_fill(1, torch.tensor([label]), math.inf).amin()
        case = Cascade(network, (2,), Settings(("crown", "bab"), seconds=20)).decide(robustness(box, label, 3))
        verdicts.add(case.verdict)
        if gap < 0:
            assert case.verdict is not Verdict.ROBUST
        if gap > 0.05:
            assert case.verdict is not Verdict.FALSIFIED
    assert Verdict.ROBUST in verdicts or Verdict.FALSIFIED in verdicts


def test_pgd_goes_through_jumps_where_there_is_no_slope():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(20, 40), Elementwise(torch.sign), nn.Linear(40, 40), Elementwise(torch.sign))
    network.append(nn.Linear(40, 3)).eval()
    x = torch.rand(200, 20)
    labels = network(x).argmax(1)
    assert not torch.autograd.functional.jacobian(lambda y: network(y).sum(0), x[:3]).any()
    box = Box.around(x, 0.03, clip=None)
    settings = Pgd(steps=20, losses=("margin",))
    points, broken = pgd(network, box, labels, settings, torch.Generator().manual_seed(0))
    assert torch.equal(network(points).argmax(1) != labels, broken)
    drawn = torch.stack([network(box.drawn(torch.Generator().manual_seed(i))).argmax(1) != labels for i in range(21)])
    assert broken.double().mean() > drawn.any(0).double().mean() + 0.15


def test_expected_follows_slopes_and_says_so():
    network, box = Network(torch.sign), Box.around(torch.rand(3, 2), 0.1)
    with pytest.raises(UnsupportedLayer, match="jumps, and expected follows slopes"):
        bound("expected", network, box)
    assert bound("expected", network, box, masks="slope").width.mean() > 0


@pytest.mark.parametrize(
    "function",
    [
        lambda x: (x > 0) & (x.flip(1) > 0),
        lambda x: torch.where((x > 0.011) & (x < 0.019), 1 + F.silu(x), F.silu(x)),
        lambda x: torch.where(x > x.mean(1, keepdim=True), x, 0.0),
        lambda x: x == 0.5,
    ],
)
def test_what_is_no_comparison_of_two_values_of_one_shape_is_refused(function):
    with pytest.raises(UnsupportedLayer, match=r"decides by values|is neither affine"):
        trace(Elementwise(function), torch.Size([6]))


def test_rounding_to_decimals_is_refused():
    with pytest.raises(UnsupportedLayer, match="rounds to decimals"):
        trace(Elementwise(lambda x: torch.round(x, decimals=2)), torch.Size([6]))
