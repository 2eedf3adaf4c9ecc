"""Where a run stands, by what is on disk: for a dry run, and for whoever asks from another terminal."""

from dataclasses import dataclass
from statistics import fmean

from etb_plugin.comparison.cells import Task, candidates
from etb_plugin.comparison.journal import Overview, Word, is_held, read_word
from etb_plugin.comparison.work import Workshop


@dataclass(frozen=True)
class Planned:
    """A task of an experiment: its cell, its name, label and network, and its state (done, running, failed, begun or
    missing); the seconds of training that are left, by its own epochs, or else as estimated, or else by those of cells
    with the same method and network; the MiB of a step; and its latest word, where it is running or has failed."""

    cell: str
    name: str
    label: str
    model: str
    state: str
    seconds: float | None
    mib: float | None
    word: Word | None


def planned(shop: Workshop) -> list[Planned]:
    """Return every task of an experiment by what is on disk; those of a grid's best are known when its points are."""
    tasks = _known_tasks(shop)
    trained = {task: shop.trained(task.cell) for task in tasks}
    known: dict[tuple[str, str], list[float]] = {}
    for task, epochs in trained.items():
        if epochs:
            known.setdefault(_kind(task), []).append(fmean(epochs))
    found = []
    for task in tasks:
        own, like, cost = trained[task], known.get(_kind(task)), shop.estimates.get(task.cell.id)
        left = shop.experiment.training.epochs - len(own)
        if cost is not None and not own:
            seconds: float | None = cost.seconds
        else:
            pace = own or like
            seconds = left * fmean(pace) if pace else None
        state, word = _state(shop, task)
        named = (task.cell.id, task.name, task.entry.label, task.cell.model, state)
        found.append(Planned(*named, seconds, None if cost is None else cost.mib, word))
    return found


def overview(shop: Workshop) -> tuple[Overview, dict[str, str]]:
    """Return where a run stands, by what is on disk, and why cells failed."""
    seen = [(task, *_state(shop, task)) for task in _known_tasks(shop)]
    running = {task.cell.id: word for task, state, word in seen if word is not None and state == "running"}
    failed = {task.name: str(word.failed) for task, state, word in seen if word is not None and state == "failed"}
    return Overview(sum(state == "done" for _, state, _ in seen), len(seen), running), failed


def _known_tasks(shop: Workshop) -> list[Task]:
    """Return the tasks that are known before anything ran, each cell's once."""
    every = [*candidates(shop.entries), *(Task(e, 0, False) for e in shop.entries if len(e.cells) == 1)]
    return list({task.key: task for task in reversed(every)}.values())[::-1]


def _kind(task: Task) -> tuple[str, str]:
    return task.cell.method.name, task.cell.model


def _state(shop: Workshop, task: Task) -> tuple[str, Word | None]:
    """Return a task's state, and its latest word where it is running or has failed."""
    if shop.is_done(task):
        return "done", None
    word = read_word(task.cell.folder)
    if word is None:
        return "missing", None
    if is_held(task.cell.folder):
        return "running", word
    return ("begun", None) if word.failed is None else ("failed", word)
