"""Results: one record per network and test eps, and the files that hold them (schema 1, design section 6)."""

import contextlib
import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from etb_plugin import __version__
from etb_plugin.errors import SoundnessError
from etb_plugin.evaluation import Evaluation
from etb_plugin.files import write_file, write_json
from etb_plugin.shown import Shown, csv_text, spread
from etb_plugin.training import Training

SCHEMA = 1
_COSTS = ("train_seconds", "seconds_per_epoch", "step_ms", "nominal_step_ms", "peak_memory_mib")
_PACKAGES = ("torch", "auto_LiRPA", "convex_adversarial", "numpy")


@dataclass(frozen=True)
class Result(Shown):
    """One row of a comparison. Accuracies are shares in [0, 1], eps in pixel units, memory in MiB.

    `changes` are those to the method's defaults. `verified` holds what `etb verify` found of some of the test images:
    which ones, and shares of them. What training cost is None where the network was not trained here. With `rigorous`
    certificates hold in real arithmetic.
    Raises SoundnessError unless every certified accuracy <= a further attack's, if any, <= PGD <= clean accuracy.
    """

    method: str
    dataset: str
    model: str
    seed: int | None
    eps_train: float | None
    eps_test: float
    clean_accuracy: float
    fgsm_accuracy: float
    pgd_accuracy: float
    pgd_robustness: float
    certified_accuracy: dict[str, float]
    expected_accuracy: float
    images: int
    train_seconds: float | None
    seconds_per_epoch: float | None
    step_ms: float | None
    nominal_step_ms: float | None
    peak_memory_mib: float | None
    parameters: int
    changes: dict[str, Any] = field(default_factory=dict)
    verified: dict[str, Any] | None = None
    attacked_accuracy: dict[str, float] = field(default_factory=dict)
    rigorous: bool = False

    def __post_init__(self) -> None:
        pgd = ("PGD", self.pgd_accuracy)
        least = next(((f"under {name}", value) for name, value in self.attacked_accuracy.items()), pgd)
        pairs = [((f"certified by {name}", value), least) for name, value in self.certified_accuracy.items()]
        for (lower, small), (upper, large) in [*pairs, (least, pgd), (pgd, ("clean", self.clean_accuracy))]:
            if not small <= large:
                raise SoundnessError(
                    f"{self.method} at eps {self.eps_test:g}: accuracy {lower} {small} exceeds {upper} {large}; "
                    f"this is a bug in the code: please report it"
                )

    def rows(self) -> list[dict[str, Any]]:
        """Return the row of results.csv: each bound's certified accuracy, and what was verified, in columns."""
        prefixes = {"verified": "verification", "attacked_accuracy": "attacked", "certified_accuracy": "certified"}
        return [spread(asdict(self), **prefixes)]

    @property
    def relative_step(self) -> float | None:
        """A training step's time relative to a nominal one of the same network and batch size."""
        if self.step_ms is None or self.nominal_step_ms is None:
            return None
        return self.step_ms / self.nominal_step_ms

    @classmethod
    def of(
        cls, about: Mapping[str, Any], evaluation: Evaluation, training: Training | None, parameters: int
    ) -> "Result":
        """Return the row of one evaluation; `about` names method, dataset, model, seed and eps."""
        measured = asdict(evaluation)
        costs: dict[str, Any] = {name: training and getattr(training, name) for name in _COSTS}
        return cls(
            method=about["method"],
            dataset=about["dataset"],
            model=about["model"],
            seed=about["seed"],
            eps_train=about["eps"],
            eps_test=measured.pop("eps"),
            parameters=parameters,
            changes=about.get("changes", {}),
            **costs,
            **measured,
        )


@dataclass(frozen=True)
class Candidate:
    """One point of a method's grid: its changes, the validation images' evaluations, and what it is chosen by."""

    changes: dict[str, Any]
    score: float
    validation: list[Evaluation]


def write_results(
    folder: Path,
    experiment: Mapping[str, Any],
    device: str,
    results: Sequence[Result],
    grids: Mapping[str, Sequence[Candidate]],
) -> None:
    """Write results.json and results.csv to `folder`, each whole or not at all. Where these figures are there already
    the environment stays: that in which they were measured, not that of who asks again."""
    content = {
        "schema": SCHEMA,
        "experiment": dict(experiment),
        "environment": environment(device),
        "cells": [asdict(result) for result in results],
        "grids": {label: [asdict(candidate) for candidate in candidates] for label, candidates in grids.items()},
    }
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # none yet, or one that is no more to be read
        before = json.loads((folder / "results.json").read_text())
        if all(before[key] == json.loads(json.dumps(content[key])) for key in ("cells", "grids")):
            content["environment"] = before["environment"]
    write_json(folder / "results.json", content)
    write_file(folder / "results.csv", csv_text([row for result in results for row in result.rows()]))


def environment(device: str) -> dict[str, Any]:
    """Return what the figures depend on: versions, the device in words, threads. No name of the machine."""
    return {
        "versions": {"python": platform.python_version(), "etb_plugin": __version__} | dict(_versions()),
        "system": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def _versions() -> Iterator[tuple[str, str]]:
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):  # auto_LiRPA is an extra
            yield name, metadata.version(name)


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown CPU"
