"""Errors that a user can act on. Each message says what is wrong, where, and what would be right."""

import difflib
import re
import sys
from collections.abc import Iterable


class EtbError(Exception):
    """Parent of every error that this package raises on purpose."""


class ConfigError(EtbError):
    """A flag, a key of an experiment file or an argument has a value that it cannot have."""


class DataError(EtbError):
    """A data set is missing, truncated or of the wrong shape."""


class UnsupportedLayer(EtbError):
    """A bound cannot take a network; the message names the layer."""


class CheckpointError(EtbError):
    """Weights cannot be read or do not fit the network."""


class TrainingError(EtbError):
    """Training cannot go on; the message names epoch and batch."""


class Stopped(EtbError):
    """A signal asked the work to stop, and it did between two batches. `status` is the exit status for it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)  # a worker sends it, and what is sent is made again from its arguments
        self.status = 128 + number

    def __str__(self) -> str:
        return "stopped between two batches; the same command goes on from there"


class OutOfTime(EtbError):
    """The time that `stopping.until` gave is over."""


class OutOfMemory(EtbError):
    """The memory that there is does not hold even the smallest blocks of the work."""


class SoundnessError(EtbError):
    """A sound bound and an attack contradict each other: a bug in the code."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> ConfigError:
    """Return the error for a `name` that is not among the `known` ones: what it abbreviates (lr) comes first, then what
    it looks like."""
    names = sorted(known)
    short = [long for long in names if "".join(word[:1] for word in re.split("[-_]", long)) == name.lower()]
    near = list(dict.fromkeys([*short, *difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.5)]))
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names)}."
    return ConfigError(f"unknown {kind} {name!r}; {hint}")


def tell(line: str) -> None:
    """Say on stderr what a user should know and what stops nothing."""
    print(line, file=sys.stderr)
