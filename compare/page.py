"""Write docs/results.md from the files of compare/results, in the order of compare/page.yaml; docs/losses.md, each
method's loss with its cost and result beside it; docs/zoo.md from the cards of compare/models; and README's table.

    python compare/page.py            # after a result and its entry were added
    python compare/page.py --check    # exit status 1 where a page says something else

Nothing on the page is typed by hand but titles, commands, dates and notes.
"""

import json
import math
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from markdown.extensions.toc import slugify

from etb_plugin.networks.checkpoints import read_weights
from etb_plugin.report.figures import draw
from etb_plugin.report.published import Beside, beside
from etb_plugin.report.runs import Run, by_dataset, merged, read_runs
from etb_plugin.report.sheet import comparison_sheet, percent
from etb_plugin.report.text import markdown, markdown_table
from etb_plugin.results import Result

TOP = Path(__file__).parent
RESULTS, MODELS, DOCS = TOP / "results", TOP / "models", TOP.parent / "docs"
START, END = "<!-- written by compare/page.py -->", "<!-- up to here -->"
HEAD = """\
# Results

What was measured, and how to measure it again. `python compare/page.py` writes this page from the files of
[compare/results](../compare/results), where [more is said](../compare/results/README.md) of what the figures mean.
Everything here ran on two CPU cores, without a GPU. MNIST is the original data set.

The pictures of certified training leave out methods for whose networks far less is certified (`pgd` and `exp-ibp` at
0.1). Small marks are seeds. On 1,000 images an interval of 95 % reaches 1.4 (at 0.1) to 2.5 (at 0.3) to either side:
most of these methods cannot be told apart by it.
"""
ZOO = """\
# Networks that come along

In a clone, `etb verify zoo:NAME --eps-test EPS --images 0:200` and `etb evaluate zoo:NAME` take them. Percent of test
images; AutoAttack is without FAB, on the images of the card. To add one, put its weights (safetensors as `etb` writes
them, under 2 MiB) at `compare/models/NAME.safetensors`, then

    python compare/zoo.py NAME --eps 0.1 --made "etb compare FILE.yaml"
    python compare/page.py

which measure it, and write its card and this page.
"""
LOSSES = r"""# Losses

What each [method](methods.md) minimises, and beside it what a step costs and what its networks are worth. $L$ is the
cross-entropy, $f$ the logits of the network, $x^{*}$ what an attack finds in the box of radius $\epsilon$ around the
image $x$ with label $y$, and $\hat z$ the worst-case logits: minus the lower ends of the margins over that box, by the
bound named.

"""
LOSSES_END = r"""
$\kappa$ ramps down from 1 while the radius grows (`expected`: it stays 1); $w$ is `robust_weight`, $\alpha$ the
`coefficient`, $\lambda$ the small box's share, $\mu$ the way from one bound to the other. $\bar L$ bounds the
cross-entropy itself, and $\tilde z$ estimates by random projections. TAPS's second logits are what PGD finds in the box
behind the first block; the masks of `expected-ibp-masks` are IBP's, those of `expected` the image's.

Steps: `make bench`, MNIST, small, batches of 100, relative to a nominal step. Percent of 1,000 images of MNIST at 0.1,
small, 20 epochs, certified by the best sound bound: the first comparison of the [results](results.md), with its seeds
and spreads; an interval of 95 % reaches 1.4 to either side at most of these.
"""


def main() -> None:
    order = yaml.safe_load((TOP / "page.yaml").read_text())
    first = order["comparisons"][0]
    front = TOP.parent / "README.md"
    pages = {DOCS / "results.md": page(order), DOCS / "losses.md": losses(first), DOCS / "zoo.md": zoo()}
    pages[front] = with_table(front.read_text(), order)
    if "--check" in sys.argv:
        stale = [file.name for file, text in pages.items() if file.read_text() != text]
        sys.exit(f"{', '.join(stale)} differ from the results: run python compare/page.py" if stale else 0)
    for file, text in pages.items():
        file.write_text(text)
    for entry in order["comparisons"]:
        if "plot" in entry:
            shown = [result for result in merged(runs_of(entry)) if result.method not in entry.get("unplotted", ())]
            draw(shown, ())["pareto"].savefig(DOCS / entry["plot"], dpi=110)


