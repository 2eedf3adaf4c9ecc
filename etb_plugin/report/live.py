"""What is seen while a comparison or a study runs: a line with a bar on a terminal, plain lines elsewhere."""

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from types import TracebackType
from typing import Any, Self

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, TaskID, TextColumn, TimeRemainingColumn

from etb_plugin.comparison import Overview
from etb_plugin.experiment import eps_text
from etb_plugin.results import Result
from etb_plugin.training import Progress as Step
from etb_plugin.training import Training
from etb_plugin.verification import Verdict

_TOTAL = "all"
_WORTH_SAYING = 30.0
"""Seconds from which, off a terminal, the expected duration of a training is announced."""


class _Bars:
    """Bars of progress on a terminal or in a notebook while the context holds, nothing elsewhere."""

    def __init__(self, console: Console, *columns: ProgressColumn) -> None:
        moves = console.is_terminal or (console.is_jupyter and find_spec("ipywidgets") is not None)
        self._progress = Progress(*columns, console=console, disable=not moves, transient=True)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()


class Live(_Bars):
    """The Watch of a comparison on `console`. Used as a context manager. `also` is called with every step."""

    def __init__(self, console: Console, also: Callable[[], None] = lambda: None) -> None:
        status = TextColumn("{task.fields[status]}")
        super().__init__(console, TextColumn("{task.description:<15}"), BarColumn(bar_width=20), status)
        self._console, self._also = console, also
        self._tasks: dict[str, TaskID] = {}
        self._announced: set[str] = set()

    def training(self, name: str, progress: Step) -> None:
        """Show loss, accuracy, eps, images a second and time left."""
        status = (
            f"epoch {progress.epoch:>3}  loss {progress.loss:7.3f}  accuracy {progress.accuracy:6.1%}  "
            f"eps {progress.eps:.4f}  {progress.images_per_second:,.0f} images/s  "
            f"{duration(progress.seconds_left)} left"
        )
        self._show(name, progress.step, progress.steps, status)
        if not self._console.is_terminal and name not in self._announced:
            self._announced.add(name)
            if progress.seconds_left > _WORTH_SAYING:
                self._say(f"{name}: about {duration(progress.seconds_left)} to train, by its first steps")

    def evaluating(self, name: str, eps: float, done: int, total: int) -> None:
        """Show how many test images are done."""
        self._show(name, done, total, f"evaluating at eps {eps_text(eps)}: {done:,} of {total:,} images")

    def verifying(self, name: str, eps: float, total: int, counts: Mapping[Verdict, int]) -> None:
        """Show how many images have which verdict."""
        done = sum(counts.values())
        words = ", ".join(f"{counts.get(verdict, 0):,} {verdict}" for verdict in Verdict)
        self._show(name, done, total, f"eps {eps_text(eps)}: {done:,} of {total:,} images, {words}")
        if done == total:
            self._progress.remove_task(self._tasks.pop(name))
            self._say(f"{name}, eps {eps_text(eps)}: {words}")

    def bisecting(self, name: str, done: int, total: int) -> None:
        """Show how many images have their radii."""
        self._show(name, done, total, f"{done:,} of {total:,} radii")
        if done == total:
            self._progress.remove_task(self._tasks.pop(name))

    def elsewhere(self, overview: Overview) -> None:
        """Show one line per running cell, and the totals."""
        for word in overview.running.values():
            left = "" if word.seconds_left is None else f"  {duration(word.seconds_left)} left"
            self._show(word.name, word.done, word.total, word.status + left)
        at_work = {word.name for word in overview.running.values()}
        for name in [name for name in self._tasks if name not in {*at_work, _TOTAL}]:
            self._progress.remove_task(self._tasks.pop(name))
        self._show(_TOTAL, overview.done, overview.total, f"{overview.done:,} of {overview.total:,} cells")

    def finished(self, name: str, training: Training | None, results: Sequence[Result]) -> None:
        """Leave one line per finished network."""
        if name in self._tasks:
            self._progress.remove_task(self._tasks.pop(name))
        if training is not None:
            last = training.epochs[-1]
            took = f"trained in {duration(training.train_seconds)}, loss {last.loss:.3f}"
        else:
            took = "kept from an earlier run" if results and results[0].step_ms is not None else "evaluated"
        clean = f", clean accuracy {results[0].clean_accuracy:.1%}" if results else ""
        self._say(f"{name}: {took}{clean}")

    def show(self, renderable: RenderableType) -> None:
        """Print something above the bars."""
        self._console.print(renderable)

    def _show(self, name: str, done: int, total: int, status: str) -> None:
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, status="")
        self._progress.update(self._tasks[name], completed=done, total=total, status=status)
        self._also()

    def _say(self, line: str) -> None:
        self._console.print(line, highlight=False, soft_wrap=True)


class CaseProgress(_Bars):
    """The watch of a study on `console`: a bar on a terminal, nothing elsewhere."""

    def __init__(self, console: Console, name: str) -> None:
        cases = TextColumn("{task.completed} of {task.total} cases, {task.fields[case]}")
        super().__init__(
            console, TextColumn("{task.description}"), BarColumn(bar_width=20), cases, TimeRemainingColumn()
        )
        self._task = self._progress.add_task(name, total=None, case="")

    def __call__(self, done: int, total: int, case: Mapping[str, Any]) -> None:
        """Show how many cases are done, and which one runs."""
        text = ", ".join(f"{key} {value}" for key, value in case.items())
        self._progress.update(self._task, completed=done, total=total, case=text)


def duration(seconds: float) -> str:
    """Return a duration as people say it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
