"""Networks as users write them: bounded soundly, or refused in one line that says why. Nothing is read wrongly."""

import copy
import gc
import weakref
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from etb_plugin import Box, bound
from etb_plugin.errors import UnsupportedLayer
from etb_plugin.graph import tracing
from etb_plugin.graph.tracing import trace


class Written(nn.Module):
    """A forward pass written as a function of the module and its input."""

    def __init__(self, function, **parts):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            if isinstance(part, torch.Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, x):
        return self.function(self, x)


def dense(function, **parts):
    return Written(function, **{"a": nn.Linear(6, 8), "b": nn.Linear(6, 8), "out": nn.Linear(8, 3), **parts}), (6,)


def image(function, features, **parts):
    return Written(function, a=nn.Conv2d(1, 4, 3), out=nn.Linear(features, 3), **parts), (1, 6, 6)


def largest(s, x):
    h = s.a(x)
    most, _ = torch.max(h, dim=1, keepdim=True)
    return s.out(h - most)


def weight(*shape):
    return nn.Parameter(torch.randn(*shape))


def changed_in_place(s, x):
    h = s.a(x)
    r = F.relu_(h)
    return s.out(r + h)


def module_in_place(s, x):
    h = s.a(x)
    return s.out(s.relu(h) + h)


def assigned(s, x):
    h = s.a(x)
    h += 1
    h *= 2
    return s.out(torch.relu(h) + h)


def halves(s, x):
    one, two = s.a(x).chunk(2, 1)[0], s.a(x).split(4, 1)[1]
    return s.out(torch.cat([torch.relu(one), two], 1))


def measured(s, x):
    h = torch.relu(s.a(x))
    return s.out(h.view(h.shape[0], h.shape[1] * h.shape[2] * h.shape[3]))


