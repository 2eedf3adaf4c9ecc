"""What a process does that works for a comparison in another one."""

import os
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import torch

from etb_plugin.comparison.journal import Overview
from etb_plugin.comparison.work import Workshop
from etb_plugin.data import register_own_data
from etb_plugin.networks import register_own
from etb_plugin.results import Result
from etb_plugin.stopping import StopSignals
from etb_plugin.training import Progress, Training
from etb_plugin.training.allocation import keep_freed_memory
from etb_plugin.verification import Verdict


class Quiet:
    """A Watch that shows nothing, and stops where a signal came; what it is told is in the cells' journals."""

    def __init__(self, signals: StopSignals | None) -> None:
        self._signals = signals

    def training(self, name: str, progress: Progress) -> None:
        """Stop, if asked."""
        self._check()

    def evaluating(self, name: str, eps: float, done: int, total: int) -> None:
        """Stop, if asked."""
        self._check()

    def verifying(self, name: str, eps: float, total: int, counts: Mapping[Verdict, int]) -> None:
        """Stop, if asked."""
        self._check()

    def finished(self, name: str, training: Training | None, results: Sequence[Result]) -> None:
        """Nothing more is to be said."""

    def elsewhere(self, overview: Overview) -> None:
        """No one works for this process."""

    def _check(self) -> None:
        if self._signals is not None:
            self._signals.check()


def set_up(threads: int) -> None:
    """Give this process its share of the machine."""
    keep_freed_memory()
    torch.set_num_threads(threads)


def end_with(parent: int) -> None:
    """End this process soon after its parent is gone, however that ended: nobody would read its work."""

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=look, daemon=True).start()


@cache
def shop_of(folder: Path, dataset: str, models: tuple[str, ...]) -> Workshop:
    """Return the workshop of a run folder, once for a process. What of its data set and `models`, which the comparison
    has built, is a user's own code is run here too."""
    register_own_data(dataset)
    for model in models:
        register_own(model)
    return Workshop.of(folder)
