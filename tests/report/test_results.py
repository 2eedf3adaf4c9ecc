"""The page of results says what the committed files say."""

import json
import shutil
from pathlib import Path

from tests.command import python

ROOT = Path(__file__).parents[2]


def checked(root):
    return python(root / "compare/page.py", "--check", cwd=root)


def test_the_page_of_results_is_what_the_files_say(tmp_path):
    done = checked(ROOT)
    assert done.returncode == 0, done.stderr
    for folder in ("compare", "docs"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    shutil.copy(ROOT / "README.md", tmp_path)
    demo = tmp_path / "compare/results/digits-demo.json"
    content = json.loads(demo.read_text())
    content["cells"][0]["clean_accuracy"] = 0.99
    demo.write_text(json.dumps(content))
    card = tmp_path / "compare/models/mnist-0.1-ibp-small.json"
    measured = json.loads(card.read_text())
    measured["measured"][0]["row"]["pgd_accuracy"] = 0.99
    card.write_text(json.dumps(measured))
    assert checked(tmp_path).stderr == "results.md, zoo.md differ from the results: run python compare/page.py\n"
    (tmp_path / "compare/results/new.json").write_text(json.dumps(content | {"cells": []}))
    assert "does not say how these were made: new" in checked(tmp_path).stderr
