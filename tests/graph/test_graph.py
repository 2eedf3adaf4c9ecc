"""Piecewise linear activations and the squares of affine maps, against brute force."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from etb_plugin import Box, bound
from etb_plugin.graph.affine import Affine
from etb_plugin.graph.tracing import trace
from tests.conftest import Branching


class Call(nn.Module):
    """A function as a layer."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def prelu():
    layer = nn.PReLU(3)
    nn.init.uniform_(layer.weight, -1.0, 1.0)
    return layer


ACTIVATIONS = {
    "relu": nn.ReLU(),
    "leaky": nn.LeakyReLU(0.3),
    "falling": nn.LeakyReLU(-0.5),
    "prelu": prelu(),
    "hardtanh": nn.Hardtanh(-0.5, 0.7),
    "relu6": nn.ReLU6(),
    "clamp": Call(lambda x: torch.clamp(x, -0.2, 0.4)),
    "clamp below": Call(lambda x: x.clamp(min=0)),
    "clamp below elsewhere": Call(lambda x: x.clamp(min=0.1)),
    "clamp above": Call(lambda x: x.clamp(max=-0.2)),
    "absolute": Call(torch.abs),
    "hardsigmoid": nn.Hardsigmoid(),
    "functional leaky": Call(lambda x: F.leaky_relu(x, 0.1)),
    "functional hardtanh": Call(lambda x: F.hardtanh(x, min_val=-0.3)),
    "functional relu6": Call(F.relu6),
}


def traced(layer):
    graph = trace(nn.Sequential(nn.Identity(), layer, nn.Flatten()), torch.Size([3, 4]))
    (activation,) = graph.activations.values()
    return activation


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_is_its_pieces(name):
    layer, activation = ACTIVATIONS[name], traced(ACTIVATIONS[name])
    z = (3 * torch.randn(200, 3, 4)).double().requires_grad_()
    layer = layer.double()
    (slope,) = torch.autograd.grad(layer(z).sum(), z)
    torch.testing.assert_close(activation.forward(z), layer(z))
    got, intercept = activation.piece(z)
    torch.testing.assert_close(got, slope)
    torch.testing.assert_close(got * z + (0 if intercept is None else intercept), layer(z))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_range_is_the_least_and_the_greatest_value(name):
    activation = traced(ACTIVATIONS[name].double())
    low = torch.randn(50, 3, 4).double()
    high = low + torch.rand(50, 3, 4).double()
    points = low + (high - low) * torch.linspace(0, 1, 2001).double().view(-1, 1, 1, 1)
    values = torch.stack([activation.forward(p) for p in points])
    least, greatest = activation.range(low, high)
    torch.testing.assert_close(least, values.amin(0), atol=1e-3, rtol=0)
    torch.testing.assert_close(greatest, values.amax(0), atol=1e-3, rtol=0)
    assert (least <= values.amin(0) + 1e-12).all()
    assert (greatest >= values.amax(0) - 1e-12).all()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_moments_and_mean_pieces_are_those_of_a_normal_variable(name):
    activation = traced(ACTIVATIONS[name].double())
    mean = torch.linspace(-1, 1, 12).double().view(1, 3, 4)
    samples = mean + 0.5 * torch.randn(400_000, 3, 4).double()
    values = activation.forward(samples)
    got = activation.moments(mean, torch.full_like(mean, 0.25))
    torch.testing.assert_close(got[0][0], values.mean(0), atol=5e-3, rtol=0)
    torch.testing.assert_close(got[1][0], values.var(0), atol=5e-3, rtol=0)
    slope, intercept = activation.piece(mean, torch.full_like(mean, 0.5))
    slopes, intercepts = activation.piece(samples)
    torch.testing.assert_close(slope[0], slopes.mean(0), atol=5e-3, rtol=0)
    if intercept is not None:
        torch.testing.assert_close(intercept[0], intercepts.mean(0), atol=5e-3, rtol=0)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_bound_keeps_the_piece_that_holds_at_the_upper_end(name):
    """By hand, on two layers: slope s and intercept c at u, then A2 diag(s) A1 x + A2 (s b1 + c) + b2."""
    layer = ACTIVATIONS[name].double()
    first, last = nn.Linear(5, 12).double(), nn.Linear(12, 2).double()
    network = nn.Sequential(first, nn.Unflatten(1, (3, 4)), layer, nn.Flatten(), last)
    box = Box.around(torch.rand(1, 5).double(), 0.3)
    m, r = box.center[0], box.radius[0]
    u = (first(m) + r @ first.weight.abs().T).view(1, 3, 4).detach().requires_grad_()
    value = layer(u)
    (s,) = torch.autograd.grad(value.sum(), u)
    c = (value - s * u).flatten().detach()
    s = s.flatten()
    G, g = last.weight * s @ first.weight, last.weight @ (s * first.bias + c) + last.bias
    got = bound("expected", network, box)
    torch.testing.assert_close(got.lower[0], G @ m + g - G.abs() @ r)
    torch.testing.assert_close(got.upper[0], G @ m + g + G.abs() @ r)


