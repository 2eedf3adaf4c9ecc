"""The registry: a bound's name, what it promises, and how to call it.

A bound is registered by decorating a function that prepares it for one network:

    @register_bound("mine", sound=True, differentiable=True, takes="networks of affine and ReLU layers")
    def mine(network: nn.Module, input_shape: torch.Size, *, option: int = 1) -> BoundFunction:
        ...                                   # refuse what cannot be taken, convert once
        def apply(box: Box, spec: Tensor | None) -> tuple[Tensor, Tensor]: ...
        return apply

`bound(name, network, box)` prepares and calls in one go; a training loop prepares once. Another package
adds a bound through the entry-point group `etb_plugin.bounds`, whose entries name modules that register.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from etb_plugin.bounds.types import Interval
from etb_plugin.errors import ConfigError
from etb_plugin.graph.regions import Ball, Box, Region
from etb_plugin.networks import check_kind
from etb_plugin.precision import full_float32
from etb_plugin.registry import Registry, load_all

BoundFunction = Callable[[Any, Tensor | None], tuple[Tensor, Tensor]]
"""(box, or a ball where the bound takes them, spec or None for the logits) -> lower and upper, both [batch, rows]."""

_registry: Registry["Registered"] = Registry("bound")
_toolkits: dict[str, Registry["Registered"]] = {}


@dataclass(frozen=True)
class Registered:
    """One entry of the registry. `unsound_with` names the options under which a sound bound is not one; a
    `rigorous` one can take rounding in; `by` holds the same bound as other toolkits compute it."""

    name: str
    prepare: Callable[..., BoundFunction]
    sound: bool
    differentiable: bool
    takes: str
    balls: bool = False
    unsound_with: frozenset[str] = frozenset()
    rigorous: bool = False
    by: Mapping[str, "Registered"] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        """The first line of the docstring."""
        return (inspect.getdoc(self.prepare) or "").partition("\n")[0]

    @property
    def options(self) -> dict[str, Any]:
        """The options that the bound takes, with their defaults."""
        parameters = inspect.signature(self.prepare).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY} | ({"by": None} if self.by else {})

    def chosen(self, options: Mapping[str, Any]) -> tuple["Registered", dict[str, Any]]:
        """Return the entry that `options` ask for, another toolkit's with `by`, and its own options.

        Raises ConfigError for an option that it does not take, and for a toolkit that does not have the bound.
        """
        own = dict(options)
        toolkit = own.pop("by", None)
        if toolkit is not None and toolkit not in self.by:
            known = " or ".join(f"by={name}" for name in self.by) or "no `by`: there is this one only"
            raise ConfigError(f"bound {self.name!r} is not known by {toolkit!r}; it takes {known}")
        entry = self if toolkit is None else self.by[toolkit]
        for name in own:
            if name not in entry.options:
                known = ", ".join(entry.options) or "none"
                elsewhere = [f"by={other}" for other, one in self.by.items() if name in one.options]
                hint = f" (one with {elsewhere[0]})" if elsewhere else ""
                raise ConfigError(f"bound {self.name!r} takes no option {name!r}{hint}; its options: {known}")
        return entry, own

    def soundness(self, options: Mapping[str, Any]) -> bool:
        """Whether the bound is a certificate under `options`. Raises ConfigError as `chosen`."""
        entry, own = self.chosen(options)
        return entry.sound and not any(own.get(name) is not None for name in entry.unsound_with)

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Raise ConfigError for an option that this bound does not take."""
        self.chosen(options)


