"""The live view of long work that a signal can stop."""

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

from rich.console import Console

from etb_plugin.comparison import Overview
from etb_plugin.report.live import Live
from etb_plugin.stopping import StopSignals
from etb_plugin.training import Progress
from etb_plugin.training.allocation import keep_freed_memory
from etb_plugin.verification import Verdict


class StoppableLive(Live):
    """The live view, which raises Stopped after the batch during which a signal came."""

    def __init__(self, console: Console, also: Callable[[], None] = lambda: None) -> None:
        super().__init__(console, also)
        self._signals = StopSignals()

    def __enter__(self) -> Self:
        keep_freed_memory()
        self._signals.__enter__()
        return super().__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self._signals.__exit__(kind, error, trace)

    def training(self, name: str, progress: Progress) -> None:
        """Show, or stop."""
        super().training(name, progress)
        self._signals.check()

    def evaluating(self, name: str, eps: float, done: int, total: int) -> None:
        """Show, or stop."""
        super().evaluating(name, eps, done, total)
        self._signals.check()

    def verifying(self, name: str, eps: float, total: int, counts: Mapping[Verdict, int]) -> None:
        """Show, or stop."""
        super().verifying(name, eps, total, counts)
        self._signals.check()

    def bisecting(self, name: str, done: int, total: int) -> None:
        """Show, or stop."""
        super().bisecting(name, done, total)
        self._signals.check()

    def elsewhere(self, overview: Overview) -> None:
        """Show, or stop."""
        super().elsewhere(overview)
        self._signals.check()
