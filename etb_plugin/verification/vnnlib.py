"""VNN-LIB 1.0 and 2.0, the verification competition's files: properties in and out, and counterexamples.

A property says which inputs and outputs are unsafe, by assertions that are put together by `and` and `or` from
comparisons of polynomials of them. In 1.0 they are X_i and Y_i of one network, flat; in 2.0 elements of the tensors
that a file declares, of one network or of several.
"""

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from etb_plugin.bounds import Box
from etb_plugin.errors import ConfigError
from etb_plugin.verification.terms import Atom, Branch, Term, read_terms

VERSIONS = ("1.0", "2.0")
_MOST_CLAUSES = 100_000
"""Alternatives, or terms of a polynomial, that a property may have once its assertions are multiplied out."""
_MOST_ELEMENTS = 10_000_000
"""Inputs, or outputs, that a property may have."""
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?")
_ELEMENT = re.compile(r"([A-Za-z]\w*)\[([\d,]*)\]")
_FLAT = re.compile(r"([XY])_(\d{1,9})")
"""A variable of version 1.0."""

Place = tuple[str, int]
"""An element of all inputs ("X") or all outputs ("Y"), flat and one after the other in the order of declaration."""
_Polynomial = Mapping[tuple[Place, ...], float]
"""Products of elements, sorted, each with its coefficient; the constant's product is empty."""


