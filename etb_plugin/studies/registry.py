"""What a study is, and the studies by name."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from etb_plugin.errors import ConfigError, unknown_name
from etb_plugin.registry import Registry

Parameters = Mapping[str, Any]
"""A study's sizes by name: numbers, strings and lists of them."""
Case = dict[str, Any]
"""One piece of a study that can be measured by itself: numbers and strings by name."""
Row = dict[str, Any]
"""A case with the figures measured for it: numbers, strings and lists of them."""


@dataclass(frozen=True)
class Claim:
    """What a paper says, where, and the figure measured here beside the published one."""

    text: str
    source: str
    published: str
    measured: str


@dataclass(frozen=True)
class Study:
    """A figure or table. `question` is one line; `quick` and `full` are its sizes, a minute's and the paper's.

    `measure` gets a case, the parameters, and a folder in which it may keep what it trains. A case is measured once:
    equal cases under equal parameters give equal figures.
    """

    name: str
    question: str
    source: str
    quick: Parameters
    full: Parameters
    cases: Callable[[Parameters], list[Case]]
    measure: Callable[[Case, Parameters, Path], Row]
    claims: Callable[[Sequence[Row], Parameters], list[Claim]]
    draw: Callable[[Sequence[Row], Parameters], Figure]

    def parameters(self, full: bool, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Return the sizes with `changes`. Raises ConfigError for a parameter that the study does not have."""
        values = dict(self.full if full else self.quick)
        for key, value in changes.items():
            if key not in values:
                raise unknown_name(f"parameter of study {self.name!r}", key, values)
            if not isinstance(value, type(values[key])) and not isinstance(values[key], int | float | None):
                raise ConfigError(f"{key} of study {self.name!r} is like {values[key]!r}; got {value!r}")
            values[key] = value
        return values


_registry: Registry[Study] = Registry("study")


def register_study(study: Study) -> Study:
    """Make `study` known by its name. Raises ConfigError where the name is taken."""
    _registry.add(study.name, study)
    return study


def studies() -> Mapping[str, Study]:
    """Return every registered study by name."""
    return _registry


def get_study(name: str) -> Study:
    """Return the study called `name`. Raises ConfigError with the nearest names where there is none."""
    return _registry.find(name)
