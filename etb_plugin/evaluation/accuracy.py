"""Evaluation: one implementation for every method, so that a difference in a table is one between networks."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from etb_plugin.attacks import CapturedPgd, Pgd, fgsm, get_attack, pgd
from etb_plugin.bounds import Box, prepare
from etb_plugin.data import Split, pixels
from etb_plugin.errors import ConfigError, SoundnessError, tell
from etb_plugin.evaluation.certifiers import Certifier, check_certifiers, positive
from etb_plugin.networks import before_softmax
from etb_plugin.precision import full_float32, repeatable
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
    `attacked_accuracy` is what of `pgd_accuracy` stands under a further attack too, by its name. Certified images are
    spared that attack, and PGD's restarts but the first: they would find nothing there.
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


@torch.inference_mode(False)
@repeatable()
@full_float32()
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
    SoundnessError, naming bound and image, where an image is both certified and attacked. PGD's restarts but the first,
    and a further attack, come last, on what stands and no bound certifies, all of it at once. `watch` is told images
    done and in total, of theirs too. Raises ConfigError for a certifier that is not sound and UnsupportedLayer for one
    that cannot take the network. A softmax that it ends with is left out.
    """
    check_certifiers(exam.certify, in_real_arithmetic=exam.rigorous)
    network = before_softmax(network, tuple(split.images.shape[1:]))
    named = [] if exam.further is None else [exam.further]
    further = {name: _drop_in(network, name, exam.seed, split.labels.device) for name in named}
    generator = torch.Generator(split.labels.device).manual_seed(exam.seed)
    every = _every_image(network, split, classes, exam, eps, generator, batch_size, watch)
    stands, left = ~every["changed"], ~every["proved"]
    if exam.attack.restarts > 1:
        again = _pgd(network, replace(exam.attack, restarts=exam.attack.restarts - 1), exam, generator)
        stands &= ~_broken(again, Split(split.images, every["predicted"]), stands & left, eps, batch_size, watch)
    standing = every["right"] & stands
    return Evaluation(
        eps=eps,
        images=len(split),
        clean_accuracy=_share(every["right"]),
        fgsm_accuracy=_share(every["fgsm"]),
        pgd_accuracy=_share(standing),
        pgd_robustness=_share(stands),
        certified_accuracy={name: _share(every[f"certified {name}"]) for name in exam.certify},
        expected_accuracy=_share(every["expected"]),
        attacked_accuracy={
            name: _share(standing & ~_broken(attack, split, standing & left, eps, batch_size, watch))
            for name, attack in further.items()
        },
        rigorous=exam.rigorous,
    )


def _every_image(
    network: nn.Module,
    split: Split,
    classes: int,
    exam: Exam,
    eps: float,
    generator: torch.Generator,
    batch_size: int,
    watch: Callable[[int, int], None],
) -> dict[str, Tensor]:
    """Return what every image is put to, [images] each: predictions, which are right, stand under FGSM, are changed by
    PGD's first restart, are certified by each certifier and by any, and have positive expected margins."""
    shape = tuple(split.images.shape[1:])
    certifiers = {name: Certifier(name, network, shape, in_real_arithmetic=exam.rigorous) for name in exam.certify}
    expected = prepare("expected", network, shape)
    attack = _pgd(network, replace(exam.attack, restarts=1), exam, generator)
    found = defaultdict[str, list[Tensor]](list)
    done = 0
    for images, labels in split.batches(batch_size):
        box = Box.around(images, eps)
        with torch.no_grad():
            predicted = network(images).argmax(1)
        right = predicted == labels
        with torch.no_grad():
            fgsm_right = right & (network(fgsm(network, box, images, labels)).argmax(1) == labels)
        changed = attack(box, predicted)
        proved = torch.zeros_like(right)
        for name, certifier in certifiers.items():
            certified = certifier.certified(images, eps, labels, right, classes)
            wrong = (certified & (changed | ~fgsm_right)).nonzero()
            if len(wrong):
                raise SoundnessError(
                    f"bound {name!r} certifies test image {done + int(wrong[0])} at eps {eps:g}, and an attack breaks "
                    f"it: this is a bug in the code; please report it"
                )
            proved |= certified
            found[f"certified {name}"].append(certified)
        seen = {"predicted": predicted, "right": right, "fgsm": fgsm_right, "changed": changed, "proved": proved}
        seen["expected"] = positive(expected, box, labels, right, classes)
        for key, value in seen.items():
            found[key].append(value)
        done += len(labels)
        watch(done, len(split))
    return {key: torch.cat(parts) for key, parts in found.items()}


def _share(verdicts: Tensor) -> float:
    return int(verdicts.sum()) / len(verdicts)


_Attack = Callable[[Box, Tensor], Tensor]
"""Boxes [batch, *input] and what is predicted there [batch] -> whether it changes, [batch]."""


def _broken(
    attack: _Attack, split: Split, which: Tensor, eps: float, batch_size: int, watch: Callable[[int, int], None]
) -> Tensor:
    """Return which images of `split` an attack breaks, of those that it is put to (`which`), both [images]."""
    broken, places = torch.zeros_like(which), which.nonzero()[:, 0]
    done = 0
    for some in places.split(batch_size) if len(places) else ():
        broken[some] = attack(Box.around(pixels(split.images[some]), eps), split.labels[some])
        done += len(some)
        watch(done, len(places))
    return broken


def _pgd(network: nn.Module, settings: Pgd, exam: Exam, generator: torch.Generator) -> _Attack:
    """Return PGD: replayed as a CUDA graph where there is a GPU."""
    if exam.capture and generator.device.type == "cuda":
        captured = CapturedPgd(network, settings, generator, CudaGraphs(generator), tell)
        return lambda box, labels: captured(box, labels)[1]
    return lambda box, labels: pgd(network, box, labels, settings, generator)[1]


def _drop_in(network: nn.Module, name: str, seed: int, device: torch.device) -> _Attack:
    """Return a registered attack, with random numbers of its own: what it breaks is what the points say that it finds,
    not what it says of them. It raises ConfigError where they are no points of the box."""
    attack, generator, slack = get_attack(name), torch.Generator(device).manual_seed(seed), 1e-6  # of rounded radii

    def broken(box: Box, labels: Tensor) -> Tensor:
        points, _ = attack(network, box, labels, generator)
        if points.shape != box.lower.shape or bool(((points < box.lower - slack) | (points > box.upper + slack)).any()):
            raise ConfigError(f"attack {name!r} gives points outside of the box: that is a bug in it")
        with torch.no_grad():
            return network(points.clamp(box.lower, box.upper)).argmax(1) != labels

    return broken
