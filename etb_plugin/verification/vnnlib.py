"""VNN-LIB, the verification competition's files: properties in and out, verdict words and counterexamples.

A property says which outputs are unsafe, and on which inputs: assertions over X_i (the input, flat) and Y_i (the
outputs), put together by `and` and `or`. Every assertion has to bound one X_i, or be a linear inequality of Y_i.
"""

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from etb_plugin.bounds import Box
from etb_plugin.errors import ConfigError
from etb_plugin.verification.problem import Problem, Unsafe

_TOKEN = re.compile(r"\s+|;[^\n]*|([()]|[^\s();]+)")
_DEEPEST = 100
"""Brackets within brackets that a property may have."""
_MOST_CLAUSES = 100_000
"""Alternatives that a property may have once its assertions are multiplied out."""


@dataclass(frozen=True)
class _Atom:
    """A word of the file, and where it stands."""

    word: str
    line: int
    column: int


@dataclass(frozen=True)
class _List:
    """A list of the file, and where it opens."""

    items: "tuple[_Atom | _List, ...]"
    line: int
    column: int


_Term = _Atom | _List


@dataclass(frozen=True)
class _AtMost:
    """sum of coefficients[variable] variable <= most."""

    coefficients: tuple[tuple[str, float], ...]
    most: float
    place: _Term


_Clause = tuple[_AtMost, ...]


def read_vnnlib(path: Path, input_shape: tuple[int, ...], outputs: int) -> list[Problem]:
    """Return a problem for each box of a property: it is unsatisfiable when no box reaches its unsafe outputs.

    In float64. Raises ConfigError with line and column where the file is malformed, leaves an input without bounds, or
    is about other inputs and outputs than the network has.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    return _Property(path, torch.Size(input_shape), outputs).problems(_parsed(path, text))


def vnnlib_text(box: Box, label: int, classes: int, comment: str) -> str:
    """Return the text of the property that some point of `box` (a batch of 1) is not classified as `label`."""
    lower, upper = box.lower.flatten().tolist(), box.upper.flatten().tolist()
    lines = [f"; {comment}", ""]
    lines += [f"(declare-const X_{i} Real)" for i in range(len(lower))]
    lines += [f"(declare-const Y_{j} Real)" for j in range(classes)]
    for i, ends in enumerate(zip(lower, upper, strict=True)):
        lines += [f"(assert (>= X_{i} {_decimal(ends[0])}))", f"(assert (<= X_{i} {_decimal(ends[1])}))"]
    wrong = "\n".join(f"  (and (>= Y_{j} Y_{label}))" for j in range(classes) if j != label)
    return "\n".join([*lines, f"(assert (or\n{wrong}))", ""])


def counterexample_text(point: Tensor, outputs: Tensor) -> str:
    """Return a counterexample as the competition writes it: ((X_0 0.5) ... (Y_0 1.2))."""
    values = [*(("X", i, v) for i, v in enumerate(point.flatten().tolist()))]
    values += [("Y", j, v) for j, v in enumerate(outputs.flatten().tolist())]
    return "(" + "\n ".join(f"({kind}_{i} {_decimal(v)})" for kind, i, v in values) + ")"


def _decimal(value: float) -> str:
    """Return a number that reads back to the same bits, without an exponent, which VNN-LIB does not have."""
    return str(np.format_float_positional(value, trim="0"))


def _parsed(path: Path, text: str) -> list[_Term]:
    """Return the file's terms. Raises ConfigError where brackets do not match."""
    stack: list[tuple[list[_Term], int, int]] = [([], 1, 1)]
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
            stack[-1][0].append(_List(tuple(items), *place))
        elif token:
            stack[-1][0].append(_Atom(token, line, column))
        breaks = match[0].count("\n")
        if breaks:
            line, start = line + breaks, match.start() + match[0].rindex("\n") + 1
    if len(stack) > 1:
        raise ConfigError(f"{path}, line {stack[-1][1]}, column {stack[-1][2]}: '(' is never closed")
    return stack[0][0]


