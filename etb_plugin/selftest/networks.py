"""Random networks as lists of small blocks, so that a failing one can be shrunk to the blocks that matter.

A block is a kind and a seed: dropping one leaves the weights of the others as they were. What does not fit the shape
that arrives (a window larger than the image) is left out.
"""

import itertools
import random
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from etb_plugin.graph.beside import ReluBeside
from etb_plugin.graph.regions import Ball, Box, Region

Block = tuple[str, int]

IMAGE = (
    *("conv", "conv", "conv", "activation", "activation", "norm", "average", "largest"),
    *("residual", "shift", "join", "transposed", "padded", "mirrored", "own-norm", "gate", "parts", "jump"),
)
FLAT = (
    *("linear", "linear", "linear", "activation", "activation", "activation", "norm", "residual", "shift", "join"),
    *("product", "own-norm", "gate", "curve", "attention", "recurrent", "twin", "parts", "jump"),
)
PIECEWISE = (
    *("relu", "relu", "relu", "leaky", "falling", "prelu", "hardtanh", "relu6", "abs", "clamp"),
    *("hardsigmoid", "softshrink", "chosen", "masked", "shrunk"),
)
SMOOTH = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softplus": lambda x: F.softplus(x, 2.0),
    "gelu": F.gelu,
    "gelu-tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "mish": F.mish,
    "elu": lambda x: F.elu(x, 1.5),
    "celu": lambda x: F.celu(x, 0.5),
    "selu": F.selu,
    "logsigmoid": F.logsigmoid,
    "hardswish": F.hardswish,
    "softsign": F.softsign,
    "tanhshrink": F.tanhshrink,
    "atan": torch.atan,
    "chosen-elu": lambda x: torch.where(x > 0, x, 0.7 * torch.expm1(torch.where(x > 0, 0.0, x))),
    "chosen-softplus": lambda x: torch.where(x > 15, x, torch.log1p(torch.exp(x.clamp(max=15)))),
    "sin": torch.sin,
    "cos": lambda x: torch.cos(3 * x),
}

JUMPS = {
    "sign": torch.sign,
    "round": lambda x: torch.round(4 * x) / 4,
    "floor": lambda x: torch.floor(3 * x) / 3,
    "ceil": lambda x: torch.ceil(x) - x,
    "hardshrink": lambda x: F.hardshrink(x, 0.4),
    "threshold": lambda x: F.threshold(x, 0.2, -0.3),
    "compared": lambda x: (x > x.flip(1)).to(x.dtype) - (x <= 0.3).to(x.dtype),
    "chosen-value": lambda x: torch.where(x >= -0.1, x * x, 1 - x),
    "broken": lambda x: torch.where(x > 0.5, x + 1, torch.where(x < -0.2, 2 * x, 0.1)),
}

CURVES = {
    "square": torch.square,
    "cube": lambda x: x**3 / 8,
    "exp": torch.exp,
    "bell": lambda x: torch.exp(-x * x),
    "log": lambda x: torch.log(1 + x.square()),
    "sqrt": lambda x: (1 + x * x).sqrt(),
    "rsqrt": lambda x: torch.rsqrt(1 + x.abs()),
    "reciprocal": lambda x: 1 / (2 + x.square()),
    "ratio": lambda x: x / (1 + x.abs()),
    "negative": lambda x: 1 / (-2 - x.square()),
    "softmax": lambda x: x.softmax(1),
    "log-softmax": lambda x: F.log_softmax(x, 1),
    "logsumexp": lambda x: x - x.logsumexp(1, keepdim=True),
    "normalized": lambda x: x / (x.square().sum(1, keepdim=True) + 0.1).sqrt(),
}


