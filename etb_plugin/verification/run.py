"""Verifying networks on test images: what is kept on disk, what runs side by side, and the totals."""

import contextlib
import io
import multiprocessing
import pickle
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from etb_plugin.attacks import Pgd
from etb_plugin.bounds import Box
from etb_plugin.data import pixels
from etb_plugin.errors import ConfigError, SoundnessError
from etb_plugin.experiment import VerifyRequest, resolve_device
from etb_plugin.files import claimed, read_json, write_file, write_json
from etb_plugin.networks import NetworkCascade, before_softmax
from etb_plugin.networks.checkpoints import weights_digest
from etb_plugin.results import SCHEMA, environment
from etb_plugin.results.networks import Trained, restore
from etb_plugin.verification.cascade import RIGOROUS_STAGES, STAGES, Cascade, Case, Settings, provers
from etb_plugin.verification.problem import Verdict, robustness
from etb_plugin.verification.turns import Turns

MISCLASSIFIED = "misclassified"
TOGETHER = 25
"""How many images the attack and the bounds take at once."""


@dataclass(frozen=True)
class Finding:
    """What is known of one image, the stage that decided it ("misclassified" where there was nothing to decide), the
    seconds spent in each stage, whether a counterexample is kept, and what stopped a stage that failed. `predicted` is
    None where a limit left open which network of a cascade answers."""

    image: int
    label: int
    predicted: int | None
    verdict: Verdict
    by: str | None
    seconds: dict[str, float]
    counterexample: bool
    failed: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Verified:
    """One network at one eps. Shares of the images, in [0, 1]: `verified_accuracy` are proved robust, `pgd_accuracy`
    stand under PGD, `unknown` are neither proved nor broken. `decided` counts images by the stage that decided them,
    `seconds` are means over the images that came to a stage."""

    method: str
    dataset: str
    model: str
    seed: int | None
    eps_train: float | None
    eps_test: float
    images: tuple[int, int]
    clean_accuracy: float
    pgd_accuracy: float
    verified_accuracy: float
    unknown: float
    decided: dict[str, int]
    seconds: dict[str, float]
    findings: list[Finding]

    def __post_init__(self) -> None:
        if not self.verified_accuracy <= self.pgd_accuracy <= self.clean_accuracy:
            raise SoundnessError(
                f"{self.method} at eps {self.eps_test:g}: verified {self.verified_accuracy}, PGD {self.pgd_accuracy} "
                f"and clean accuracy {self.clean_accuracy} contradict each other; this is a bug: please report it"
            )

    @classmethod
    def of(cls, about: Mapping[str, Any], eps: float, findings: Sequence[Finding]) -> "Verified":
        """Return the totals of a network's findings."""
        by = Counter(f.by for f in findings if f.by is not None)
        times: dict[str, list[float]] = {}
        for finding in findings:
            for stage, seconds in finding.seconds.items():
                times.setdefault(stage, []).append(seconds)
        verdicts = Counter(finding.verdict for finding in findings)
        clean = len(findings) - by[MISCLASSIFIED]
        broken_by_pgd = sum(f.by == "pgd" for f in findings)
        return cls(
            method=about["method"],
            dataset=about["dataset"],
            model=about["model"],
            seed=about["seed"],
            eps_train=about["eps"],
            eps_test=eps,
            images=(findings[0].image, findings[-1].image + 1),
            clean_accuracy=clean / len(findings),
            pgd_accuracy=(clean - broken_by_pgd) / len(findings),
            verified_accuracy=verdicts[Verdict.ROBUST] / len(findings),
            unknown=verdicts[Verdict.UNKNOWN] / len(findings),
            decided=dict(by),
            seconds={stage: sum(some) / len(some) for stage, some in times.items()},
            findings=list(findings),
        )


class Watch(Protocol):
    """Who is told how a verification goes."""

    def verifying(self, name: str, eps: float, total: int, counts: Mapping[Verdict, int]) -> None:
        """Called whenever images are decided, with how many have which verdict."""


def cascade_of(request: VerifyRequest, stages: tuple[str, ...]) -> Settings:
    """Return the cascade that a request asks for, of `stages` where it names none."""
    attack = Pgd(request.pgd_steps, request.pgd_restarts)
    named = request.stages or (RIGOROUS_STAGES if request.rigorous else stages)
    return Settings(named, attack, request.time_limit, request.solver, request.seed, request.rigorous)


