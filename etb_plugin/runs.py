"""What is on disk: files that are written whole or not at all, and folders that belong to one experiment."""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from etb_plugin.errors import CheckpointError


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


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Return, as "key: ours here, theirs there", where two mappings differ."""
    keys = [*ours, *(key for key in theirs if key not in ours)]
    return [f"{k}: {ours.get(k)} here, {theirs.get(k)} there" for k in keys if ours.get(k) != theirs.get(k)]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