def page(order: dict[str, Any]) -> str:
    shown = {name for entry in order["comparisons"] for name in entry["results"]}
    missing = {file.stem for file in RESULTS.glob("*.json") if "cells" in json.loads(file.read_text())} - shown
    if missing:
        sys.exit(f"compare/page.yaml does not say how these were made: {', '.join(sorted(missing))}")
    parts = [HEAD, *seeds(order), "## Published, and here\n", *published(order["comparisons"]), "## Comparisons\n"]
    for entry in order["comparisons"]:
        parts += comparison(entry)
    parts.append("## Studies: figures and tables of the papers, and our own\n")
    for name, command in order["studies"].items():
        parts += study(name, command)
    return "\n".join(parts)


def losses(first: dict[str, Any]) -> str:
    """Return the page of losses, with what steps cost and what networks of the first comparison are worth."""
    steps = json.loads((RESULTS / "bench-steps.json").read_text())
    ratios = {step["method"]: f"{step['ratio']:.1f}" for step in steps["steps"] if step["model"] == "small"}
    trained: dict[str, list[Result]] = {}
    for result in merged(runs_of(first)):
        trained.setdefault(result.method, []).append(result)
    rows = []
    for name, formula in yaml.safe_load((TOP / "losses.yaml").read_text()).items():
        labels = [label for label in trained if label.partition(",")[0] == name]
        worth = [accuracies(trained[label]) + ("" if label == name else f" ({label})") for label in labels]
        rows.append([f"`{name}`", f"${formula}$", ratios.get(name, ""), "<br>".join(worth)])
    header = ["method", "loss", "step x nominal", "clean / PGD / certified"]
    return LOSSES + markdown_table(header, rows).replace("---: |", "--- |") + LOSSES_END


def accuracies(seeds: list[Result]) -> str:
    """Return clean, attacked and best certified accuracy, in percent, means over the seeds."""
    triples = [(r.clean_accuracy, r.pgd_accuracy, max(r.certified_accuracy.values())) for r in seeds]
    return " / ".join(percent(fmean(column)) for column in zip(*triples, strict=True))


def seeds(order: dict[str, Any]) -> Iterator[str]:
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


def beside_published(entry: dict[str, Any]) -> Iterator[tuple[Beside, int]]:
    """Yield published figures with those of a comparison beside them, and on how many images ours stand."""
    runs = runs_of(entry)
    images = min(result.images for run in runs for result in run.results)
    yield from ((one, images) for one in beside(merged(runs)))


def published(entries: list[dict[str, Any]]) -> Iterator[str]:
    """Yield a table of published verified errors and ours: ours is a match where the published one lies in its interval
    of 95 %, or above it."""
    header = ["source", "network", "eps", "here", "published: clean / PGD / verified", "ours", "by", "verdict"]
    rows = []
    for entry in entries:
        if "length" not in entry:
            continue
        for one, images in beside_published(entry):
            p = one.published
            theirs = " / ".join("-" if e is None else f"{100 * e:.2f}" for e in (p.clean, p.pgd, p.verified))
            ours = f"{percent(one.clean)} / {percent(one.pgd)} / {percent(one.verified)}"
            length = f"{entry['length']}, {images:,} images"
            rows.append([p.source, p.model, f"{p.eps:g}", length, theirs, ours, one.verified_by, verdict(one, images)])
    yield markdown_table(header, rows)
    yield (
        "Errors in percent. ✓: the published verified error lies in our interval of 95 % or above it; otherwise by "
        "how much ours lies above it, and half of our interval. PGD here has 40 steps; what the papers verified and "
        "attacked by is in `etb report --against paper`.\n"
    )