class Verification:
    """Networks from disk, checked and ready to be verified. `failed` says what stopped a stage on some image.

    Raises CheckpointError, DataError, ConfigError or UnsupportedLayer where anything cannot work; stages of the
    whole cascade that cannot take a network are left out only where none were asked for by name, and `left_out` says
    so. Nothing is written before `run`.
    """

    def __init__(self, path: Path, request: VerifyRequest, stages: tuple[str, ...] = STAGES) -> None:
        first, stop = request.images or (0, None)
        self.data, trained = restore(path, request.model_copy(update={"test_limit": stop}), cascades=True)
        self.trained = [replace(t, network=before_softmax(t.network, self.data.input_shape)) for t in trained]
        stop = len(self.data.test) if stop is None else stop
        if not 0 <= first < stop <= len(self.data.test):
            raise ConfigError(
                f"--images {first}:{stop} are not all there: {self.data.name} has {len(self.data.test)} test images"
            )
        self.images = (first, stop)
        self.request, about = request, self.trained[0].about
        self.eps = request.eps_test or (about["eps"] or self.data.source.default_eps,)
        found = [network for trained in self.trained for network in _networks(trained)]
        self.settings, self.left_out = provers(
            found, self.data.input_shape, cascade_of(request, stages), drop=request.stages is None
        )
        self.failed: dict[str, str] = {}

    @property
    def title(self) -> str:
        """The verification in one line."""
        about, s = self.trained[0].about, self.settings
        return (
            f"{about['dataset']}, {about['model']}, test images {self.images[0]}:{self.images[1]}; "
            f"PGD {s.attack.steps} steps x {s.attack.restarts}, {s.seconds:g} s for inputs, bab, exact and lp"
            + (", rigorous" if s.rigorous else "")
        )

    @cached_property
    def described(self) -> dict[str, Any]:
        """What determines the result: the request, and the networks by a hash of their weights."""
        request = self.request.model_dump(mode="json", exclude_none=True, exclude={"workers"})
        return request | {"weights": [weights_digest(trained.network) for trained in self.trained]}

    @property
    def out(self) -> Path | None:
        """Where the results go, if anywhere."""
        return None if self.request.out is None else Path(self.request.out)

    def claim(self, described: Mapping[str, Any]) -> contextlib.AbstractContextManager[None]:
        """Hold `out`, where there is one, for what is `described`. Raises ConfigError like `claimed`."""
        return contextlib.nullcontext() if self.out is None else claimed(self.out, described)

    def folder_of(self, trained: Trained, ending: str) -> Path | None:
        """Return a folder of `out` that no other network of this run has."""
        method = re.sub(r"[^\w.,=-]+", "_", trained.about["method"])
        return self.out and self.out / "cells" / f"{method}-{weights_digest(trained.network)}{ending}"

    def write_results(self, described: Mapping[str, Any], **figures: Any) -> None:
        """Write results.json to `out`, where there is one."""
        if self.out is not None:
            known = {"schema": SCHEMA, "experiment": described, "left_out": self.left_out}
            where = {"environment": environment(resolve_device(self.request.device))}
            write_json(self.out / "results.json", known | where | figures)

    def run(self, watch: Watch) -> list[Verified]:
        """Verify every network at every eps and return the totals; results.json and counterexamples are written to
        the request's `out`, where there is one. The same call goes on where it stopped."""
        results: list[Verified] = []
        with self.claim(self.described):
            for trained in self.trained:
                decided = self._decider(trained)
                for eps in self.eps:
                    findings = self._findings(trained, decided, eps, watch)
                    results.append(Verified.of(trained.about, eps, findings))
                    self.write_results(self.described, verifications=[asdict(result) for result in results])
        return results

    def _decider(self, trained: Trained) -> "Decided":
        """Return what decides the images of one network, or of a cascade of them."""
        shape, network = self.data.input_shape, trained.network
        if isinstance(network, NetworkCascade):
            turns = Turns(list(network.networks), shape, self.data.classes, self.settings)
            return lambda images, eps: self._decided_in_turn(turns, images, eps)
        cascade = Cascade(network, shape, self.settings)
        return lambda images, eps: self._decided(network, cascade, images, eps)

    def _findings(self, trained: Trained, decided: "Decided", eps: float, watch: Watch) -> list[Finding]:
        folder = self.folder_of(trained, f"-eps{eps:g}")
        kept = {} if folder is None else _kept(folder)
        first, stop = self.images

        def tell() -> None:
            counts = Counter(finding.verdict for finding in kept.values())
            watch.verifying(trained.about["method"], eps, stop - first, counts)

        tell()
        todo = [image for image in range(first, stop) if image not in kept]
        for image, finding, point in decided(todo, eps):
            kept[image] = finding
            if folder is not None:
                if point is not None:
                    buffer = io.BytesIO()
                    np.save(buffer, point)
                    write_file(folder / "counterexamples" / f"{image:05d}.npy", buffer.getvalue())
                write_json(folder / "findings" / f"{image:05d}.json", asdict(finding))
            tell()
        findings = [kept[image] for image in range(first, stop)]
        for finding in findings:
            self.failed |= finding.failed
        return findings

    def _decided_in_turn(
        self, turns: Turns, images: Sequence[int], eps: float
    ) -> Iterator[tuple[int, Finding, np.ndarray | None]]:
        """Yield images as a cascade of networks decides them."""
        for image in images:
            label = int(self.data.test.labels[image])
            predicted, case = turns.decide(pixels(self.data.test.images[image : image + 1]).double(), label, eps)
            if predicted not in (None, label):
                yield image, Finding(image, label, predicted, Verdict.FALSIFIED, MISCLASSIFIED, {}, False), None
            else:
                yield image, _finding(image, (label, predicted), case), _witness(case)

    def _decided(
        self, network: nn.Module, cascade: Cascade, images: Sequence[int], eps: float
    ) -> Iterator[tuple[int, Finding, np.ndarray | None]]:
        """Yield images as they are decided: in batches first, then, side by side, those that are left one by one."""
        hard: dict[int, Case] = {}
        known: dict[int, tuple[int, int]] = {}
        for some in torch.tensor(images, dtype=torch.long).split(TOGETHER):
            x = pixels(self.data.test.images[some]).double()
            with torch.no_grad():
                predicted = cascade.network(x).argmax(1).tolist()
            labels, box = self.data.test.labels[some].tolist(), Box.around(x, eps)
            cases = {}
            for n, image in enumerate(some.tolist()):
                known[image] = (labels[n], predicted[n])
                if labels[n] == predicted[n]:
                    cases[image] = Case.of(robustness(box[n : n + 1], labels[n], self.data.classes))
                else:
                    mistake = Finding(image, *known[image], Verdict.FALSIFIED, MISCLASSIFIED, {}, False)
                    yield image, mistake, None
            cascade.decide_together(list(cases.values()))
            for image, case in cases.items():
                if case.verdict is Verdict.UNKNOWN:
                    hard[image] = case
                else:
                    yield image, _finding(image, known[image], case), _witness(case)
        for image, case in self._alone(network, cascade, hard):
            yield image, _finding(image, known[image], case), _witness(case)

    def _alone(self, network: nn.Module, cascade: Cascade, cases: Mapping[int, Case]) -> Iterator[tuple[int, Case]]:
        if self.request.workers == 1 or len(cases) < 2:
            for image, case in cases.items():
                cascade.decide_alone(case)
                yield image, case
            return
        spawn = multiprocessing.get_context("spawn")  # a forked torch may hang
        alone = replace(self.settings, stages=cascade.alone)
        given = pickle.dumps((network, self.data.input_shape, alone))
        with ProcessPoolExecutor(self.request.workers, spawn, _start, (given,)) as pool:
            tasks = {pool.submit(_decide, pickle.dumps(case)): image for image, case in cases.items()}
            try:
                for task in as_completed(tasks):
                    yield tasks[task], pickle.loads(task.result())
            finally:
                pool.shutdown(wait=False, cancel_futures=True)


Decided = Callable[[Sequence[int], float], Iterator[tuple[int, Finding, np.ndarray | None]]]
"""(images, eps) -> each image with its finding, and its counterexample [*input] where there is one."""

_cascade: Cascade
"""A worker process's own network."""


def _start(given: bytes) -> None:
    global _cascade
    torch.set_num_threads(1)
    _cascade = Cascade(*pickle.loads(given))


def _decide(case: bytes) -> bytes:
    mine: Case = pickle.loads(case)
    _cascade.decide_alone(mine)
    return pickle.dumps(mine)


def _networks(trained: Trained) -> list[nn.Module]:
    network = trained.network
    return list(network.networks) if isinstance(network, NetworkCascade) else [network]


def _kept(folder: Path) -> dict[int, Finding]:
    rows = [read_json(file) for file in sorted((folder / "findings").glob("*.json"))]
    return {row["image"]: Finding(**row | {"verdict": Verdict(row["verdict"])}) for row in rows}


def _finding(image: int, known: tuple[int, int | None], case: Case) -> Finding:
    return Finding(image, *known, case.verdict, case.by, case.seconds, case.witness is not None, case.failed)


def _witness(case: Case) -> np.ndarray | None:
    return None if case.witness is None else case.witness[0].cpu().numpy()
