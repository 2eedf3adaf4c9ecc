"""Activations that a network writes out: x sigmoid(x), x (1 + erf(x / sqrt 2)) / 2, where(x > 0, x, exp(x) - 1), ...

A product of two values that are elementwise functions of a single earlier one, or a choice between such, may be a known
function times a constant: then its lines are tighter than a product's, and a choice has none. Exporters write GELU and
SiLU so, and JAX nearly all. What it is, is told by its values, where it is not piecewise linear.
"""

import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from etb_plugin.graph.activations import Activation
from etb_plugin.graph.pieces import CONDITIONS, Reader
from etb_plugin.graph.smooth import (
    GELU,
    GELU_TANH,
    HARD_SWISH,
    LOG_SIGMOID,
    MISH,
    QUICK_GELU,
    SIGMOID,
    SILU,
    TANH,
    Smooth,
    elu,
    softplus,
)
from etb_plugin.graph.symbolic import CALLED, called, dependent

_KNOWN = (SILU, GELU, GELU_TANH, MISH, HARD_SWISH, QUICK_GELU, SIGMOID, TANH, softplus(), LOG_SIGMOID)
_PRODUCTS = {operator.mul, operator.imul, torch.mul, "mul", "mul_", operator.truediv, torch.div, "div"}
_CHOICES = {
    *(torch.where, torch.masked_fill, "masked_fill", torch.maximum, torch.minimum, "maximum", "minimum"),
}
_SUMS = {operator.add, torch.add, "add", operator.sub, torch.sub, "sub"}
_CALLS = _PRODUCTS | _CHOICES | _SUMS | CONDITIONS
_CALLS |= {
    *("float", "double", "to", "type_as", torch.zeros_like, torch.ones_like, torch.full_like),
    *(operator.iadd, "add_", operator.neg, torch.neg, torch.sign, "sign", torch.abs, "abs", operator.abs),
    *(operator.pow, torch.pow, "pow", torch.square, "square", torch.erf, torch.special.erf, "erf"),
    *(torch.tanh, F.tanh, "tanh", torch.sigmoid, F.sigmoid, "sigmoid", F.softplus, F.hardsigmoid, F.relu6),
    *(torch.clamp, torch.clip, "clamp", "clip", F.hardtanh, torch.relu, F.relu, "relu"),
    *(torch.exp, "exp", torch.expm1, "expm1", torch.log, "log", torch.log1p, "log1p", F.elu, F.logsigmoid),
}
_LAYERS = nn.Tanh | nn.Sigmoid | nn.Softplus | nn.Hardsigmoid | nn.ReLU6 | nn.Hardtanh | nn.ReLU


_NEAR = torch.linspace(-8, 8, 801, dtype=torch.float64)
_WIDTH = 100.0
_GRID = torch.cat([_NEAR, torch.linspace(-_WIDTH, _WIDTH, 4001, dtype=torch.float64)])
_FAR = torch.tensor([-1e5, -1e4, 1e4, 1e5], dtype=torch.float64)
_AGREEMENT = 1e-5
"""How far a function may be from the known one, relative to its largest value near 0: constants are written in few
digits."""


@dataclass(frozen=True)
class Composite:
    """A node that is a function of the value at `source`."""

    source: fx.Node
    function: Activation


def composites(module: fx.GraphModule, dtype: torch.dtype) -> dict[fx.Node, Composite]:
    """Return the nodes of a graph that are known functions written out, of each the last one; its constants are written
    to the precision of `dtype`."""
    order = {node: i for i, node in enumerate(module.graph.nodes)}
    ends = _PRODUCTS | _CHOICES | _SUMS
    last_ones = [n for n in order if n.op in CALLED and n.target in ends]
    of_input = dependent(module.graph)
    found: dict[fx.Node, Composite] = {}
    inner: set[fx.Node] = set()
    for node in reversed(last_ones):
        if node in inner:
            continue
        within: set[fx.Node] = set()
        open_ends, joined = {node}, False
        while open_ends:
            last = max(open_ends, key=order.__getitem__)
            if joined and len(open_ends) == 1:
                match = _named(module, node, last, within, 4 * torch.finfo(dtype).eps)
                if match is not None:
                    found[node] = match
                    inner |= within
                    break
            if not _elementwise(module, last):
                break
            before = [n for n in last.all_input_nodes if n in of_input]
            joined = joined or len(before) > 1
            open_ends = (open_ends - {last}) | set(before)
            within.add(last)
    return found


