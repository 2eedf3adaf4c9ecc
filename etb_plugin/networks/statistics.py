"""What batch norm normalises by: a batch's statistics in the passes beside it, or those of a whole training set."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

_NORMS = nn.modules.batchnorm._BatchNorm
_RECORDED = "_recorded_statistics"


def normalisations(network: nn.Module) -> list[Any]:
    """Return the batch norm layers that keep statistics."""
    return [m for m in network.modules() if isinstance(m, _NORMS) and m.running_mean is not None]


@contextlib.contextmanager
def clean_statistics(network: nn.Module) -> Iterator[None]:
    """Record the statistics of the first batch that passes in training mode; `evaluating` normalises by them in here.

    They are numbers there, without a gradient. Before such a batch, the running ones hold.
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
        variance, mean = torch.var_mean(inputs[0].detach(), others, correction=0)
        layer.__dict__[_RECORDED] = {"running_mean": mean, "running_var": variance}


@contextlib.contextmanager
def _normalising_by(recorded: Mapping[Any, Mapping[str, Tensor]]) -> Iterator[None]:
    """Put the statistics in `recorded` in the place of some layers' running ones."""
    running = {layer: dict(layer._buffers) for layer in recorded}
    for layer, statistics in recorded.items():
        layer._buffers.update(statistics)
    try:
        yield
    finally:
        for layer, buffers in running.items():
            layer._buffers.update(buffers)


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
    """Normalise every pass in here by the statistics of `images`, as numbers: for a batch worked through in parts.
    The running ones are updated by them once."""
    layers = [layer for layer in normalisations(network) if layer.training]
    if not layers:
        yield
        return
    with clean_statistics(network):
        with torch.no_grad():
            network(images)
        recorded = {layer: layer.__dict__[_RECORDED] for layer in layers}
    with _modes_kept(network), _normalising_by(recorded):
        for layer in layers:
            layer.eval()
        yield


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
