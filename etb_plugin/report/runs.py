"""Runs as a report needs them: results.json read and checked, and the logs of the cells."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from etb_plugin.comparison.work import MARGIN
from etb_plugin.errors import CheckpointError, SoundnessError
from etb_plugin.experiment import eps_text
from etb_plugin.results import SCHEMA, Result
from etb_plugin.training import read_metrics

_ROWS = TypeAdapter(Result)


@dataclass(frozen=True, eq=False)
class Run:
    """What a run folder holds: its experiment and environment as results.json has them, and its results."""

    name: str
    folder: Path
    experiment: dict[str, Any]
    environment: dict[str, Any]
    results: list[Result]


def read_run(path: Path) -> Run:
    """Return the run in a folder, or in a results.json.

    Raises CheckpointError where there is none, or where a row was edited by hand into what cannot be.
    """
    file = path / "results.json" if path.is_dir() else path
    if not file.exists():
        raise CheckpointError(f"{path} holds no results.json: is it a run folder, and has any cell finished?")
    try:
        content = json.loads(file.read_text())
        schema = content.get("schema")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from None
    if schema != SCHEMA:
        raise CheckpointError(f"{file} has schema {schema}, and this version of etb reads {SCHEMA}")
    if not isinstance(content.get("cells"), list) or not content["cells"]:
        raise CheckpointError(f"{file} holds no results of a comparison")
    if not all(isinstance(content.get(key, {}), dict) for key in ("experiment", "environment")):
        raise CheckpointError(f"{file}: experiment and environment are mappings")
    results = [_row(file, number, row) for number, row in enumerate(content["cells"])]
    name = file.resolve().parent.name if file.name == "results.json" else file.stem
    return Run(name, file.parent, content.get("experiment", {}), content.get("environment", {}), results)


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Return several runs, with names that differ. Raises like `read_run`."""
    runs = [read_run(path) for path in paths]
    names = [run.name for run in runs]
    return [
        replace(run, name=str(path)) if names.count(run.name) > 1 else run
        for run, path in zip(runs, paths, strict=True)
    ]


def find_runs(folder: Path) -> list[Run]:
    """Return every run below a folder. Raises CheckpointError where there is none."""
    if not folder.is_dir():
        raise CheckpointError(f"there is no folder {folder}")
    files = [file for file in sorted(folder.rglob("results.json")) if "cells" in _keys(file)]
    if not files:
        raise CheckpointError(f"{folder} holds no results.json of a comparison, at any depth")
    return read_runs([file.parent for file in files])


def merged(runs: Sequence[Run]) -> list[Result]:
    """Return all results. Rows of one method from several runs are seeds of it where the runs were trained and tested
    alike from different seeds; otherwise the run's name stands behind the method's."""
    owners: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        for row in run.results:
            known = owners.setdefault(_line(row), [])
            if run not in known:
                known.append(run)
    seeds = {run: {row.seed for row in run.results} for run in runs}
    apart = {
        (run.name, row.method)
        for run in runs
        for row in run.results
        for other in owners[_line(row)]
        if other is not run and not (_alike(run, other) and row.seed not in seeds[other])
    }
    return [
        replace(row, method=f"{row.method} ({run.name})") if (run.name, row.method) in apart else row
        for run in runs
        for row in run.results
    ]


def by_dataset(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Return the results of each data set: what a table or a plot can hold."""
    found: dict[str, list[Result]] = {}
    for row in results:
        found.setdefault(row.dataset, []).append(row)
    return found


def _line(row: Result) -> tuple[Any, ...]:
    return row.method, row.dataset, row.model, row.eps_train


def _alike(one: Run, other: Run) -> bool:
    return all(one.experiment.get(key) == other.experiment.get(key) for key in ("training", "evaluation"))


def row_names(results: Sequence[Result]) -> dict[tuple[str, str, float | None], str]:
    """Return how a table calls the networks of each method, model and training eps: by as much of it as tells them
    apart."""
    models = {r.model for r in results}
    radii: dict[str, set[float | None]] = {}
    for r in results:
        radii.setdefault(r.method, set()).add(r.eps_train)
    names = {}
    for r in results:
        parts = [r.method]
        parts += [r.model] * (len(models) > 1)
        if len(radii[r.method]) > 1 and r.eps_train is not None:
            parts.append(f"eps {eps_text(r.eps_train)}")
        names[r.method, r.model, r.eps_train] = ", ".join(parts)
    return names


@dataclass(frozen=True)
class Example:
    """Test images [n, *input] with their labels, what PGD at `eps` made of them for the network of one cell, and what
    it says of them before and after; `margins`, by each certifier, lower ends of the label's margin over the box [n].
    The cells of a table's row, its seeds, share its `name`."""

    name: str
    seed: int | None
    dataset: str
    eps: float
    images: np.ndarray
    labels: np.ndarray
    points: np.ndarray
    before: np.ndarray
    after: np.ndarray
    margins: dict[str, np.ndarray]


def examples(run: Run) -> Iterator[Example]:
    """Yield the attacked images that the cells of a run kept, in the order of its results."""
    names = row_names(run.results)
    for row, folder in _cells(run):
        file = folder / "examples.npz"
        if file.exists():
            name = names[row["method"], row["model"], row["eps_train"]]
            with np.load(file) as kept:
                pictures: dict[str, Any] = {key: kept[key] for key in _KEPT}
                margins = {key.removeprefix(MARGIN): kept[key] for key in kept.files if key.startswith(MARGIN)}
                yield Example(name, row["seed"], row["dataset"], float(kept["eps"]), **pictures, margins=margins)


_KEPT = ("images", "labels", "points", "before", "after")


def logs(run: Run) -> Iterator[tuple[dict[str, Any], list[dict[str, float]]]]:
    """Yield what is known of each trained cell of a run, and its metrics, epoch by epoch."""
    for row, folder in _cells(run):
        if epochs := read_metrics(folder):
            yield row, epochs


def _cells(run: Run) -> list[tuple[dict[str, Any], Path]]:
    """Return a row and the folder of each cell that is done and among the results, in their order."""
    order = {(r.method, r.model, r.eps_train, r.seed): n for n, r in reversed(list(enumerate(run.results)))}
    found = []
    for file in run.folder.glob("cells/*/result.json"):
        row = json.loads(file.read_text())["rows"][0]
        place = order.get((row["method"], row["model"], row["eps_train"], row["seed"]))
        if place is not None:
            found.append((place, row, file.parent))
    return [(row, folder) for _, row, folder in sorted(found, key=lambda cell: cell[0])]


def _row(file: Path, number: int, row: Any) -> Result:
    try:
        return _ROWS.validate_python(row)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise CheckpointError(
            f"{file}, cells[{number}].{key}: {first['msg'][0].lower()}{first['msg'][1:]}; was it edited by hand?"
        ) from None
    except SoundnessError as error:
        said = str(error).partition(";")[0]
        raise CheckpointError(f"{file}, cells[{number}]: {said}; no run writes that: was it edited by hand?") from None


def _keys(file: Path) -> Sequence[str]:
    try:
        content = json.loads(file.read_text())
        return list(content) if isinstance(content, dict) else []
    except (OSError, ValueError):
        return []
