"""Our training steps beside those of other code: the same network, batch and loss, in turns in one process.

    python compare/steps.py [--networks small,medium] [--seconds 5] [--threads 2] [--out compare/results/steps.json]

A pair is timed only where both give the same loss and gradients. Peers that are not installed are named, and left out;
auto_LiRPA's fused CROWN-IBP is, since 0.3 does not convert its wrapper's operations under a torch of today.
Memory is what a step's tensors hold beyond the networks and the batch, at most, by torch's own count.
"""

import argparse
import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from convex_adversarial import robust_loss
from torch import Tensor, nn
from torch.nn import functional as F

from etb_plugin import Box
from etb_plugin.bench.turns import in_turns, milliseconds
from etb_plugin.errors import EtbError
from etb_plugin.networks import build
from etb_plugin.objectives import Point
from etb_plugin.objectives.expected import ExpectedBound
from etb_plugin.objectives.worst_case import WorstCase
from etb_plugin.training.allocation import keep_freed_memory

sys.path.insert(0, str(Path(__file__).parent))
from reference.expected_by_autograd import expected_interval

EPS, KAPPA, SHAPE, CLASSES = 0.1, 0.5, (1, 28, 28), 10
Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


def ours(objective: WorstCase) -> Callable[[nn.Module], Loss]:
    def prepared(network: nn.Module) -> Loss:
        loss, generator = objective.prepare(network, SHAPE, CLASSES), torch.Generator()
        return lambda _, images, labels: loss(images, labels, Point(EPS, KAPPA), generator).total

    return prepared


def authors_expected(network: nn.Module) -> Loss:
    def loss(_: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        box = Box.around(images, EPS)
        lower, upper = expected_interval(network, box.lower, box.upper)
        true = labels.unsqueeze(1)
        worst = upper.scatter(1, true, lower.gather(1, true))
        return F.cross_entropy(network(images), labels) + KAPPA * F.cross_entropy(worst, labels)

    return loss


def wong_and_kolter(network: nn.Module) -> Loss:
    def loss(_: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        robust, _error = robust_loss(network, EPS, images, labels)
        return KAPPA * F.cross_entropy(network(images), labels) + (1 - KAPPA) * robust

    return loss


def theirs(name: str) -> Callable[[nn.Module], Loss]:
    return ours(WorstCase(name, {"by": "auto_LiRPA"}))


PAIRS: dict[str, tuple[Callable[[nn.Module], Loss], Callable[[nn.Module], Loss], bool]] = {
    # what: ours, the other's, do the losses agree
    "expected, all rows / the authors' algorithm": (
        ours(WorstCase("expected", form="additive", elision=False)), authors_expected, True),
    "expected, margins / the authors' algorithm": (
        ours(WorstCase("expected", form="additive")), authors_expected, False),
    "expected, top-3 / the authors' algorithm": (
        ours(ExpectedBound(options={"rows": "top-3"}, form="additive")), authors_expected, False),
    "expected, fused / the authors' algorithm": (
        ours(ExpectedBound(options={"rows": "fused"}, form="additive")), authors_expected, False),
    "ibp / auto_LiRPA": (ours(WorstCase("ibp")), theirs("ibp"), True),
    "crown-ibp, not fused / auto_LiRPA": (ours(WorstCase("crown-ibp")), theirs("crown-ibp"), True),
    "crown / auto_LiRPA": (ours(WorstCase("crown")), theirs("crown"), True),
    "dual / convex_adversarial": (ours(WorstCase("dual")), wong_and_kolter, True),
}  # fmt: skip
FEWER = {"crown / auto_LiRPA": 2, "dual / convex_adversarial": 2}
"""Images of the batch where a step of all of them takes minutes."""


class Step:
    """A step on a copy of a network: gradients alone, since all share the optimizer."""

    def __init__(
        self, prepare: Callable[[nn.Module], Loss], network: nn.Module, images: Tensor, labels: Tensor
    ) -> None:
        self.network = copy.deepcopy(network).train()
        self.loss, self.batch = prepare(self.network), (images, labels)

    def __call__(self) -> float:
        self.network.zero_grad(set_to_none=True)
        loss = self.loss(self.network, *self.batch)
        loss.backward()
        return float(loss.detach())

    def gradient(self) -> Tensor:
        return torch.cat([p.grad.flatten() for p in self.network.parameters()])


def held(step: Step) -> float:
    """Return the MiB that a step's tensors hold at most, by torch's profiler."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        step()
    now = most = 0
    for event in record.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", default="small,medium")
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(asked.threads)
    rows = []
    for name in asked.networks.split(","):
        network = build(name, SHAPE, CLASSES, seed=0)
        pixels = torch.rand(asked.batch_size, *SHAPE, generator=torch.Generator().manual_seed(0))
        every = EPS + (1 - 2 * EPS) * pixels  # boxes that nothing cuts off: convex_adversarial knows no others
        for what, (mine, other, equal) in PAIRS.items():
            images = every[: FEWER.get(what, asked.batch_size)]
            labels = torch.arange(len(images)) % CLASSES
            try:
                steps = {"ours": Step(mine, network, images, labels), "theirs": Step(other, network, images, labels)}
            except EtbError as error:  # a toolkit that is not installed
                print(f"{name:8} {what}: left out, {error}")
                continue
            losses = {side: step() for side, step in steps.items()}
            gradients = [step.gradient() for step in steps.values()]
            apart = float((gradients[0] - gradients[1]).norm() / gradients[1].norm())
            if equal and not (abs(losses["ours"] - losses["theirs"]) < 1e-4 * losses["theirs"] and apart < 1e-3):
                sys.exit(f"{name}, {what}: losses {losses}, gradients {apart:.1e} apart: these are not the same step")
            memory = {side: held(step) for side, step in steps.items()}
            taken = in_turns(steps, 5, asked.seconds, torch.device("cpu"))
            ms = {side: milliseconds(seconds)["median_ms"] for side, seconds in taken.items()}
            rows.append(
                {
                    "network": name,
                    "pair": what,
                    "images": len(images),
                    "ms": ms,
                    "ratio": ms["theirs"] / ms["ours"],
                    "mib": memory,
                }
            )
            print(
                f"{name:8} {what}, {len(images)} images: {ms['ours']:.1f} against {ms['theirs']:.1f} ms, "
                f"{rows[-1]['ratio']:.2f} x; {memory['ours']:.0f} against {memory['theirs']:.0f} MiB",
                flush=True,
            )
    if asked.out:
        about = {"torch": torch.__version__, "threads": asked.threads, "batch_size": asked.batch_size}
        asked.out.write_text(json.dumps({"about": about, "measured": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