class Rearranging(nn.Module):
    """Averages, sums, scales, concatenation and slices, affine throughout."""

    def forward(self, x):
        pooled = F.avg_pool2d(x, 3, 2, 1).flatten(1)
        means = torch.cat([x.mean((2, 3)), x.sum(1).flatten(1) * 0.3 - 0.1], 1)
        return torch.cat([pooled[:, 1:5], means[:, :6] / 4, -x[:, 0, 1, :3]], 1)


@pytest.mark.parametrize("kind", ["rearranging", "branching"])
def test_squares_and_pushed_columns_are_those_of_the_matrix(kind):
    """Node by node, against the dense matrix of each affine map."""
    shape = torch.Size([1, 8, 8]) if kind == "branching" else torch.Size([2, 5, 5])
    network = (Branching() if kind == "branching" else Rearranging()).double().eval()
    graph = trace(network, shape)
    values = [torch.rand(2, *shape).double()]
    for node in graph.nodes[1:]:
        inputs = [values[j] for j in node.inputs]
        values.append(node.operation.forward(*inputs))
        if not isinstance(node.operation, Affine):
            continue
        matrices = [
            torch.autograd.functional.jacobian(
                lambda one, k=k, node=node, inputs=inputs: node.operation.forward(*inputs[:k], one, *inputs[k + 1 :])[
                    0
                ],
                inputs[k],
            )[..., 0, *[slice(None)] * (inputs[k].ndim - 1)]
            .flatten(-(inputs[k].ndim - 1))
            .flatten(0, -2)
            for k in range(len(inputs))
        ]
        variances = [torch.rand_like(v) for v in inputs]
        columns = [torch.randn(2, 3, *v.shape[1:]).double() for v in inputs]
        want = sum(v.flatten(1) @ A.square().T for v, A in zip(variances, matrices, strict=True))
        pushed = sum(c.flatten(2) @ A.T for c, A in zip(columns, matrices, strict=True))
        torch.testing.assert_close(node.operation.squared(*variances).flatten(1), want)
        torch.testing.assert_close(node.operation.push(*columns).flatten(2), pushed)


class Outer(nn.Module):
    """A value times a parameter that it broadcasts with: more elements than before, and no layer of torch."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.scale, self.last = nn.Linear(3, 4), nn.Parameter(torch.rand(2, 1) - 0.5), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last((torch.relu(self.first(x))[:, None] * self.scale).sum(1))


@pytest.mark.parametrize("name", ["ibp", "crown", "dual"])
def test_parameters_of_maps_known_by_their_function_take_the_gradient_of_the_bound(name):
    network = Outer().double()
    box = Box.around(torch.rand(2, 3).double(), 0.2)

    def total() -> torch.Tensor:
        return bound(name, network, box).lower.sum()

    (gradient,) = torch.autograd.grad(total(), network.scale)
    for i in range(2):
        values = []
        for step in (1e-6, -2e-6):
            network.scale.data[i] += step
            values.append(float(total().detach()))
        network.scale.data[i] += 1e-6
        assert float(gradient[i]) == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-5)
