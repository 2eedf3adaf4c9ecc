"""What an objective and a method are, and the methods by name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, NamedTuple, Protocol, get_type_hints

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from etb_plugin.bounds import get_bound
from etb_plugin.errors import ConfigError, unknown_name
from etb_plugin.networks import bounded_before_logarithm, evaluating
from etb_plugin.objectives.recipe import Recipe
from etb_plugin.objectives.terms import with_terms
from etb_plugin.precision import torchs_float32
from etb_plugin.registry import Registry, named_options

Number = float | Tensor
"""A number, on the host or, as a scalar, on the device."""


class Phase(NamedTuple):
    """What a step has to compute: whether there is a radius, and whether it is the whole one; kappa and mix where they
    are 0 or 1 and one of two parts has no weight. It is known on the host."""

    bounded: bool
    grown: bool
    kappa: float | None
    mix: float | None


_WHOLE = Phase(True, False, None, None)
"""What scalars on the device leave open: everything is computed."""


@dataclass(frozen=True)
class Point:
    """One point of the schedule: the radius eps (pixel units), the weight kappa of the objective's two parts, where
    it stands between two bounds, `mix` from 0 to 1, and the share of the final radius that eps has `grown` to.

    Objectives compute with these and decide by the `phase`: a step with scalars on the device (`on`) reads nothing back
    from there, and is the same step for all points of a phase.
    """

    eps: Number
    kappa: Number
    mix: Number = 0.0
    grown: Number = 1.0
    phase: Phase = _WHOLE

    def __post_init__(self) -> None:
        if not any(isinstance(number, Tensor) for number in self.scalars):
            eps, kappa, mix, grown = (float(number) for number in self.scalars)
            ends = (value if value in (0.0, 1.0) else None for value in (kappa, mix))
            object.__setattr__(self, "phase", Phase(eps != 0, grown >= 1, *ends))

    @property
    def scalars(self) -> tuple[Number, Number, Number, Number]:
        """All numbers, in the order of the fields."""
        return self.eps, self.kappa, self.mix, self.grown

    def on(self, like: Tensor) -> "Point":
        """Return the point with scalars in the dtype and on the device of `like`."""
        eps, kappa, mix, grown = like.new_tensor(self.scalars).unbind()
        return Point(eps, kappa, mix, grown, self.phase)


@dataclass(frozen=True)
class Losses:
    """One batch's `total` loss with its gradient, and, detached, its `clean` and `robust` parts.

    `correct` is the number of clean images that the network gets right. All are scalars on the device.
    """

    total: Tensor
    clean: Tensor
    robust: Tensor
    correct: Tensor


Loss = Callable[[Tensor, Tensor, Point, torch.Generator], Losses]
"""(images [batch, *input], labels [batch], point, generator of whatever is random) -> losses of the batch."""


class Objective(Protocol):
    """A training loss, not yet bound to a network."""

    @property
    def bound(self) -> str | None:
        """The name of the bound that the objective trains with, if any."""

    @property
    def bound_options(self) -> Mapping[str, object]:
        """The options of that bound; none, unless an objective says otherwise."""
        return {}

    def prepare(self, network: nn.Module, input_shape: tuple[int, ...], classes: int) -> Loss:
        """Return the loss for `network`, whose weights are read at each call.

        Raises UnsupportedLayer, naming the layer, where the objective's bound cannot take the network.
        """


@dataclass(frozen=True)
class Method:
    """What `--methods` names. `summary` says in one line what it does and when to use it.

    With `pair` the objective is prepared for a `networks.Pair`, both of which it trains. `uses_eps` says whether the
    radius has a say in it.
    """

    name: str
    summary: str
    objective: Objective
    recipe: Recipe
    pair: bool = False
    uses_eps: bool = field(default=True, repr=False)

    def prepare(self, network: nn.Module, input_shape: tuple[int, ...], classes: int) -> Loss:
        """Return the objective's loss for `network`, with what the recipe adds to it. Raises as `Objective.prepare`."""
        if self.recipe.robust_weight is not None and getattr(self.objective, "form", "convex") != "convex":
            raise ConfigError(f"method {self.name!r} adds its parts up: it has kappa in place of robust_weight")
        if not self.pair and (self.objective.bound is not None or self.recipe.regulariser):
            with evaluating(network):
                network = bounded_before_logarithm(network, input_shape)
        loss = self.objective.prepare(network, input_shape, classes)
        return torchs_float32()(with_terms(loss, self.recipe, network, input_shape))

    @property
    def changeable(self) -> dict[str, Any]:
        """What `changed` may change, with the values now: numbers of the recipe, the objective's own, its bound's."""
        values: dict[str, Any] = {}
        if self.objective.bound is not None and "options" in _names(self.objective):
            values |= get_bound(self.objective.bound).options | dict(self.objective.bound_options)
            values.pop("lower_only", None)  # the objective's own business
        for record in (self.objective, self.recipe):
            values |= {name: getattr(record, name) for name in _names(record)}
        return {key: value for key, value in values.items() if key not in _FIXED}

    def changed(self, changes: Mapping[str, Any]) -> "Method":
        """Return the method with some of `changeable` changed, from plain values as a YAML file has them; a mapping
        changes some keys of a ramp or an attack.

        Raises ConfigError for a key that there is not, and for a value that does not do.
        """
        known, of_recipe, of_objective = self.changeable, _names(self.recipe), _names(self.objective)
        for key in changes:
            if key not in known:
                raise unknown_name(f"key of method {self.name!r}:", key, known)
        recipe = _replaced(self.recipe, {k: v for k, v in changes.items() if k in of_recipe})
        objective = _replaced(self.objective, {k: v for k, v in changes.items() if k in of_objective - of_recipe})
        options = {k: v for k, v in changes.items() if k not in of_objective | of_recipe}
        if options:
            objective = replace(objective, options={**self.objective.bound_options, **options})
        return replace(self, objective=objective, recipe=recipe)


_FIXED = frozenset({"source", "bound", "options", "first", "first_options", "between"})
"""What makes a method the one that it is."""


def _names(record: Any) -> set[str]:
    return {one.name for one in fields(record)}


def _replaced(record: Any, changes: Mapping[str, Any]) -> Any:
    hints = get_type_hints(type(record), include_extras=True)
    values = {}
    for key, value in changes.items():
        now = getattr(record, key)
        if is_dataclass(now) and isinstance(value, dict):  # a part of it, such as an attack's steps
            value = {one.name: getattr(now, one.name) for one in fields(now)} | value
        try:
            values[key] = TypeAdapter(hints[key]).validate_python(value)
        except ValidationError as error:
            message = error.errors()[0]["msg"]
            raise ConfigError(f"{key}: {value!r} does not do: {message[0].lower()}{message[1:]}") from None
    return replace(record, **values)


_registry: Registry[Method] = Registry("method")


def register_method(method: Method) -> Method:
    """Make `method` known by its name. Raises ConfigError where the name is taken."""
    _registry.add(method.name, method)
    return method


def methods() -> Mapping[str, Method]:
    """Return every registered method by name."""
    return _registry


def get_method(name: str) -> Method:
    """Return the method called `name`. Raises ConfigError with the nearest names where there is none."""
    return _registry.find(name)


def single_method(name: str, changes: Mapping[str, Any]) -> Method:
    """Return a method, changed, also as in `ibp:kappa=0`, for a network of one's own. Raises ConfigError, too, where it
    trains a pair of them."""
    name, written = named_options(name)
    method = get_method(name).changed({**written, **changes})
    if method.pair:
        raise ConfigError(f"method {name!r} trains a pair of networks; etb train does that")
    return method
