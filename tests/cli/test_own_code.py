"""A network and data of one's own, in files that the command names: compared, evaluated, and run only where named."""

import json
import os
import subprocess
import sys

import pytest

from tests.command import etb

NET = """
from pathlib import Path
from torch import nn
from beside import WIDTH

Path("ran").touch()


class Net(nn.Module):
    def __init__(self, input_shape, classes):
        super().__init__()
        self.first = nn.Conv2d(input_shape[0], WIDTH, 3, padding=1)
        self.second = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.last = nn.Linear(WIDTH * input_shape[1] * input_shape[2], classes)

    def forward(self, x):
        x = self.first(x).relu()
        return self.last((x + self.second(x).relu()).flatten(1))


def bare():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def probabilities():
    return nn.Sequential(bare(), nn.Softmax(1))


def narrow():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))


def wrong(input_shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(7, classes))


def nothing():
    return 7
"""
QUICK = ("--methods", "ibp", "--epochs", "1", "--train-limit", "200", "--test-limit", "20", "--pgd-steps", "2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("own")
    (made / "net.py").write_text(NET)
    (made / "beside.py").write_text("WIDTH = 3\n")
    (made / "e.yaml").write_text("model: net.py:Net\nmethods: [ibp]\n")
    done = etb("compare", "--model", "net.py:Net,net.py:bare", *QUICK, "--workers", "2", "--out", "run", cwd=made)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("running net.py, as --model net.py:Net says") == 1
    (made / "ran").unlink()
    return made


def cells(folder):
    return sorted(cell.name for cell in (folder / "run/cells").iterdir())


def test_it_is_compared_by_several_processes(folder):
    found = json.loads((folder / "run/results.json").read_text())["cells"]
    assert [(cell["model"], cell["parameters"]) for cell in found] == [("net.py:Net", 2044), ("net.py:bare", 650)]
    assert [name.rpartition("-")[0] for name in cells(folder)] == ["ibp-net-py-Net-seed0", "ibp-net-py-bare-seed0"]


def test_one_that_ends_in_a_softmax_is_certified_by_its_logits_and_not_trained_by_a_bound(folder):
    own = ("compare", "--model", "net.py:probabilities", *QUICK, "--eps", "0.001", "--set", "verification.images=0:20")
    done = etb(*own, "--methods", "pgd", "--out", "softmax", cwd=folder)
    assert done.returncode == 0, done.stderr
    (found,) = json.loads((folder / "softmax/results.json").read_text())["cells"]
    assert 0 < found["certified_accuracy"]["ibp"] <= found["verified"]["verified_accuracy"] <= found["clean_accuracy"]
    refused = etb(*own, "--methods", "ibp", cwd=folder)
    assert refused.returncode == 2
    assert "leave it out: methods take logits" in refused.stderr
    (folder / "ran").unlink()


def test_its_weights_are_evaluated_where_the_command_names_it_and_no_code_runs_otherwise(folder):
    weights = f"run/cells/{cells(folder)[0]}/last.safetensors"
    for call in (("evaluate", weights), ("verify", weights, "--images", "0:1"), ("compare", "e.yaml")):
        done = etb(*call, cwd=folder)
        assert done.returncode == 2
        assert "runs where the command names it: --model net.py:Net" in done.stderr
    assert "2" in etb("compare", "status", "run", cwd=folder).stdout
    assert etb("report", "run", cwd=folder).returncode == 0
    assert not (folder / "ran").exists()
    done = etb("evaluate", weights, "--model", "net.py:Net", "--test-limit", "20", cwd=folder)
    assert done.returncode == 0, done.stderr
    done = etb("verify", weights, "--model", "net.py:Net", "--images", "0:2", "--time-limit", "5", cwd=folder)
    assert done.returncode == 0, done.stderr
    (folder / "ran").unlink()


def test_a_changed_file_is_another_network_and_printed_lines_name_it(folder):
    before = cells(folder)
    (folder / "net.py").write_text(NET + "\n# changed\n")
    arguments = ("compare", "--model", "net.py:Net,net.py:bare", *QUICK, "--out", "run", "--engine", "print")
    lines = etb(*arguments, cwd=folder).stdout.splitlines()
    (folder / "net.py").write_text(NET)
    assert len(lines) == 2
    assert not {line.split()[3] for line in lines} & set(before)
    assert lines[0].endswith("--model net.py:Net")
    assert etb(*arguments, cwd=folder).stdout == ""  # as it was, all is done
    (folder / "net.py").write_text(NET + "\n# changed\n")
    line = lines[1].replace("etb ", f"{sys.executable} -m etb_plugin ", 1)
    done = subprocess.run(("sh", "-c", line), cwd=folder, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (folder / "net.py").write_text(NET)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.py:Net", "there is no file none.py"),
        ("net.py:Nett", "net.py has no class or function 'Nett'"),
        ("broken.py:Net", "broken.py cannot be run: ZeroDivisionError: division by zero"),
        ("net.py:narrow", "net.py:narrow gives 3 logits; the data has 10 classes"),
        ("net.py:wrong", "the network does not take [2, 1, 8, 8]"),
        ("net.py:nothing", "net.py:nothing has to return a torch.nn.Module; got int"),
    ],
)
def test_what_does_not_do_is_refused_in_a_line(folder, name, message):
    (folder / "broken.py").write_text("1 / 0\n")
    done = etb("compare", "--model", name, *QUICK, "--out", "none", cwd=folder)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) <= 2
    assert not (folder / "none").exists()


