"""Makes the expected bound a method of auto_LiRPA's own `BoundedModule.compute_bounds`.

    BoundedModule(net, x).compute_bounds(x=(BoundedTensor(x, PerturbationLpNorm(eps=0.1)),), C=C, method="expected")

works on every graph that auto_LiRPA converts, by the same walks as `bound("expected", net, box)`. Every other method
name goes to auto_LiRPA's own code untouched. Options travel where auto_LiRPA keeps its own:
`BoundedModule(net, x, bound_opts={"expected": {"masks": "blockwise"}})`.

auto_LiRPA is not imported here: `arrival` adds the method when somebody does.
"""

import functools
import math
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from etb_plugin.bounds.expected import Expected
from etb_plugin.bounds.registry import get_bound
from etb_plugin.errors import ConfigError
from etb_plugin.graph.regions import Ball, Box, Region
from etb_plugin.lirpa import compat
from etb_plugin.lirpa.graph import convert

METHOD = "expected"


def add_expected(module: ModuleType) -> None:
    """Give the `BoundedModule` of auto_LiRPA, the imported `module`, the method `expected`."""
    bounded_module: Any = module.BoundedModule
    compat.patch_bounded_module(bounded_module)
    original = bounded_module.compute_bounds
    if getattr(original, "takes_expected", False):
        return

    @functools.wraps(original)
    def compute_bounds(self: Any, x: Any = None, aux: Any = None, C: Any = None, *args: Any, **kwargs: Any) -> Any:
        method = args[0] if args else kwargs.get("method")
        if isinstance(method, str) and method.lower() == METHOD:
            return _expected(self, x, C, *args[1:], **{k: v for k, v in kwargs.items() if k != "method"})
        return original(self, x, aux, C, *args, **kwargs)

    compute_bounds.takes_expected = True  # type: ignore[attr-defined]
    bounded_module.compute_bounds = compute_bounds


def _expected(
    module: Any,
    x: Any,
    C: Tensor | None,
    *,
    bound_lower: bool = True,
    bound_upper: bool = True,
    **unused: Any,
) -> tuple[Tensor | None, Tensor | None]:
    """Return lower and upper, [batch, rows], as `compute_bounds` would; an end not asked for is None."""
    if unused:
        raise ConfigError(f"method='expected' takes no argument {min(unused)!r} of compute_bounds")
    entry, given = get_bound(METHOD), module.bound_opts.get(METHOD, {})
    entry.check_options(given)
    settings = Expected(**{**entry.options, **given})
    if x is not None:
        (getattr(module, "set_input", None) or module._set_input)(*x)  # 0.7.1 and 0.3
    source, region = _input_region(module)
    module.get_forward_value(module[module.final_name])
    graph = convert(module, source)
    settings.check(graph)
    lower, upper = settings.interval(graph, region, C)
    return (lower if bound_lower else None), (upper if bound_upper else None)


def _input_region(module: Any) -> tuple[Any, Region]:
    """Return auto_LiRPA's one perturbed input node, and the box or ball around it."""
    perturbed = [n for n in module._modules.values() if getattr(n, "perturbation", None) is not None]
    if len(perturbed) != 1 or getattr(perturbed[0], "input_index", None) is None:
        raise ConfigError(
            f"method='expected' takes one perturbed input, and no perturbed weights; {len(perturbed)} nodes are"
        )
    node = perturbed[0]
    ball, value = node.perturbation, torch.as_tensor(node.value.data)
    norm = getattr(ball, "norm", None)
    if norm in (1, 2):
        return node, Ball(value, ball.eps, norm)
    if norm != math.inf:
        raise ConfigError(f"method='expected' takes l_inf, l_2 and l_1 balls; got {ball}")
    lower = value - ball.eps if ball.x_L is None else ball.x_L
    upper = value + ball.eps if ball.x_U is None else ball.x_U
    return node, Box(lower.expand_as(value), upper.expand_as(value), ordered=True)
