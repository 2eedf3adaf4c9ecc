"""Running a study: its cases one after the other, kept on disk as they come, so that it resumes."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from etb_plugin.files import claimed, once, write_json
from etb_plugin.report.plots import save_figure
from etb_plugin.results import SCHEMA, environment
from etb_plugin.studies.registry import Case, Claim, Row, Study


def run_study(
    study: Study,
    parameters: Mapping[str, Any],
    folder: Path,
    *,
    watch: Callable[[int, int, Case], None] = lambda done, total, case: None,
) -> list[Claim]:
    """Measure every case that is not done, write results.json, figure.png and figure.pdf, and return the claims.

    `watch` is told how many cases are done, how many there are, and which comes next. Raises ConfigError where the
    folder holds something else, and DataError where a study's data is missing.
    """

    def measured(case: Case) -> Row:
        return {**case, **study.measure(case, parameters, folder)}

    cases = study.cases(parameters)
    with claimed(folder, {"study": study.name, **parameters}):
        rows = []
        for number, case in enumerate(cases):
            watch(number, len(cases), case)
            rows.append(once(folder / "cases" / f"{_name(case)}.json", partial(measured, case)))
        watch(len(cases), len(cases), {})
        claims = study.claims(rows, parameters)
        content = {
            "schema": SCHEMA,
            "study": study.name,
            "parameters": dict(parameters),
            "environment": environment("cpu"),
            "claims": [asdict(claim) for claim in claims],
            "rows": rows,
        }
        write_json(folder / "results.json", content)
        save_figure(study.draw(rows, parameters), folder / "figure")
    return claims


def _name(case: Case) -> str:
    return "-".join(f"{key}={value}" for key, value in case.items()).replace("/", "_")