@dataclass(frozen=True)
class Declared:
    """A tensor that a file declares, the number of its first element among all inputs, or all outputs, and its name in
    the network's own file, where the declaration says it."""

    name: str
    element_type: str
    shape: tuple[int, ...]
    first: int
    node: str | None = None

    @property
    def size(self) -> int:
        """The number of its elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class DeclaredNetwork:
    """A network that a file declares, hidden values among its outputs; `same_as` names an earlier one that it is
    (equal-to)."""

    name: str
    inputs: tuple[Declared, ...]
    outputs: tuple[Declared, ...]
    same_as: str | None = None


@dataclass(frozen=True)
class AtMost:
    """sum of coefficient x product <= most."""

    terms: tuple[tuple[tuple[Place, ...], float], ...]
    most: float


Clause = tuple[AtMost, ...]


@dataclass(frozen=True)
class Query:
    """What a file asks: whether inputs and outputs of its networks fulfil all of `always` and of one of `clauses`.

    Inputs that have to be equal are one: `free` has for each element of all inputs the number of the input that it is.
    """

    path: Path
    version: str
    networks: tuple[DeclaredNetwork, ...]
    free: tuple[int, ...]
    always: Clause
    clauses: tuple[Clause, ...]

    def assignment(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> list[tuple[Declared, Tensor]]:
        """Return each declared tensor, in order, and its values, of what each network takes and gives."""
        found: list[tuple[Declared, Tensor]] = []
        for network, x, y in zip(self.networks, inputs, outputs, strict=True):
            for tensors, values in ((network.inputs, x), (network.outputs, y)):
                parts = values.flatten().split([declared.size for declared in tensors])
                found += [(one, part.view(one.shape)) for one, part in zip(tensors, parts, strict=True)]
        return found

    def counterexample(self, assignment: Sequence[tuple[Declared, Tensor]]) -> str:
        """Return an assignment as the file's version writes it: ((X_0 0.5) ... (Y_0 1.2)), or X float32 [1,1] and a
        number on each line below it."""
        if self.version == "1.0":
            elements = [(one.name, i, v) for one, own in assignment for i, v in enumerate(own.tolist())]
            return "(" + "\n ".join(f"({name}_{i} {_decimal(v)})" for name, i, v in elements) + ")"
        lines = []
        for declared, values in assignment:
            lines.append(f"{declared.name} {declared.element_type} [{','.join(map(str, declared.shape))}]")
            lines += [_decimal(value) for value in values.flatten().tolist()]
        return "\n".join(lines)


def read_vnnlib(path: Path) -> Query:
    """Return what a file asks. Raises ConfigError with line and column where it is malformed."""
    return _Reader(path).query(read_terms(path))


def vnnlib_text(box: Box, label: int, classes: int, comment: str, version: str = VERSIONS[0]) -> str:
    """Return the text of the property that some point of `box` (a batch of 1) is not classified as `label`, in version
    1.0, or in 2.0 of a network N."""
    lower, upper = box.lower.flatten().tolist(), box.upper.flatten().tolist()
    if version == "1.0":
        x, y = [f"X_{i}" for i in range(len(lower))], [f"Y_{j}" for j in range(classes)]
        lines = [f"(declare-const {name} Real)" for name in (*x, *y)]
    else:
        shape = box.lower.shape
        x = [f"X[{','.join(map(str, place))}]" for place in np.ndindex(*shape)]
        y = [f"Y[0,{j}]" for j in range(classes)]
        lines = [
            "(vnnlib-version <2.0>)",
            "(declare-network N",
            f"  (declare-input X float32 [{','.join(map(str, shape))}])",
            f"  (declare-output Y float32 [1,{classes}])",
            ")",
        ]
    for name, ends in zip(x, zip(lower, upper, strict=True), strict=True):
        lines += [f"(assert (>= {name} {_decimal(ends[0])}))", f"(assert (<= {name} {_decimal(ends[1])}))"]
    wrong = "\n".join(f"  (and (>= {y[j]} {y[label]}))" for j in range(classes) if j != label)
    return "\n".join([f"; {comment}", "", *lines, f"(assert (or\n{wrong}))", ""])


def _decimal(value: float) -> str:
    """Return a number that reads back to the same bits, without an exponent, which VNN-LIB does not have."""
    return str(np.format_float_positional(value, trim="0"))


class _Reader:
    """What the terms of one file mean."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.version = "1.0"
        self.networks: list[DeclaredNetwork] = []
        self.elements: dict[str, Place] = {}
        self.tensors: dict[str, tuple[str, Declared]] = {}
        self.sizes = {"X": 0, "Y": 0}

    def wrong(self, term: Term, what: str) -> ConfigError:
        return ConfigError(f"{self.path}, line {term.line}, column {term.column}: {what}")

    def query(self, terms: Sequence[Term]) -> Query:
        assertions: list[Term] = []
        for term in terms:
            head, *rest = self._list(term)
            word = self._word(head)
            if word == "assert" and len(rest) == 1:
                assertions.append(rest[0])
            elif word == "vnnlib-version" and len(rest) == 1:
                self.version = self._word(rest[0]).strip("<>")
                if self.version not in VERSIONS:
                    raise self.wrong(rest[0], f"version {self.version} is not known; {' and '.join(VERSIONS)} are")
            elif word in ("declare-const", "declare-fun") and len(rest) >= 2:
                self._declare_element(rest[0])
            elif word == "declare-network" and rest:
                self.version = "2.0"
                self._declare_network(term, rest)
            else:
                raise self.wrong(
                    term, f"{word!r} is not understood here; write declare-const, declare-network or assert"
                )
        if not self.networks:
            self._close_flat(assertions)
        self.free = self._tied(assertions)
        always: list[AtMost] = []
        clauses: list[Clause] = [()]
        for term in assertions:
            alternatives = list(self._alternatives(term))
            if len(alternatives) == 1:
                always += alternatives[0]
                continue
            if len(clauses) * len(alternatives) > _MOST_CLAUSES:
                raise self.wrong(term, f"more than {_MOST_CLAUSES:,} alternatives once multiplied out")
            clauses = [(*clause, *more) for clause in clauses for more in alternatives]
        return Query(self.path, self.version, tuple(self.networks), tuple(self.free), tuple(always), tuple(clauses))

    def _declare_element(self, term: Term) -> None:
        name = self._word(term)
        found = _FLAT.fullmatch(name)
        if found is None:
            raise self.wrong(term, f"{name!r} is no variable of a network: inputs are X_0, X_1, ..., outputs Y_0, ...")
        self.elements[name] = (found[1], int(found[2]))

    def _close_flat(self, assertions: Sequence[Term]) -> None:
        """Make one network of the variables that version 1.0 declares, which have no gaps."""
        for kind in self.sizes:
            numbers = {number for one, number in self.elements.values() if one == kind}
            missing = next(i for i in range(len(numbers) + 1) if i not in numbers)
            if missing < len(numbers) or not numbers:
                used = next((a for a in _atoms(assertions) if a.word == f"{kind}_{missing}"), None)
                if used is not None:
                    raise self.wrong(used, f"{used.word!r} is neither a number nor a declared variable")
                raise ConfigError(f"{self.path} does not declare {kind}_{missing}")
            self.sizes[kind] = len(numbers)
        x, y = (Declared(kind, "real", (size,), 0) for kind, size in self.sizes.items())
        self.networks.append(DeclaredNetwork("N", (x,), (y,)))

    def _declare_network(self, term: Term, rest: Sequence[Term]) -> None:
        name, same_as = self._word(rest[0]), None
        inputs: list[Declared] = []
        outputs: list[Declared] = []
        hidden: list[Declared] = []
        for part in rest[1:]:
            head, *words = self._list(part)
            word = self._word(head)
            if word == "declare-input" and len(words) in (2, 3):
                inputs.append(self._declare_tensor("X", *words))
            elif word == "declare-output" and len(words) in (2, 3):
                outputs.append(self._declare_tensor("Y", *words))
            elif word == "declare-hidden" and len(words) == 3:
                hidden.append(self._declare_tensor("Y", *words))
            elif word in ("equal-to", "isomorphic-to") and len(words) == 1:
                other = self._word(words[0])
                if other not in [network.name for network in self.networks]:
                    raise self.wrong(words[0], f"no network {other!r} is declared before")
                same_as = other if word == "equal-to" else None
            else:
                raise self.wrong(
                    part,
                    f"{word!r} is not understood here; write declare-input or declare-output and a name, a type and a "
                    f"shape, or declare-hidden and behind these a tensor of the network's file in quotes",
                )
        if not inputs or not outputs:
            raise self.wrong(term, f"network {name!r} declares {len(inputs)} inputs and {len(outputs)} outputs")
        if len({one.node is None for one in (*inputs, *outputs)}) > 1:
            raise self.wrong(term, f"network {name!r} has names in its file for some inputs and outputs: all, or none")
        if name in [network.name for network in self.networks]:
            raise self.wrong(rest[0], f"a network {name!r} is declared already")
        values = sorted((*hidden, *outputs), key=lambda one: one.first)
        self.networks.append(DeclaredNetwork(name, tuple(inputs), tuple(values), same_as))

    def _declare_tensor(self, kind: str, name: Term, kind_and_shape: Term, node: Term | None = None) -> Declared:
        word, found = self._word(name), _ELEMENT.fullmatch(self._word(kind_and_shape))
        if word in self.tensors or not re.fullmatch(r"[A-Za-z]\w*", word):
            raise self.wrong(name, f"{word!r} is no name, or one that is declared already")
        shape = () if found is None else tuple(int(size) for size in found[2].split(",") if size)
        if found is None or not all(shape):
            raise self.wrong(kind_and_shape, "a type and a shape belong here, such as float32 [1,10]")
        quoted = re.fullmatch('"(.+)"', self._word(node)) if node is not None else None
        if node is not None and quoted is None:
            raise self.wrong(node, "a name in the network's file belongs here, in quotes")
        declared = Declared(word, found[1], shape, self.sizes[kind], quoted[1] if quoted else None)
        self.sizes[kind] += declared.size
        if self.sizes[kind] > _MOST_ELEMENTS:
            raise self.wrong(kind_and_shape, f"more than {_MOST_ELEMENTS:,} elements")
        self.tensors[word] = kind, declared
        return declared

    def _element(self, atom: Atom) -> Place | None:
        """Return the element that a word names, None if it names none."""
        if atom.word in self.elements:
            return self.elements[atom.word]
        found = _ELEMENT.fullmatch(atom.word)
        name, indices = (found[1], found[2]) if found else (atom.word, "")
        if name not in self.tensors:
            return None
        kind, declared = self.tensors[name]
        at = tuple(int(index) for index in indices.split(",") if index)
        if len(at) != len(declared.shape) or any(i >= size for i, size in zip(at, declared.shape, strict=True)):
            raise self.wrong(atom, f"{atom.word} is no element of {name}, whose shape is {list(declared.shape)}")
        return kind, declared.first + (int(np.ravel_multi_index(at, declared.shape)) if at else 0)

    def _tied(self, assertions: Sequence[Term]) -> list[int]:
        """Return for each input element the number of the free input that it is: elements that are asserted to be
        equal, by themselves or within `and`, are one."""
        root = list(range(self.sizes["X"]))

        def find(i: int) -> int:
            while root[i] != i:
                root[i] = root[root[i]]
                i = root[i]
            return i

        waiting = list(assertions)
        while waiting:
            term = waiting.pop()
            if isinstance(term, Atom) or not term.items or isinstance(term.items[0], Branch):
                continue
            word, parts = term.items[0].word, term.items[1:]
            if word == "and":
                waiting += parts
            elif word in ("=", "==") and len(parts) == 2:
                ends = [self._element(part) if isinstance(part, Atom) else None for part in parts]
                one, other = (end[1] if end is not None and end[0] == "X" else None for end in ends)
                if one is not None and other is not None:
                    first, second = sorted((find(one), find(other)))
                    root[second] = first
        numbers: dict[int, int] = {}
        return [numbers.setdefault(find(i), len(numbers)) for i in range(len(root))]

    def _alternatives(self, term: Term) -> Iterator[Clause]:
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
        elif word in _COMPARISONS and len(rest) == 2:
            left, right = (self._polynomial(part) for part in rest)
            difference = _sum((left, 1.0), (right, -1.0))
            for signs in _COMPARISONS[word]:
                clause = [_at_most(difference, *sign) for sign in signs]
                if all(one.terms or one.most >= 0 for one in clause):  # what has no variable is true or false
                    yield tuple(one for one in clause if one.terms)
        else:
            known = ", ".join(_COMPARISONS)
            raise self.wrong(head, f"{word!r} is not understood here; write and, or, or one of {known} (of two terms)")

    def _polynomial(self, term: Term) -> _Polynomial:
        if isinstance(term, Atom):
            place = self._element(term)
            if place is not None:
                kind, number = place
                return {((kind, self.free[number] if kind == "X" else number),): 1.0}
            if not _NUMBER.fullmatch(term.word) or not math.isfinite(float(term.word)):
                raise self.wrong(term, f"{term.word!r} is neither a number nor a declared variable")
            return {(): float(term.word)}
        head, *rest = self._list(term)
        word, parts = self._word(head), [self._polynomial(part) for part in rest]
        if word == "+" and parts:
            return _sum(*((part, 1.0) for part in parts))
        if word == "-" and parts:
            first = -1.0 if len(parts) == 1 else 1.0
            return _sum((parts[0], first), *((part, -1.0) for part in parts[1:]))
        if word == "*" and parts:
            product: _Polynomial = {(): 1.0}
            for part in parts:
                if len(product) * len(part) > _MOST_CLAUSES:
                    raise self.wrong(term, f"more than {_MOST_CLAUSES:,} terms once multiplied out")
                pairs = itertools.product(product.items(), part.items())
                product = _sum(*(({tuple(sorted(p + q)): a * b}, 1.0) for (p, a), (q, b) in pairs))
            return product
        raise self.wrong(head, f"{word!r} makes no term; write +, - or *")

    def _list(self, term: Term) -> tuple[Term, ...]:
        if isinstance(term, Atom) or not term.items:
            raise self.wrong(term, "a list such as (assert ...) belongs here")
        return term.items

    def _word(self, term: Term) -> str:
        if isinstance(term, Branch):
            raise self.wrong(term, "a word belongs here")
        return term.word


