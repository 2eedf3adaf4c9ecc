"""Weights on disk: safetensors of our own, and anyone's state_dict. Loading a file never runs code from it."""

import hashlib
import json
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from etb_plugin.errors import CheckpointError
from etb_plugin.files import write_file

Weights = dict[str, Tensor]

UNREADABLE = (
    *(RuntimeError, ValueError, KeyError, IndexError, TypeError, AttributeError, AssertionError),
    *(EOFError, OSError, MemoryError, pickle.UnpicklingError),
)
"""What torch.load raises of files that are no tensors, or were."""


def save_weights(network: nn.Module, path: Path, about: Mapping[str, Any]) -> None:
    """Write the network's weights and buffers to `path` (safetensors), whole or not at all.

    `about` is kept beside them as JSON: what `read_weights` gives back.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    write_file(path, save(tensors, metadata={"etb": json.dumps(dict(about))}))


def read_weights(path: Path) -> tuple[list[Weights], dict[str, Any]]:
    """Return the weights in `path`, and what is known about them (nothing for files that are not ours).

    Takes safetensors, and what torch.save made of a state_dict, of a dictionary that holds one under any name, or of a
    list of either: the networks of a cascade, in order. Raises CheckpointError for anything else.
    """
    if path.is_dir() or not path.exists():
        raise CheckpointError(f"there is no file of weights {path}")
    if path.suffix == ".safetensors":
        weights, about = _read_safetensors(path)
        return [weights], about
    try:
        with warnings.catch_warnings(action="ignore"):  # of protocols that torch.save would not have written
            content = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise CheckpointError(
            f"{path} is damaged, or holds more than tensors (a whole pickled network, say): save its state_dict"
        ) from error
    content = _unwrapped(content, path)
    several = [_unwrapped(one, path) for one in content] if isinstance(content, list) else [content]
    if not several or not all(map(_is_state, several)):
        raise CheckpointError(f"{path} holds no state_dict, nor a list of them")
    return several, {}


def _is_state(content: Any) -> bool:
    return isinstance(content, dict) and bool(content) and all(isinstance(v, Tensor) for v in content.values())


def _unwrapped(content: Any, path: Path) -> Any:
    """Return the state_dict of a checkpoint that holds it under some name, beside an epoch or an optimizer's state."""
    if not isinstance(content, dict) or _is_state(content):
        return content
    if "state_dict" in content:
        return content["state_dict"]
    held = {str(key): value for key, value in content.items() if _is_state(value)}
    if len(held) > 1:
        raise CheckpointError(f"{path} holds several state_dicts ({', '.join(held)}): save the one that is meant")
    return next(iter(held.values()), content)


def _read_safetensors(path: Path) -> tuple[Weights, dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("etb", "{}"))
            if not isinstance(about, dict):
                raise ValueError("what is said about its weights is no mapping")
            return {name: file.get_tensor(name) for name in file.keys()}, about  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged or is no safetensors file: {error}") from error


def load_weights(network: nn.Module, weights: Weights, where: Path) -> None:
    """Put `weights` into `network`, by name, or else in order where the shapes agree.

    Raises CheckpointError, with both lists of shapes, where they do not.
    """
    own = network.state_dict()
    names = list(own if set(own) == set(weights) else weights)
    shapes, theirs = [list(v.shape) for v in own.values()], [list(weights[name].shape) for name in names]
    if shapes != theirs:
        raise CheckpointError(f"{where} does not fit the network: the file has shapes {theirs},\nthe network {shapes}")
    network.load_state_dict({mine: weights[name] for mine, name in zip(own, names, strict=True)})


def weights_digest(network: nn.Module) -> str:
    """Return a short hash of the network's weights and buffers."""
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:8]
