"""Networks and boxes that several tests share. Every test starts from a fixed seed."""

import gc
import os
import sys
from importlib.util import find_spec

# Before torch: tests share the cores among processes, and threads that fight for them are ten times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# The command line is started hundreds of times: where bytecode is not kept, compiling takes longer than most of what it
# is asked to do.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import pytest
import torch
from torch import Tensor, nn


def pytest_collection_modifyitems(items):
    """Skip what needs auto_LiRPA where it is not installed."""
    if find_spec("auto_LiRPA") is None:
        for item in items:
            if item.get_closest_marker("lirpa"):
                item.add_marker(pytest.mark.skip(reason="auto_LiRPA is not installed"))


def pytest_collection_finish():
    """Look for no garbage among what is imported: memory is measured from where none is left, a hundred times."""
    gc.freeze()


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """Call `etb` in this process and return its complaint; nothing may be written and nothing started."""
    from etb_plugin.cli import main  # a library's tests import no command line

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ETB_DATA_DIR", raising=False)

    def call(*arguments):
        before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
        monkeypatch.setattr(sys, "argv", ["etb", *arguments])
        monkeypatch.setattr("etb_plugin.comparison.work.train", lambda *_, **__: pytest.fail("training began"))
        with pytest.raises(SystemExit) as stop:
            main()
        out, complaint = capsys.readouterr()
        assert stop.value.code == 2, complaint
        assert out == ""
        assert complaint.startswith("error: ")
        assert len(complaint.splitlines()) <= 2
        assert "Traceback" not in complaint
        assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
        return complaint

    return call


class Bessel(nn.Module):
    """A function that no bound knows."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.special.i0(x)


class Branching(nn.Module):
    """Batch norm, subtraction of a constant, a skip, concatenation, a slice and average pooling with overlap."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 3, padding=1, stride=2)
        self.pool = nn.AvgPool2d(3, 2, 1)
        self.last = nn.Linear(20, 5)
        nn.init.uniform_(self.norm.running_mean, -0.2, 0.2)
        nn.init.uniform_(self.norm.running_var, 0.5, 2.0)
        nn.init.uniform_(self.norm.weight, -1.0, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.norm(self.first(x - 0.3)))
        branches = torch.cat([torch.relu(self.second(h)), -torch.relu(self.pool(h) - 0.1)], 1)
        means = branches.mean((2, 3))[:, :4]
        return self.last(torch.cat([branches[:, :4, :2, 1:3].reshape(branches.size(0), -1), means], 1))


def fully_connected(*widths: int) -> nn.Sequential:
    """Return a network of these widths with a ReLU between any two affine layers."""
    layers: list[nn.Module] = [nn.Flatten()]
    for i in range(len(widths) - 1):
        layers += [nn.Linear(widths[i], widths[i + 1]), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
