"""The cells of an experiment: what is trained, and what it is called.

A *cell* is one method trained once: on one architecture, at one radius, from one seed. It keeps its own folder, named
by a hash of all that determines its weights, whatever else the experiment holds. An *entry* is a line of the table: a
cell, or the cells of a grid, of which the best on the validation images is put to the test images.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from etb_plugin.experiment import Resolved, eps_text
from etb_plugin.objectives import Method
from etb_plugin.registry import own_code
from etb_plugin.training import Settings


@dataclass(frozen=True, eq=False)
class Cell:
    """One method with all that determines its weights; `changes` to its defaults are in `method`."""

    experiment: Resolved
    data_digest: str
    model: str
    method: Method
    eps: float
    seed: int
    changes: Mapping[str, Any]

    @cached_property
    def id(self) -> str:
        """A readable name and a hash."""
        e, t = self.experiment, self.experiment.training
        parts = (
            *(e.dataset, self.data_digest, self.model, self.eps, t.epochs, t.batch_size, t.lr, self.seed),
            *(e.device, t.compile),
            *_own(self.model),
        )
        digest = hashlib.sha256(repr((*parts, self.method)).encode()).hexdigest()[:8]
        model = re.sub(r"[^\w-]+", "-", Path(self.model).name)
        return f"{self.method.name}-{model}-seed{self.seed}-{digest}"

    @property
    def settings(self) -> Settings:
        """What the run is trained with, besides the method."""
        t = self.experiment.training
        rate = None if "learning_rate" in self.changes else t.lr
        return Settings(self.eps, t.epochs, t.batch_size, rate, self.seed, t.compile, t.capture == "auto")

    @property
    def folder(self) -> Path:
        """Where its files lie."""
        return self.experiment.folder / "cells" / self.id


def _own(model: str) -> tuple[str, ...]:
    """Return a hash of the file where a network is a user's own code: what it is may change under its name."""
    found = own_code(model)
    if found is None:
        return ()
    try:
        return (hashlib.sha256(found[0].read_bytes()).hexdigest(),)
    except OSError:
        return ("",)


@dataclass(frozen=True, eq=False)
class Entry:
    """A line of the table: `label` is the method's, `name` says in what else it differs from other entries."""

    label: str
    name: str
    cells: tuple[Cell, ...]


def entries(experiment: Resolved, data_digest: str) -> list[Entry]:
    """Return every entry of the experiment, method by method. Raises ConfigError for a change that cannot be.

    A method that sets its own eps, or does without one, has one entry for all radii of the experiment.
    """
    found = []
    for variant in experiment.methods:
        points = [(changes, *variant.at(changes, experiment.eps[0])) for changes in variant.points()]
        own = any("eps" in changes for changes, *_ in points) or not any(m.uses_eps for _, m, _ in points)
        radii = experiment.eps[:1] if own else experiment.eps
        for model in experiment.model:
            for eps in radii:
                for seed in experiment.seed:
                    cells = tuple(
                        Cell(experiment, data_digest, model, method, at if own else eps, seed, changes)
                        for changes, method, at in points
                    )
                    parts = [variant.label]
                    parts += [model] * (len(experiment.model) > 1)
                    parts += [f"eps {eps_text(eps)}"] * (len(radii) > 1)
                    parts += [f"seed {seed}"] * (len(experiment.seed) > 1)
                    found.append(Entry(variant.label, ", ".join(parts), cells))
    return found


@dataclass(frozen=True)
class Task:
    """A piece of work that nothing else waits for: one point of an entry, to be put to the validation images or to the
    test images."""

    entry: Entry
    point: int
    validate: bool

    @property
    def cell(self) -> Cell:
        """The cell to be trained, if it is not."""
        return self.entry.cells[self.point]

    @property
    def name(self) -> str:
        """What it is called while it runs."""
        of = f" {self.point + 1}/{len(self.entry.cells)}" if self.validate else ""
        return self.entry.name + of

    @property
    def key(self) -> tuple[str, bool]:
        """What tells it from other tasks, in any process."""
        return self.cell.id, self.validate


def candidates(every: list[Entry]) -> Iterator[Task]:
    """Yield the tasks that have to be done before the best points of grids are known."""
    for entry in every:
        if len(entry.cells) > 1:
            for point in range(len(entry.cells)):
                yield Task(entry, point, True)
