"""The cascade: IBP and an attack, sound bounds from cheap to dear, then the complete verifiers, each on what is left.

A *case* is a problem with what is known of it so far. Stages that take a batch of cases come first; the complete ones
take a case at a time, and share its seconds. A new stage is a `Stage` that is registered or, being a sound bound,
nothing more.
"""

import contextlib
import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from etb_plugin.attacks import Pgd, falsify
from etb_plugin.bounds import Box, PreparedBound, get_bound, prepare_lower
from etb_plugin.bounds.program import Maps, affine_maps, refuse_curved
from etb_plugin.bounds.solvers import check_solver
from etb_plugin.errors import ConfigError, EtbError, OutOfTime, SoundnessError, Stopped, UnsupportedLayer
from etb_plugin.graph.activations import Curved
from etb_plugin.graph.ends import Tightened, crown_ends, tightened
from etb_plugin.graph.graph import Graph
from etb_plugin.graph.relaxation import Choice, Relaxation
from etb_plugin.graph.rounding import rigorous
from etb_plugin.graph.tracing import trace
from etb_plugin.memory import in_smaller_blocks
from etb_plugin.registry import Registry
from etb_plugin.stopping import until
from etb_plugin.verification.branch import search
from etb_plugin.verification.exact import Decider
from etb_plugin.verification.hinges import HingeTree
from etb_plugin.verification.inputs import split_inputs
from etb_plugin.verification.problem import Problem, Verdict, proved_parts, stacked
from etb_plugin.verification.units import UnitTree

STAGES = ("ibp", "pgd", "crown-ibp", "crown", "alpha-crown", "dual", "inputs", "bab", "exact", "lp")
"""The whole cascade, in order: IBP takes two forward passes, and on a network trained by it leaves little to attack."""

RIGOROUS_STAGES = ("ibp", "pgd", "crown-ibp", "crown", "alpha-crown", "inputs", "bab")
"""Those whose proofs can take rounding in."""

_FEW_INPUTS = 20
"""Up to how many inputs that move are worth cutting, where the activations can be branched on too."""
_SHARE_OF_FEW = 30
"""What cutting the input has then, beside the shares of the other stages."""
_DEAR = ("alpha-crown", "dual")
"""Bounds that are spared where the input is cut, which takes less and decides more."""
_REFINABLE = 1_500_000
"""Unstable units times all units up to which the ends that programs and branches start from are optimised."""
_REFINING_STEPS = 20


@dataclass(frozen=True)
class Settings:
    """How a case is decided: the stages' names in order, PGD's settings, seconds for a case's complete stages, and
    whether proofs have to hold in real arithmetic."""

    stages: tuple[str, ...] = STAGES
    attack: Pgd = field(default_factory=Pgd)
    seconds: float = 60.0
    solver: str = "highs"
    seed: int = 0
    rigorous: bool = False


@dataclass
class Case:
    """A problem, which of its unsafe parts are proved unreachable, a counterexample [1, *input] if there is one, the
    stage that decided it, the seconds spent in each stage, and what stopped a stage that failed."""

    problem: Problem
    proved: Tensor
    witness: Tensor | None = None
    by: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, problem: Problem) -> "Case":
        """Return a case of which nothing is known."""
        return cls(problem, torch.zeros(len(problem.unsafe), dtype=torch.bool))

    @property
    def verdict(self) -> Verdict:
        """What is known of the problem."""
        if self.witness is not None:
            return Verdict.FALSIFIED
        return Verdict.ROBUST if bool(self.proved.all()) else Verdict.UNKNOWN


def _any(graph: Graph) -> None:
    """What takes every graph."""


@dataclass(frozen=True)
class Stage:
    """A stage that takes a case at a time. `run` (cascade, case, deadline of time.monotonic()) marks in `case.proved`
    what no point of the box can reach, or leaves a counterexample in `case.witness`, [1, *input], which is checked.
    `check` raises UnsupportedLayer for a graph that it cannot take; `share` is its part of a case's seconds beside the
    others'; `rigorous` says that it can take rounding in."""

    run: Callable[["Cascade", Case, float], None]
    check: Callable[[Graph], None] = _any
    share: int = 5
    rigorous: bool = False


