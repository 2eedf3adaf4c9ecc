"""Inputs at the edge of what can be trained on, through the command line: a result, or one clear line and no harm."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.command import etb

_GENERATOR = np.random.default_rng(0)
IMAGES = _GENERATOR.integers(0, 256, (60, 8, 8), np.uint8)
LABELS = np.arange(60) % 3
COMPARE = ("compare", "--model", "mlp-20x2", "--methods", "ibp,expected", "--epochs", "1", "--pgd-steps", "2")


def save(folder, **changes):
    content = {"x_train": IMAGES, "y_train": LABELS, "x_test": IMAGES[:20], "y_test": LABELS[:20]}
    np.savez(folder / "mine.npz", **content | changes)


@pytest.mark.parametrize(
    ("changes", "eps", "says"),
    [
        ({"x_train": np.full((60, 8, 8), np.nan)}, "0.1", "x_train needs uint8 images"),
        ({"x_train": np.full((60, 8, 8), np.inf, np.float32)}, "0.1", "x_train needs uint8 images"),
        ({"x_train": IMAGES[:0], "y_train": LABELS[:0]}, "0.1", "no images in x_train"),
        ({"x_test": IMAGES[:0], "y_test": LABELS[:0]}, "0.1", "no images in x_test"),
        ({"y_train": LABELS * 0, "y_test": LABELS[:20] * 0}, "0.1", "one class only"),
        ({"y_train": LABELS - 1}, "0.1", "integer labels from 0"),
        ({"y_test": LABELS[:20] + 9}, "0.1", "label 11, beyond all of y_train (up to 2)"),
        ({}, "-0.1", "negative"),
        ({}, "inf", "no finite number"),
        ({}, "nan", "no finite number"),
        ({}, "25", "wrong units"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_before_anything_is_written(tmp_path, changes, eps, says):
    save(tmp_path, **changes)
    done = etb(*COMPARE, "--dataset", "mine.npz", f"--eps={eps}", "--out", "run", cwd=tmp_path)
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stderr.count("\n") <= 2
    assert [path.name for path in tmp_path.iterdir()] == ["mine.npz"]


@pytest.mark.parametrize("edge", [("--eps", "0"), ("--eps", "0.1", "--batch-size", "1")])
def test_no_radius_and_one_image_at_a_time_train(tmp_path, edge):
    save(tmp_path)
    done = etb(*COMPARE, "--dataset", "mine.npz", *edge, "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "run" / "results.json").read_text())["cells"]
    assert len(rows) == 2
    for row in rows if edge == ("--eps", "0") else ():
        assert row["clean_accuracy"] == row["pgd_accuracy"] == row["certified_accuracy"]["ibp"]


def test_a_loss_that_is_not_finite_is_one_line_and_no_result(tmp_path):
    save(tmp_path)
    options = ("--dataset", "mine.npz", "--model", "mlp-20x2", "--method", "ibp", "--eps", "0.1")
    done = etb("train", *options, "--lr", "1e30", "--epochs", "3", "--out", "run", cwd=tmp_path)
    assert done.returncode == 1
    assert "the loss is not finite in epoch 2" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "run").rglob("result*.json"))


@pytest.mark.slow
def test_interrupted_twice_it_ends_at_once_and_goes_on(tmp_path):
    options = (*COMPARE, "--dataset", "digits", "--eps", "0.1", "--epochs", "10", "--out", "run")
    command = [sys.executable, "-m", "etb_plugin", *options]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.rglob("metrics.jsonl")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    time.sleep(0.01)
    process.send_signal(signal.SIGINT)  # in the middle of the first one's batch, or of writing its state
    _, said = process.communicate(timeout=60)
    assert process.returncode in (130, -signal.SIGINT)
    assert "Traceback" not in said
    assert etb(*options, cwd=tmp_path).returncode == 0
    assert len(json.loads((tmp_path / "run" / "results.json").read_text())["cells"]) == 2
