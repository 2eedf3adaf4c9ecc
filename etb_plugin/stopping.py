"""What stops long work: signals, after which it is resumed, and deadlines, which loops ask for between their steps."""

import contextlib
import math
import signal
import time
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from types import FrameType, TracebackType
from typing import Any, Self

from etb_plugin.errors import OutOfTime, Stopped

# Of the context, not of the process: what a deadline is for stands far above the loops that ask, and between them are
# bounds that know nothing of time.
_deadline: ContextVar[float] = ContextVar("deadline", default=math.inf)


@contextlib.contextmanager
def until(moment: float) -> Iterator[None]:
    """Within the context `check_time` raises OutOfTime once time.monotonic() is past `moment`, or an outer one."""
    token = _deadline.set(min(moment, _deadline.get()))
    try:
        yield
    finally:
        _deadline.reset(token)


def check_time() -> None:
    """Raise OutOfTime where a deadline is over. Long loops ask between blocks of rows, or steps."""
    if time.monotonic() > _deadline.get():
        raise OutOfTime("out of time")


class StopSignals:
    """While the context holds, SIGINT or SIGTERM is kept until `check` is asked. A second one ends at once."""

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