_alone: Registry[Stage] = Registry("stage")


def register_stage(name: str, stage: Stage) -> None:
    """Make a stage known by its name, which `--stages` takes. Raises ConfigError where the name is taken."""
    _alone.add(name, stage, stage.run.__module__)


class Cascade:
    """A network ready to be verified, in float64.

    Raises ConfigError for a stage that is none or is not sound, and UnsupportedLayer, naming the layer, for one that
    cannot take the network.
    """

    def __init__(self, network: nn.Module, input_shape: tuple[int, ...], settings: Settings) -> None:
        self.settings = settings
        self.network = copy.deepcopy(network).double().eval().requires_grad_(False)
        check_stages(settings)
        shape = torch.Size(input_shape)
        self._bounds: dict[str, PreparedBound] = {
            name: prepare_lower(name, self.network, shape)
            for name in settings.stages
            if name != "pgd" and name not in _alone
        }
        if settings.rigorous:
            _check_rounding(self.network, shape)
        self._graph = trace(self.network, shape) if self.alone else None
        for name in self.alone:
            assert self._graph is not None
            _alone[name].check(self._graph)
        self._maps: Maps | None = None
        self._decider: Decider | None = None

    @property
    def together(self) -> tuple[str, ...]:
        """The stages that take many cases at once."""
        return tuple(name for name in self.settings.stages if name not in _alone)

    @property
    def alone(self) -> tuple[str, ...]:
        """The stages that take a case at a time."""
        return tuple(name for name in self.settings.stages if name in _alone)

    def decide(self, problem: Problem) -> Case:
        """Put one problem through all stages."""
        (case,) = self.decide_all([problem])
        return case

    def decide_all(self, problems: Sequence[Problem]) -> list[Case]:
        """Put problems of one form through all stages."""
        cases = [Case.of(problem) for problem in problems]
        self.decide_together(cases)
        for case in cases:
            self.decide_alone(case)
        return cases

    def decide_together(self, cases: Sequence[Case], deadline: float = math.inf) -> None:
        """Put cases of one form through the attack and the sound bounds, each on what is left. Before a `deadline` of
        time.monotonic() each has half of what is left, and the last stage of all the whole; what runs out is left
        out."""
        for name in self.together:
            left = [c for c in cases if c.verdict is Verdict.UNKNOWN and not (name in _DEAR and self._cuts(c))]
            if not left:
                continue
            begun, now = time.perf_counter(), time.monotonic()
            share = 1.0 if name == self.settings.stages[-1] else 0.5
            with until(now + share * (deadline - now)), rigorous(self.settings.rigorous):
                if name == "pgd":
                    _tried(name, left, self._attack, left)
                else:
                    _tried(name, left, self._bound, self._bounds[name], left)
            for case in left:
                case.seconds[name] = (time.perf_counter() - begun) / len(left)
                if case.verdict is not Verdict.UNKNOWN:
                    case.by = name

    def decide_alone(self, case: Case, seconds: float | None = None) -> None:
        """Put one undecided case through the complete stages, for `seconds` in all, or the settings'."""
        names = self.alone
        if not names or case.verdict is not Verdict.UNKNOWN:
            return
        deadline = time.monotonic() + (self.settings.seconds if seconds is None else seconds)
        self._decider = None
        shares = {name: _alone[name].share for name in names}
        if self._cuts(case):
            shares["inputs"] = _SHARE_OF_FEW
        for number, name in enumerate(names):
            if case.verdict is not Verdict.UNKNOWN:
                break
            share = shares[name] / sum(shares[other] for other in names[number:])
            begun, now = time.perf_counter(), time.monotonic()
            with until(deadline), rigorous(self.settings.rigorous):
                _tried(name, [case], self._run, name, case, now + share * (deadline - now))
            if case.verdict is not Verdict.UNKNOWN:
                case.by = name
            case.seconds[name] = time.perf_counter() - begun

    def _run(self, name: str, case: Case, deadline: float) -> None:
        """Have a stage work at a case. Raises EtbError where its counterexample is none."""
        _alone[name].run(self, case, deadline)
        if case.witness is not None:
            case.witness = case.problem.met(self.network, case.witness)
            if case.witness is None:
                raise EtbError("its counterexample is none")

    def _attack(self, cases: Sequence[Case]) -> None:
        box, rows, most = stacked([case.problem for case in cases])
        form = cases[0].problem.form

        def unsafety(outputs: Tensor, some: Tensor) -> Tensor:
            slack = most[some] - torch.einsum("prk,pk->pr", rows[some], outputs)
            return torch.stack([part.amin(1) for part in slack.split(form, 1)], 1)

        generator = torch.Generator(box.lower.device).manual_seed(self.settings.seed)
        points, _ = falsify(self.network, box, unsafety, self.settings.attack, generator)
        with torch.no_grad():
            outputs = self.network(points)
        for case, point, output in zip(cases, points, outputs, strict=True):
            if bool(case.problem.broken(output[None])):
                case.witness = point[None]

    @torch.no_grad()
    def _bound(self, bound: PreparedBound, cases: Sequence[Case]) -> None:
        box, rows, most = stacked([case.problem for case in cases])
        proved = proved_parts(bound(box, rows).lower - most, cases[0].problem.form)
        for case, parts in zip(cases, proved.cpu(), strict=True):
            case.proved |= parts

    def _cuts(self, case: Case) -> bool:
        """Whether so few inputs move that cutting them is what decides the case."""
        return "inputs" in self.settings.stages and int((case.problem.box.radius > 0).sum()) <= _FEW_INPUTS

    @property
    def curved(self) -> bool:
        """Whether some activation is not piecewise linear."""
        assert self._graph is not None
        return self._graph.curved

    def split_inputs(self, case: Case, deadline: float) -> None:
        """Cut the input where few of its elements move."""
        assert self._graph is not None
        if not self._cuts(case):
            return
        found = split_inputs(self.network, self._graph, case.problem, _open_parts(case), deadline)
        case.proved[found.proved] = True
        case.witness = found.witness

    def decider(self, case: Case) -> Decider:
        """Return the program to be of the case at hand, over the best ends that are cheap enough."""
        if self._decider is None:
            self._decider = self._prepared(case)
        return self._decider

    def _prepared(self, case: Case) -> Decider:
        assert self._graph is not None
        self._maps = self._maps or affine_maps(self._graph, case.problem.box.lower)
        relaxation, found = self.root(case)
        return Decider(self.network, relaxation, found, self._maps, case.problem, self.settings.solver)

    def root(self, case: Case) -> tuple[Relaxation, Tightened]:
        """Return the relaxation of a case's box over the best ends that are cheap enough, and how they came about."""
        assert self._graph is not None
        box = case.problem.box
        with torch.no_grad():
            found = crown_ends(self._graph, box)
        relaxation = Relaxation(self._graph, box, found.ends)
        units = sum(low.numel() for low, _ in found.ends.values())
        unstable = sum(int(((low < 0) & (high > 0)).sum()) for _, low, high in relaxation.hinges())
        unstable += sum(
            int(one.undecided(*found.ends[i]).sum())
            for i, one in self._graph.activations.items()
            if isinstance(one, Curved)
        )
        if unstable * units <= _REFINABLE:
            found = tightened(relaxation, Choice(), steps=_REFINING_STEPS)
            relaxation = relaxation.over(found.ends)
        return relaxation, found


