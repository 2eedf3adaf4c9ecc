"""The state of a run: everything that the next epoch depends on, so that a resumed run equals an unbroken one."""

import io
import pickle
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from etb_plugin.errors import CheckpointError
from etb_plugin.runs import write_file


@dataclass
class State:
    """Network, optimizer and generators; the records of the epochs done, and the costs, are for the report."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    epochs: list[dict[str, float]] = field(default_factory=list)
    costs: dict[str, float] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write the state to `path`, whole or not at all."""
        content = {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            # convex_adversarial draws its projections from torch's own generators.
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state() if self.generator.device.type == "cuda" else None,
            "epochs": self.epochs,
            "costs": self.costs,
        }
        buffer = io.BytesIO()
        torch.save(content, buffer)
        write_file(path, buffer.getvalue())

    def load(self, path: Path) -> None:
        """Put the state in `path` back. Raises CheckpointError where it cannot be read or does not fit."""
        try:
            with warnings.catch_warnings(action="ignore"):  # what is no state is refused below
                content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            self.network.load_state_dict(content["network"])
            self.optimizer.load_state_dict(content["optimizer"])
            self.generator.set_state(content["generator"])
            torch.set_rng_state(content["torch"])
            if content["cuda"] is not None:
                torch.cuda.set_rng_state(content["cuda"])
            self.epochs, self.costs = content["epochs"], content["costs"]
        except (RuntimeError, ValueError, KeyError, EOFError, OSError, pickle.UnpicklingError) as error:
            raise CheckpointError(
                f"{path} cannot be resumed from: it is damaged, or of another run; delete it to start afresh"
            ) from error
