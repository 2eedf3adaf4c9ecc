"""Calls of torch that come to others are bounded soundly, and are what they were."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from etb_plugin import Box, bound
from etb_plugin.errors import UnsupportedLayer
from etb_plugin.graph.tracing import trace

FLAT, IMAGE, TOKENS = (6,), (2, 6, 6), (4, 6)
LATER = torch.ones(4, 4, dtype=torch.bool).triu(1)


def beside(value, x):
    """A value without features beside one that has some."""
    return torch.stack([value, x[:, 0]], 1)


FORMS = {
    "glu": (FLAT, lambda s, x: F.glu(s.a(x))),
    "glu of channels": (IMAGE, lambda s, x: F.glu(x, 1)),
    "softmin": (FLAT, lambda s, x: F.softmin(s.a(x), 1) @ s.w),
    "rrelu": (FLAT, lambda s, x: F.rrelu(s.a(x), 0.1, 0.3)),
    "adaptive maxima": (IMAGE, lambda s, x: F.adaptive_max_pool2d(x, (2, 4))),
    "adaptive maxima along one": (IMAGE, lambda s, x: F.adaptive_max_pool2d(x, (None, 1))),
    "amax": (IMAGE, lambda s, x: x.amax((2, 3))),
    "amin": (IMAGE, lambda s, x: torch.amin(x, dim=-1, keepdim=True)),
    "max along": (IMAGE, lambda s, x: x.max(2)[0]),
    "min along": (IMAGE, lambda s, x: torch.min(x, dim=1, keepdim=True).values),
    "maxout": (FLAT, lambda s, x: s.a(x).view(-1, 4, 2).max(2)[0]),
    "group sort": (FLAT, lambda s, x: s.a(x).view(-1, 4, 2).sort(2)[0].flatten(1)),
    "sorted down": (FLAT, lambda s, x: torch.sort(s.a(x), 1, descending=True)[0][:, ::2]),
    "top": (FLAT, lambda s, x: s.a(x).topk(3, 1)[0]),
    "bottom": (FLAT, lambda s, x: s.a(x).topk(3, 1, largest=False).values),
    "median": (FLAT, lambda s, x: beside(s.a(x).median(1)[0], x)),
    "one behind the other": (IMAGE, lambda s, x: x.amax(3).amin(2).prod(1, keepdim=True) + s.w[0]),
    "prod": (FLAT, lambda s, x: beside(x[:, :3].prod(1), x)),
    "var and mean": (FLAT, lambda s, x: (lambda p: (x - p[1]) / (p[0] + 1).sqrt())(torch.var_mean(x, 1, keepdim=True))),
    "std and mean": (FLAT, lambda s, x: (lambda p: x - p[1] + p[0])(torch.std_mean(x, 1, correction=0, keepdim=True))),
    "norm": (FLAT, lambda s, x: x / x.norm(dim=1, keepdim=True)),
    "norm of ones": (FLAT, lambda s, x: x / (1 + torch.linalg.vector_norm(x - 0.5, 1, dim=1, keepdim=True))),
    "linalg.norm": (FLAT, lambda s, x: x / torch.linalg.norm(x, dim=1, keepdim=True)),
    "pooled squares": (IMAGE, lambda s, x: F.lp_pool2d(x + 1, 2, 2)),
    "pooled sums": (IMAGE, lambda s, x: F.lp_pool2d(x - 0.5, 1, 2, 1)),
    "local response": (IMAGE, lambda s, x: F.local_response_norm(x, 3, alpha=2.0)),
    "a root": (FLAT, lambda s, x: (x + 0.1) ** 0.7),
    "an inverse square": (FLAT, lambda s, x: torch.pow(x + 0.5, -2)),
    "cosine": (FLAT, lambda s, x: beside(F.cosine_similarity(s.a(x), s.b(x)), x)),
    "distances": (FLAT, lambda s, x: torch.cdist(x, s.w[:3, :1].expand(3, 6) + 2)),
    "bilinear": (FLAT, lambda s, x: F.bilinear(x, x, s.cube, s.w[0])),
    "clamped to tensors": (FLAT, lambda s, x: torch.clamp(s.a(x), min=-s.w[:, 0].abs(), max=s.w[1].abs())),
    "the second": (FLAT, lambda s, x: beside(s.a(x).kthvalue(2, 1)[0], x)),
    "the second, kept": (FLAT, lambda s, x: x - s.a(x).kthvalue(2, dim=1, keepdim=True).values),
    "whole numbers": (FLAT, lambda s, x: torch.trunc(3 * s.a(x)) + (4 * s.b(x)).fix()),
    "what is behind the point": (FLAT, lambda s, x: torch.frac(3 * s.a(x))),
    "rests": (FLAT, lambda s, x: torch.fmod(s.a(x), 0.3) + torch.remainder(s.b(x), 0.25) + s.a(x) % 2),
    "cross product": (FLAT, lambda s, x: torch.linalg.cross(x[:, :3], x[:, 3:])),
    "degrees": (FLAT, lambda s, x: torch.deg2rad(100 * x) + torch.rad2deg(x) / 10),
    "pixels": (IMAGE, lambda s, x: F.pixel_shuffle(F.pixel_unshuffle(x, 3)[:, :16], 2)),
    "clamp_max": (FLAT, lambda s, x: s.a(x).clamp_max(0.1)),
    **{
        name: (FLAT, lambda s, x, name=name: getattr(torch, name)(x + 0.2))
        for name in ("expm1", "log1p", "exp2", "log2", "log10", "erfc", "sinh", "cosh")
    },
    "logaddexp": (FLAT, lambda s, x: torch.logaddexp(s.a(x), s.b(x))),
    "hypot": (FLAT, lambda s, x: torch.hypot(s.a(x), s.b(x))),
    "lerp": (FLAT, lambda s, x: torch.lerp(s.a(x), s.b(x), 0.3)),
    "addcmul": (FLAT, lambda s, x: torch.addcmul(s.a(x), s.a(x), s.b(x), value=0.5)),
    "addcdiv": (FLAT, lambda s, x: torch.addcdiv(s.a(x), s.b(x), s.a(x).exp())),
    "rsub": (FLAT, lambda s, x: torch.rsub(x, 1.0, alpha=2.0)),
    "baddbmm": (TOKENS, lambda s, x: torch.baddbmm(s.w[:4, :4], x, x.mT, beta=2.0)),
    "hstack": (FLAT, lambda s, x: torch.hstack([x, s.a(x)])),
    "patches": (IMAGE, lambda s, x: F.unfold(x, 3)),
    "patches together": ((8, 9), lambda s, x: F.fold(x, (4, 4), 2)),
    "windows": (IMAGE, lambda s, x: x.unfold(2, 2, 2)),
    "sums so far": (FLAT, lambda s, x: torch.cumsum(s.a(x), 1)),
    "differences": (FLAT, lambda s, x: torch.diff(x, dim=1)),
    "turned": (IMAGE, lambda s, x: torch.rot90(x, 1, (2, 3))),
    "repeated": (FLAT, lambda s, x: x.repeat_interleave(2, 1)),
    "a triangle": (TOKENS, lambda s, x: torch.triu(x) - x.tril(1)),
    "a diagonal": (TOKENS, lambda s, x: torch.diagonal(x, dim1=1, dim2=2)),
    "by other names": (FLAT, lambda s, x: torch.true_divide(torch.multiply(x, 3).subtract(1), 2).nan_to_num()),
    "a causal attention": (TOKENS, lambda s, x: F.scaled_dot_product_attention(x, x, x, is_causal=True)),
    "a mask of booleans": (TOKENS, lambda s, x: F.scaled_dot_product_attention(x, x, x, attn_mask=~LATER)),
    "a mask of numbers": (TOKENS, lambda s, x: F.scaled_dot_product_attention(x, x, x, attn_mask=s.w[:4, :4])),
    "filled with -inf": (TOKENS, lambda s, x: ((x @ x.mT).masked_fill(LATER, -torch.inf)).softmax(-1) @ x),
    "-inf added": (TOKENS, lambda s, x: (x @ x.mT + torch.full((4, 4), -torch.inf).triu(1)).softmax(-1) @ x),
    "heads with a mask": (TOKENS, lambda s, x: s.heads(x, x, x, attn_mask=LATER, need_weights=False)[0]),
    "heads with a mask of numbers": (TOKENS, lambda s, x: s.heads(x, x, x, attn_mask=s.w[:4, :4])[0]),
    "heads with a mask that is computed": (TOKENS, lambda s, x: s.heads(x, x, x, attn_mask=s.w[:4, :4] > 1)[0]),
    "an encoder with a mask": (TOKENS, lambda s, x: s.encoder(x, mask=LATER)),
    "a decoder": (TOKENS, lambda s, x: s.decoder(x, s.a(x)[..., :6], tgt_mask=LATER)),
    "a cell": (FLAT, lambda s, x: s.rnn(s.b(x), s.rnn(s.a(x)))),
    "a cell of an LSTM": (FLAT, lambda s, x: s.lstm(s.b(x), s.lstm(s.a(x)))[0]),
    "a cell of a GRU": (FLAT, lambda s, x: s.gru(s.b(x), s.gru(s.a(x)))),
    "cells without biases": (FLAT, lambda s, x: s.plain(s.a(x))),
}  # fmt: skip
LAYERS = {
    nn.GLU(): (8,),
    nn.Softmin(1): (8,),
    nn.RReLU(): (8,),
    nn.Softmax2d(): IMAGE,
    nn.LPPool2d(2, 2): IMAGE,
    nn.LocalResponseNorm(2): IMAGE,
    nn.AdaptiveMaxPool2d(2): IMAGE,
    nn.Unfold(2): IMAGE,
    nn.Fold((4, 4), 2): (8, 9),
}


class Written(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function, self.a, self.b = function, nn.Linear(6, 8), nn.Linear(6, 8)
        self.w, self.cube = nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.randn(8, 6, 6))
        self.heads = nn.MultiheadAttention(6, 2, batch_first=True)
        options = {"dropout": 0.0, "batch_first": True, "norm_first": True}
        layer = nn.TransformerEncoderLayer(6, 2, 5, **options)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(6, 2, 5, **options), 1)
        self.rnn, self.lstm, self.gru = nn.RNNCell(8, 3, nonlinearity="relu"), nn.LSTMCell(8, 3), nn.GRUCell(8, 3)
        self.plain = nn.GRUCell(8, 3, bias=False)

    def forward(self, x):
        return self.function(self, x).flatten(1)


def hold(network, shape):
    """The network's graph is the network, and bounds hold what points of a box reach."""
    network = network.double().eval()
    box = Box.around(torch.rand(2, *shape).double(), 0.05)
    points = box.lower + (box.upper - box.lower) * torch.rand(100, 2, *shape).double()
    with torch.no_grad():
        values = network(points.flatten(0, 1)).unflatten(0, points.shape[:2])
    for method in ("ibp", "crown", "dual"):
        got = bound(method, network, box)
        assert got.lower.isfinite().all(), method
        assert (got.lower <= values.amin(0) + 1e-9).all(), method
        assert (got.upper >= values.amax(0) - 1e-9).all(), method
    point = Box.around(box.center, 0.0, clip=None)
    torch.testing.assert_close(bound("crown", network, point).lower, network(box.center), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", FORMS)
def test_what_comes_to_other_calls_is_bounded_soundly(name):
    shape, function = FORMS[name]
    hold(Written(function), shape)


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
def test_layers_that_call_them_are_too(layer):
    hold(nn.Sequential(layer, nn.Flatten(), nn.PReLU()), LAYERS[layer])


def test_layers_of_two_values_are_too():
    class Two(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer, self.a, self.b = layer, nn.Linear(6, 4), nn.Linear(6, 5)

        def forward(self, x):
            a, b = self.a(x), self.b(x)
            return (
                beside(self.layer(a, b[:, :4]), x) if isinstance(self.layer, nn.CosineSimilarity) else self.layer(a, b)
            )

    hold(Two(nn.Bilinear(4, 5, 3)), FLAT)
    hold(Two(nn.CosineSimilarity()), FLAT)


@pytest.mark.parametrize(
    "function",
    [
        lambda s, x: s.a(x).sort(0)[0],
        lambda s, x: torch.cat([x] * 6, 1).sort(1)[0],
        lambda s, x: x.max(1)[1].unsqueeze(1) * x,
        lambda s, x: torch.linalg.vector_norm(x, 3, dim=1, keepdim=True),
        lambda s, x: torch.linalg.norm(x.view(-1, 2, 3), dim=(1, 2), ord="nuc").unsqueeze(1),
        lambda s, x: F.scaled_dot_product_attention(*[x.view(-1, 2, 3)] * 3, x[:1, :2].view(1, 2, 1)),
        lambda s, x: s.heads(x.view(-1, 1, 6), x.view(-1, 1, 6), x.view(-1, 1, 6), key_padding_mask=x[:, :1] > 0)[0],
    ],
)  # fmt: skip
def test_what_has_no_form_is_refused(function):
    with pytest.raises(UnsupportedLayer):
        trace(Written(function).eval(), torch.Size(FLAT))


def test_what_is_changed_in_place_beside_stays_so():
    """A result that nobody takes is no dead code where it is a change."""

    def function(s, x):
        h = s.a(x)
        h.relu_()
        return h - h.amax(1, keepdim=True)

    hold(Written(function), FLAT)


def test_a_network_that_fails_is_told_where():
    network = Written(lambda s, x: s.a(x).amax(1, keepdim=True) + s.w[:, :3])
    with pytest.raises(UnsupportedLayer, match="layer 'add' fails on a batch of 2"):
        trace(network.eval(), torch.Size(FLAT))


def test_what_a_mask_takes_out_is_out_however_large_scores_are():
    def attention(s, x):
        return F.scaled_dot_product_attention(1e3 * x, 1e4 * x, x, is_causal=True)

    network = Written(attention).double().eval()
    x = torch.rand(2, *TOKENS).double()
    changed = torch.cat([x[:, :2], 100 * torch.rand(2, 2, 6).double()], 1)  # tokens that the first two do not see
    for method in ("ibp", "crown"):
        found, other = (bound(method, network, Box.around(one, 1e-9, clip=None)) for one in (x, changed))
        assert (found.lower[:, :12] <= network(x)[:, :12] + 1e-5).all()
        assert (network(x)[:, :12] <= found.upper[:, :12] + 1e-5).all()
        torch.testing.assert_close(found.lower[:, :6], x[:, 0], atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(found.lower[:, :12], other.lower[:, :12], atol=1e-9, rtol=1e-9)


def test_no_share_is_more_than_the_whole():
    """CROWN's ends of log-softmax may lie above 0: exponentials of them are at most 1 all the same."""
    network = nn.Sequential(nn.Linear(3, 4), nn.Softmax(1), nn.Linear(4, 2))
    with torch.no_grad():
        network[0].weight.mul_(1e4)
    found = bound("crown", network, Box.around(torch.rand(2, 3), 0.5))
    assert found.lower.isfinite().all()
    assert (found.width <= network[2].weight.abs().sum(1) * 1.5).all()
