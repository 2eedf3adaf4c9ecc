"""Where a run stands, by what is on disk: for a dry run, and for whoever asks from another terminal."""

from dataclasses import dataclass
from statistics import fmean

from etb_plugin.comparison.cells import Task, candidates
from etb_plugin.comparison.journal import Overview, is_held, read_word
from etb_plugin.comparison.work import Workshop


@dataclass(frozen=True)
class Planned:
    """A task of an experiment: its cell, its name, label and network, and its state (done, running, failed, begun or
    missing); the seconds that its training takes, by its own epochs, or else as estimated, or else by those of cells
    with the same method and network; and the MiB of a step."""

    cell: str
    name: str
    label: str
    model: str
    state: str
    seconds: float | None
    mib: float | None


def planned(shop: Workshop) -> list[Planned]:
    """Return every task of an experiment by what is on disk; those of a grid's best are known when its points are."""
    tasks = _known_tasks(shop)
    paces = {task: shop.pace(task.cell) for task in tasks}
    known: dict[tuple[str, str], list[float]] = {}
    for task, pace in paces.items():
        if pace is not None:
            known.setdefault(_kind(task), []).append(pace)
    mean = {kind: fmean(some) for kind, some in known.items()}
    epochs = shop.experiment.training.epochs
    found = []
    for task in tasks:
        pace, like, cost = paces[task], mean.get(_kind(task)), shop.estimates.get(task.cell.id)
        if pace is None and cost is not None:
            seconds: float | None = cost.seconds
        else:
            known_pace = like if pace is None else pace
            seconds = None if known_pace is None else epochs * known_pace
        named = (task.cell.id, task.name, task.entry.label, task.cell.model, _state(shop, task))
        found.append(Planned(*named, seconds, None if cost is None else cost.mib))
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


def _kind(task: Task) -> tuple[str, str]:
    return task.cell.method.name, task.cell.model


def _state(shop: Workshop, task: Task) -> str:
    if shop.is_done(task):
        return "done"
    word = read_word(task.cell.folder)
    if word is None:
        return "missing"
    if is_held(task.cell.folder):
        return "running"
    return "begun" if word.failed is None else "failed"
