"""What is read off the source is what the registries hold."""

import os
import re
import subprocess
import sys

import pytest

from etb_plugin.bounds import bounds
from etb_plugin.catalogue import catalogue
from etb_plugin.data import sources
from etb_plugin.experiment import Experiment
from etb_plugin.networks import networks
from etb_plugin.objectives import methods
from etb_plugin.studies import studies
from tests.command import etb

REGISTRIES = {"method": methods, "bound": bounds, "network": networks, "dataset": sources, "study": studies}


@pytest.mark.parametrize("kind", REGISTRIES)
def test_the_catalogue_names_what_the_registry_holds(kind):
    assert set(catalogue(kind)) == set(REGISTRIES[kind]())


def test_the_help_names_every_data_set():
    description = Experiment.model_fields["dataset"].description
    assert set(catalogue("dataset")) <= set(re.findall(r"[\w-]+", description or ""))


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


THEIRS = {
    # a module for each group, which registers when it is imported
    "bounds": '''
from etb_plugin.bounds import register_bound

@register_bound("their-bound", sound=True, differentiable=False, takes="everything")
def theirs(network, input_shape, *, steps=3):
    """Somebody else's bound."""
''',
    "networks": """
from torch import nn
from etb_plugin.networks import register_network

@register_network("their-net", layers="one", source="theirs")
def net(channels, size, classes):
    return [nn.Flatten(), nn.Linear(channels * size * size, classes)]
""",
    "objectives": """
from etb_plugin.objectives import Method, Recipe, register_method
from etb_plugin.objectives.worst_case import WorstCase

register_method(Method("their-method", "Somebody else's method.", WorstCase("ibp"), Recipe("theirs")))
""",
    "data": """
import numpy as np
from etb_plugin.data import Source, register_source

def read(folder, limit):
    images = np.arange(40 * 16, dtype=np.uint8).reshape(40, 4, 4)
    return {"x_train": images, "y_train": np.arange(40) % 3, "x_test": images, "y_test": np.arange(40) % 3}

register_source("their-data", Source(0.05, classes=3, default_model="their-net", read=read))
""",
}


def test_what_other_packages_register_is_listed_trained_and_no_misspelling(tmp_path):
    """Their entry points stand in the metadata of an installed package: here of a folder on the path."""
    for group, code in THEIRS.items():
        (tmp_path / f"their_{group}.py").write_text(code)
    (tmp_path / "theirs-1.dist-info").mkdir()
    (tmp_path / "theirs-1.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1\n")
    points = "".join(f"[etb_plugin.{group}]\ntheirs = their_{group}\n" for group in THEIRS)
    (tmp_path / "theirs-1.dist-info/entry_points.txt").write_text(points)
    for arguments, *said in (
        ("methods", "Somebody else's bound.", "Somebody else's method."),
        ("models", "their-net"),
        ("compare --certify their-bound --dry-run", "ibp"),
        ("compare --dataset their-data --methods their-method,ibp --epochs 1 --pgd-steps 2 --out mine", "their-method"),
    ):
        # With an environment it is a Python of its own, whose registries are not filled yet.
        done = etb(*arguments.split(), cwd=tmp_path, env=os.environ)
        assert done.returncode == 0, done.stderr
        assert all(words in done.stdout for words in said)


def test_an_entry_point_that_fails_is_named_and_the_rest_goes_on(tmp_path):
    (tmp_path / "broken_bound.py").write_text("1 / 0\n")
    (tmp_path / "theirs-1.dist-info").mkdir()
    (tmp_path / "theirs-1.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1\n")
    (tmp_path / "theirs-1.dist-info/entry_points.txt").write_text("[etb_plugin.bounds]\ntheirs = broken_bound\n")
    done = etb("methods", cwd=tmp_path, env=os.environ)
    assert done.returncode == 0
    assert "left out: the bound 'theirs' of package 'broken_bound' cannot be loaded: division by zero" in done.stderr
    assert "crown-ibp" in done.stdout
