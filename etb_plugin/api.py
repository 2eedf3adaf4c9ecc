"""The package from Python: train, evaluate and verify any network on any images, or compare methods, in a call each.

For a loop of one's own there is `objective`. What these return shows itself in a notebook, goes to pandas and is saved
(`shown`); bars of progress are seen on a terminal and in a notebook, and `progress=False` does without.
"""

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from etb_plugin import evaluation, training
from etb_plugin.attacks import Pgd
from etb_plugin.bounds import Box
from etb_plugin.comparison import Comparison
from etb_plugin.data import Dataset, Split, beyond, load, pixels, register_own_data
from etb_plugin.errors import ConfigError, DataError
from etb_plugin.evaluation import Evaluation, Exam
from etb_plugin.experiment import read_keywords
from etb_plugin.files import claimed
from etb_plugin.networks import before_softmax, classes_of, evaluating, register_own
from etb_plugin.objectives import single_method
from etb_plugin.report.compared import Compared
from etb_plugin.report.live import Live
from etb_plugin.report.page import write_report
from etb_plugin.report.running import RunningPage
from etb_plugin.report.stoppable import StoppableLive
from etb_plugin.shown import Shown
from etb_plugin.training import Training, check_radius
from etb_plugin.verification import RIGOROUS_STAGES, STAGES, Cascade, Settings, Verdict, provers, robustness

__all__ = ["Compared", "Data", "Verified", "compare", "evaluate", "train", "verify"]

Array = Tensor | np.ndarray
Data = str | Dataset | tuple[Array, Array] | Iterable[tuple[Array, Array]]
"""A data set by name or by file, one that is loaded, a pair (images [n, *input], uint8 or float32 in [0, 1]; integer
labels [n]) of tensors or of numpy's arrays, or batches of such pairs, which a DataLoader is: they are read once and
kept on the network's device."""


@torch.inference_mode(False)
def train(
    network: nn.Module,
    data: Data,
    *,
    method: str,
    eps: float,
    epochs: int,
    batch_size: int = 100,
    learning_rate: float | None = None,
    seed: int = 0,
    folder: str | Path | None = None,
    progress: bool = True,
    **changes: Any,
) -> Training:
    """Train `network`, [batch, *input] to logits [batch, classes], in place by a method's recipe; it ends in eval mode.

    `eps` is the radius in pixel units, `changes` are those of `etb methods NAME`. With a `folder` every epoch leaves
    its weights and its state there, and the same call goes on from them to the same bits; a call that asks for
    anything else is refused. Of a data set the training images are used, augmented as it asks for. Raises ConfigError,
    DataError or UnsupportedLayer, which name what is wrong.

    >>> train(network, (images, labels), method="mtl-expected", eps=0.1, epochs=20)
    """
    chosen = single_method(method, changes)
    check_radius(eps)
    if epochs < 1 or batch_size < 1:
        raise ConfigError(f"epochs and batch_size are at least 1; got {epochs} and {batch_size}")
    given = _dataset(network, data)
    settings = training.Settings(eps, epochs, batch_size, learning_rate, seed)
    if folder is None:
        with Live(_console(progress)) as live:
            return training.train(network, chosen, given, settings, watch=partial(live.training, method))
    described = {"method": method, "changes": changes, **asdict(settings), "data": given.digest()}
    with claimed(Path(folder), described), _live(progress) as live:
        watch = partial(live.training, method)
        return training.train(network, chosen, given, settings, folder=Path(folder), watch=watch)