def takers(
    networks: Sequence[nn.Module], input_shape: tuple[int, ...], settings: Settings, *, drop: bool
) -> tuple[Settings, dict[str, str]]:
    """Return the settings with those stages that take all of the networks, and why the others were left out.

    Raises UnsupportedLayer for the first that does not, unless asked to `drop` it, and ConfigError as Cascade. The
    attack may be all that is left.
    """
    check_stages(settings)
    left_out: dict[str, str] = {}
    with contextlib.suppress(UnsupportedLayer):
        for network in networks:
            Cascade(network, input_shape, settings)
        return settings, left_out
    for stage in settings.stages:
        try:
            for network in networks:
                Cascade(network, input_shape, replace(settings, stages=(stage,)))
        except UnsupportedLayer as error:
            if not drop:
                raise UnsupportedLayer(f"stage {stage!r} cannot take the network: {error}") from error
            left_out[stage] = str(error)
    return replace(settings, stages=tuple(stage for stage in settings.stages if stage not in left_out)), left_out


def provers(
    networks: Sequence[nn.Module], input_shape: tuple[int, ...], settings: Settings, *, drop: bool
) -> tuple[Settings, dict[str, str]]:
    """Return what `takers` does. Raises UnsupportedLayer, too, where all that is left is the attack."""
    settings, left_out = takers(networks, input_shape, settings, drop=drop)
    if left_out and set(settings.stages) <= {"pgd"}:
        raise UnsupportedLayer(f"no verifier takes the network: {next(iter(left_out.values()))}")
    return settings, left_out


