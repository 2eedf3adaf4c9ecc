"""Comparisons: every entry of an experiment worked out by an engine, and the results put together."""

import contextlib
from collections.abc import Callable, Sequence

from etb_plugin import networks
from etb_plugin.comparison.cells import Entry, Task, candidates
from etb_plugin.comparison.engines import Finished, engine_of
from etb_plugin.comparison.estimates import write_estimates
from etb_plugin.comparison.journal import Watch
from etb_plugin.comparison.work import Workshop
from etb_plugin.errors import EtbError
from etb_plugin.experiment import Experiment, eps_text
from etb_plugin.files import Paced, claimed
from etb_plugin.results import Candidate, Result, write_results
from etb_plugin.training import Team

_MAY_GROW = {
    **dict.fromkeys(("methods", "model", "eps", "seed", "evaluation.eps_test", "evaluation.certify", "verification")),
    "evaluation.attack": "pgd",
}
"""Keys whose lists a later call on the same folder may reorder and extend, or that may come: instead of what."""


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
        epochs = f"{t.epochs} epoch{'s' if t.epochs > 1 else ''}"
        return e.report.title or (
            f"{e.dataset}, {', '.join(sizes)}, trained at eps {', '.join(map(eps_text, e.eps))} for {epochs} "
            f"of {len(self.workshop.data.train):,} images; PGD {v.pgd_steps} steps x {v.pgd_restarts}{aside}"
        )

    def estimate(self) -> None:
        """Find out what the cells that are not begun will cost, and write nothing.

        Raises ConfigError for a cell that does not fit in memory.
        """
        cells = (cell for entry in self.entries for cell in entry.cells)
        self.workshop.estimate(cell for cell in cells if not self.workshop.trained(cell))

    def run(
        self, watch: Watch, *, evaluation: bool = True, estimated: Callable[[], None] = lambda: None
    ) -> list[Result]:
        """Train and evaluate every cell that is not done, and return all results, in the order of the entries.

        What they will cost is found out first (`estimate`), and `estimated` told; the cheapest come first.
        Results are written as cells finish. Without `evaluation` networks are only trained, and there are no results;
        running again goes on from there. Where cells fail, the others are finished first; raises EtbError then.
        """
        leads = Team.current().leads  # the others of a team train, and write nothing
        mine = claimed(self.experiment.folder, self.experiment.plain, _MAY_GROW) if leads else contextlib.nullcontext()
        with self.engine.opened(), mine:
            writer = Paced(self._write if evaluation and leads else lambda: None)
            if leads and self.engine.trains:
                self.estimate()
                write_estimates(self.experiment.folder, self.workshop.estimates)
                estimated()
            try:
                failures = self._perform(list(candidates(self.entries)), watch, evaluation, lambda: None)
                failures |= self._perform(self._tests(), watch, evaluation, writer.due)
            finally:
                writer.now()
        if len(failures) == 1:
            raise next(iter(failures.values()))
        if failures:
            first, error = next(iter(failures.items()))
            raise EtbError(f"{len(failures)} cells failed and can be run again; the first, {first.name}: {error}")
        return [row for task in self.finished() for row in self.workshop.results(task)]

    def finished(self) -> list[Task]:
        """Return the tasks whose figures are those of the table, as far as they are done."""
        return [task for task in self._tests() if self.workshop.is_done(task)]

    def _tests(self) -> list[Task]:
        """Return the task that puts each entry to the test images; a grid's that is not decided has none."""
        found = []
        for entry in self.entries:
            points = [Task(entry, point, True) for point in range(len(entry.cells))]
            if len(points) == 1:
                found.append(Task(entry, 0, False))
            elif all(self.workshop.is_done(point) for point in points):
                scores = [candidate.score for candidate in self.workshop.candidates(entry)]
                found.append(Task(entry, scores.index(max(scores)), False))
        return found

    def _perform(
        self, tasks: Sequence[Task], watch: Watch, evaluation: bool, finished: Finished
    ) -> dict[Task, EtbError]:
        """Have the engine do what is not done, the cheapest first. Two entries may share a cell: it is done once."""
        todo: dict[tuple[str, bool], Task] = {}
        for task in tasks:
            if not self.workshop.is_done(task):
                todo.setdefault(task.key, task)
            elif not task.validate:
                watch.finished(task.name, None, self.workshop.results(task))
        costs = self.workshop.estimates
        ordered = sorted(todo.values(), key=lambda task: costs[task.cell.id].seconds if task.cell.id in costs else 0.0)
        return self.engine.run(ordered, self.workshop, watch, finished, evaluation) if todo else {}

    def _write(self) -> None:
        """Write results.json and results.csv of what is done."""
        tasks = self.finished()
        results = [row for task in tasks for row in self.workshop.results(task)]
        grids: dict[str, list[Candidate]] = {
            task.entry.name: self.workshop.candidates(task.entry) for task in tasks if len(task.entry.cells) > 1
        }
        if results:
            e = self.experiment
            write_results(e.folder, e.plain, e.device, results, grids)
