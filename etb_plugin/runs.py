"""What is on disk: files that are written whole or not at all, and folders that belong to one experiment."""

import contextlib
import fcntl
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from etb_plugin.errors import CheckpointError, ConfigError

_PLACES = ("data_dir", "out", "tensorboard")
"""Keys of an experiment that say which files lie where, and nothing about its results."""


def write_file(path: Path, content: bytes | str) -> None:
    """Write `content` to `path` whole or not at all: a temporary file beside it, fsync, rename.

    Whoever reads `path`, at any moment and after any crash, finds the old content or the new one.
    """
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o666 & ~_umask())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself
    finally:
        os.close(folder)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, whole or not at all. Raises ValueError for NaN, which JSON does not have."""
    write_file(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Return the value in `path`. Raises CheckpointError where it is no JSON."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


@contextlib.contextmanager
def claimed(folder: Path, experiment: Mapping[str, Any]) -> Iterator[None]:
    """Hold `folder` for one experiment (plain values, written as experiment.yaml) and one process.

    Raises ConfigError, with nothing harmed, where the folder holds another experiment or something else, or is in use.
    """
    ours, text = folder / "experiment.yaml", yaml.safe_dump(dict(experiment), sort_keys=False)
    if ours.exists():
        unlike = _differences(experiment, _read_yaml(ours))
        if unlike:
            raise ConfigError(f"{folder} holds another experiment ({'; '.join(unlike)}): choose another --out")
    elif folder.exists() and not (folder.is_dir() and {p.name for p in folder.iterdir()} <= {".lock"}):
        raise ConfigError(f"{folder} is not empty and holds no experiment.yaml: choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(f"{folder} is in use by another process") from None
        write_file(ours, text)
        yield


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        return dict(yaml.safe_load(path.read_text()))
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read ({error}): choose another --out") from error


def _differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Return where two experiments differ, as "key 1 here, 2 there". Where files lie makes no difference."""
    keys = dict.fromkeys((*ours, *theirs))
    return [
        f"{k} {ours.get(k)} here, {theirs.get(k)} there"
        for k in keys
        if k not in _PLACES and ours.get(k) != theirs.get(k)
    ]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
