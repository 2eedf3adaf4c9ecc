"""What SIGINT and SIGTERM do to long work: it stops where it can be resumed from. A second signal ends at once."""

import signal
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import Any, Self

from etb_plugin.errors import Stopped


class StopSignals:
    """While the context holds, one of the signals is kept until `check` is asked."""

    def __init__(self, numbers: Sequence[signal.Signals] = (signal.SIGINT, signal.SIGTERM)) -> None:
        self._numbers = numbers
        self._received: int | None = None

    def __enter__(self) -> Self:
        self._before: list[Any] = [signal.signal(number, self._receive) for number in self._numbers]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in zip(self._numbers, self._before, strict=True):
            signal.signal(number, handler)

    def check(self) -> None:
        """Raise Stopped where a signal came."""
        if self._received is not None:
            raise Stopped(self._received)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._received = number
        for signal_number in self._numbers:
            signal.signal(signal_number, signal.SIG_DFL)
