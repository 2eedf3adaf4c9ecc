"""Networks and a property from files, as the verification competition asks: sat, unsat, timeout or unknown."""

import contextlib
import copy
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from etb_plugin.attacks import Pgd
from etb_plugin.bounds import Box, prepare_lower
from etb_plugin.errors import ConfigError, OutOfTime, UnsupportedLayer
from etb_plugin.files import write_file
from etb_plugin.graph.tracing import example_input
from etb_plugin.networks import before_softmax
from etb_plugin.networks.onnx import Names, Tensors, file_outputs, read_tensors, tensor_proto
from etb_plugin.stopping import until
from etb_plugin.verification.cascade import Cascade, Case, Settings, takers
from etb_plugin.verification.posed import Posed
from etb_plugin.verification.problem import Problem, Verdict, stacked
from etb_plugin.verification.vnnlib import Declared, DeclaredNetwork, Query, read_vnnlib

_FURTHER = Pgd(steps=50, step=0.05)
"""How a counterexample is moved further into the unsafe outputs where rounding hides it."""


@dataclass(frozen=True)
class Answer:
    """The competition's word, the counterexample [1, *input] and all networks' outputs [1, outputs] where it is sat,
    these as the tensors that the property declares, and as its version writes them, the stage that decided, the seconds
    it took, and what failed on the way, a line for each."""

    word: str
    point: Tensor | None
    outputs: Tensor | None
    assignment: Sequence[tuple[Declared, Tensor]]
    written: str
    by: str | None
    seconds: float
    failed: tuple[str, ...]

    @property
    def text(self) -> str:
        """The word, and below it the counterexample in the property's format."""
        return f"{self.word}\n{self.written}" if self.written else self.word

    def save(self, folder: Path) -> None:
        """Write each tensor of a counterexample to NAME.pb, as an ONNX TensorProto of the declared type; a real is of
        float64."""
        for declared, values in self.assignment:
            dtype = torch.float32 if declared.element_type.lower() == "float32" else torch.float64
            write_file(folder / f"{declared.name}.pb", tensor_proto(declared.name, values.to(dtype)))


