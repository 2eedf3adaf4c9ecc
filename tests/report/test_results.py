"""The page of results says what the committed files say."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def checked(root):
    command = [sys.executable, "-W", "ignore", "compare/page.py", "--check"]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)


def test_the_page_of_results_is_what_the_files_say(tmp_path):
    done = checked(ROOT)
    assert done.returncode == 0, done.stderr
    for folder in ("compare", "docs"):
        (tmp_path / folder).mkdir()
    for name in ("compare/page.py", "compare/page.yaml", "compare/losses.yaml", "docs/results.md", "docs/losses.md"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / "compare/results").mkdir()
    for file in (ROOT / "compare/results").glob("*.json"):
        content = json.loads(file.read_text())
        if file.stem == "digits-demo":
            content["cells"][0]["clean_accuracy"] = 0.99
        (tmp_path / "compare/results" / file.name).write_text(json.dumps(content))
    assert "differs from the results" in checked(tmp_path).stderr
    (tmp_path / "compare/results/new.json").write_text(json.dumps(content | {"cells": []}))
    assert "does not say how these were made: new" in checked(tmp_path).stderr