DATA = """
from pathlib import Path
import numpy as np
import torch

Path("data-ran").touch()
generator = np.random.default_rng(0)
images, labels = generator.integers(0, 256, (60, 8, 8), np.uint8), np.arange(60) % 3


def three():
    return images, labels, torch.from_numpy(images[:20]), torch.from_numpy(labels[:20])


def floats():
    return images / 255, labels, images, labels


def short():
    return images, labels


def fails():
    raise ValueError("no such table")
"""
TINY = ("--model", "mlp-10x1", "--methods", "ibp", "--epochs", "1", "--pgd-steps", "2", "--out", "run")


@pytest.mark.slow
def test_data_of_ones_own_are_compared_by_several_processes_and_run_only_where_named(tmp_path):
    (tmp_path / "data.py").write_text(DATA)
    ours = ("compare", "--dataset", "data.py:three", *TINY)
    done = etb(*ours, "--seed", "0,1", "--workers", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "running data.py, as --dataset data.py:three says" in done.stderr
    found = json.loads((tmp_path / "run/results.json").read_text())["cells"]
    assert [(cell["dataset"], cell["images"]) for cell in found] == [("data.py:three", 20)] * 2
    (tmp_path / "data-ran").unlink()
    (tmp_path / "e.yaml").write_text("dataset: data.py:three\n")
    for call in (("evaluate", "run"), ("compare", "e.yaml")):
        done = etb(*call, cwd=tmp_path)
        assert done.returncode == 2
        assert "runs where the command names it: --dataset data.py:three" in done.stderr
    assert not (tmp_path / "data-ran").exists()
    done = etb("evaluate", "run", "--dataset", "data.py:three", "--pgd-steps", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = etb(*ours, "--seed", "0,1,2", "--engine", "print", cwd=tmp_path).stdout.splitlines()
    assert len(lines) == 1
    assert lines[0].endswith("--dataset data.py:three")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("data.py:thre", "data.py has no class or function 'thre'"),
        ("none.py:three", "there is no file none.py, which --dataset none.py:three names"),
        ("data.py:floats", "data.py:floats: x_train needs uint8 images"),
        ("data.py:short", "has to return x_train, y_train, x_test, y_test; got 2 of them"),
        ("data.py:fails", "data.py:fails fails: ValueError: no such table"),
    ],
)
def test_data_that_do_not_do_are_refused_in_a_line(tmp_path, name, message):
    (tmp_path / "data.py").write_text(DATA)
    done = etb("compare", "--dataset", name, *TINY, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) <= 2
    assert not (tmp_path / "run").exists()
