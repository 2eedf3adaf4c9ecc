"""Networks as exporters write them, with properties whose answers are known from a fine grid: what `etb verify` makes of
them.

    python -m tests.verification.corpus FOLDER [--workers N]

writes networks, properties, `instances.csv` and `known.json` to FOLDER, runs `etb verify --instances` there, and prints
how many were decided, refused by name, wrong, over the limit and crashed. What was run before is kept.

Two inputs of each network move, the others are held. On a grid of them onnxruntime finds the greatest value of an output
(or of the difference of two). That a value just below is reached is true by one of the grid's points; that one above is
not follows from how little neighbours of the grid differ, well within the gap that is left. Networks like those of
collision avoidance (5 inputs that all move, 6 x 50 ReLUs) are asked in boxes of three widths, by two million samples.
"""

import argparse
import json
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from tests.networks.test_onnx import CORPUS, REFUSED, Exported, written

SECONDS = 30
GRID = 81
"""Points along each of the two inputs that move."""
STARTING = 12.0
"""Seconds beyond the limit that a process may take to start and end on a busy machine."""


class Steps(nn.Module):
    """A module of a function."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Block(nn.Module):
    """A residual block of images, with batch norm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.one, self.two = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.two(torch.relu(self.norm(self.one(x)))) + x)


class Shared(nn.Module):
    """One layer, and one bias, used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.bias = nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first(x) + self.bias)
        h = torch.relu(self.again(h))
        return self.last(torch.relu(self.again(h) + self.bias))


class Joined(nn.Module):
    """Branches that are cut, put side by side, multiplied by constants and compared."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.last = nn.Linear(3, 6), nn.Linear(3, 6), nn.Linear(12, 3)
        self.register_buffer("factor", torch.rand(12))

    def forward(self, x: Tensor) -> Tensor:
        left, right = torch.relu(self.left(x[:, :3])), torch.tanh(self.right(x[:, 3:]))
        h = torch.cat([left, torch.maximum(left, right)], 1) * self.factor - 0.1
        return self.last(h / (1 + self.factor))


