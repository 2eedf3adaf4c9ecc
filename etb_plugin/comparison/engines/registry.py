"""What an engine is, and the engines by name."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from etb_plugin.comparison.cells import Task
from etb_plugin.comparison.journal import Watch
from etb_plugin.comparison.work import Workshop
from etb_plugin.errors import EtbError, SoundnessError, Stopped
from etb_plugin.experiment import Engine
from etb_plugin.registry import Registry

Finished = Callable[[], None]
"""Called whenever tasks are done, by the process that writes the results."""


class EngineRun(Protocol):
    """An engine made ready for one comparison. `trains` says whether it does the work, or only says what there is."""

    trains: bool = True

    def opened(self) -> AbstractContextManager[None]:
        """Hold what the engine needs from elsewhere, before anything is written. Raises ConfigError without it."""
        return contextlib.nullcontext()

    def run(
        self, tasks: Sequence[Task], shop: Workshop, watch: Watch, finished: Finished, evaluation: bool
    ) -> dict[Task, EtbError]:
        """Do the tasks, whose folder is claimed, and return those that failed. Raises Stopped where `watch` does."""


def conclude(task: Task, answer: EtbError | None, shop: Workshop, watch: Watch, failures: dict[Task, EtbError]) -> None:
    """Take what another process answers for a task: nothing where it is done. Raises what has to stop everything."""
    if isinstance(answer, (SoundnessError, Stopped)):
        raise answer
    if answer is not None:
        failures[task] = answer
    else:
        watch.finished(task.name, shop.training(task), [] if task.validate else shop.results(task))


_registry: Registry[Callable[[Engine, str], EngineRun]] = Registry("engine")


def register_engine(name: str) -> Callable[[Callable[[Engine, str], EngineRun]], Callable[[Engine, str], EngineRun]]:
    """Register the decorated class, called with the experiment's `engine` and the resolved device, as engine `name`.

    It raises ConfigError for what it cannot do.
    """

    def register(make: Callable[[Engine, str], EngineRun]) -> Callable[[Engine, str], EngineRun]:
        _registry.add(name, make)
        return make

    return register


def engines() -> Mapping[str, Callable[[Engine, str], EngineRun]]:
    """Return every registered engine by name."""
    return _registry


def engine_of(engine: Engine, device: str) -> EngineRun:
    """Return the engine that is asked for. Raises ConfigError where there is none, or it is not installed."""
    return _registry.find(engine.name)(engine, device)
