"""Studies: small runs of each, what is kept, and the random networks against the paper's tables."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from etb_plugin.bounds import Box, bound, margin_spec
from etb_plugin.cli.main import main
from etb_plugin.data import pixels
from etb_plugin.errors import ConfigError, DataError
from etb_plugin.studies import get_study, run_study, studies
from etb_plugin.studies.cascade import _stage
from etb_plugin.studies.polytope import _TABLES
from etb_plugin.studies.random_networks import gaussian_box, gaussian_network, ranges
from etb_plugin.studies.registry import Study
from etb_plugin.studies.trained_networks import dataset

ROOT = Path(__file__).parents[2]
TINY = {
    "coverage": {"n": [2, 15], "k": [10], "deep_n": [4], "layers": [3], "runs": 2, "samples": 50},
    "tightness": {"k": [5, 50], "n": [5], "eps": [0.1], "runs": 2},
    "depth": {"layers": [2, 3], "eps": [0.1], "units": 20, "conv_size": 6, "runs": 1},
    "failure": {"n": [2]},
    "polytope": {"n": [2], "eps": [0.1], "networks": 2, "samples": 50, "shown": 10},
    "real-network": {"dataset": "digits", "model": "mlp-16x2", "train_limit": 200, "epochs": 1, "images": 20},
    "ibp-tightness": {"model": "mlp-8x2", "train_limit": 200, "epochs": 2, "images": 10, "eps": [[0.1, 0.05]]},
    "pgd-not-enough": {
        **{"model": "mlp-8x2", "train_limit": 300, "epochs": 3, "images": 6, "eps": [0.05], "attacks": [[1, 1]]},
        **{"method": "nominal", "eps_train": 0.0},
    },
    "weights": {"model": "mlp-16x2", "train_limit": 200, "epochs": 1},
    "violations": {
        **{"model": "mlp-16x2", "train_limit": 100, "epochs": 3, "every": 2, "images": 10, "eps": [0.05, 0.1]},
        **{"methods": ["nominal", "expected"], "pgd_steps": 3, "samples": 20},
    },
    "sketch": {"models": ["mlp-30x2"], "k": [10, 50], "size": 6, "seeds": [0]},
    "toy-2d": {"model": "mlp-8x1", "methods": ["nominal", "ibp"], "epochs": 2},
    "polytope-training": {"model": "mlp-8x1", "steps": [0, 20, 40], "epochs": 2, "samples": 50, "shown": 10},
    "ibp-ablation": {"model": "mlp-8x1", "train_limit": 100, "epochs": 1, "images": 20, "seeds": [0, 1]},
    "robustra-reference": {
        **{"model": "mlp-8x1", "train_limit": 50, "epochs": 2, "overlap_epochs": 2, "images": 10, "bounded_images": 5},
        **{"pgd_steps": 3},
    },
    "cascade": {"model": "mlp-8x1", "certify": "ibp", "train_limit": 60, "images": 20, "stages": 3, "epochs": 2},
    "masks": {
        **{"model": "mlp-16x2", "train_limit": 100, "epochs": 1, "images": 20, "bounded_images": 5, "seeds": [0, 1]},
        **{"networks": ["untrained", "nominal"], "train_masks": ["ibp", "slope"], "pgd_steps": 3, "samples": 20},
        **{"corners": 5, "square_queries": 5},
    },
}


def run(name: str, folder: Path, **watch):
    study = get_study(name)
    return run_study(study, study.parameters(full=False, changes=TINY[name]), folder, **watch)


def test_every_study_has_a_small_run_here_and_a_file_of_its_full_size():
    assert set(TINY) == set(studies())
    for name, study in studies().items():
        written = yaml.safe_load((ROOT / "configs" / "studies" / f"{name}.yaml").read_text())
        assert written == {k: v for k, v in study.full.items() if k != "data_dir"}, name


SLOW = {"masks", "pgd-not-enough", "weights", "ibp-ablation", "real-network", "tightness", "depth", "violations"}
"""Studies whose smallest run takes longest."""


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in TINY])
def test_a_study_leaves_figures_claims_and_a_plot_and_resumes(name, tmp_path):
    if name == "masks":
        pytest.importorskip("art")  # the Square attack
    claims = run(name, tmp_path / "s")
    content = json.loads((tmp_path / "s" / "results.json").read_text())
    assert [c["measured"] for c in content["claims"]] == [c.measured for c in claims]
    assert all(c.text and c.source and c.published and c.measured for c in claims)
    assert (tmp_path / "s" / "figure.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "s" / "figure.pdf").read_bytes()[:4] == b"%PDF"
    case = next((tmp_path / "s" / "cases").iterdir())
    before, stamp = case.read_bytes(), case.stat().st_mtime_ns
    case.unlink()
    others = {p: p.stat().st_mtime_ns for p in (tmp_path / "s" / "cases").iterdir()}
    assert run(name, tmp_path / "s") == claims
    assert case.read_bytes() == before
    assert case.stat().st_mtime_ns != stamp
    assert {p: p.stat().st_mtime_ns for p in others} == others


def test_other_parameters_in_the_folder_are_refused(tmp_path):
    run("failure", tmp_path)
    study = get_study("failure")
    with pytest.raises(ConfigError, match="holds another experiment"):
        run_study(study, study.parameters(full=False, changes={"n": [3]}), tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"runz": 3}, "unknown parameter of study 'coverage' 'runz'; did you mean runs"),
        ({"n": 3}, "n of study 'coverage'"),
    ],
)
def test_parameters_that_do_not_exist_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        get_study("coverage").parameters(full=False, changes=changes)


def test_missing_data_is_said_before_anything_is_measured(tmp_path):
    study = get_study("real-network")
    with pytest.raises(DataError, match="there is no mnist"):
        run_study(study, study.parameters(full=False, changes={"data_dir": str(tmp_path / "none")}), tmp_path / "s")


@pytest.mark.parametrize(("n", "eps"), _TABLES)
def test_random_networks_are_the_papers(n, eps):
    """The mean width of IBP's intervals is that of tables 2 to 4: it tells the deviation of their weights."""
    generator = torch.Generator().manual_seed(0)
    widths = []
    for _ in range(30):
        network = gaussian_network([n, 100, 100, 100, 100, 2], generator)
        widths.append(bound("ibp", network, gaussian_box((n,), eps, generator)).width.mean().item())
    published = _TABLES[n, eps][1]
    assert sum(widths) / 30 == pytest.approx(published, rel=0.2)