@torch.inference_mode(False)
def evaluate(
    network: nn.Module,
    data: Data,
    *,
    eps: float,
    certify: str | Sequence[str] = ("ibp", "crown-ibp"),
    pgd_steps: int = 40,
    pgd_restarts: int = 1,
    attack: str | None = None,
    rigorous: bool = False,
    seed: int = 0,
    progress: bool = True,
) -> Evaluation:
    """Return clean, attacked and certified accuracy of `network` at `eps` (pixel units), in eval mode.

    Of a data set the test images are used. What PGD leaves standing and no bound certifies is put to a further
    `attack`, by its name, such as autoattack. With `rigorous` certificates hold in real arithmetic. Raises ConfigError
    for a certifier that is not sound, UnsupportedLayer for one that cannot take the network, and SoundnessError where a
    certificate and an attack contradict each other.

    >>> evaluate(network, (images, labels), eps=0.1, certify=["crown"]).certified_accuracy["crown"]
    """
    check_radius(eps)
    given = _dataset(network, data)
    certifiers = tuple(certify.split(",") if isinstance(certify, str) else certify)
    exam = Exam((eps,), Pgd(pgd_steps, pgd_restarts), certifiers, seed, attack, rigorous)
    with evaluating(network), Live(_console(progress)) as live:
        watch = partial(live.evaluating, "evaluate", eps)
        return evaluation.evaluate(network, given.test, given.classes, exam, eps, watch=watch)


@torch.inference_mode(False)
def compare(experiment: str | Path | None = None, /, *, progress: bool = True, **keys: Any) -> Compared:
    """Train, attack and certify several methods alike, as `etb compare` does: by a YAML file, keywords, or both.

    Keywords are the flags of `etb compare` (`methods=["ibp", "expected"]`, `eps_test=[0.1, 0.2]`, `out="runs/mine"`) or
    a file's whole sections, and win over the file. A `model` or `dataset` may be path/file.py:NAME, which is run then.
    The same call again goes on in its folder, to the same bits, from wherever it was interrupted. Raises ConfigError,
    DataError or UnsupportedLayer before any work for what cannot be meant; where cells fail the others are finished
    first.

    >>> compare(dataset="digits", methods=["ibp", "expected"], epochs=5, out="runs/mine").to_pandas()
    """
    register_own_data(str(keys.get("dataset", "")))
    models = keys.get("model")
    for name in models.split(",") if isinstance(models, str) else models or ():
        register_own(name)
    plain = {key: str(value) if isinstance(value, Path) else value for key, value in keys.items()}
    comparison = Comparison(read_keywords(None if experiment is None else Path(experiment), plain))
    with RunningPage(comparison) as page, _live(progress, page.due) as live:
        results = comparison.run(live)
    resolved = comparison.experiment
    write_report(resolved.folder, comparison.title, resolved.report.spread)
    return Compared(comparison.title, resolved.folder, tuple(results), resolved.report.spread)


@dataclass(frozen=True)
class Verified(Shown):
    """What is known of an image: the verdict, the stage that gave it, a counterexample [*input] in float64 where it is
    falsified, the seconds of each stage, and what was left out and why."""

    verdict: Verdict
    by: str | None
    counterexample: Tensor | None
    seconds: dict[str, float]
    left_out: dict[str, str] = field(default_factory=dict)

    def rows(self) -> list[dict[str, Any]]:
        """Return one row; the counterexample, nested lists of its numbers."""
        witness = None if self.counterexample is None else self.counterexample.tolist()
        return [asdict(self) | {"counterexample": witness}]


@overload
def verify(
    network: nn.Module,
    image: Tensor,
    label: int,
    *,
    eps: float,
    stages: Sequence[str] | None = None,
    seconds: float = 60.0,
    rigorous: bool = False,
    seed: int = 0,
) -> Verified: ...
@overload
def verify(
    network: nn.Module,
    image: Tensor,
    label: Tensor,
    *,
    eps: float,
    stages: Sequence[str] | None = None,
    seconds: float = 60.0,
    rigorous: bool = False,
    seed: int = 0,
) -> list[Verified]: ...
@torch.inference_mode(False)
def verify(
    network: nn.Module,
    image: Tensor,
    label: int | Tensor,
    *,
    eps: float,
    stages: Sequence[str] | None = None,
    seconds: float = 60.0,
    rigorous: bool = False,
    seed: int = 0,
) -> Verified | list[Verified]:
    """Decide whether `label` has the largest logit for every point of [0, 1] within `eps` of `image`, [*input].

    Many at once, images [n, *input] and labels [n], share the preparation and all stages up to the complete ones. All
    is computed in float64, on a copy in eval mode. `stages` are those of `etb verify`, the whole cascade without them;
    its complete stages have `seconds` for each image. Raises ConfigError, DataError or UnsupportedLayer, which name
    what is wrong.

    >>> verify(network, images[0], 7, eps=0.1).verdict
    <Verdict.ROBUST: 'robust'>
    >>> [one.by for one in verify(network, images[:2], labels[:2], eps=0.1)]
    ['ibp', 'crown']
    """
    check_radius(eps)
    labels = torch.as_tensor(label)
    many = labels.ndim > 0
    split, classes = _split(network, *((image, labels) if many else (image[None], labels[None])))
    shape = tuple(split.images.shape[1:])
    with evaluating(network):
        logits = before_softmax(network, shape)
    whole = RIGOROUS_STAGES if rigorous else STAGES
    named = whole if stages is None else tuple(stages)
    settings = Settings(named, seconds=seconds, seed=seed, rigorous=rigorous)
    settings, left_out = provers([logits], shape, settings, drop=stages is None)
    cascade = Cascade(logits, shape, settings)
    centers = pixels(split.images).double().split(1)
    targets = split.labels.tolist()
    problems = [robustness(Box.around(x, eps), y, classes) for x, y in zip(centers, targets, strict=True)]
    found = [
        Verified(
            case.verdict,
            case.by,
            None if case.witness is None else case.witness[0],
            dict(case.seconds),
            left_out | case.failed,
        )
        for case in cascade.decide_all(problems)
    ]
    return found if many else found[0]


