"""A cascade of networks, against its definition on a grid of points."""

import itertools
import json

import torch

from etb_plugin.attacks import Pgd
from etb_plugin.bounds import Box
from etb_plugin.networks import build
from etb_plugin.verification import Settings, Verdict
from etb_plugin.verification.turns import Turns
from tests.command import etb
from tests.conftest import fully_connected

EPS, GRID = 0.08, 25


def box_grid(box: Box) -> torch.Tensor:
    sides = [
        torch.linspace(float(low), float(high), GRID) for low, high in zip(box.lower[0], box.upper[0], strict=True)
    ]
    return torch.tensor(list(itertools.product(*sides)), dtype=torch.float64)


def answer(networks, x: torch.Tensor, also: torch.Tensor) -> int:
    """The cascade's answer at x [1, 2] by its definition; robustness is looked up on a grid and at `also`."""
    points = torch.cat([x, box_grid(Box.around(x, EPS)), also])
    for network in networks[:-1]:
        classes = network(points).argmax(1)
        if bool((classes == classes[0]).all()):
            return int(classes[0])
    return int(networks[-1](x).argmax())


def network(seed: int):
    torch.manual_seed(seed)
    made = fully_connected(2, 12, 3).double().eval()
    with torch.no_grad():
        for layer in made[1::2]:
            layer.weight *= 3  # so that the classes meet inside the unit square
    return made


def test_verdicts_agree_with_the_definition_on_a_grid():
    seen = set()
    for seed in range(4):
        networks = [network(10 * seed + n) for n in range(3)]
        turns = Turns(networks, (2,), 3, Settings(("pgd", "crown", "bab"), Pgd(20, 2), seconds=20))
        for x in torch.rand(12, 1, 2, dtype=torch.float64):
            label = int(networks[seed % 3](x).argmax())
            given, case = turns.decide(x, label, EPS)
            assert given == answer(networks, x, x)
            if given != label:
                seen.add("mistake")
                continue
            seen.add(case.verdict)
            if case.verdict is Verdict.ROBUST:
                moved = box_grid(Box.around(x, EPS))[::7]
                assert all(answer(networks, one[None], x) == label for one in moved)
            elif case.verdict is Verdict.FALSIFIED:
                assert bool(((case.witness - x).abs() <= EPS + 1e-12).all())
                assert answer(networks, case.witness, x) != label
    assert {"mistake", Verdict.ROBUST, Verdict.FALSIFIED} <= seen


def test_a_list_of_state_dicts_is_verified_as_one_and_nothing_else_takes_it(tmp_path):
    torch.save([build("mlp-8x1", (1, 8, 8), 10, seed=s).state_dict() for s in (0, 1)], tmp_path / "c.pt")
    about = ("--model", "mlp-8x1", "--dataset", "digits", "--eps-test", "0.01")
    call = ("verify", "c.pt", *about, "--images", "0:8", "--stages", "pgd,crown,bab", "--out", "v")
    done = etb(*call, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (one,) = json.loads((tmp_path / "v/results.json").read_text())["verifications"]
    assert len(one["findings"]) == 8
    again = etb(*call, cwd=tmp_path)
    assert again.stdout == done.stdout
    for refused in (
        ("evaluate", "c.pt", *about),
        ("export", "c.pt", *about, "--onnx", "c.onnx"),
        (*call[:-1], "r", "--minimum-radius"),
    ):
        done = etb(*refused, cwd=tmp_path)
        assert done.returncode == 2
        assert "cascade" in done.stderr
