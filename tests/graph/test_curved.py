"""Functions that are relaxed as a whole beside `smooth`: convex ones, products, log sum exp, and what is known."""

import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from etb_plugin import Box, bound
from etb_plugin.errors import UnsupportedLayer
from etb_plugin.graph import convex, ends
from etb_plugin.graph.activations import Curved, Known
from etb_plugin.graph.affine import LogSoftmax, Pairs
from etb_plugin.graph.joint import LogSumExp, Product
from etb_plugin.graph.tracing import trace

CONVEX = {
    "square": (convex.SQUARE, -30, 30),
    "exp": (convex.EXP, -30, 30),
    "log": (convex.LOG, 1e-3, 1e3),
    "sqrt": (convex.SQRT, 1e-6, 1e3),
    "rsqrt": (convex.RSQRT, 1e-3, 1e3),
    "reciprocal": (convex.RECIPROCAL, 1e-3, 1e3),
    "reciprocal of negative numbers": (convex.RECIPROCAL, -1e3, -1e-3),
}
both = pytest.mark.parametrize("dtype", [torch.float64, torch.float32])


def _check_lines(function: Curved, low: torch.Tensor, high: torch.Tensor, z: torch.Tensor) -> None:
    """Hold lines and ranges against the function at points z [points, *low], in float64."""
    double = z.double()
    value = function.forward(double)
    steep = double.abs() * torch.stack([function.piece(end.double())[0].abs() for end in (low, high)]).amax(0)
    size = function.added(steep) + value.abs()
    generator = torch.Generator().manual_seed(1)
    shares = [torch.rand(low.shape[: value.ndim - 1], generator=generator).to(low.dtype) for _ in range(3)]
    for sign in (1, -1):
        lines = [function.line(low, high, sign), *(function.chosen(share, low, high, sign) for share in shares)]
        parallel = function.parallel(low, high)
        for slope, intercept in [*lines, (parallel[0], parallel[1 if sign > 0 else 2])]:
            line = function.added(slope.double() * double) + intercept.double()
            out = sign * (line - value)
            assert bool((out <= 1e-14 * size).all()), (sign, float((out / size).max()))
    least, greatest = (end.double() for end in function.range(low, high))
    rounded = 8 * torch.finfo(low.dtype).eps * (1 + size)
    assert bool((least <= value + rounded).all() and (greatest >= value - rounded).all())
    slope = function.line(low, high, 1)[0]
    share = function.share(slope, low, high, 1)
    again = function.chosen(share, low, high, 1)
    for got, want in zip(again, function.line(low, high, 1), strict=True):
        torch.testing.assert_close(got, want)


def _ends(least: float, most: float, count: int, shape: tuple[int, ...], dtype: torch.dtype):
    generator = torch.Generator().manual_seed(0)
    places = torch.rand(2, count, *shape, generator=generator, dtype=torch.float64)
    width = 10 ** (-6 * torch.rand(count, *[1] * len(shape), generator=generator, dtype=torch.float64))
    first = least + (most - least) * places[0]
    second = (first + (most - least) * width * (places[1] - 0.5)).clamp(least, most)
    return torch.minimum(first, second).to(dtype), torch.maximum(first, second).to(dtype)


