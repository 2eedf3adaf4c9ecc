"""Waits for auto_LiRPA: makes it ready and adds our method as soon as somebody imports it. Imports nothing itself."""

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


def register() -> None:
    """Add `method="expected"` to auto_LiRPA, now or as soon as it is imported. Calling it again changes nothing;
    importing the package does it."""
    if "auto_LiRPA" in sys.modules:
        _arrived(sys.modules["auto_LiRPA"])
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    """Finds auto_LiRPA as everybody would, makes ready what its release 0.3 misses, and adds the method behind it."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "auto_LiRPA":
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            sys.meta_path.insert(0, self)
        if spec is None or spec.loader is None:
            return None
        run = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:  # not before: whoever looks for it need not import it
            from etb_plugin.lirpa import compat

            compat.apply()
            run(module)
            _arrived(module)
            sys.meta_path.remove(self)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _arrived(module: ModuleType) -> None:
    from etb_plugin.lirpa.hook import add_expected

    add_expected(module)