class PropertyCheck:
    """A property and its networks, read and checked. `networks` is one file, or files by the names that the property
    declares; of networks that are equal to others no file is needed.

    Raises CheckpointError, ConfigError or UnsupportedLayer where one cannot be read, or a stage cannot take a network;
    with `drop` such stages are left out, and `left_out` says why.
    """

    def __init__(self, networks: Path | Mapping[str, Path], vnnlib: Path, settings: Settings, *, drop: bool) -> None:
        self._begun = time.monotonic()
        for file in [networks] if isinstance(networks, Path) else networks.values():
            if not file.name.removesuffix(".gz").endswith(".onnx"):
                raise ConfigError(f"{file}: a property is about an ONNX network; etb export --onnx writes one")
        query = read_vnnlib(vnnlib)
        self._files = _files_of(query, networks)
        self._selected = [_selected(query, *one) for one in zip(query.networks, self._files, strict=True)]
        read = {selected: read_tensors(*selected) for selected in dict.fromkeys(self._selected)}
        every = [read[selected] for selected in self._selected]
        self._dtypes = [_dtype_of(query, *one) for one in zip(query.networks, self._files, every, strict=True)]
        self._posed = Posed(query, [one.network for one in every], [one.shape for one in every])
        shape, self.problems = self._posed.shape, self._posed.problems
        judged = self._posed.forms[0]
        if not _plain(settings, drop=drop):
            with contextlib.suppress(OutOfTime), until(self._begun + settings.seconds / 4):
                judged = _tightest(self._posed)
        if self._posed.alone and all(problem.compares for problem in self.problems):
            judged = before_softmax(judged, shape)
        self.settings, self.left_out = takers([judged], shape, settings, drop=drop)
        self._cascade = Cascade(judged, shape, self.settings)

    def run(self) -> Answer:
        """Return what is known after the settings' seconds, for all boxes of the property together. What reading and
        checking the files took counts among them. A counterexample counts where the files themselves, run by
        onnxruntime, give unsafe outputs."""
        begun = self._begun
        deadline = begun + self.settings.seconds
        by, word, failed = None, "unsat", []
        for problem in self.problems:
            case = Case.of(problem)
            self._cascade.decide_together([case], deadline)
            left = deadline - time.monotonic()
            if left > 0:
                self._cascade.decide_alone(case, left)
            by = case.by or by
            failed += [f"{stage} is left out: {why}" for stage, why in case.failed.items()]
            if case.witness is not None:
                for point in self._near(problem, case.witness):
                    inputs, outputs = self._replayed(problem, point)
                    replayed = self._posed.point(inputs)
                    if bool(problem.broken(self._posed.values(replayed, outputs))):
                        found = self._posed.query.assignment(inputs, outputs)
                        text, seconds = self._posed.query.counterexample(found), time.monotonic() - begun
                        return Answer("sat", replayed, torch.cat(outputs, 1), found, text, by, seconds, tuple(failed))
                failed.append(
                    f"{by} met a counterexample that {' and '.join(map(str, dict.fromkeys(self._files)))} itself, in "
                    f"its own precision, does not confirm"
                )
            if case.verdict is not Verdict.ROBUST:
                word = "timeout" if time.monotonic() >= deadline else "unknown"
        return Answer(
            word, None, None, (), "", by if word == "unsat" else None, time.monotonic() - begun, tuple(failed)
        )

    def _near(self, problem: Problem, witness: Tensor) -> Iterator[Tensor]:
        """Yield a counterexample, and then the worst point that an attack meets from there: within rounding of the
        unsafe outputs' edge the files may give others than our float64."""
        yield witness
        yield problem.polished(self._cascade.network, witness, _FURTHER)

    def _replayed(self, problem: Problem, point: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return each network's own input [1, *shape] next to `point` in its file's precision, and what the file gives
        there."""
        lower, upper = (self._posed.inputs(end) for end in (problem.box.lower, problem.box.upper))
        inputs = [_within(*one) for one in zip(self._posed.inputs(point), lower, upper, self._dtypes, strict=True)]
        every = zip(self._selected, inputs, strict=True)
        return inputs, [file_outputs(file, x, *names) for (file, *names), x in every]


def _plain(settings: Settings, *, drop: bool) -> bool:
    """Whether stages that have to be there, or proofs about rounding, take piecewise linear networks alone."""
    return settings.rigorous or (not drop and bool({"exact", "lp"} & set(settings.stages)))


def _tightest(posed: Posed) -> nn.Module:
    """Return the form of a query's network of which CROWN says most about the first problem, on a quarter of its box:
    searches cut boxes."""
    if len(posed.forms) == 1 or not posed.problems:
        return posed.forms[0]
    box, rows, _ = stacked(posed.problems[:1])
    quarter = Box(box.center - box.radius / 4, box.center + box.radius / 4, ordered=True)

    def least(form: nn.Module) -> float:
        try:
            network = copy.deepcopy(form).double()
            return float(prepare_lower("crown", network, box.shape)(quarter, rows).lower.sum())
        except UnsupportedLayer:
            return -math.inf

    with torch.no_grad():
        return max(posed.forms, key=least)


def _files_of(query: Query, networks: Path | Mapping[str, Path]) -> list[Path]:
    """Return the file of each declared network. Raises ConfigError where one is missing, or belongs to none."""
    own = [network.name for network in query.networks if network.same_as is None]
    if isinstance(networks, Path):
        if len(own) != 1:
            raise ConfigError(
                f"{query.path} is about {len(own)} networks: write etb verify {query.path} "
                + " ".join(f"--network {name}={name}.onnx" for name in own)
            )
        networks = {own[0]: networks}
    for name in own:
        if name not in networks:
            raise ConfigError(f"{query.path} declares a network {name!r}: write --network {name}=FILE.onnx")
    files: dict[str, Path] = {}
    for network in query.networks:
        files[network.name] = file = networks[network.same_as or network.name]
        if networks.get(network.name, file) != file:
            raise ConfigError(f"{query.path} says that {network.name!r} equals {network.same_as!r}: name one file")
    for name in networks:
        if name not in files:
            raise ConfigError(f"{query.path} declares no network {name!r}; it has {', '.join(files)}")
    return list(files.values())


def _selected(query: Query, declared: DeclaredNetwork, file: Path) -> tuple[Path, Names, Names]:
    """Return a declared network's file, and which tensors of it are its inputs and outputs: all in version 1.0, which
    has no tensors."""
    if query.version == "1.0":
        return file, None, None
    return file, tuple(one.node for one in declared.inputs), tuple(one.node for one in declared.outputs)


@torch.no_grad()
def _dtype_of(query: Query, declared: DeclaredNetwork, file: Path, read: Tensors) -> torch.dtype:
    """Return the precision of a network's inputs. Raises ConfigError where the query declares another one, or tensors
    of other sizes."""
    x = example_input(read.network, torch.Size(read.shape))
    values = [(one, x) for one in declared.inputs] + [(one, read.network(x)) for one in declared.outputs]
    for tensor, value in values:
        dtype = str(value.dtype).removeprefix("torch.")
        if tensor.element_type.lower() not in ("real", dtype):
            raise ConfigError(
                f"{query.path} declares {tensor.name} as {tensor.element_type}, but {file} has {dtype}; real stands "
                f"for any"
            )
    if query.version != "1.0":  # which has no tensors
        for (tensor, _), size in zip(values, (*read.inputs, *read.outputs), strict=True):
            if tensor.size != size:
                raise ConfigError(f"{query.path} declares {tensor.size} elements of {tensor.name}; {file} has {size}")
    return x.dtype


def _within(x: Tensor, lower: Tensor, upper: Tensor, dtype: torch.dtype) -> Tensor:
    """Return x rounded to `dtype`, but to the other side where that would leave the box, in float64. Where the box has
    no number of that precision, x itself."""
    near = x.to(dtype)
    other = torch.where(near > upper, torch.nextafter(near, -near.abs() - 1), torch.nextafter(near, near.abs() + 1))
    rounded = torch.where((near >= lower) & (near <= upper), near, other).double()
    return torch.where((rounded >= lower) & (rounded <= upper), rounded, x.double())
