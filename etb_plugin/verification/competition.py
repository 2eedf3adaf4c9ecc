"""One network and one property from files, as the verification competition asks: sat, unsat, timeout or unknown."""

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from etb_plugin.attacks import Pgd
from etb_plugin.errors import ConfigError
from etb_plugin.networks import before_softmax
from etb_plugin.networks.onnx import file_outputs, read_onnx
from etb_plugin.verification.cascade import Cascade, Case, Settings, takers
from etb_plugin.verification.problem import Problem, Verdict
from etb_plugin.verification.vnnlib import counterexample_text, read_vnnlib

_FURTHER = Pgd(steps=50, step=0.05)
"""How a counterexample is moved further into the unsafe outputs where rounding hides it."""


@dataclass(frozen=True)
class Answer:
    """The competition's word, the counterexample [1, *input] and its outputs [1, outputs] where it is sat, the stage
    that decided, the seconds it took, and what failed on the way, a line for each."""

    word: str
    point: Tensor | None
    outputs: Tensor | None
    by: str | None
    seconds: float
    failed: tuple[str, ...]

    @property
    def text(self) -> str:
        """The word, and below it the counterexample in the competition's format."""
        if self.point is None or self.outputs is None:
            return self.word
        return f"{self.word}\n{counterexample_text(self.point, self.outputs)}"


class PropertyCheck:
    """A network and a property, read and checked.

    Raises CheckpointError, ConfigError or UnsupportedLayer where either cannot be read, or a stage cannot take the
    network; with `drop` such stages are left out, and `left_out` says why.
    """

    def __init__(self, network: Path, vnnlib: Path, settings: Settings, *, drop: bool) -> None:
        self._begun, self._file = time.monotonic(), network
        if network.suffix != ".onnx":
            raise ConfigError(f"{network}: a property is about an ONNX network; etb export --onnx writes one")
        whole, shape = read_onnx(network)
        with torch.no_grad():
            outputs = whole(torch.zeros(1, *shape)).shape[1]
        self.problems = read_vnnlib(vnnlib, shape, outputs)
        judged = before_softmax(whole, shape) if all(problem.compares for problem in self.problems) else whole
        self.settings, self.left_out = takers([judged], shape, settings, drop=drop)
        self._cascade = Cascade(judged, shape, self.settings)

    def run(self) -> Answer:
        """Return what is known after the settings' seconds, for all boxes of the property together. What reading and
        checking the files took counts among them. A counterexample counts where the file itself, run by onnxruntime,
        gives an unsafe output."""
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
                point, outputs = self._confirmed(problem, case.witness)
                if outputs is not None:
                    return Answer("sat", point, outputs, by, time.monotonic() - begun, tuple(failed))
                failed.append(
                    f"{by} met a counterexample that {self._file} itself, in its own precision, does not confirm"
                )
            if case.verdict is not Verdict.ROBUST:
                word = "timeout" if time.monotonic() >= deadline else "unknown"
        return Answer(word, None, None, by if word == "unsat" else None, time.monotonic() - begun, tuple(failed))

    def _confirmed(self, problem: Problem, witness: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return a counterexample and the file's own outputs there, if these are unsafe: at `witness`, or, where they
        are not since its margin is within rounding, at the worst point that an attack meets from there."""
        point, outputs = witness, file_outputs(self._file, witness)
        if not bool(problem.broken(outputs)):
            point = problem.polished(self._cascade.network, witness, _FURTHER)
            outputs = file_outputs(self._file, point)
        return point, outputs if bool(problem.broken(outputs)) else None
