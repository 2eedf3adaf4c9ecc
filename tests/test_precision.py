"""Float32 keeps its bits where a bound or an evaluation is computed, whatever torch is told for a GPU."""

import pytest
import torch

from etb_plugin import evaluation
from etb_plugin.attacks import Pgd
from etb_plugin.bounds import Box, bound, prepare
from etb_plugin.data import Split
from etb_plugin.errors import ConfigError
from etb_plugin.networks import build
from etb_plugin.objectives import Point, get_method
from etb_plugin.precision import full_float32, repeatable

NEW = hasattr(torch.backends.cudnn, "conv")  # since torch 2.9
PARTS = {"cudnn": ("conv", "rnn"), "cuda": ("matmul",), "mkldnn": ("conv", "rnn", "matmul")}
HOLDERS = [getattr(getattr(torch.backends, of), part) for of, parts in PARTS.items() for part in parts] if NEW else []


def told() -> list[str]:
    return [holder.fp32_precision for holder in HOLDERS]


class Watched(torch.nn.Linear):
    """A layer that keeps how float32 is multiplied whenever its weight is read."""

    seen: list[list[str]]

    def forward(self, x):
        self.seen.append(told())
        return super().forward(x)


@pytest.fixture
def cut():
    """All is to be cut to TF32, where the processor can."""
    before = told()
    for holder in HOLDERS:
        holder.fp32_precision = "tf32"
    yield
    for holder, value in zip(HOLDERS, before, strict=True):
        holder.fp32_precision = value


@pytest.mark.parametrize("name", ["ibp", "crown-ibp", "crown", "alpha-crown", "dual", "expected"])
def test_within_autocast_a_bound_is_what_it_is_without(name):
    network, box = build("tiny", (1, 8, 8), 10, seed=0).eval(), Box.around(torch.rand(2, 1, 8, 8), 0.01)
    alone = bound(name, network, box)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        within = bound(name, network, box)
        assert torch.is_autocast_enabled("cpu")
    assert torch.equal(within.lower, alone.lower)
    assert torch.equal(within.upper, alone.upper)


@pytest.mark.parametrize("name", ["ibp", "crown", "dual", "exact", "expected"])
def test_of_less_than_float32_or_of_two_kinds_nothing_is_bounded(name):
    network, x = build("tiny", (1, 8, 8), 10, seed=0).eval(), torch.rand(2, 1, 8, 8)
    with pytest.raises(ConfigError, match=r"the box is torch\.float64 on cpu, the network torch\.float32 on cpu"):
        bound(name, network, Box.around(x.double(), 0.01))
    for half in (torch.float16, torch.bfloat16):
        with pytest.raises(ConfigError, match=r"of float32 or float64, not of torch\.b?float16"):
            bound(name, network.to(half), Box.around(x.to(half), 0.01))


def test_within_autocast_an_evaluation_is_what_it_is_without():
    network = build("tiny", (1, 8, 8), 10, seed=0).eval()
    split = Split((256 * torch.rand(20, 1, 8, 8)).byte(), torch.arange(20) % 10)
    exam = evaluation.Exam((0.01,), Pgd(steps=3, restarts=1), ("ibp", "crown"))
    alone = evaluation.evaluate(network, split, 10, exam, 0.01)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert evaluation.evaluate(network, split, 10, exam, 0.01) == alone


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_what_torch_is_told_of_products_is_no_matter(precision):
    network, box = build("small", (1, 28, 28), 10, seed=0).eval(), Box.around(torch.rand(2, 1, 28, 28), 0.01)
    alone = {name: bound(name, network, box).lower for name in ("ibp", "crown")}
    torch.set_float32_matmul_precision(precision)  # medium: 16 bits, on a processor that can
    try:
        for name, lower in alone.items():
            assert torch.equal(bound(name, network, box).lower, lower)
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.skipif(not NEW, reason="settings of one name each came with torch 2.9")
@pytest.mark.usefixtures("cut")
class TestWhereItIsCut:
    def test_inside_all_bits_are_kept_and_afterwards_all_is_as_it_was(self):
        with full_float32(), full_float32():
            assert told() == ["ieee"] * 6
        assert told() == ["tf32"] * 6

    def test_runs_are_alike_inside(self):
        with repeatable():
            assert torch.backends.cudnn.deterministic
        assert not torch.backends.cudnn.deterministic

    def test_also_behind_an_error(self):
        with pytest.raises(ZeroDivisionError), full_float32():
            raise ZeroDivisionError
        assert told() == ["tf32"] * 6

    def test_a_bound_keeps_them(self, monkeypatch):
        bound, seen = prepare("ibp", torch.nn.Linear(2, 2), (2,)), []
        function = bound._function
        object.__setattr__(bound, "_function", lambda *given: (seen.append(told()), function(*given))[1])
        bound(Box.around(torch.rand(1, 2), 0.1))
        assert seen == [["ieee"] * 6]

    def test_a_loss_is_rounded_as_torch_is_told(self):
        network = torch.nn.Sequential(Watched(2, 2))
        network[0].seen = seen = []
        images, labels = torch.rand(3, 2), torch.tensor([0, 1, 0])
        for name in ("pgd", "ibp"):
            get_method(name).prepare(network, (2,), 2)(images, labels, Point(0.1, 0.5), torch.Generator())
        assert seen
        assert all(one == ["tf32"] * 6 for one in seen)

    def test_an_evaluation_keeps_them_in_its_attacks_too(self):
        network = torch.nn.Sequential(Watched(2, 2))
        network[0].seen = seen = []
        split = Split(torch.full((3, 2), 128, dtype=torch.uint8), torch.tensor([0, 1, 0]))
        exam = evaluation.Exam((0.1,), Pgd(steps=2, restarts=1), ("ibp",), capture=False)
        evaluation.evaluate(network, split, 2, exam, 0.1)
        assert seen
        assert all(one == ["ieee"] * 6 for one in seen)
