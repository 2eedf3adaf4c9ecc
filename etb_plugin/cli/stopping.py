"""What SIGINT and SIGTERM do to long work: it stops between two batches, and leaves a checkpoint."""

import signal
from collections.abc import Mapping, Sequence
from types import FrameType, TracebackType
from typing import Any, Self

from etb_plugin.errors import Stopped
from etb_plugin.report.live import Live
from etb_plugin.training import Progress
from etb_plugin.verification import Verdict

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StoppableLive(Live):
    """The live view, which raises Stopped after the batch during which a signal came. A second signal ends at once."""

    _received: int | None = None

    def __enter__(self) -> Self:
        self._before: Sequence[Any] = [signal.signal(number, self._receive) for number in _SIGNALS]
        return super().__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        for number, handler in zip(_SIGNALS, self._before, strict=True):
            signal.signal(number, handler)

    def training(self, name: str, progress: Progress) -> None:
        """Show, or stop."""
        super().training(name, progress)
        self._stop_if_asked()

    def evaluating(self, name: str, eps: float, done: int, total: int) -> None:
        """Show, or stop."""
        super().evaluating(name, eps, done, total)
        self._stop_if_asked()

    def verifying(self, name: str, eps: float, total: int, counts: Mapping[Verdict, int]) -> None:
        """Show, or stop."""
        super().verifying(name, eps, total, counts)
        self._stop_if_asked()

    def bisecting(self, name: str, done: int, total: int) -> None:
        """Show, or stop."""
        super().bisecting(name, done, total)
        self._stop_if_asked()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._received = number
        for signal_number in _SIGNALS:
            signal.signal(signal_number, signal.SIG_DFL)

    def _stop_if_asked(self) -> None:
        if self._received is not None:
            raise Stopped(self._received)
