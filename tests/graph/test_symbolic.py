"""Forwards that ask for sizes in Python: they are recorded as what they do for inputs of that size."""

import pytest
import torch
from torch import nn

from etb_plugin import Box, bound
from etb_plugin.errors import UnsupportedLayer
from etb_plugin.graph.symbolic import symbolic


class Forward(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.call, self.first, self.wide, self.flat = forward, nn.Linear(6, 3), nn.Linear(6, 9), nn.Linear(24, 3)
        self.table = torch.rand(4, 6)

    def forward(self, x):
        return self.call(self, x)


@torch.fx.wrap
def kept_whole(x, weight):
    if x.shape[-1] % 2:
        raise ValueError("odd")
    return torch.cat([x[..., 0::2], x[..., 1::2]], -1) @ weight


def over_steps(n, x):
    _, steps, _ = x.shape
    return torch.stack([n.first(x[:, i]) for i in range(steps)], 1).mean(1)


def from_zeros(n, x):
    state = torch.zeros(x.shape[0], 3)
    for i in range(x.size(1)):
        state = torch.tanh(n.first(x[:, i]) + state)
    return state


def by_branches(n, x):
    assert x.dim() == 3
    torch._assert(x.shape[2] == 6, "six features")
    if x.shape[-1] % 2 == 0 and x.ndim == 3 and x.is_floating_point():
        x = x / float(x.shape[-1]) ** 0.5
    return n.first(x).flatten(1)


def by_a_filled_mask(n, x):
    mask = x.new_zeros((x.shape[1], x.shape[1]))
    for i in range(x.shape[1]):
        mask[i, i + 1 :] = -100.0
    return n.first(torch.softmax(x @ x.transpose(1, 2) + mask, -1) @ x).flatten(1)


def by_starred_sizes(n, x):
    return n.flat(x.reshape(*x.shape[:-2], -1))


def by_iterated_chunks(n, x):
    one, other, last = (torch.relu(part) for part in n.wide(x).chunk(3, -1))
    return (one * other + last).flatten(1)


def with_a_layer_of_a_constant(n, x):
    assert x.shape[1] == 4
    return (n.first(x) + n.first(n.table)).flatten(1)


def by_a_function_kept_whole(n, x):
    return kept_whole(x, n.first.weight.T).flatten(1)


@pytest.mark.parametrize(
    "forward",
    [
        *(over_steps, from_zeros, by_branches, by_a_filled_mask, by_starred_sizes, by_iterated_chunks),
        *(with_a_layer_of_a_constant, by_a_function_kept_whole),
    ],
)
def test_sizes_that_python_asks_for_are_told(forward):
    network = Forward(forward).eval()
    attributes = set(vars(network))
    box = Box.around(torch.rand(2, 4, 6), 0.02)
    points = box.lower + torch.rand(64, *box.lower.shape) * (box.upper - box.lower)
    values = torch.stack([network(x) for x in points])
    for method in ("ibp", "crown"):
        found = bound(method, network, box)
        assert (values >= found.lower - 1e-5).all()
        assert (values <= found.upper + 1e-5).all()
        assert float(found.width.detach().mean()) < 0.5
    assert set(vars(network)) == attributes
    assert torch.fx.symbolic_trace(nn.Sequential(nn.ReLU())) is not None  # nothing of torch.fx is left changed


@pytest.mark.parametrize(
    "condition",
    [
        lambda x: x.sum() > 0,
        lambda x: x.shape[0] > 2,  # true of one of the two batches
        lambda x: x.shape[0] > 1,  # true of both
        lambda x: bool(x.amax() > 0.5),
        lambda x: int(x.sum().item()) > 0,
    ],
)
def test_a_branch_on_values_or_on_the_batch_is_refused(condition):
    network = Forward(lambda n, x: n.flat(x.flatten(1)) if condition(x) else -n.flat(x.flatten(1))).eval()
    with pytest.raises(UnsupportedLayer, match="must not branch on values"):
        bound("ibp", network, Box.around(torch.rand(2, 4, 6), 0.1))


def test_a_forward_that_fails_fails_as_it_does():
    with pytest.raises(ValueError, match="odd"):
        symbolic(Forward(by_a_function_kept_whole).eval(), torch.zeros(2, 4, 5))


def test_constants_that_a_forward_makes_do_not_pile_up():
    network = Forward(lambda n, x: n.flat(x.flatten(1)) + torch.tensor([1.0, 2.0, 3.0])).eval()
    attributes = set(vars(network))
    for _ in range(2):
        bound("ibp", network, Box.around(torch.rand(2, 4, 6), 0.1))
    assert set(vars(network)) == attributes
