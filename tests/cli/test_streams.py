"""Nothing on the terminal that is not ours: libraries' greetings and warnings stay off both streams."""

import os
import re

import pytest

from tests.cli.test_cli import QUICK
from tests.command import etb

FOREIGN = re.compile(r"warn|highs \d|copyright|cuda_home|site-packages|traceback", re.IGNORECASE)


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """A function that runs `etb` where torch finds a CUDA toolkit and no GPU, and returns its two streams."""
    folder = tmp_path_factory.mktemp("streams")

    def run(*arguments):
        done = etb(*arguments, cwd=folder, env=os.environ | {"CUDA_HOME": str(folder), "CUDA_VISIBLE_DEVICES": ""})
        assert done.returncode == 0, done.stderr
        return done.stdout, done.stderr

    run("train", "--method", "pgd", "--eps", "0.02", *QUICK[:6], "--out", "mine")
    return run


def clean(streams):
    for text in streams:
        assert not FOREIGN.search(text), text
    return streams[0]


def test_our_own_certifiers_and_solvers_say_nothing(said):
    certify = "ibp,crown,alpha-crown,exact:time_limit=1,dual:by=convex_adversarial"
    assert clean(said("evaluate", "mine", "--certify", certify, "--test-limit", "4", "--pgd-steps", "2"))


@pytest.mark.lirpa
def test_auto_lirpa_says_nothing(said):
    certify = ",".join(f"{name}:by=auto_LiRPA" for name in ("ibp", "crown-ibp", "crown"))
    assert clean(said("evaluate", "mine", "--certify", certify, "--test-limit", "4", "--pgd-steps", "2"))
    assert clean(said("bounds", "--checkpoint", "mine", "--methods", "ibp,crown:by=auto_LiRPA", "--test-limit", "4"))


def test_a_property_is_answered_by_its_verdict_alone(said):
    pytest.importorskip("onnx")
    clean(said("export", "mine", "--onnx", "n.onnx", "--vnnlib", "p", "--images", "0:2", "--eps-test", "0.01"))
    answer = clean(said("verify", "n.onnx", "p/digits-00000-eps0.01.vnnlib", "--stages", "exact", "--timeout", "20"))
    assert answer.split()[0] in ("sat", "unsat")
    assert re.fullmatch(r"unsat|sat\n\(.*\)", answer.strip(), re.DOTALL)


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(("compare", "--methods", "nominal,ibp", *QUICK, "--out", "both"), marks=pytest.mark.slow),
        ("verify", "mine", "--images", "0:4", "--time-limit", "2"),
        pytest.param(("study",), marks=pytest.mark.slow),
        pytest.param(("models",), marks=pytest.mark.slow),
        ("methods", "crown"),
    ],
    ids=lambda value: value[0],
)
def test_other_commands_say_nothing_of_others(said, arguments):
    assert clean(said(*arguments))
