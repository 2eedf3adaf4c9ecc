"""Comparisons: every entry of an experiment worked out by an engine, and the results put together."""

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from etb_plugin import networks
from etb_plugin.comparison.cells import Entry, Task, candidates
from etb_plugin.comparison.engines import Finished, engine_of
from etb_plugin.comparison.journal import Overview, Watch, is_held, read_word
from etb_plugin.comparison.work import Workshop
from etb_plugin.errors import EtbError
from etb_plugin.experiment import Experiment, eps_text
from etb_plugin.results import Candidate, Result, write_results
from etb_plugin.runs import claimed
from etb_plugin.training import Team

_MAY_GROW = ("methods", "model", "eps", "seed", "evaluation.eps_test", "evaluation.certify", "verification")
"""Keys whose lists a later call on the same folder may reorder and extend."""
_WRITE_EVERY = 2.0
"""Seconds between two writes of the results while cells finish."""


class Comparison:
    """A checked experiment, ready to run.

    Raises ConfigError, DataError or UnsupportedLayer where anything in it cannot work: names, data, the device, the
    engine, or a method or certifier that cannot take a network. Nothing is written before `run`.
    """

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment.resolved()
        self.engine = engine_of(self.experiment.engine, self.experiment.device)
        self.workshop = Workshop(self.experiment)
        self.workshop.check()

    @property
    def entries(self) -> list[Entry]:
        """The lines of the table to be."""
        return self.workshop.entries

    @property
    def title(self) -> str:
        """The experiment in one line."""
        e, t, v = self.experiment, self.experiment.training, self.experiment.evaluation
        sizes = [
            f"{model} ({networks.parameters(self.workshop.network(model, e.seed[0])):,} parameters)"
            for model in e.model
        ]
        aside = f"; grids chosen by {t.select} on {t.validation:,} other training images" if t.validation else ""
        return e.report.title or (
            f"{e.dataset}, {', '.join(sizes)}, trained at eps {', '.join(map(eps_text, e.eps))} for {t.epochs} epochs "
            f"of {len(self.workshop.data.train):,} images; PGD {v.pgd_steps} steps x {v.pgd_restarts}{aside}"
        )

    def run(self, watch: Watch, *, evaluation: bool = True) -> list[Result]:
        """Train and evaluate every cell that is not done, and return all results, in the order of the entries.

        Results are written as cells finish. Without `evaluation` networks are only trained, and there are no results;
        running again goes on from there. Where cells fail, the others are finished first; raises EtbError then.
        """
        shop = self.workshop
        leads = Team.current().leads  # the others of a team train, and write nothing
        mine = claimed(self.experiment.folder, self.experiment.plain, _MAY_GROW) if leads else contextlib.nullcontext()
        with self.engine.opened(), mine:
            writer = _Writer(self, evaluation and leads)
            try:
                failures = self._perform(list(candidates(self.entries)), watch, evaluation, lambda: None)
                failures |= self._perform(self.tests(failures), watch, evaluation, writer.due)
            finally:
                writer.write()
        if len(failures) == 1:
            raise next(iter(failures.values()))
        if failures:
            first, error = next(iter(failures.items()))
            raise EtbError(f"{len(failures)} cells failed and can be run again; the first, {first.name}: {error}")
        return [row for task in self.tests({}) if shop.is_done(task) for row in shop.results(task)]

    def tests(self, failures: dict[Task, EtbError]) -> list[Task]:
        """Return the task that puts each entry to the test images; a grid's that is not decided has none."""
        found = []
        for entry in self.entries:
            points = [Task(entry, point, True) for point in range(len(entry.cells))]
            if len(points) == 1:
                found.append(Task(entry, 0, False))
            elif not failures.keys() & set(points) and all(self.workshop.is_done(point) for point in points):
                scores = [candidate.score for candidate in self.workshop.candidates(entry)]
                found.append(Task(entry, scores.index(max(scores)), False))
        return found

    def _perform(
        self, tasks: Sequence[Task], watch: Watch, evaluation: bool, finished: Finished
    ) -> dict[Task, EtbError]:
        """Have the engine do what is not done. Two entries may share a cell: it is done once."""
        todo: dict[tuple[str, bool], Task] = {}
        for task in tasks:
            if not self.workshop.is_done(task):
                todo.setdefault(task.key, task)
            elif not task.validate:
                watch.finished(task.name, None, self.workshop.results(task))
        return self.engine.run(list(todo.values()), self.workshop, watch, finished, evaluation) if todo else {}


class _Writer:
    """Writes results.json and results.csv of what is done, now and then."""

    def __init__(self, comparison: Comparison, wanted: bool) -> None:
        self._comparison, self._wanted = comparison, wanted
        self._written, self._known = 0.0, 0

    def due(self) -> None:
        if time.monotonic() - self._written >= _WRITE_EVERY:
            self.write()

    def write(self) -> None:
        if not self._wanted:
            return
        c = self._comparison
        self._written = time.monotonic()
        tasks = [task for task in c.tests({}) if c.workshop.is_done(task)]
        results = [row for task in tasks for row in c.workshop.results(task)]
        grids: dict[str, list[Candidate]] = {
            task.entry.name: c.workshop.candidates(task.entry) for task in tasks if len(task.entry.cells) > 1
        }
        if results:
            write_results(c.experiment.folder, c.experiment.plain, c.experiment.device, results, grids)


@dataclass(frozen=True)
class Planned:
    """A task of an experiment: its cell, its name, its state (done, running, failed, begun or missing), and the seconds
    that its training takes, by its own epochs or those of cells with the same method and network."""

    cell: str
    name: str
    state: str
    seconds: float | None


def planned(shop: Workshop) -> list[Planned]:
    """Return every task of an experiment by what is on disk; those of a grid's best are known when its points are."""
    tasks = _known_tasks(shop)
    paces = {task: shop.pace(task.cell) for task in tasks}
    known: dict[tuple[str, str], list[float]] = {}
    for task, pace in paces.items():
        if pace is not None:
            known.setdefault((task.cell.method.name, task.cell.model), []).append(pace)
    mean = {kind: fmean(some) for kind, some in known.items()}
    epochs = shop.experiment.training.epochs
    found = []
    for task in tasks:
        pace = paces[task] or mean.get((task.cell.method.name, task.cell.model))
        seconds = None if pace is None else epochs * pace
        found.append(Planned(task.cell.id, task.name, _state(shop, task), seconds))
    return found


def overview(shop: Workshop) -> tuple[Overview, dict[str, str]]:
    """Return where a run stands, by what is on disk, and why cells failed."""
    tasks = _known_tasks(shop)
    states = {task: _state(shop, task) for task in tasks}
    words = {task: read_word(task.cell.folder) for task in tasks if states[task] in ("running", "failed")}
    running = {t.cell.id: word for t, word in words.items() if word is not None and states[t] == "running"}
    failed = {t.name: str(word.failed) for t, word in words.items() if word is not None and states[t] == "failed"}
    return Overview(sum(state == "done" for state in states.values()), len(tasks), running), failed


def _known_tasks(shop: Workshop) -> list[Task]:
    """Return the tasks that are known before anything ran, each cell's once."""
    every = [*candidates(shop.entries), *(Task(e, 0, False) for e in shop.entries if len(e.cells) == 1)]
    return list({task.key: task for task in reversed(every)}.values())[::-1]


def _state(shop: Workshop, task: Task) -> str:
    if shop.is_done(task):
        return "done"
    word = read_word(task.cell.folder)
    if word is None:
        return "missing"
    if is_held(task.cell.folder):
        return "running"
    return "begun" if word.failed is None else "failed"
