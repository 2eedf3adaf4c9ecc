"""The first word comes at once: help, listings and refusals import neither torch nor much else."""

import re
import subprocess
import sys

import pytest

from etb_plugin.cli.main import COMMANDS

MOST = 600
"""Modules that such a call may import; torch alone brings more than a thousand."""


def imported(*arguments, cwd):
    """Return the exit status, what was said, and the modules that a call of `etb` imports."""
    command = [sys.executable, "-X", "importtime", "-m", "etb_plugin", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=120)
    lines = done.stderr.splitlines()
    said = done.stdout + "\n".join(line for line in lines if not line.startswith("import time:"))
    return done.returncode, said, {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}


CALLS = [
    (["--help"], 0, "compare"),
    (["--version"], 0, r"\d+\.\d+"),
    (["methods"], 0, "crown-ibp"),
    *(([name, "--help"], 0, "Usage") for name in COMMANDS if name != "status"),
    ([], 2, "Usage"),
    (["comparre"], 2, "comparre"),
    (["compare", "--epoch", "3"], 2, "--epochs"),
    (["compare", "--eps", "8"], 2, "8/255"),
    (["compare", "--methods", "ibpp"], 2, "did you mean ibp"),
    (["compare", "--model", "smal"], 2, "did you mean small"),
    (["compare", "--dataset", "minst"], 2, "did you mean mnist"),
    (["compare", "--certify", "crwn"], 2, "did you mean crown"),
    (["compare", "--device", "tpu"], 2, "unknown device"),
    (["compare", "none.yaml"], 2, r"none\.yaml"),
    (["train"], 2, "which method"),
    (["evaluate", "none"], 2, "there is no file or folder none"),
    (["verify", "none.onnx", "none.vnnlib"], 2, "there is no file or folder none"),
    (["report", "none"], 2, "there is no file or folder none"),
    (["report", ".", "--format", "nonsense"], 2, "markdown"),
    (["study", "dept"], 2, "did you mean depth"),
]


@pytest.mark.parametrize(("arguments", "status", "pattern"), CALLS, ids=lambda value: str(value))
def test_help_listings_and_refusals_do_not_wait_for_torch(arguments, status, pattern, tmp_path):
    returncode, said, modules = imported(*arguments, cwd=tmp_path)
    assert returncode == status, said
    assert re.search(pattern, said)
    heavy = {"torch", "numpy", "scipy", "sklearn", "matplotlib", "auto_LiRPA", "convex_adversarial"} & modules
    assert not heavy
    assert len(modules) < MOST


def test_training_waits_for_torch_and_little_else(tmp_path):
    """Neither scikit-learn, whose digits are read, nor torch's compiler: each takes as long as torch itself."""
    arguments = ("--method", "ibp", "--epochs", "1", "--train-limit", "200", "--out", "run")
    returncode, said, modules = imported("train", *arguments, cwd=tmp_path)
    assert returncode == 0, said
    assert "torch" in modules
    heavy = {"sklearn", "torch._dynamo", "sympy", "auto_LiRPA"} & modules
    assert not heavy


def test_names_are_completed_without_torch(tmp_path):
    environment = {
        "_ETB_COMPLETE": "complete_bash",
        "COMP_WORDS": "etb compare --methods ibp,crown-",
        "COMP_CWORD": "3",
    }
    code = "import sys\nfrom etb_plugin.cli import main\ntry:\n main()\nfinally:\n print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=60
    )
    assert done.stdout.split() == ["ibp,crown-ibp", "False"], done.stderr