def zoo() -> str:
    """Return the page of the networks that come along: tables by data set and radius, and a card for each."""
    cards = {file.stem: json.loads(file.read_text()) for file in sorted(MODELS.glob("*.json"))}
    parts, groups = [ZOO], {}
    for name, card in cards.items():
        groups.setdefault((card["measured"][0]["row"]["dataset"], card["eps"]), []).append(name)
    for (dataset, eps), names in sorted(groups.items()):
        rows = [[f"[{name}](#{name.replace('.', '')})", *worth(cards[name])] for name in names]
        rows.sort(key=lambda row: float(row[4].split()[0]), reverse=True)
        parts.append(f"## {dataset} at {eps}\n")
        header = ["network", "method", "clean", "PGD", "certified", "AutoAttack", "verified"]
        parts.append(markdown_table(header, rows))
    for name, card in cards.items():
        row = card["measured"][0]["row"]
        about = read_weights(MODELS / f"{name}.safetensors")[1]
        parts.append(f"### {name}\n")
        parts.append(
            f"`{row['model']}` ({row['parameters']:,} parameters) on {row['dataset']}, trained by {row['method']} at "
            f"{about['eps']} for {about['epoch']} epochs, seed {about['seed']}.\n"
        )
        commands = [card["made"], *(one["command"] for one in card["measured"])]
        parts.append("".join(f"    {command}\n" for command in commands))
        parts.append(markdown_table(["images", "clean", "PGD", "AutoAttack", "certified", "verified"], images(card)))
        parts.append(f"{card['date']}, {machine(card['environment'])}.\n")
    return "\n".join(parts)


def worth(card: dict[str, Any]) -> list[str]:
    """Return a network's line: its method, and what all test images and the first ones say of it."""
    everything, first, verified = images(card)
    named = (f"{first[3]} (first {first[0]})", f"{verified[5]} (first {verified[0]})")
    return [card["measured"][0]["row"]["method"], *everything[1:3], everything[4], *named]


def images(card: dict[str, Any]) -> list[list[str]]:
    """Return a line for each measurement: its images, clean, under PGD and AutoAttack, certified, and verified."""
    lines = []
    for row in (one["row"] for one in card["measured"]):
        few = "verified_accuracy" in row
        which = "{1:,}".format(*row["images"]) if few else f"{row['images']:,}"
        attacked = row.get("attacked_accuracy", {}).get("autoattack")
        bound, share = max(row.get("certified_accuracy", {"": 0.0}).items(), key=lambda item: item[1])
        lines.append(
            [
                which,
                percent(row["clean_accuracy"]),
                percent(row["pgd_accuracy"]),
                "" if attacked is None else percent(attacked),
                f"{percent(share)} ({bound})" if bound else "",
                f"{percent(row['verified_accuracy'])}, {percent(row['unknown'])} unknown" if few else "",
            ]
        )
    return lines


def with_table(front: str, order: dict[str, Any]) -> str:
    """Return README with its table of published figures, of full length, written anew."""
    head, start, rest = front.partition(START)
    _, end, tail = rest.partition(END)
    assert end, f"README.md has no {START} ... {END}"
    rows = []
    for entry in order["comparisons"]:
        if entry.get("length", "").startswith("all"):
            for one, count in beside_published(entry):
                p = one.published
                ours = f"{percent(one.verified)} % (by {one.verified_by})"
                theirs = "" if p.verified is None else f"{100 * p.verified:.2f} %"
                rows.append([p.source, f"{p.dataset}, {p.model}, {p.eps:g}", theirs, ours, verdict(one, count)])
    table = markdown_table(["verified error at full length", "data, network, eps", "published", "here", ""], rows)
    return f"{head}{start}\n\n{table}\n{end}{tail}"


def verdict(one: Beside, images: int) -> str:
    if one.published.verified is None:
        return ""
    half = 1.96 * math.sqrt(one.verified * (1 - one.verified) / images)
    above = one.verified - one.published.verified
    return "✓" if above <= half else f"{100 * above:.2f} above (± {100 * half:.2f})"


def comparison(entry: dict[str, Any]) -> Iterator[str]:
    runs = runs_of(entry)
    yield f"### {entry['title']}\n"
    yield "".join(f"    {command}\n" for command in entry["commands"])
    yield f"{entry['date']}, {'; '.join(dict.fromkeys(machine(run.environment) for run in runs))}.\n"
    if "plot" in entry:
        yield f"![Clean against certified accuracy, by the best sound bound, for each method]({entry['plot']})\n"
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
