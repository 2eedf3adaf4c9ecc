"""A cascade of networks, verified as one (the cascades of Wong et al. 2018).

Its answer at an image x is that of the first network which is robust at x within eps, or else the last network's. An
attacker moves x by eps before that is asked: that some network is robust at x itself is not enough. x is safe where

- some network k is robust within 2 eps of x, and it and all before it give the label at x. At any x' within eps of x,
  k is robust within eps; and if one before k is, its class there is the one that it gives at x, the label;
- or all networks give the label at x, and the last is robust within eps. The same holds at any x', the last answering.

"Robust" is the truth, not what one bound proves, so that nothing depends on a bound's slack.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from etb_plugin.bounds import Box
from etb_plugin.verification.cascade import Cascade, Case, Settings
from etb_plugin.verification.problem import Verdict, robustness


class Turns:
    """The networks of one cascade ready to be verified. Raises like Cascade."""

    def __init__(
        self, networks: Sequence[nn.Module], input_shape: tuple[int, ...], classes: int, settings: Settings
    ) -> None:
        self._networks = [Cascade(network, input_shape, settings) for network in networks]
        self._classes = classes

    def decide(self, image: Tensor, label: int, eps: float) -> tuple[int | None, Case]:
        """Return the answer at `image` [1, *input] (float64), None where a limit came first, and what is known of its
        box of radius `eps`: nothing where the answer is wrong already.

        The case's stage is that of the network which settled it, its seconds are those of all networks.
        """
        given = self._given(image)
        case = Case.of(robustness(Box.around(image, eps), label, self._classes))
        answer = self._answer(image, eps, case)
        if answer is None or answer == label:
            self._prove(case, image, label, eps, given)
            if case.verdict is Verdict.UNKNOWN:
                self._attack(case, image, label, eps)
        return answer, case

    def _prove(self, case: Case, image: Tensor, label: int, eps: float, given: Sequence[int]) -> None:
        for network, its_class in zip(self._networks, given, strict=True):
            if its_class != label:
                return
            radius = eps if network is self._networks[-1] else 2 * eps
            found = self._robust(network, image, label, radius, case)
            if found.verdict is Verdict.ROBUST:
                case.proved[:], case.by = True, found.by
                return

    def _attack(self, case: Case, image: Tensor, label: int, eps: float) -> None:
        """Look for a point that is answered wrongly, among those where one network is wrong."""
        for network in self._networks:
            found = self._robust(network, image, label, eps, case)
            if found.witness is not None and self._answer(found.witness, eps, case) not in (None, label):
                case.witness, case.by = found.witness, found.by
                return

    def _answer(self, image: Tensor, eps: float, case: Case) -> int | None:
        """Return the cascade's class at `image`, or None where a limit came first."""
        given = self._given(image)
        for place, (network, its_class) in enumerate(zip(self._networks[:-1], given[:-1], strict=True)):
            if set(given[place:]) == {its_class}:
                return its_class
            verdict = self._robust(network, image, its_class, eps, case).verdict
            if verdict is not Verdict.FALSIFIED:
                return its_class if verdict is Verdict.ROBUST else None
        return given[-1]

    def _robust(self, network: Cascade, image: Tensor, label: int, radius: float, case: Case) -> Case:
        """Decide whether one network gives `label` within `radius` of `image`, and add to `case` what that took."""
        found = network.decide(robustness(Box.around(image, radius), label, self._classes))
        case.failed |= found.failed
        for stage, seconds in found.seconds.items():
            case.seconds[stage] = case.seconds.get(stage, 0.0) + seconds
        return found

    def _given(self, image: Tensor) -> list[int]:
        with torch.no_grad():
            return [int(network.network(image).argmax()) for network in self._networks]