def test_gamma_is_the_covered_share():
    generator = torch.Generator().manual_seed(0)
    network, box = gaussian_network([5, 20, 3], generator), gaussian_box((5,), 0.5, generator)
    (found,) = ranges([network], [box], samples=200)
    for i in range(3):
        low, high = found.true.lower[0, i].item(), found.true.upper[0, i].item()
        points = torch.linspace(low, high, 20001)
        inside = (points >= found.expected.lower[0, i]) & (points <= found.expected.upper[0, i])
        assert found.gamma[i].item() == pytest.approx(inside.double().mean().item(), abs=1e-3)
        assert found.ibp.lower[0, i] <= low
        assert high <= found.ibp.upper[0, i]


def test_wholly_covered_networks_are_counted(tmp_path):
    study = get_study("coverage")
    parameters = study.parameters(full=False, changes={**TINY["coverage"], "eps": 2.0, "runs": 10})
    row = study.measure({"figure": "1a", "n": 12, "k": 50}, parameters, tmp_path)
    assert 0.5 <= row["whole"] <= 1
    assert row["gamma_min"] <= row["gamma"] <= 1


def test_networks_that_are_constant_on_their_box_are_left_out(tmp_path):
    study = get_study("coverage")
    parameters = study.parameters(full=False, changes={**TINY["coverage"], "runs": 40})
    row = study.measure({"figure": "1a", "n": 2, "k": 2}, parameters, tmp_path)
    assert 1 <= row["constant"] < 30  # both hidden units dead: a quarter of the networks
    assert 0 < row["gamma"] <= 1


