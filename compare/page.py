"""Write docs/results.md from the files of compare/results, in the order of compare/page.yaml.

    python compare/page.py            # after a result and its entry were added
    python compare/page.py --check    # exit status 1 where the page says something else

Nothing on the page is typed by hand but titles, commands, dates and notes.
"""

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from etb_plugin.report.figures import draw
from etb_plugin.report.published import Beside, beside
from etb_plugin.report.runs import Run, by_dataset, merged, read_runs
from etb_plugin.report.sheet import comparison_sheet, percent
from etb_plugin.report.text import markdown, markdown_table

TOP = Path(__file__).parent
RESULTS, PAGE, PLOT = TOP / "results", TOP.parent / "docs" / "results.md", TOP.parent / "docs" / "pareto.png"
HEAD = """\
# Results

What was measured, and how to measure it again. `python compare/page.py` writes this page from the files of
[compare/results](../compare/results), where [more is said](../compare/results/README.md) of what the figures mean.
Everything here ran on two CPU cores, without a GPU. MNIST is the original data set.

![Clean against certified accuracy, by the best sound bound, for each method](pareto.png)

MNIST, small, trained and tested at 0.1, 20 epochs: the first comparison below as a picture, without `pgd` and
`exp-ibp`, for whose networks far less is certified. Small marks are seeds. On 1,000 images an interval of 95 %
reaches 1.4 to either side: most of these methods cannot be told apart by it.
"""


def main() -> None:
    order = yaml.safe_load((TOP / "page.yaml").read_text())
    text = page(order)
    if "--check" in sys.argv:
        sys.exit(0 if PAGE.read_text() == text else f"{PAGE} differs from the results: run python compare/page.py")
    PAGE.write_text(text)
    first = order["comparisons"][0]
    results = [result for result in merged(runs_of(first)) if result.method not in first["unplotted"]]
    draw(results, ())["pareto"].savefig(PLOT, dpi=110)


def page(order: dict[str, Any]) -> str:
    shown = {name for entry in order["comparisons"] for name in entry["results"]}
    missing = {file.stem for file in RESULTS.glob("*.json") if "cells" in json.loads(file.read_text())} - shown
    if missing:
        sys.exit(f"compare/page.yaml does not say how these were made: {', '.join(sorted(missing))}")
    parts = [HEAD, "## Published, and here\n", *published(order["comparisons"]), "## Comparisons\n"]
    for entry in order["comparisons"]:
        parts += comparison(entry)
    parts.append("## Studies: figures and tables of the papers, and our own\n")
    for name, command in order["studies"].items():
        parts += study(name, command)
    return "\n".join(parts)


def published(entries: list[dict[str, Any]]) -> Iterator[str]:
    """Yield a table of published verified errors and ours: ours is a match where the published one lies in its interval
    of 95 %, or above it."""
    header = ["source", "network", "eps", "here", "published: clean / PGD / verified", "ours", "by", "verdict"]
    rows = []
    for entry in entries:
        if "length" not in entry:
            continue
        runs = runs_of(entry)
        images = min(result.images for run in runs for result in run.results)
        for one in beside(merged(runs)):
            p = one.published
            theirs = " / ".join("-" if e is None else f"{100 * e:.2f}" for e in (p.clean, p.pgd, p.verified))
            ours = f"{percent(one.clean)} / {percent(one.pgd)} / {percent(one.verified)}"
            length = f"{entry['length']}, {images:,} images"
            rows.append([p.source, p.model, f"{p.eps:g}", length, theirs, ours, one.verified_by, verdict(one, images)])
    yield markdown_table(header, rows)
    yield (
        "Errors in percent. ✅: the published verified error lies in our interval of 95 % or above it; otherwise by "
        "how much ours lies above it, and half of our interval. PGD here has 40 steps; what the papers verified and "
        "attacked by is in `etb report --against paper`.\n"
    )


def verdict(one: Beside, images: int) -> str:
    if one.published.verified is None:
        return ""
    half = 1.96 * math.sqrt(one.verified * (1 - one.verified) / images)
    above = one.verified - one.published.verified
    return "✅" if above <= half else f"{100 * above:.2f} above (± {100 * half:.2f})"


def comparison(entry: dict[str, Any]) -> Iterator[str]:
    runs = runs_of(entry)
    yield f"### {entry['title']}\n"
    yield "".join(f"    {command}\n" for command in entry["commands"])
    yield f"{entry['date']}, {'; '.join(dict.fromkeys(machine(run.environment) for run in runs))}.\n"
    for dataset, results in by_dataset(merged(runs)).items():
        yield markdown(comparison_sheet(results, dataset))
    if "note" in entry:
        yield f"{entry['note']}\n"


def study(name: str, command: str) -> Iterator[str]:
    content = json.loads((RESULTS / f"{name}.json").read_text())
    yield f"### {content['study']}\n"
    yield f"    {command}\n"
    yield f"{machine(content['environment'])}.\n"
    rows = [[claim[key] for key in ("text", "source", "published", "measured")] for claim in content["claims"]]
    yield markdown_table(["what", "source", "published", "here"], rows)


def machine(environment: dict[str, Any]) -> str:
    versions, threads = environment["versions"], environment["threads"]
    return (
        f"{environment['device'].replace('(R)', '')}, {environment['cores']} cores, {threads} "
        f"{'thread' if threads == 1 else 'threads'}, etb_plugin {versions['etb_plugin']}, torch {versions['torch']}"
    )


def runs_of(entry: dict[str, Any]) -> list[Run]:
    return read_runs([RESULTS / f"{name}.json" for name in entry["results"]])


if __name__ == "__main__":
    main()