def _elementwise(module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        layer = module.get_submodule(str(node.target))
        return isinstance(layer, _LAYERS) and not getattr(layer, "inplace", False)
    if node.target is getattr:
        return node.args[1] in ("dtype", "device")  # of a cast
    return node.op in CALLED and node.target in _CALLS and not node.kwargs.get("inplace")


def _named(
    module: fx.GraphModule, node: fx.Node, source: fx.Node, within: set[fx.Node], tolerance: float
) -> Composite | None:
    """Return what `node` is as a function of `source`, by its pieces or its values; None where it is none that is
    known."""

    def value(z: Tensor) -> Tensor:
        """Return the function as the network computes it, with the constants that it was told by."""
        known: dict[fx.Node, Any] = {source: z}

        def of(one: fx.Node) -> Any:
            if one not in known:
                known[one] = called(module, one, of) if one in within else constants[one].to(z)
            return known[one]

        result: Tensor = of(node)
        return result

    outside = {n for one in within for n in one.all_input_nodes} - within - {source}
    try:
        constants = {n: _constant(module, n) for n in outside}
    except ValueError:
        return None
    reader = Reader(module, source, constants)
    knots = reader.knots(within)
    if knots is None:
        return None
    beside = _around(knots)
    grid = torch.cat([_GRID, beside])
    try:
        got, far = value(grid), value(_FAR)
    except (RuntimeError, TypeError):
        return None
    linear = reader.activation(node, tolerance)
    if linear is not None:  # at a knot itself a condition may say what it does nowhere else
        agrees = torch.allclose(linear.forward(beside), got[len(_GRID) :], rtol=1e-6, atol=1e-6)
        return Composite(source, linear) if agrees else None
    if any(abs(knot) > _WIDTH for knot in knots):
        return None
    near = got[: len(_NEAR)]
    for function in (*_KNOWN, *_exponential_units(far)):
        want = function.forward(grid)
        factor = float((near @ want[: len(near)]) / want[: len(near)].square().sum())
        off = float((got - factor * want).abs().max())
        drift = float(((far - factor * function.forward(_FAR)) / _FAR).abs().max())
        if off <= _AGREEMENT * float(near.abs().max()) and math.isfinite(drift):
            return Composite(
                source,
                replace(
                    function,
                    value=value,
                    derivative=partial(_scaled, function, factor),
                    slack=2 * off,
                    drift=2 * drift,
                    beyond=-math.inf,
                ),
            )
    return None


def _around(knots: set[float]) -> Tensor:
    """Return points beside knots and between any two that follow each other: the grid may not see what lies there."""
    at = torch.tensor(sorted(knots), dtype=torch.float64)
    hair = 1e-6 * (1 + at.abs())
    return torch.cat([at - hair, at, at + hair, (at[1:] + at[:-1]) / 2])


def _exponential_units(far: Tensor) -> Iterator[Smooth]:
    """Yield ELU and CELU with the slope and the level that a function has far away."""
    level, slope = -float(far[0]), float(far[-1] / _FAR[-1])
    if 0 < level < math.inf and 0 < slope < math.inf:
        yield elu(level / slope, slope)
        yield elu(level / slope, slope, level / slope)


def _scaled(function: Smooth, factor: float, z: Tensor) -> Tensor:
    return factor * function.derivative(z)


def _constant(module: fx.GraphModule, node: fx.Node) -> Tensor:
    """Return what a node holds that is the same for all features, as of now. Raises ValueError where it holds nothing
    such, or what training may change: the function would not be the known one any more."""
    if node.op != "get_attr":
        raise ValueError("it is computed")
    constant = operator.attrgetter(str(node.target))(module)
    if isinstance(constant, nn.Parameter):
        raise ValueError("it may be trained")
    if not isinstance(constant, Tensor) or not bool((constant == constant.flatten()[:1]).all()):
        raise ValueError("it differs between features")
    return constant.detach().flatten()[0].clone()
