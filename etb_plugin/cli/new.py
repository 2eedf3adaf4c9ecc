"""`etb new`: a small package with a bound, a method, a model or the like of your own, ready to be filled in."""

import re
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Annotated

import typer

from etb_plugin.catalogue import catalogue
from etb_plugin.cli import options as o
from etb_plugin.errors import ConfigError, unknown_name
from etb_plugin.files import write_file

_KINDS = {
    # the group of its entry point, what errors call it, and a command to use it by
    "bound": ("bounds", "bound", "etb bounds --methods ibp,$name"),
    "method": ("objectives", "method", "etb compare --methods ibp,$name --epochs 5"),
    "model": ("networks", "network", "etb compare --model $name --methods ibp --epochs 5"),
    "attack": ("attacks", "attack", "etb compare --methods ibp --attack $name --epochs 5"),
    "dataset": ("data", "dataset", "etb compare --dataset $name --methods ibp --epochs 5"),
}


def command(
    kind: Annotated[str, typer.Argument(help=f"{', '.join(_KINDS)}.", show_default=False)],
    name: Annotated[
        str, typer.Argument(help="What it will be called: small letters, digits and hyphens.", show_default=False)
    ],
) -> None:
    """Write a package with a bound, a method, a model, an attack or a data set of your own into the new folder NAME.

    It works as it is, and its test passes: put your own in place of what is there. Installed beside etb_plugin, it is
    known by its name in every command.

    Example: etb new bound my-bound
    """
    if kind not in _KINDS:
        raise unknown_name("kind", kind, _KINDS)
    group, called, use = _KINDS[kind]
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise ConfigError(f"{name!r} is no name for it: write small letters, digits and hyphens, such as my-{kind}")
    if name in catalogue(called):
        raise ConfigError(f"there is a {called} {name!r} already: choose another name")
    folder = Path(name)
    if folder.exists():
        raise ConfigError(f"{folder} exists already: choose another name, or another place to work in")
    module = name.replace("-", "_")
    words = {"kind": kind, "group": group, "name": name, "module": module}
    words["command"] = Template(use).substitute(words)
    for template, file in (
        ("pyproject.toml.txt", "pyproject.toml"),
        ("README.md.txt", "README.md"),
        (f"{kind}.py.txt", f"{module}.py"),
        (f"{kind}_test.py.txt", f"test_{module}.py"),
    ):
        text = files("etb_plugin").joinpath("templates", template).read_text()
        write_file(folder / file, Template(text).substitute(words))
    o.stdout().print(f"Written: {folder}/{module}.py, its test, and what pip needs. Next:", highlight=False)
    o.stdout().print(f"  pip install --editable {folder} && {words['command']}", highlight=False, soft_wrap=True)
