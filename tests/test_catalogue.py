"""What is read off the source is what the registries hold."""

import os
import subprocess
import sys

import pytest

from etb_plugin.bounds import bounds
from etb_plugin.catalogue import catalogue
from etb_plugin.data import sources
from etb_plugin.networks import networks
from etb_plugin.objectives import methods
from etb_plugin.studies import studies

REGISTRIES = {"method": methods, "bound": bounds, "network": networks, "dataset": sources, "study": studies}


@pytest.mark.parametrize("kind", REGISTRIES)
def test_the_catalogue_names_what_the_registry_holds(kind):
    assert set(catalogue(kind)) == set(REGISTRIES[kind]())


def test_it_says_of_bounds_and_methods_what_the_registry_says():
    for name, entry in bounds().items():
        read = catalogue("bound")[name]
        assert (read.keywords["sound"], read.keywords["differentiable"]) == (entry.sound, entry.differentiable)
        assert set(read.keywords.get("unsound_with", ())) == set(entry.unsound_with)
        assert read.summary == entry.summary
        assert set(read.options) == set(entry.options) - {"by"}
    for name, method in methods().items():
        assert catalogue("method")[name].arguments[0] == method.summary


def test_once_a_registry_is_there_it_has_the_last_word(tmp_path):
    """A method that a user's own code registers is no misspelling."""
    code = (
        "from dataclasses import replace\n"
        "from etb_plugin.experiment import read_experiment\n"
        "from etb_plugin.objectives import get_method, register_method\n"
        "register_method(replace(get_method('ibp'), name='mine'))\n"
        "print(read_experiment(None, {'methods': 'mine'}).methods[0].label)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == "mine\n", done.stderr


def test_a_bound_of_another_package_is_listed_and_no_misspelling(tmp_path):
    """Its entry point stands in the metadata of an installed package: here of a folder on the path."""
    (tmp_path / "theirs.py").write_text(
        "from etb_plugin.bounds import register_bound\n\n\n"
        "@register_bound('theirs', sound=True, differentiable=False, takes='everything')\n"
        "def theirs(network, input_shape, *, steps=3):\n"
        '    """Somebody else\'s bound."""\n'
    )
    (tmp_path / "theirs-1.dist-info").mkdir()
    (tmp_path / "theirs-1.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1\n")
    (tmp_path / "theirs-1.dist-info/entry_points.txt").write_text("[etb_plugin.bounds]\ntheirs = theirs\n")
    for arguments, said in (("methods", "Somebody else's bound."), ("compare --certify theirs --dry-run", "ibp")):
        done = subprocess.run(
            [sys.executable, "-m", "etb_plugin", *arguments.split()],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(tmp_path)},
        )
        assert done.returncode == 0, done.stderr
        assert said in done.stdout
