"""A softmax at the end is left out where only the order of the outputs matters."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import etb_plugin
from etb_plugin.networks import before_softmax
from etb_plugin.objectives import Point, get_method, methods
from tests.conftest import fully_connected


class _Ending(nn.Module):
    """The same three layers with some end behind them."""

    def __init__(self, end):
        super().__init__()
        self.layers, self.end = fully_connected(6, 16, 3), end

    def forward(self, x):
        return self.end(self.layers(x))


def _looked_at(x):
    found = x.softmax(1)
    found.sum()
    return found


ENDS = {
    "layer": nn.Softmax(1),
    "its last dimension": nn.Softmax(-1),
    "logarithm": nn.LogSoftmax(dim=1),
    "nested": nn.Sequential(nn.Identity(), nn.Sequential(nn.LogSoftmax(1))),
    "function": lambda x: F.softmax(x, dim=1),
    "function, by place": lambda x: F.log_softmax(x, -1),
    "of torch": lambda x: torch.log_softmax(x, 1),
    "method": lambda x: x.log_softmax(1),
    "method by key": lambda x: x.softmax(dim=-1),
    "method that is looked at besides": _looked_at,
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_what_is_left_are_the_logits_themselves(end):
    network = _Ending(end).eval()
    x = torch.randn(5, 6)
    left = before_softmax(network, (6,))
    assert torch.equal(left(x), network.layers(x))
    assert {id(p) for p in left.parameters()} == {id(p) for p in network.parameters()}


@pytest.mark.parametrize(
    "end",
    [nn.Identity(), nn.Softmax(0), nn.Softplus(), lambda x: x.softmax(1) * 2, lambda x: x if x.sum() > 0 else -x],
    ids=["none", "over the batch", "another function", "not the last", "cannot be traced"],
)
def test_every_other_network_is_returned_as_it_is(end):
    network = _Ending(end).eval()
    assert before_softmax(network, (6,)) is network


def test_a_network_with_a_softmax_is_certified_and_verified_as_without():
    torch.manual_seed(0)
    bare = fully_connected(6, 16, 3)
    images = torch.rand(40, 6)
    labels = bare(images).argmax(1)
    ended = nn.Sequential(bare, nn.LogSoftmax(1))
    want, got = (
        etb_plugin.evaluate(network, (images, labels), eps=0.05, certify="ibp,crown", attack="autoattack")
        for network in (bare, ended)
    )
    assert got == want
    assert 0 < want.certified_accuracy["crown"] < 1
    verdicts = [
        [one.verdict for one in etb_plugin.verify(network, images, labels, eps=0.05)] for network in (bare, ended)
    ]
    assert verdicts[0] == verdicts[1]
    assert len(set(verdicts[0])) == 2


def test_training_by_a_bound_says_what_to_do_about_a_softmax():
    with pytest.raises(etb_plugin.errors.UnsupportedLayer, match="leave it out: methods take logits"):
        etb_plugin.objective("ibp", _Ending(nn.Softmax(1)), (6,), 3, eps=0.1)


class _Dropping(nn.Module):
    """The same layers, some outputs of the first dropped in training, with or without a logarithm of their softmax."""

    def __init__(self, ended):
        super().__init__()
        self.layers, self.ended = fully_connected(6, 16, 3), ended

    def forward(self, x):
        x = F.dropout(self.layers[:3](x), 0.3, self.training)
        return F.log_softmax(self.layers[3:](x), 1) if self.ended else self.layers[3:](x)


def _layers(ended):
    return nn.Sequential(*fully_connected(6, 16, 3), *([nn.LogSoftmax(1)] if ended else []))


@pytest.mark.parametrize("make", [_Dropping, _layers])
@pytest.mark.parametrize("name", sorted(name for name, method in methods().items() if not method.pair))
def test_a_logarithm_of_a_softmax_trains_as_the_logits_do(name, make):
    if name in ("taps", "staps") and make is _Dropping:
        pytest.skip("taps splits an nn.Sequential")
    x, labels = torch.rand(8, 6, dtype=torch.float64), torch.arange(8) % 3
    found = []
    for ended in (False, True):
        torch.manual_seed(0)
        network = make(ended).double()
        loss = get_method(name).prepare(network, (6,), 3)
        total = loss(x, labels, Point(0.1, 0.5), torch.Generator().manual_seed(0)).total
        total.backward()
        found.append([total.detach(), *(p.grad for p in network.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)
