"""One cell at a time: train it, and put it to the validation images or to the test images."""

import contextlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from etb_plugin import networks
from etb_plugin.attacks import pgd
from etb_plugin.bounds import Box, prepare
from etb_plugin.comparison.cells import Cell, Entry, Task, entries
from etb_plugin.comparison.estimates import estimated, read_estimates
from etb_plugin.comparison.journal import Journal, Listener, Watch, Word, held, write_word
from etb_plugin.data import Dataset, Split, load
from etb_plugin.errors import CheckpointError, EtbError, Stopped, UnsupportedLayer
from etb_plugin.evaluation import Certifier, Evaluation, Exam, evaluate, least_margins
from etb_plugin.experiment import Experiment, Resolved, VerifyRequest
from etb_plugin.files import read_experiment_of, read_json, write_file, write_json
from etb_plugin.networks import before_softmax, evaluating, members
from etb_plugin.results import Candidate, Result
from etb_plugin.results.networks import describe, untrained
from etb_plugin.training import Epoch, Estimate, Team, Training, check_training, read_metrics, train
from etb_plugin.training.tensorboard import TensorBoard, check_tensorboard
from etb_plugin.verification import Verification

_EXAMPLES = 8
"""Test images that are kept as PGD leaves them."""
MARGIN = "margin "
"""How the names of their margins begin, in the file of these."""
_SMALLEST_PICTURE = 4
"""Pixels on a side from which an input is worth showing."""


