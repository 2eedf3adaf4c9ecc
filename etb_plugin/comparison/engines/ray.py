"""The engine `ray`: a Ray cluster, or one that is started here for the occasion.

The run folder and the data have to be seen by every machine under the same path. A cell whose worker is lost is begun
again elsewhere, and goes on from its last checkpoint.
"""

import contextlib
import os
import socket
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from etb_plugin.comparison.cells import Task
from etb_plugin.comparison.engines.registry import EngineRun, Finished, conclude, register_engine
from etb_plugin.comparison.engines.serving import Quiet, set_up, shop_of
from etb_plugin.comparison.journal import Overview, Watch, read_word
from etb_plugin.comparison.work import Workshop
from etb_plugin.errors import ConfigError, EtbError
from etb_plugin.experiment import Engine

_LOOK_EVERY = 0.5
"""Seconds between two looks at the tasks."""
_RETRIES = 5
"""How often a cell is begun again after its worker was lost."""
_ANSWERS_WITHIN = 10.0
"""Seconds that a cluster's address has to answer."""


@register_engine("ray")
class Ray(EngineRun):
    """Every task asks for `threads` cores (1 unless given), and for `gpus` where the experiment's device is one."""

    def __init__(self, engine: Engine, device: str) -> None:
        if find_spec("ray") is None:
            raise ConfigError("the engine 'ray' is not installed: pip install 'etb_plugin[ray]'")
        self._address, self._threads = engine.address, engine.threads or 1
        self._workers = engine.workers or max(1, (os.cpu_count() or 1) // self._threads)
        self._gpus = (engine.gpus or 1) if device.startswith("cuda") else 0
        if self._address not in (None, "auto"):
            _check_answer(str(self._address))

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Connect to the cluster, or start one."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        if self._address is None:  # so that Ray listens at 127.0.0.1 alone, and not on every network; read at import
            os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        import ray

        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if self._address is None:
            options |= {"num_cpus": self._workers * self._threads, "num_gpus": torch.cuda.device_count()}
            options |= {"include_dashboard": False}
        else:
            options |= {"address": self._address}
        try:
            ray.init(**options)
        except (ConnectionError, RuntimeError, ValueError) as error:
            line = str(error).partition(".")[0]
            raise ConfigError(
                f"Ray cannot be reached at {self._address}: {line}; ray start --head starts one"
            ) from error
        try:
            yield
        finally:
            ray.shutdown()  # the tasks of a driver that leaves are ended

    def run(
        self, tasks: Sequence[Task], shop: Workshop, watch: Watch, finished: Finished, evaluation: bool
    ) -> dict[Task, EtbError]:
        """Submit the tasks and wait for them."""
        import ray

        perform = ray.remote(num_cpus=self._threads, num_gpus=self._gpus, max_retries=_RETRIES)(_perform)
        e = shop.experiment
        where = (str(e.folder), e.dataset, e.model, str(Path.cwd()), self._threads)
        waiting = {perform.remote(*where, *task.key): task for task in tasks}
        failures: dict[Task, EtbError] = {}
        while waiting:
            ready, _ = ray.wait(list(waiting), timeout=_LOOK_EVERY)
            for reference in ready:
                task = waiting.pop(reference)
                try:
                    answer = ray.get(reference)
                except ray.exceptions.RayError as error:
                    answer = EtbError(f"{task.name}: {str(error).splitlines()[0]}")
                conclude(task, answer, shop, watch, failures)
                finished()
            words = {task.cell.id: read_word(task.cell.folder) for task in waiting.values()}
            running = {cell: word for cell, word in words.items() if word is not None and word.failed is None}
            watch.elsewhere(Overview(len(tasks) - len(waiting), len(tasks), running))
        return failures


def _check_answer(address: str) -> None:
    """Raise ConfigError where nothing listens at `address`: Ray itself would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not (colon and port.isdecimal()):
        raise ConfigError(f"engine.address {address!r}: write auto, HOST:PORT or ray://HOST:PORT")
    try:
        socket.create_connection((host, int(port)), timeout=_ANSWERS_WITHIN).close()
    except OSError as error:
        raise ConfigError(
            f"no Ray cluster answers at {address} within {_ANSWERS_WITHIN:g} s ({error}); ray start --head starts one"
        ) from None


def _perform(
    folder: str, dataset: str, models: tuple[str, ...], place: str, threads: int, cell: str, validate: bool
) -> EtbError | None:
    """Do one task in a process of the cluster, and return why not, if not."""
    os.chdir(place)  # relative paths of the experiment are the driver's
    set_up(threads)
    try:
        shop = shop_of(Path(folder), dataset, models)
        shop.perform(shop.task(cell, validate), Quiet(None))
    except EtbError as error:
        return error
    return None
