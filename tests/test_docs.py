"""The documentation: examples run, links lead somewhere, and no method or command is missing."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from etb_plugin.cli.main import COMMANDS
from etb_plugin.experiment import read_experiment
from etb_plugin.objectives import methods
from etb_plugin.studies import studies
from tests.command import python

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "compare/results/README.md"])


MARKS = {
    "art_classifier.py": pytest.mark.slow,
    "bound_a_network.py": pytest.mark.slow,
    "compare_and_verify.sh": pytest.mark.slow,  # the tutorial runs much the same
    "inside_auto_lirpa.py": pytest.mark.lirpa,
    "lightning_module.py": pytest.mark.slow,
    "train_evaluate_verify.py": pytest.mark.slow,  # test_api does the same
    "transformer.py": pytest.mark.slow,
    # An extra: its wheel has to be of the same build as torch's, which setting up for tests does not see to.
    "torchvision_network.py": pytest.mark.skipif(find_spec("torchvision") is None, reason="torchvision is an extra"),
}
EXAMPLES = [
    pytest.param(script, id=script.name, marks=MARKS.get(script.name, ()))
    for script in sorted((ROOT / "examples").iterdir())
]


@pytest.mark.parametrize("script", EXAMPLES)
def test_an_example_runs(script, tmp_path):
    if script.suffix == ".py":
        done = python(script, cwd=tmp_path)
    else:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            ("sh", script), cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
        )
    assert done.returncode == 0, done.stderr
    assert "expected" in done.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_that_pages_name_exist(page):
    text = page.read_text()
    for command in re.findall(r"(?:^ {4}|`)etb ([a-z]+)", text, re.MULTILINE):
        assert command in COMMANDS, command
    for study in re.findall(r"etb study ([a-z0-9-]+)", text):
        assert study in studies(), study


def test_every_method_and_study_has_its_line():
    named = set(re.findall(r"^\| `([\w-]+)`", (ROOT / "docs/methods.md").read_text(), re.MULTILINE))
    assert named == set(methods())
    reproducing = (ROOT / "docs/reproducing.md").read_text()
    of_papers = {name for name, study in studies().items() if study.source != "ours"}
    assert all(f"etb study {name}" in reproducing for name in of_papers)
    for file in (ROOT / "configs/papers").glob("*.yaml"):
        assert file.name.split("-")[0] in reproducing.lower()


def test_the_experiment_of_the_guide_is_one(tmp_path):
    text = (ROOT / "docs/experiments.md").read_text()
    for number, block in enumerate(re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)):
        assert yaml.safe_load(block)
        (tmp_path / f"{number}.yaml").write_text(block)
        read_experiment(tmp_path / f"{number}.yaml", {}).resolved()


def test_the_site_builds_without_a_broken_link_and_fetches_nothing(tmp_path):
    command = (sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site"))
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for page in (tmp_path / "site").rglob("*.html"):
        text = page.read_text()
        assert not re.search(r"(?:src=|<link [^>]*href=|@import )[\"']?(?:https?:)?//", text), page
    assert "<math" in (tmp_path / "site/losses.html").read_text()
    assert "&gt;&gt;&gt; train(" in re.sub("<[^>]+>", "", (tmp_path / "site/reference.html").read_text())


def blocks(page):
    """The blocks of code that a page has one run: language, the file that it is to be saved as, and text."""
    found = re.findall(r'```(sh|python)(?: title="([^"]+)")?\n(.*?)```', (ROOT / page).read_text(), re.DOTALL)
    assert found
    return found


def read_aloud(script, folder):
    """Run a script in a process of its own, and return what it printed."""
    (folder / "script.py").write_text(script)
    done = python(folder / "script.py", cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


BEFORE = """
import etb_plugin, torch
from auto_LiRPA import BoundedModule, BoundedTensor, PerturbationLpNorm

network = net = etb_plugin.networks.build("mlp-12x2", (1, 28, 28), 10, seed=0).eval()
images, labels = torch.rand(40, 1, 28, 28), torch.arange(40) % 10
x, region, loader = images[:2], PerturbationLpNorm(eps=0.01), [(images, labels)]
C = torch.eye(10).expand(2, 10, 10)
"""
AFTER = {
    "README.md": """
assert lower.shape == (2, 10)
assert certified.shape == interval.lower.shape == (40, 9)
assert callable(loss)
""",
    "docs/expected-bound.md": "assert interval.lower.shape == (40, 9)",
    "docs/adding.md": """
interval = etb_plugin.bound("mine", network, etb_plugin.Box.around(images, 0.1))
assert interval.lower.shape == (40, 10)
assert not interval.sound
etb_plugin.train(network, (images, labels), method="mine", eps=0.1, epochs=1)
""",
}


@pytest.mark.lirpa
@pytest.mark.parametrize("page", AFTER)
def test_every_block_runs_with_the_network_and_images_that_it_takes_for_granted(page, tmp_path):
    text = "\n".join(text for _, _, text in blocks(page))
    shorter = re.sub(r"(?<=compare\()", "epochs=1, ", text)
    read_aloud(f"{BEFORE}\n{shorter}\n{AFTER[page]}", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("page", ["docs/tutorial.md", "docs/python.md"])
def test_every_block_of_code_runs(page, tmp_path):
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment["PYTHONPATH"] = f"{ROOT}:{tmp_path}"
    script = []
    for language, title, text in blocks(page):
        if title:
            (tmp_path / title).write_text(text)
        elif language == "python":
            script.append(text)
        else:
            command = ("sh", "-c", text)
            done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
            assert done.returncode == 0, done.stderr
    assert "crown" in read_aloud("\n".join(script), tmp_path)
