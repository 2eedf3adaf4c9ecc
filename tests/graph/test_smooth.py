"""Smooth activations: their derivatives, the lines below and above them, and what a normal variable becomes."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from etb_plugin import Box, bound, margin_spec
from etb_plugin.errors import UnsupportedLayer
from etb_plugin.graph import smooth, waves
from etb_plugin.graph.convex import SQUARE
from etb_plugin.graph.joint import Product
from etb_plugin.graph.smooth import Sloped, Smooth, elu, softplus
from etb_plugin.graph.tracing import trace

FUNCTIONS = {
    "sigmoid": smooth.SIGMOID,
    "tanh": smooth.TANH,
    "log-sigmoid": smooth.LOG_SIGMOID,
    "gelu": smooth.GELU,
    "gelu-tanh": smooth.GELU_TANH,
    "silu": smooth.SILU,
    "quick-gelu": smooth.QUICK_GELU,
    "erf": smooth.ERF,
    "mish": smooth.MISH,
    "hard-swish": smooth.HARD_SWISH,
    "softplus": softplus(),
    "softplus-3": softplus(3.0),
    "elu": elu(),
    "elu-0.3": elu(0.3),
    "selu": elu(1.6732632423543772, scale=1.0507009873554805),
    "celu-0.5": elu(0.5, width=0.5),
    "softsign": smooth.SOFTSIGN,
    "tanhshrink": smooth.TANHSHRINK,
    "atan": smooth.ATAN,
}
WAVES = {"sin": waves.SIN, "cos": waves.COS}
every = pytest.mark.parametrize("function", [*FUNCTIONS.values(), *WAVES.values()], ids=[*FUNCTIONS, *WAVES])


def _ranges(dtype: torch.dtype, count: int = 600) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    draw = torch.rand(3, count, generator=generator, dtype=torch.float64)
    center = (2 * draw[2] - 1) * 10 ** (4 * draw[0] - 2)
    radius = 10 ** (8 * draw[1] - 5)
    return (center - radius).to(dtype), (center + radius).to(dtype)


def _points(low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """Return points [points, ranges] of every range, in float64, more where the function bends."""
    low, high = low.double(), high.double()
    share = torch.linspace(0, 1, 801, dtype=torch.float64).unsqueeze(1)
    bend = torch.linspace(-6, 6, 801, dtype=torch.float64).unsqueeze(1)
    return torch.cat([low + (high - low) * share, bend.maximum(low).minimum(high)])


@every
def test_derivatives(function: Sloped) -> None:
    z = torch.linspace(-12, 12, 4001, dtype=torch.float64, requires_grad=True)
    (want,) = torch.autograd.grad(function.value(z).sum(), z)
    torch.testing.assert_close(function.derivative(z), want, atol=1e-13 + 10 * function.slack, rtol=1e-12)
    if not isinstance(function, Smooth):
        return
    ends = (-function.reach, *function.turns, function.reach)
    for low, high in itertools.pairwise(ends):
        change = function.derivative(torch.linspace(low + 1e-9, high - 1e-9, 5001, dtype=torch.float64)).diff()
        assert bool((change >= -1e-15).all() or (change <= 1e-15).all())
    beyond = function.derivative(torch.tensor([[-1.0, -2.0], [1.0, 2.0]], dtype=torch.float64) * function.reach)
    torch.testing.assert_close(beyond[:, 0], beyond[:, 1], atol=4e-16, rtol=0)


@every
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_lines_lie_below_and_above(function: Sloped, dtype: torch.dtype) -> None:
    low, high = _ranges(dtype)
    z = _points(low, high)
    value = function.value(z)
    # what float64 itself may be off at these sizes, no more: the lines of float32 are rounded outward
    slack = 1e-15 * (1 + z.abs()) + 2 * function.slack
    generator = torch.Generator().manual_seed(1)
    for slope in (None, torch.rand(len(low), generator=generator).to(dtype) * 1.4 - 0.2):
        for sign in (1, -1):
            if slope is None:
                line, intercept = function.line(low, high, sign)
            else:
                line, intercept = slope, function.intercept(slope, low, high, sign)
            out = sign * (line.double() * z + intercept.double() - value)
            assert bool((out <= slack).all()), float(out.max())
    steep, lower, upper = (one.double() for one in function.parallel(low, high))
    assert bool((steep * z + lower <= value + slack).all() and (steep * z + upper >= value - slack).all())
    least, greatest = (end.double() for end in function.range(low, high))
    rounded = 4 * torch.finfo(dtype).eps * (1 + value.abs())
    assert bool((least <= value + rounded).all() and (greatest >= value - rounded).all())


@every
def test_lines_leave_the_smallest_area(function: Sloped) -> None:
    low, high = _ranges(torch.float64)
    some = (high - low < 100).nonzero()[::8, 0]
    low, high = low[some], high[some]
    middle, z = (low + high) / 2, _points(low, high)
    _, most = function.slopes(low, high)
    slopes = [function.slopes(low, high)[0].lerp(most, share) for share in torch.linspace(0, 1, 201).tolist()]
    for sign in (1, -1):
        slope, intercept = function.line(low, high, sign)
        got = sign * (slope * middle + intercept)
        best = torch.stack([sign * s * middle + (sign * (function.value(z) - s * z)).amin(0) for s in slopes]).amax(0)
        assert bool((got >= best - 2e-3 * (high - low) - 1e-6).all())


@every
def test_lines_are_differentiable(function: Sloped) -> None:
    low, high = (end[:200] for end in _ranges(torch.float64))
    some = (high - low < 20) & (high - low > 0.01)
    for sign in (1, -1):
        ends = [end[some].clone().requires_grad_() for end in (low, high)]

        def at_middle(one: torch.Tensor, two: torch.Tensor, sign: int = sign) -> torch.Tensor:
            slope, intercept = function.line(one, two, sign)
            return slope * 0.3 + intercept

        got = torch.autograd.grad(at_middle(*ends).sum(), ends)
        step = 1e-4
        for which in range(2):
            moved = [[end.detach() + (i == which) * side for i, end in enumerate(ends)] for side in (step, -step)]
            want = (at_middle(*moved[0]) - at_middle(*moved[1])) / (2 * step)
            near = (got[which] - want).abs() <= 5e-3 * (1 + want.abs())
            # where a line goes over from a tangent to a chord the difference quotient means nothing
            assert float(near.double().mean()) > 0.9


@every
def test_moments_and_mean_pieces(function: Sloped) -> None:
    mean = torch.linspace(-3, 3, 7, dtype=torch.float64)
    deviation = torch.full_like(mean, 0.7)
    samples = mean + deviation * torch.randn(400_000, 1, generator=torch.Generator().manual_seed(0)).double()
    middle, variance = function.moments(mean, deviation.square())
    torch.testing.assert_close(middle, function.value(samples).mean(0), atol=6e-3, rtol=0)
    torch.testing.assert_close(variance, function.value(samples).var(0), atol=1e-2, rtol=0)
    slope, intercept = function.piece(mean, deviation)
    slopes, intercepts = function.piece(samples)
    assert intercept is not None
    assert intercepts is not None
    torch.testing.assert_close(slope, slopes.mean(0), atol=1e-2, rtol=0)
    torch.testing.assert_close(intercept, intercepts.mean(0), atol=1e-2, rtol=0)


LAYERS = {
    "Sigmoid": nn.Sigmoid(),
    "Tanh": nn.Tanh(),
    "Softplus": nn.Softplus(beta=2),
    "GELU": nn.GELU(),
    "GELU tanh": nn.GELU(approximate="tanh"),
    "SiLU": nn.SiLU(),
    "Mish": nn.Mish(),
    "ELU": nn.ELU(0.7),
    "CELU": nn.CELU(0.7),
    "SELU": nn.SELU(),
    "LogSigmoid": nn.LogSigmoid(),
    "Hardswish": nn.Hardswish(),
    "Softsign": nn.Softsign(),
    "Tanhshrink": nn.Tanhshrink(),
}


def _network(layer: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, 2, 1), layer, nn.Conv2d(4, 4, 3, 2, 1), layer, nn.Flatten(), nn.Linear(16, 12), layer,
        nn.Linear(12, 5),
    ).double()  # fmt: skip


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_bounds_of_a_network(layer: nn.Module) -> None:
    """Sound, tighter from IBP to CROWN, alpha-CROWN no looser, and differentiable."""
    network = _network(layer)
    images = torch.rand(2, 1, 8, 8, dtype=torch.float64)
    box, spec = Box.around(images, 0.3, clip=None), margin_spec(torch.tensor([0, 3]), 5, torch.float64)
    inside = box.lower + (box.upper - box.lower) * torch.rand(2000, *images.shape, dtype=torch.float64)
    values = torch.einsum("brk,nbk->nbr", spec, network(inside.flatten(0, 1)).unflatten(0, (2000, 2)))
    lower = {}
    for name in ("ibp", "crown-ibp", "crown", "alpha-crown", "dual"):
        interval = bound(name, network, box, spec, **({"steps": 5} if name == "alpha-crown" else {}))
        assert bool((interval.lower <= values.amin(0)).all() and (interval.upper >= values.amax(0)).all())
        lower[name] = interval.lower.mean()
    assert lower["ibp"] < lower["crown-ibp"] < lower["crown"] < lower["alpha-crown"] + 1e-3
    loss = bound("crown", network, box, spec).lower.sum()
    gradients = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True)
    assert all(gradient is None or bool(gradient.isfinite().all()) for gradient in gradients)


def test_expected_is_the_tangents_map() -> None:
    """Masks at the centre leave the local linear map, |J| r wide."""
    network = _network(nn.Tanh())
    x = torch.rand(1, 1, 8, 8, dtype=torch.float64)
    interval = bound("expected", network, Box.around(x, 0.1, clip=None), masks="center")
    jacobian = torch.autograd.functional.jacobian(lambda x: network(x)[0], x).flatten(1)
    torch.testing.assert_close((interval.upper - interval.lower)[0] / 2, 0.1 * jacobian.abs().sum(1))
    torch.testing.assert_close((interval.upper + interval.lower)[0] / 2, network(x)[0])


def test_what_has_no_program_is_refused() -> None:
    network = _network(nn.Tanh())
    with pytest.raises(UnsupportedLayer, match=r"layer '1' \(Tanh\) is not piecewise linear"):
        bound("exact", network, Box.around(torch.rand(1, 1, 8, 8).double(), 0.1))


def test_calls_are_traced() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(14))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            calls = [
                torch.sigmoid, torch.tanh, F.softplus, F.gelu, F.silu, F.mish, F.elu, F.hardswish,
                lambda z: F.gelu(z, approximate="tanh"), torch.sin, torch.cos, torch.arctan, F.softsign, F.tanhshrink,
            ]  # fmt: skip
            for layer, call in zip(self.layers, calls, strict=True):
                x = call(layer(x))
            return x

    kinds = [a.name for a in trace(Network(), torch.Size([6])).activations.values() if isinstance(a, Sloped)]
    known = "sigmoid tanh softplus gelu silu mish elu hard-swish gelu-tanh sin cos atan softsign tanhshrink"
    assert kinds == known.split()
    with pytest.raises(UnsupportedLayer, match="threshold"):
        trace(nn.Sequential(nn.Linear(2, 2), nn.Softplus(threshold=1)), torch.Size([2]))


WRITTEN_OUT = {
    "silu": lambda z: z * torch.sigmoid(z),
    "gelu": lambda z: z * 0.5 * (1 + torch.erf(z / math.sqrt(2))),
    "gelu in few digits": lambda z: 0.5 * (z * (torch.erf(z / 1.41421354) + 1.0)),
    "gelu-tanh": lambda z: 0.5 * z * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z * z * z))),
    "quick-gelu": lambda z: z * torch.sigmoid(1.702 * z),
    "mish": lambda z: z * torch.tanh(F.softplus(z)),
    "hard-swish": lambda z: z * F.relu6(z + 3) / 6,
    "two": lambda z: (lambda once: once * torch.sigmoid(once))(z * torch.sigmoid(z) - z),
}


class WrittenOut(nn.Module):
    def __init__(self, call: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.call = nn.Linear(4, 6), nn.Linear(6, 3), call

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.call(self.first(x)))


@pytest.mark.parametrize("name", WRITTEN_OUT)
@pytest.mark.parametrize("eps", [0.05, 5.0, 500.0])
def test_functions_that_are_written_out_are_known_by_their_values(name: str, eps: float) -> None:
    torch.manual_seed(0)
    network = WrittenOut(WRITTEN_OUT[name]).double()
    box = Box.around(torch.rand(2, 4, dtype=torch.float64), eps, clip=None)
    activations = trace(network, torch.Size([4])).activations.values()
    assert {getattr(one, "name", "") for one in activations} <= {name.split()[0], "silu"}
    points = box.lower + (box.upper - box.lower) * torch.rand(5000, 2, 4, dtype=torch.float64).round(decimals=1)
    values = network(points)
    for method in ("ibp", "crown"):
        interval = bound(method, network, box)
        assert bool((interval.lower <= values.amin(0)).all() and (interval.upper >= values.amax(0)).all())


def test_products_that_are_no_known_function_are_bounded_as_products() -> None:
    weight = torch.rand(6, dtype=torch.float64)
    for call in (
        lambda z: z * z,
        lambda z: z * torch.sigmoid(z.mean(1, keepdim=True)),
        lambda z: z * torch.sigmoid(weight * z),
        lambda z: z * torch.tanh(z),
    ):
        activations = trace(WrittenOut(call).double(), torch.Size([4])).activations.values()
        assert any(isinstance(one, Product) or one is SQUARE for one in activations)


def test_constants_of_what_is_written_out_are_read_anew_and_none_that_is_trained() -> None:
    class Swish(nn.Module):
        def __init__(self, trained: bool) -> None:
            super().__init__()
            self.first = nn.Linear(4, 3)
            if trained:
                self.steepness = nn.Parameter(torch.ones(1))
            else:
                self.register_buffer("steepness", torch.ones(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            z = self.first(x)
            return z * torch.sigmoid(self.steepness * z)

    network = Swish(trained=False)
    assert [a.name for a in trace(network, torch.Size([4])).activations.values() if isinstance(a, Sloped)] == ["silu"]
    network.steepness.fill_(1.702)
    (now,) = trace(network, torch.Size([4])).activations.values()
    assert isinstance(now, Smooth)
    assert now.name == "quick-gelu"
    network.steepness.fill_(1.3)
    for one in (network, Swish(trained=True)):
        kinds = [type(a) for a in trace(one, torch.Size([4])).activations.values()]
        assert kinds == [type(smooth.SIGMOID), Product]
