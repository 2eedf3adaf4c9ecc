"""Each image's own radius: the largest eps that is proved, and the smallest at which it breaks, by bisection."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from etb_plugin.bounds import Box
from etb_plugin.data import pixels
from etb_plugin.errors import ConfigError
from etb_plugin.files import read_json, write_json
from etb_plugin.networks import NetworkCascade
from etb_plugin.verification.cascade import Cascade, Case
from etb_plugin.verification.problem import Verdict, robustness
from etb_plugin.verification.run import TOGETHER, Verification

RADIUS_STAGES = ("ibp", "pgd", "crown-ibp", "crown", "alpha-crown")
"""The cascade of every step, where none is asked for: the complete verifiers would take their limit at most steps."""


@dataclass(frozen=True)
class Radius:
    """One image: it is proved robust at `certified` (0 where it is misclassified) and broken at `attacked` (None where
    nothing broke it at the largest eps tried). Pixel units; between the two nothing is known."""

    image: int
    label: int
    certified: float
    attacked: float | None

    def __post_init__(self) -> None:
        assert self.attacked is None or self.certified <= self.attacked


@dataclass(frozen=True)
class Radii:
    """The radii of one network's images."""

    method: str
    radii: list[Radius]

    @property
    def certified(self) -> Tensor:
        """Every image's certified radius, [images]."""
        return torch.tensor([radius.certified for radius in self.radii])

    @property
    def attacked(self) -> Tensor:
        """Every image's attacked radius, inf where there is none, [images]."""
        return torch.tensor([torch.inf if radius.attacked is None else radius.attacked for radius in self.radii])


class Watch(Protocol):
    """Who is told how the search goes."""

    def bisecting(self, name: str, done: int, total: int) -> None:
        """Called whenever images are done."""


def minimum_radii(verification: Verification, largest: float, precision: float, watch: Watch) -> list[Radii]:
    """Bisect between 0 and `largest` to `precision` (pixel units), and return each network's radii.

    They are written to the request's `out`, where there is one, image by image; the same call goes on from there.
    Raises ConfigError where the two numbers make no sense.
    """
    if not 0 < precision < largest <= 1:
        raise ConfigError(f"--largest {largest:g} and --precision {precision:g}: write 0 < precision < largest <= 1")
    if any(isinstance(trained.network, NetworkCascade) for trained in verification.trained):
        raise ConfigError("--minimum-radius takes single networks, no cascade: its answers depend on the radius")
    search = {"largest": largest, "precision": precision}
    described = verification.described | {"minimum_radius": search}
    results: list[Radii] = []
    with verification.claim(described):
        for trained in verification.trained:
            name = trained.about["method"]
            folder = verification.folder_of(trained, "-radii")
            results.append(Radii(name, _radii(verification, trained.network, name, folder, search, watch)))
            verification.write_results(described, radii=[asdict(result) for result in results])
    return results


def _radii(
    verification: Verification,
    network: nn.Module,
    name: str,
    folder: Path | None,
    search: Mapping[str, float],
    watch: Watch,
) -> list[Radius]:
    first, stop = verification.images
    rows = [read_json(file) for file in sorted(folder.glob("*.json"))] if folder is not None else []
    kept = {row["image"]: Radius(**row) for row in rows}
    todo = torch.tensor([image for image in range(first, stop) if image not in kept], dtype=torch.long)
    cascade = Cascade(network, verification.data.input_shape, verification.settings)
    watch.bisecting(name, len(kept), stop - first)
    for some in todo.split(TOGETHER):
        split = verification.data.test
        x, labels = pixels(split.images[some]).double(), split.labels[some].tolist()
        searches = [_Bisection(x[n : n + 1], label, verification.data.classes) for n, label in enumerate(labels)]
        with torch.no_grad():
            right = (cascade.network(x).argmax(1) == split.labels[some]).tolist()
        verification.failed |= _bisect(
            cascade, [s for s, is_right in zip(searches, right, strict=True) if is_right], **search
        )
        for image, label, one, is_right in zip(some.tolist(), labels, searches, right, strict=True):
            attacked = None if one.broken == torch.inf else one.broken
            kept[image] = Radius(image, label, one.proved, attacked) if is_right else Radius(image, label, 0.0, 0.0)
            if folder is not None:
                write_json(folder / f"{image:05d}.json", asdict(kept[image]))
        watch.bisecting(name, len(kept), stop - first)
    return [kept[image] for image in range(first, stop)]


class _Bisection:
    """What is known of one image: proved up to `proved`, open at `opens` (least and greatest), broken at `broken`."""

    def __init__(self, image: Tensor, label: int, classes: int) -> None:
        self.image, self.label, self.classes = image, label, classes
        self.proved, self.broken = 0.0, torch.inf
        self.opens: tuple[float, float] | None = None

    def next(self, largest: float, precision: float) -> list[float]:
        """Return the radii to try: one while nothing is open, then one on each side of what is."""
        if self.opens is None and self.broken == torch.inf:
            return [largest] if self.proved < largest else []  # first of all: most networks break there
        marks = [self.proved, *(self.opens or ()), min(self.broken, largest)]
        spans = zip(marks[::2], marks[1::2], strict=True)
        return [(low + high) / 2 for low, high in spans if high - low > precision]

    def learn(self, eps: float, case: Case) -> None:
        if case.verdict is Verdict.ROBUST:
            self.proved = max(self.proved, eps)
        elif case.witness is not None:
            self.broken = min(self.broken, float((case.witness - self.image).abs().max()))
        else:
            low, high = self.opens or (eps, eps)
            self.opens = min(low, eps), max(high, eps)
        if self.opens is not None and self.opens[0] >= self.broken:  # a nearer counterexample was met since
            self.opens = None


def _bisect(cascade: Cascade, searches: Sequence[_Bisection], largest: float, precision: float) -> dict[str, str]:
    """Bisect all images together until nothing is left to try; return what stopped stages that failed."""
    failed: dict[str, str] = {}
    while True:
        tries = [(search, eps) for search in searches for eps in search.next(largest, precision)]
        if not tries:
            return failed
        cases = [Case.of(robustness(Box.around(s.image, eps), s.label, s.classes)) for s, eps in tries]
        cascade.decide_together(cases)
        for (search, eps), case in zip(tries, cases, strict=True):
            cascade.decide_alone(case)
            search.learn(eps, case)
            failed |= case.failed
