"""Networks that put parts of examples into the batch: bounds are those of the same network without that."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from etb_plugin import Box, bound
from etb_plugin.errors import UnsupportedLayer


class Network(nn.Module):
    """`folds` computes with parts in the batch, `apart` without; both with the same layers."""

    def __init__(self, parts, folds, apart, layers):
        super().__init__()
        self.parts = parts
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.folds, self.apart = folds, apart

    def forward(self, x):
        return self.folds(self, x)


class Apart(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network.apart(self.network, x)


def each(n, layer, x):
    """`layer` of every part, by itself."""
    return torch.stack([layer(x[:, i]) for i in range(n.parts)], 1)


def heads(x):
    return x.unflatten(2, (2, 3)).transpose(1, 2)


def attended(n, x, fold, back):
    q, k, v = n.first(x).chunk(3, -1)
    q, k, v = fold(q), fold(k), fold(v)
    scores = torch.softmax(q @ k.transpose(-2, -1) / 3**0.5 + n.bias, -1)
    return n.last(back(scores @ v).flatten(1))


def normed_conv():
    norm = nn.BatchNorm2d(4)
    nn.init.uniform_(norm.running_mean, -0.2, 0.2)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), norm, nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 2, 2), nn.GELU())


def frames(n, x):
    return n.last(torch.relu(each(n, n.first, x)).flatten(1))


def through(fold, unfold):
    """`first` on parts in the batch, and `last` on an example again."""
    return lambda n, x: n.last(torch.relu(unfold(n.first(fold(x)), x)).flatten(1))


def back(y, x):
    return y.view(x.size(0), x.size(1), -1)


def linear(size, features=3):
    return {"first": nn.Linear(6, features), "last": nn.Linear(size, 3)}


def attention():
    return {"first": nn.Linear(6, 18), "last": nn.Linear(24, 3), "bias": nn.Parameter(torch.randn(4, 4))}


def convolutions(*layers, size=24):
    return {"first": nn.Sequential(*layers), "last": nn.Linear(size, 3)}


ROWS, IMAGES, SIGNALS = (4, 6), (3, 1, 6, 6), (3, 2, 6)
FLAT = through(lambda x: x.flatten(0, 1), back)
CASES = {
    "flatten, view": (ROWS, FLAT, frames, lambda: linear(12)),
    "reshape of numbers": (
        ROWS,
        through(lambda x: x.reshape(-1, 6), lambda y, x: y.reshape(-1, 4, 3)),
        frames,
        lambda: linear(12),
    ),
    "reshape of products": (
        ROWS,
        through(lambda x: x.view(x.shape[0] * x.shape[1], 6), lambda y, x: y.unflatten(0, (-1, 4))),
        frames,
        lambda: linear(12),
    ),
    "straight to one row": (
        ROWS,
        lambda n, x: n.last(torch.relu(n.first(x.flatten(0, 1))).view(x.size(0), -1)),
        frames,
        lambda: linear(12),
    ),
    "constants": (
        ROWS,
        lambda n, x: back((n.first(x.flatten(0, 1)) * n.scale + 0.5 - n.one.unsqueeze(0)) / 2, x).sum(1),
        lambda n, x: ((n.first(x) * n.scale + 0.5 - n.one) / 2).sum(1),
        lambda: {"first": nn.Linear(6, 3), "scale": nn.Parameter(torch.randn(3)), "one": nn.Parameter(torch.rand(3))},
    ),
    "a residual": (
        ROWS,
        lambda n, x: n.last(back((y := x.flatten(0, 1)) + torch.tanh(n.first(y)), x).flatten(1)),
        lambda n, x: n.last((x + torch.tanh(n.first(x))).flatten(1)),
        lambda: linear(24, 6),
    ),
    "joined and cut": (
        ROWS,
        lambda n, x: n.last(
            back(torch.cat([(y := torch.relu(n.first(x.flatten(0, 1))))[:, 1:], y.narrow(1, 0, 1)], 1), x).flatten(1)
        ),
        lambda n, x: n.last(torch.cat([(y := torch.relu(n.first(x)))[..., 1:], y[..., :1]], -1).flatten(1)),
        lambda: linear(12),
    ),
    "stacked, summed, a softmax": (
        ROWS,
        lambda n, x: back(torch.stack([y := n.first(x.flatten(0, 1)), torch.softmax(y, dim=1)], dim=1).sum(1), x).mean(
            1
        ),
        lambda n, x: ((y := n.first(x)) + torch.softmax(y, -1)).mean(1),
        lambda: linear(12),
    ),
    "layer norm, then part by part": (
        ROWS,
        lambda n, x: n.last(back(F.normalize(n.norm(n.first(x.flatten(0, 1))), dim=1), x).flatten(1)),
        lambda n, x: n.last(F.normalize(n.norm(n.first(x)), dim=-1).flatten(1)),
        lambda: linear(12) | {"norm": nn.LayerNorm(3)},
    ),
    "images": (IMAGES, FLAT, frames, lambda: {"first": normed_conv(), "last": nn.Linear(24, 3)}),
    "images, average pooling": (
        IMAGES,
        FLAT,
        frames,
        lambda: convolutions(nn.Conv2d(1, 2, 3, stride=2, padding=1, bias=False), nn.AvgPool2d(2, 1), size=24),
    ),
    "images, adaptive pooling, flattened": (
        IMAGES,
        lambda n, x: n.last(back(torch.flatten(n.first(x.flatten(0, 1)), 1), x).flatten(1)),
        lambda n, x: n.last(each(n, n.first, x).flatten(1)),
        lambda: convolutions(nn.Conv2d(1, 4, 3, groups=1), nn.Tanh(), nn.AdaptiveAvgPool2d(1), size=12),
    ),
    "images, functions": (
        IMAGES,
        lambda n, x: n.last(
            back(F.max_pool2d(F.conv2d(x.flatten(0, 1), n.first, stride=2, padding=(1, 0)), 2, 1), x).flatten(1)
        ),
        lambda n, x: n.last(
            each(n, lambda y: F.max_pool2d(F.conv2d(y, n.first, stride=2, padding=(1, 0)), 2, 1), x).flatten(1)
        ),
        lambda: {"first": nn.Parameter(torch.randn(2, 1, 3, 3)), "last": nn.Linear(12, 3)},
    ),
    "images, group norm": (
        IMAGES,
        FLAT,
        frames,
        lambda: convolutions(nn.Conv2d(1, 4, 3, stride=2), nn.GroupNorm(2, 4), nn.ReLU(), size=48),
    ),
    "signals": (
        SIGNALS,
        FLAT,
        frames,
        lambda: convolutions(
            nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.AvgPool1d(2), nn.MaxPool1d(2), size=12
        ),
    ),
    "images, then a recurrent layer": (
        IMAGES,
        lambda n, x: n.last(n.steps(back(torch.relu(n.first(x.flatten(0, 1))).flatten(1), x))[0][:, -1]),
        lambda n, x: n.last(n.steps(torch.relu(each(n, n.first, x)).flatten(2))[0][:, -1]),
        lambda: {
            "first": nn.Conv2d(1, 2, 3, stride=2),
            "steps": nn.GRU(8, 4, batch_first=True),
            "last": nn.Linear(4, 3),
        },
    ),
    "a recurrent layer for each part": (
        (2, 3, 4),
        lambda n, x: n.last(back(n.steps(x.flatten(0, 1))[0][:, -1], x).flatten(1)),
        lambda n, x: n.last(each(n, lambda y: n.steps(y)[0][:, -1], x).flatten(1)),
        lambda: {"steps": nn.RNN(4, 3, batch_first=True), "last": nn.Linear(6, 3)},
    ),
    "heads": (
        ROWS,
        lambda n, x: attended(
            n,
            x,
            lambda y: y.view(y.size(0), 4, 2, 3).transpose(1, 2).reshape(-1, 4, 3),
            lambda y: y.view(-1, 2, 4, 3).transpose(1, 2),
        ),
        lambda n, x: attended(n, x, heads, lambda y: y.transpose(1, 2)),
        attention,
    ),
    "windows that are shifted": (
        ROWS,
        lambda n, x: attended(
            n,
            torch.roll(x, -1, 1).view(-1, 2, 2, 6).reshape(-1, 2, 6),
            lambda y: y.unflatten(-1, (2, 3)).permute(0, 2, 1, 3),
            lambda y: torch.roll(y.permute(0, 2, 1, 3).reshape(-1, 2, 2, 6).view(-1, 4, 6), 1, 1),
        ),
        lambda n, x: attended(
            n,
            torch.roll(x, -1, 1).unflatten(1, (2, 2)),
            lambda y: y.unflatten(-1, (2, 3)).transpose(2, 3),
            lambda y: torch.roll(y.transpose(2, 3).flatten(1, 2).flatten(2), 1, 1),
        ),
        lambda: attention() | {"bias": nn.Parameter(torch.randn(2, 2))},
    ),
    "queries, keys and values in front": (
        (4, 2, 6),
        lambda n, x: n.last(
            (
                lambda q: (
                    (torch.softmax(q[0] @ q[1].transpose(-2, -1), -1) @ q[2]).transpose(1, 2).reshape(-1, 4 * 2 * 6)
                )
            )(n.first(x.flatten(0, 1)).reshape(-1, 2, 3, 2, 3).permute(2, 0, 3, 1, 4))
        ),
        lambda n, x: n.last(
            (
                lambda q: (
                    (torch.softmax(q[..., 0, :] @ q[..., 1, :].transpose(-2, -1), -1) @ q[..., 2, :])
                    .transpose(2, 3)
                    .flatten(1)
                )
            )(n.first(x).unflatten(-1, (3, 2, 3)).permute(0, 1, 4, 2, 3, 5))
        ),
        lambda: {"first": nn.Linear(6, 18), "last": nn.Linear(48, 3)},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_bounds_are_those_of_the_network_without_parts_in_the_batch(case):
    shape, folds, apart, layers = CASES[case]
    network = Network(shape[0], folds, apart, layers()).eval().double()
    box = Box.around(torch.rand(2, *shape, dtype=torch.float64), 0.03)
    torch.testing.assert_close(network(box.lower), Apart(network)(box.lower))
    for method in ("ibp", "crown", "expected"):
        found, want = (bound(method, one, box) for one in (network, Apart(network)))
        torch.testing.assert_close((found.lower, found.upper), (want.lower, want.upper))
    points = box.lower + torch.rand(64, *box.lower.shape, dtype=torch.float64) * (box.upper - box.lower)
    values, crown = torch.stack([network(x) for x in points]), bound("crown", network, box)
    assert (values >= crown.lower - 1e-9).all()
    assert (values <= crown.upper + 1e-9).all()


@pytest.mark.parametrize(
    "fold",
    [
        lambda x: x.transpose(0, 1).reshape(-1, 6),  # not one example after another
        lambda x: torch.cat([x[:, 0], x[:, 1], x[:, 2], x[:, 3]], 0),
    ],
)
def test_parts_in_another_order_are_refused(fold):
    network = Network(4, lambda n, x: n.first(fold(x)).view(x.size(0), -1), None, {"first": nn.Linear(6, 3)})
    with pytest.raises(UnsupportedLayer, match="mixes the batch into the features"):
        bound("ibp", network, Box.around(torch.rand(2, *ROWS), 0.1))


@pytest.mark.parametrize("mix", [lambda y: y - y.mean(0), lambda y: torch.softmax(y, 0), lambda y: y.flip(0)])
def test_a_layer_that_mixes_examples_is_refused(mix):
    network = Network(4, lambda n, x: back(mix(n.first(x.flatten(0, 1))), x).flatten(1), None, linear(12))
    with pytest.raises(UnsupportedLayer):
        bound("ibp", network, Box.around(torch.rand(2, *ROWS), 0.1))
