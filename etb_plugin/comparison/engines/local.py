"""The engine `local`: this process alone, or several on this machine."""

import contextlib
import math
import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from etb_plugin.comparison.cells import Task
from etb_plugin.comparison.engines.registry import EngineRun, Finished, conclude, register_engine
from etb_plugin.comparison.engines.serving import Quiet, end_with, set_up, shop_of
from etb_plugin.comparison.journal import Overview, Watch, Word, read_word
from etb_plugin.comparison.work import Workshop
from etb_plugin.errors import ConfigError, EtbError, SoundnessError, Stopped, tell
from etb_plugin.experiment import Engine, Resolved
from etb_plugin.stopping import StopSignals

_LOOK_EVERY = 0.5
"""Seconds between two looks at what the workers say."""
_TRIES = 3
"""How often a cell whose process died is begun; it goes on from its last checkpoint."""
_VISIBLE = "CUDA_VISIBLE_DEVICES"
_PATIENCE = 60.0
"""Seconds that workers have to write their checkpoints after a signal."""
_SILENCE = 900.0
"""Seconds without a word after which a process is said to hang, perhaps: a step of a large network may take minutes."""


@register_engine("local")
class Local(EngineRun):
    """One process, or `workers` of them. On a GPU machine the workers take the GPUs in turn."""

    def __init__(self, engine: Engine, device: str) -> None:
        if engine.address is not None:
            raise ConfigError("engine.address is for engine ray; local runs here")
        self._gpus = torch.cuda.device_count() if device == "cuda" else 0
        self._workers = engine.workers or max(1, int(self._gpus / (engine.gpus or 1)))
        self._threads = engine.threads

    def run(
        self, tasks: Sequence[Task], shop: Workshop, watch: Watch, finished: Finished, evaluation: bool
    ) -> dict[Task, EtbError]:
        """Do the tasks here, or have the workers do them."""
        count = min(self._workers, len(tasks))
        if self._workers == 1:
            return self._alone(tasks, shop, watch, finished, evaluation)
        threads = self._threads or max(1, (os.cpu_count() or 1) // self._workers)
        pool = _Pool(shop.experiment, count, threads, self._gpus)
        try:
            return pool.run(tasks, shop, watch, finished)
        finally:
            pool.end()

    def _alone(
        self, tasks: Sequence[Task], shop: Workshop, watch: Watch, finished: Finished, evaluation: bool
    ) -> dict[Task, EtbError]:
        failures: dict[Task, EtbError] = {}
        if self._threads is not None:
            torch.set_num_threads(self._threads)
        for task in tasks:
            try:
                shop.perform(task, watch, evaluation=evaluation)
            except (Stopped, SoundnessError):
                raise
            except EtbError as error:
                failures[task] = error
            finished()
        return failures


class _Worker:
    """A process, and what it works at."""

    def __init__(self, experiment: Resolved, threads: int, gpu: int | None) -> None:
        spawn = multiprocessing.get_context("spawn")  # a forked torch may hang
        self.connection, theirs = spawn.Pipe()
        self.task: Task | None = None
        self._word: Word | None = None
        self._heard = math.inf
        of_run = str(experiment.folder), experiment.dataset, experiment.model
        self.process = spawn.Process(target=_serve, args=(theirs, *of_run, threads, os.getpid()))
        with _left_to_the_parent(signal.SIGINT), _seeing(gpu):
            self.process.start()
        theirs.close()

    def give(self, task: Task) -> None:
        self.task, self._heard = task, time.monotonic()
        with contextlib.suppress(OSError):  # it died just now, and the next look finds out
            self.connection.send(task.key)

    def word(self) -> Word | None:
        """Return what is to be read of its task. Says once where that has been the same for long."""
        assert self.task is not None
        word = read_word(self.task.cell.folder)
        if word != self._word:
            self._word, self._heard = word, time.monotonic()
        elif time.monotonic() - self._heard > _SILENCE:
            self._heard = math.inf
            number = self.process.pid
            tell(
                f"{self.task.name}: process {number} has said nothing for {_SILENCE / 60:.0f} min. If it hangs, "
                f"kill -9 {number} has another one go on from its last checkpoint"
            )
        return word


@contextlib.contextmanager
def _left_to_the_parent(number: signal.Signals) -> Iterator[None]:
    """Have processes that start now ignore a signal: Ctrl-C reaches all of them, and a second signal would end them
    before their checkpoints are written."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(number, before)


@contextlib.contextmanager
def _seeing(gpu: int | None) -> Iterator[None]:
    """Have processes that start now see one GPU of those that this one sees."""
    before = os.environ.get(_VISIBLE)
    if gpu is not None:
        os.environ[_VISIBLE] = before.split(",")[gpu] if before else str(gpu)
    try:
        yield
    finally:
        if before is not None:
            os.environ[_VISIBLE] = before
        else:
            os.environ.pop(_VISIBLE, None)


class _Pool:
    def __init__(self, experiment: Resolved, count: int, threads: int, gpus: int) -> None:
        self._experiment, self._threads, self._gpus = experiment, threads, gpus
        self._workers = [self._worker(number) for number in range(count)]

    def _worker(self, number: int) -> _Worker:
        return _Worker(self._experiment, self._threads, number % self._gpus if self._gpus else None)

    def run(self, tasks: Sequence[Task], shop: Workshop, watch: Watch, finished: Finished) -> dict[Task, EtbError]:
        left, tries = deque(tasks), dict.fromkeys(tasks, 0)
        failures: dict[Task, EtbError] = {}
        done = 0
        while done < len(tasks):
            for worker in self._workers:
                if worker.task is None and left:
                    task = left.popleft()
                    tries[task] += 1
                    worker.give(task)
            ready = wait([w.connection for w in self._workers], timeout=_LOOK_EVERY)
            for number, worker in enumerate(self._workers):
                if worker.connection in ready:
                    given, answer = worker.task, _received(worker.connection)
                    worker.task = None
                    if answer is _LOST:
                        worker.process.join()
                        self._workers[number] = self._worker(number)
                        if given is None:
                            continue
                        if tries[given] < _TRIES:
                            left.appendleft(given)
                            continue
                        answer = EtbError(
                            f"{given.name}: its process died {_TRIES} times (exit {worker.process.exitcode}); its last "
                            f"checkpoint is kept"
                        )
                    assert given is not None
                    conclude(given, answer, shop, watch, failures)
                    done += 1
                    finished()
            words = {worker.task.cell.id: worker.word() for worker in self._workers if worker.task is not None}
            watch.elsewhere(Overview(done, len(tasks), {k: word for k, word in words.items() if word is not None}))
        return failures

    def end(self) -> None:
        """Have every worker stop between two batches, and wait for its checkpoint."""
        for worker in self._workers:
            if worker.task is not None and worker.process.pid is not None and worker.process.is_alive():
                os.kill(worker.process.pid, signal.SIGTERM)
            # One that waits for a task ends where there is none to come: also one that was done a moment ago, whose
            # answer nobody has read.
            worker.connection.close()
        for worker in self._workers:
            worker.process.join(_PATIENCE)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()


_LOST = object()


def _received(connection: Connection) -> Any:
    try:
        return connection.recv()
    except (EOFError, OSError):
        return _LOST


def _serve(
    connection: Connection, folder: str, dataset: str, models: tuple[str, ...], threads: int, parent: int
) -> None:
    """Do the tasks that come, until none can come any more."""
    end_with(parent)
    set_up(threads)
    with StopSignals((signal.SIGTERM,)) as signals:
        watch = Quiet(signals)
        while True:
            try:
                cell, validate = connection.recv()
            except (EOFError, OSError):
                return
            try:
                shop = shop_of(Path(folder), dataset, models)
                shop.perform(shop.task(cell, validate), watch)
                answer = None
            except EtbError as error:
                answer = error
            except Exception as error:  # a bug in a cell is that cell's failure
                answer = EtbError(f"{type(error).__name__}: {error}")
            try:
                connection.send(answer)
            except OSError:  # nobody waits for it any more
                return
            if isinstance(answer, Stopped):
                return
