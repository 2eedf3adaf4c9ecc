"""What the cells of a comparison will cost, before any is begun.

Kept in the run folder, so that workers and later calls know it: estimates.json, by cell.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from etb_plugin.comparison.cells import Cell
from etb_plugin.data import Dataset
from etb_plugin.errors import ConfigError
from etb_plugin.files import read_json, write_json
from etb_plugin.memory import machine_memory
from etb_plugin.training import Estimate, estimate, schedule_of

_ENOUGH = 30.0
"""Seconds of measuring after which a cell of a method and network that were measured is taken to cost the same."""


def read_estimates(folder: Path) -> dict[str, Estimate]:
    """Return the estimates that a run folder holds, by cell."""
    file = folder / "estimates.json"
    if not file.exists():
        return {}
    return {
        cell: Estimate(tuple(e["begins"]), tuple(e["seconds_per_step"]), e["steps"], e["mib"])
        for cell, e in read_json(file).items()
    }


def write_estimates(folder: Path, known: dict[str, Estimate]) -> None:
    """Keep estimates in a run folder."""
    write_json(folder / "estimates.json", {cell: asdict(one) for cell, one in known.items()})


def estimated(
    cells: Iterable[Cell], data: Dataset, untrained: Callable[[Cell], nn.Module], known: dict[str, Estimate]
) -> dict[str, Estimate]:
    """Return an estimate for each of the cells, by their ids: those that are `known`, and new ones.

    Cells that differ in their seed alone cost the same. Raises ConfigError for a cell that does not fit in memory.
    """
    found = dict(known)
    kinds: dict[tuple[object, ...], Estimate] = {}
    likes: dict[tuple[str, str], Estimate] = {}
    begun = time.monotonic()
    for cell in cells:
        like = (cell.method.name, cell.model)
        kind = (*like, repr(cell.method), cell.eps)
        if cell.id in found:
            kinds[kind] = found[cell.id]
        elif kind not in kinds and like in likes and time.monotonic() - begun > _ENOUGH:
            kinds[kind] = likes[like]
        elif kind not in kinds:
            schedule = schedule_of(cell.method, data, cell.settings)
            batch, capture = cell.settings.batch_size, cell.settings.capture
            kinds[kind] = estimate(untrained(cell), cell.method, data, schedule, batch, capture)
        found[cell.id] = likes[like] = kinds[kind]
        _check_memory(cell, found[cell.id], data.train.images.device)
    return found


def _check_memory(cell: Cell, cost: Estimate, device: torch.device) -> None:
    there = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else machine_memory()
    if there is not None and cost.mib * 2**20 > there:
        raise ConfigError(
            f"{cell.method.name} on {cell.model} needs about {cost.mib / 1024:.0f} GiB a step, and there are "
            f"{there / 2**30:.0f}: work through a batch in parts, as in --methods {cell.method.name}:micro_batch=10"
        )
