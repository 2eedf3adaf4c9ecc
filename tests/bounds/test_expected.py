"""The expected bound against a dense reference, the paper's own example, and the laws that it keeps."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from etb_plugin import Ball, Box, bound, margin_spec
from etb_plugin.bounds import masks as kinds
from etb_plugin.bounds import prepare
from etb_plugin.bounds.expected import worst_corner
from etb_plugin.errors import ConfigError, UnsupportedLayer
from etb_plugin.graph.tracing import trace
from etb_plugin.networks import build
from tests.bounds import oracle
from tests.conftest import Bessel, Branching, fully_connected

CONVOLUTIONAL = nn.Sequential(
    nn.Conv2d(2, 4, 3, stride=2, padding=1),
    nn.ReLU(),
    nn.Conv2d(4, 5, 3),
    nn.ReLU(),
    nn.Flatten(),
    nn.Linear(20, 4),
)
NETWORKS = {
    "two layers": (fully_connected(6, 9, 4), (6,)),
    "four layers": (fully_connected(5, 12, 7, 10, 4), (5,)),
    "convolutional": (CONVOLUTIONAL, (2, 8, 8)),
}
KINDS = ["ibp", "blockwise", "sketch", "center", "slope"]


class Residual(nn.Module):
    """Two hidden layers, the second of which also sees the input through a skip, and a skip into the logits."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 3, 3, stride=2, padding=1)
        self.skip, self.last, self.short = nn.Conv2d(1, 3, 2, stride=2), nn.Linear(12, 4), nn.Linear(32, 4)

    def forward(self, x):
        h = torch.relu(self.first(x))
        return self.last(torch.relu(self.second(h) + self.skip(x)).flatten(1)) + self.short(h.flatten(1))


def dense_residual(network):
    (A1, b1, shape), (S, s, _) = oracle.dense(network.first, (1, 4, 4)), oracle.dense(network.skip, (1, 4, 4))
    A2, b2, _ = oracle.dense(network.second, shape)
    (A3, b3, _), (T, t, _) = oracle.dense(network.last, (12,)), oracle.dense(network.short, (32,))
    return [({0: A1}, b1), ({1: A2, 0: S}, b2 + s), ({2: A3, 1: T}, b3 + t)]