TAKEN = {
    "a ReLU in place": lambda: dense(changed_in_place),
    "a module in place": lambda: dense(module_in_place, relu=nn.ReLU(inplace=True)),
    "arithmetic in place": lambda: dense(assigned),
    "buffers in a sum": lambda: dense(
        lambda s, x: s.out(torch.relu(s.a(x) + (s.c + s.d) - 2 * s.c)), c=torch.randn(8), d=torch.randn(1, 8)
    ),
    "view by size": lambda: image(lambda s, x: s.out(torch.relu(s.a(x)).view(x.size(0), -1)), 64),
    "view by shape": lambda: image(measured, 64),
    "a strided slice": lambda: image(lambda s, x: s.out(torch.relu(s.a(x))[:, :, ::2, 1::2].flatten(1)), 16),
    "a stack": lambda: dense(lambda s, x: s.out(torch.stack([torch.relu(s.a(x)), s.b(x)], 1).sum(1))),
    "einsum": lambda: dense(lambda s, x: s.out(torch.relu(torch.einsum("bi,oi->bo", x, s.w))), w=weight(8, 6)),
    "a product from the left": lambda: dense(
        lambda s, x: s.out(torch.relu((s.w @ x.unsqueeze(2)).squeeze(2))), w=weight(8, 6)
    ),
    "a product from the right": lambda: dense(lambda s, x: s.out(torch.relu(x @ s.w)), w=weight(6, 8)),
    "computed weights": lambda: dense(
        lambda s, x: s.out(torch.relu(F.linear(x, s.w * 2 + s.v, s.c))), w=weight(8, 6), v=weight(8, 6), c=weight(8)
    ),
    "normalised weights": lambda: dense(
        lambda s, x: s.out(torch.relu(s.n(x))), n=nn.utils.parametrizations.weight_norm(nn.Linear(6, 8))
    ),
    "a functional convolution": lambda: image(
        lambda s, x: s.out(torch.relu(F.conv2d(x, s.w, padding=1, stride=2)).flatten(1)), 36, w=weight(4, 1, 3, 3)
    ),
    "abs": lambda: dense(lambda s, x: s.out(s.a(x).abs())),
    "clamp": lambda: dense(lambda s, x: s.out(s.a(x).clamp(-0.1, 0.3))),
    "clamp to one side": lambda: dense(lambda s, x: s.out(torch.clamp(s.a(x), max=0.3).clamp_min(-0.2))),
    "maximum": lambda: dense(lambda s, x: s.out(torch.maximum(s.a(x), s.b(x)))),
    "minimum": lambda: dense(lambda s, x: s.out(torch.minimum(s.a(x), s.b(x)))),
    "maximum with a constant": lambda: dense(lambda s, x: s.out(torch.maximum(s.a(x), s.c)), c=torch.randn(8)),
    "minimum with a constant": lambda: dense(lambda s, x: s.out(torch.minimum(s.c, s.a(x))), c=torch.randn(8)),
    "max_pool1d": lambda: (
        Written(lambda s, x: s.out(F.max_pool1d(s.a(x), 2).flatten(1)), a=nn.Conv1d(1, 2, 3), out=nn.Linear(6, 3)),
        (1, 8),
    ),
    "max pooling, padded": lambda: image(
        lambda s, x: s.out(s.p(s.a(x)).flatten(1)), 16, p=nn.MaxPool2d(3, 2, padding=1)
    ),
    "chunk and split": lambda: dense(halves),
    "means": lambda: image(lambda s, x: s.out(torch.relu(s.a(x)).mean((2, 3))), 4),
    "centred values": lambda: dense(lambda s, x: s.out(torch.relu(s.a(x) - s.a(x).mean(1, keepdim=True)))),
    "a quotient": lambda: dense(lambda s, x: s.out(torch.relu(s.a(x / 255) / s.t)), t=torch.rand(8) + 1),
    "one minus": lambda: dense(lambda s, x: s.out(torch.relu(1 - s.a(x)))),
    "permuted": lambda: image(lambda s, x: s.out(torch.relu(s.a(x)).permute(0, 2, 3, 1).flatten(1)), 64),
    "upsampled": lambda: image(
        lambda s, x: s.out(s.u(torch.relu(s.a(x))).flatten(1)), 256, u=nn.Upsample(scale_factor=2)
    ),
    "interpolated": lambda: image(
        lambda s, x: s.out(F.interpolate(torch.relu(s.a(x)), size=(5, 5), mode="bilinear").flatten(1)), 100
    ),
    "expanded and repeated": lambda: dense(
        lambda s, x: s.out(torch.relu(s.a(x)).unsqueeze(1).expand(-1, 2, -1).mean(1).repeat(1, 2)[:, :8])
    ),
    "transposed convolution": lambda: image(
        lambda s, x: s.out(torch.relu(F.conv_transpose2d(s.a(x), s.w, s.b, 2, 1)).flatten(1)),
        98,
        w=torch.randn(4, 2, 3, 3),
        b=torch.randn(2),
    ),
    "transposed convolution, as a layer": lambda: image(
        lambda s, x: s.out(torch.relu(s.t(s.a(x))).flatten(1)),
        200,
        t=nn.ConvTranspose2d(4, 2, 3, stride=2, padding=1, output_padding=1, groups=2, dilation=2),
    ),
    "mirrored": lambda: image(
        lambda s, x: s.out(torch.relu(s.p(s.a(x))).flatten(1)), 140, p=nn.ReflectionPad2d((1, 2, 0, 1))
    ),
    "replicated": lambda: image(lambda s, x: s.out(torch.relu(s.p(s.a(x))).flatten(1)), 144, p=nn.ReplicationPad2d(1)),
    "circular": lambda: image(lambda s, x: s.out(torch.relu(s.p(s.a(x))).flatten(1)), 144, p=nn.CircularPad2d(1)),
    "convolutions that mirror, replicate and go round": lambda: image(
        lambda s, x: s.out(torch.relu(s.r(s.q(s.p(torch.relu(s.a(x)))))).flatten(1)),
        12,
        p=nn.Conv2d(4, 2, 3, padding="same", padding_mode="reflect"),
        q=nn.Conv2d(2, 2, (3, 4), padding=(0, 2), stride=(1, 2), padding_mode="replicate"),
        r=nn.Conv2d(2, 2, (1, 2), padding="same", padding_mode="circular"),
    ),
    "the same size after an even kernel": lambda: image(
        lambda s, x: s.out(torch.relu(F.conv2d(s.p(s.a(x)), s.w, padding="same")).flatten(1)),
        16,
        p=nn.Conv2d(4, 2, (4, 3), padding="same"),
        w=weight(1, 2, 2, 2),
    ),
    "pooled over its own size": lambda: image(
        lambda s, x: s.out(
            (F.avg_pool2d(s.a(x), s.a(x).size()[3]) + F.max_pool2d(s.a(x), kernel_size=s.a(x).shape[-2:])).flatten(1)
        ),
        4,
    ),
    "an ensemble, stacked in front of the batch": lambda: dense(
        lambda s, x: (
            torch.stack([s.out(f(x)) for f in (s.a, s.b)]).mean(0)
            + torch.stack([s.a(x), s.b(x)], dim=0).max(dim=0)[0][:, :3]
            + torch.stack([s.a(x), s.b(x)]).median(0).values[:, :3]
        )
    ),
    "the largest, and places that nothing needs": lambda: dense(largest),
    "coordinates, put where the input is": lambda: image(
        lambda s, x: s.out(
            torch.cat([s.a(x), s.grid[:, : x.size(2) - 2].to(x).unsqueeze(0).repeat(len(x), 1, 1, 1)], 1).flatten(1)
        ),
        96,
        grid=torch.rand(2, 6, 4),
    ),
    "layers made as it is called": lambda: image(
        lambda s, x: s.out(nn.Flatten()(nn.MaxPool2d(2, 1)(s.p[:2](s.a(x)))) + nn.Tanh()(s.p[2:](s.a(x)))),
        36,
        p=nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 36)),
    ),
    "shuffled": lambda: image(lambda s, x: s.out(s.p(torch.relu(s.a(x))).flatten(1)), 64, p=nn.PixelShuffle(2)),
}


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("name", TAKEN)
def test_what_users_write_is_bounded_soundly(name):
    network, shape = TAKEN[name]()
    network = network.double().eval()
    box = Box.around(torch.rand(3, *shape).double(), 0.05)
    points = box.lower + (box.upper - box.lower) * torch.rand(300, 3, *shape).double()
    with torch.no_grad():
        values = network(points.flatten(0, 1)).unflatten(0, points.shape[:2])
    for method in ("ibp", "crown-ibp", "crown", "dual"):
        got = bound(method, network, box)
        assert (got.lower <= values.amin(0) + 1e-9).all(), method
        assert (got.upper >= values.amax(0) - 1e-9).all(), method
    middle = bound("expected", network, Box.around(box.center, 0.0, clip=None), masks="center")
    torch.testing.assert_close(middle.lower, network(box.center))


