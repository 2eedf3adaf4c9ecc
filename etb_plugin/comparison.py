"""Comparisons: the cells of an experiment, run one after the other, and their results.

A *cell* is one method trained once. It keeps its own folder, named by a hash of all that determines its weights;
a finished cell is never run twice, and a half-trained one goes on from its last epoch. A method with a grid has a
cell for each point; the one that does best on the validation images is put to the test images, the others never.
"""

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from etb_plugin import networks
from etb_plugin.bounds import prepare
from etb_plugin.data import Dataset, Split, load
from etb_plugin.errors import UnsupportedLayer
from etb_plugin.evaluation import Evaluation, Exam, evaluate, prepare_certifier
from etb_plugin.experiment import Evaluated, Experiment, Resolved, eps_text, resolve_device
from etb_plugin.networks import evaluating, members
from etb_plugin.objectives import Method
from etb_plugin.results import Candidate, Result, write_results
from etb_plugin.runs import claimed, read_json, write_json
from etb_plugin.trained import describe, restore, untrained
from etb_plugin.training import Progress, Settings, Team, Training, check_training, train
from etb_plugin.training.tensorboard import TensorBoard, check_tensorboard


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
    """One method of an experiment, with all that determines its weights; `changes` to its defaults are in `method`."""

    experiment: Resolved
    method: Method
    eps: float
    changes: Mapping[str, Any]
    data_digest: str

    @property
    def id(self) -> str:
        """A readable name and a hash."""
        e = self.experiment
        parts = (
            e.dataset,
            self.data_digest,
            e.model,
            self.eps,
            e.epochs,
            e.batch_size,
            e.lr,
            e.seed,
            e.device,
            e.compile,
        )
        digest = hashlib.sha256(repr((*parts, self.method)).encode()).hexdigest()[:8]
        return f"{self.method.name}-{e.model}-seed{e.seed}-{digest}"

    @property
    def settings(self) -> Settings:
        """What the run is trained with, besides the method."""
        e = self.experiment
        rate = None if "learning_rate" in self.changes else e.lr
        return Settings(self.eps, e.epochs, e.batch_size, rate, e.seed, e.compile)


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
            validation=resolved.validation,
            device=resolved.device,
        )
        digest = self.data.digest()
        self.entries = {
            variant.label: [
                Cell(resolved, *variant.at(changes, resolved.eps), changes, digest) for changes in variant.points()
            ]
            for variant in resolved.methods
        }
        if resolved.tensorboard:
            check_tensorboard()
        trial = {pair: self._network(pair) for pair in {False, *(cell.method.pair for cell in self.cells)}}
        for cell in self.cells:
            with _refusal_of(f"method {cell.method.name!r}", resolved.model):
                check_training(trial[cell.method.pair], cell.method, self.data, cell.settings)
        _check_bounds(trial[False], self.data, resolved.model, self.exam)

    @property
    def cells(self) -> list[Cell]:
        """Every cell, those of grids included."""
        return [cell for cells in self.entries.values() for cell in cells]

    @property
    def title(self) -> str:
        """The experiment in one line."""
        e = self.experiment
        aside = f"; grids chosen by {e.select} on {e.validation:,} other training images" if e.validation else ""
        return (
            f"{e.dataset}, {e.model} ({networks.parameters(self._network()):,} parameters), trained at eps "
            f"{eps_text(e.eps)} for {e.epochs} epochs of {len(self.data.train):,} images; "
            f"PGD {e.pgd_steps} steps x {e.pgd_restarts}{aside}"
        )

    def run(self, watch: Watch, *, evaluation: bool = True) -> list[Result]:
        """Train and evaluate every cell that is not done, and return all results, in the order of the methods.

        Results are written after each cell. Without `evaluation` networks are only trained, and there are no results;
        running again goes on from there.
        """
        results: list[Result] = []
        grids: dict[str, list[Candidate]] = {}
        described = self.experiment.model_dump(mode="json", exclude_none=True)
        leads = Team.current().leads  # the others of a team train, and write nothing
        with claimed(self.experiment.folder, described) if leads else contextlib.nullcontext():
            for label, cells in self.entries.items():
                chosen = cells[0]
                if len(cells) > 1:
                    grids[label] = self._candidates(label, cells, watch)
                    chosen = cells[max(range(len(cells)), key=lambda i: grids[label][i].score)]
                results += self._run(label, chosen, watch, evaluation)
                if results:
                    write_results(self.experiment.folder, described, self.experiment.device, results, grids)
        return results

    def _candidates(self, label: str, cells: list[Cell], watch: Watch) -> list[Candidate]:
        """Train every cell of a grid and return how each does on the validation images."""
        e = self.experiment
        assert self.data.validation is not None
        exam = replace(self.exam, certify=self.exam.certify if e.select == "certified" else ())
        candidates = []
        for number, cell in enumerate(cells, start=1):
            name = f"{label} {number}/{len(cells)}"
            done = self._folder(cell) / "validation.json"
            if not done.exists():
                network, training = self._trained(name, cell, watch)
                first = next(iter(members(network).values()))
                found = _evaluations(first, self.data.validation, self.data.classes, exam, name, watch)
                write_json(done, [asdict(evaluation) for evaluation in found])
                watch.finished(name, training, [])
            evaluations = [Evaluation(**row) for row in read_json(done)]
            score = sum(_score(evaluation, e.select) for evaluation in evaluations) / len(evaluations)
            candidates.append(Candidate(dict(cell.changes), score, evaluations))
        return candidates

    def _run(self, label: str, cell: Cell, watch: Watch, evaluation: bool) -> list[Result]:
        results: list[Result] = []
        done = self._folder(cell) / "result.json"
        if done.exists():
            results = [Result(**row) for row in read_json(done)]
            watch.finished(label, None, results)
            return results
        network, training = self._trained(label, cell, watch)
        if evaluation:
            for which, member in members(network).items():
                found = _evaluations(member, self.data.test, self.data.classes, self.exam, label + which, watch)
                results += _results(member, found, self._about(label + which, cell), training)
            write_json(done, [asdict(result) for result in results])
        watch.finished(label, training, results)
        return results

    def _trained(self, label: str, cell: Cell, watch: Watch) -> tuple[nn.Module, Training]:
        network = self._network(cell.method.pair)
        training = train(
            network,
            cell.method,
            self.data,
            cell.settings,
            folder=self._folder(cell),
            about=self._about(label, cell),
            after_epoch=TensorBoard(self._folder(cell) / "tensorboard")
            if self.experiment.tensorboard
            else lambda _: None,
            watch=lambda progress: watch.training(label, progress),
        )
        return network, training

    def _about(self, label: str, cell: Cell) -> dict[str, Any]:
        e = self.experiment
        return describe(label, e.model, e.dataset, cell.eps, e.seed, self.data) | {
            "changes": dict(cell.changes),
            "pair": cell.method.pair,
        }

    def _folder(self, cell: Cell) -> Path:
        return self.experiment.folder / "cells" / cell.id

    def _network(self, pair: bool = False) -> nn.Module:
        e = self.experiment
        return untrained(self.data, e.model, e.seed, pair).to(e.device)


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
                name = trained.about["method"]
                found = _evaluations(trained.network, self.data.test, self.data.classes, self.exam, name, watch)
                some = _results(trained.network, found, trained.about, None)
                watch.finished(name, None, some)
                results += some
            if out is not None:
                write_results(out, described, self.request.device, results, {})
        return results


