"""The command `etb` as its users see it: a subprocess for the work, and one line or two for each wrong call."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from torch import nn

from etb_plugin import networks
from etb_plugin.bounds import bounds
from etb_plugin.cli.main import COMMANDS as BUILT
from etb_plugin.cli.main import build, main
from etb_plugin.experiment import Experiment
from etb_plugin.experiment.reading import _flags
from etb_plugin.objectives import methods
from tests.command import etb

COMMANDS = {
    *(
        "compare",
        "status",
        "train",
        "evaluate",
        "verify",
        "bench",
        "bounds",
        "study",
        "report",
        "leaderboard",
        "experiment",
        "export",
        "methods",
    ),
    *("models", "new", "supports", "selftest", "cell"),
}
QUICK = ("--model", "mlp-12x2", "--epochs", "2", "--train-limit", "200", "--test-limit", "30", "--pgd-steps", "3")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder in which `etb compare` ran, and its output."""
    folder = tmp_path_factory.mktemp("cli")
    done = etb("compare", "--methods", "ibp,expected", "--eps-test", "0.02,0.1", *QUICK, "--out", "mine", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, done


def test_compare_prints_one_table_and_writes_what_it_shows(run):
    folder, done = run
    content = json.loads((folder / "mine/results.json").read_text())
    assert [cell["method"] for cell in content["cells"]] == ["ibp", "ibp", "expected", "expected"]
    for cell in content["cells"]:
        row = next(
            line.split()
            for block in done.stdout.split("eps ")
            if block.startswith(f"{cell['eps_test']} ")
            for line in block.splitlines()
            if line.strip().startswith(f"{cell['method']} ")
        )
        shares = [cell["clean_accuracy"], cell["pgd_accuracy"], cell["pgd_robustness"]]
        shares += [*cell["certified_accuracy"].values()]
        assert row[1:6] == [f"{100 * share:.1f}" for share in shares]
        assert row[6] == f"~{100 * cell['expected_accuracy']:.1f}"
    assert "expected is NOT a certificate" in done.stdout
    assert "Written: mine/report.html" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr  # no colours and no bars off a terminal
    assert re.search(r"^ibp: trained in \d+ s, loss \d+\.\d+, clean accuracy \d+\.\d%$", done.stderr, re.MULTILINE)
    assert len(list(csv.DictReader((folder / "mine/results.csv").read_text().splitlines()))) == 4


def test_the_same_command_keeps_what_is_done(run):
    folder, _ = run
    before = (folder / "mine/results.json").read_bytes()
    again = etb("compare", "--methods", "ibp,expected", "--eps-test", "0.02,0.1", *QUICK, "--out", "mine", cwd=folder)
    assert again.returncode == 0
    assert again.stderr.count("kept from an earlier run") == 2
    assert (folder / "mine/results.json").read_bytes() == before


def test_a_file_says_the_same_as_flags(run, tmp_path):
    folder, _ = run
    (tmp_path / "e.yaml").write_text(
        "methods: [ibp, expected]\nmodel: mlp-12x2\ntraining: {epochs: 9, train_limit: 200}\n"
        f"evaluation:\n  eps-test: [0.02, 0.1]\n  test_limit: 30\n  pgd_steps: 3\nout: {folder}/mine\n"
    )
    again = etb("compare", "e.yaml", "--epochs", "2", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("kept from an earlier run") == 2


def test_evaluate_takes_a_run_and_anyones_weights(run, tmp_path):
    folder, _ = run
    limits = ("--test-limit", "30", "--pgd-steps", "3")
    ours = etb("evaluate", str(folder / "mine"), *limits, "--certify", "ibp,crown", "--out", "again", cwd=tmp_path)
    assert ours.returncode == 0, ours.stderr
    cells = json.loads((tmp_path / "again/results.json").read_text())["cells"]
    assert {cell["method"] for cell in cells} == {"ibp", "expected"}
    assert set(cells[0]["certified_accuracy"]) == {"ibp", "crown"}
    torch.save(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10)).state_dict(), tmp_path / "w.pt"
    )
    theirs = etb("evaluate", "w.pt", "--model", "mlp-12x1", "--dataset", "digits", *limits, cwd=tmp_path)
    assert theirs.returncode == 0, theirs.stderr
    assert re.search(r"^ *w +\d", theirs.stdout, re.MULTILINE)
    assert "Written" not in theirs.stdout


