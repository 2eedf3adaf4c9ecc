"""Packages that `etb new` writes: built, installed in an environment of their own, tested and used."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.command import etb

KINDS = {"bound": "my-bound", "method": "my-method", "model": "my-model", "attack": "my-attack", "dataset": "my-data"}


def test_one_of_each_is_built_installed_tested_and_used(tmp_path):
    for kind, name in KINDS.items():
        done = etb("new", kind, name, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert f"pip install --editable {name} && etb " in done.stdout
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def run(*words):
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run(sys.executable, "-m", "venv", "--without-pip", "fresh")
    python = str(tmp_path / "fresh/bin/python")
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    ours = sysconfig.get_path("purelib")  # torch and the rest are not installed again
    Path(site, "ours.pth").write_text(f"import site; site.addsitedir({ours!r})\n")
    folders = [f"./{name}" for name in KINDS.values()]
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", *folders)
    assert "passed" in run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *folders)
    flags = ("--model", "my-model", "--methods", "my-method,ibp", "--certify", "ibp,my-bound", "--dataset", "my-data")
    flags += ("--attack", "my-attack")
    run(python, "-m", "etb_plugin", "compare", *flags, "--epochs", "1", "--pgd-steps", "2", "--out", "run")
    cells = json.loads((tmp_path / "run/results.json").read_text())["cells"]
    assert [cell["method"] for cell in cells] == ["my-method", "ibp"]
    assert all(cell["attacked_accuracy"]["my-attack"] <= cell["pgd_accuracy"] for cell in cells)
    assert all(cell["certified_accuracy"]["my-bound"] == cell["certified_accuracy"]["ibp"] for cell in cells)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("bond", "mine"), "unknown kind 'bond'; did you mean bound?"),
        (("bound", "My_Bound"), "small letters, digits and hyphens, such as my-bound"),
        (("bound", "../mine"), "is no name for it"),
        (("method", "ibp"), "there is a method 'ibp' already"),
        (("model", "there"), "there exists already"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_written(tmp_path, words, message):
    (tmp_path / "there").mkdir()
    done = etb("new", *words, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]
