"""A user's own code, `path/file.py:NAME`: a file that is run because the command names it."""

import functools
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from etb_plugin.errors import ConfigError
from etb_plugin.registry import own_code


def found_in_own(name: str, flag: str) -> Any:
    """Run the file that `path/file.py:NAME` names, once for a process, and return the class or function NAME of it.

    `flag` is what named it. Raises ConfigError where the file is not there, stops with an error or holds nothing of
    that name.
    """
    found = own_code(name)
    assert found is not None
    path, attribute = found
    if not path.is_file():
        raise ConfigError(f"there is no file {path}, which {flag} {name} names")
    made = getattr(_run(path), attribute, None)
    if not callable(made):
        raise ConfigError(f"{path} has no class or function {attribute!r}")
    return made


def what_failed(error: Exception) -> str:
    """Return an error of a user's code in a line."""
    return f"{type(error).__name__}: {error}".partition("\n")[0]


@functools.cache
def _run(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"etb_plugin_own_{_run.cache_info().misses}_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.resolve().parent))  # for what lies beside it, as when Python runs a file
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(f"{path} cannot be run: {what_failed(error)}") from error
    finally:
        sys.path.pop(0)
    return module