class Workshop:
    """An experiment and its data, ready for any of its tasks. Nothing is written before `perform`.

    Raises ConfigError or DataError where names, data or the device cannot work.
    """

    def __init__(self, experiment: Resolved) -> None:
        e = self.experiment = experiment
        self.data = load(
            e.dataset,
            data_dir=e.data_dir,
            train_limit=e.training.train_limit,
            test_limit=e.evaluation.test_limit,
            validation=e.training.validation,
            device=e.device,
        )
        self.entries = entries(e, self.data.digest())

    @classmethod
    def of(cls, folder: Path) -> "Workshop":
        """Return that of a run folder, whose experiment.yaml is read. Raises like a first call, and CheckpointError."""
        if not (folder / "experiment.yaml").exists():
            raise CheckpointError(f"{folder} holds no experiment.yaml")
        return cls(Experiment.model_validate(read_experiment_of(folder) | {"out": str(folder)}).resolved())

    def check(self) -> None:
        """Raise ConfigError or UnsupportedLayer where a method, certifier or verifier cannot take an architecture."""
        if self.experiment.training.tensorboard:
            check_tensorboard()
        checked = set()
        for entry in self.entries:
            for cell in entry.cells:
                kind = (cell.model, repr(cell.method))
                if kind not in checked:
                    checked.add(kind)
                    with refusal_of(f"method {cell.method.name!r}", cell.model):
                        network = self.network(cell.model, cell.seed, cell.method.pair)
                        check_training(network, cell.method, self.data, cell.settings)
        for model in self.experiment.model:
            check_bounds(self.network(model, 0), self.data, model, self.exam(0))

    @cached_property
    def estimates(self) -> dict[str, Estimate]:
        """What training costs, by cell, as far as it is known."""
        return read_estimates(self.experiment.folder)

    def estimate(self, cells: Iterable[Cell]) -> None:
        """Add estimates of cells that have none. Raises ConfigError for a cell that does not fit in memory."""
        self.estimates |= estimated(
            cells, self.data, lambda cell: self.network(cell.model, cell.seed, cell.method.pair), self.estimates
        )

    def exam(self, seed: int) -> Exam:
        """Return what networks of `seed` are put to."""
        evaluation = self.experiment.evaluation
        exam = evaluation.exam(evaluation.eps_test, evaluation.certify, seed)
        return replace(exam, capture=self.experiment.training.capture == "auto")

    def network(self, model: str, seed: int, pair: bool = False) -> nn.Module:
        """Return a new network, or a pair."""
        return untrained(self.data, model, seed, pair).to(self.experiment.device)

    def task(self, cell_id: str, validate: bool) -> Task:
        """Return the task with these keys. Raises CheckpointError where the experiment has none."""
        if (cell_id, validate) not in self._tasks:
            raise CheckpointError(f"{self.experiment.folder} has no cell {cell_id}")
        return self._tasks[cell_id, validate]

    @cached_property
    def _tasks(self) -> dict[tuple[str, bool], Task]:
        every = [
            Task(entry, point, validate)
            for entry in self.entries
            for point in range(len(entry.cells))
            for validate in (False, True)
        ]
        return {task.key: task for task in reversed(every)}

    def is_done(self, task: Task) -> bool:
        """Return whether the task's figures are on disk, for the exam that is asked now."""
        file = _file(task)
        return file.exists() and read_json(file).get("exam") == self._exam_of(task)

    def perform(self, task: Task, watch: Watch, *, evaluation: bool = True) -> None:
        """Train the task's cell, or go on from its last checkpoint, and write its figures.

        Without `evaluation` it is only trained. A task that is done is not done again. Raises ConfigError where another
        process is at it.
        """
        leads = Team.current().leads  # the others of a team train, and write nothing
        with held(task.cell.folder, task.name) if leads else contextlib.nullcontext():
            if self.is_done(task):
                return
            try:
                self._perform(task, Journal(task.cell.folder, watch) if leads else watch, watch, evaluation)
            except Stopped:
                raise
            except EtbError as error:
                write_word(task.cell.folder, Word(task.name, 0, 0, "failed", failed=str(error)))
                raise

    def _perform(self, task: Task, journal: Listener, watch: Watch, evaluation: bool) -> None:
        cell = task.cell
        network, training = self._trained(task, journal)
        rows: list[dict[str, Any]] = []
        results: list[Result] = []
        if task.validate:
            assert self.data.validation is not None
            first = next(iter(members(network).values()))
            exam = self._exam(task)
            rows = [asdict(e) for e in evaluations(first, self.data.validation, self.data, exam, task.name, journal)]
        elif evaluation:
            for which, member in members(network).items():
                found = evaluations(member, self.data.test, self.data, self.exam(cell.seed), task.name + which, journal)
                some = results_of(member, found, self._about(task.entry.label + which, cell), training)
                results += some
                rows += [{"which": which, **asdict(result)} for result in some]
            self._verify(cell, rows, journal)
            self._keep_examples(network, cell)
        if rows:
            costs = {"nominal_step_ms": training.nominal_step_ms, "peak_memory_mib": training.peak_memory_mib}
            write_json(_file(task), {"exam": self._exam_of(task), "costs": costs, "rows": rows})
        watch.finished(task.name, training, results)

    def _verify(self, cell: Cell, rows: list[dict[str, Any]], journal: Listener) -> None:
        """Put a trained cell to the verifiers, where the experiment asks for it, and add the totals to its rows."""
        e = self.experiment
        if e.verification is None:
            return
        asked = e.verification.model_dump() | e.evaluation.model_dump(include={"eps_test", "pgd_steps", "pgd_restarts"})
        request = VerifyRequest.model_validate(
            asked
            | {"images": None if e.verification.images is None else "{}:{}".format(*e.verification.images)}
            | {"seed": cell.seed, "device": e.device, "data_dir": e.data_dir, "out": str(cell.folder / "verified")}
        )
        totals = {(v.method, v.eps_test): v for v in Verification(cell.folder, request).run(journal)}
        for row in rows:
            found = totals[row["method"], row["eps_test"]]
            row["verified"] = {
                "images": list(found.images),
                "clean_accuracy": found.clean_accuracy,
                "pgd_accuracy": found.pgd_accuracy,
                "verified_accuracy": found.verified_accuracy,
                "unknown": found.unknown,
            }

    def _keep_examples(self, network: nn.Module, cell: Cell) -> None:
        """Keep the first test images, what PGD makes of them at the largest test radius, and each certifier's margins,
        for the report."""
        channels, *size = self.data.input_shape
        if channels not in (1, 3) or min(size) < _SMALLEST_PICTURE:
            return  # no pictures
        exam = self.exam(cell.seed)
        images, labels = next(self.data.test.batches(_EXAMPLES))
        eps, network = max(exam.eps_test), before_softmax(network, self.data.input_shape)
        with torch.no_grad():
            before = network(images).argmax(1)
        generator = torch.Generator(images.device).manual_seed(exam.seed)
        points, _ = pgd(network, Box.around(images, eps), before, exam.attack, generator)
        with torch.no_grad():
            after = network(points).argmax(1)
        margins = least_margins(exam.certify, network, images, eps, labels, self.data.classes)
        found = {"images": images, "labels": labels, "points": points, "before": before, "after": after}
        buffer = io.BytesIO()
        arrays = {name: value.cpu().numpy() for name, value in found.items()}
        arrays |= {f"{MARGIN}{name}": value.cpu().numpy() for name, value in margins.items()}
        np.savez_compressed(buffer, eps=eps, **arrays)
        write_file(cell.folder / "examples.npz", buffer.getvalue())

    def results(self, task: Task) -> list[Result]:
        """Return the rows of a task that is done."""
        found = []
        for row in read_json(_file(task))["rows"]:
            which = row.pop("which")
            found.append(Result(**{**row, "method": task.entry.label + which}))
        return found

    def training(self, task: Task) -> Training:
        """Return the epochs and costs of a task that is done."""
        lines = (task.cell.folder / "metrics.jsonl").read_text().splitlines()
        epochs = tuple(Epoch(**json.loads(line)) for line in lines)
        return Training(epochs, **read_json(_file(task))["costs"])

    def trained(self, cell: Cell) -> list[float]:
        """Return the seconds of each epoch that a cell has been trained."""
        return [epoch["seconds"] for epoch in read_metrics(cell.folder)]

    def candidates(self, entry: Entry) -> list[Candidate]:
        """Return how each point of a grid does on the validation images; all of them have to be done."""
        select = self.experiment.training.select
        found = []
        for point, cell in enumerate(entry.cells):
            rows = [Evaluation(**row) for row in read_json(_file(Task(entry, point, True)))["rows"]]
            score = sum(_score(row, select) for row in rows) / len(rows)
            found.append(Candidate(dict(cell.changes), score, rows))
        return found

    def _exam(self, task: Task) -> Exam:
        exam = self.exam(task.cell.seed)
        spare = task.validate and self.experiment.training.select != "certified"
        return replace(exam, certify=()) if spare else exam

    def _exam_of(self, task: Task) -> dict[str, Any]:
        """Return what is asked of the task's network, as JSON has it."""
        exam, e = self._exam(task), self.experiment
        return (
            {
                "eps_test": list(exam.eps_test),
                "pgd": [exam.attack.steps, exam.attack.restarts],
                "further": exam.further,
                "certify": list(exam.certify),
                "images": len(self.data.test if not task.validate else self.data.validation or ()),
            }
            | ({"rigorous": True} if exam.rigorous else {})
            | (
                {}
                if task.validate or e.verification is None
                else {"verification": e.verification.model_dump(mode="json")}
            )
        )

    def _trained(self, task: Task, journal: Listener) -> tuple[nn.Module, Training]:
        cell = task.cell
        network = self.network(cell.model, cell.seed, cell.method.pair)
        board = self.experiment.training.tensorboard
        training = train(
            network,
            cell.method,
            self.data,
            cell.settings,
            folder=cell.folder,
            about=self._about(task.entry.label, cell),
            after_epoch=TensorBoard(cell.folder / "tensorboard") if board else lambda _: None,
            watch=lambda progress: journal.training(task.name, progress),
            cost=self.estimates.get(cell.id),
        )
        return network, training

    def _about(self, label: str, cell: Cell) -> dict[str, Any]:
        known = describe(label, cell.model, self.experiment.dataset, cell.eps, cell.seed, self.data)
        return known | {"changes": dict(cell.changes), "pair": cell.method.pair}