def check_stages(settings: Settings) -> None:
    """Raise ConfigError for settings that cannot work: a stage that is none or not sound, a limit, a solver."""
    for name in settings.stages:
        if name not in ("pgd", *_alone) and not get_bound(name).sound:
            raise ConfigError(
                f"bound {name!r} is not sound, so it cannot verify; stages are pgd, inputs, bab and sound bounds"
            )
    beyond = [name for name in settings.stages if not _knows_rounding(name)]
    if settings.rigorous and beyond:
        raise ConfigError(f"--rigorous knows no rounding in stage {beyond[0]!r}; leave {', '.join(RIGOROUS_STAGES)}")
    if not settings.seconds > 0:
        raise ConfigError(f"the time limit is {settings.seconds:g}; it must be positive, in seconds for each image")
    if set(settings.stages) & set(_alone):
        check_solver(settings.solver)


def _knows_rounding(stage: str) -> bool:
    if stage == "pgd":  # proves nothing
        return True
    return _alone[stage].rigorous if stage in _alone else get_bound(stage).rigorous


def _check_rounding(network: nn.Module, input_shape: torch.Size) -> None:
    """Raise UnsupportedLayer for a network with a layer of which no rounding is known, and ConfigError off a CPU."""
    like = next((p for p in network.parameters()), torch.zeros((), dtype=torch.float64))
    zeros = torch.zeros(1, *input_shape, dtype=torch.float64, device=like.device)
    with rigorous():
        trace(network, input_shape).intervals(Box.around(zeros, 0.0))


def _tried(name: str, cases: Sequence[Case], stage: Callable[..., None], *arguments: Any) -> None:
    """Run a stage with its arguments, in smaller blocks where memory runs out. Whatever else stops it is said of its
    cases, and the other stages go on; a contradiction between bounds and attacks is a bug, and ends all."""
    try:
        in_smaller_blocks(partial(stage, *arguments))
    except OutOfTime:
        pass
    except (Stopped, SoundnessError):
        raise
    except Exception as error:  # of torch, of a solver: the stage is left out, and says so
        for case in cases:
            case.failed[name] = f"{type(error).__name__}: {error}".partition("\n")[0]


def _bab(cascade: Cascade, case: Case, deadline: float) -> None:
    if cascade.curved:
        found = search(UnitTree(cascade.network, *cascade.root(case), case.problem), _open_parts(case), deadline)
    else:
        found = search(HingeTree(cascade.decider(case)), _open_parts(case), deadline)
    case.proved[found.proved] = True
    case.witness = found.witness


def _exact(cascade: Cascade, case: Case, deadline: float, *, integer: bool = True) -> None:
    decider = cascade.decider(case)
    for part in _open_parts(case).tolist():
        seconds = deadline - time.monotonic()
        if seconds <= 0:
            return
        case.proved[part], case.witness = decider.decide(part, seconds, integer=integer)
        if case.witness is not None:
            return


def _lp(cascade: Cascade, case: Case, deadline: float) -> None:
    _exact(cascade, case, deadline, integer=False)


def _open_parts(case: Case) -> Tensor:
    return (~case.proved).nonzero()[:, 0]


register_stage("inputs", Stage(Cascade.split_inputs, rigorous=True))
register_stage("bab", Stage(_bab, rigorous=True))
register_stage("exact", Stage(_exact, refuse_curved, 4))
register_stage("lp", Stage(_lp, refuse_curved, 1))
