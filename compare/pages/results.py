"""docs/results.md: every committed comparison and study, and the papers' figures beside them; and README's table."""

import json
import math
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

from markdown.extensions.toc import slugify

from etb_plugin.report.published import Beside, beside
from etb_plugin.report.runs import by_dataset, merged
from etb_plugin.report.sheet import comparison_sheet, percent
from etb_plugin.report.text import markdown, markdown_table
from pages import RESULTS, machine, runs_of

_START, _END = "<!-- written by compare/page.py -->", "<!-- up to here -->"
_HEAD = """\
# Results

What was measured, and how to measure it again. `python compare/page.py` writes this page from the files of
[compare/results](../compare/results), where [more is said](../compare/results/README.md) of what the figures mean.
It ran on two CPU cores where no GPU is named. MNIST is the original data set, CIFAR-10 is not: its images were
compressed once as JPEG.

The pictures of certified training leave out methods for whose networks far less is certified (`pgd` and `exp-ibp` at
0.1). Small marks are seeds. On 1,000 images an interval of 95 % reaches 1.4 (at 0.1) to 2.8 (at 0.3) to either side:
most methods at 0.1 cannot be told apart by it.
"""


def page(order: dict[str, Any]) -> str:
    shown = {name for entry in order["comparisons"] for name in entry["results"]}
    missing = {file.stem for file in RESULTS.glob("*.json") if "cells" in json.loads(file.read_text())} - shown
    if missing:
        sys.exit(f"compare/page.yaml does not say how these were made: {', '.join(sorted(missing))}")
    parts = [_HEAD, *_seeds(order), "## Published, and here\n", *_published(order["comparisons"]), "## Comparisons\n"]
    for entry in order["comparisons"]:
        parts += _comparison(entry)
    parts.append("## Studies: figures and tables of the papers, and our own\n")
    for name, command in order["studies"].items():
        parts += _study(name, command)
    return "\n".join(parts)


def _seeds(order: dict[str, Any]) -> Iterator[str]:
    """Yield a line for each figure and table of the seeds, and how many are measured at full size, and as published."""
    titles = {entry["title"] for entry in order["comparisons"]}
    known = titles | {json.loads((RESULTS / f"{name}.json").read_text())["study"] for name in order["studies"]}
    rows, counts = [], Counter[str]()
    for seed in order["seeds"]:
        if seed["by"] not in {*known, None}:
            sys.exit(f"compare/page.yaml: {seed['item']} is measured by {seed['by']}, which is not on the page")
        full, as_published = seed["size"].startswith("full"), "but" not in seed
        counts[("as published" if as_published else "off") if full else "less"] += 1
        where = f"[{seed['by']}](#{slugify(seed['by'], '-')})" if seed["by"] else ""
        said = [seed[key] for key in ("but", "note") if key in seed]
        rows.append([seed["item"], where, seed["size"], "; ".join(["✓", *said] if full and as_published else said)])
    yield "## The figures and tables of the papers\n"
    yield (
        f"Of {len(rows)}: at full size {counts['as published']} as published (✓), {counts['off']} off; "
        f"{counts['less']} at less than that, or not run.\n"
    )
    yield markdown_table(["source", "measured by", "size here", "as published?"], rows)


def _beside_published(entry: dict[str, Any]) -> Iterator[tuple[Beside, int]]:
    """Yield published figures with those of a comparison beside them, and on how many images ours stand."""
    runs = runs_of(entry)
    images = min(result.images for run in runs for result in run.results)
    yield from ((one, images) for one in beside(merged(runs)))


def _published(entries: list[dict[str, Any]]) -> Iterator[str]:
    """Yield a table of published verified errors and ours: ours is a match where the published one lies in its interval
    of 95 %, or above it."""
    header = ["source", "network", "eps", "here", "published: clean / PGD / verified", "ours", "by", "verdict"]
    rows = []
    for entry in entries:
        if "length" not in entry:
            continue
        for one, images in _beside_published(entry):
            p = one.published
            theirs = " / ".join("-" if e is None else f"{100 * e:.2f}" for e in (p.clean, p.pgd, p.verified))
            ours = f"{percent(one.clean)} / {percent(one.pgd)} / {percent(one.verified)}"
            length = f"{entry['length']}, {images:,} images, PGD {_attack(entry)}"
            rows.append([p.source, p.model, f"{p.eps:g}", length, theirs, ours, one.verified_by, _verdict(one, images)])
    yield markdown_table(header, rows)
    yield (
        "Errors in percent. ✓: the published verified error lies in our interval of 95 % or above it; otherwise by "
        "how much ours lies above it, and half of our interval. PGD is given by its steps and restarts; what the "
        "papers verified and attacked by is in `etb report --against paper`.\n"
    )


def _attack(entry: dict[str, Any]) -> str:
    exams = (run.experiment.get("evaluation", run.experiment) for run in runs_of(entry))
    return " and ".join(dict.fromkeys(f"{exam['pgd_steps']} x {exam['pgd_restarts']}" for exam in exams))


def with_table(front: str, order: dict[str, Any]) -> str:
    """Return README with its table of published figures, of full length, written anew."""
    head, start, rest = front.partition(_START)
    _, end, tail = rest.partition(_END)
    assert end, f"README.md has no {_START} ... {_END}"
    rows = []
    for entry in order["comparisons"]:
        if entry.get("length", "").startswith("all"):
            for one, count in _beside_published(entry):
                p = one.published
                ours = f"{percent(one.verified)} % (by {one.verified_by})"
                theirs = "" if p.verified is None else f"{100 * p.verified:.2f} %"
                rows.append([p.source, f"{p.dataset}, {p.model}, {p.eps:g}", theirs, ours, _verdict(one, count)])
    table = markdown_table(["verified error at full length", "data, network, eps", "published", "here", ""], rows)
    return f"{head}{start}\n\n{table}\n{end}{tail}"


def _verdict(one: Beside, images: int) -> str:
    if one.published.verified is None:
        return ""
    half = 1.96 * math.sqrt(one.verified * (1 - one.verified) / images)
    above = one.verified - one.published.verified
    return "✓" if above <= half else f"{100 * above:.2f} above (± {100 * half:.2f})"


def _comparison(entry: dict[str, Any]) -> Iterator[str]:
    runs = runs_of(entry)
    yield f"### {entry['title']}\n"
    yield "".join(f"    {command}\n" for command in entry["commands"])
    yield f"{entry['date']}, {'; '.join(dict.fromkeys(machine(run.environment) for run in runs))}.\n"
    if "plot" in entry:
        yield f"![Clean against certified accuracy, by the best sound bound, for each method]({entry['plot']})\n"
    for dataset, results in by_dataset(merged(runs)).items():
        yield markdown(comparison_sheet(results, dataset, entry.get("spread", "deviation")))
    if "note" in entry:
        yield f"{entry['note']}\n"


def _study(name: str, command: str) -> Iterator[str]:
    content = json.loads((RESULTS / f"{name}.json").read_text())
    yield f"### {content['study']}\n"
    yield f"    {command}\n"
    yield f"{machine(content['environment'])}.\n"
    rows = [[claim[key] for key in ("text", "source", "published", "measured")] for claim in content["claims"]]
    yield markdown_table(["what", "source", "published", "here"], rows)
