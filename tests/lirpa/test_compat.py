"""Each alias works, and is applied only where it is missing."""

import sys

import pytest
import torch
from torch import nn

from etb_plugin.lirpa import compat


def test_numpys_isin_is_where_auto_lirpa_looks_for_it():
    compat.apply()  # as when auto_LiRPA arrives
    from numpy.lib.arraysetops import isin

    assert isin([1, 2], [2]).tolist() == [False, True]


def test_an_existing_arraysetops_is_left_alone(monkeypatch):
    mark = object()
    monkeypatch.setitem(sys.modules, "numpy.lib.arraysetops", mark)
    compat.apply()
    assert sys.modules["numpy.lib.arraysetops"] is mark


def test_the_opset_setter_sets_the_opset_and_an_existing_one_is_left_alone(monkeypatch):
    from torch.onnx import symbolic_helper

    symbolic_helper._set_opset_version(12)
    settings = compat._first_module("torch.onnx._internal.torchscript_exporter._globals", "torch.onnx._globals")
    assert settings.GLOBALS.export_onnx_opset_version == 12
    mark = object()
    monkeypatch.setattr(symbolic_helper, "_set_opset_version", mark)
    compat.apply()
    assert symbolic_helper._set_opset_version is mark


def test_a_graph_node_gives_its_attributes_by_name(monkeypatch):
    graph = torch._C.Graph()
    node = graph.create("prim::Constant")
    node.i_("value", 7)
    assert node["value"] == 7
    mark = object()
    monkeypatch.setattr(torch._C.Node, "__getitem__", mark)
    compat.apply()
    assert torch._C.Node.__getitem__ is mark


def test_named_members_takes_remove_duplicate_and_a_newer_one_is_left_alone():
    class Old(nn.Module):
        def _named_members(self, get_members_fn, prefix="", recurse=True):
            yield from super()._named_members(get_members_fn, prefix=prefix, recurse=recurse)

    compat.patch_bounded_module(Old)
    module = Old()
    module.a = nn.Linear(1, 1)
    module.b = module.a
    assert len(list(module.named_parameters())) == 2
    assert len(list(module.named_parameters(remove_duplicate=False))) == 4
    patched = Old._named_members
    compat.patch_bounded_module(Old)
    assert Old._named_members is patched


@pytest.mark.parametrize("names", [("no_such_module", "math"), ("math",)])
def test_the_first_module_that_exists_is_taken(names):
    assert compat._first_module(*names).__name__ == "math"
