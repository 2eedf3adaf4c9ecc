"""`etb verify` and `etb export` as their users see them."""

import json
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from etb_plugin.cli.main import main
from etb_plugin.data import load, pixels
from etb_plugin.networks.onnx import read_onnx
from tests.command import etb


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verify")
    arguments = ("--method", "pgd", "--model", "mlp-16x2", "--epochs", "8", "--eps", "0.03", "--out", "mine")
    assert etb("train", *arguments, cwd=folder).returncode == 0
    return folder


@pytest.fixture(scope="module")
def verified(trained):
    done = etb("verify", "mine", "--images", "0:60", "--time-limit", "20", "--out", "v", cwd=trained)
    assert done.returncode == 0, done.stderr
    return trained, done, json.loads((trained / "v/results.json").read_text())


def test_every_image_is_decided_with_its_evidence(verified):
    folder, done, results = verified
    (result,) = results["verifications"]
    words = [finding["verdict"] for finding in result["findings"]]
    assert len(words) == 60
    assert words.count("robust") / 60 == result["verified_accuracy"]
    assert {"robust", "falsified"} <= set(words)
    assert words.count("unknown") == 0
    assert result["verified_accuracy"] <= result["pgd_accuracy"] <= result["clean_accuracy"]
    assert f"{100 * result['verified_accuracy']:.1f}" in done.stdout
    data = load("digits")
    network = folder / "n.onnx"
    assert etb("export", "mine", "--onnx", "n.onnx", cwd=folder).returncode == 0
    network, _ = read_onnx(network)
    for finding in result["findings"]:
        image = finding["image"]
        if finding["counterexample"]:
            (file,) = (folder / "v/cells").glob(f"pgd-*-eps0.03/counterexamples/{image:05d}.npy")
            point = torch.from_numpy(np.load(file))
            x = pixels(data.test.images[image]).double()
            assert float((point - x).abs().max()) <= 0.03 + 1e-12
            assert int(network.double()(point[None]).argmax()) != finding["label"]
        elif finding["verdict"] == "falsified":
            assert finding["predicted"] != finding["label"]
            assert finding["by"] == "misclassified"


def test_the_same_command_keeps_what_is_decided_and_workers_find_the_same(verified):
    folder, _, results = verified
    before = {p: p.stat().st_mtime_ns for p in (folder / "v/cells").rglob("*.json")}
    assert etb("verify", "mine", "--images", "0:60", "--time-limit", "20", "--out", "v", cwd=folder).returncode == 0
    assert {p: p.stat().st_mtime_ns for p in (folder / "v/cells").rglob("*.json")} == before
    side = ("--images", "0:60", "--time-limit", "20", "--workers", "2", "--stages", "pgd,ibp,bab,exact", "--out", "w")
    done = etb("verify", "mine", *side, cwd=folder)
    assert done.returncode == 0, done.stderr
    (two,) = json.loads((folder / "w/results.json").read_text())["verifications"]
    (one,) = results["verifications"]
    assert [f["verdict"] for f in two["findings"]] == [f["verdict"] for f in one["findings"]]


def test_exact_agrees_with_every_bound_and_the_attack_on_every_image(trained):
    """etb evaluate puts each right image to all of them, and stops where two contradict each other."""
    bounds = ("ibp", "crown", "lp", "exact:time_limit=60")
    call = ("--certify", ",".join(bounds), "--test-limit", "40", "--eps-test", "0.03", "--out", "e")
    done = etb("evaluate", "mine", *call, cwd=trained)
    assert done.returncode == 0, done.stderr
    (cell,) = json.loads((trained / "e/results.json").read_text())["cells"]
    shares = [*(cell["certified_accuracy"][name] for name in bounds), cell["pgd_accuracy"]]
    assert shares == sorted(shares)


def test_a_signal_stops_and_the_same_command_goes_on(trained):
    asked = ["verify", "mine", "--images", "0:150", "--stages", "pgd,exact", "--out", "s"]
    call = (sys.executable, "-m", "etb_plugin", *asked)
    process = subprocess.Popen(call, cwd=trained, stderr=subprocess.PIPE, text=True)
    kept = trained / "s/cells"
    while process.poll() is None and len(list(kept.glob("*/findings/*"))) <= 30:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, complaint = process.communicate(timeout=60)
    assert process.returncode == 143, complaint
    assert not (trained / "s/results.json").exists()
    before = set(kept.glob("*/findings/*"))
    assert etb(*asked, cwd=trained).returncode == 0
    assert before < set(kept.glob("*/findings/*"))


