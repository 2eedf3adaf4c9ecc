"""The expected bound against a dense reference, the paper's own example, and the laws that it keeps."""

import numpy as np
import pytest
import torch
from torch import nn

from etb_plugin import Box, bound, margin_spec
from etb_plugin.bounds import prepare
from etb_plugin.errors import ConfigError, UnsupportedLayer
from etb_plugin.networks import build
from tests.bounds import oracle
from tests.conftest import Branching, fully_connected

CONVOLUTIONAL = nn.Sequential(
    nn.Conv2d(2, 4, 3, stride=2, padding=1),
    nn.ReLU(),
    nn.Conv2d(4, 5, 3),
    nn.ReLU(),
    nn.Flatten(),
    nn.Linear(20, 4),
)
NETWORKS = [
    (fully_connected(6, 9, 4), (6,)),
    (fully_connected(5, 12, 7, 10, 4), (5,)),
    (CONVOLUTIONAL, (2, 8, 8)),
]


@pytest.mark.parametrize("masks", ["ibp", "blockwise"])
@pytest.mark.parametrize(("network", "shape"), NETWORKS)
@pytest.mark.parametrize("clip", [None, (0.0, 1.0)])
def test_equals_the_dense_float64_reference(network, shape, masks, clip):
    network = network.double()
    images, labels = torch.rand(3, *shape).double(), torch.tensor([0, 1, 3])
    box = Box.around(images, 0.2, clip=clip)
    layers = oracle.dense_layers(network, shape)
    spec = margin_spec(labels, 4, torch.float64)
    for given in (None, spec):
        got = bound("expected", network, box, given, masks=masks)
        for i in range(3):
            lower, upper = (end[i].flatten().numpy() for end in (box.lower, box.upper))
            rows = None if given is None else given[i].numpy()
            want = oracle.expected(layers, lower, upper, masks, rows)
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
    for masks in ("ibp", "blockwise"):
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


@pytest.mark.parametrize("masks", ["ibp", "blockwise"])
def test_gradient_is_the_finite_differences(masks):
    network, box = fully_connected(4, 6, 5, 3).double(), Box.around(torch.rand(2, 4).double(), 0.1)
    prepared = prepare("expected", network, (4,), masks=masks)
    names = [name for name, _ in network.named_parameters()]

    def interval(*values):
        with torch.no_grad():
            for name, value in zip(names, values, strict=True):
                network.get_parameter(name).copy_(value)
        return sum(end.square().sum() for end in (prepared(box).lower, prepared(box).upper))

    start = [p.detach().clone() for p in network.parameters()]
    got = torch.autograd.grad(interval(*start), list(network.parameters()))
    for k, gradient in enumerate(got):
        direction = torch.randn_like(gradient)
        ends = []
        for sign in (1, -1):
            moved = [v.clone() for v in start]
            moved[k] += sign * 1e-6 * direction
            ends.append(interval(*moved).item())
        assert (ends[0] - ends[1]) / 2e-6 == pytest.approx((gradient * direction).sum().item(), rel=1e-5, abs=1e-7)


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
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.Sigmoid(), nn.Linear(4, 2))
    with pytest.raises(UnsupportedLayer, match=r"layer '2' \(Sigmoid\) is neither affine nor piecewise linear"):
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


def test_a_product_of_two_values_is_refused():
    class Square(nn.Module):
        def forward(self, x):
            return x * x

    with pytest.raises(UnsupportedLayer, match="multiplies two values"):
        bound("expected", Square(), Box.around(torch.rand(1, 4), 0.1))


def test_a_network_in_training_mode_with_batch_norm_is_refused():
    for name in ("expected", "ibp"):
        with pytest.raises(ConfigError, match=r"layer 'norm' \(BatchNorm2d\) is in training mode"):
            bound(name, Branching().train(), Box.around(torch.rand(1, 1, 8, 8), 0.1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"masks": "blockwize"}, "unknown masks 'blockwize'; did you mean blockwise"),
        ({"center": "box"}, "unknown center 'box'"),
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