class Attention(nn.Module):
    """One head over the six inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.last = nn.Linear(1, 4), nn.Linear(1, 4), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.unsqueeze(2)
        weights = (self.query(x) @ self.key(x).transpose(1, 2)).softmax(2)
        return self.last((weights @ x).flatten(1))


def _mlp(activation: nn.Module, width: int = 16, end: nn.Module | None = None) -> nn.Sequential:
    layers = [nn.Linear(6, width), activation, nn.Linear(width, width), activation, nn.Linear(width, 3)]
    return nn.Sequential(*layers, *([end] if end is not None else []))


def _image(*layers: nn.Module, channels: int, side: int) -> nn.Sequential:
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * side * side, 3))


ACTIVATIONS = {
    "relu": nn.ReLU(), "leaky": nn.LeakyReLU(0.1), "prelu": nn.PReLU(), "hardtanh": nn.Hardtanh(), "relu6": nn.ReLU6(),
    "elu": nn.ELU(), "celu": nn.CELU(0.5), "selu": nn.SELU(), "gelu": nn.GELU(), "gelu-tanh": nn.GELU("tanh"),
    "silu": nn.SiLU(), "mish": nn.Mish(), "hardswish": nn.Hardswish(), "hardsigmoid": nn.Hardsigmoid(),
    "sigmoid": nn.Sigmoid(), "tanh": nn.Tanh(), "softplus": nn.Softplus(), "logsigmoid": nn.LogSigmoid(),
    "abs": Steps(torch.abs), "clamp": Steps(lambda x: x.clamp(-0.5, 0.7)), "softsign": nn.Softsign(),
    "tanhshrink": nn.Tanhshrink(), "softshrink": nn.Softshrink(0.2), "threshold": nn.Threshold(0.1, 0.1),
    "relu-squared": Steps(lambda x: torch.relu(x) ** 2), "sin": Steps(torch.sin), "exp": Steps(torch.exp),
}  # fmt: skip


def torch_networks() -> Iterator[tuple[str, nn.Module, tuple[int, ...]]]:
    """Yield networks as users write them: name, network, shape of one input."""
    for name, activation in ACTIVATIONS.items():
        yield f"mlp-{name}", _mlp(activation), (6,)
    yield "mlp-softmax", _mlp(nn.ReLU(), end=nn.Softmax(1)), (6,)
    yield "mlp-logsoftmax", _mlp(nn.ReLU(), end=nn.LogSoftmax(1)), (6,)
    yield "mlp-wide", _mlp(nn.ReLU(), 128), (6,)
    yield (
        "mlp-dropout-norm",
        nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 3)),
        (6,),
    )
    yield "layer-norm", nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 3)), (6,)
    yield "shared", Shared(), (6,)
    yield "joined", Joined(), (6,)
    yield "attention", Attention(), (6,)
    yield "exported", Exported(), (1, 8, 8)
    image = (1, 8, 8)
    yield "conv", _image(nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), channels=4, side=4), image
    yield (
        "conv-norm-max",
        _image(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), channels=4, side=4),
        image,
    )
    yield (
        "conv-groups",
        _image(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=2), nn.ReLU(), channels=4, side=4),
        image,
    )
    yield "conv-dilated", _image(nn.Conv2d(1, 4, 3, dilation=2), nn.ReLU(), channels=4, side=4), image
    yield "conv-average", _image(nn.Conv2d(1, 4, 3), nn.GELU(), nn.AvgPool2d(3, 1, 1), channels=4, side=6), image
    yield "conv-up", _image(nn.Conv2d(1, 2, 3, 2, 1), nn.ReLU(), nn.Upsample(scale_factor=2), channels=2, side=8), image
    yield (
        "conv-bilinear",
        _image(nn.Conv2d(1, 2, 3, 2, 1), nn.ReLU(), nn.Upsample(scale_factor=2, mode="bilinear"), channels=2, side=8),
        image,
    )
    yield (
        "conv-transpose",
        _image(nn.Conv2d(1, 2, 3, 2, 1), nn.ReLU(), nn.ConvTranspose2d(2, 2, 2, 2), nn.ReLU(), channels=2, side=8),
        image,
    )
    yield "conv-instance-norm", _image(nn.Conv2d(1, 4, 3), nn.InstanceNorm2d(4), nn.ReLU(), channels=4, side=6), image
    yield "conv-adaptive", _image(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), channels=4, side=2), image
    yield (
        "conv-reflect",
        _image(nn.Conv2d(1, 2, 3, padding=1, padding_mode="reflect"), nn.SiLU(), channels=2, side=8),
        image,
    )
    yield (
        "resnet",
        _image(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), Block(4), nn.AvgPool2d(2), Block(4), channels=4, side=4),
        image,
    )
    yield "conv-1d", nn.Sequential(nn.Conv1d(2, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3)), (2, 6)


def _export(network: nn.Module, shape: tuple[int, ...], path: Path, exporter: str) -> None:
    example = (torch.rand(1, *shape),)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if exporter == "dynamo":
            torch.onnx.export(network, example, str(path), dynamo=True, verbose=False, external_data=False)
        else:
            torch.onnx.export(network, example, str(path), dynamo=False, opset_version=int(exporter))


def networks(folder: Path) -> Iterator[Path]:
    """Write the corpus's networks and yield their files; what an exporter cannot write is not the reader's matter."""
    for name, (nodes, constants, shape, opset) in (CORPUS | REFUSED).items():
        yield written(folder / f"helper-{name.replace(' ', '-')}.onnx", nodes, constants, shape, opset)
    for exporter in ("11", "13", "20", "dynamo"):
        for name, network, shape in torch_networks():
            if exporter in ("11", "20") and not name.startswith(("conv", "exported", "joined", "resnet")):
                continue
            torch.manual_seed(0)
            path = folder / f"{'torch' if exporter == 'dynamo' else 'torchscript'}-{exporter}-{name}.onnx"
            try:
                _export(network.eval(), shape, path, exporter)
            except Exception as error:  # of torch's many kinds: an operation that this opset does not have
                print(f"not exported: {path.name}: {str(error).partition(chr(10))[0][:100]}", file=sys.stderr)
                path.unlink(missing_ok=True)
                continue
            yield path


def collision(folder: Path) -> Iterator[tuple[Path, str, str, str]]:
    """Write two networks of 5 inputs and 6 x 50 units that were trained to smooth scores; yield each with properties."""
    for seed, activation in enumerate((nn.ReLU(), nn.Tanh())):
        torch.manual_seed(seed)
        widths = (5, *[50] * 6, 5)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), activation]
        network, turned = nn.Sequential(*layers[:-1]), 2 * torch.randn(5, 5)
        optimizer = torch.optim.Adam(network.parameters(), 1e-3)
        for _ in range(1500):
            x = torch.rand(512, 5) - 0.5
            waves = torch.sin(1.5 * x @ turned.T + torch.arange(5)) + 0.5 * torch.cos(3 * x) * x.roll(-1, 1)
            optimizer.zero_grad()
            (network(x) - waves).square().mean().backward()
            optimizer.step()
        path = folder / f"collision-{type(activation).__name__.lower()}.onnx"
        _export(network.eval(), (5,), path, "13")
        for width in (0.2, 0.5, 1.0):
            center = (torch.rand(5) - 0.5).numpy() * (1 - width)
            lower, upper = center - width / 2, center + width / 2
            points = torch.from_numpy(center).float() + width * (torch.rand(2_000_000, 5) - 0.5)
            with torch.no_grad():
                most = max(float(network(some)[:, 0].max()) for some in points.split(200_000))
            for word, limit in (("unsat", most + 0.1), ("sat", most - 0.02)):
                text = _property(lower, upper, 5, f"(>= Y_0 {limit:.12f})")
                yield path, f"{width}-{word}", text, word


def _property(lower: np.ndarray, upper: np.ndarray, outputs: int, unsafe: str) -> str:
    lines = [f"(declare-const X_{i} Real)" for i in range(len(lower))]
    lines += [f"(declare-const Y_{j} Real)" for j in range(outputs)]
    for i, (low, high) in enumerate(zip(lower, upper, strict=True)):
        lines += [f"(assert (>= X_{i} {low:.17f}))", f"(assert (<= X_{i} {high:.17f}))"]
    return "\n".join([*lines, f"(assert {unsafe})", ""])


def properties(path: Path) -> Iterator[tuple[str, str, str]]:
    """Yield properties of the network at `path`, by the file itself: name, text, the true answer."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    given = session.get_inputs()[0]
    shape = [1, *given.shape[1:]]
    n, rng = int(np.prod(shape)), np.random.default_rng(0)
    center = rng.uniform(0.2, 0.8, n)
    moving = rng.choice(n, min(2, n), replace=False)
    lower, upper = center.copy(), center.copy()
    lower[moving] -= 0.5
    upper[moving] += 0.5
    axes = [np.linspace(lower[m], upper[m], GRID) for m in moving]
    points = np.tile(center, (GRID ** len(moving), 1))
    points[:, moving] = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(moving))
    values = np.concatenate(
        [session.run(None, {given.name: x.reshape(shape).astype(np.float32)})[0].reshape(1, -1) for x in points]
    )
    outputs = values.shape[1]
    asked = {"Y_0": values[:, 0]}
    if outputs > 1:
        asked["(- Y_0 Y_1)"] = values[:, 0] - values[:, 1]
    for number, (term, value) in enumerate(asked.items()):
        steps = value.reshape((GRID,) * len(moving))
        apart = max(np.abs(np.diff(steps, axis=axis)).max() for axis in range(steps.ndim))
        gap = max(0.05 * np.ptp(value), 2 * apart, 1e-3)
        answers = {"unsat": value.max() + gap, "sat": value.max() - 0.02 * np.ptp(value) - 1e-4}
        if len(asked) == 2:  # of two quantities one answer each is enough: half the time
            answers = {word: most for word, most in answers.items() if (word == "sat") == (number == 1)}
        for word, most in answers.items():
            yield f"{number}-{word}", _property(lower, upper, outputs, f"(>= {term} {most:.12f})"), word


