"""What batch norm normalises by: a batch's statistics in the passes beside it, or those of a whole training set."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_NORMS = nn.modules.batchnorm._BatchNorm
_RECORDED = "_recorded_statistics"


def normalisations(network: nn.Module) -> list[Any]:
    """Return the batch norm layers that keep statistics."""
    return [m for m in network.modules() if isinstance(m, _NORMS) and m.running_mean is not None]


@contextlib.contextmanager
def clean_statistics(network: nn.Module) -> Iterator[None]:
    """Record the statistics of the first batch that passes in training mode; `evaluating` normalises by them in here.

    Their gradients are kept, as Shi et al. 2021 and CTBench have it: with numbers in their place smaller weights seem
    to give narrower intervals. Before such a batch, the running ones hold.
    """
    layers = normalisations(network)
    hooks = [layer.register_forward_pre_hook(_record) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for layer in layers:
            layer.__dict__.pop(_RECORDED, None)


def _record(layer: Any, inputs: tuple[Tensor]) -> None:
    if layer.training and _RECORDED not in layer.__dict__:
        others = [i for i in range(inputs[0].ndim) if i != 1]
        variance, mean = torch.var_mean(inputs[0], others, correction=0)
        layer.__dict__[_RECORDED] = {"running_mean": mean, "running_var": variance}


def _normalised(layer: Any, x: Tensor) -> Tensor:
    """Normalise by a layer's statistics, which may need a gradient, as a layer in eval mode does by numbers.

    torch's kernel gives statistics no gradient: it takes numbers, and what they differ by as functions of the weights
    is left to the affine part.
    """
    mean, variance = layer.running_mean, layer.running_var
    deviation = (variance.detach() + layer.eps).sqrt()
    weight = deviation * (variance + layer.eps).rsqrt()
    if layer.weight is not None:
        weight = weight * layer.weight
    bias = (mean.detach() - mean) * weight / deviation
    if layer.bias is not None:
        bias = bias + layer.bias
    return F.batch_norm(x, mean.detach(), variance.detach(), weight, bias, False, 0.0, layer.eps)


@contextlib.contextmanager
def _normalising_by(recorded: Mapping[Any, Mapping[str, Tensor]]) -> Iterator[None]:
    """Put the statistics in `recorded` in the place of some layers' running ones."""
    before = {layer: (dict(layer._buffers), vars(layer).get("forward")) for layer in recorded}
    for layer, statistics in recorded.items():
        layer._buffers.update(statistics)
        layer.forward = partial(_normalised, layer)
    try:
        yield
    finally:
        for layer, (buffers, forward) in before.items():
            layer._buffers.update(buffers)
            del layer.forward
            if forward is not None:
                layer.forward = forward


@contextlib.contextmanager
def _modes_kept(network: nn.Module) -> Iterator[None]:
    """Put every layer back into the mode that it is in, afterwards."""
    modes = {layer: layer.training for layer in network.modules()}
    try:
        yield
    finally:
        for layer, mode in modes.items():
            layer.training = mode


@contextlib.contextmanager
def whole_batch_statistics(network: nn.Module, images: Tensor) -> Iterator[None]:
    """Normalise every pass in here by the statistics of `images`: for a batch worked through in parts, each of which
    leaves its gradients in the weights. What these owe to the statistics is added at the end. The running ones are
    updated once."""
    layers = [layer for layer in normalisations(network) if layer.training]
    if not layers:
        yield
        return
    with clean_statistics(network):
        network(images)
        whole = {layer: layer.__dict__[_RECORDED] for layer in layers}
    leaves = {layer: {name: s.detach().requires_grad_() for name, s in found.items()} for layer, found in whole.items()}
    with _modes_kept(network), _normalising_by(leaves):
        for layer in layers:
            layer.eval()
        yield
    owed = [
        (statistic, gradient)
        for layer, found in whole.items()
        for name, statistic in found.items()
        if statistic.requires_grad and (gradient := leaves[layer][name].grad) is not None
    ]
    torch.autograd.backward([statistic for statistic, _ in owed], [gradient for _, gradient in owed])


@contextlib.contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Put `network` into eval mode, and every layer back into its own mode afterwards. Batch norm's statistics are the
    running ones, or those that `clean_statistics` recorded."""
    recorded = {m: m.__dict__[_RECORDED] for m in network.modules() if _RECORDED in m.__dict__}
    with _modes_kept(network), _normalising_by(recorded):
        network.eval()
        yield


@torch.no_grad()
def measure_statistics(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set batch norm's running statistics to their means over batches of images in training mode ("precise" ones)."""
    layers = normalisations(network)
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    with _modes_kept(network):
        network.train()
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # torch's word for the mean over all batches
        for images in batches:
            network(images)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