def _evaluations(
    network: nn.Module, split: Split, classes: int, exam: Exam, name: str, watch: Watch
) -> list[Evaluation]:
    """Return one evaluation for each test eps."""
    found = []
    for eps in exam.eps_test:

        def seen(done: int, total: int, eps: float = eps) -> None:
            watch.evaluating(name, eps, done, total)

        found.append(evaluate(network, split, classes, exam, eps, watch=seen))
    return found


def _results(
    network: nn.Module, evaluations: Sequence[Evaluation], about: Mapping[str, Any], training: Training | None
) -> list[Result]:
    size = networks.parameters(network)
    return [Result.of(about, evaluation, training, size) for evaluation in evaluations]


def _score(evaluation: Evaluation, select: str) -> float:
    """Return what a grid's point is chosen by."""
    if select == "certified":
        return max(evaluation.certified_accuracy.values())
    return evaluation.clean_accuracy if select == "clean" else evaluation.pgd_accuracy


def _check_bounds(network: nn.Module, data: Dataset, model: str, exam: Exam) -> None:
    with evaluating(network):
        for name in exam.certify:
            with _refusal_of(f"bound {name!r}", model):
                prepare_certifier(name, network, data.input_shape)
        with _refusal_of("bound 'expected'", model):
            prepare("expected", network, data.input_shape)


@contextlib.contextmanager
def _refusal_of(what: str, model: str) -> Iterator[None]:
    """Say in a refusal who cannot take the network."""
    try:
        yield
    except UnsupportedLayer as error:
        raise UnsupportedLayer(f"{what} cannot take network {model!r}: {error}") from error