def test_train_leaves_weights_that_compare_and_evaluate_take_up(tmp_path):
    trained = etb("train", "--method", "expected", *QUICK[:6], "--out", "t", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert "Next: etb evaluate t" in trained.stdout
    bounded = etb("bounds", "--checkpoint", "t", "--methods", "ibp,expected,dual:by=convex_adversarial", cwd=tmp_path)
    assert bounded.returncode == 0, bounded.stderr
    rows = {
        line.split()[0]: line.split()[1:] for line in bounded.stdout.splitlines() if re.match(r" *\S+ +(yes|no) ", line)
    }
    assert list(rows) == ["ibp", "expected", "dual:by=convex_adversarial"]
    assert [row[0] for row in rows.values()] == ["yes", "no", "yes"]
    assert rows["ibp"][2] == "1"
    assert float(rows["expected"][1]) / float(rows["ibp"][1]) == pytest.approx(float(rows["expected"][2]), rel=0.01)


def test_bounds_are_calibrated_and_never_called_certified(run, tmp_path):
    folder, _ = run
    flags = (
        "--calibrate",
        "--alpha",
        "0.2",
        "--test-limit",
        "60",
        "--pgd-steps",
        "3",
        "--methods",
        "expected:masks=slope",
    )
    done = etb("bounds", "--checkpoint", str(folder / "mine"), *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"^ *expected:masks=slope +[\d.]+ +[\d.]+ % +[\d.]+ %$", done.stdout, re.MULTILINE)) == 2
    assert "NOT a certificate" in re.sub(r"\s+", " ", done.stdout)
    assert not re.search("certified|cert\\.", done.stdout)


