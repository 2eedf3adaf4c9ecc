"""auto_LiRPA's own entry point: the new method, and everything else as it was."""

import math
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

pytest.importorskip("auto_LiRPA")
from auto_LiRPA import BoundedModule, BoundedTensor, PerturbationLpNorm
from torch import nn

import etb_plugin
from etb_plugin import Ball, Box, bound, margin_spec
from etb_plugin.errors import ConfigError, UnsupportedLayer
from etb_plugin.lirpa import compat
from etb_plugin.networks import build
from tests.conftest import Branching, fully_connected


def perturbed(box: Box) -> tuple[BoundedTensor]:
    return (BoundedTensor(box.center, PerturbationLpNorm(norm=math.inf, x_L=box.lower, x_U=box.upper)),)


@pytest.mark.parametrize("network", ["tiny", "wk-resnet", "cnn7-bn", "branching"])
@pytest.mark.parametrize("masks", ["ibp", "blockwise", "sketch", "center", "slope"])
def test_compute_bounds_equals_bound(network, masks):
    if masks == "blockwise" and network in ("wk-resnet", "cnn7-bn"):
        pytest.skip("thousands of rows a layer: the smaller networks take the same path")
    net = Branching() if network == "branching" else build(network, (1, 8, 8), 5, seed=0)
    box = Box.around(torch.rand(3, 1, 8, 8), 0.05)
    graph = BoundedModule(net.eval(), box.center, bound_opts={"expected": {"masks": masks}})
    for spec in (None, margin_spec(torch.tensor([0, 1, 4]), 5)):
        lower, upper = graph.compute_bounds(x=perturbed(box), C=spec, method="expected")
        want = bound("expected", net, box, spec, masks=masks)
        scale = want.width.max().item()
        torch.testing.assert_close(lower, want.lower, rtol=1e-5, atol=1e-6 * scale)
        torch.testing.assert_close(upper, want.upper, rtol=1e-5, atol=1e-6 * scale)


@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")  # how auto_LiRPA finds the dual norm of 1
@pytest.mark.parametrize("norm", [1, 2])
def test_balls_are_taken_as_auto_lirpa_names_them(norm):
    net, images = build("tiny", (1, 8, 8), 5, seed=0).eval(), torch.rand(3, 1, 8, 8)
    x = (BoundedTensor(images, PerturbationLpNorm(norm=norm, eps=0.4)),)
    lower, upper = BoundedModule(net, images).compute_bounds(x=x, method="expected")
    want = bound("expected", net, Ball(images, 0.4, norm))
    torch.testing.assert_close((lower, upper), (want.lower, want.upper), rtol=1e-4, atol=1e-5)


def test_leaky_relus_are_taken_from_auto_lirpas_graph():
    net = nn.Sequential(nn.Linear(4, 9), nn.LeakyReLU(0.2), nn.Linear(9, 7), nn.LeakyReLU(), nn.Linear(7, 3))
    box = Box.around(torch.rand(2, 4), 0.2)
    lower, upper = BoundedModule(net, box.center).compute_bounds(x=perturbed(box), method="expected")
    want = bound("expected", net, box)
    torch.testing.assert_close((lower, upper), (want.lower, want.upper))


def test_other_methods_give_bit_for_bit_what_they_gave():
    net, box = build("tiny", (1, 8, 8), 5, seed=0).eval(), Box.around(torch.rand(3, 1, 8, 8), 0.05)
    graph = BoundedModule(net, box.center)
    original = BoundedModule.compute_bounds.__wrapped__
    for method in ("IBP", "CROWN-IBP", "CROWN", "alpha-CROWN", "forward"):
        hooked = graph.compute_bounds(x=perturbed(box), method=method)
        plain = original(BoundedModule(net, box.center), x=perturbed(box), method=method)
        assert all(torch.equal(a, b) for a, b in zip(hooked, plain, strict=True)), method


def test_registering_again_changes_nothing():
    before = BoundedModule.compute_bounds
    etb_plugin.register()
    assert BoundedModule.compute_bounds is before


def test_a_side_not_asked_for_is_none_and_x_can_be_reused():
    net, box = fully_connected(4, 6, 3), Box.around(torch.rand(2, 4), 0.1)
    graph = BoundedModule(net, box.center)
    lower, upper = graph.compute_bounds(x=perturbed(box), method="expected", bound_upper=False)
    again, _ = graph.compute_bounds(method="expected")
    assert upper is None
    torch.testing.assert_close(lower, again)