class _Property:
    """What the assertions of one file mean."""

    def __init__(self, path: Path, shape: torch.Size, outputs: int) -> None:
        self.path, self.shape = path, shape
        self.sizes = {"X": shape.numel(), "Y": outputs}
        self.declared: set[str] = set()

    def wrong(self, term: _Term, what: str) -> ConfigError:
        return ConfigError(f"{self.path}, line {term.line}, column {term.column}: {what}")

    def problems(self, terms: Sequence[_Term]) -> list[Problem]:
        clauses: list[_Clause] = [()]
        for term in terms:
            head, *rest = self._list(term)
            word = self._word(head)
            if word in ("declare-const", "declare-fun") and len(rest) >= 2:
                self._declare(rest[0])
            elif word == "assert" and len(rest) == 1:
                alternatives = list(self._alternatives(rest[0]))
                if len(clauses) * len(alternatives) > _MOST_CLAUSES:
                    raise self.wrong(term, f"more than {_MOST_CLAUSES:,} alternatives once multiplied out")
                clauses = [(*clause, *more) for clause in clauses for more in alternatives]
            else:
                raise self.wrong(term, f"{word!r} is not understood here; write declare-const or assert")
        missing = [
            f"{kind}_{i}" for kind, n in self.sizes.items() for i in range(n) if f"{kind}_{i}" not in self.declared
        ]
        if missing:
            raise ConfigError(
                f"{self.path} does not declare {missing[0]}; the network has {self.sizes['X']} inputs and "
                f"{self.sizes['Y']} outputs"
            )
        boxes: dict[tuple[tuple[float, ...], tuple[float, ...]], list[Unsafe]] = {}
        for clause in clauses:
            lower, upper = self._ends(clause)
            if all(low <= high for low, high in zip(lower, upper, strict=True)):  # an empty box reaches nothing
                boxes.setdefault((tuple(lower), tuple(upper)), []).append(self._unsafe(clause))
        return [
            Problem(Box(self._tensor(low), self._tensor(high)), tuple(parts)) for (low, high), parts in boxes.items()
        ]

    def _tensor(self, values: tuple[float, ...]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64).view(1, *self.shape)

    def _declare(self, term: _Term) -> None:
        name = self._word(term)
        found = re.fullmatch(r"([XY])_(\d{1,9})", name)
        if found is None or int(found[2]) >= self.sizes[found[1]]:
            raise self.wrong(
                term,
                f"{name!r} is no variable of this network, which has X_0 to X_{self.sizes['X'] - 1} and "
                f"Y_0 to Y_{self.sizes['Y'] - 1}",
            )
        self.declared.add(name)

    def _alternatives(self, term: _Term) -> Iterator[_Clause]:
        """Yield the clauses of which one has to hold."""
        head, *rest = self._list(term)
        word = self._word(head)
        if word == "or":
            for part in rest:
                yield from self._alternatives(part)
        elif word == "and":
            choices = [list(self._alternatives(part)) for part in rest]
            if math.prod(map(len, choices)) > _MOST_CLAUSES:
                raise self.wrong(term, f"more than {_MOST_CLAUSES:,} alternatives once multiplied out")
            for parts in itertools.product(*choices):
                yield tuple(itertools.chain.from_iterable(parts))
        elif word in ("<=", ">=") and len(rest) == 2:
            left, right = (self._linear(part) for part in rest)
            if word == ">=":
                left, right = right, left
            total = dict(left)
            for name, value in right.items():
                total[name] = total.get(name, 0.0) - value
            most = -total.pop("", 0.0)
            yield (_AtMost(tuple(total.items()), most, term),)
        else:
            raise self.wrong(head, f"{word!r} is not understood here; write and, or, <= or >= (of two terms)")

    def _linear(self, term: _Term) -> dict[str, float]:
        """Return a linear term as coefficients by variable; the constant's name is empty."""
        if isinstance(term, _Atom):
            if term.word in self.declared:
                return {term.word: 1.0}
            try:
                return {"": float(term.word)}
            except ValueError:
                raise self.wrong(term, f"{term.word!r} is neither a number nor a declared variable") from None
        head, *rest = self._list(term)
        word, parts = self._word(head), [self._linear(part) for part in rest]
        if word in ("+", "-") and parts:
            signs = [1.0] + [1.0 if word == "+" else -1.0] * (len(parts) - 1)
            if word == "-" and len(parts) == 1:
                signs = [-1.0]
            total: dict[str, float] = {}
            for sign, part in zip(signs, parts, strict=True):
                for name, value in part.items():
                    total[name] = total.get(name, 0.0) + sign * value
            return total
        if word == "*" and len(parts) == 2 and any(set(part) <= {""} for part in parts):
            number, other = parts if set(parts[0]) <= {""} else reversed(parts)
            return {name: number.get("", 0.0) * value for name, value in other.items()}
        raise self.wrong(head, f"{word!r} makes no linear term; write +, - or * with a number")

    def _ends(self, clause: _Clause) -> tuple[list[float], list[float]]:
        """Return the box of a clause's inputs."""
        size = self.sizes["X"]
        lower, upper = [-float("inf")] * size, [float("inf")] * size
        for part in clause:
            inputs = [(name, value) for name, value in part.coefficients if name.startswith("X") and value]
            if not inputs:
                continue
            if len(part.coefficients) != 1:
                raise self.wrong(part.place, "an assertion bounds one X_i by a number, or speaks of Y_i alone")
            name, value = inputs[0]
            place, end = int(name[2:]), part.most / value
            if value > 0:
                upper[place] = min(upper[place], end)
            else:
                lower[place] = max(lower[place], end)
        for i, ends in enumerate(zip(lower, upper, strict=True)):
            if any(abs(end) == float("inf") for end in ends):
                raise ConfigError(
                    f"{self.path} gives X_{i} no {'lower' if ends[0] == -float('inf') else 'upper'} bound"
                )
        return lower, upper

    def _unsafe(self, clause: _Clause) -> Unsafe:
        parts = [part for part in clause if any(name.startswith("Y") for name, _ in part.coefficients)]
        if not parts:
            raise ConfigError(f"{self.path} says nothing of the outputs: assert something of Y_i")
        rows = torch.zeros(len(parts), self.sizes["Y"], dtype=torch.float64)
        for row, part in zip(rows, parts, strict=True):
            for name, value in part.coefficients:
                row[int(name[2:])] = value
        return Unsafe(rows, torch.tensor([part.most for part in parts], dtype=torch.float64))

    def _list(self, term: _Term) -> tuple[_Term, ...]:
        if isinstance(term, _Atom) or not term.items:
            raise self.wrong(term, "a list such as (assert ...) belongs here")
        return term.items

    def _word(self, term: _Term) -> str:
        if isinstance(term, _List):
            raise self.wrong(term, "a word belongs here")
        return term.word
