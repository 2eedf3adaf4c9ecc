"""Comparisons: the cells of an experiment, run one after the other, and their results.

A *cell* is one method trained once. It keeps its own folder, named by a hash of all that determines its weights;
a finished cell is never run twice, and a half-trained one goes on from its last epoch.
"""

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from etb_plugin import networks
from etb_plugin.bounds import prepare
from etb_plugin.data import Dataset, load
from etb_plugin.errors import UnsupportedLayer
from etb_plugin.evaluation import Exam, evaluate
from etb_plugin.experiment import Evaluated, Experiment, Resolved, eps_text, resolve_device
from etb_plugin.networks import evaluating
from etb_plugin.objectives import Method, get_method
from etb_plugin.results import Result, write_results
from etb_plugin.runs import claimed, read_json, write_json
from etb_plugin.trained import describe, restore
from etb_plugin.training import Progress, Settings, Training, train


class Watch(Protocol):
    """Who is told how a comparison goes. `name` is the method's, or a file's."""

    def training(self, name: str, progress: Progress) -> None:
        """Called a few times a second."""

    def evaluating(self, name: str, eps: float, done: int, total: int) -> None:
        """Called after each batch of test images."""

    def finished(self, name: str, training: Training | None, results: Sequence[Result]) -> None:
        """Called once per cell. `training` is None where nothing was trained now."""


@dataclass(frozen=True)
class Cell:
    """One method of an experiment, with all that determines its weights."""

    experiment: Resolved
    method: Method
    data_digest: str

    @property
    def id(self) -> str:
        """A readable name and a hash."""
        e = self.experiment
        parts = (e.dataset, self.data_digest, e.model, e.eps, e.epochs, e.batch_size, e.lr, e.seed, e.device)
        digest = hashlib.sha256(repr((*parts, self.method)).encode()).hexdigest()[:8]
        return f"{self.method.name}-{e.model}-seed{e.seed}-{digest}"


class Comparison:
    """A checked experiment, ready to run.

    Raises ConfigError, DataError or UnsupportedLayer where anything in it cannot work: names, data, the device, or a
    method or certifier that cannot take the network. Nothing is written before `run`.
    """

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = resolved = experiment.resolved()
        self.exam = resolved.exam(resolved.eps_test, resolved.certify)
        self.data = load(
            resolved.dataset,
            data_dir=resolved.data_dir,
            train_limit=resolved.train_limit,
            test_limit=resolved.test_limit,
            device=resolved.device,
        )
        digest = self.data.digest()
        self.cells = [Cell(resolved, get_method(name), digest) for name in resolved.methods]
        network = self._network()
        for cell in self.cells:
            with _refusal_of(f"method {cell.method.name!r}", resolved.model):
                cell.method.objective.prepare(network, self.data.input_shape, self.data.classes)
        _check_bounds(network, self.data, resolved.model, self.exam)

    @property
    def title(self) -> str:
        """The experiment in one line."""
        e = self.experiment
        return (
            f"{e.dataset}, {e.model} ({networks.parameters(self._network()):,} parameters), trained at eps "
            f"{eps_text(e.eps)} for {e.epochs} epochs of {len(self.data.train):,} images; "
            f"PGD {e.pgd_steps} steps x {e.pgd_restarts}"
        )

    def run(self, watch: Watch, *, evaluation: bool = True) -> list[Result]:
        """Train and evaluate every cell that is not done, and return all results, in the order of the methods.

        Results are written after each cell. Without `evaluation` networks are only trained, and there are no results;
        running again goes on from there.
        """
        results: list[Result] = []
        described = self.experiment.model_dump(mode="json", exclude_none=True)
        with claimed(self.experiment.folder, described):
            for cell in self.cells:
                results += self._run(cell, watch, evaluation)
                if results:
                    write_results(self.experiment.folder, described, self.experiment.device, results)
        return results

    def _run(self, cell: Cell, watch: Watch, evaluation: bool) -> list[Result]:
        name, folder, e = cell.method.name, self.experiment.folder / "cells" / cell.id, self.experiment
        done = folder / "result.json"
        if done.exists():
            results = [Result(**row) for row in read_json(done)]
            watch.finished(name, None, results)
            return results
        about = describe(name, e.model, e.dataset, e.eps, e.seed, self.data)
        settings = Settings(e.eps, e.epochs, e.batch_size, e.lr, e.seed)
        network = self._network()
        training = train(
            network,
            cell.method,
            self.data,
            settings,
            folder=folder,
            about=about,
            watch=lambda progress: watch.training(name, progress),
        )
        results = []
        if evaluation:
            results = _evaluated(network, self.data, self.exam, about, training, watch)
            write_json(done, [asdict(result) for result in results])
        watch.finished(name, training, results)
        return results

    def _network(self) -> nn.Module:
        e, source = self.experiment, self.data.source
        network = networks.build(
            e.model, self.data.input_shape, self.data.classes, normalization=source.normalization, seed=e.seed
        )
        return network.to(e.device)


class Reevaluation:
    """Networks from disk, checked and ready to be evaluated. Raises like Comparison, and CheckpointError."""

    def __init__(self, path: Path, request: Evaluated) -> None:
        self.data, self.trained = restore(path, request)
        about = self.trained[0].about
        eps = self.data.source.default_eps if about["eps"] is None else about["eps"]
        self.exam = request.exam((eps,), ("ibp", "crown-ibp"))
        for trained in self.trained:
            _check_bounds(trained.network, self.data, trained.about["model"], self.exam)
        known = {"dataset": about["dataset"], "model": about["model"], "device": resolve_device(request.device)}
        self.request = request.model_copy(
            update={**known, "eps_test": self.exam.eps_test, "certify": self.exam.certify}
        )

    @property
    def title(self) -> str:
        """The evaluation in one line."""
        r = self.request
        return f"{r.dataset}, {r.model}; PGD {r.pgd_steps} steps x {r.pgd_restarts}"

    def run(self, watch: Watch, out: Path | None) -> list[Result]:
        """Evaluate every network and return the results, written to `out` where one is given."""
        described = self.request.model_dump(mode="json", exclude_none=True)
        results: list[Result] = []
        with claimed(out, described) if out is not None else contextlib.nullcontext():
            for trained in self.trained:
                some = _evaluated(trained.network, self.data, self.exam, trained.about, None, watch)
                watch.finished(trained.about["method"], None, some)
                results += some
            if out is not None:
                write_results(out, described, self.request.device, results)
        return results


def _evaluated(
    network: nn.Module,
    data: Dataset,
    exam: Exam,
    about: Mapping[str, Any],
    training: Training | None,
    watch: Watch,
) -> list[Result]:
    """Return one result for each test eps."""
    results = []
    for eps in exam.eps_test:

        def seen(done: int, total: int, eps: float = eps) -> None:
            watch.evaluating(about["method"], eps, done, total)

        evaluation = evaluate(network, data.test, data.classes, exam, eps, watch=seen)
        results.append(Result.of(about, evaluation, training, networks.parameters(network)))
    return results


def _check_bounds(network: nn.Module, data: Dataset, model: str, exam: Exam) -> None:
    with evaluating(network):
        for name in (*exam.certify, "expected"):
            with _refusal_of(f"bound {name!r}", model):
                prepare(name, network, data.input_shape)


@contextlib.contextmanager
def _refusal_of(what: str, model: str) -> Iterator[None]:
    """Say in a refusal who cannot take the network."""
    try:
        yield
    except UnsupportedLayer as error:
        raise UnsupportedLayer(f"{what} cannot take network {model!r}: {error}") from error
