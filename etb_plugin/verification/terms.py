"""The brackets and words of a VNN-LIB file, each with its place in it, before anything is known of their meaning."""

import gzip
import re
import zlib
from pathlib import Path
from typing import NamedTuple

from etb_plugin.errors import ConfigError

_TOKEN = re.compile(r'\s+|;[^\n]*|([()]|"[^"\n]*"|[A-Za-z]\w*\s*\[[^]()]*\]|[^\s();]+)')
"""White space, a comment, a bracket, a quoted name, a tensor's element such as X [0, 1], or a word."""
_DEEPEST = 100
"""Brackets within brackets that a file may have."""


class Atom(NamedTuple):
    """A word of the file, and where it stands. An element's indices follow its name without white space: X[0,1]."""

    word: str
    line: int
    column: int


class Branch(NamedTuple):
    """A list of the file, and where it opens."""

    items: "tuple[Atom | Branch, ...]"
    line: int
    column: int


Term = Atom | Branch


def read_terms(path: Path) -> list[Term]:
    """Return the terms of a file, packed by gzip where its name ends in .gz.

    Raises ConfigError where it cannot be read, or brackets do not match.
    """
    try:
        content = path.read_bytes()
        text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    stack: list[tuple[list[Term], int, int]] = [([], 1, 1)]
    line, start = 1, 0
    for match in _TOKEN.finditer(text):
        token, column = match[1], match.start() - start + 1
        if token == "(":
            stack.append(([], line, column))
            if len(stack) > _DEEPEST:
                raise ConfigError(f"{path}, line {line}, column {column}: brackets stand more than {_DEEPEST} deep")
        elif token == ")":
            if len(stack) == 1:
                raise ConfigError(f"{path}, line {line}, column {column}: ')' closes nothing")
            items, *place = stack.pop()
            stack[-1][0].append(Branch(tuple(items), *place))
        elif token:
            word = "".join(token.split()) if token.endswith("]") else token
            stack[-1][0].append(Atom(word, line, column))
        breaks = match[0].count("\n")
        if breaks:
            line, start = line + breaks, match.start() + match[0].rindex("\n") + 1
    if len(stack) > 1:
        raise ConfigError(f"{path}, line {stack[-1][1]}, column {stack[-1][2]}: '(' is never closed")
    return stack[0][0]
