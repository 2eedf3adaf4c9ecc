"""Float32 as it is written, on a GPU too.

There torch lets cuDNN cut what convolutions multiply to TF32's ten bits: a relative error of 1e-3, where a certificate
may hang on 1e-6."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """Have products of float32 numbers keep their bits; torch's settings are afterwards as they were.

    A recording of CUDA graphs keeps what held when it was made.
    """
    if not torch.cuda.is_initialized():  # nothing is on a GPU
        yield
        return
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in _settings()]
    try:
        for owner, name, full in _settings():
            setattr(owner, name, full)
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


def _settings() -> list[tuple[Any, str, Any]]:
    """Return whose attribute by which name says how float32 is multiplied, and its value for all bits."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    if hasattr(cudnn, "conv"):  # since torch 2.9, which minds the older names beside these
        return [(owner, "fp32_precision", "ieee") for owner in (cudnn.conv, cudnn.rnn, matmul)]
    return [(cudnn, "allow_tf32", False), (matmul, "allow_tf32", False)]
