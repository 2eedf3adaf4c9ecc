"""The pages that are written from committed results: what each of them shares."""

from pathlib import Path
from typing import Any

from etb_plugin.report.runs import Run, read_runs

TOP = Path(__file__).parents[1]
RESULTS, MODELS, DOCS = TOP / "results", TOP / "models", TOP.parent / "docs"


def runs_of(entry: dict[str, Any]) -> list[Run]:
    """Return the runs of a comparison of page.yaml."""
    return read_runs([RESULTS / f"{name}.json" for name in entry["results"]])


def machine(environment: dict[str, Any]) -> str:
    """Return on what figures were measured, in words."""
    versions, threads = environment["versions"], environment["threads"]
    return (
        f"{environment['device'].replace('(R)', '')}, {environment['cores']} cores, {threads} "
        f"{'thread' if threads == 1 else 'threads'}, etb_plugin {versions['etb_plugin']}, torch {versions['torch']}"
    )
