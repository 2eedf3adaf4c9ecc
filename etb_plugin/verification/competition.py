"""One network and one property from files, as the verification competition asks: sat, unsat, timeout or unknown."""

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from etb_plugin.errors import ConfigError
from etb_plugin.networks.onnx import before_softmax, read_onnx
from etb_plugin.verification.cascade import Cascade, Case, Settings, takers
from etb_plugin.verification.problem import Verdict
from etb_plugin.verification.vnnlib import counterexample_text, read_vnnlib


@dataclass(frozen=True)
class Answer:
    """The competition's word, the counterexample [1, *input] and its outputs [1, outputs] where it is sat, the stage
    that decided, and the seconds it took."""

    word: str
    point: Tensor | None
    outputs: Tensor | None
    by: str | None
    seconds: float

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
        self._begun = time.monotonic()
        if network.suffix != ".onnx":
            raise ConfigError(f"{network}: a property is about an ONNX network; etb export --onnx writes one")
        self._network, shape = read_onnx(network)
        with torch.no_grad():
            outputs = self._network(torch.zeros(1, *shape)).shape[1]
        self.problems = read_vnnlib(vnnlib, shape, outputs)
        logits = before_softmax(self._network) if all(problem.compares for problem in self.problems) else None
        judged = self._network if logits is None else logits
        self.settings, self.left_out = takers([judged], shape, settings, drop=drop)
        self._cascade = Cascade(judged, shape, self.settings)

    def run(self) -> Answer:
        """Return what is known after the settings' seconds, for all boxes of the property together. What reading and
        checking the files took counts among them."""
        begun = self._begun
        deadline = begun + self.settings.seconds
        by, word = None, "unsat"
        for problem in self.problems:
            case = Case.of(problem)
            self._cascade.decide_together([case], deadline)
            left = deadline - time.monotonic()
            if left > 0:
                self._cascade.decide_alone(case, left)
            by = case.by or by
            if case.verdict is Verdict.FALSIFIED:
                assert case.witness is not None
                with torch.no_grad():
                    outputs = self._network.double()(case.witness)
                return Answer("sat", case.witness, outputs, by, time.monotonic() - begun)
            if case.verdict is Verdict.UNKNOWN:
                word = "timeout" if time.monotonic() >= deadline else "unknown"
        return Answer(word, None, None, by if word == "unsat" else None, time.monotonic() - begun)
