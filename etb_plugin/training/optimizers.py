"""torch's optimizers, without what they do for its compiler.

Their methods ask the compiler to leave them alone, and import it for that, which takes as long as torch itself. Nothing
compiles an optimizer here, so the methods below the asking are called.
"""

import inspect
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from etb_plugin.objectives import Recipe


class _Plain(Optimizer):
    add_param_group = inspect.unwrap(Optimizer.add_param_group)
    zero_grad = inspect.unwrap(Optimizer.zero_grad)
    state_dict = inspect.unwrap(Optimizer.state_dict)
    load_state_dict = inspect.unwrap(Optimizer.load_state_dict)


class Adam(_Plain, torch.optim.Adam):
    """torch's Adam."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        return _adam_step(self, closure)


class Sgd(_Plain, torch.optim.SGD):
    """torch's SGD."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        return _sgd_step(self, closure)


_adam_step, _sgd_step = inspect.unwrap(torch.optim.Adam.step), inspect.unwrap(torch.optim.SGD.step)


def optimizer_of(recipe: Recipe, parameters: Iterable[nn.Parameter], rate: float) -> Optimizer:
    """Return the optimizer that a recipe asks for, at a learning rate."""
    if recipe.optimizer == "sgd":
        return Sgd(parameters, rate, recipe.momentum, weight_decay=recipe.weight_decay)
    return Adam(parameters, rate, weight_decay=recipe.weight_decay)
