"""Our engine against the toolkits, wherever theirs is right: the named architectures, float32 and float64."""

import pytest
import torch
from torch import nn

from etb_plugin import Ball, Box, bound, margin_spec
from etb_plugin.errors import ConfigError, UnsupportedLayer
from etb_plugin.networks import build

SHAPES = {
    "tiny": (1, 8, 8), "mlp-20x4": (1, 8, 8), "small": (1, 14, 14), "medium": (1, 20, 20), "large": (1, 9, 9),
    "large-etb": (1, 9, 9), "wk-small": (1, 12, 12), "wk-large": (1, 8, 8), "wk-resnet": (1, 8, 8),
    "cnn7": (1, 8, 8), "cnn7-bn": (1, 8, 8), "wide-resnet-10-10": (1, 8, 8),
}  # fmt: skip
"""Inputs on which each named architecture fits and two cores are done in seconds."""
FULL = ("tiny", "mlp-20x4", "wk-small")
"""Where the rows of every layer, or alpha-CROWN, take the toolkits no more than a few seconds."""
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-9}


def case(name, dtype, eps=0.01, batch=2):
    shape = SHAPES[name]
    network = build(name, shape, 10, seed=0, normalization=((0.3,), (0.5,))).to(dtype).eval().requires_grad_(False)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    box = Box.around(torch.rand(batch, *shape, dtype=dtype), eps)
    return network, box, margin_spec(torch.arange(batch), 10, dtype)


def assert_equal(one, two, dtype):
    """Relative to the largest end: rounding is relative to the sums of which ends are differences."""
    scale = max(1.0, float(one.upper.abs().max()), float(one.lower.abs().max()))
    assert (one.lower - two.lower).abs().max() <= TOLERANCE[dtype] * scale
    assert (one.upper - two.upper).abs().max() <= TOLERANCE[dtype] * scale


def compare(name, network, dtype, by):
    net, box, spec = case(network, dtype)
    assert_equal(*(bound(name, net, box, spec, **options) for options in ({}, {"by": by})), dtype)


@pytest.mark.lirpa
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("network", sorted(set(SHAPES) - {"wide-resnet-10-10"}))
@pytest.mark.parametrize("name", ["ibp", "crown-ibp"])
def test_ours_is_auto_lirpas(name, network, dtype):
    compare(name, network, dtype, "auto_LiRPA")


@pytest.mark.lirpa
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("network", FULL)
def test_crown_is_auto_lirpas(network, dtype):
    compare("crown", network, dtype, "auto_LiRPA")


@pytest.mark.lirpa
@pytest.mark.slow
@pytest.mark.parametrize("network", sorted({*SHAPES} - {*FULL, "wide-resnet-10-10", "wk-resnet"}))
def test_crown_is_auto_lirpas_on_the_other_networks(network):
    compare("crown", network, torch.float64, "auto_LiRPA")


@pytest.mark.lirpa
@pytest.mark.parametrize("network", [pytest.param(n, marks=[pytest.mark.slow] * (n == "wk-small")) for n in FULL])
def test_alpha_crown_is_no_looser_than_auto_lirpas_at_as_many_steps(network):
    if tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 14):
        with pytest.raises(ConfigError, match="turns auto_LiRPA's alpha-CROWN into CROWN"):
            bound(
                "alpha-crown", build("mlp-5x1", (1, 2, 2), 3), Box.around(torch.rand(1, 1, 2, 2), 0.1), by="auto_LiRPA"
            )
        return
    net, box, spec = case(network, torch.float32, eps=0.05)
    ours, theirs = (bound("alpha-crown", net, box, spec, **options) for options in ({}, {"by": "auto_LiRPA"}))
    assert ours.lower.mean() >= theirs.lower.mean() - 1e-4 * theirs.lower.abs().mean()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("network", FULL)
def test_the_dual_is_convex_adversarials(network, dtype):
    compare("dual", network, dtype, "convex_adversarial")