def test_rigorous_proofs_are_some_of_the_proofs(verified):
    folder, _, results = verified
    done = etb("verify", "mine", "--images", "0:60", "--rigorous", "--out", "rigorous", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "rigorous" in done.stdout
    (result,) = json.loads((folder / "rigorous/results.json").read_text())["verifications"]
    (before,) = results["verifications"]
    pairs = [(a["verdict"], b["verdict"]) for a, b in zip(result["findings"], before["findings"], strict=True)]
    assert pairs.count(("robust", "robust")) > 10
    assert ("robust", "falsified") not in pairs
    assert all(finding["by"] in (None, "misclassified", "pgd", "ibp", "crown-ibp", "crown", "alpha-crown")
               for finding in result["findings"])  # fmt: skip


def test_properties_from_files_have_the_verdicts_of_the_run(verified):
    folder, _, results = verified
    assert etb("export", "mine", "--onnx", "p.onnx", "--vnnlib", "p", "--images", "0:60", cwd=folder).returncode == 0
    (result,) = results["verifications"]
    robust, broken = ([f for f in result["findings"] if f["verdict"] == word] for word in ("robust", "falsified"))
    for finding in (robust[0], broken[0], broken[-1]):
        answer = etb(
            "verify", "p.onnx", f"p/digits-{finding['image']:05d}-eps0.03.vnnlib", "--timeout", "30", cwd=folder
        )
        assert answer.returncode == 0, answer.stderr
        assert answer.stdout.split()[0] == {"robust": "unsat", "falsified": "sat"}[finding["verdict"]]


def test_properties_of_version_2_have_the_verdicts_of_version_1(verified):
    folder, *_ = verified
    asked = ("--vnnlib", "second", "--vnnlib-version", "2.0", "--images", "0:1", "--eps-test", "0.03")
    written = etb("export", "mine", "--onnx", "second.onnx", *asked, cwd=folder)
    assert written.returncode == 0, written.stderr
    (file,) = (folder / "second").iterdir()
    assert "(declare-input X float32 [1,1,8,8])" in file.read_text()
    answers = []
    for arguments in (("second.onnx", f"second/{file.name}"), (f"second/{file.name}", "--network", "N=second.onnx")):
        answers.append(etb("verify", *arguments, "--timeout", "30", cwd=folder).stdout.split()[0])
    assert answers[0] == answers[1]
    assert answers[0] in ("sat", "unsat")


def test_an_onnx_network_is_verified_like_any_other(verified):
    folder, _, results = verified
    assert etb("export", "mine", "--onnx", "o.onnx", cwd=folder).returncode == 0
    same = ("--dataset", "digits", "--eps-test", "0.03", "--images", "0:60", "--out", "ov")
    assert etb("verify", "o.onnx", *same, cwd=folder).returncode == 0
    (result,) = json.loads((folder / "ov/results.json").read_text())["verifications"]
    assert result["verified_accuracy"] == results["verifications"][0]["verified_accuracy"]


def test_radii_hold_the_verdicts(verified):
    folder, _, results = verified
    search = (
        "--minimum-radius",
        "--images",
        "0:20",
        "--stages",
        "pgd,crown,exact",
        "--precision",
        "0.002",
        "--out",
        "r",
    )
    done = etb("verify", "mine", *search, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "certified" in done.stdout
    (found,) = json.loads((folder / "r/results.json").read_text())["radii"]
    for radius, finding in zip(found["radii"], results["verifications"][0]["findings"][:20], strict=True):
        if finding["verdict"] == "robust":
            assert radius["attacked"] > 0.03
            assert radius["certified"] > 0.03 - 0.003
        else:
            assert radius["certified"] <= 0.03
        assert radius["attacked"] - radius["certified"] < 0.01


def test_a_folder_of_another_networks_verdicts_is_refused(verified):
    folder, _, _ = verified
    arguments = ("--method", "nominal", "--model", "mlp-16x2", "--epochs", "1", "--eps", "0.03", "--out", "other")
    assert etb("train", *arguments, cwd=folder).returncode == 0
    done = etb("verify", "other", "--images", "0:60", "--time-limit", "20", "--out", "v", cwd=folder)
    assert done.returncode == 2
    assert "v holds another experiment (weights " in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("verify", "mine", "--time-limit", "0"), "must be positive"),
        (("verify", "mine", "--images", "5:5"), "holds no image"),
        (("verify", "mine", "--images", "a:b"), "is no range of images; write 0:200"),
        (("verify", "mine", "--images", "0:999"), "are not all there: digits has 360 test images"),
        (("verify", "mine", "--stages", "pgd,expected"), "'expected' is not sound"),
        (("verify", "mine", "--stages", "crwon"), "did you mean crown"),
        (("verify", "mine", "--eps-test", "8"), "write 8/255"),
        (("verify", "mine", "--rigorous", "--stages", "crown,exact"), "knows no rounding in stage .exact."),
        (("verify", "mine", "--solver", "cplex"), "unknown solver 'cplex'"),
        (("verify", "mine", "mine/experiment.yaml"), "a property is about an ONNX network"),
        (("verify", "mine", "--minimum-radius", "--precision", "0"), "0 < precision < largest"),
        (("export", "mine"), "what is to be written"),
        (("export", "mine", "--vnnlib", "q"), "which images"),
        (("export", "mine", "--vnnlib", "q", "--vnnlib-version", "3.0"), "write 1.0 or 2.0"),
    ],
)
def test_a_wrong_call_is_refused_before_work_starts(trained, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(trained)
    monkeypatch.setattr(sys, "argv", ["etb", *arguments])
    monkeypatch.setattr("etb_plugin.cli.verify.limit_memory", lambda size: None)  # this process is not its own
    before = sorted(trained.iterdir())
    with pytest.raises(SystemExit) as stop:
        main()
    complaint = capsys.readouterr().err
    assert stop.value.code == 2, complaint
    assert re.search(words, complaint), complaint
    assert complaint.count("\n") <= 2
    assert sorted(trained.iterdir()) == before


def test_a_property_is_answered_in_time_whatever_holds_it_up(verified):
    """One operation that takes longer than the limit looks at no clock."""
    folder = verified[0]
    assert (
        etb("export", "mine", "--onnx", "late.onnx", "--vnnlib", "late", "--images", "0:1", cwd=folder).returncode == 0
    )
    code = (
        "import time; from etb_plugin.cli import main; from etb_plugin.verification.cascade import Cascade;"
        "Cascade._attack = lambda *_: time.sleep(60); main()"
    )
    arguments = ("verify", "late.onnx", str(next((folder / "late").iterdir())), "--timeout", "1")
    begun = time.monotonic()
    done = subprocess.run(
        (sys.executable, "-c", code, *arguments), cwd=folder, capture_output=True, text=True, timeout=50
    )
    assert (done.stdout, done.returncode) == ("timeout\n", 0)
    assert time.monotonic() - begun < 40
