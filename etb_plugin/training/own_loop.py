"""A method's loss for a training loop of one's own: to put where `F.cross_entropy` stood."""

from dataclasses import replace
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from etb_plugin.data import beyond
from etb_plugin.errors import ConfigError
from etb_plugin.networks import check_kind, classes_of
from etb_plugin.objectives import Losses, Method, Point, Run, single_method
from etb_plugin.training.schedule import Schedule, last_point


class TrainingLoss:
    """Call it with a batch of images, [batch, *input] in [0, 1], and labels, [batch]: it gives the loss, a scalar.
    Every call takes a step of the method's schedule; beyond its end, or without one, its last point holds. A call with
    `eps` (pixel units) is at that radius in place of the schedule's. Under autocast too it is computed in the network's
    own precision.

    `rate` is the schedule's learning rate for the next step, `last` the parts of the last loss.
    """

    def __init__(
        self,
        method: Method,
        network: nn.Module,
        input_shape: tuple[int, ...],
        classes: int,
        eps: float | None,
        run: Run | None,
        seed: int,
    ) -> None:
        self._recipe, self._eps = method.recipe, eps
        self.schedule = None
        if run is not None:
            self.schedule = Schedule(method.recipe, 1.0 if eps is None else eps, method.recipe.learning_rate, run)
        self._loss = method.prepare(network, input_shape, classes)
        self._network, self._shape, self._classes = network, torch.Size(input_shape), classes
        self.step = 0
        self.last: Losses | None = None
        device = next(network.parameters()).device
        self.generator = torch.Generator(device).manual_seed(seed)

    @property
    def rate(self) -> float:
        """The learning rate at the next step."""
        return self._recipe.learning_rate if self.schedule is None else self.schedule.rate(self._at(self.schedule))

    @property
    def eps(self) -> float:
        """The radius at the next step, in pixel units."""
        return float(self._point(None).eps)

    def _at(self, schedule: Schedule) -> int:
        return min(self.step, schedule.run.steps - 1)

    def _point(self, eps: float | None) -> Point:
        if (final := self._eps if eps is None else eps) is None:
            raise ConfigError("which radius? give eps, in pixel units, here or to objective")
        if self.schedule is None:
            return last_point(self._recipe, final)
        point = self.schedule.point(self._at(self.schedule))
        return point if eps is None else replace(point, eps=eps)

    def __call__(self, images: Tensor, labels: Tensor, eps: float | None = None) -> Tensor:
        check_radius(eps)
        self._check(images, labels)
        if self.last is None:
            self._check_values(images, labels)
        with torch.autocast(images.device.type, enabled=False):
            self.last = self._loss(images, labels.long(), self._point(eps), self.generator)
        self.step += 1
        return self.last.total

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed loop goes on from."""
        return {"step": self.step, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.step = state["step"]
        self.generator.set_state(state["generator"])

    def _check(self, images: Tensor, labels: Tensor) -> None:
        """Raise ConfigError for a batch that the loss does not take."""
        if images.shape[1:] != self._shape or labels.shape != images.shape[:1] or not len(labels):
            raise ConfigError(
                f"the loss was made for images [batch, {', '.join(map(str, self._shape))}] and labels [batch]; "
                f"got {list(images.shape)} and {list(labels.shape)}"
            )
        if labels.is_floating_point() or labels.dtype == torch.bool:
            raise ConfigError(f"labels are integers; got {labels.dtype}")
        check_kind(self._network, images, "images are")

    def _check_values(self, images: Tensor, labels: Tensor) -> None:
        """Raise ConfigError for a batch that the loss would misunderstand. Once, as it waits for the device."""
        if (wrong := beyond(images, labels, self._classes)) is not None:
            raise ConfigError(wrong)
        if not any(layer.training for layer in self._network.modules()):
            raise ConfigError("the network is in eval mode: call network.train() before training it")


def objective(
    name: str,
    network: nn.Module,
    input_shape: tuple[int, ...],
    classes: int,
    *,
    eps: float | None = None,
    epochs: int | None = None,
    batches: int | None = None,
    seed: int = 0,
    **changes: Any,
) -> TrainingLoss:
    """Return the loss of the method `name` for a loop of one's own, of `epochs` epochs of `batches` steps.

    `eps` is the final radius in pixel units; without it each call of the loss names its own. Without `epochs` and
    `batches` there is no schedule: every step is at the point where the recipe's ends. `changes` are those of
    `etb methods NAME` (`coefficient=0.02`, `kappa={"end": 0.0}`, ...). The network maps [batch, *input_shape] to logits
    [batch, classes]; it is read at every call and never changed. Optimizer and learning rate are the loop's: the
    recipe's is `loss.rate`. Raises ConfigError for an unknown name or change, and UnsupportedLayer, naming the layer,
    where the method cannot take the network.

    >>> loss = objective("mtl-ibp", network, (1, 28, 28), 10, eps=0.1, epochs=20, batches=len(loader))
    >>> for images, labels in loader:
    ...     optimizer.zero_grad()
    ...     loss(images, labels).backward()
    ...     optimizer.step()
    """
    method = single_method(name, changes)
    check_radius(eps)
    if (epochs is None) != (batches is None):
        raise ConfigError("a schedule needs both: epochs, and batches, the steps of each")
    run = None if epochs is None or batches is None else Run(epochs, batches)
    if (found := classes_of(network, input_shape)) != classes:
        raise ConfigError(f"classes is {classes}; the network gives {found} logits")
    return TrainingLoss(method, network, input_shape, classes, eps, run, seed)


def check_radius(eps: float | None) -> None:
    """Raise ConfigError for what is no radius; None is one that is named later."""
    if eps is not None and not (isinstance(eps, Real | Tensor) and 0 <= eps <= 1):
        raise ConfigError(f"eps is a radius in pixel units, a number from 0 to 1; got {eps!r}")
