"""What an installation has to pass: each check says what it saw, or what is wrong."""

import importlib.util
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from etb_plugin.bounds import Box, bound, margin_spec
from etb_plugin.data import Dataset, Split
from etb_plugin.errors import EtbError, Stopped
from etb_plugin.graph.rounding import rigorous
from etb_plugin.networks import build
from etb_plugin.objectives import get_method
from etb_plugin.selftest.fuzz import OPTIONS, Referee, told
from etb_plugin.selftest.networks import deceiving, drawn
from etb_plugin.training import Progress, Settings, train

_REFEREES = {
    "auto_LiRPA": ("ibp", "crown-ibp", "crown"),
    "convex_adversarial": ("dual",),
}
_KNOWN = {
    "ibp": (-6.995780013405504, -2.3008824829205308),
    "crown-ibp": (-5.151326553590189, -1.477140408491331),
    "crown": (-5.092654934321823, -1.477140408491331),
    "dual": (-5.094783181769743, -1.477601897183287),
    "expected": (-4.778528710757926, -1.4721347967722995),
}
"""Lower ends of f_0 - f_1 and f_0 - f_2 of `_fixed_network` on the box of radius 0.05 around `_fixed_image`: the sound
ones as auto_LiRPA 0.3 and convex_adversarial give them too."""


class Fault(Exception):
    """What is wrong, in a line."""


@dataclass(frozen=True)
class Checked:
    """A check, what it saw, whether it passed (None: it could not be made here), and its seconds."""

    name: str
    saw: str
    passed: bool | None
    seconds: float


def examine(minutes: float, device: str) -> Iterator[Checked]:
    """Yield what each check saw; the fuzz takes what is left of so many minutes, and a few networks at least."""
    begun = time.monotonic()
    named: dict[str, Callable[[], str | None]] = {
        "known bounds": lambda: known_bounds(device),
        **{f"beside {name}": partial(beside, name, device) for name in _REFEREES},
        "proofs and rounding": rounding,
        "resumed to the same bits": lambda: resumed(device),
        "fuzz": lambda: fuzz(begun + 60 * minutes, device),
    }
    for name, check in named.items():
        started = time.monotonic()
        passed: bool | None
        try:
            saw = check()
            passed, saw = (None, "not installed") if saw is None else (True, saw)
        except Fault as found:
            passed, saw = False, str(found)
        except Exception as error:  # whatever it is, the others are told too
            passed, saw = False, f"{type(error).__name__}: {error}".partition("\n")[0]
        yield Checked(name, saw, passed, time.monotonic() - started)


def known_bounds(device: str) -> str:
    """Hold the bounds of a network without chance against figures that were written down."""
    network, box = _fixed_network().to(device), Box.around(_fixed_image().to(device), 0.05)
    spec = margin_spec(torch.tensor([0], device=device), 3, torch.float64)
    off = 0.0
    for name, known in _KNOWN.items():
        got = bound(name, network, box, spec).lower[0].cpu()
        off = max(off, float((got - torch.tensor(known, dtype=torch.float64)).abs().max()))
        if not off < 1e-9:
            raise Fault(f"{name} gives {got.tolist()}, which is {list(known)}")
    return f"{len(_KNOWN)} bounds, at most {off:.1e} off"


@torch.no_grad()
def beside(name: str, device: str) -> str | None:
    """Hold ours against a toolkit's own bounds; None where it is not installed."""
    if importlib.util.find_spec(name) is None:
        return None
    off, count = 0.0, 0
    for model in ("mlp-20x3", "tiny"):
        network = build(model, (1, 8, 8), 10, seed=0).double().eval().to(device)
        images = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(device)
        box, spec = Box.around(images, 0.02), margin_spec(torch.tensor([3, 7], device=device), 10, torch.float64)
        for which in _REFEREES[name]:
            ours, theirs = bound(which, network, box, spec), bound(which, network, box, spec, by=name)
            off = max(off, float((ours.lower - theirs.lower).abs().max()))
            count += 1
            if not off < 1e-6:
                raise Fault(f"{which} on {model} is {off:.3g} from {name}'s")
    return f"{count} pairs, at most {off:.1e} apart"


def rounding() -> str:
    """See that a network made to deceive by rounding is not certified rigorously."""
    network = deceiving(2.0**60, 0, 1).double()
    box = Box.around(torch.full((1, 1), 0.5, dtype=torch.float64), 0.1)
    spec = margin_spec(torch.tensor([0]), 2, torch.float64)
    for name in ("ibp", "crown-ibp", "crown", "alpha-crown"):
        with rigorous():
            if bool((bound(name, network, box, spec).lower > 0).all()):
                raise Fault(f"{name} certifies a network that rounding deceives")
    return "4 bounds, a network that deceives: not certified"


def resumed(device: str) -> str:
    """Train, stop in the middle of an epoch and go on, and compare with a run that never stopped."""
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.rand(200, 1, 8, 8, generator=generator), torch.randint(10, (200,), generator=generator)
    split = Split(images.to(device), labels.to(device))
    data, settings, method = Dataset("random", split, split, 10), Settings(0.05, 3, 20), get_method("ibp")
    whole = build("tiny", data.input_shape, 10, seed=0).to(device)
    train(whole, method, data, settings)
    with tempfile.TemporaryDirectory() as folder:

        def stop(progress: Progress) -> None:
            if progress.step >= 15:
                raise Stopped(signal.SIGTERM)

        parts = build("tiny", data.input_shape, 10, seed=0).to(device)
        try:
            train(parts, method, data, settings, folder=Path(folder), watch=stop)
        except Stopped:
            parts = build("tiny", data.input_shape, 10, seed=1).to(device)
            train(parts, method, data, settings, folder=Path(folder))
        else:
            raise Fault("a run that was to stop did not")
    weights = zip(whole.state_dict().values(), parts.state_dict().values(), strict=True)
    if not all(torch.equal(one, other) for one, other in weights):
        raise Fault("a run that stopped and went on ends with other weights than one that never stopped")
    return "stopped at step 15 or later of 30"


def fuzz(deadline: float, device: str) -> str:
    """Put every sound bound to random networks until the deadline, of `time.monotonic()`, three at least."""
    seed = pairs = 0
    while seed < 3 or time.monotonic() < deadline:
        case = drawn(seed)
        referee = Referee(case)
        for name, options in OPTIONS.items():
            try:
                wrong = referee.fault(name, options, device)
            except EtbError:
                continue
            pairs += 1
            if wrong is not None:
                raise Fault(told(case, name, options))
        seed += 1
    return f"{pairs:,} pairs of {seed:,} networks and bounds, none outside"


def _fixed_network() -> nn.Module:
    """Return a network whose weights are sines, in float64: nothing in it is drawn."""
    network = nn.Sequential(
        nn.Conv2d(1, 2, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)
    ).double()
    with torch.no_grad():
        for k, parameter in enumerate(network.parameters()):
            parameter.copy_(_sines(parameter.shape, 1.7 + k))
    return network.requires_grad_(False)


def _fixed_image() -> Tensor:
    return 0.5 + 0.4 * _sines(torch.Size((1, 1, 6, 6)), 0.9)


def _sines(shape: torch.Size, step: float) -> Tensor:
    return torch.sin(step * torch.arange(shape.numel(), dtype=torch.float64) + step).view(shape)
