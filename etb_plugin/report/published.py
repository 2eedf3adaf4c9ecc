"""What papers published, beside what was measured here: the figures are in published.yaml."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from statistics import fmean
from typing import Any

import yaml

from etb_plugin.experiment.values import read_eps
from etb_plugin.results import Result


@dataclass(frozen=True)
class Published:
    """One line of a paper's table. Errors are shares in [0, 1], None where the paper has none."""

    source: str
    note: str
    dataset: str
    eps: float
    method: str
    model: str
    clean: float | None
    pgd: float | None
    verified: float | None


@dataclass(frozen=True)
class Beside:
    """A published line and ours for the same data set, test radius, method and network: mean errors over our seeds.
    `verified` is by the best of our sound bounds, or by `etb verify` of all images, and its name."""

    published: Published
    label: str
    clean: float
    pgd: float
    verified: float
    verified_by: str


@cache
def published() -> tuple[Published, ...]:
    """Return every published line."""
    blocks: list[dict[str, Any]] = yaml.safe_load(files("etb_plugin.report").joinpath("published.yaml").read_text())
    return tuple(
        Published(
            f"{block['paper']}, {block['table']}",
            block["note"],
            row["dataset"],
            read_eps(row["eps"]),
            row["method"],
            row["model"],
            *(None if row.get(key) is None else row[key] / 100 for key in ("clean", "pgd", "verified")),
        )
        for block in blocks
        for row in block["rows"]
    )


def beside(results: Sequence[Result]) -> Iterator[Beside]:
    """Yield each published line for which there are results, with the row that has the least verified error.

    A row's method is the first word of its label, or of its name.
    """
    for line in published():
        groups: dict[tuple[str, float | None], list[Result]] = {}
        for r in results:
            same = (r.dataset, r.model, r.method.replace(",", " ").split()[0]) == (
                line.dataset,
                line.model,
                line.method,
            )
            if same and abs(r.eps_test - line.eps) < 1e-9:
                groups.setdefault((r.method, r.eps_train), []).append(r)
        ours = [_beside(line, label, rows) for (label, _), rows in groups.items()]
        if ours:
            yield min(ours, key=lambda one: one.verified)


def _beside(line: Published, label: str, rows: Sequence[Result]) -> Beside:
    bounds = dict.fromkeys(name for row in rows for name in row.certified_accuracy)
    errors = {name: 1 - fmean(row.certified_accuracy.get(name, 0.0) for row in rows) for name in bounds}
    totals = [row.verified for row in rows if row.verified is not None and row.verified["images"] == [0, row.images]]
    if len(totals) == len(rows):  # of all images, as the papers verify
        errors["etb verify"] = 1 - fmean(total["verified_accuracy"] for total in totals)
    name = min(errors, key=errors.__getitem__, default="nothing")
    clean, pgd = (1 - fmean(getattr(row, key) for row in rows) for key in ("clean_accuracy", "pgd_accuracy"))
    return Beside(line, label, clean, pgd, errors.get(name, 1.0), name)
