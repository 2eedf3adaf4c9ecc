"""The house keeps its order: nothing imports what stands above it, and what is said twice is said alike."""

import ast
import re
from copy import copy
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
FLOORS = (
    {"errors", "stopping", "memory", "registry", "own", "shapes", "catalogue", "precision"},
    {"files", "shown"},
    {"graph"},
    {"networks", "data"},
    {"bounds"},
    {"attacks"},
    {"lirpa"},
    {"objectives"},
    {"evaluation", "training"},
    {"experiment"},
    {"results"},
    {"verification"},
    {"comparison"},
    {"bench"},
    {"report"},
    {"api"},
    {"studies", "selftest"},
    {"cli", "__main__"},
)
HEIGHT = {name: height for height, floor in enumerate(FLOORS) for name in floor}
FILES = sorted(p for p in (ROOT / "etb_plugin").rglob("*.py") if p != ROOT / "etb_plugin/__init__.py")


def part_of(path: Path) -> str:
    return path.relative_to(ROOT / "etb_plugin").parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Return the parts of the package that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "etb_plugin":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("etb_plugin."):
            names.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("etb_plugin.")}
    return names & set(HEIGHT)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT / "etb_plugin")))
def test_a_file_imports_only_what_stands_below_it(path):
    above = {name for name in imported(path) if HEIGHT[name] > HEIGHT[part_of(path)]}
    assert not above


def test_no_deadline_or_pace_is_of_a_clock_that_can_be_set():
    for path in FILES:
        assert not re.search(r"time\.time\(|datetime\.now|from time import", path.read_text()), path


def test_nothing_but_the_package_itself_imports_what_knows_auto_lirpa():
    """Delete the folder and its line in `etb_plugin/__init__.py`, and everything else works."""
    outside = [path for path in FILES if part_of(path) != "lirpa"]
    assert not [path for path in outside if "lirpa" in imported(path)]
    assert not [path for path in outside if "auto_LiRPA" in names_imported(path)]


def names_imported(path: Path) -> set[str]:
    """Return the packages that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
    return names


def test_the_bound_of_the_guide_works(tmp_path, monkeypatch):
    from etb_plugin import Box, bound
    from etb_plugin.bounds import registry
    from tests.conftest import fully_connected

    monkeypatch.setattr(registry, "_registry", copy(registry._registry))
    (code,) = re.findall(r'```python\n("""The bound `mine`.*?)```', (ROOT / "docs/adding.md").read_text(), re.DOTALL)
    exec(compile(code, "mine.py", "exec"), {"__name__": "mine"})
    network, box = fully_connected(4, 6, 3), Box.around(torch.rand(2, 1, 2, 2), 0.1)
    mine, ibp = bound("mine", network, box), bound("ibp", network, box)
    torch.testing.assert_close((mine.lower, mine.upper), (ibp.lower, ibp.upper))
    assert not mine.sound


def test_the_method_of_the_guide_works(monkeypatch):
    from etb_plugin.data import load
    from etb_plugin.networks import build
    from etb_plugin.objectives import get_method, registry
    from etb_plugin.training import Settings, train

    monkeypatch.setattr(registry, "_registry", copy(registry._registry))
    (code,) = re.findall(r'```python\n("""The method `mine`.*?)```', (ROOT / "docs/adding.md").read_text(), re.DOTALL)
    exec(compile(code, "mine.py", "exec"), {"__name__": "mine"})
    digits = load("digits", train_limit=50)
    training = train(build("mlp-5x1", (1, 8, 8), 10), get_method("mine"), digits, Settings(0.1, epochs=1))
    assert training.epochs[-1].robust_loss > 0
