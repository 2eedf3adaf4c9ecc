"""Study `sketch` (ours): how near random projections come to the blockwise masks, against their number."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure

from etb_plugin import networks
from etb_plugin.bounds import Box, masks
from etb_plugin.graph.tracing import trace
from etb_plugin.report.plots import figure, line, shared_legend
from etb_plugin.studies.registry import Case, Claim, Parameters, Row, Study, register_study


def cases(parameters: Parameters) -> list[Case]:
    """One for each network and number of projections."""
    return [{"model": model, "k": k} for model in parameters["models"] for k in parameters["k"]]


@torch.no_grad()
def measure(case: Case, parameters: Parameters, folder: Path) -> Row:
    """Return, layer by layer, the share of units whose upper end u is within 10 % of the exact one, the median
    error, and the share of masks that agree; means over seeds, on untrained networks and random images."""
    shape = (1, parameters["size"], parameters["size"])
    network = networks.build(case["model"], shape, 10, seed=parameters["seeds"][0])
    generator = torch.Generator().manual_seed(parameters["seeds"][0])
    box = Box.around(torch.rand((parameters["images"], *shape), generator=generator), parameters["eps"])
    graph = trace(network, torch.Size(shape))
    exact = masks.blockwise(graph, box, 1, 0)
    near, error, agree = [], [], []
    for seed in parameters["seeds"]:
        found = masks.sketch(graph, box, case["k"], seed)
        relative = [((found[i][0] - exact[i][0]) / exact[i][0]).abs().flatten() for i in exact]
        near.append([(r < 0.1).double().mean() for r in relative])
        error.append([r.median().double() for r in relative])
        agree.append([((found[i][0] >= 0) == (exact[i][0] >= 0)).double().mean() for i in exact])
    return {
        name: torch.tensor(values).mean(0).tolist()
        for name, values in (("near", near), ("error", error), ("agree", agree))
    }


def claims(rows: Sequence[Row], parameters: Parameters) -> list[Claim]:
    """Return the three shares at the number of projections nearest to 200."""
    made = []
    for model in parameters["models"]:
        row = min((r for r in rows if r["model"] == model), key=lambda r: abs(r["k"] - 200))
        made.append(
            Claim(
                f"{model}, k = {row['k']}: units within 10 % of blockwise; masks that agree; by layer",
                "ours; a median of k Cauchy sizes errs by pi / (2 sqrt k), 11 % at 200; no estimate by less than 10 %",
                "aim: 95 %",
                f"{_percents(row['near'])} %; {_percents(row['agree'])} %",
            )
        )
    return made


def _percents(shares: Sequence[float]) -> str:
    return " / ".join(f"{100 * share:.1f}" for share in shares)


def draw(rows: Sequence[Row], parameters: Parameters) -> Figure:
    """Draw median error and agreement of the masks against k, layer by layer."""
    made, axes = figure(2, len(parameters["models"]))
    for i, model in enumerate(parameters["models"]):
        chosen = [r for r in rows if r["model"] == model]
        ks = [r["k"] for r in chosen]
        left, right = axes[2 * i : 2 * i + 2]
        for layer in range(len(chosen[0]["near"])):
            line(left, layer, ks, [100 * r["error"][layer] for r in chosen], f"hidden layer {layer + 1}")
            line(right, layer, ks, [100 * r["agree"][layer] for r in chosen], f"hidden layer {layer + 1}")
        # Half of a normal variable's mass lies within 0.674 deviations.
        left.plot(ks, [100 * 0.674 * math.pi / 2 / math.sqrt(k) for k in ks], color="black", linewidth=0.8)
        left.set(xlabel="projections k", ylabel="median error of u (%)", title=model, xscale="log", yscale="log")
        right.set(xlabel="projections k", ylabel="masks that agree (%)", title=model, xscale="log", ylim=(90, 100.5))
    shared_legend(made, axes[-1])
    return made


_SIZES = {"models": ["mlp-400x3", "small"], "k": [10, 50, 200, 1000], "size": 28, "eps": 0.1}

register_study(
    Study(
        "sketch",
        "How near do random projections come to the blockwise masks, against their number?",
        "ours",
        quick={**_SIZES, "images": 1, "seeds": [0, 1, 2]},
        full={**_SIZES, "images": 10, "seeds": list(range(10))},
        cases=cases,
        measure=measure,
        claims=claims,
        draw=draw,
    )
)