def test_kill_9_in_the_middle_costs_at_most_an_epoch(tmp_path):
    """The same command, killed once weights exist and given again, ends with the unbroken run's figures."""
    flags = ("--methods", "ibp", "--model", "mlp-64x3", "--epochs", "12", "--test-limit", "50", "--pgd-steps", "2")
    command = [sys.executable, "-c", "from etb_plugin.cli import main; main()", "compare", *flags, "--out", "r"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not list(tmp_path.glob("r/cells/*/state.pt")):
            assert process.poll() is None
            time.sleep(0.02)
        time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "r/results.json").exists()
    cells = []
    for folder in ("r", "whole"):
        done = etb("compare", *flags, "--out", folder, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        (cell,) = json.loads((tmp_path / folder / "results.json").read_text())["cells"]
        cells.append({k: v for k, v in cell.items() if not re.search("second|_ms|_mib", k)})
        (weights,) = (tmp_path / folder).glob("cells/*/last.safetensors")
        cells[-1]["weights"] = weights.read_bytes()
    assert cells[0] == cells[1]


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_stops_between_batches_and_the_same_command_goes_on(tmp_path, number):
    flags = ("--method", "pgd", "--model", "mlp-64x3", "--epochs", "12")
    command = [sys.executable, "-c", "from etb_plugin.cli import main; main()", "train", *flags, "--out", "r"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not list(tmp_path.glob("r/cells/*/metrics.jsonl")):
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert out == ""
    assert err.splitlines()[-1] == "stopped between two batches; the same command goes on from there"
    final = []
    for folder in ("r", "whole"):
        done = etb("train", *flags, "--out", folder, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        (weights,) = (tmp_path / folder).glob("cells/*/last.safetensors")
        final.append(weights.read_bytes())
    assert final[0] == final[1]


@pytest.mark.slow
def test_twenty_random_kills_change_nothing(tmp_path):
    flags = ("--methods", "ibp", "--model", "mlp-64x3", "--epochs", "200", "--test-limit", "50", "--pgd-steps", "2")
    command = [sys.executable, "-c", "from etb_plugin.cli import main; main()", "compare", *flags, "--out", "r"]
    pauses = np.random.default_rng(0).uniform(2.0, 4.5, 20)
    for pause in pauses:
        with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            time.sleep(pause)
            process.send_signal(signal.SIGKILL)
    weights = []
    for folder in ("r", "whole"):
        assert etb("compare", *flags, "--out", folder, cwd=tmp_path).returncode == 0
        (file,) = (tmp_path / folder).glob("cells/*/last.safetensors")
        weights.append(file.read_bytes())
    assert weights[0] == weights[1]


def test_methods_and_models_list_what_is_registered(tmp_path):
    shown = etb("methods", cwd=tmp_path).stdout
    for name in (*methods(), *bounds()):
        assert re.search(rf"^ *{re.escape(name)} ", shown, re.MULTILINE), name
    shown = etb("methods", "expected", cwd=tmp_path).stdout
    assert re.search(r"masks +center", shown)
    assert "--methods expected:kappa=0.5:eps=0.2" in shown
    assert re.search(r"eps_ramp +0→1 \(over 0\.2857, smooth\)", etb("methods", "sabr", cwd=tmp_path).stdout)
    assert "did you mean expected" in etb("methods", "expectd", cwd=tmp_path).stderr
    shown = etb("models", cwd=tmp_path).stdout
    for name in networks.networks():
        assert re.search(rf"^ *{re.escape(name)} ", shown, re.MULTILINE), name
    assert "470,918" in shown  # small on CIFAR-10, as the papers count it
    assert "62,464" in shown


@pytest.mark.parametrize(
    "command", [*sorted(COMMANDS - {"experiment"}), "experiment schema", "experiment check", "experiment show"]
)
def test_every_command_helps_with_an_example(command, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["etb", *command.split(), "--help"])
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0
    example = {"status": "compare status", "cell": "compare mine.yaml --out run --engine print"}.get(command, command)
    shown = capsys.readouterr().out
    assert f"Example: etb {example}" in shown
    for paragraph in re.split(r"\n\s*\n", shown.partition("╭")[0]):
        assert "\n" not in paragraph.strip(), "a terminal breaks lines, not the source"


def test_the_public_surface_is_the_designs():
    assert {*COMMANDS} == {*BUILT}
    flags = {"dataset", "methods", "model", "eps", "eps_test", "epochs", "batch_size", "lr", "seed", "device"}
    flags |= {"data_dir", "train_limit", "test_limit", "pgd_steps", "pgd_restarts", "attack", "certify", "out"}
    flags |= {
        "validation",
        "select",
        "tensorboard",
        "compile",
        "capture",
        "engine",
        "workers",
        "threads",
        "gpus",
        "address",
        "rigorous",
    }
    assert set(_flags(Experiment)) == flags
    (compare,) = build(["compare"]).registered_commands
    beside = {"context", "file", "return", "changes", "dry_run", "open_"}
    assert set(compare.callback.__annotations__) - beside == flags


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("compare", "--dataset", "minst"), r"unknown dataset 'minst'; did you mean mnist"),
        (("compare", "--methods", "ibp,expectd"), r"unknown method 'expectd'; did you mean expected"),
        (("compare", "--model", "tinny"), r"unknown network 'tinny'; did you mean tiny"),
        (("compare", "--eps", "-0.1"), r"--eps: -0.1 is negative"),
        (("compare", "--eps", "nan"), r"--eps: nan is no finite number"),
        (("compare", "--eps", "8"), r"--eps: 8 is in the wrong units: .* write 8/255"),
        (("compare", "--eps-test", "8/255,2"), r"--eps-test: 2 is in the wrong units"),
        (("compare", "--device", "cuda:99"), r"device 'cuda:99' does not exist"),
        (("compare", "--certify", "expected"), r"bound 'expected' is not sound"),
        (("compare", "--epochs", "two"), r"'--epochs'"),
        (("compare", "--epoch", "2"), r"--epoch\b"),
        (("compare", "none.yaml"), r"none\.yaml cannot be read"),
        (("compare", "--model", "small"), r"network 'small' does not fit images of 8 x 8 pixels"),
        (("compare", "--dataset", "none.npz"), r"there is no file none\.npz"),
        (
            ("compare", "--dataset", "cifar10"),
            r"there is no cifar10 in data: put data/cifar10\.npz there .*\n.*download",
        ),
        (("compare", "--dataset", "mnist", "--data-dir", "x"), r"there is no mnist in x: .*\n.*download"),
        (("compare", "--train-limit", "0"), r"--train-limit: 0 does not do"),
        (("train",), r"--method"),
        (("train", "--method", "ipb"), r"unknown method 'ipb'; did you mean ibp"),
        (("evaluate", "none.pt", "--model", "tiny", "--dataset", "digits"), r"there is no file or folder none\.pt"),
        (("bounds", "--checkpoint", "none"), r"there is no file or folder none"),
        (("comparre",), r"comparre"),
        (("bounds", "--checkpoint", ".", "--calibrate", "--methods", "crown"), r"bound 'crown' has no scale"),
    ],
)
def test_a_wrong_call_is_one_line_or_two(refused, arguments, complaint):
    assert re.search(complaint, refused(*arguments), re.DOTALL)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("dataset: digits\nmetods: ibp\n", r"e\.yaml, line 2, metods: there is no such key; did you mean methods"),
        ("training:\n  epochs: ten\n", r"e\.yaml, line 2, training\.epochs: 'ten' does not do"),
        ("eps:\n\t0.1\n", r"e\.yaml, line 2: a tab"),
        ("eps: 8\n", r"e\.yaml, line 1, eps: 8 is in the wrong units"),
    ],
)
def test_a_wrong_file_is_named_with_its_line(refused, tmp_path, content, complaint):
    (tmp_path / "e.yaml").write_text(content)
    assert re.search(complaint, refused("compare", "e.yaml"))