class Activation(nn.Module):
    def __init__(self, kind: str, features: int) -> None:
        super().__init__()
        self.kind = kind
        self.weight = nn.Parameter(torch.empty(features).uniform_(-0.5, 1.0))

    def forward(self, x: Tensor) -> Tensor:
        calls = {
            "relu": F.relu,
            "leaky": lambda x: F.leaky_relu(x, 0.2),
            "falling": lambda x: F.leaky_relu(x, -0.4),
            "prelu": lambda x: F.prelu(x, self.weight),
            "hardtanh": lambda x: F.hardtanh(x, -0.3, 0.8),
            "relu6": F.relu6,
            "abs": torch.abs,
            "clamp": lambda x: x.clamp(max=0.5),
            "hardsigmoid": F.hardsigmoid,
            "softshrink": lambda x: F.softshrink(x, 0.3),
            "chosen": lambda x: torch.where(x >= 0.25, 1 - x, torch.where(x < -1, -0.5, x + 0.5)),
            "masked": lambda x: -2 * (x * (x > 0).to(x.dtype)),
            "shrunk": lambda x: torch.where(x.abs() > 0.2, x - torch.sign(x) * 0.2, torch.zeros_like(x)),
            **SMOOTH,
            **CURVES,
            **JUMPS,
        }
        return calls[self.kind](x)

    def extra_repr(self) -> str:
        return self.kind


class Residual(nn.Module):
    def __init__(self, main: nn.Module, minus: bool) -> None:
        super().__init__()
        self.main, self.minus = main, minus

    def forward(self, x: Tensor) -> Tensor:
        return x - self.main(x) if self.minus else self.main(x) + x


class Shift(nn.Module):
    """A constant added and a factor, of the features' shape."""

    by: Tensor
    factor: Tensor

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.register_buffer("by", torch.randn(shape))
        self.register_buffer("factor", torch.randn(shape))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.by) * self.factor


class Join(nn.Module):
    """Two halves of the channels, one turned around, side by side with a stack of sums."""

    def forward(self, x: Tensor) -> Tensor:
        one, two = x[:, ::2], x[:, 1::2]
        return torch.cat([two, -one, torch.maximum(x, x.flip(1))], 1)


