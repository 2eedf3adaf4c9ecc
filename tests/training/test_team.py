"""Several processes train what one would, and stop together."""

import io
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from etb_plugin.networks import build
from etb_plugin.training import Team
from etb_plugin.training.state import read_state

FLAGS = ("--dataset", "digits", "--train-limit", "330", "--device", "cpu")
TWO = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "etb_plugin")
ONE = (sys.executable, "-m", "etb_plugin")


def start(processes, folder, *flags, **kwargs):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*processes, "train", *FLAGS, "--out", folder, *flags], env=environment, **pipes, **kwargs)


def weights(folder):
    (file,) = folder.glob("cells/*/last.safetensors")
    return torch.cat([value.flatten() for value in load_file(file).values()])


@pytest.mark.parametrize("method", [pytest.param("ibp", marks=pytest.mark.slow), "expected"])
def test_two_processes_train_what_one_does(tmp_path, method):
    """330 images: the last batch has 30, of which each takes 15."""
    runs = [start(p, tmp_path / n, "--method", method, "--epochs", "4") for p, n in ((ONE, "one"), (TWO, "two"))]
    for run in runs:
        _, errors = run.communicate(timeout=120)
        assert run.returncode == 0, errors
    torch.testing.assert_close(weights(tmp_path / "two"), weights(tmp_path / "one"), rtol=1e-3, atol=1e-5)
    logs = [
        [json.loads(line) for line in next((tmp_path / n).glob("cells/*/metrics.jsonl")).read_text().splitlines()]
        for n in ("one", "two")
    ]
    for one, two in zip(*logs, strict=True):
        for key in ("loss", "clean_loss", "robust_loss", "accuracy", "gradient_norm", "width"):
            assert two[key] == pytest.approx(one[key], rel=1e-4), key


def epochs_in(state):
    return len(torch.load(io.BytesIO(read_state(state, pytest.fail)), weights_only=True)["epochs"])


@pytest.mark.slow
def test_two_processes_stop_together_and_go_on(tmp_path):
    flags = ("--method", "expected", "--epochs", "400", "--batch-size", "10")
    run = start(TWO, tmp_path / "run", *flags)
    cells = tmp_path / "run" / "cells"
    deadline = time.monotonic() + 60
    while not list(cells.glob("*/state.pt")) and time.monotonic() < deadline:
        time.sleep(0.1)
    run.send_signal(signal.SIGTERM)
    run.communicate(timeout=60)
    (state,) = cells.glob("*/state.pt")
    done = epochs_in(state)
    assert 0 < done < 400
    again = start(TWO, tmp_path / "run", *flags)
    while epochs_in(state) <= done and time.monotonic() < deadline + 60:
        time.sleep(0.1)
    again.send_signal(signal.SIGTERM)
    again.communicate(timeout=60)
    assert epochs_in(state) > done


def test_parts_of_a_batch_make_the_batch():
    for count in (1, 7, 100):
        taken = [i for rank in range(3) for i in range(count)[Team(rank, 3).part(count)]]
        assert taken == list(range(count))


@pytest.mark.slow
def test_batch_norm_is_refused():
    run = start(TWO, "unused", "--method", "ibp", "--model", "cnn7-bn", "--dataset", "digits")
    _, errors = run.communicate(timeout=120)
    assert run.returncode != 0
    assert "several processes cannot train a network with batch norm" in errors
    Team().check(build("cnn7-bn", (1, 16, 16), 10, seed=0))
