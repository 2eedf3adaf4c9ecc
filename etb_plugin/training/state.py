"""The state of a run: everything that the next batch depends on, so that a resumed run equals an unbroken one."""

import contextlib
import hashlib
import io
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from etb_plugin.errors import CheckpointError
from etb_plugin.files import UNFINISHED, write_file
from etb_plugin.networks.checkpoints import UNREADABLE
from etb_plugin.training.averaging import Average
from etb_plugin.training.optimizers import restore

_SEAL = b"etb state\n"
_HEAD = len(_SEAL) + hashlib.sha256().digest_size
_BEFORE = "state.before.pt"
VERSION = 3
"""Of the layout of a state; a state of another one is refused."""


@dataclass
class Partial:
    """An epoch that is not finished: its order of images [n], the batches done, sums over them, and its seconds."""

    order: Tensor
    batches: int = 0
    images: int = 0
    sums: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0, 0.0)
    seconds: float = 0.0


@dataclass
class State:
    """Network, optimizer, generators, the average of the weights so far, and the epoch begun; the records of the epochs
    done, and the costs, are for the report."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    epochs: list[dict[str, float]] = field(default_factory=list)
    costs: dict[str, float] = field(default_factory=dict)
    partial: Partial | None = None
    average: Average | None = None

    @property
    def result(self) -> nn.Module:
        """The network that is kept and tested: the average, where there is one."""
        return self.network if self.average is None else self.average.network

    def save(self, path: Path) -> None:
        """Write the state to `path`, whole or not at all."""
        content = {
            "version": VERSION,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            # Random projections are drawn from torch's own generators.
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state() if self.generator.device.type == "cuda" else None,
            "epochs": self.epochs,
            "costs": self.costs,
            "partial": None if self.partial is None else vars(self.partial),
            "average": None if self.average is None else self.average.state(),
        }
        buffer = io.BytesIO()
        torch.save(content, buffer)
        aside = path.with_name(f".{_BEFORE}{UNFINISHED}")
        aside.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # there is none yet, or a file system without links
            os.link(path, aside)
        try:
            write_file(path, sealed(buffer.getvalue()))
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
        if aside.exists():
            aside.replace(path.with_name(_BEFORE))

    def load(self, saved: bytes, path: str) -> None:
        """Put the state back that `saved` holds, which `read_state` read from `path`. Raises CheckpointError where it
        does not fit."""
        try:
            with warnings.catch_warnings(action="ignore"):  # what is no state is refused below
                content: dict[str, Any] = torch.load(io.BytesIO(saved), map_location="cpu", weights_only=True)
            if content.get("version") != VERSION:
                raise CheckpointError(
                    f"{path} has layout {content.get('version')}, and this version of etb reads {VERSION}; delete it "
                    f"to start afresh, or use the version that wrote it"
                )
            self.network.load_state_dict(content["network"])
            restore(self.optimizer, content["optimizer"])
            self.generator.set_state(content["generator"])
            torch.set_rng_state(content["torch"])
            if content["cuda"] is not None:
                torch.cuda.set_rng_state(content["cuda"])
            self.epochs, self.costs = content["epochs"], content["costs"]
            partial, average = content["partial"], content["average"]
            if average is not None:
                self.average = Average.of(self.network)
                self.average.load(average)
            self.partial = None if partial is None else Partial(**partial)
        except UNREADABLE as error:
            raise CheckpointError(
                f"{path} cannot be resumed from: it is damaged, or of another run; delete it to start afresh"
            ) from error


def sealed(content: bytes) -> bytes:
    """Return `content` behind its checksum."""
    return _SEAL + hashlib.sha256(content).digest() + content


def read_state(path: Path, tell: Callable[[str], None]) -> bytes | None:
    """Return the state in `path`; where that is damaged, the one before it, and `tell` says so. None where there is
    none. Raises CheckpointError where both are damaged.
    """
    if not path.exists():
        return None
    before = path.with_name(_BEFORE)
    for place in (path, before):
        content = place.read_bytes() if place.exists() else b""
        seal, digest, rest = content[: len(_SEAL)], content[len(_SEAL) : _HEAD], content[_HEAD:]
        if seal == _SEAL and digest == hashlib.sha256(rest).digest():
            if place == before:
                tell(f"{path} is damaged: going on from the epoch before, {before.name}")
            return rest
    raise CheckpointError(
        f"{path} cannot be resumed from: it is damaged, or of another version; delete it to start afresh"
    )


def forget_before(path: Path) -> None:
    """Delete the state before the one in `path`: its run is done."""
    path.with_name(_BEFORE).unlink(missing_ok=True)
