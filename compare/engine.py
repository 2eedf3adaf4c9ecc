"""Our engine beside the toolkits: time, peak memory and tightness of each bound, and of a training step.

    python compare/engine.py [--threads 1] [--out compare/results/engine.json]

Every measurement is a process of its own, ours and theirs one after the other: the least time of some calls, and the
process's peak memory beyond that of the imports. Networks are as torch draws them (seed 0), inputs uniform in [0, 1].
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

BOUNDS = [
    # network, input, eps, images, bound, the toolkit, calls
    ("wk-small", (1, 28, 28), 0.1, 20, "crown", "auto_LiRPA", 3),
    ("wk-small", (1, 28, 28), 0.01, 20, "crown", "auto_LiRPA", 3),
    ("cnn7", (3, 32, 32), 0.001, 1, "crown", "auto_LiRPA", 1),
    ("wk-resnet", (3, 16, 16), 0.0005, 1, "crown", "auto_LiRPA", 1),
    ("wk-small", (1, 28, 28), 0.1, 20, "alpha-crown", "auto_LiRPA", 1),
    ("wk-small", (1, 28, 28), 0.1, 20, "dual", "convex_adversarial", 3),
    ("wk-small", (1, 28, 28), 0.1, 20, "crown-ibp", "auto_LiRPA", 5),
    ("wk-small", (1, 28, 28), 0.1, 20, "ibp", "auto_LiRPA", 10),
]
STEPS = [
    # network, input, eps, batch, method, changes of theirs, calls
    ("small", (3, 32, 32), 2 / 255, 100, "nominal", None, 10),
    ("small", (3, 32, 32), 2 / 255, 100, "crown", {"by": "auto_LiRPA"}, 1),
    ("small", (1, 28, 28), 0.1, 20, "dual", {"by": "convex_adversarial"}, 1),
    ("small", (1, 28, 28), 0.1, 100, "crown-ibp", None, 10),
    ("small", (1, 28, 28), 0.1, 100, "crown-ibp-unfused", {"by": "auto_LiRPA"}, 3),
    ("medium", (1, 28, 28), 0.1, 100, "crown-ibp", None, 5),
    ("medium", (1, 28, 28), 0.1, 100, "crown-ibp-unfused", {"by": "auto_LiRPA"}, 2),
    ("medium", (1, 28, 28), 0.1, 100, "nominal", None, 10),
    ("small", (1, 28, 28), 0.1, 100, "nominal", None, 10),
]


def measured(job: dict) -> dict:
    """Return the figures of one job, in this process."""
    import torch

    from etb_plugin import Box, margin_spec
    from etb_plugin.bounds import prepare
    from etb_plugin.networks import build
    from etb_plugin.objectives import Point, get_method
    from etb_plugin.objectives.worst_case import WorstCase
    from etb_plugin.training.allocation import keep_freed_memory

    keep_freed_memory()
    torch.set_num_threads(job["threads"])
    torch.manual_seed(0)
    shape, number, eps = tuple(job["input"]), job["number"], job["eps"]
    network = build(job["network"], shape, 10, seed=0)
    x, labels = torch.rand(number, *shape), torch.arange(number) % 10
    options = {} if job["by"] is None else {"by": job["by"]}
    if job["kind"] == "bound":
        network.eval().requires_grad_(False)
        bound = (
            prepare(job["name"], network, shape, lower_only=True, **options)
            if job["name"] != "ibp"
            else prepare("ibp", network, shape, **options)
        )
        box, spec = Box.around(x, eps), margin_spec(labels, 10)

        def call() -> float:
            return float(bound(box, spec).lower.detach().mean())
    else:
        name = job["name"]
        if name.endswith("-unfused"):
            objective, part = WorstCase(name.removesuffix("-unfused"), options), None
        else:
            method = get_method(name)
            method = method.changed(options) if options else method
            objective, part = method.objective, method.recipe.micro_batch
        loss = objective.prepare(network, shape, 10)

        def call() -> float:
            network.zero_grad()
            total = 0.0
            for some in torch.arange(number).split(part or number):
                losses = loss(x[some], labels[some], Point(eps, 0.5), torch.Generator().manual_seed(0))
                (losses.total * len(some) / number).backward()
                total += float(losses.total.detach()) * len(some) / number
            return total

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = []
    for _ in range(job["calls"] + 1 if job["calls"] > 1 else 1):  # the first of several warms up
        begun = time.perf_counter()
        value = call()
        times.append(time.perf_counter() - begun)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {**job, "seconds": min(times), "peak_mib": peak // 1024, "value": value}


def apart(job: dict, limit: float) -> dict:
    """Return the figures of one job, in a process of its own; why there are none under `failed`."""
    command = [sys.executable, "-W", "ignore", __file__, "--job", json.dumps(job)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return {**job, "failed": f"not done in {limit:g} s"}
    if done.returncode < 0:
        return {**job, "failed": f"ended by signal {-done.returncode} (9: out of memory)"}
    if done.returncode:
        return {**job, "failed": (done.stderr.strip().splitlines() or ["no message"])[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--limit", type=float, default=600, help="seconds for each measurement")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.job:
        print(json.dumps(measured(json.loads(asked.job))))
        return
    rows = []
    for kind, cases in (("bound", BOUNDS), ("step", STEPS)):
        for network, shape, eps, number, name, theirs, calls in cases:
            toolkit = theirs["by"] if isinstance(theirs, dict) else theirs
            found = []
            for by in (None, toolkit) if toolkit else (None,):
                job = {
                    "kind": kind, "network": network, "input": shape, "eps": eps, "number": number, "name": name,
                    "by": by, "calls": calls, "threads": asked.threads if kind == "bound" else 2,
                }  # fmt: skip
                found.append(apart(job, asked.limit))
            rows += found
            print(f"{kind:5} {network:10} {name:18} eps {eps:.4g} x{number}:", end=" ")
            for one in found:
                by = one["by"] or "ours"
                if "failed" in one:
                    print(f"{by} failed ({one['failed'][:80]})", end="  ")
                else:
                    print(f"{by} {one['seconds']:.4g} s, {one['peak_mib']} MiB, {one['value']:.6g}", end="  ")
            print(flush=True)
            if asked.out:
                import torch

                versions = {"python": sys.version.split()[0], "torch": torch.__version__}
                asked.out.write_text(json.dumps({"versions": versions, "measured": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
