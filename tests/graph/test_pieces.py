"""Activations that users write out by conditions and masks are the functions that they come to."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from etb_plugin import Box, bound
from etb_plugin.bounds import prepare
from etb_plugin.errors import UnsupportedLayer
from etb_plugin.graph.activations import PiecewiseLinear, Relu
from etb_plugin.graph.smooth import Smooth
from etb_plugin.graph.tracing import trace

ALPHA, SCALE = 1.6732632423543772, 1.0507009873554805
# name: as it is written, and what that comes to
RELUS = {
    "where": lambda x: torch.where(x > 0, x, torch.zeros_like(x)),
    "where, turned": lambda x: torch.where(x <= 0, 0.0, x),
    "a mask": lambda x: x * (x > 0),
    "a mask of numbers": lambda x: (x >= 0).float() * x,
    "a mask of its type": lambda x: x * (x > 0).to(x.dtype),
    "filled": lambda x: x.masked_fill(x < 0, 0.0),
    "half of two": lambda x: 0.5 * (x + x.abs()),
    "the larger": lambda x: torch.maximum(x, torch.zeros_like(x)),
}
PIECEWISE = {
    "leaky, as JAX": (lambda x: torch.where(x >= 0, x, 0.1 * x), lambda x: F.leaky_relu(x, 0.1)),
    "leaky, the larger": (lambda x: torch.maximum(x, 0.1 * x), lambda x: F.leaky_relu(x, 0.1)),
    "hard tanh, as JAX": (
        lambda x: torch.where(x > 1, 1.0, torch.where(x < -1, -1.0, x)), F.hardtanh,
    ),
    "soft shrink": (
        lambda x: torch.where(x > 0.3, x - 0.3, torch.where(x < -0.3, x + 0.3, 0.0)), lambda x: F.softshrink(x, 0.3),
    ),
    "by two masks": (
        lambda x: torch.where((x > -1) & ~(x > 1), 0.5 * x, torch.sign(x) / 2), lambda x: F.hardtanh(x) / 2,
    ),
    "a size": (lambda x: x * torch.sign(x), torch.abs),
    "a condition with a factor": (lambda x: torch.where(2 * x + 1 > 0, 2 * x + 1, 0.0), lambda x: F.relu(2 * x + 1)),
    "many": (
        lambda x: 2 * ((x > 1) * (x - 1) - (x < -2) * (x + 2) * 3 + torch.where(x > 0, x, 0.0)),
        lambda x: 2 * (F.relu(x - 1) + 3 * F.relu(-2 - x) + F.relu(x)),
    ),
}  # fmt: skip
CURVED = {
    "elu": (lambda x: torch.where(x > 0, x, 1.5 * (torch.exp(x) - 1)), lambda x: F.elu(x, 1.5)),
    "elu, as JAX": (lambda x: torch.where(x > 0, x, torch.expm1(torch.where(x > 0, 0.0, x))), F.elu),
    "selu, as JAX": (
        lambda x: SCALE * torch.where(x > 0, x, ALPHA * torch.expm1(torch.where(x > 0, 0.0, x))), F.selu,
    ),
    "celu": (lambda x: torch.where(x > 0, x, 2 * torch.expm1(x / 2)), lambda x: F.celu(x, 2.0)),
    "softplus, cut early": (lambda x: torch.where(x > 12, x, torch.log1p(torch.exp(x))), F.softplus),
    "sigmoid, without overflow": (
        lambda x: torch.where(x >= 0, 1 / (1 + torch.exp(-x)), torch.exp(x) / (1 + torch.exp(x))), torch.sigmoid,
    ),
}  # fmt: skip


class Written(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.a, self.b, self.function = nn.Linear(6, 8), nn.Linear(8, 3), function
        self.slope = nn.Parameter(torch.tensor(0.1))

    def forward(self, x):
        return self.b(self.function(self.a(x)))


@pytest.mark.parametrize("name", RELUS)
def test_every_way_to_write_a_relu_is_one(name):
    nodes = trace(Written(RELUS[name]), torch.Size([6])).nodes
    assert [type(node.operation) for node in nodes[2:-1]] == [Relu]


@pytest.mark.parametrize("name", PIECEWISE | CURVED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_written_out_is_the_function_that_it_comes_to(name, dtype):
    written, known = (PIECEWISE | CURVED)[name]
    network = Written(written).to(dtype)
    activation = trace(network, torch.Size([6])).nodes[2].operation
    assert isinstance(activation, PiecewiseLinear if name in PIECEWISE else Smooth)
    z = torch.linspace(-30, 30, 6001, dtype=torch.float64)
    torch.testing.assert_close(activation.forward(z), known(z), rtol=1e-5, atol=1e-5)
    for scale in (1, 20):
        box = Box.around(scale * torch.randn(3, 6, dtype=dtype), 0.3 * scale, clip=None)
        points = box.lower + (box.upper - box.lower) * torch.rand(500, 3, 6, dtype=dtype)
        values = network(points)
        for method in ("ibp", "crown", "dual"):
            found = bound(method, network, box)
            assert (found.lower <= values.amin(0) + 1e-5 * scale).all(), method
            assert (values.amax(0) <= found.upper + 1e-5 * scale).all(), method


def test_a_slope_that_is_trained_is_no_number():
    network = Written(torch.relu)
    network.function = lambda x: torch.where(x > 0, x, network.slope * x)
    box = Box.around(torch.rand(2, 6), 0.1)
    points = box.lower + (box.upper - box.lower) * torch.rand(200, 2, 6)
    prepared = prepare("crown", network, torch.Size([6]))
    for slope in (0.1, -0.7):
        with torch.no_grad():
            network.slope.fill_(slope)
        found = prepared(box)
        assert (found.lower <= network(points).amin(0) + 1e-6).all()
        assert (network(points).amax(0) <= found.upper + 1e-6).all()


def test_a_choice_by_a_constant_is_affine_and_may_not_put_in_infinity():
    mask = torch.arange(8) % 2 == 0
    network = Written(lambda x: torch.where(mask, x, 0.5) + x.masked_fill(mask, -1.0) + torch.where(mask, 2 * x, x))
    box = Box.around(torch.rand(2, 6), 0.1)
    points = box.lower + (box.upper - box.lower) * torch.rand(200, 2, 6)
    for method in ("ibp", "crown"):
        found = bound(method, network, box)
        assert (found.lower <= network(points).amin(0) + 1e-6).all()
        assert (network(points).amax(0) <= found.upper + 1e-6).all()
    linear = Box.around(box.center, 0.0)
    torch.testing.assert_close(bound("crown", network, linear).lower, network(box.center))
    with pytest.raises(UnsupportedLayer, match="not finite"):
        trace(Written(lambda x: x.masked_fill(mask, -torch.inf)), torch.Size([6]))


def test_what_comes_to_one_piece_is_affine():
    network = Written(lambda x: torch.sign(2 * x - 1) * torch.abs(2 * x - 1) + torch.clamp(x, min=-torch.inf))
    box = Box.around(torch.rand(2, 6), 0.1)
    for method in ("ibp", "crown-ibp", "crown", "alpha-crown", "dual", "expected", "lp", "exact"):
        found = bound(method, network, box)
        torch.testing.assert_close(found.lower + found.upper, 2 * network(box.center), atol=1e-4, rtol=1e-4)
        if method != "ibp":
            torch.testing.assert_close(found.lower, bound("crown", network, box).lower, atol=1e-4, rtol=1e-4)


def test_the_largest_of_a_dimension_is_not_taken_for_the_larger_of_two():
    with pytest.raises(UnsupportedLayer, match=r"\(max\)"):
        trace(Written(lambda x: torch.max(x) * x), torch.Size([6]))
    network = Written(lambda x: torch.max(x, 0.1 * x) + torch.min(x, torch.tensor(0.2)))
    torch.testing.assert_close(trace(network, torch.Size([6])).values(torch.ones(2, 6))[-1], network(torch.ones(2, 6)))
