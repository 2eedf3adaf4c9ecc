"""Evaluation: one implementation for every method, so that a difference in a table is one between networks."""

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from etb_plugin.attacks import CapturedPgd, Pgd, fgsm, get_attack, pgd
from etb_plugin.bounds import Box, prepare
from etb_plugin.data import Split
from etb_plugin.errors import ConfigError, SoundnessError, tell
from etb_plugin.evaluation.certifiers import Certifier, check_certifiers, positive
from etb_plugin.recording import CudaGraphs
from etb_plugin.shown import Shown, spread


@dataclass(frozen=True)
class Exam:
    """What every network of a comparison is put to: attack and certifiers at each eps, from equal random points. What
    PGD leaves standing and no bound certifies is put to a `further` attack as well, where one is named. With `rigorous`
    certificates hold in real arithmetic. With `capture` PGD's steps are CUDA graphs where there is a GPU."""

    eps_test: tuple[float, ...]
    attack: Pgd
    certify: tuple[str, ...]
    seed: int = 0
    further: str | None = None
    rigorous: bool = False
    capture: bool = True


@dataclass(frozen=True)
class Evaluation(Shown):
    """Shares of the images, in [0, 1], at one eps.

    `fgsm_accuracy` and `pgd_accuracy` count images that are right before and after the attack. `pgd_robustness`
    is the share whose prediction, right or wrong, PGD does not change (Alsubaihi et al. 2019, section 4).
    `attacked_accuracy` is what of `pgd_accuracy` stands under a further attack too, by its name: that attack is spared
    the certified images, of which it would find none.
    `certified_accuracy` holds sound bounds only, in the network's own arithmetic, or in that of real numbers with
    `rigorous`; `expected_accuracy` is the share of right images whose expected margins are all positive, and is never a
    certificate.
    """

    eps: float
    images: int
    clean_accuracy: float
    fgsm_accuracy: float
    pgd_accuracy: float
    pgd_robustness: float
    certified_accuracy: dict[str, float]
    expected_accuracy: float
    attacked_accuracy: dict[str, float] = field(default_factory=dict)
    rigorous: bool = False

    def rows(self) -> list[dict[str, Any]]:
        """Return one row, with a column for each bound's certified accuracy, and one for a further attack's."""
        return [spread(asdict(self), attacked_accuracy="attacked", certified_accuracy="certified")]


def evaluate(
    network: nn.Module,
    split: Split,
    classes: int,
    exam: Exam,
    eps: float,
    *,
    batch_size: int = 100,
    watch: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Return how `network` (in eval mode) does on all of `split` at radius `eps` (pixel units).

    Every right image is put to every certifier, those that PGD breaks too, so that an unsound bound is caught: raises
    SoundnessError, naming bound and image, where an image is both certified and attacked. A further attack comes last,
    on all that is left for it at once, since it takes many small steps. `watch` is told images done and in total, of
    the further attack's too. Raises ConfigError for a certifier that is not sound and UnsupportedLayer for one that
    cannot take the network.
    """
    check_certifiers(exam.certify, in_real_arithmetic=exam.rigorous)
    shape = tuple(split.images.shape[1:])
    certifiers = {name: Certifier(name, network, shape, in_real_arithmetic=exam.rigorous) for name in exam.certify}
    expected = prepare("expected", network, shape)
    generator = torch.Generator(split.labels.device).manual_seed(exam.seed)
    attack = _attack(network, exam, generator)
    sums = Counter[str]()
    done, left = 0, []
    for images, labels in split.batches(batch_size):
        box = Box.around(images, eps)
        with torch.no_grad():
            predicted = network(images).argmax(1)
        right = predicted == labels
        with torch.no_grad():
            fgsm_right = right & (network(fgsm(network, box, images, labels)).argmax(1) == labels)
        _, changed = attack(box, predicted)
        verdicts = {"clean": right, "fgsm": fgsm_right, "pgd": right & ~changed, "stable": ~changed}
        left.append(verdicts["pgd"].clone())
        for name, certifier in certifiers.items():
            verdicts[name] = certifier.certified(images, eps, labels, right, classes)
            wrong = (verdicts[name] & (changed | ~fgsm_right)).nonzero()
            if len(wrong):
                raise SoundnessError(
                    f"bound {name!r} certifies test image {done + int(wrong[0])} at eps {eps:g}, and an attack breaks "
                    f"it: this is a bug in the code; please report it"
                )
            left[-1] &= ~verdicts[name]
        verdicts["expected"] = positive(expected, box, labels, right, classes)
        for name, verdict in verdicts.items():
            sums[name] += int(verdict.sum())
        done += len(labels)
        watch(done, len(split))
    attacked = {}
    if exam.further is not None:
        some = torch.cat(left)
        rest = Split(split.images[some], split.labels[some])
        broken = len(rest) - _standing(network, rest, exam, eps, batch_size, watch)
        attacked[exam.further] = (sums["pgd"] - broken) / len(split)
    share = {name: count / len(split) for name, count in sums.items()}
    return Evaluation(
        eps=eps,
        images=len(split),
        clean_accuracy=share["clean"],
        fgsm_accuracy=share["fgsm"],
        pgd_accuracy=share["pgd"],
        pgd_robustness=share["stable"],
        certified_accuracy={name: share[name] for name in certifiers},
        expected_accuracy=share["expected"],
        attacked_accuracy=attacked,
        rigorous=exam.rigorous,
    )


def _standing(
    network: nn.Module, split: Split, exam: Exam, eps: float, batch_size: int, watch: Callable[[int, int], None]
) -> int:
    """Return how many images of `split` stand under the exam's further attack, by the points that it found, not by what
    it says of them. Raises ConfigError where they are no points of the box."""
    assert exam.further is not None
    attack, generator = get_attack(exam.further), torch.Generator(split.labels.device).manual_seed(exam.seed)
    standing, done = 0, 0
    for images, labels in split.batches(batch_size):
        box = Box.around(images, eps)
        points, _ = attack(network, box, labels, generator)
        slack = 1e-6  # centres and radii are rounded
        if points.shape != images.shape or bool(((points < box.lower - slack) | (points > box.upper + slack)).any()):
            raise ConfigError(f"attack {exam.further!r} gives points outside of the box: that is a bug in it")
        with torch.no_grad():
            standing += int((network(points.clamp(box.lower, box.upper)).argmax(1) == labels).sum())
        done += len(labels)
        watch(done, len(split))
    return standing


def _attack(
    network: nn.Module, exam: Exam, generator: torch.Generator
) -> Callable[[Box, Tensor], tuple[Tensor, Tensor]]:
    """Return the exam's PGD: replayed as a CUDA graph where there is a GPU."""
    if exam.capture and generator.device.type == "cuda":
        return CapturedPgd(network, exam.attack, generator, CudaGraphs(generator), tell)
    return lambda box, labels: pgd(network, box, labels, exam.attack, generator)
