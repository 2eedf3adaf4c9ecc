"""One registry for everything that has a name: bounds, methods, networks, data sets, studies, engines.

A folder's files register what is in them when they are imported, and another package's through the entry-point group
that is called as the folder is (`load_all`). Names with options are read here as flags and files write them.
"""

import functools
from collections.abc import Iterator, Mapping
from importlib import import_module, metadata
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, TypeVar

import yaml

from etb_plugin.errors import ConfigError, tell, unknown_name

Entry = TypeVar("Entry")


class Registry(Mapping[str, Entry]):
    """Entries of one `kind` (as errors call it) by name, in the order of their registration."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._entries: dict[str, Entry] = {}
        self._modules: dict[str, str] = {}

    def add(self, name: str, entry: Entry, module: str = "") -> None:
        """Make `entry`, of a `module`, known by its name. Raises ConfigError where the name is taken."""
        if name in self._entries:
            places = f": in {self._modules[name]} and in {module}" if module else ""
            raise ConfigError(f"{self._kind} {name!r} is registered twice{places}")
        self._entries[name], self._modules[name] = entry, module

    def find(self, name: str) -> Entry:
        """Return the entry called `name`. Raises ConfigError with the nearest names where there is none."""
        if name not in self._entries:
            raise unknown_name(self._kind, name, self._entries)
        return self._entries[name]

    def __getitem__(self, name: str) -> Entry:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __copy__(self) -> "Registry[Entry]":
        other: Registry[Entry] = Registry(self._kind)
        other._entries, other._modules = dict(self._entries), dict(self._modules)
        return other


def load_files(package: str) -> None:
    """Import every file of `package`, so that each registers what is in it."""
    for module in iter_modules(import_module(package).__path__):
        import_module(f"{package}.{module.name}")


def load_all(package: str, kind: str) -> None:
    """Import every file of `package`, and what others add to it."""
    load_files(package)
    load_others(package, kind)


def load_others(package: str, kind: str) -> None:
    """Import the modules that other packages name in the entry-point group called `package`. One that fails is named,
    and the rest goes on."""
    for module in _announced.get(package, ()):
        import_module(module)
    for entry in entry_points(package):
        try:
            entry.load()
        except Exception as error:
            tell(f"left out: the {kind} {entry.name!r} of package {entry.value!r} cannot be loaded: {error}")


@functools.cache
def entry_points(group: str) -> metadata.EntryPoints:
    """Return what installed packages name in a group. A file of each of them is read."""
    return metadata.entry_points(group=group)


_announced: dict[str, list[str]] = {}


def announce(group: str, module: str) -> None:
    """Have a module of this package imported with the entry points of `group`, as if one of them named it."""
    _announced.setdefault(group, []).append(module)


def own_code(name: str) -> tuple[Path, str] | None:
    """Return file and name where `name` stands for a user's own code, as path/file.py:NAME does; None for others."""
    path, colon, attribute = name.rpartition(":")
    return (Path(path), attribute) if colon and path.endswith(".py") and attribute.isidentifier() else None


def named_options(text: str) -> tuple[str, dict[str, Any]]:
    """Read `name:key=value:key=value`, values as in YAML. Raises ConfigError where a key has no value."""
    name, *options = text.split(":")
    values: dict[str, Any] = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals:
            raise ConfigError(f"{text!r}: write an option as {name}:key=value")
        try:
            values[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ConfigError(f"{text!r}: {value!r} is no value; write a number, a word, or a YAML file") from None
    return name, values