@torch.fx.wrap
def dropped_in_training(x, training):
    return x * (torch.rand(len(x), 1) > 0.5) if training else x


TAKEN["stochastic depth"] = lambda: dense(
    lambda s, x: s.out(torch.relu(s.b(x) + dropped_in_training(torch.relu(s.a(x)), s.training)))
)
REFUSED = {
    "a view changed in place": (lambda: dense(lambda s, x: s.out((lambda h: (h.view(-1, 2, 4).relu_(), h)[1])(s.a(x)))),
                                "Written was read wrongly: its outputs are up to"),
    "weights made as it is called": (lambda: dense(lambda s, x: s.out(nn.Linear(8, 8)(s.a(x)))), "cannot be traced"),
    "random numbers": (lambda: dense(lambda s, x: s.out(s.a(x) + torch.rand(8))), "was read wrongly"),
    "a tangent": (lambda: dense(lambda s, x: s.out(torch.tan(s.a(x)))), r"'tan' \(tan\) is neither affine nor"),
    "softmax": (lambda: dense(lambda s, x: torch.softmax(s.a(x), 1)), r"'softmax' \(softmax\) is neither affine nor"),
    "a branch": (lambda: dense(lambda s, x: s.out(s.a(x)) if x.sum() > 0 else s.out(s.b(x))), "cannot be traced"),
    "a value taken out": (lambda: dense(lambda s, x: s.out(s.a(x) * s.a(x).sum().item())), "mixes the batch"),
    "the batch in the features": (lambda: dense(lambda s, x: s.out(s.a(x).view(-1)[:8].view(1, 8))), "mixes the batch"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_followed_is_refused_in_one_line(name):
    make, words = REFUSED[name]
    network, shape = make()
    with pytest.raises(UnsupportedLayer, match=words) as refused:
        bound("crown", network.eval(), Box.around(torch.rand(2, *shape), 0.1))
    assert "\n" not in str(refused.value)


def test_weights_computed_from_others_follow_training_and_take_gradients():
    network, shape = TAKEN["computed weights"]()
    box = Box.around(torch.rand(2, *shape), 0.1)
    graph = trace(network.eval(), torch.Size(shape))
    before = graph.values(box.center)[-1]
    with torch.no_grad():
        network.v.mul_(3)
    assert not torch.allclose(graph.values(box.center)[-1], before)
    torch.testing.assert_close(graph.values(box.center)[-1], network(box.center))
    bound("crown", network, box).lower.sum().backward()
    assert bool((network.v.grad != 0).any())


def test_batch_norm_is_folded_into_the_layer_before_it():
    """One node less, the same function; and a layer that two others read keeps its own values."""
    network = nn.Sequential(
        nn.Conv2d(1, 2, 3, bias=False), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)
    )
    nn.init.uniform_(network[1].running_mean)
    nn.init.uniform_(network[1].running_var, 0.5, 2)
    network = network.eval()
    graph, other = (trace(net, torch.Size((1, 6, 6))) for net in (network, copy.deepcopy(network)))
    assert len(graph.nodes) == len(other.nodes) == 5
    x = torch.rand(4, 1, 6, 6)
    torch.testing.assert_close(graph.values(x)[-1], network(x))
    shared = Written(
        lambda s, x: s.out((lambda h: torch.relu(s.norm(h)) + torch.relu(h))(s.a(x))),
        a=nn.Linear(6, 8), norm=nn.BatchNorm1d(8), out=nn.Linear(8, 3),
    ).eval()  # fmt: skip
    x = torch.rand(4, 6)
    torch.testing.assert_close(trace(shared, torch.Size((6,))).values(x)[-1], shared(x))


def test_a_network_is_traced_once_as_long_as_its_structure_stays(monkeypatch):
    network, box = nn.Sequential(nn.Linear(4, 6), nn.LeakyReLU(0.1), nn.Linear(6, 3)), Box.around(torch.rand(2, 4), 0.1)
    traces = []
    original = tracing.symbolic
    monkeypatch.setattr(tracing, "symbolic", lambda net, x: traces.append(net) or original(net, x))
    first = bound("ibp", network, box).lower
    with torch.no_grad():
        network[0].weight.mul_(2)  # weights are read live
    assert not torch.equal(bound("crown", network, box).lower, first)
    assert len(traces) == 1
    for change in (
        lambda: setattr(network[1], "negative_slope", 0.3),
        lambda: setattr(network[0], "weight", nn.Parameter(torch.rand(6, 4))),
        lambda: network.append(nn.ReLU()),
        lambda: network.__setitem__(1, nn.ReLU()),
    ):
        change()
        before = len(traces)
        interval = bound("ibp", network, box)
        assert len(traces) == before + 1
        points = box.lower + (box.upper - box.lower) * torch.rand(100, 2, 4)
        assert (interval.lower <= network(points) + 1e-5).all()
        assert (network(points) <= interval.upper + 1e-5).all()


class Configured(nn.Module):
    """Reads a private number, and an object that can be changed in place."""

    def __init__(self):
        super().__init__()
        self.layer, self._scale, self.settings = nn.Linear(4, 3), 1.0, SimpleNamespace(shift=0.0)

    def forward(self, x):
        return self._scale * torch.relu(self.layer(x)) + self.settings.shift


def test_what_a_structure_does_not_show_is_noticed_all_the_same():
    network, box = Configured(), Box.around(torch.rand(2, 4), 0.1)
    for change in (
        lambda: None,
        lambda: setattr(network, "_scale", 2.0),
        lambda: setattr(network.settings, "shift", 5.0),
    ):
        change()
        interval, value = bound("ibp", network, box), network(box.center)
        assert (interval.lower <= value + 1e-5).all()
        assert (value <= interval.upper + 1e-5).all()


def test_what_was_traced_does_not_keep_a_network_alive():
    network = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    bound("ibp", network, Box.around(torch.rand(2, 4), 0.1))
    gone = weakref.ref(network)
    del network
    gc.collect()
    assert gone() is None


def test_a_network_that_turns_rounding_into_anything_is_not_taken_for_a_wrong_graph():
    class Chaos(nn.Module):
        def __init__(self, random):
            super().__init__()
            layers = (nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6)) for _ in range(4))
            self.layers, self.random = nn.ModuleList(layers), random

        def forward(self, x):
            for layer in self.layers:
                x = torch.sin(300 * layer(x))
            return x + 1e-6 * torch.rand(1) if self.random else x

    torch.manual_seed(0)
    network = Chaos(random=False).eval()
    graph = trace(network, torch.Size([6]))
    x = 10 * torch.randn(50, 6)
    assert float((graph.values(x)[-1] - network(x)).detach().abs().max()) > 1e-3  # beyond what others are held to
    with pytest.raises(UnsupportedLayer, match="random"):
        trace(Chaos(random=True).eval(), torch.Size([6]))
