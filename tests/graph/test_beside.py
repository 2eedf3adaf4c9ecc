"""A ReLU beside another one: planes below and above the difference, and networks that are paired."""

import copy

import pytest
import torch
from torch import nn

from etb_plugin import Box, bound
from etb_plugin.graph.beside import ReluDifference
from etb_plugin.networks import build
from etb_plugin.selftest.networks import Residual
from etb_plugin.verification.paired import paired
from etb_plugin.verification.posed import Joint
from tests.conftest import fully_connected


def rectangles(dtype, count=4000):
    generator = torch.Generator().manual_seed(0)
    draw = torch.rand(4, count, 2, generator=generator, dtype=torch.float64)
    size = 10 ** (6 * draw[2] - 4)
    center = (2 * draw[0] - 1) * size
    radius = torch.where(draw[3] < 0.1, 0.0, draw[1] * size)
    return (center - radius).to(dtype), (center + radius).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_planes_lie_below_and_above_the_difference(dtype):
    function = ReluDifference()
    low, high = rectangles(dtype)
    share = torch.linspace(0, 1, 21, dtype=torch.float64)
    grid = torch.cartesian_prod(share, share)[:, None]
    knots = [(-low[:, :1].clamp(max=0)).double(), low[:, :1].double()]
    z = torch.cat([low.double() + (high - low).double() * grid, *(
        torch.cat([(-d if minus else d * 0).clamp(low[:, :1].double(), high[:, :1].double()), d], 1)[None]
        for d in (low[:, 1:].double(), high[:, 1:].double(), *(k.clamp(low[:, 1:], high[:, 1:]) for k in knots))
        for minus in (False, True)
    )])  # fmt: skip
    value = function.forward(z)
    slack = 1e-15 * z.abs().sum(-1)
    for sign in (1, -1):
        for part in (None, 0.0, 0.3, 1.0):
            weight = function.usual(low, high, sign) if part is None else low.new_full((len(low),), part)
            slope, intercept = function.chosen(weight, low, high, sign)
            out = sign * ((slope.double() * z).sum(-1) + intercept.double() - value)
            assert bool((out <= slack).all()), float(out.max())
    slope, below, above = (one.double() for one in function.parallel(low, high))
    line = (slope * z).sum(-1)
    assert bool((line + below <= value + slack).all() and (line + above >= value - slack).all())
    least, greatest = (end.double() for end in function.range(low, high))
    assert bool((least <= value + slack).all() and (greatest >= value - slack).all())
    room = 1e-5 * (low.abs() + high.abs()).sum(-1).double()
    assert bool((least >= value.amin(0) - room).all() and (greatest <= value.amax(0) + room).all())


def near(network, apart, seed=0):
    other = copy.deepcopy(network)
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(apart * torch.randn_like(p) * p.abs().mean())
    return other


NETWORKS = {
    "mlp": (lambda: fully_connected(16, 20, 20, 20, 3), (1, 4, 4)),
    "conv": (lambda: build("tiny", (1, 8, 8), 3, seed=0), (1, 8, 8)),
    "residual": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 3, 3, 2, 1),
            nn.ReLU(),
            Residual(nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()), minus=True),
            nn.Flatten(),
            nn.Linear(48, 3),
        ),
        (1, 8, 8),
    ),
}


@pytest.mark.parametrize("apart", [0.0, 1e-3, 0.5])
@pytest.mark.parametrize("name", NETWORKS)
def test_both_forms_of_two_networks_are_bounded_soundly(name, apart):
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    first = make().double().eval().requires_grad_(False)
    second = near(first, apart)
    size = torch.Size(shape).numel()
    box = Box.around(torch.rand(1, size).double(), 0.05)
    inside = box.lower + (box.upper - box.lower) * torch.rand(500, size).double().round()
    want = torch.cat([network(inside.view(-1, *shape)) for network in (first, second)], 1)
    spec = torch.cat([torch.eye(3), -torch.eye(3)], 1).double()
    difference, widths = want @ spec.T, []
    for pair in (None, paired(first, second)):
        joint = Joint([first, second], [shape] * 2, [*range(size)] * 2, 6, [], pair).eval()
        torch.testing.assert_close(joint(inside), want)
        for method in ("ibp", "crown-ibp", "crown", "alpha-crown", "dual"):
            interval = bound(method, joint, box, spec[None], **({"steps": 3} if method == "alpha-crown" else {}))
            assert (interval.lower[0] <= difference.amin(0) + 1e-9).all()
            assert (interval.upper[0] >= difference.amax(0) - 1e-9).all()
            if method == "crown":
                widths.append(float(interval.width.mean()))
    if apart == 1e-3:  # which is what the pair is for
        assert widths[1] < widths[0] / 20
    if apart == 0:
        assert widths[1] < 1e-9


def test_what_is_not_built_alike_is_not_paired():
    torch.manual_seed(0)
    one = fully_connected(4, 8, 3)
    assert paired(one, fully_connected(4, 9, 3)) is None
    assert paired(one, fully_connected(4, 8, 8, 3)) is None
    assert paired(one, nn.Sequential(nn.Flatten(), one[1], nn.LeakyReLU(), one[3])) is None
    assert paired(nn.Sequential(nn.Linear(4, 3)), nn.Sequential(nn.Linear(4, 3))) is None  # nothing that is not linear
    conv = [nn.Sequential(nn.Conv2d(1, 2, 3, stride=s, padding=1), nn.ReLU(), nn.Flatten()) for s in (1, 2)]
    assert paired(*conv) is None
    same = nn.Linear(4, 4)
    crossed = nn.Sequential(same, nn.ReLU(), same, nn.ReLU(), nn.Linear(4, 2))
    x = torch.rand(5, 4)
    for two, out in zip((crossed, near(crossed, 0.1)), paired(crossed, near(crossed, 0.1))(x, x), strict=True):
        torch.testing.assert_close(out, two(x))