@dataclass(frozen=True)
class PreparedBound:
    """A bound made ready for one network: call it with a box and, optionally, a spec.

    Converting a network costs more than bounding one batch, so loops prepare once and call often. The
    network's weights are read at each call.
    """

    name: str
    sound: bool
    differentiable: bool
    balls: bool
    input_shape: torch.Size
    _network: nn.Module = field(repr=False)
    _function: BoundFunction = field(repr=False)

    def __call__(self, box: Region, spec: Tensor | None = None) -> Interval:
        """Return the interval of the spec's rows (or of the logits) over `box`.

        Shapes: box [batch, *input], spec [batch, rows, classes], result [batch, rows]. Raises ConfigError
        where shapes, dtypes or devices do not fit together, and for less than float32.
        """
        if isinstance(box, Ball) and not self.balls:
            raise ConfigError(f"bound {self.name!r} takes boxes only, no l{box.norm} balls")
        if box.shape != self.input_shape:
            raise ConfigError(
                f"bound {self.name!r} was prepared for inputs of shape {list(self.input_shape)}; "
                f"the box has {list(box.shape)}"
            )
        if spec is not None and (spec.ndim != 3 or len(spec) != len(box)):
            raise ConfigError(
                f"a spec has shape [batch, rows, classes]; got {list(spec.shape)} for a batch of {len(box)}"
            )
        end = box.lower if isinstance(box, Box) else box.center
        check_kind(self._network, end, "the box is")
        if end.dtype not in (torch.float32, torch.float64):
            raise ConfigError(
                f"bounds are of float32 or float64, not of {end.dtype}, whose rounding they would not survive"
            )
        if spec is not None and not len(box):  # as where an attack left no image standing
            nothing = spec.new_empty(0, spec.shape[1])
            return Interval(nothing, nothing, sound=self.sound)
        if torch.is_inference_mode_enabled():  # its tensors take no gradient, which some bounds climb by
            with torch.inference_mode(False), torch.no_grad():
                copied = box[torch.arange(len(box))]
                return self(copied, None if spec is None else spec.clone())
        with full_float32():
            lower, upper = self._function(box, spec)
        # No number, as of a logarithm whose input may be negative, or beyond the dtype: nothing is said.
        lower, upper = lower.masked_fill(lower.isnan(), -torch.inf), upper.masked_fill(upper.isnan(), torch.inf)
        return Interval(lower, upper, sound=self.sound)


def register_bound(
    name: str,
    *,
    sound: bool,
    differentiable: bool,
    takes: str,
    by: str | None = None,
    balls: bool = False,
    unsound_with: tuple[str, ...] = (),
    rigorous: bool = False,
) -> Callable[[Callable[..., BoundFunction]], Callable[..., BoundFunction]]:
    """Register the decorated function as the bound `name`, or as that bound `by` another toolkit. Raises ConfigError
    where the name is taken."""

    def register(prepare: Callable[..., BoundFunction]) -> Callable[..., BoundFunction]:
        toolkits = _toolkits.setdefault(name, Registry(f"bound {name!r} by"))
        unsound = frozenset(unsound_with)
        entry = Registered(name, prepare, sound, differentiable, takes, balls, unsound, rigorous, toolkits)
        if by is None:
            _registry.add(name, entry, prepare.__module__)
        else:
            toolkits.add(by, replace(entry, by={}), prepare.__module__)
        return prepare

    return register


def bounds() -> Mapping[str, Registered]:
    """Return every registered bound by name."""
    return _registry


def get_bound(name: str) -> Registered:
    """Return the entry called `name`. Raises ConfigError with the nearest names where there is none."""
    return _registry.find(name)


def prepare(name: str, network: nn.Module, input_shape: tuple[int, ...] | torch.Size, **options: Any) -> PreparedBound:
    """Make the bound `name` ready for `network` on inputs of `input_shape` (without the batch).

    Raises UnsupportedLayer, naming the layer, where the bound cannot take the network, and ConfigError for
    an unknown bound or option.
    """
    sound = get_bound(name).soundness(options)
    entry, own = get_bound(name).chosen(options)
    shape = torch.Size(input_shape)
    function = entry.prepare(network, shape, **own)
    return PreparedBound(name, sound, entry.differentiable, entry.balls, shape, network, function)


def prepare_lower(
    name: str, network: nn.Module, input_shape: tuple[int, ...] | torch.Size, **options: Any
) -> PreparedBound:
    """Make a bound ready as `prepare` does, for its lower ends only: half the work where it can spare the others."""
    spare = {"lower_only": True} if "lower_only" in get_bound(name).chosen(options)[0].options else {}
    return prepare(name, network, input_shape, **{**spare, **options})


def prepare_signs(
    name: str, network: nn.Module, input_shape: tuple[int, ...] | torch.Size, **options: Any
) -> PreparedBound:
    """Make a bound ready as `prepare_lower` does, to tell which rows are positive: it may stop at that."""
    spare = {"sign_only": True} if "sign_only" in get_bound(name).chosen(options)[0].options else {}
    return prepare_lower(name, network, input_shape, **{**spare, **options})


def bound(name: str, network: nn.Module, box: Region, spec: Tensor | None = None, **options: Any) -> Interval:
    """Bound the logits of `network` over `box`, or the linear functions of them that `spec` gives.

    Shapes: box [batch, *input], spec [batch, rows, classes], result [batch, rows].

    >>> box = Box.around(images, eps=0.1)
    >>> interval = bound("expected", network, box, margin_spec(labels, 10), masks="blockwise")
    """
    return prepare(name, network, box.shape, **options)(box, spec)


def load_bounds() -> None:
    """Import every bound of this folder and of the entry-point group `etb_plugin.bounds`."""
    load_all("etb_plugin.bounds", "bound")