def test_truncated_data_is_named(refused, tmp_path):
    zeros = np.zeros((20, 32, 32, 3), np.uint8)
    np.savez(
        tmp_path / "cifar10.npz", x_train=zeros, y_train=np.arange(20) % 10, x_test=zeros, y_test=np.arange(20) % 10
    )
    content = (tmp_path / "cifar10.npz").read_bytes()
    (tmp_path / "cifar10.npz").write_bytes(content[: len(content) // 2])
    assert "cifar10.npz is truncated" in refused("compare", "--dataset", "cifar10", "--data-dir", ".")


def test_a_method_that_cannot_take_the_network_is_refused_by_layer(refused, tmp_path):
    zeros = np.zeros((20, 12, 12), np.uint8)
    np.savez(tmp_path / "m.npz", x_train=zeros, y_train=np.arange(20) % 10, x_test=zeros, y_test=np.arange(20) % 10)
    said = refused(
        "compare", "--dataset", "m.npz", "--model", "wide-resnet-10-10", "--methods", "ibp,dual:by=convex_adversarial"
    )
    assert re.search(r"method 'dual' cannot take network 'wide-resnet-10-10': layer \S+", said)


def test_a_folder_of_another_experiment_is_refused(refused, tmp_path):
    (tmp_path / "r").mkdir()
    (tmp_path / "r/experiment.yaml").write_text("layout: 2\ndataset: mnist\n")
    said = refused("compare", "--methods", "ibp", *QUICK, "--out", "r")
    assert "r holds another experiment (" in said
    assert "dataset digits here, mnist there" in said


def test_a_folder_of_another_version_is_refused(refused, tmp_path):
    (tmp_path / "r").mkdir()
    (tmp_path / "r/experiment.yaml").write_text("dataset: digits\nepochs: 2\n")
    for call in (("compare", "--methods", "ibp", *QUICK, "--out", "r"), ("compare", "status", "r")):
        assert "r was written by another version of etb (layout 1; this one has 2)" in refused(*call)


def test_weights_that_do_not_fit_or_say_nothing_are_refused(refused, tmp_path):
    torch.save(nn.Linear(4, 3).state_dict(), tmp_path / "w.pt")
    assert "name one by --dataset" in refused("evaluate", "w.pt")
    assert "name one by --model" in refused("evaluate", "w.pt", "--dataset", "digits")
    said = refused("evaluate", "w.pt", "--dataset", "digits", "--model", "mlp-4x1")
    assert "[[3, 4], [3]]" in said
    assert "[[4, 64], [4], [10, 4], [10]]" in said


def test_debug_shows_where_and_failures_of_the_work_end_with_1(tmp_path):
    wrong = etb("compare", "--eps", "8", "--debug", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "Traceback" in wrong.stderr
    burst = etb("compare", "--methods", "nominal", *QUICK, "--lr", "1e30", cwd=tmp_path)
    assert burst.returncode == 1
    assert re.search(r"^error: the loss is not finite in epoch \d, batch \d", burst.stderr, re.MULTILINE)
    assert "Traceback" not in burst.stderr


def test_a_reader_that_leaves_early_is_no_error(tmp_path):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-c", "from etb_plugin.cli import main; main()", "models"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, cwd=tmp_path, timeout=120)
    os.close(write)
    assert done.returncode == 1
    assert done.stderr == ""