@both
@pytest.mark.parametrize("name", CONVEX)
def test_lines_of_convex_functions(name: str, dtype: torch.dtype) -> None:
    function, least, most = CONVEX[name]
    low, high = _ends(least, most, 500, (), dtype)
    share = torch.linspace(0, 1, 401, dtype=torch.float64).unsqueeze(1)
    z = torch.lerp(low.double(), high.double(), share).maximum(low.double()).minimum(high.double())
    _check_lines(function, low, high, z)
    at = torch.linspace(least + 0.01, most - 0.01, 50, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(function.derivative(at), torch.autograd.grad(function.value(at).sum(), at)[0])


@both
@pytest.mark.parametrize("function", [Product(), LogSumExp()], ids=["product", "log sum exp"])
def test_planes_of_joint_functions(function: Curved, dtype: torch.dtype) -> None:
    n = 2 if isinstance(function, Product) else 5
    for scale in (0.1, 3.0, 200.0):
        low, high = _ends(-scale, scale, 300, (n,), dtype)
        corners = torch.tensor(list(itertools.product([0.0, 1.0], repeat=n)), dtype=torch.float64)
        share = torch.cat([corners, torch.rand(400, n, generator=torch.Generator().manual_seed(2)).double()])
        z = torch.lerp(low.double(), high.double(), share.unsqueeze(1))
        _check_lines(function, low, high, z)


def test_a_plane_touches_a_product_where_it_is_least() -> None:
    """Where at most one factor changes its sign: else the corner that a plane does not touch may lie lower."""
    low, high = _ends(-2, 2, 400, (2,), torch.float64)
    some = ~((low < 0) & (high > 0)).all(1)
    low, high, product = low[some], high[some], Product()
    for sign, end in zip((1, -1), product.range(low, high), strict=True):
        slope, intercept = product.line(low, high, sign)
        reach = torch.minimum(sign * slope * low, sign * slope * high).sum(1) + sign * intercept
        torch.testing.assert_close(sign * reach, end, rtol=0, atol=1e-12)


def test_what_is_known_of_a_value_is_used_where_bounds_do_not_say_it() -> None:
    known = Known(-2.0, 3.0)
    low = torch.tensor([-1.0, -9.0, -9.0, -1.0], dtype=torch.float64)
    high = torch.tensor([1.0, 1.0, 9.0, 9.0], dtype=torch.float64)
    share = torch.linspace(0, 1, 101, dtype=torch.float64).unsqueeze(1)
    z = torch.lerp(low.clamp(-2, 3), high.clamp(-2, 3), share)  # it is nowhere else
    for share in (None, torch.tensor([0.0, 0.3, 0.7, 1.0]).double()):
        for sign in (1, -1):
            slope, intercept = known.line(low, high, sign) if share is None else known.chosen(share, low, high, sign)
            assert bool((sign * (slope * z + intercept - z) <= 0).all())
    slope, below, above = known.parallel(low, high)
    assert bool((slope * z + below <= z).all() and (slope * z + above >= z).all())
    assert known.line(low, high, 1)[0].tolist() == [1, 0, 0, 1]
    assert [end.tolist() for end in known.range(low, high)] == [[-1, -2, -2, -1], [1, 1, 3, 3]]


def test_the_interval_of_a_log_softmax_is_exact() -> None:
    low, high = _ends(-3, 3, 40, (4,), torch.float64)
    corners = torch.tensor(list(itertools.product([0.0, 1.0], repeat=4)), dtype=torch.float64)
    values = torch.lerp(low, high, corners.unsqueeze(1)).log_softmax(-1)  # monotone in each element
    center, radius = LogSoftmax().interval(((low + high) / 2, (high - low) / 2), (low[:, 0], low[:, 0]))
    torch.testing.assert_close(center - radius, values.amin(0))
    torch.testing.assert_close(center + radius, values.amax(0))


class Written(nn.Module):
    def __init__(self, call, size: int = 6, **parts: nn.Module) -> None:
        super().__init__()
        self.call, self.a, self.b, self.out = call, nn.Linear(size, 6), nn.Linear(size, 6), nn.Linear(6, 3)
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.call(self, x)


def tokens(call, **parts: nn.Module) -> nn.Module:
    """Return a network of 4 tokens with 6 features each, of which `call` makes as many."""
    return Written(lambda s, x: s.out(call(s, s.a(x.view(-1, 4, 6))).mean(1)), **parts)


def heads(s, x):
    return (f(x).view(-1, 4, 2, 3).transpose(1, 2) for f in (s.q, s.k, s.v))


def projections() -> dict[str, nn.Module]:
    return {name: nn.Linear(6, 6) for name in "qkv"}


def attended(s, x, by):
    return x + by(*heads(s, x)).transpose(1, 2).flatten(2)


def behind(call):
    """Return a call of tokens by one of them with the tokens in front of the batch."""
    return lambda s, x: call(s, x.transpose(0, 1)).transpose(0, 1)


def attended_in_one(s, x, parts):
    q, k, v = parts
    return x + ((q @ k.transpose(-2, -1)).softmax(-1) @ v).transpose(1, 2).flatten(2)


def with_token(s, x, by_length: bool = False):
    return torch.cat([s.token.expand(len(x) if by_length else x.shape[0], -1, -1), x], 1)


LAYER = {"d_model": 6, "nhead": 2, "dim_feedforward": 8, "batch_first": True}
TAKEN = {
    "product": lambda: Written(lambda s, x: s.out(s.a(x) * s.b(x))),
    "in place": lambda: Written(lambda s, x: s.out(s.a(x).mul_(s.b(x)))),
    "product, by its keywords": lambda: Written(lambda s, x: s.out(torch.mul(s.a(x), other=s.b(x)))),
    "constants, by their keywords": lambda: Written(
        lambda s, x: s.out(torch.div(torch.mul(s.a(x), other=s.out.weight[0]), other=2.0) * s.b(x))
    ),
    "quotient, by its keywords": lambda: Written(lambda s, x: s.out(torch.div(s.a(x), other=1 + s.b(x).abs()))),
    "matmul, by its keywords": lambda: tokens(lambda s, x: torch.matmul(x.softmax(-1), other=x.mT).matmul(x)),
    "square": lambda: Written(lambda s, x: s.out(s.a(x) * s.a(x) + s.b(x) ** 2)),
    "powers": lambda: Written(lambda s, x: s.out(s.a(x).pow(3) - 0.1 * s.b(x) ** 4)),
    "roots": lambda: Written(lambda s, x: s.out((1 + s.a(x).abs()) ** 0.5 + (2 + s.b(x) ** 2) ** -0.5)),
    "quotient": lambda: Written(lambda s, x: s.out(s.a(x) / (2 + s.b(x).relu()) + 1 / s.b(x).exp())),
    "of negative numbers": lambda: Written(lambda s, x: s.out(s.a(x) / (-2 - s.b(x).relu()))),
    "exp and log": lambda: Written(lambda s, x: s.out(torch.log(1 + torch.exp(s.a(x))) * s.b(x).sigmoid())),
    "softmax": lambda: Written(lambda s, x: s.out(s.a(x).softmax(1) * s.b(x))),
    "softmax of a layer that is called log": lambda: Written(
        lambda s, x: s.out(s.logits(s.a(x)) - s.b(x)), logits=nn.Softmax(-1)
    ),
    "log-softmax": lambda: Written(lambda s, x: s.out(F.log_softmax(s.a(x), -1) - s.b(x))),
    "log sum exp": lambda: Written(lambda s, x: s.out(s.a(x) - torch.logsumexp(s.b(x), 1, keepdim=True))),
    "log sum exp, dropped": lambda: Written(lambda s, x: s.out(s.a(x) - s.b(x).logsumexp(-1).unsqueeze(1))),
    "broadcast": lambda: Written(lambda s, x: s.out(s.a(x).sum(1, keepdim=True) * s.b(x))),
    "along tokens": lambda: tokens(lambda s, x: x * x.softmax(1)),
    "matmul": lambda: tokens(lambda s, x: attended(s, x, lambda q, k, v: (q @ k.mT).softmax(-1) @ v), **projections()),
    "multi-head, the batch behind": lambda: tokens(
        behind(lambda s, x: s.n(x + s.m(x, x, x)[0])), m=nn.MultiheadAttention(6, 2), n=nn.LayerNorm(6)
    ),
    "encoder, the batch behind": lambda: tokens(
        behind(lambda s, x: s.e(x * 2 + s.places[: x.size(0)]).mean(0, keepdim=True)),
        e=nn.TransformerEncoder(nn.TransformerEncoderLayer(6, 2, 8), 1, nn.LayerNorm(6), enable_nested_tensor=False),
        places=nn.Parameter(torch.randn(7, 1, 6)),
    ),
    "sizes, the batch behind": lambda: tokens(
        behind(
            lambda s, x: s.m(x, x, x)[0].reshape(x.size(0), x.size(1), -1, 2).flatten(2) + x.view(4, x.shape[1], 6)
        ),
        m=nn.MultiheadAttention(6, 2),
    ),
    "decoder, the batch behind": lambda: tokens(
        behind(lambda s, x: s.d(x, x.tanh()).amax(dim=0, keepdim=True)), d=nn.TransformerDecoderLayer(6, 2, 8)
    ),
    "heads in front of the batch": lambda: tokens(
        lambda s, x: attended_in_one(s, x, s.qkv(x).reshape(len(x), 4, 3, 2, 3).permute(2, 0, 3, 1, 4).unbind(0)),
        qkv=nn.Linear(6, 18),
    ),
    "bmm": lambda: tokens(lambda s, x: torch.bmm(torch.bmm(x, x.transpose(1, 2)) / 6, x)),
    "einsum": lambda: tokens(
        lambda s, x: torch.einsum("bij,bjd->bid", torch.einsum("bid,bjd->bij", s.q(x), s.k(x)).softmax(2), s.v(x)),
        **projections(),
    ),
    "outer einsum": lambda: tokens(lambda s, x: torch.einsum("bid,bjd->bijd", s.q(x), x).mean(2), **projections()),
    "fused": lambda: tokens(lambda s, x: attended(s, x, F.scaled_dot_product_attention), **projections()),
    "multi-head": lambda: tokens(
        lambda s, x: x + s.m(x, x, x, need_weights=False)[0], m=nn.MultiheadAttention(6, 2, batch_first=True)
    ),
    "of other sizes": lambda: tokens(
        lambda s, x: s.m(x, x[..., :4], x[..., 1:])[0],
        m=nn.MultiheadAttention(6, 3, kdim=4, vdim=5, bias=False, batch_first=True),
    ),
    "encoder": lambda: tokens(
        lambda s, x: s.e(x), e=nn.TransformerEncoder(nn.TransformerEncoderLayer(**LAYER), 2, enable_nested_tensor=False)
    ),
    "encoder, norm first": lambda: tokens(
        lambda s, x: s.e(x), e=nn.TransformerEncoderLayer(**LAYER, norm_first=True, activation="gelu")
    ),
    "class token": lambda: tokens(
        lambda s, x: with_token(s, x).softmax(1) * with_token(s, x), token=nn.Parameter(torch.randn(1, 1, 6))
    ),
    "class token, by the batch's length": lambda: tokens(
        lambda s, x: with_token(s, x, True) * with_token(s, x).sigmoid(), token=nn.Parameter(torch.randn(1, 1, 6))
    ),
    "as many tokens as examples of a probe": lambda: Written(
        lambda s, x: s.out((torch.stack([s.a(x), s.b(x)], 1) * s.out.weight[:1].expand(x[:, :2].shape[1], -1)).sum(1))
    ),
    "layer norm": lambda: Written(lambda s, x: s.out(s.n(s.a(x)).relu()), n=nn.LayerNorm(6)),
    "layer norm of tokens": lambda: tokens(lambda s, x: s.n(x), n=nn.LayerNorm((4, 6), bias=False)),
    "layer norm, a call": lambda: tokens(lambda s, x: F.layer_norm(x, (6,), s.b.weight[0], s.b.bias)),
    "layer norm by hand": lambda: tokens(
        lambda s, x: (lambda d: d / (d.square().mean(-1, keepdim=True) + 1e-3).sqrt())(x - x.mean(-1, keepdim=True))
    ),
    "layer norm by its variance": lambda: tokens(
        lambda s, x: (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-3).sqrt()
    ),
    "standard deviation": lambda: tokens(lambda s, x: x / (1 + torch.std(x, dim=(1, 2), keepdim=True))),
    "corrected variance": lambda: Written(
        lambda s, x: s.out(s.a(x) * torch.var(s.b(x), 1, correction=2, keepdim=True))
    ),
    "unit length": lambda: Written(lambda s, x: s.out(F.normalize(s.a(x), dim=1) * 3 + F.normalize(s.b(x)))),
    "rms norm": lambda: Written(lambda s, x: s.out(s.n(s.a(x)).relu()), n=nn.RMSNorm(6, eps=1e-3)),
    "group norm": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 4, 6)), nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv2d(4, 2, 2), nn.ReLU(),
        nn.Flatten(), nn.Linear(6, 3),
    ),
    "instance norm": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 4, 6)), nn.Conv2d(1, 4, 3), nn.InstanceNorm2d(4, affine=True), nn.ReLU(), nn.Flatten(),
        nn.Linear(32, 3),
    ),
    "squeeze and excitation": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 4, 6)), nn.Conv2d(1, 4, 3),
        Written(lambda s, x: x * s.b(x.mean((2, 3))).sigmoid()[:, :4, None, None], 4),
        nn.Conv2d(4, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(6, 3),
    ),
}  # fmt: skip


