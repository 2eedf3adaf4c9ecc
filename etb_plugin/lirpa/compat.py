"""Supplies the few names that auto_LiRPA 0.3 expects of older torch and numpy.

Each alias is applied only where the name is missing, so all of it does nothing beside upstream 0.7 and
older libraries. `apply` must run before auto_LiRPA is imported; `arrival` calls it then.
"""

import contextlib
import functools
import importlib
import importlib.util
import inspect
import io
import logging
import sys
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch


def apply() -> None:
    """Apply every alias that is missing. Calling it again changes nothing."""
    _numpy_arraysetops()
    _opset_setter()
    _node_subscript()
    _cuda_home()


def _cuda_home() -> None:
    """auto_LiRPA imports torch.utils.cpp_extension, which says that a CUDA toolkit lacks a GPU: nobody asked."""
    logger = logging.getLogger("torch.utils.cpp_extension")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # torch before 2.7 prints it
            importlib.import_module("torch.utils.cpp_extension")
    finally:
        logger.setLevel(level)


def _numpy_arraysetops() -> None:
    """numpy 2 made `numpy.lib.arraysetops` private; auto_LiRPA takes `isin` from it."""
    name = "numpy.lib.arraysetops"
    if name in sys.modules or importlib.util.find_spec(name) is not None:
        return
    module = types.ModuleType(name)
    module.isin = np.isin  # type: ignore[attr-defined]
    sys.modules[name] = module


def _opset_setter() -> None:
    """torch moved the ONNX opset behind `GLOBALS`; auto_LiRPA calls the old setter when it parses a graph."""
    helper = importlib.import_module("torch.onnx.symbolic_helper")
    if hasattr(helper, "_set_opset_version"):
        return
    settings: Any = _first_module("torch.onnx._internal.torchscript_exporter._globals", "torch.onnx._globals")

    def set_opset_version(version: int) -> None:
        settings.GLOBALS.export_onnx_opset_version = version

    helper.__dict__["_set_opset_version"] = set_opset_version


def _node_subscript() -> None:
    """torch removed `node[attribute]` from graph nodes; auto_LiRPA reads attributes with it."""
    node_type = torch._C.Node
    if hasattr(node_type, "__getitem__"):
        return

    def attribute(node: Any, key: str) -> Any:
        return getattr(node, node.kindOf(key))(key)

    setattr(node_type, "__getitem__", attribute)  # noqa: B010 (a C type: the checker knows no assignment)


def patch_bounded_module(bounded_module: type) -> None:
    """Give `bounded_module._named_members` the `remove_duplicate` argument that torch passes since 2.0.

    Without it auto_LiRPA 0.3 stops with a TypeError on residual networks.
    """
    original = bounded_module._named_members  # type: ignore[attr-defined]
    if "remove_duplicate" in inspect.signature(original, follow_wrapped=False).parameters:
        return

    @functools.wraps(original)
    def named_members(
        self: Any, get_members_fn: Any, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Any]]:
        if remove_duplicate:
            yield from original(self, get_members_fn, prefix=prefix, recurse=recurse)
        else:
            yield from torch.nn.Module._named_members(
                self, get_members_fn, prefix=prefix, recurse=recurse, remove_duplicate=False
            )

    bounded_module._named_members = named_members  # type: ignore[attr-defined]


def _first_module(*names: str) -> types.ModuleType:
    for name in names[:-1]:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError:
            continue
    return importlib.import_module(names[-1])
