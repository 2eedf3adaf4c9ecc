"""docs/losses.md: each method's loss, with what a step costs and what its networks are worth."""

import json
from statistics import fmean
from typing import Any

import yaml

from etb_plugin.report.runs import merged
from etb_plugin.report.sheet import percent
from etb_plugin.report.text import markdown_table
from etb_plugin.results import Result
from pages import RESULTS, TOP, runs_of

_HEAD = r"""# Losses

What each [method](methods.md) minimises, and beside it what a step costs and what its networks are worth. $L$ is the
cross-entropy, $f$ the logits of the network, $x^{*}$ what an attack finds in the box of radius $\epsilon$ around the
image $x$ with label $y$, and $\hat z$ the worst-case logits: minus the lower ends of the margins over that box, by the
bound named.

"""
_END = r"""
$\kappa$ ramps down from 1 while the radius grows (`expected`: it stays 1); $w$ is `robust_weight`, $\alpha$ the
`coefficient`, $\lambda$ the small box's share, $\mu$ the way from one bound to the other. $\bar L$ bounds the
cross-entropy itself, and $\tilde z$ estimates by random projections. TAPS's second logits are what PGD finds in the box
behind the first block; the masks of `expected-ibp-masks` are IBP's, those of `expected` the image's.

Steps: `make bench`, MNIST, small, batches of 100, relative to a nominal step. Percent of 1,000 images of MNIST at 0.1,
small, 20 epochs, certified by the best sound bound: the first comparison of the [results](results.md), with its seeds
and spreads; an interval of 95 % reaches 1.4 to either side at most of these.
"""


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
        worth = [_accuracies(trained[label]) + ("" if label == name else f" ({label})") for label in labels]
        rows.append([f"`{name}`", f"${formula}$", ratios.get(name, ""), "<br>".join(worth)])
    header = ["method", "loss", "step x nominal", "clean / PGD / certified"]
    return _HEAD + markdown_table(header, rows).replace("---: |", "--- |") + _END


def _accuracies(seeds: list[Result]) -> str:
    """Return clean, attacked and best certified accuracy, in percent, means over the seeds."""
    triples = [(r.clean_accuracy, r.pgd_accuracy, max(r.certified_accuracy.values())) for r in seeds]
    return " / ".join(percent(fmean(column)) for column in zip(*triples, strict=True))
