"""One training step, and the sums over an epoch's steps: all on the device, nothing read back."""

import contextlib
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from etb_plugin.errors import OutOfMemory, TrainingError, tell
from etb_plugin.memory import ran_out
from etb_plugin.networks import whole_batch_statistics
from etb_plugin.objectives import Loss, Losses, Method, Point, Recipe
from etb_plugin.training.optimizers import optimizer_of
from etb_plugin.training.state import Partial, State
from etb_plugin.training.team import Team


class Sums:
    """Running sums of an epoch, on the device, and the first batch whose loss is not finite."""

    def __init__(self, device: torch.device, team: Team) -> None:
        self._team = team
        self.epoch = self.images = self.batches = 0  # of the epoch, finished ones
        self._sums = torch.zeros(5, dtype=torch.float64, device=device)
        self._first_bad = torch.full((), math.inf, device=device)
        self._batch = torch.zeros((), device=device)  # the one begun, counted from 1

    @property
    def tensors(self) -> list[Tensor]:
        """What a step changes."""
        return [self._sums, self._first_bad, self._batch]

    def begin(self, epoch: int, partial: Partial) -> None:
        """Begin an epoch, or go on with a part of one."""
        self.epoch, self.images, self.batches = epoch, partial.images, partial.batches
        before = partial.sums if self._team.leads else (0.0,) * len(partial.sums)
        self._sums.copy_(torch.tensor(before, dtype=torch.float64))
        self._first_bad.fill_(math.inf)
        self._batch.fill_(partial.batches + 1)

    def add(self, losses: Losses, count: int) -> None:
        """Add the losses of `count` images of a batch."""
        total = losses.total.detach()
        bad = ~total.isfinite()
        self._first_bad.copy_(torch.where(bad, torch.minimum(self._first_bad, self._batch), self._first_bad))
        # The losses are means over the batch; `correct` is a count already.
        parts = [total * count, losses.clean * count, losses.robust * count, losses.correct.to(total.dtype)]
        self._sums[:4] += torch.stack(parts)

    def end(self, gradient_norm: Tensor) -> None:
        """End a batch."""
        self._sums[4] += gradient_norm / self._team.size  # the norm is known to all, and counted once
        self._batch += 1

    def _totals(self) -> Tensor:
        sums = self._sums.clone()
        self._team.add_up([sums])
        return sums

    def keep(self, partial: Partial, seconds: float) -> None:
        """Write where the epoch stands into `partial`."""
        partial.batches, partial.images, partial.seconds = self.batches, self.images, seconds
        partial.sums = tuple(self._totals().tolist())

    def read(self) -> tuple[float, float, float, float, float]:
        """Return the mean loss, its clean and robust parts, the accuracy, and the mean norm. Waits for the device."""
        totals = self._totals()
        if not math.isfinite(float(totals[0])):
            first = float(self._first_bad)
            where = f", batch {first:.0f}" if math.isfinite(first) else ""
            raise TrainingError(
                f"the loss is not finite in epoch {self.epoch}{where}; "
                f"try a lower learning rate (--lr) or a smaller eps"
            )
        total, clean, robust, correct = (totals[:4] / self.images).tolist()
        return total, clean, robust, correct, float(totals[4]) / self.batches


@dataclass
class AtOnce:
    """How many images of a batch are worked through together at most: all, until memory runs out."""

    most: float = math.inf