def test_the_failure_example_is_the_papers_and_breaks_even_at_one_half(tmp_path):
    claims = run("failure", tmp_path)
    assert claims[0].measured == claims[0].published == "[-20, 39980]; [-20, 0]"
    rows = {r["scale"]: r["ratio"] for r in json.loads((tmp_path / "results.json").read_text())["rows"]}
    for scale, ratio in rows.items():
        assert ratio == pytest.approx(20 * scale / (10 * min(1, 2 * scale)))


def test_a_cascade_asks_the_first_stage_that_certifies_and_trains_on_what_is_left(tmp_path):
    sizes = {"model": "mlp-20x1", "certify": "ibp", "eps_train": 0.01, "train_limit": 200, "images": 100, "stages": 2}
    study = get_study("cascade")
    run_study(study, parameters := study.parameters(False, {**sizes, "epochs": 15, "method": "nominal"}), tmp_path)
    first, second = (r for r in json.loads((tmp_path / "results.json").read_text())["rows"])
    data = dataset(parameters)
    networks = [_stage(data, parameters, tmp_path, stage) for stage in (1, 2)]
    left = json.loads((tmp_path / "left" / "2.json").read_text())
    assert 0 < len(left) == second["training_images"] < first["training_images"] == 200
    wrong = unproved = 0
    for i in range(100):  # one image at a time, from the definition
        x, y = pixels(data.test.images[i : i + 1]), int(data.test.labels[i])
        for network in networks:
            said = int(network(x).argmax())
            spec = margin_spec(torch.tensor([said]), 10)
            if proved := bool((bound("ibp", network, Box.around(x, 0.01), spec).lower > 0).all()):
                break
        wrong += said != y
        unproved += said != y or not proved
    assert (second["error"], second["robust_error"]) == (pytest.approx(wrong / 100), pytest.approx(unproved / 100))
    for i in (left[0], next(i for i in range(200) if i not in left)):
        x, y = pixels(data.train.images[i : i + 1]), data.train.labels[i : i + 1]
        certified = bool((bound("ibp", networks[0], Box.around(x, 0.01), margin_spec(y, 10)).lower > 0).all())
        assert certified == (i not in left)


def test_the_command_lists_runs_and_refuses(tmp_path, monkeypatch, capsys):
    def etb(*arguments):
        monkeypatch.setattr("sys.argv", ["etb", "study", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        return stop.value.code, *capsys.readouterr()

    monkeypatch.chdir(tmp_path)
    status, out, _ = etb()
    assert status == 0
    assert all(name in out for name in studies())
    status, out, _ = etb("failure", "--set", "n=[2]", "--out", "f")
    assert status == 0
    assert "[-20, 39980]; [-20, 0]" in out
    assert "Written: f/results.json" in out
    (tmp_path / "p.yaml").write_text("n: [2]\n")
    assert etb("failure", "p.yaml", "--out", "f")[0] == 0
    for arguments, complaint in (
        (("coverge",), "unknown study 'coverge'; did you mean coverage"),
        (("failure", "--set", "n"), "--set n: write key=value"),
        (("failure", "--set", "scal=[1]"), "did you mean scale"),
        (("failure", "none.yaml"), "none.yaml cannot be read"),
    ):
        status, _, err = etb(*arguments)
        assert status == 2
        assert complaint in err
    assert {p.name for p in tmp_path.iterdir()} == {"f", "p.yaml"}


def test_a_study_is_one_record_of_functions():
    assert all(isinstance(study, Study) and study.question.endswith("?") for study in studies().values())
