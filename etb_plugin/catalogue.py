"""What has a name, read off the source files that register it: for help, completion, and refusals that come at once.

The registries know more, but filling them imports torch, which takes seconds. Names, one-line summaries and literal
arguments stand in the files as text.
"""

import ast
import functools
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etb_plugin.errors import unknown_name
from etb_plugin.registry import entry_points

_REGISTERED = {
    # what errors call it: the folder, and the call whose first argument is the name
    "method": ("objectives", "Method"),
    "bound": ("bounds", "register_bound"),
    "network": ("networks", "register_network"),
    "dataset": ("data", "register_source"),
    "attack": ("attacks", "register_attack"),
    "study": ("studies", "Study"),
}


@dataclass(frozen=True)
class Entry:
    """One name: the call's other arguments as far as they are literals, by position and by keyword; of a decorated
    function its docstring's first line and its keyword-only parameters, as they are written."""

    name: str
    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]
    summary: str = ""
    options: Mapping[str, str] | None = None


@functools.cache
def catalogue(kind: str) -> Mapping[str, Entry]:
    """Return what this package registers of a `kind`, file by file; nothing where there is no source."""
    folder, call = _REGISTERED[kind]
    files = sorted((Path(__file__).parent / folder).glob("*.py"))
    return {entry.name: entry for file in files for entry in _entries(file, call)}


def check_spelling(kind: str, name: str) -> None:
    """Raise ConfigError, with the nearest names, for a name that nothing registers: what the registry would say, before
    torch is imported. Once the registry is there it knows better, and this says nothing."""
    folder = _REGISTERED[kind][0]
    known = catalogue(kind)
    if f"etb_plugin.{folder}" in sys.modules or not known or name in known:
        return
    if any(re.fullmatch(entry.keywords.get("pattern", ""), name) for entry in known.values()):
        return
    if not others_register(kind):
        raise unknown_name(kind, name, known)


def others_register(kind: str) -> bool:
    """Whether another package registers something of a `kind`, which only the registry knows."""
    return bool(entry_points(f"etb_plugin.{_REGISTERED[kind][0]}"))


def _entries(file: Path, call: str) -> Iterator[Entry]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    constants = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    functions = {
        id(decorator): node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        for decorator in node.decorator_list
    }

    def literal(node: ast.expr) -> Any:
        try:
            return ast.literal_eval(constants.get(node.id, node) if isinstance(node, ast.Name) else node)
        except ValueError:  # an expression: the registry knows
            return None

    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.func.id != call:
            continue
        name, *arguments = (literal(argument) for argument in node.args) if node.args else (None,)
        keywords = {k.arg: value for k in node.keywords if k.arg and (value := literal(k.value)) is not None}
        if not isinstance(name, str):
            continue
        function = functions.get(id(node))
        if function is None:
            yield Entry(name, tuple(arguments), keywords)
            continue
        summary = (ast.get_docstring(function) or "").partition("\n")[0]
        pairs = zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True)
        options = {one.arg: ast.unparse(default) if default else "" for one, default in pairs}
        yield Entry(name, tuple(arguments), keywords, summary, options)
