"""A method's loss in a loop of one's own: the points of its schedule, what it gives, and what it refuses."""

import pytest
import torch
from torch import nn

import etb_plugin
from etb_plugin.data import load, pixels
from etb_plugin.errors import ConfigError, UnsupportedLayer
from etb_plugin.objectives import get_method
from tests.conftest import Bessel, fully_connected


class Own(nn.Module):
    """A network as users write them: no Sequential, batch norm, a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(64, 32), nn.BatchNorm1d(32), nn.Linear(32, 10)

    def forward(self, x):
        hidden = torch.relu(self.norm(self.first(x.flatten(1))))
        return self.last(hidden + torch.relu(hidden - 0.1))


@pytest.mark.parametrize("name", ["ibp", "mtl-expected", "sabr"])
def test_a_plain_loop_trains_what_the_method_says(name):
    torch.manual_seed(0)
    digits, network = load("digits"), Own()
    images, labels = pixels(digits.train.images), digits.train.labels
    epochs, size = 12, 100
    batches = -(-len(labels) // size)
    loss = etb_plugin.objective(name, network, (1, 8, 8), 10, eps=0.03, epochs=epochs, batches=batches)
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    radii = []
    for _ in range(epochs):
        for chosen in torch.randperm(len(labels)).split(size):
            radii.append(loss.eps)
            optimizer.zero_grad()
            loss(images[chosen], labels[chosen]).backward()
            optimizer.step()
    assert loss.step == epochs * batches == len(radii)
    assert radii[0] == 0
    assert radii[-1] == pytest.approx(0.03)
    assert radii == sorted(radii)
    assert loss.rate < get_method(name).recipe.learning_rate
    network.eval()
    test = pixels(digits.test.images)
    assert (network(test).argmax(1) == digits.test.labels).double().mean() > 0.8
    margins = etb_plugin.bound(
        "crown", network, etb_plugin.Box.around(test, 0.03), etb_plugin.margin_spec(digits.test.labels, 10)
    )
    assert (margins.lower > 0).all(1).double().mean() > 0.4


def test_it_is_the_methods_loss_and_resumes():
    network, x, labels = fully_connected(6, 8, 3), torch.rand(5, 6), torch.tensor([0, 1, 2, 0, 1])
    make = lambda: etb_plugin.objective(  # noqa: E731
        "mtl-ibp", network, (6,), 3, eps=0.1, epochs=2, batches=3, coefficient=0.3, regulariser=0.0, l1=0.0
    )
    whole, first = make(), make()
    values = [float(whole(x, labels).detach()) for _ in range(8)]
    assert [float(first(x, labels).detach()) for _ in range(2)] == values[:2]
    resumed = make()
    resumed.load_state_dict(first.state_dict())
    assert [float(resumed(x, labels).detach()) for _ in range(6)] == values[2:]
    method = get_method("mtl-ibp").changed({"coefficient": 0.3, "regulariser": 0.0, "l1": 0.0})
    generator = torch.Generator().manual_seed(0)
    state = whole.schedule
    want = [
        float(method.prepare(network, (6,), 3)(x, labels, state.point(min(i, 5)), generator).total.detach())
        for i in range(8)
    ]
    assert want == values
    assert float(state.point(5).eps) == pytest.approx(0.1)


def test_what_it_cannot_do_is_refused_in_a_line():
    network, numbers = fully_connected(6, 8, 3), {"eps": 0.1, "epochs": 2, "batches": 3}
    for call, message in (
        (lambda: etb_plugin.objective("ipb", network, (6,), 3, **numbers), "did you mean ibp"),
        (lambda: etb_plugin.objective("ibp", network, (6,), 3, **numbers, kapa=1), "did you mean kappa"),
        (lambda: etb_plugin.objective("ibp", network, (6,), 5, **numbers), "classes is 5; the network gives 3"),
        (lambda: etb_plugin.objective("ibp", network, (6,), 3, eps=-1, epochs=1, batches=1), "from 0 to 1; got -1"),
        (lambda: etb_plugin.objective("robustra", network, (6,), 3, **numbers), "trains a pair"),
    ):
        with pytest.raises(ConfigError, match=message) as refused:
            call()
        assert str(refused.value).count("\n") <= 1
    with pytest.raises(UnsupportedLayer, match="layer 'special_i0'"):
        etb_plugin.objective("ibp", nn.Sequential(nn.Flatten(), nn.Linear(6, 4), Bessel(), nn.Linear(4, 3)),
                             (6,), 3, **numbers)  # fmt: skip
    x, labels = torch.rand(5, 6), torch.tensor([0, 1, 2, 0, 1])
    for images, wanted, message in (
        (x - 1, labels, r"lie in \[0, 1\]"),
        (x, labels + 1, "labels run from 0 to 2; got 1 to 3"),
        (x[:, :4], labels, r"images \[batch, 6\]"),
        (x, labels[:2], r"labels \[batch\]"),
    ):
        with pytest.raises(ConfigError, match=message):
            etb_plugin.objective("ibp", network.train(), (6,), 3, **numbers)(images, wanted)
    with pytest.raises(ConfigError, match=r"call network.train\(\)"):
        etb_plugin.objective("ibp", network.eval(), (6,), 3, **numbers)(x, labels)


def test_a_call_names_its_own_radius_and_without_a_schedule_the_last_point_holds():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    images, labels = torch.rand(5, 6), torch.tensor([0, 1, 2, 0, 1])
    make = lambda **how: etb_plugin.objective("ibp", network, (6,), 3, **how)  # noqa: E731
    bare = make()
    want = make(eps=0.07, epochs=2, batches=3)
    for _ in range(6):
        want(images, labels)
    assert torch.equal(bare(images, labels, eps=0.07), want(images, labels))
    assert bare.rate == get_method("ibp").recipe.learning_rate
    assert torch.equal(make(eps=0.02)(images, labels, eps=0.07), want(images, labels))
    assert torch.equal(make(eps=0.07)(images, labels), want(images, labels))
    for call, message in (
        (lambda: bare(images, labels), "which radius"),
        (lambda: bare(images, labels, eps=8), "from 0 to 1; got 8"),
        (lambda: make(eps=0.1, epochs=3), "needs both"),
    ):
        with pytest.raises(ConfigError, match=message):
            call()


def test_under_autocast_and_around_a_wrapped_network_the_loss_is_the_same():
    torch.manual_seed(0)
    network = Own()
    images, labels = torch.rand(5, 64), torch.tensor([0, 1, 2, 0, 1])
    make = lambda network: etb_plugin.objective("mtl-expected", network, (64,), 10, eps=0.05)  # noqa: E731
    want = make(network)(images, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(make(network)(images, labels), want)
    assert torch.equal(make(network)(images, labels.int()), want)
    for wrapped in (nn.DataParallel(network), torch.compile(network, backend="eager")):
        torch.testing.assert_close(make(wrapped)(images, labels), want)


def test_every_batch_is_looked_at_as_far_as_that_waits_for_nothing():
    loss = etb_plugin.objective("ibp", Own(), (64,), 10, eps=0.05)
    images, labels = torch.rand(5, 64), torch.tensor([0, 1, 2, 0, 1])
    loss(images, labels)
    for batch, message in (
        ((images[:, :60], labels), r"images \[batch, 64\]"),
        ((images[:0], labels[:0]), r"got \[0, 64\]"),
        ((images.double(), labels), r"images are torch\.float64"),
        ((images, labels.float()), "labels are integers"),
    ):
        with pytest.raises(ConfigError, match=message):
            loss(*batch)
