"""What runs, for whoever asks from another process: each cell's latest word, in its folder."""

import contextlib
import fcntl
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from etb_plugin.errors import ConfigError
from etb_plugin.experiment import eps_text
from etb_plugin.files import forget_unfinished, write_passing
from etb_plugin.results import Result
from etb_plugin.training import Progress, Training
from etb_plugin.verification import Verdict

_EVERY = 0.5
"""Seconds between two words of a cell."""


@dataclass(frozen=True)
class Word:
    """What a cell does: its name in the experiment, how far (`done` of `total` steps or images), and a line of figures.

    `seconds_left` is an estimate, where there is one. `failed` is why it ended, if it did.
    """

    name: str
    done: int
    total: int
    status: str
    seconds_left: float | None = None
    failed: str | None = None


@dataclass(frozen=True)
class Overview:
    """Where a run stands: how many cells there are and are done, and the words of those that run."""

    done: int
    total: int
    running: Mapping[str, Word]


class Listener(Protocol):
    """Who is told how one network gets on. `name` is the entry's, or a file's."""

    def training(self, name: str, progress: Progress) -> None:
        """Called a few times a second."""

    def evaluating(self, name: str, eps: float, done: int, total: int) -> None:
        """Called after each batch of test images."""

    def verifying(self, name: str, eps: float, total: int, counts: Mapping[Verdict, int]) -> None:
        """Called whenever images are decided, with how many have which verdict."""


class Watch(Listener, Protocol):
    """Who is told how a comparison goes."""

    def finished(self, name: str, training: Training | None, results: Sequence[Result]) -> None:
        """Called once per cell. `training` is None where nothing was trained now."""

    def elsewhere(self, overview: Overview) -> None:
        """Called a few times a second while other processes work."""


class Journal(Listener):
    """A listener that writes what it is told into a cell's folder, and passes it on."""

    def __init__(self, folder: Path, watch: Listener) -> None:
        self._folder, self._watch, self._said = folder, watch, -_EVERY

    def training(self, name: str, progress: Progress) -> None:
        """Write epoch, loss, accuracy and the time left."""
        status = f"epoch {progress.epoch}, loss {progress.loss:.3f}, accuracy {progress.accuracy:.1%}"
        self._say(Word(name, progress.step, progress.steps, status, progress.seconds_left))
        self._watch.training(name, progress)

    def evaluating(self, name: str, eps: float, done: int, total: int) -> None:
        """Write how many images are done."""
        self._say(Word(name, done, total, f"evaluating at eps {eps_text(eps)}"))
        self._watch.evaluating(name, eps, done, total)

    def verifying(self, name: str, eps: float, total: int, counts: Mapping[Verdict, int]) -> None:
        """Write how many images have which verdict."""
        words = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
        self._say(Word(name, sum(counts.values()), total, f"verifying at eps {eps_text(eps)}: {words}"))
        self._watch.verifying(name, eps, total, counts)

    def _say(self, word: Word) -> None:
        now = time.monotonic()
        if now - self._said >= _EVERY:
            self._said = now
            write_word(self._folder, word)


def write_word(folder: Path, word: Word) -> None:
    """Write a cell's word."""
    write_passing(folder / "progress.json", json.dumps(asdict(word)))


def read_word(folder: Path) -> Word | None:
    """Return a cell's last word, if it has one."""
    try:
        fields: dict[str, Any] = json.loads((folder / "progress.json").read_text())
        return Word(**fields)
    except (OSError, ValueError, TypeError):
        return None


@contextlib.contextmanager
def held(folder: Path, name: str) -> Iterator[None]:
    """Hold a cell's folder for this process. Raises ConfigError where another one has it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        for patience in (True, True, True, False):  # `is_held` takes the lock for a moment
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if not patience:
                    raise ConfigError(f"{name} is being run by another process") from None
                time.sleep(0.1)
        forget_unfinished(folder)
        yield


def is_held(folder: Path) -> bool:
    """Return whether some process works on a cell."""
    try:
        with (folder / ".lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False
