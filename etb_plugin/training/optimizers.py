"""torch's optimizers, without what they do for its compiler.

Their methods ask the compiler to leave them alone, and import it for that, which takes as long as torch itself. Nothing
compiles an optimizer here, so the methods below the asking are called.
"""

import inspect
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
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
    """Return the optimizer that a recipe asks for, at a learning rate.

    On a GPU it can be captured in a CUDA graph: the rate and the count of steps are tensors there.
    """
    weights = list(parameters)
    on_gpu = weights[0].is_cuda
    optimizer: Optimizer
    if recipe.optimizer == "sgd":
        fused = True if on_gpu else None
        optimizer = Sgd(weights, rate, recipe.momentum, weight_decay=recipe.weight_decay, fused=fused)
    else:
        optimizer = Adam(weights, rate, weight_decay=recipe.weight_decay, capturable=on_gpu)
    if on_gpu:
        for group in optimizer.param_groups:
            group["lr"] = torch.tensor(rate, device=weights[0].device)
    return optimizer


def set_rate(optimizer: Optimizer, rate: float) -> None:
    """Set the learning rate, in place where it is a tensor."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def restore(optimizer: Optimizer, saved: dict[str, Any]) -> None:
    """Put a saved state back; tensors of groups, as the rate, go back to where the weights are."""
    optimizer.load_state_dict(saved)
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"] = group["lr"].to(group["params"][0].device)