@pytest.mark.parametrize("few", [0.0, 1.1], ids=["every unit's", "unstable units' alone"])
@pytest.mark.parametrize("network", FULL)
def test_the_duals_gradient_is_convex_adversarials(network, few, monkeypatch):
    monkeypatch.setattr("etb_plugin.graph.ends._FEW", few)
    net, box, spec = case(network, torch.float64, eps=0.02)
    weights = [*net.requires_grad_(True).parameters()]
    ours, theirs = (
        torch.autograd.grad(bound("dual", net, box, spec, **options).lower.logsumexp(1).sum(), weights)
        for options in ({}, {"by": "convex_adversarial"})
    )
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6 * float(other.abs().max()))


def test_the_duals_gradient_needs_no_row_of_a_stable_unit(monkeypatch):
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU6(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3, groups=2), nn.LeakyReLU(0.1),
        nn.Flatten(), nn.Linear(16, 8), nn.Hardtanh(-0.3, 0.3), nn.Linear(8, 3),
    ).double()  # fmt: skip
    box = Box.around(torch.rand(3, 1, 8, 8).double(), 0.02)
    found = []
    for few in (0.0, 1.1):
        monkeypatch.setattr("etb_plugin.graph.ends._FEW", few)
        found.append(torch.autograd.grad(bound("dual", network, box).width.square().sum(), [*network.parameters()]))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_the_dual_is_convex_adversarials_on_residual_networks():
    compare("dual", "wk-resnet", torch.float64, "convex_adversarial")


def test_the_dual_takes_what_convex_adversarial_refuses():
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(4, 4, 3, groups=2),
        nn.LeakyReLU(0.1), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4, 3),
    ).double().eval()  # fmt: skip
    box = Box.around(torch.rand(2, 1, 8, 8).double(), 0.03)
    with pytest.raises(UnsupportedLayer, match=r"layer '3' \(AvgPool2d\)"):
        bound("dual", network, box, by="convex_adversarial")
    got, seen = bound("dual", network, box), bound("sampled", network, box)
    assert (got.lower <= seen.lower).all()
    assert (got.upper >= seen.upper).all()


