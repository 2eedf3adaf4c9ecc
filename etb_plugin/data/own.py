"""Data sets of the user's own, `path/file.py:NAME`: a function in a file that is run because it was named."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from etb_plugin.data.sets import ARRAYS, Arrays, Source, checked, register_source, sources
from etb_plugin.errors import DataError
from etb_plugin.own import found_in_own, what_failed
from etb_plugin.registry import own_code


def register_own_data(name: str) -> None:
    """Run the file that `path/file.py:NAME` names, if it does, and make the data set known by that whole name.

    NAME is called with nothing. It returns training images, their labels, test images and their labels, arrays or
    tensors: images uint8 [n, height, width] or [n, height, width, channels], labels integers from 0, [n]. Raises
    ConfigError as `own.found_in_own` does; what the function returns is looked at when it is loaded.
    """
    if own_code(name) is not None and name not in sources():
        register_source(name, Source(0.1, classes=None, read=_reader(name, found_in_own(name, "--dataset"))))


def _reader(name: str, make: Callable[[], Any]) -> Callable[[Path, int | None], Arrays]:
    def read(folder: Path, limit: int | None) -> Arrays:
        try:
            found = tuple(np.asarray(part) for part in make())
        except Exception as error:
            raise DataError(f"{name} fails: {what_failed(error)}") from error
        if len(found) != len(ARRAYS):
            raise DataError(f"{name} has to return {', '.join(ARRAYS)}; got {len(found)} of them")
        return checked(dict(zip(ARRAYS, found, strict=True)), Path(name))

    return read
