"""A competition's list of instances, through the command line: answers, files, going on, and what is refused."""

import csv

import pytest
import torch

from etb_plugin import Box
from etb_plugin.networks.onnx import write_onnx
from etb_plugin.verification.vnnlib import vnnlib_text
from tests.command import etb
from tests.conftest import fully_connected


def run(*arguments, folder):
    return etb("verify", *map(str, arguments), cwd=folder, timeout=200)


@pytest.fixture
def listed(tmp_path):
    torch.manual_seed(0)
    network = fully_connected(4, 8, 3)
    write_onnx(network, (4,), tmp_path / "n.onnx")
    x = torch.rand(1, 4)
    label = int(network(x).argmax())
    for name, eps in (("near", 0.001), ("far", 3.0)):
        text = vnnlib_text(Box.around(x.double(), eps, clip=None), label, 3, name)
        (tmp_path / f"{name}.vnnlib").write_text(text)
    (tmp_path / "odd.vnnlib").write_text("(declare-const X_0 Real) (declare-const Y_0 Real)")
    lines = ["n.onnx,near.vnnlib,30", "n.onnx,far.vnnlib,30", "n.onnx,odd.vnnlib,30", ""]
    (tmp_path / "instances.csv").write_text("\n".join(lines))
    return tmp_path


def test_every_instance_has_an_answer_and_the_same_command_goes_on(listed):
    arguments = ("--instances", "instances.csv", "--out", "results", "--workers", "2")
    done = run(*arguments, folder=listed)
    assert done.returncode == 0, done.stderr
    rows = list(csv.reader((listed / "results" / "results.csv").read_text().splitlines()))
    assert [row[4] for row in rows] == ["unsat", "sat", "error"]
    assert "Written: results/results.csv" in done.stdout
    assert "1 unsat, 1 sat, 1 error" in done.stdout
    assert "has 4 inputs and 3 outputs" in done.stdout  # why the third has none
    assert (listed / "results/counterexamples/00001").read_text().startswith("((X_0")
    assert (listed / "results/cactus.png").stat().st_size > 10_000
    (listed / "results/instances/00001.json").unlink()
    again = run(*arguments, folder=listed)
    assert again.returncode == 0
    assert again.stdout.count(" s  ") == 1  # only the one that is missing
    assert [row[4] for row in csv.reader((listed / "results" / "results.csv").read_text().splitlines())] == [
        "unsat",
        "sat",
        "error",
    ]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("n.onnx,near.vnnlib", "instances.csv, line 1: write network.onnx,property.vnnlib,seconds"),
        ("n.onnx,missing.vnnlib,3", "instances.csv, line 1: there is no missing.vnnlib"),
        *(
            (f'"{network}",near.vnnlib,3', "line 1: write network.onnx,property.vnnlib,seconds")
            for network in ("[1, 2]", "[('f',)]", "[", "['n.onnx', f()]", "[" * 500)
        ),
        ("n.onnx,near.vnnlib,-3", "instances.csv, line 1: -3 is no number of seconds"),
        ("", "instances.csv lists no instances"),
    ],
)
def test_a_list_that_cannot_be_run_is_refused_before_any_work(listed, line, words):
    (listed / "instances.csv").write_text(line)
    done = run("--instances", "instances.csv", "--out", "results", folder=listed)
    assert done.returncode == 2
    assert words in " ".join(done.stderr.split())
    assert not (listed / "results").exists()


def test_weights_and_instances_exclude_each_other(listed):
    for arguments in ((), ("n.onnx", "--instances", "instances.csv"), ("--instances", "instances.csv")):
        done = run(*arguments, folder=listed)
        assert done.returncode == 2
        assert "--out" in done.stderr