@pytest.mark.lirpa
@pytest.mark.parametrize("name", ["ibp", "crown-ibp", "crown"])
def test_l2_balls_are_auto_lirpas(name):
    """By hand, since `by=auto_LiRPA` takes boxes. On l1 balls it stops with a RuntimeError; the fuzz has them."""
    from auto_LiRPA import BoundedModule, BoundedTensor, PerturbationLpNorm

    network = build("mlp-12x3", (1, 4, 4), 5, seed=0).double()
    x = torch.rand(3, 1, 4, 4).double()
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        graph = BoundedModule(network, x)
        region = (BoundedTensor(x, PerturbationLpNorm(norm=2, eps=0.3)),)
        lower, upper = graph.compute_bounds(x=region, method=name.upper())
    finally:
        torch.set_default_dtype(default)
    got = bound(name, network, Ball(x, 0.3, 2))
    torch.testing.assert_close(got.lower, lower, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(got.upper, upper, rtol=1e-9, atol=1e-9)


def unsound_in_patches(seed, **kind):
    """Return the network of docs/soundness.md."""
    torch.manual_seed(seed)
    layer, norm = nn.Conv2d(2, 4, 3, **kind), nn.BatchNorm2d(4)
    for values, low, high in ((norm.running_mean, -1, 1), (norm.running_var, 0.2, 3), (norm.weight, -1.5, 1.5)):
        nn.init.uniform_(values, low, high)
    size = 3 if "groups" in kind else 1
    return nn.Sequential(
        layer, norm, nn.ReLU(), nn.Conv2d(4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(3 * size * size, 3)
    ).double().eval().requires_grad_(False)  # fmt: skip


@pytest.mark.lirpa
@pytest.mark.parametrize("kind", [{"groups": 2}, {"dilation": 2}], ids=str)
def test_auto_lirpas_patches_are_outside_on_groups_and_dilation_and_its_matrices_and_ours_are_not(kind, monkeypatch):
    """Where auto_LiRPA is right one day, this test says so: then `_unsound_in_patches` can go."""
    from etb_plugin.lirpa import network as lirpa

    def outside(**options):
        worst = []
        for seed in range(40):
            network = unsound_in_patches(seed, **kind)
            box = Box.around(torch.rand(1, 2, 6, 6, generator=torch.Generator().manual_seed(seed)).double(), 0.01)
            got, seen = bound("crown", network, box, **options), bound("sampled", network, box, samples=200)
            worst.append(float(torch.maximum(got.lower - seen.lower, seen.upper - got.upper).max()))
        return max(worst)

    assert outside() <= 1e-9
    assert outside(by="auto_LiRPA") <= 1e-9
    monkeypatch.setattr(lirpa, "_unsound_in_patches", lambda network: False)
    assert outside(by="auto_LiRPA") > 1e-4


class Curved(nn.Module):
    """A function of two values that depend on the input, between linear layers."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.one, self.two, self.last = nn.Linear(4, 5), nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.last(self.function(self.one(x), self.two(x)))


CURVED = {
    "product": lambda a, b: a * b,
    "its own square": lambda a, b: a * a + b,
    "gate": lambda a, b: a * torch.sigmoid(b),
    "exp": lambda a, b: torch.exp(a) - torch.exp(-b),
    "log": lambda a, b: torch.log(1 + a * a) + b,
    "sqrt": lambda a, b: torch.sqrt(1 + torch.exp(a)) * b,
    "broadcast": lambda a, b: a.sum(1, keepdim=True) * b,
}


@pytest.mark.lirpa
@pytest.mark.parametrize("eps", [0.02, 0.4])
@pytest.mark.parametrize("name", CURVED)
def test_products_and_convex_functions_are_auto_lirpas_or_tighter(name, eps):
    """Its planes and tangents are others: the means of the widths say which are the better ones."""
    network = Curved(CURVED[name]).double().eval().requires_grad_(False)
    box = Box.around(torch.rand(4, 4).double(), eps, clip=None)
    intervals = [bound("ibp", network, box, **options) for options in ({}, {"by": "auto_LiRPA"})]
    torch.testing.assert_close(intervals[0].lower, intervals[1].lower)
    torch.testing.assert_close(intervals[0].upper, intervals[1].upper)
    ours, theirs = (bound("crown", network, box, **options).width.mean() for options in ({}, {"by": "auto_LiRPA"}))
    assert ours <= theirs * (1 + 1e-9)


@pytest.mark.lirpa
def test_auto_lirpas_interval_of_a_softmax_is_wider():
    network = Curved(lambda a, b: (3 * a).softmax(1) * b).double().eval().requires_grad_(False)
    box = Box.around(torch.rand(4, 4).double(), 0.1, clip=None)
    ours, theirs = (bound("ibp", network, box, **options) for options in ({}, {"by": "auto_LiRPA"}))
    assert bool((ours.lower >= theirs.lower - 1e-9).all())
    assert bool((ours.upper <= theirs.upper + 1e-9).all())
    assert ours.width.mean() < 0.8 * theirs.width.mean()


@pytest.mark.lirpa
def test_auto_lirpas_interval_of_a_quotient_is_outside_and_not_taken():
    """Where auto_LiRPA is right one day, this test says so: then its refusal can go."""
    from etb_plugin.lirpa import network as lirpa

    network = Curved(lambda a, b: a / (1 + torch.relu(b))).double().eval().requires_grad_(False)
    with torch.no_grad():  # x_0 / (1 + x_1)
        for layer, place in ((network.one, 0), (network.two, 1)):
            layer.weight.zero_()
            layer.weight[0, place] = 1
            layer.bias.zero_()
        network.last.weight.fill_(1)
        network.last.bias.zero_()
    box = Box(torch.tensor([[-1.0, 0, 0, 0]]).double(), torch.tensor([[1.0, 3, 0, 0]]).double())
    ours = bound("ibp", network, box)
    assert (ours.lower[0, 0], ours.upper[0, 0]) == (-1, 1)  # reached at x_1 = 0
    with pytest.raises(UnsupportedLayer, match="interval of a quotient of values is not sound"):
        bound("ibp", network, box, by="auto_LiRPA")
    converted = lirpa._convert(network, torch.zeros(2, 4, dtype=torch.float64), "matrix", True)
    region = lirpa.PerturbationLpNorm(norm=float("inf"), x_L=box.lower, x_U=box.upper)
    with lirpa._default_dtype(torch.float64):
        lower, _ = converted.compute_bounds(x=(lirpa.BoundedTensor(box.center, region),), method="IBP")
    assert lower[0, 0] > -0.9
