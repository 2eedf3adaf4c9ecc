"""`pgd` where launches cost more than arithmetic, on a GPU: one of its steps for a whole batch, replayed as a graph.

Nothing leaves the batch, as a graph's shapes are fixed; whether anything still stands is looked at every few steps.
The first replay is held against the step itself. Where the two differ, where recording fails, and for a batch of
another size, `pgd` is taken as it is.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from etb_plugin.attacks.pgd import LOSSES, Pgd, gradient_of, like, moved, pgd
from etb_plugin.bounds import Box
from etb_plugin.recording import Recorder, Work

_LOOK_EVERY = 10
"""Steps between two looks at what still stands: each look waits for the device."""
_AGREE = 0.01
"""The share of a replayed step's pixels that may lie elsewhere than the step's: a gradient of about 0 has any sign."""


class CapturedPgd:
    """`pgd` on one network and batch size; called with boxes [batch, *input] and labels [batch], like `pgd`."""

    def __init__(
        self,
        network: nn.Module,
        settings: Pgd,
        generator: torch.Generator,
        recorder: Recorder,
        tell: Callable[[str], None],
    ) -> None:
        self._network, self._settings, self._generator = network, settings, generator
        self._recorder, self._tell = recorder, tell
        self._steps: dict[str, Work] = {}
        self._on = True
        self._lower = self._upper = self._labels = self._x = self._points = self._hit = self._size = torch.empty(0)

    def __call__(self, box: Box, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return points of the box, [batch, *input], and whether the network gets each wrong, [batch]."""
        if self._on and not self._steps:
            self._begin(box, labels)
        if not self._on or box.lower.shape != self._x.shape:
            return pgd(self._network, box, labels, self._settings, self._generator)
        self._take(box, labels)
        points = box.center.clone()
        with torch.no_grad():
            broken = self._network(points).argmax(1) != labels
        for name in self._settings.losses * self._settings.restarts:
            if bool(broken.all()):
                break
            self._restart()
            for i in range(self._settings.steps + 1):
                self._size.fill_(self._settings.step_at(i))
                self._steps[name]()
                if i % _LOOK_EVERY == _LOOK_EVERY - 1 and bool((broken | self._hit).all()):
                    break
            points = torch.where(like(broken, points), points, self._points)
            broken = broken | self._hit
        return points, broken

    def _begin(self, box: Box, labels: Tensor) -> None:
        """Make the tensors that stay, and record a step of each loss."""
        self._lower, self._upper, self._labels = box.lower.clone(), box.upper.clone(), labels.clone()
        self._x, self._points = box.center.clone(), box.center.clone()
        self._hit, self._size = torch.zeros_like(labels, dtype=torch.bool), box.lower.new_zeros(())
        drawn = self._generator.get_state()
        try:
            for name in self._settings.losses:
                self._steps[name] = self._recorded(lambda name=name: self._step(name))  # type: ignore[misc]
        except (RuntimeError, ValueError, TypeError) as error:
            self._on = False
            self._tell(f"the attack is not captured: {str(error).splitlines()[0]}")
        self._generator.set_state(drawn)

    def _recorded(self, work: Work) -> Work:
        self._recorder.warm(work)
        replay = self._recorder.record(work)
        self._restart()
        begun = self._x.clone()
        self._size.fill_(self._settings.step)
        replay()
        replayed = self._x.clone()
        self._x.copy_(begun)
        work()
        if float((replayed != self._x).double().mean()) > _AGREE:
            raise RuntimeError("its first step replayed differs from the step itself")
        return replay

    def _take(self, box: Box, labels: Tensor) -> None:
        self._lower.copy_(box.lower)
        self._upper.copy_(box.upper)
        self._labels.copy_(labels)

    def _restart(self) -> None:
        self._x.copy_(self._box.drawn(self._generator))
        self._hit.zero_()

    @property
    def _box(self) -> Box:
        return Box(self._lower, self._upper, ordered=True)

    def _step(self, name: str) -> None:
        """Keep the points of what is not broken yet, look which are now, and climb: a step of `pgd`."""
        gradient, outputs = gradient_of(self._network, self._x, self._labels, LOSSES[name])
        self._points.copy_(torch.where(like(self._hit, self._x), self._points, self._x))
        self._hit.logical_or_(outputs.argmax(1) != self._labels)
        self._x.copy_(moved(self._x, gradient, self._box, self._size))