def _inputs(name: str, network: nn.Module) -> int:
    try:
        network(torch.rand(1, 24))
    except RuntimeError:
        return 6
    return 24


@pytest.mark.parametrize("eps", [0.02, pytest.param(0.5, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", TAKEN)
def test_bounds_hold_what_networks_with_products_reach(name: str, eps: float) -> None:
    torch.manual_seed(0)
    network = TAKEN[name]().eval()
    inputs = _inputs(name, network)
    network = network.double().requires_grad_(False)
    box = Box.around(torch.rand(2, inputs).double(), eps, clip=None)
    share = torch.rand(1500, 2, inputs).double()
    share = torch.cat([share, share[:500].round()])
    values = network((box.lower + (box.upper - box.lower) * share).flatten(0, 1)).unflatten(0, share.shape[:2])
    least, most = values.amin(0), values.amax(0)
    widths = {}
    for method, options in (("ibp", {}), ("crown-ibp", {}), ("crown", {}), ("alpha-crown", {"steps": 2}), ("dual", {})):
        got = bound(method, network, box, **options)
        assert bool((got.lower <= least + 1e-9).all() and (got.upper >= most - 1e-9).all()), method
        widths[method] = float((got.width / (most - least)).mean())
    if eps < 0.1:
        assert widths["crown"] < 3
        assert widths["alpha-crown"] <= widths["crown"] + 1e-9
    point = bound("crown", network, Box.around(box.center, 0.0, clip=None))
    torch.testing.assert_close(point.lower, network(box.center), rtol=1e-6, atol=1e-6)
    # With the network's own tangents at the centre the expected bound is the gradient's, on any network.
    some = bound("expected", network, Box.around(box.center, 1e-4, clip=None), masks="center", center="network")
    jacobian = torch.autograd.functional.jacobian(lambda x: network(x).sum(0), box.center)
    torch.testing.assert_close(some.width / 2, 1e-4 * jacobian.abs().sum(2).T, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("method", ["ibp", "crown-ibp", "crown"])
def test_bounds_of_attention_have_gradients(method: str) -> None:
    torch.manual_seed(0)
    network = TAKEN["multi-head"]()
    bound(method, network.eval(), Box.around(torch.rand(2, 24), 0.01)).lower.sum().backward()
    assert all(bool((p.grad != 0).any()) for name, p in network.named_parameters() if name.startswith("m."))


def test_one_row_is_asked_for_each_factor_of_many_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of q k^T each element of q meets every token: its ends are found once, and are those of a row for each pair."""
    torch.manual_seed(0)
    network = TAKEN["matmul"]().double().eval()
    box = Box.around(torch.rand(2, 24).double(), 0.1)
    asked = []
    rows_of = ends._rows_of
    monkeypatch.setattr(ends, "_rows_of", lambda *args: asked.append(len(args[3])) or rows_of(*args))
    got = bound("crown", network, box)
    few = sum(asked)
    asked.clear()
    pairs = [n.operation for n in trace(network, torch.Size((24,))).nodes if isinstance(n.operation, Pairs)]
    for one in pairs:
        one.alike.copy_(torch.arange(len(one.alike)))
    every = bound("crown", network, box)
    torch.testing.assert_close(got.lower, every.lower)
    torch.testing.assert_close(got.upper, every.upper)
    assert few < sum(asked) / 2


@pytest.mark.parametrize(
    ("call", "eps"),
    [
        (lambda s, x: s.out(torch.log(s.a(x)) + s.b(x)), 1.0),
        (lambda s, x: s.out(s.a(x) / s.b(x)), 1.0),
        (lambda s, x: s.out(torch.sqrt(s.a(x) * s.b(x))), 1.0),
        (lambda s, x: s.out(torch.exp(500 * s.a(x)) - torch.exp(600 * s.b(x))), 1.0),
    ],
    ids=["log", "quotient", "root", "overflow"],
)
def test_nothing_is_said_where_a_function_has_no_bounds(call, eps: float) -> None:
    network, box = Written(call).eval(), Box.around(torch.rand(2, 6), eps)
    for method in ("ibp", "crown-ibp", "crown", "alpha-crown", "dual"):
        found = bound(method, network, box)
        assert bool((found.lower == -math.inf).all() and (found.upper == math.inf).all()), method


REFUSED = {
    "another token": (
        lambda: tokens(
            lambda s, x: s.m(x, x, x)[0], m=nn.MultiheadAttention(6, 2, batch_first=True, add_zero_attn=True)
        ),
        "layer MultiheadAttention is taken without add_bias_kv and add_zero_attn",
    ),
    "the batch second": (
        lambda: tokens(lambda s, x: s.m(x, x, x)[0], m=nn.MultiheadAttention(6, 2)), "mixes the batch"
    ),
    "random attention": (
        lambda: tokens(lambda s, x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.5)), "is taken without dropout"
    ),
    "a quotient that is rounded": (
        lambda: Written(lambda s, x: s.out(torch.div(s.a(x), s.b(x), rounding_mode="floor"))), "rounds"
    ),
    "another power": (lambda: Written(lambda s, x: s.out(s.a(x) ** s.b(x))), "is a power; those of 1 to 16"),
    "other dimensions": (lambda: tokens(lambda s, x: x * s.a(x.mean(1))), "fails on a batch of 2: The size of"),
    "along the batch": (lambda: Written(lambda s, x: s.out(s.a(x).softmax(0))), "goes along the batch"),
    "at the end": (lambda: Written(lambda s, x: s.out(s.a(x)).softmax(1)), "leave it out: methods take logits"),
}  # fmt: skip


@pytest.mark.parametrize("norm_first", [False, True])
def test_bounds_with_the_batch_behind_are_those_with_it_in_front(norm_first: bool) -> None:
    def encoder(first: bool) -> nn.Module:
        layer = nn.TransformerEncoderLayer(6, 2, 8, norm_first=norm_first, batch_first=first)
        return nn.TransformerEncoder(layer, 2, nn.LayerNorm(6), enable_nested_tensor=False)

    places = torch.rand(7, 1, 6)
    front = tokens(lambda s, x: s.e(x + places[:4].transpose(0, 1)), e=encoder(True))
    back = tokens(behind(lambda s, x: s.e(x + places[: x.shape[0]])), e=encoder(False))
    back.load_state_dict(front.state_dict())
    box = Box.around(torch.rand(2, 24), 0.02)
    for name in ("ibp", "crown-ibp", "crown", "expected"):
        got, want = (bound(name, network.eval(), box) for network in (back, front))
        torch.testing.assert_close(got.lower, want.lower)
        torch.testing.assert_close(got.upper, want.upper)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_taken_is_refused_in_a_line(name: str) -> None:
    make, words = REFUSED[name]
    network = make().eval()
    with pytest.raises(UnsupportedLayer, match=words) as refused:
        trace(network, torch.Size((_inputs(name, network),)))
    assert "\n" not in str(refused.value)


def test_a_linear_layer_on_tokens_is_bounded_by_rows_of_its_units() -> None:
    """Its units lie on an image of tokens and features; windows of that had no constant of such a layer."""
    torch.manual_seed(0)
    layers = [nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU()]
    network = nn.Sequential(nn.Unflatten(1, (3, 4)), *layers, nn.Flatten(), nn.Linear(12, 3)).double().eval()
    flat = [nn.Linear(12, 15), nn.ReLU(), nn.Linear(15, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3)]
    other = nn.Sequential(*flat).double().eval()
    with torch.no_grad():
        for mine, theirs in zip((1, 3, 5), (0, 2, 4), strict=True):
            other[theirs].weight.copy_(torch.block_diag(*[network[mine].weight] * 3))
            other[theirs].bias.copy_(network[mine].bias.repeat(3))
    other[6] = network[8]
    box = Box.around(torch.rand(2, 12).double(), 0.2)
    for method in ("crown", "dual"):
        torch.testing.assert_close(bound(method, network, box).lower, bound(method, other, box).lower)