@pytest.mark.parametrize("masks", KINDS)
@pytest.mark.parametrize("name", [*NETWORKS, "residual"])
@pytest.mark.parametrize("clip", [None, (0.0, 1.0)])
def test_equals_the_dense_float64_reference(name, masks, clip):
    network, shape = (Residual(), (1, 4, 4)) if name == "residual" else NETWORKS[name]
    network = network.double()
    images, labels = torch.rand(3, *shape).double(), torch.tensor([0, 1, 3])
    box = Box.around(images, 0.2, clip=clip)
    layers = dense_residual(network) if name == "residual" else oracle.dense_layers(network, shape)
    uniform = torch.rand((1, 50, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cauchy = torch.tan(math.pi * (uniform - 0.5)).flatten(2)[0].T
    spec = margin_spec(labels, 4, torch.float64)
    for given in (None, spec):
        got = bound("expected", network, box, given, masks=masks)
        for i in range(3):
            lower, upper = (end[i].flatten().numpy() for end in (box.lower, box.upper))
            rows = None if given is None else given[i].numpy()
            want = oracle.expected(layers, lower, upper, masks, rows, (upper - lower)[:, None] / 2 * cauchy.numpy())
            np.testing.assert_allclose(got.lower[i].detach(), want[0], atol=1e-9, rtol=0)
            np.testing.assert_allclose(got.upper[i].detach(), want[1], atol=1e-9, rtol=0)


@pytest.mark.parametrize("masks", ["ibp", "blockwise"])
@pytest.mark.parametrize("n", [1, 7])
def test_gives_the_papers_failure_example(masks, n):
    """Appendix E: [-10 n, 19990 n] where IBP gives [-10 n, 0]."""
    network = fully_connected(n, n, 1).double()
    with torch.no_grad():
        network[1].weight.copy_(1000 * torch.eye(n))
        network[1].bias.fill_(-999)
        network[3].weight.fill_(-10)
        network[3].bias.zero_()
    box = Box(-torch.ones(1, n).double(), torch.ones(1, n).double())
    expected, ibp = bound("expected", network, box, masks=masks), bound("ibp", network, box)
    assert (expected.lower.item(), expected.upper.item()) == (-10 * n, 19990 * n)
    assert (ibp.lower.item(), ibp.upper.item()) == pytest.approx((-10 * n, 0))
    assert not expected.sound


def test_both_masks_agree_on_two_layers_and_differ_on_four():
    for widths, equal in (((6, 30, 3), True), ((6, 30, 30, 30, 3), False)):
        network = fully_connected(*widths).double()
        box = Box.around(torch.rand(4, 6).double(), 0.2)
        ibp, blockwise = (bound("expected", network, box, masks=m) for m in ("ibp", "blockwise"))
        assert torch.allclose(ibp.lower, blockwise.lower) == equal


def test_a_box_of_radius_zero_gives_the_logits():
    network = Branching().eval()
    images = torch.rand(3, 1, 8, 8)
    for masks in KINDS:
        got = bound("expected", network, Box.around(images, 0.0), masks=masks)
        torch.testing.assert_close(got.lower, network(images))
        torch.testing.assert_close(got.upper, network(images))


def test_the_center_can_be_the_networks_own_output():
    network, images = fully_connected(6, 30, 30, 3), torch.rand(4, 6)
    box = Box.around(images, 0.3, clip=None)
    masked, own = (bound("expected", network, box, center=c) for c in ("masked", "network"))
    torch.testing.assert_close((own.lower + own.upper) / 2, network(box.center))
    torch.testing.assert_close(own.width, masked.width)
    assert not torch.allclose(own.lower, masked.lower)


@pytest.mark.parametrize("options", [*({"masks": m} for m in KINDS), {"center": "network"}, {"rows": "top-1"}])
@pytest.mark.parametrize("region", ["box", "l2", "l1"])
def test_the_gradient_is_that_of_the_bound(options, region):
    """With respect to every weight, that of a PReLU included, and to the centre."""
    if (options.get("masks"), region) == ("sketch", "l1"):
        return  # refused: see below
    network = nn.Sequential(nn.Linear(4, 6), nn.PReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    bounded, spec = prepare("expected", network, (4,), **options), margin_spec(torch.tensor([0, 2]), 3, torch.float64)
    names = [name.rpartition(".") for name, _ in network.named_parameters()]
    values = [p.detach().clone().requires_grad_() for p in network.parameters()]
    for owner, _, name in names:
        del network.get_submodule(owner)._parameters[name]

    def ends(center, *weights):
        for (owner, _, name), value in zip(names, weights, strict=True):
            setattr(network.get_submodule(owner), name, value)
        around = {"box": Box(center - 0.1, center + 0.1), "l2": Ball(center, 0.1, 2), "l1": Ball(center, 0.1, 1)}
        interval = bounded(around[region], spec)
        return interval.lower, interval.upper

    center = torch.rand(2, 4).double().requires_grad_()
    assert torch.autograd.gradcheck(ends, (center, *values))


@pytest.mark.parametrize("masks", KINDS)
def test_splitting_the_work_changes_nothing(masks):
    network, box = build("tiny", (1, 8, 8), 10, seed=0), Box.around(torch.rand(5, 1, 8, 8), 0.1)
    spec = margin_spec(torch.tensor([0, 1, 2, 3, 4]), 10)
    whole = bound("expected", network, box, spec, masks=masks)
    for max_rows in (1, 4, 20, 1000):
        parts = bound("expected", network, box, spec, masks=masks, max_rows=max_rows)
        torch.testing.assert_close((parts.lower, parts.upper), (whole.lower, whole.upper), rtol=1e-4, atol=1e-5)


def test_the_lowest_rows_alone_are_bounded_and_the_others_stay_at_their_centre():
    network, box = build("tiny", (1, 8, 8), 10, seed=0), Box.around(torch.rand(5, 1, 8, 8), 0.1)
    spec = margin_spec(torch.tensor([0, 1, 2, 3, 4]), 10)
    whole, some = (bound("expected", network, box, spec, rows=rows) for rows in ("all", "top-3"))
    center = (whole.lower + whole.upper) / 2
    chosen = torch.zeros_like(center, dtype=torch.bool).scatter(1, center.topk(3, largest=False).indices, True)
    torch.testing.assert_close(some.lower, torch.where(chosen, whole.lower, center))
    torch.testing.assert_close(some.upper, torch.where(chosen, whole.upper, center))
    assert torch.equal(bound("expected", network, box, spec, rows="top-9").lower, whole.lower)


@pytest.mark.parametrize("masks", ["center", "ibp"])
@pytest.mark.parametrize("classes", [2, 4])
def test_the_worst_corner_is_that_of_the_affine_network(masks, classes):
    """Held against all corners of small boxes, on which the network with its masks is written out."""
    network, x, labels = fully_connected(5, 16, 16, classes).double(), torch.rand(40, 5).double(), torch.arange(40) % 2
    box = Box.around(x, 0.3, clip=None)
    got = F.cross_entropy(worst_corner(network, torch.Size([5]), masks=masks)(box, labels), labels, reduction="none")
    ends = bound("expected", network, box, margin_spec(labels, classes), masks=masks).lower
    rowwise = F.pad(-ends, (1, 0)).logsumexp(1)
    graph = trace(network, torch.Size([5]))
    points = kinds.MASKS[masks](graph, box, 0, 0)
    pieces = {i: activation.piece(*points[i]) for i, activation in graph.activations.items()}
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0]).double()] * 5)
    losses = torch.stack(
        [F.cross_entropy(kinds.walk(graph, x + 0.3 * sign, pieces)[-1], labels, reduction="none") for sign in signs]
    )
    at_center = F.cross_entropy(kinds.walk(graph, x, pieces)[-1], labels, reduction="none")
    assert (got <= losses.amax(0) + 1e-9).all()
    assert (got >= at_center).all()
    assert (losses.amax(0) <= rowwise + 1e-9).all()
    exact = (got >= losses.amax(0) - 1e-9).double().mean()
    assert exact == 1 if classes == 2 else exact >= 0.8
    if classes == 2:
        torch.testing.assert_close(got, rowwise)


