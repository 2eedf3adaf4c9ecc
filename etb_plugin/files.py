"""What is on disk: files that are written whole or not at all, and folders that belong to one experiment."""

import contextlib
import fcntl
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from etb_plugin.errors import CheckpointError, ConfigError, unknown_name

_ZOO_PREFIX, _ZOO = "zoo:", Path(__file__).parents[1] / "compare" / "models"
"""Networks that a clone brings along, one file of weights and one card each."""
LAYOUT = 2
"""Of a run folder; one of another layout is refused."""
UNFINISHED = ".part"
"""How the name of a file ends that is being written."""
_APART = ("data_dir", "out", "training.tensorboard", "training.capture", "engine", "report")
"""Keys of an experiment that have no say in its results: where files lie, what runs it, how it is shown."""


def in_zoo(path: Path) -> Path:
    """Return the file of weights that zoo:NAME stands for, and any other path as it is. Raises ConfigError for a name
    that is not there."""
    if not path.name.startswith(_ZOO_PREFIX):
        return path
    known = {file.stem: file for file in _ZOO.glob("*.safetensors")}
    name = path.name.removeprefix(_ZOO_PREFIX)
    if name not in known:
        raise unknown_name("network of the zoo", name, known)
    return known[name]


def write_file(path: Path, content: bytes | str) -> None:
    """Write `content` to `path` whole or not at all: a temporary file beside it, fsync, rename.

    Whoever reads `path`, at any moment and after any crash, finds the old content or the new one.
    """
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(UNFINISHED, f".{path.name}.", path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o666 & ~_umask())
        Path(temporary).replace(path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = error.filename or str(path)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself
    finally:
        os.close(folder)


def write_passing(path: Path, content: str) -> None:
    """Write what is worth nothing after a crash: by a rename, so that it is never read in part, but without fsync."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{os.getpid()}{UNFINISHED}"
    temporary.write_text(content)
    temporary.replace(path)


class Paced:
    """Writes something again and again: when `due` is asked, if the last time is long enough ago."""

    every = 2.0
    """Seconds between two times."""
    share = 20.0
    """How many times as long as writing took the next one waits at least: a thousand cells take a while to read."""

    def __init__(self, write: Callable[[], None]) -> None:
        self._write, self._ended, self._took = write, -math.inf, 0.0

    @property
    def begun(self) -> bool:
        """Whether it was written at all."""
        return self._ended > -math.inf

    def due(self) -> None:
        """Write, or not yet."""
        if time.monotonic() - self._ended >= max(self.every, self.share * self._took):
            self.now()

    def now(self) -> None:
        """Write."""
        begun = time.monotonic()
        self._write()
        self._ended = time.monotonic()
        self._took = self._ended - begun


def forget_unfinished(folder: Path) -> None:
    """Delete what processes that were killed were writing in `folder`, which this process holds, and below it; folders
    with a lock of their own are left to whom holds that."""
    for path in folder.iterdir():
        if path.is_dir() and not (path / ".lock").exists():
            forget_unfinished(path)
        elif _unfinished(path):
            path.unlink(missing_ok=True)


def _unfinished(path: Path) -> bool:
    return path.name.startswith(".") and path.suffix == UNFINISHED


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, whole or not at all. Raises ValueError for NaN, which JSON does not have."""
    write_file(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def once(path: Path, find: Callable[[], Any]) -> Any:
    """Return the JSON at `path`; where there is none, what `find` finds, which is written there."""
    if not path.exists():
        write_json(path, find())
    return read_json(path)


def read_json(path: Path) -> Any:
    """Return the value in `path`. Raises CheckpointError where it is no JSON."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


@contextlib.contextmanager
def claimed(folder: Path, experiment: Mapping[str, Any], may_grow: Mapping[str, Any] = {}) -> Iterator[None]:
    """Hold `folder` for one experiment (plain values, written as experiment.yaml) and one process.

    Lists under the keys of `may_grow` may hold more than they did, in any order; there a key may come that was not
    there, or had the value that `may_grow` has for it.
    Raises ConfigError, with nothing harmed, where the folder holds another experiment, one of another version of etb,
    or something else, or is in use.
    """
    ours, text = folder / "experiment.yaml", yaml.safe_dump({"layout": LAYOUT, **experiment}, sort_keys=False)
    if ours.exists():
        unlike = _differences(experiment, read_experiment_of(folder), may_grow)
        if unlike:
            raise ConfigError(f"{folder} holds another experiment ({'; '.join(unlike)}): choose another --out")
    elif folder.exists() and not (
        folder.is_dir() and all(p.name == ".lock" or _unfinished(p) for p in folder.iterdir())
    ):
        raise ConfigError(f"{folder} is not empty and holds no experiment.yaml: choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(f"{folder} is in use by another process") from None
        forget_unfinished(folder)
        write_file(ours, text)
        yield


def read_experiment_of(folder: Path) -> dict[str, Any]:
    """Return the experiment that a run folder holds. Raises ConfigError where it cannot be read or is not laid out as
    this version does it."""
    path = folder / "experiment.yaml"
    try:
        found = dict(yaml.safe_load(path.read_text()))
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read ({error}): choose another --out") from error
    if (layout := found.pop("layout", None)) != LAYOUT:
        raise ConfigError(
            f"{folder} was written by another version of etb (layout {layout or 1}; this one has {LAYOUT}): choose "
            f"another --out, or use that version"
        )
    return found


def _differences(ours: Mapping[str, Any], theirs: Mapping[str, Any], may_grow: Mapping[str, Any]) -> list[str]:
    """Return where two experiments differ, as "key 1 here, 2 there"."""
    flat_ours, flat_theirs = _flat(ours), _flat(theirs)
    found = []
    for key in dict.fromkeys((*flat_ours, *flat_theirs)):
        mine, other = flat_ours.get(key), flat_theirs.get(key)
        if mine == other or _above(key, _APART) is not None:
            continue
        grows = _above(key, may_grow)
        if grows is not None and (other in (None, may_grow[grows]) or _holds(mine, other)):
            continue
        found.append(f"{key} {mine} here, {other} there")
    return found


def _above(key: str, tops: Iterable[str]) -> str | None:
    """Return which of `tops` is the key, or a section that it stands in."""
    return next((top for top in tops if key == top or key.startswith(f"{top}.")), None)


def _flat(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{above}{key}.") if isinstance(value, Mapping) else {above + key: value}
    return found


def _holds(mine: Any, other: Any) -> bool:
    """Return whether `mine` is a list with all that the list `other` has."""
    return isinstance(mine, list) and isinstance(other, list) and all(one in mine for one in other)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
