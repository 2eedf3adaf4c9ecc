"""No step reads a value back from the device: shown without one, by tensors that have shapes and no values."""

import contextlib
import copy

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from etb_plugin import Box, bound
from etb_plugin.attacks import Pgd, pgd
from etb_plugin.networks import Pair
from etb_plugin.objectives import Point, get_method, methods
from etb_plugin.shapes import fixed_shapes
from tests.conftest import Branching, fully_connected

POINTS = [Point(0.0, 1.0), Point(0.1, 0.5), Point(0.1, 0.5, 0.5), Point(0.1, 0.0, 1.0)]


def network_for(name):
    if "taps" in name:  # one that two blocks can be made of
        return fully_connected(36, 8, 7, 5).train()
    return (Pair(Branching(), Branching()) if name == "robustra" else Branching()).train()


def step(method, network, x, labels, point, classes):
    loss = method.prepare(network, tuple(x.shape[1:]), classes)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, fixed_shapes():
        images, wanted = mode.from_tensor(x), mode.from_tensor(labels)
        scalars = point.on(images)
        losses = loss(images, wanted, scalars, torch.Generator().manual_seed(0))
        torch.autograd.grad(losses.total, [p for p in network.parameters() if p.requires_grad], allow_unused=True)
    return losses


@pytest.mark.parametrize(
    "point", [pytest.param(p, marks=[pytest.mark.slow] * (i % 2), id=str(p)) for i, p in enumerate(POINTS)]
)
@pytest.mark.parametrize("name", [*sorted(methods()), "expected fused"])
def test_a_step_of_every_method_runs_without_values(name, point):
    method = get_method(name.split()[0])
    if name.endswith("fused"):
        method = method.changed({"rows": "fused"})
    losses = step(method, network_for(name), torch.rand(3, 1, 6, 6), torch.tensor([0, 3, 1]), point, 5)
    assert losses.total.shape == ()


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.token, self.last = nn.Parameter(torch.randn(1, 1, 12)), nn.Linear(12, 5)
        self.layer = nn.TransformerEncoderLayer(12, 2, 8, dropout=0.0, batch_first=True)

    def forward(self, x):
        x = torch.cat([self.token.expand(len(x), -1, -1), x.view(-1, 3, 12)], 1)
        return self.last(self.layer(x)[:, 0])


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("crown", "dual")]


@pytest.mark.parametrize("name", ["pgd", "ibp", "crown-ibp", "expected", "cc-expected", "sabr", *SLOW])
def test_a_step_on_a_transformer_runs_without_values(name):
    losses = step(get_method(name), Transformer(), torch.rand(3, 1, 6, 6), torch.tensor([0, 3, 1]), POINTS[2], 5)
    assert losses.total.shape == ()


def test_the_attack_of_an_evaluation_runs_without_values():
    network, x = Branching().eval(), torch.rand(3, 1, 6, 6)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, fixed_shapes():
        box, labels = Box.around(mode.from_tensor(x), 0.1), mode.from_tensor(torch.tensor([0, 3, 1]))
        points, broken = pgd(network, box, labels, Pgd(5, 2), torch.Generator().manual_seed(0))
    assert (points.shape, broken.shape) == (x.shape, (3,))


def test_an_attack_that_drops_nothing_breaks_what_it_says(monkeypatch):
    network = fully_connected(6, 16, 3)
    x = torch.rand(200, 6)
    labels, box = network(x).argmax(1), Box.around(x, 0.15)
    found = {}
    for name, context in (("all", fixed_shapes()), ("dropping", contextlib.nullcontext())):
        with context:
            points, broken = pgd(network, box, labels, Pgd(20), torch.Generator().manual_seed(0))
        assert torch.equal(broken, network(points).argmax(1) != labels)
        assert ((box.lower <= points) & (points <= box.upper)).all()
        found[name] = int(broken.sum())
    assert abs(found["all"] - found["dropping"]) <= 4
    assert 20 < found["all"] < 180


def test_bounds_of_fixed_shapes_are_those_of_unstable_units_alone():
    network, box = fully_connected(4, 12, 12, 3), Box.around(torch.rand(3, 4), 0.3)
    alone = bound("crown", network, box)
    with fixed_shapes():
        every = bound("crown", network, box)
    torch.testing.assert_close(every.lower, alone.lower)
    torch.testing.assert_close(every.upper, alone.upper)


@pytest.mark.parametrize("name", sorted(methods()))
def test_scalars_on_the_device_give_the_losses_of_numbers(name):
    network, x, labels = network_for(name), torch.rand(3, 1, 6, 6), torch.tensor([0, 3, 1])
    loss = get_method(name).prepare(network, (1, 6, 6), 5)
    before = copy.deepcopy(network.state_dict())
    for point in POINTS:
        totals = []
        for scalars in (point, point.on(x)):
            network.load_state_dict(before)
            torch.manual_seed(0)  # random projections are drawn from torch's own generator
            totals.append(loss(x, labels, scalars, torch.Generator().manual_seed(0)).total)
        torch.testing.assert_close(*totals, rtol=1e-6, atol=0)