def test_the_scale_multiplies_the_radius():
    network, box = fully_connected(6, 30, 3), Box.around(torch.rand(4, 6), 0.1)
    one, two = (bound("expected", network, box, scale=s) for s in (1.0, 2.5))
    torch.testing.assert_close(two.width, 2.5 * one.width)
    torch.testing.assert_close(two.lower + two.upper, one.lower + one.upper)


@pytest.mark.parametrize("norm", [1, 2])
def test_a_ball_is_bounded_by_the_dual_norm(norm):
    """For an affine network the interval is the true range: reached at one point of the ball, never exceeded."""
    network, ball = (
        nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).double(),
        Ball(torch.rand(5, 3, 2, 2).double(), 0.7, norm),
    )
    got, W = bound("expected", network, ball), network[1].weight
    if norm == 2:
        reach = ball.eps * W / W.norm(dim=1, keepdim=True)
    else:
        reach = ball.eps * nn.functional.one_hot(W.abs().argmax(1), 12) * W.sign()
    assert torch.allclose(reach.norm(norm, dim=1), torch.full((3,), 0.7).double())
    best = torch.stack([network(ball.center.flatten(1) + reach[k])[:, k] for k in range(3)], 1)
    torch.testing.assert_close(got.upper, best)
    directions = torch.randn(200, 1, 12).double()
    points = ball.center.flatten(1) + 0.7 * directions / directions.norm(norm, dim=2, keepdim=True)
    assert (network(points.flatten(0, 1)).view(200, 5, 3) <= got.upper + 1e-12).all()


@pytest.mark.parametrize("norm", [1, 2])
def test_a_balls_masks_come_from_exact_first_layers(norm):
    """masks="ibp" agrees with blockwise on two layers for balls too, batch norm in front of the ReLU included."""
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).eval()
    network[1].running_var.uniform_(0.5, 2.0)
    ball = Ball(torch.rand(3, 1, 6, 6), 0.5, norm)
    ibp, blockwise, center = (bound("expected", network, ball, masks=m) for m in ("ibp", "blockwise", "center"))
    torch.testing.assert_close(ibp.lower, blockwise.lower)
    assert not torch.allclose(ibp.lower, center.lower)


def test_uniform_points_have_the_variance_that_the_slopes_assume():
    center = torch.zeros(1, 5).double()
    cube = 2 * torch.rand(400_000, 5).double() - 1
    gaussian, radius = torch.randn(400_000, 5).double(), torch.rand(400_000, 1).double() ** (1 / 5)
    sphere = gaussian / gaussian.norm(dim=1, keepdim=True) * radius
    exponential = -torch.rand(400_000, 5).double().log()
    diamond = exponential / exponential.sum(1, keepdim=True) * radius * torch.randn(400_000, 5).double().sign()
    regions = (Box(center - 0.3, center + 0.3), Ball(center, 0.3, 2), Ball(center, 0.3, 1))
    for points, region in zip((cube, sphere, diamond), regions, strict=True):
        torch.testing.assert_close(0.09 * points.var(0), region.variance[0], rtol=0.02, atol=0)


def test_sketches_come_as_near_as_a_cauchy_median_can():
    """The median of k sizes of Cauchy variables has a relative error of pi / (2 sqrt k) at first order."""
    network, box = fully_connected(50, 400, 400, 3), Box.around(torch.rand(2, 50), 0.2)
    graph = trace(network, torch.Size([50]))
    first, last = min(graph.activations), max(graph.activations)
    center, exact = kinds.center(graph, box, 1, 0), kinds.blockwise(graph, box, 1, 0)
    for k in (100, 1000):
        sketch = kinds.sketch(graph, box, k, 0)
        error = (sketch[first][0] - exact[first][0]) / (exact[first][0] - center[first][0])
        assert (error.abs() < 1.96 * math.pi / 2 / math.sqrt(k)).double().mean() > 0.85
        assert ((sketch[last][0] >= 0) == (exact[last][0] >= 0)).double().mean() > 0.97


