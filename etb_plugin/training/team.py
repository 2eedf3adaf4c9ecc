"""Several processes that train one network: each takes its part of every batch, and the gradients are added up.

`torchrun --nproc-per-node 2 -m etb_plugin train ...` starts them; alone, a process is a team of one and nothing here
costs anything. Order and augmentation of the images are drawn alike by all, so that the global batch is the one that a
single process would take. What an objective draws itself (attacks, projections) is drawn by each for its own part, and
so differs from a single process's draws.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from etb_plugin.errors import ConfigError


@dataclass(frozen=True)
class Team:
    """This process's place, `rank`, among `size`."""

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> "Team":
        """Return the team that this process was started in."""
        return cls(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else cls()

    @property
    def leads(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def part(self, count: int) -> slice:
        """Return this process's part of a batch of `count` images."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def generator(self, own: torch.Generator, seed: int, step: int) -> torch.Generator:
        """Return what this process draws from for its part at `step`: `own` when alone."""
        if self.size == 1:
            return own
        return torch.Generator(own.device).manual_seed((seed * 2**20 + step) * self.size + self.rank)

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Replace `tensors` by their sums over the team, in one message."""
        tensors = list(tensors)
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        for tensor, summed in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(summed.view_as(tensor))

    def any(self, value: bool, device: torch.device) -> bool:
        """Return whether `value` holds for any of the team."""
        if self.size == 1:
            return value
        flag = torch.tensor(float(value), device=device)
        dist.all_reduce(flag)
        return bool(flag > 0)

    def shared(self, content: bytes | None) -> bytes | None:
        """Return the leader's `content` to all."""
        if self.size == 1:
            return content
        values = [content]
        dist.broadcast_object_list(values)
        return values[0]

    def check(self, network: nn.Module) -> None:
        """Raise ConfigError for a network that parts of a batch would train otherwise than the whole."""
        if self.size > 1 and any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in network.modules()):
            raise ConfigError(
                "several processes cannot train a network with batch norm: its statistics would be those of parts of "
                "the batch; start one process, or choose another --model"
            )


@contextlib.contextmanager
def joined(device: str) -> Iterator[Team]:
    """Join the team that torchrun started this process in, if it did: nccl on GPUs, one each, gloo elsewhere."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Team()
        return
    if device.startswith("cuda"):
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield Team.current()
    finally:
        dist.destroy_process_group()