@dataclass(frozen=True)
class Step:
    """A step on one batch: the gradients of its parts, their cut, and the optimizer's move."""

    state: State
    loss: Loss
    recipe: Recipe
    sums: Sums
    team: Team
    at_once: AtOnce = field(default_factory=AtOnce)

    @classmethod
    def of(
        cls,
        network: nn.Module,
        method: Method,
        input_shape: tuple[int, ...],
        classes: int,
        rate: float,
        generator: torch.Generator,
    ) -> "Step":
        """Return a method's step on `network` by itself, with an optimizer and sums of its own: to be measured."""
        optimizer, team = optimizer_of(method.recipe, network.parameters(), rate), Team()
        state = State(network, optimizer, generator)
        loss = method.prepare(network, input_shape, classes)
        return cls(state, loss, method.recipe, Sums(generator.device, team), team)

    def __call__(self, images: Tensor, labels: Tensor, point: Point, generator: torch.Generator) -> None:
        """Take the step. Shapes: images [batch, *input], labels [batch], both the whole team's.

        Where memory runs out it is taken anew in parts of half the size, as all later ones are: what the recipe's
        `micro_batch` does. Raises OutOfMemory where a part of one image is too much.
        """
        weights = [p for p in self.state.network.parameters() if p.requires_grad]
        size = int(min(self.recipe.micro_batch or len(labels), self.at_once.most, len(labels)))
        while (parts := self._gradients(images, labels, point, generator, size)) is None:
            if size == 1:
                raise OutOfMemory("out of memory with a single image of a batch")
            self.at_once.most = size = size // 2
            tell(f"out of memory: from here on {size} images of a batch at once, as micro_batch={size} has it")
        for losses, count in parts:
            self.sums.add(losses, count)
        _add_up_gradients(self.team, weights)
        norm = length_of_gradients(weights, self.recipe.gradient_clip)
        self.state.optimizer.step()
        self.sums.end(norm)

    def _gradients(
        self, images: Tensor, labels: Tensor, point: Point, generator: torch.Generator, size: int
    ) -> list[tuple[Losses, int]] | None:
        """Leave the gradients of the loss in the weights, and return its parts' losses with how many images each has.

        Returns None, with random numbers and running statistics as they were, where memory runs out.
        """
        network, mine = self.state.network, self.team.part(len(labels))
        self.state.optimizer.zero_grad(set_to_none=True)
        recording = images.is_cuda and torch.cuda.is_current_stream_capturing()
        before = None if recording else Kept(network.buffers(), generator)
        found = []
        try:
            with whole_batch_statistics(network, images) if size < len(labels) else contextlib.nullcontext():
                for part, part_labels in zip(images[mine].split(size), labels[mine].split(size), strict=True):
                    if len(part):  # a team may be larger than the last batch
                        losses = self.loss(part, part_labels, point, generator)
                        (losses.total * (len(part) / len(images))).backward()
                        found.append((replace(losses, total=losses.total.detach()), len(part)))
        except (MemoryError, RuntimeError) as error:
            if before is None or not ran_out(error):
                raise
            before.put_back()
            return None
        return found


class Kept:
    """Tensors, a generator and torch's own of the same device, as they were."""

    def __init__(self, tensors: Iterable[Tensor], generator: torch.Generator) -> None:
        self.tensors = [(tensor, tensor.clone()) for tensor in tensors]
        self._drawn = [(one, one.get_state()) for one in (generator, _own_generator(generator.device))]

    def put_back(self) -> None:
        """Put all back in place."""
        with torch.no_grad():
            for tensor, was in self.tensors:
                tensor.copy_(was)
        for generator, state in self._drawn:
            generator.set_state(state)


def _own_generator(device: torch.device) -> torch.Generator:
    """Return torch's own generator of a device, which random projections are drawn from."""
    if device.type == "cpu":
        return torch.default_generator
    torch.cuda.init()
    return torch.cuda.default_generators[device.index or 0]


def _add_up_gradients(team: Team, weights: list[nn.Parameter]) -> None:
    if team.size > 1:
        for weight in weights:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
        team.add_up(weight.grad for weight in weights if weight.grad is not None)


def length_of_gradients(weights: list[nn.Parameter], clip: float | None) -> Tensor:
    """Return the l2 norm of all gradients together, having cut them to `clip`."""
    if clip is not None:
        return nn.utils.clip_grad_norm_(weights, clip)
    norms = [torch.linalg.vector_norm(p.grad) for p in weights if p.grad is not None]  # torch 2.5 has no name for it
    return torch.linalg.vector_norm(torch.stack(norms))