def write(folder: Path) -> None:
    """Write the whole corpus to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    lines, known = [], {}
    asked = ((path, *each) for path in networks(folder) for each in properties(path))
    for path, name, text, answer in chain(asked, collision(folder)):
        file = path.with_name(f"{path.stem}-{name}.vnnlib")
        file.write_text(text)
        lines.append(f"{path.name},{file.name},{SECONDS}")
        known[file.name] = answer
    (folder / "known.json").write_text(json.dumps(known, indent=1))
    (folder / "instances.csv").write_text("\n".join(lines) + "\n")


def judged(folder: Path) -> dict[str, list[str]]:
    """Return what became of each property: decided, refused, wrong, over the limit, crashed, or undecided."""
    known = json.loads((folder / "known.json").read_text())
    found: dict[str, list[str]] = {}
    for record in sorted((folder / "results/instances").glob("*.json")):
        answer = json.loads(record.read_text())
        name, word = Path(answer["property_"]).name, answer["word"]
        if word == "error":
            said = answer["said"]
            kind = "crashed" if "not foreseen" in said or "Traceback" in said or "status" in said else "refused"
        elif word in ("sat", "unsat"):
            kind = "decided" if word == known[name] else "wrong"
        else:
            kind = "undecided"
        if answer["seconds"] > SECONDS + STARTING:
            kind = "over the limit"
        found.setdefault(kind, []).append(f"{name}: {word} {answer['seconds']:.1f} s {answer['said']}".strip())
    return found


def main() -> None:
    """Write, run and judge."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--workers", default="2")
    asked = parser.parse_args()
    if not (asked.folder / "known.json").exists():
        write(asked.folder)
    command = (sys.executable, "-m", "etb_plugin", "verify", "--instances", str(asked.folder / "instances.csv"))
    command += ("--out", str(asked.folder / "results"), "--workers", asked.workers)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    found = judged(asked.folder)
    for kind, names in found.items():
        if kind != "decided":
            print(f"{kind}:", *names, sep="\n  ")
    counts = Counter({kind: len(names) for kind, names in found.items()})
    print(f"{len(list(asked.folder.glob('*.onnx')))} networks, {counts.total()} properties:", dict(counts))


if __name__ == "__main__":
    main()