def test_l1_balls_have_no_sketch():
    with pytest.raises(ConfigError, match="masks='sketch' has no projections for l1 balls"):
        bound("expected", fully_connected(4, 5, 2), Ball(torch.rand(1, 4), 0.1, 1), masks="sketch")


@pytest.mark.parametrize("name", ["exact", "lp", "sampled"])
def test_what_takes_boxes_only_refuses_a_ball(name):
    with pytest.raises(ConfigError, match=f"bound '{name}' takes boxes only, no l2 balls"):
        bound(name, fully_connected(4, 5, 2), Ball(torch.rand(1, 4), 0.1, 2))


def test_leaves_the_network_as_it_found_it():
    network = build("tiny", (1, 8, 8), 10, seed=0).eval()
    network[0].weight.requires_grad_(False)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    for name in ("expected", "ibp", "crown-ibp", "crown", "alpha-crown", "dual", "sampled"):
        bound(name, network, Box.around(torch.rand(2, 1, 8, 8), 0.01))
        assert [p.requires_grad for p in network.parameters()] == [False] + [True] * 7, name
        assert all(p.grad is None for p in network.parameters()), name
        assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items()), name
        assert not any(m.training for m in network.modules()), name
        assert torch.get_default_dtype() == torch.float32, name


def test_a_layer_that_it_cannot_take_is_named():
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), Bessel(), nn.Linear(4, 2))
    with pytest.raises(UnsupportedLayer, match=r"layer 'special_i0' \(special_i0\) is neither affine nor a function"):
        bound("expected", network, Box.around(torch.rand(1, 4), 0.1))


def test_dropout_that_is_on_is_refused():
    class Dropping(nn.Module):
        def __init__(self, on):
            super().__init__()
            self.on = on

        def forward(self, x):
            return nn.functional.dropout(x, 0.5, training=self.on)

    box = Box.around(torch.rand(1, 4), 0.1)
    torch.testing.assert_close(bound("expected", Dropping(False), box).lower, box.lower)
    with pytest.raises(UnsupportedLayer, match=r"\(dropout\) is random"):
        bound("expected", Dropping(True), box)


def test_a_square_is_its_tangent_where_the_masks_look():
    class Square(nn.Module):
        def forward(self, x):
            return x * x

    box = Box.around(torch.rand(1, 4), 0.1, clip=None)
    for masks, at in (("center", box.center), ("ibp", box.upper)):
        found = bound("expected", Square(), box, masks=masks)
        middle = 2 * at * box.center - at.square()
        torch.testing.assert_close(found.lower, middle - 0.1 * (2 * at).abs())
        torch.testing.assert_close(found.upper, middle + 0.1 * (2 * at).abs())


def test_a_network_in_training_mode_with_batch_norm_is_refused():
    for name in ("expected", "ibp"):
        with pytest.raises(ConfigError, match=r"layer 'norm' \(BatchNorm2d\) is in training mode"):
            bound(name, Branching().train(), Box.around(torch.rand(1, 1, 8, 8), 0.1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"masks": "blockwize"}, "unknown masks 'blockwize'; did you mean blockwise"),
        ({"center": "box"}, "unknown center 'box'"),
        ({"rows": "top-0"}, "unknown rows 'top-0'; write all, or top-3"),
        ({"rows": "some"}, "unknown rows 'some'"),
        ({"rows": "fused"}, "methods take it; a bound takes all or top-3"),
        ({"rows": "top-2"}, "rows='top-2' picks margins: it needs a spec"),
        ({"masks": "sketch", "projections": 0}, "expected needs projections >= 1, got 0"),
        ({"max_rows": 0}, "expected needs max_rows >= 1, got 0"),
        ({"scale": -1.0}, r"scale is -1\.0"),
        ({"scale": math.nan}, "scale is nan"),
        ({"colour": 1}, "bound 'expected' takes no option 'colour'; its options: masks, center"),
    ],
)
def test_options_that_do_not_exist_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        bound("expected", fully_connected(4, 2), Box.around(torch.rand(1, 4), 0.1), **options)


@pytest.mark.parametrize("name", ["expected", "ibp", "crown", "dual", "sampled"])
def test_a_spec_of_the_wrong_shape_names_both_shapes(name):
    with pytest.raises(ConfigError, match=r"got \[1, 2, 3\] for 2 classes"):
        bound(name, fully_connected(4, 2), Box.around(torch.rand(1, 4), 0.1), torch.zeros(1, 2, 3))
