"""A method as `methods` names it: some of its numbers changed, or a grid of them."""

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, model_serializer, model_validator
from pydantic_core import CoreSchema

from etb_plugin.errors import ConfigError
from etb_plugin.experiment.values import read_eps
from etb_plugin.registry import named_options

if TYPE_CHECKING:
    from etb_plugin.objectives import Method


class Variant(BaseModel):
    """A method, some of its numbers changed, or a grid of them.

    Written as `ibp`, as `ibp:elision=false:eps=0.2`, or in a file as a mapping: `ibp: {kappa: 0.5, name: mine,
    grid: {eps: [0.1, 0.2]}}`. The keys are those of `Method.changeable`, and `eps`, the training radius.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: str
    name: str | None = None
    changes: dict[str, Any] = {}
    grid: dict[str, list[Any]] = {}

    @model_validator(mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        if isinstance(value, Variant):
            return value
        if isinstance(value, str):
            try:
                method, changes = named_options(value)
            except ConfigError as error:
                raise ValueError(str(error)) from None
            return {"method": method, "changes": changes}
        if isinstance(value, dict) and len(value) == 1 and isinstance(next(iter(value.values())), dict):
            ((method, changes),) = value.items()
            special = {key: changes[key] for key in ("name", "grid") if key in changes}
            return {"method": method, "changes": {k: v for k, v in changes.items() if k not in special}, **special}
        raise ValueError(f"{value!r} is no method; write ibp, ibp:kappa=0.5 or ibp: {{kappa: 0.5}}")

    @model_validator(mode="after")
    def _has_points(self) -> "Variant":
        for key, values in self.grid.items():
            if not values:
                raise ValueError(f"the grid of {self.label!r} has no value for {key}")
        return self

    @model_serializer
    def _plain(self) -> Any:
        special = {key: value for key, value in (("name", self.name), ("grid", self.grid)) if value}
        return {self.method: {**self.changes, **special}} if self.changes or special else self.method

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Return what an editor completes: the methods' names, and each one's keys."""
        from etb_plugin.objectives import methods

        named = {
            name: {
                "type": "object",
                "description": method.summary,
                "properties": {key: {} for key in (*method.changeable, "eps", "name")} | {"grid": {"type": "object"}},
                "additionalProperties": False,
            }
            for name, method in methods().items()
        }
        written = {"type": "object", "properties": named, "additionalProperties": False, "maxProperties": 1}
        return {"anyOf": [{"enum": list(named)}, {"type": "string", "pattern": ":"}, written]}

    @property
    def label(self) -> str:
        """What the row is called: `name`, or the method and its changes."""
        return self.name or changed_text(self.method, self.changes)

    def points(self) -> list[dict[str, Any]]:
        """Return the changes of every point of the grid; those of the method alone where there is none."""
        return [
            {**self.changes, **dict(zip(self.grid, values, strict=True))}
            for values in itertools.product(*self.grid.values())
        ]

    def at(self, changes: Mapping[str, Any], eps: float) -> "tuple[Method, float]":
        """Return the changed method and its training radius, `eps` unless changed. Raises ConfigError."""
        from etb_plugin.objectives import get_method

        own = {key: value for key, value in changes.items() if key != "eps"}
        method = get_method(self.method).changed(own)
        try:
            return method, read_eps(changes["eps"]) if "eps" in changes else eps
        except ValueError as error:
            raise ConfigError(f"method {self.method!r}: eps: {error}") from None


def changed_text(name: str, changes: Mapping[str, Any]) -> str:
    """Return a method with its changes in one line."""
    return " ".join((name, *(f"{key}={_value_text(value)}" for key, value in changes.items())))


def ramp_text(start: float, end: float, wait: float | str = 0, length: float | str = 0, form: str = "linear") -> str:
    """Return a whole ramp, of the keys of `objectives.Ramp`, in a few words."""
    if start == end:
        return f"{end:g}"
    spans = (
        f"{word} {span if isinstance(span, str) else f'{span:.4g}'}"
        for word, span in (("wait", wait), ("over", length))
        if span
    )
    how = ", ".join((*spans, *(() if form == "linear" else (form,))))
    return f"{start:g}→{end:g}" + (f" ({how})" if how else "")


def _value_text(value: Any) -> str:
    if isinstance(value, dict):  # some keys of a ramp, or of an attack
        if value.keys() >= {"start", "end"}:
            return ramp_text(**value)
        return "{" + ", ".join(f"{key}: {_value_text(part)}" for key, part in value.items()) + "}"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
