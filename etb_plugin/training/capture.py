"""Steps as CUDA graphs: recorded once for each phase of the schedule, then replayed, which spares every launch.

A recording computes with the tensors that it was made with. So a batch is copied into one that stays, and the
schedule's scalars are written into some that stay, by kernels and so without a wait; batches of another size, as an
epoch's last, are taken as they come. Recording needs warm-up steps, which leave no trace: weights, moments, statistics,
sums and generator are put back. The first replay is held against a step as it comes from the same state, and where the
two differ, or where recording fails, steps are no longer recorded and one line says why.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from etb_plugin.errors import tell
from etb_plugin.objectives import Phase, Point
from etb_plugin.recording import CudaGraphs, Recorder, Work
from etb_plugin.shapes import fixed_shapes
from etb_plugin.training.step import Kept, Step

TakeStep = Callable[[Tensor, Tensor, Point, torch.Generator], None]
"""(images [batch, *input], labels [batch], point, generator) -> a step taken."""

_AGREE = 1e-3
"""How far, relatively, the sums of a replayed step may lie from those of the step itself: atomic additions on a GPU
come in any order."""


def as_taken(step: Step, batch_size: int, capture: bool = True) -> TakeStep:
    """Return a step as training takes it: replayed as a CUDA graph where there is a GPU, and one process for it."""
    device = step.sums.tensors[0].device
    if not capture or device.type != "cuda" or step.team.size > 1:
        return step
    return CapturedStep(step, batch_size, CudaGraphs(step.state.generator), tell)


class CapturedStep:
    """A step that is replayed wherever it can be."""

    def __init__(self, step: Step, batch_size: int, recorder: Recorder, tell: Callable[[str], None]) -> None:
        self._step, self._size, self._recorder, self._tell = step, batch_size, recorder, tell
        self._replays: dict[Phase, Work] = {}
        self._images = self._labels = self._scalars = torch.empty(0)  # those that stay; scalars are a point's
        self._on = True

    def __call__(self, images: Tensor, labels: Tensor, point: Point, generator: torch.Generator) -> None:
        """Take the step; see `Step`."""
        if not self._on or len(labels) != self._size:
            self._step(images, labels, point, generator)
            return
        if not len(self._images):
            self._images, self._labels = torch.empty_like(images), torch.empty_like(labels)
            self._scalars = images.new_empty(len(point.scalars))
        self._images.copy_(images)
        self._labels.copy_(labels)
        for held, value in zip(self._scalars, point.scalars, strict=True):
            held.fill_(value)
        if point.phase in self._replays:
            self._replays[point.phase]()
        else:
            self._first(point.phase, generator)

    def _first(self, phase: Phase, generator: torch.Generator) -> None:
        """Record the step of a phase, and take it."""
        eps, kappa, mix, grown = self._scalars.unbind()
        point = Point(eps, kappa, mix, grown, phase)

        def work() -> None:
            with fixed_shapes():
                self._step(self._images, self._labels, point, generator)

        before = Kept(_changed(self._step), generator)
        try:
            self._recorder.warm(work)
            _put_back(before, self._step)
            replay = self._recorder.record(work)
            replay()
            replayed = self._step.sums.tensors[0].clone()
        except (RuntimeError, ValueError, TypeError) as error:
            self._on = False
            self._tell(f"steps are not captured: {str(error).splitlines()[0]}")
        _put_back(before, self._step)
        work()
        if self._on:
            itself = self._step.sums.tensors[0]
            if torch.allclose(replayed, itself, rtol=_AGREE, equal_nan=True):
                self._replays[phase] = replay
            else:
                self._on = False
                self._tell("steps are not captured: the first one replayed differs from the step itself")


def _changed(step: Step) -> list[Tensor]:
    """Return all tensors that a step changes."""
    network, optimizer = step.state.network, step.state.optimizer
    moments = [value for one in optimizer.state.values() for value in one.values() if isinstance(value, Tensor)]
    return [*(p.data for p in network.parameters()), *network.buffers(), *moments, *step.sums.tensors]


def _put_back(before: Kept, step: Step) -> None:
    """Put everything back in place; moments that there were none of begin at 0, as they do by themselves."""
    before.put_back()
    known = {tensor.data_ptr() for tensor, _ in before.tensors}
    with torch.no_grad():
        for tensor in _changed(step):
            if tensor.data_ptr() not in known:
                tensor.zero_()