def _atoms(terms: Sequence[Term]) -> Iterator[Atom]:
    for term in terms:
        if isinstance(term, Atom):
            yield term
        else:
            yield from _atoms(term.items)


_COMPARISONS: Mapping[str, tuple[tuple[tuple[float, bool], ...], ...]] = {
    "<=": (((1.0, False),),),
    ">=": (((-1.0, False),),),
    "<": (((1.0, True),),),
    ">": (((-1.0, True),),),
    "=": (((1.0, False), (-1.0, False)),),
    "==": (((1.0, False), (-1.0, False)),),
    "!=": (((1.0, True),), ((-1.0, True),)),
}
"""Each comparison as alternatives, of which each is a list of: sign x difference <= 0, strictly or not."""


def _sum(*parts: tuple[_Polynomial, float]) -> _Polynomial:
    total: dict[tuple[Place, ...], float] = {}
    for polynomial, factor in parts:
        for product, value in polynomial.items():
            total[product] = total.get(product, 0.0) + factor * value
    return total


def _at_most(difference: _Polynomial, sign: float, strict: bool) -> AtMost:
    """Return sign x difference <= 0. Among floating-point numbers, less than 0 is at most the next number below it."""
    terms = tuple((product, sign * value) for product, value in difference.items() if product and value)
    most = -sign * difference.get((), 0.0)
    return AtMost(terms, math.nextafter(most, -math.inf) if strict else most)
