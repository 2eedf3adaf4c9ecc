"""Fixed shapes: steps that are captured may not depend on how many of something there are.

How many units are unstable, or how many images still stand, would have to be read from the device. Within
`fixed_shapes` work is done for all of them; what comes out is the same.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

_fixed: ContextVar[bool] = ContextVar("fixed", default=False)


@contextlib.contextmanager
def fixed_shapes() -> Iterator[None]:
    """Within the context `are_fixed` says so."""
    token = _fixed.set(True)
    try:
        yield
    finally:
        _fixed.reset(token)


def are_fixed() -> bool:
    """Whether shapes may not depend on values."""
    return _fixed.get()
