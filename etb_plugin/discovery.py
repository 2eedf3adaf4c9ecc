"""How a new file registers itself: importing a package imports all of its files."""

from importlib import import_module
from pkgutil import iter_modules


def import_files(package: str) -> None:
    """Import every file of `package`, so that each registers what is in it."""
    for module in iter_modules(import_module(package).__path__):
        import_module(f"{package}.{module.name}")