class Product(nn.Module):
    """Products with constants as einsum and functional calls write them."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(features, features) / features**0.5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bi,ij->bj", x, self.weight) + F.linear(x, self.weight * 0.5)


class Gate(nn.Module):
    """Features times others: squeeze and excitation on images, a gated linear unit on vectors."""

    def __init__(self, channels: int, image: bool) -> None:
        super().__init__()
        self.image, self.inner = image, nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        if not self.image:
            return x * torch.sigmoid(self.inner(x))
        return x * torch.sigmoid(self.inner(x.mean((2, 3)))).unsqueeze(2).unsqueeze(3)


class Twin(nn.Module):
    """A layer and its ReLU, computed by its differences from another one that is near, or not."""

    def __init__(self, features: int, apart: float) -> None:
        super().__init__()
        self.first, self.second, self.beside = nn.Linear(features, 4), nn.Linear(features, 4), ReluBeside()
        with torch.no_grad():
            for one, other in zip(self.first.parameters(), self.second.parameters(), strict=True):
                other.copy_(one + apart * torch.randn_like(one))

    def forward(self, x: Tensor) -> Tensor:
        u, v = self.first(x), self.second(x)
        return self.beside(F.relu(u), u, v)


class Attention(nn.Module):
    """Features as tokens that look at each other, by one of the ways to write that."""

    def __init__(self, tokens: int, features: int, how: str) -> None:
        super().__init__()
        self.tokens, self.features, self.how = tokens, features, how
        if how == "layer":
            self.layer = nn.MultiheadAttention(features, 1, batch_first=True)
        else:
            self.query, self.key, self.value = (nn.Linear(features, features) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.view(-1, self.tokens, self.features)
        if self.how == "layer":
            return self.layer(tokens, tokens, tokens, need_weights=False)[0].flatten(1)
        query, key, value = self.query(tokens), self.key(tokens), self.value(tokens)
        if self.how == "fused":
            found = F.scaled_dot_product_attention(query, key, value)
        elif self.how == "causal":
            found = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        elif self.how == "filled":
            later = torch.ones(self.tokens, self.tokens, dtype=torch.bool, device=x.device).triu(1)
            found = torch.softmax((query @ key.mT).masked_fill(later, -torch.inf), -1) @ value
        elif self.how == "einsum":
            found = torch.einsum("bij,bjd->bid", torch.einsum("bid,bjd->bij", query, key).softmax(2), value)
        else:
            found = torch.softmax(query @ key.transpose(1, 2), -1) @ value
        return (tokens + found).flatten(1)


class Recurrent(nn.Module):
    """Features as steps of a sequence, through a recurrent layer; its outputs, or what it ends with."""

    def __init__(self, steps: int, features: int, draw: random.Random) -> None:
        super().__init__()
        self.steps, self.features, self.last = steps, features, draw.random() < 0.5
        options: dict[str, Any] = {
            "hidden_size": draw.choice([1, 2, 3]),
            "num_layers": draw.choice([1, 1, 2]),
            "bias": draw.random() < 0.8,
            "batch_first": draw.random() < 0.5,
            "bidirectional": draw.random() < 0.3,
        }
        kind: Any = draw.choice([nn.RNN, partial(nn.RNN, nonlinearity="relu"), nn.LSTM, nn.GRU])
        self.layer: nn.RNNBase = kind(features, **options)

    def forward(self, x: Tensor) -> Tensor:
        sequence = x.view(-1, self.steps, self.features)
        outputs, states = self.layer(sequence if self.layer.batch_first else sequence.transpose(0, 1))
        if self.last:
            return (states[0] if isinstance(self.layer, nn.LSTM) else states).transpose(0, 1).flatten(1)
        return (outputs if self.layer.batch_first else outputs.transpose(0, 1)).flatten(1)


class Parts(nn.Module):
    """Channels, or features three by three, as examples of their own through a few layers, and together again."""

    def __init__(self, size: int | None, draw: random.Random) -> None:
        super().__init__()
        self.size, wide = size, draw.choice([1, 2])
        layers = [nn.Conv2d(1, wide, draw.choice([1, 2, 3]), draw.choice([1, 2]), 1), nn.BatchNorm2d(wide)]
        if size is not None:
            layers = [nn.Linear(size, 2 * wide), draw.choice([nn.LayerNorm, nn.BatchNorm1d])(2 * wide)]
        elif draw.random() < 0.5:
            layers[1:] = [nn.MaxPool2d(2, 1), nn.GroupNorm(1, wide)]
        self.layers = nn.Sequential(
            layers[0], draw.choice([nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.Softplus])(), *layers[1:]
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.size is None:
            found = self.layers(x.flatten(0, 1).unsqueeze(1))
            return found.view(x.size(0), -1, *found.shape[2:])
        return self.layers(x.reshape(-1, self.size)).view(x.size(0), -1)


def made(block: Block, shape: torch.Size) -> nn.Module | None:
    """Return the layer of a block for inputs of `shape`, or None where it does not fit."""
    kind, seed = block
    draw = random.Random(seed)
    torch.manual_seed(seed)
    channels, image = shape[0], shape[1:]
    layer: nn.Module | None = None
    if kind == "conv" and image:
        groups = draw.choice([1, 1, 2])
        dilation, kernel = draw.choice([1, 1, 2]), draw.choice([1, 2, 3])
        if channels % groups == 0:
            layer = nn.Conv2d(
                channels, groups * draw.choice([1, 2, 3]), kernel, draw.choice([1, 1, 2, 3]), draw.choice([0, 1, 2]),
                dilation, groups, bias=draw.random() < 0.8,
            )  # fmt: skip
    elif kind == "linear" and not image:
        layer = nn.Linear(channels, draw.choice([1, 3, 6, 10]), bias=draw.random() < 0.8)
    elif kind == "activation":
        layer = Activation(draw.choice(PIECEWISE if draw.random() < 0.7 else tuple(SMOOTH)), channels)
    elif kind == "norm":
        layer = (nn.BatchNorm2d if image else nn.BatchNorm1d)(channels, affine=draw.random() < 0.8)
        assert layer.running_mean is not None
        assert layer.running_var is not None
        nn.init.uniform_(layer.running_mean, -1, 1)
        nn.init.uniform_(layer.running_var, 0.2, 3)
        if layer.weight is not None:
            nn.init.uniform_(layer.weight, -1.5, 1.5)
    elif kind == "average" and image:
        padding = draw.choice([0, 0, 1])
        layer = nn.AvgPool2d(
            draw.choice([2, 3]), draw.choice([1, 2]), padding, draw.random() < 0.2, draw.random() < 0.7
        )
    elif kind == "largest" and image:
        kernel = draw.choice([2, 2, 3])
        layer = nn.MaxPool2d(kernel, draw.choice([1, 2]), draw.choice([0, 0, 1]), 1, ceil_mode=draw.random() < 0.2)
    elif kind == "transposed" and image:
        layer = nn.ConvTranspose2d(channels, draw.choice([1, 2]), draw.choice([2, 3]), draw.choice([1, 2]), 1)
    elif kind == "padded" and image:
        pad = draw.choice([nn.ReflectionPad2d, nn.ReplicationPad2d, nn.CircularPad2d, nn.ZeroPad2d])
        layer = pad((draw.choice([0, 1, 2]), 1, 1, draw.choice([0, 1])))
    elif kind == "mirrored" and image:
        mode: Any = draw.choice(["reflect", "replicate", "circular", "zeros"])
        layer = nn.Conv2d(channels, 2, draw.choice([(2, 2), (3, 3), (3, 2)]), padding="same", padding_mode=mode)
    elif kind == "residual":
        inner = nn.Conv2d(channels, channels, 3, padding=1) if image else nn.Linear(channels, channels)
        layer = Residual(nn.Sequential(inner, nn.ReLU(), *([nn.ReLU()] if draw.random() < 0.1 else [])), seed % 3 == 0)
    elif kind == "shift":
        layer = Shift(torch.Size([channels, *[1] * len(image)]) if draw.random() < 0.5 else shape)
    elif kind == "join" and 2 <= channels <= 6 and channels % 2 == 0:
        layer = Join()
    elif kind == "product" and not image:
        layer = Product(channels)
    elif kind == "curve" and not image:
        layer = Activation(draw.choice(tuple(CURVES)), channels)
    elif kind == "jump":
        layer = Activation(draw.choice(tuple(JUMPS)), channels)
    elif kind == "twin" and not image:
        layer = Twin(channels, draw.choice([0.0, 1e-3, 0.1, 1.0]))
    elif kind == "gate":
        layer = Gate(channels, bool(image))
    elif kind == "own-norm" and image:
        norm = nn.GroupNorm(draw.choice([1, channels]), channels, affine=draw.random() < 0.7)
        layer = norm if draw.random() < 0.7 else nn.InstanceNorm2d(channels, affine=draw.random() < 0.5)
    elif kind == "own-norm":
        layer = (nn.LayerNorm if draw.random() < 0.7 else nn.RMSNorm)(channels)
    elif kind == "attention" and not image and channels % 3 == 0:
        layer = Attention(3, channels // 3, draw.choice(["layer", "fused", "einsum", "plain", "causal", "filled"]))
    elif kind == "recurrent" and not image and channels % 3 == 0:
        layer = Recurrent(3, channels // 3, draw)
    elif kind == "parts" and (image or channels % 3 == 0):
        layer = Parts(None if image else 3, draw)
    return layer


def build(blocks: list[Block], shape: tuple[int, ...], scale: float) -> nn.Sequential:
    """Return the network of `blocks`, flattened where they change from images to vectors, with 3 outputs. Affine
    weights are multiplied by `scale`."""
    here, layers = torch.Size(shape), []

    def add(layer: nn.Module) -> None:
        nonlocal here
        layer.eval()
        try:
            out = layer(torch.zeros(2, *here)).shape[1:]
        except (RuntimeError, ValueError):
            return  # it does not fit
        if 0 < out.numel() <= 300:
            layers.append(layer)
            here = out

    for block in blocks:
        if block[0] in ("linear", "product", "curve", "attention", "recurrent", "twin") and len(here) > 1:
            add(nn.Flatten())
        layer = made(block, here)
        if layer is not None:
            add(layer)
    if len(here) > 1:
        add(nn.Flatten())
    torch.manual_seed(0)
    layers.append(nn.Linear(here[0], 3))
    network = nn.Sequential(*layers).eval()
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                layer.weight.mul_(scale)
                if layer.bias is not None:
                    layer.bias.mul_(scale)
            elif isinstance(layer, nn.RNNBase):
                for parameter in layer.parameters():
                    parameter.mul_(scale)
    return network


@dataclass(frozen=True)
class Case:
    """One network and region; `blocks` can be dropped."""

    seed: int
    blocks: tuple[Block, ...]
    shape: tuple[int, ...]
    scale: float
    bias: float
    dtype: torch.dtype
    region: str
    eps: float

    @property
    def network(self) -> nn.Sequential:
        network = build(list(self.blocks), self.shape, self.scale)
        if self.bias:  # dead and saturated units
            torch.manual_seed(self.seed)
            for parameter in network.parameters():
                if parameter.ndim == 1:
                    parameter.data += self.bias * torch.randn_like(parameter)
        return network.to(self.dtype)

    def around(self) -> Region:
        torch.manual_seed(self.seed + 1)
        x = torch.rand(2, *self.shape, dtype=torch.float64).to(self.dtype)
        match self.region:
            case "box":
                return Box.around(x, self.eps)
            case "open":
                return Box.around(x, self.eps, clip=None)
            case "one-sided":  # some elements move in one direction, some not at all
                up, down = (self.eps * (torch.rand_like(x) < 0.5) for _ in range(2))
                return Box(x - down, x + up)
            case "l1" | "l2":
                return Ball(x, self.eps, 1 if self.region == "l1" else 2)
        raise ValueError(self.region)

    def without(self, i: int) -> "Case":
        return replace(self, blocks=self.blocks[:i] + self.blocks[i + 1 :])


def drawn(seed: int) -> Case:
    """Return the random case number `seed`."""
    draw = random.Random(seed)
    image = draw.random() < 0.65
    kinds = [draw.choice(IMAGE) for _ in range(draw.randint(1, 6))] if image else []
    kinds += [draw.choice(FLAT) for _ in range(draw.randint(1, 5))]
    blocks = tuple((kind, draw.randrange(10**6)) for kind in kinds)
    shape = draw.choice([(1, 5, 5), (2, 6, 6), (2, 4, 7), (1, 8, 8)]) if image else (draw.choice([1, 3, 6]),)
    return Case(
        seed,
        blocks,
        shape,
        draw.choice([1.0] * 6 + [1e-4, 0.1, 10.0, 1e4]),
        draw.choice([0.0] * 4 + [3.0, 30.0]),
        draw.choice([torch.float64, torch.float64, torch.float32]),
        draw.choice(["box", "box", "open", "one-sided", "l1", "l2"]),
        draw.choice([0.0, 1e-3, 0.01, 0.05, 0.1, 0.3, 1.0, 30.0]),
    )


def deceiving(big: float, depth: int, features: int) -> nn.Sequential:
    """Return a network of two classes, of float32 numbers, that says 0 in floating point and 1 in truth: a sum with
    `big` swallows the input (Jia and Rinard 2021, Zombori et al. 2021)."""
    parts = [nn.Linear(features, 1), *(nn.Linear(1, 1) for _ in range(depth + 1)), nn.Linear(1, 2)]
    with torch.no_grad():
        for layer in parts:
            layer.weight.fill_(1.0)
            layer.bias.zero_()
        parts[0].bias.fill_(big)
        parts[-2].bias.fill_(-big)
        parts[-1].weight[0] = 0.0
        parts[-1].bias[0] = 0.25
    between = [layer for part in parts[:-1] for layer in (part, nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *between, parts[-1])


def corners(box: Box, number: int, generator: torch.Generator) -> Tensor:
    """Return random corners of a box, or all of them where there are few: [number, batch, *input]."""
    n = box.shape.numel()
    if 2**n <= number:
        bits = torch.tensor(list(itertools.product([False, True], repeat=n)))
        high = bits.view(-1, 1, *box.shape)
    else:
        high = torch.rand(number, 1, *box.shape, generator=generator) < 0.5
    return torch.where(high, box.upper, box.lower)