def _file(task: Task) -> Path:
    return task.cell.folder / ("validation.json" if task.validate else "result.json")


def evaluations(
    network: nn.Module, split: Split, data: Dataset, exam: Exam, name: str, watch: Listener
) -> list[Evaluation]:
    """Return one evaluation for each test eps."""
    found = []
    for eps in exam.eps_test:

        def seen(done: int, total: int, eps: float = eps) -> None:
            watch.evaluating(name, eps, done, total)

        found.append(evaluate(network, split, data.classes, exam, eps, watch=seen))
    return found


def results_of(
    network: nn.Module, found: Sequence[Evaluation], about: Mapping[str, Any], training: Training | None
) -> list[Result]:
    """Return the rows of a network's evaluations."""
    size = networks.parameters(network)
    return [Result.of(about, evaluation, training, size) for evaluation in found]


def _score(evaluation: Evaluation, select: str) -> float:
    """Return what a grid's point is chosen by."""
    if select == "certified":
        return max(evaluation.certified_accuracy.values())
    return evaluation.clean_accuracy if select == "clean" else evaluation.pgd_accuracy


def check_bounds(network: nn.Module, data: Dataset, model: str, exam: Exam) -> None:
    """Raise UnsupportedLayer, naming bound and architecture, for a bound of the exam that cannot take the network."""
    with evaluating(network):
        network = before_softmax(network, data.input_shape)  # as `evaluate` does
        for name in exam.certify:
            with refusal_of(f"bound {name!r}", model):
                Certifier(name, network, data.input_shape, in_real_arithmetic=exam.rigorous)
        with refusal_of("bound 'expected'", model):
            prepare("expected", network, data.input_shape)


@contextlib.contextmanager
def refusal_of(what: str, model: str) -> Iterator[None]:
    """Say in a refusal who cannot take the network."""
    try:
        yield
    except UnsupportedLayer as error:
        raise UnsupportedLayer(f"{what} cannot take network {model!r}: {error}") from error