@pytest.mark.parametrize("layer", [nn.Sigmoid(), nn.Tanh()], ids=["sigmoid", "tanh"])
def test_smooth_activations_give_what_the_function_gives(layer):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 6), layer, nn.Linear(6, 3)).double()
    box = Box.around(torch.rand(2, 4, dtype=torch.float64), 0.2)
    lower, upper = BoundedModule(network, box.center).compute_bounds(x=perturbed(box), method="expected")
    want = bound("expected", network, box)
    torch.testing.assert_close(lower, want.lower)
    torch.testing.assert_close(upper, want.upper)


def test_what_it_cannot_take_is_refused_by_name():
    box = Box.around(torch.rand(2, 4), 0.1)

    class Exponential(nn.Module):
        def forward(self, x):
            return torch.exp(x)

    exponential = nn.Sequential(nn.Linear(4, 3), Exponential())
    with pytest.raises(UnsupportedLayer, match=r"\(Exp\) is neither affine nor an elementwise function"):
        BoundedModule(exponential, box.center).compute_bounds(x=perturbed(box), method="expected")
    ball = (BoundedTensor(box.center, PerturbationLpNorm(norm=3, eps=0.1)),)
    with pytest.raises(ConfigError, match="takes l_inf, l_2 and l_1 balls"):
        BoundedModule(fully_connected(4, 3), box.center).compute_bounds(x=ball, method="expected")
    graph = BoundedModule(fully_connected(4, 3), box.center, bound_opts={"expected": {"mask": "ibp"}})
    with pytest.raises(ConfigError, match="takes no option 'mask'; its options: masks, center"):
        graph.compute_bounds(x=perturbed(box), method="expected")
    with pytest.raises(ConfigError, match="takes no argument 'return_A'"):
        BoundedModule(fully_connected(4, 3), box.center).compute_bounds(
            x=perturbed(box), method="expected", return_A=True
        )


ORDERS = {
    "ours first": "import etb_plugin\nimport sys\nassert 'auto_LiRPA' not in sys.modules\nimport auto_LiRPA\n",
    "theirs first": (
        "import runpy, sys\n"
        "runpy.run_path({compat!r})['apply']()\n"  # what 0.3 needs to be imported at all beside today's numpy
        "import auto_LiRPA\nassert 'etb_plugin' not in sys.modules\nimport etb_plugin\n"
    ),
    "looked for first": (
        "import etb_plugin\nfrom importlib.util import find_spec\n"
        "assert find_spec('auto_LiRPA') and find_spec('auto_LiRPA')\nimport auto_LiRPA\n"
    ),
    "from within": "import etb_plugin\nfrom auto_LiRPA.bound_general import BoundedModule as same\n",
}


@pytest.mark.parametrize(
    "order",
    [
        pytest.param(order, marks=[pytest.mark.slow] * (order in ("looked for first", "from within")))
        for order in ORDERS
    ],
)
def test_the_method_is_there_in_whichever_order_both_are_imported(order):
    code = ORDERS[order].format(compat=compat.__file__) + (
        "import torch\nfrom torch import nn\n"
        "from auto_LiRPA import BoundedModule, BoundedTensor, PerturbationLpNorm\n"
        "net, x = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)), torch.rand(2, 4)\n"
        "region = PerturbationLpNorm(norm=float('inf'), eps=0.1)\n"
        "lower, upper = BoundedModule(net, x).compute_bounds(x=(BoundedTensor(x, region),), method='expected')\n"
        "ours = etb_plugin.bound('expected', net, etb_plugin.Box.around(x, 0.1, clip=None))\n"
        "print(float((lower - ours.lower).abs().max()), float((upper - ours.upper).abs().max()))\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert max(map(float, done.stdout.split())) < 1e-6


def test_our_commands_do_not_import_auto_lirpa():
    code = (
        "import sys\nfrom etb_plugin.cli import main\nsys.argv = ['etb', 'compare', '--methods', 'crown', '--epochs', "
        "'1', '--train-limit', '50', '--test-limit', '10', '--model', 'mlp-5x1', '--out', sys.argv[1]]\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "assert 'auto_LiRPA' not in sys.modules\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", code, str(Path(folder) / "run")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
