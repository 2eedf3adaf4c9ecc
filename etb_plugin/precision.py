"""Float32 as it is written, and the same bits each time.

On a GPU torch lets cuDNN cut what convolutions multiply to TF32's ten bits, a relative error of 1e-3 where certificates
may hang on 1e-6. `torch.set_float32_matmul_precision` and autocast cut it further, on some CPUs too. And sums come in
any order there, so that no run is like another.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import torch

_of_a_loss: ContextVar[bool] = ContextVar("of_a_loss", default=False)


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """Have products of float32 numbers keep their bits, within `torch.autocast` too.

    torch's settings are afterwards as they were; a recording of CUDA graphs keeps what held when it was made.
    """
    with contextlib.ExitStack() as stack:
        if not _of_a_loss.get():
            stack.enter_context(_every_bit())
            for device in filter(torch.is_autocast_enabled, ("cpu", "cuda")):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


@contextlib.contextmanager
def _every_bit() -> Iterator[None]:
    backends = torch.backends
    if hasattr(backends.cudnn, "conv"):  # since torch 2.9, which minds the older names beside these
        parts = {
            backends.cudnn: ("conv", "rnn"),
            backends.cuda: ("matmul",),
            backends.mkldnn: ("conv", "rnn", "matmul"),
        }
        owners = (getattr(toolkit, part) for toolkit, names in parts.items() for part in names)
        with _set([(owner, "fp32_precision", "ieee") for owner in owners]):
            yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with _set([(backends.cudnn, "allow_tf32", False)]):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextlib.contextmanager
def torchs_float32() -> Iterator[None]:
    """Have `full_float32` change nothing: a loss to be trained by is rounded as the rest of the training is."""
    token = _of_a_loss.set(True)
    try:
        yield
    finally:
        _of_a_loss.reset(token)


@contextlib.contextmanager
def repeatable() -> Iterator[None]:
    """Have convolutions give the same bits each time; as `full_float32` otherwise."""
    cudnn = torch.backends.cudnn
    with _set([(cudnn, "deterministic", True), (cudnn, "benchmark", False)]):
        yield


@contextlib.contextmanager
def _set(settings: list[tuple[Any, str, Any]]) -> Iterator[None]:
    """Set attributes (owner, name, value) of torch's backends, and set them back."""
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in settings]
    try:
        for owner, name, value in settings:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)