def _console(progress: bool) -> Console:
    return Console(stderr=True, quiet=not progress)


def _live(progress: bool, also: Callable[[], None] = lambda: None) -> Live:
    """Return the view of work that is kept on disk: a signal stops it between two batches, where signals can be had."""
    signals = threading.current_thread() is threading.main_thread()
    return (StoppableLive if signals else Live)(_console(progress), also)


def _dataset(network: nn.Module, data: Data) -> Dataset:
    """Return what was given as a data set on the network's device, which both its splits are where it has but one."""
    other = next((p.dtype for p in network.parameters() if p.dtype != torch.float32), None)
    if other is not None:
        raise ConfigError(f"the network is in {other}, and images are float32 here: network.float()")
    if isinstance(data, str):
        data = load(data, device=_device(network))
    if isinstance(data, Dataset):
        if (held := data.test.images.device) != (device := _device(network)):
            raise ConfigError(f"{data.name} is on {held}, the network on {device}: load(..., device=network's)")
        classes = classes_of(network, data.input_shape)
        if classes != data.classes:
            raise ConfigError(f"{data.name} has {data.classes} classes; the network gives {classes} logits")
        return data
    if isinstance(data, tuple):
        images, labels = data
    else:
        pairs = list(data)
        if not pairs:
            raise DataError("there are no batches in the data")
        if not all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in pairs):
            raise DataError(f"a batch is a pair (images, labels); got {type(pairs[0]).__name__}")
        images, labels = (torch.cat([torch.as_tensor(pair[place]) for pair in pairs]) for place in (0, 1))
    split, classes = _split(network, images, labels)
    return Dataset("given", split, split, classes)


def _split(network: nn.Module, images: Any, labels: Any) -> tuple[Split, int]:
    """Return images and labels on the network's device, and its number of classes. Raises DataError for what cannot be
    meant."""
    images, labels = torch.as_tensor(images), torch.as_tensor(labels)
    if images.dtype not in (torch.uint8, torch.float32):
        raise DataError(f"images are uint8, or float32 in [0, 1]; got {images.dtype}")
    if images.dim() < 2 or labels.shape != images.shape[:1] or not len(labels):
        raise DataError(
            f"images are [n, *input] and labels [n], n at least 1; got {list(images.shape)} and {list(labels.shape)}"
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise DataError(f"labels are integers; got {labels.dtype}")
    classes = classes_of(network, tuple(images.shape[1:]))
    floats = images if images.is_floating_point() else images[:0]  # any byte will do
    if (wrong := beyond(floats, labels, classes)) is not None:
        raise DataError(wrong)
    device = _device(network)
    images, labels = (x.clone() if x.is_inference() else x for x in (images, labels))  # whose gradients are not wanted
    return Split(images.detach().to(device), labels.to(device, torch.int64)), classes


def _device(network: nn.Module) -> torch.device:
    return next((p.device for p in network.parameters()), torch.device("cpu"))
