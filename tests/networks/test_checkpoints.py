"""Weights on disk: what comes back, and what is refused."""

import pickle

import pytest
import torch
from torch import nn

from etb_plugin.errors import CheckpointError
from etb_plugin.networks import build
from etb_plugin.networks.checkpoints import load_weights, read_weights, save_weights


def test_weights_and_what_is_known_of_them_come_back(tmp_path):
    one, other = (build("tiny", (1, 8, 8), 10, seed=s) for s in (0, 1))
    save_weights(one, tmp_path / "a.safetensors", {"model": "tiny", "input_shape": (1, 8, 8), "eps": 0.1})
    (weights,), about = read_weights(tmp_path / "a.safetensors")
    assert about == {"model": "tiny", "input_shape": [1, 8, 8], "eps": 0.1}
    load_weights(other, weights, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "ema": s, "epoch": 3},
        lambda s: {
            "model_state_dict": s,
            "optimizer_state_dict": {"state": {}, "param_groups": [{"lr": 0.1}]},
            "loss": 0.3,
        },
        lambda s: {"net": {f"module.{name}": value for name, value in s.items()}, "acc": 91.2},
    ],
)
def test_anyones_state_dict_is_read_and_matched_in_order(tmp_path, wrap):
    theirs = nn.Sequential(nn.Sequential(nn.Flatten(), nn.Linear(64, 8)), nn.ReLU(), nn.Linear(8, 10))
    torch.save(wrap(theirs.state_dict()), tmp_path / "w.pt")
    ours = build("mlp-8x1", (1, 8, 8), 10, seed=0)
    (weights,), about = read_weights(tmp_path / "w.pt")
    load_weights(ours, weights, tmp_path / "w.pt")
    x = torch.rand(3, 1, 8, 8)
    assert about == {}
    assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"state_dict": s}, lambda s: [{"state_dict": one} for one in s]]
)
def test_a_list_of_state_dicts_is_read_in_order(tmp_path, wrap):
    states = [build("mlp-8x1", (1, 8, 8), 10, seed=s).state_dict() for s in (0, 1)]
    torch.save(wrap(states), tmp_path / "w.pt")
    several, _ = read_weights(tmp_path / "w.pt")
    for mine, theirs in zip(several, states, strict=True):
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_shapes_that_do_not_match_are_both_shown(tmp_path):
    weights = nn.Linear(4, 3).state_dict()
    with pytest.raises(CheckpointError) as error:
        load_weights(build("mlp-8x1", (1, 8, 8), 10), weights, tmp_path / "w.pt")
    assert "[[3, 4], [3]]" in str(error.value)
    assert "[[8, 64], [8], [10, 8], [10]]" in str(error.value)


class Evil:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code ran')",))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("w.pt", pickle.dumps(Evil()), "damaged, or holds more than tensors"),
        ("w.pt", b"", "damaged, or holds more than tensors"),
        ("w.safetensors", b"\x08\0\0\0\0\0\0\0{}", "damaged or is no safetensors"),
        ("w.safetensors", b"", "damaged or is no safetensors"),
    ],
)
def test_a_file_that_is_damaged_or_runs_code_is_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_weights(tmp_path / name)


def test_what_is_no_state_dict_is_refused(tmp_path):
    torch.save([torch.zeros(1)], tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="holds no state_dict"):
        read_weights(tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="there is no file of weights"):
        read_weights(tmp_path / "absent.pt")
    weights = nn.Linear(2, 2).state_dict()
    torch.save({"model": weights, "ema": weights, "epoch": 3}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"holds several state_dicts \(model, ema\): save the one that is meant"):
        read_weights(tmp_path / "w.pt")
    torch.save({"epoch": 3}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="holds no state_dict"):
        read_weights(tmp_path / "w.pt")
