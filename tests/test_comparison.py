"""Comparisons: cells, what is kept, what goes on, and the files that come out."""

import csv
import json
import multiprocessing
import os
import signal
import time
from copy import copy
from dataclasses import asdict, replace
from statistics import fmean

import pytest
from rich.console import Console
from torch import nn

from etb_plugin import attacks, networks
from etb_plugin.comparison import Comparison, Reevaluation, overview, planned
from etb_plugin.comparison.engines import local
from etb_plugin.errors import ConfigError, SoundnessError, TrainingError, UnsupportedLayer
from etb_plugin.experiment import read_evaluation, read_experiment
from etb_plugin.report.table import cost_table
from etb_plugin.results import Result
from tests.conftest import Bessel
from tests.training.test_training import Killed

FLAGS = {
    "model": "mlp-12x2",
    "methods": "ibp,expected",
    "epochs": 3,
    "train_limit": 200,
    "test_limit": 40,
    "pgd_steps": 5,
    "eps_test": "0.02,0.1",
    "device": "cpu",
}
DESIGN = {
    *("method", "dataset", "model", "seed", "eps_train", "eps_test", "clean_accuracy", "pgd_accuracy"),
    *("pgd_robustness", "certified_accuracy", "expected_accuracy", "images", "train_seconds", "seconds_per_epoch"),
    *("step_ms", "peak_memory_mib", "parameters"),
}
COSTS = ("train_seconds", "seconds_per_epoch", "step_ms", "nominal_step_ms", "peak_memory_mib")


class Log:
    """A Watch that notes what happened, and may stop the run."""

    def __init__(self, stop=lambda name, progress: False):
        self.trained, self.done, self.stop = [], [], stop

    def training(self, name, progress):
        self.trained.append((name, progress.epoch))
        if self.stop(name, progress):
            raise Killed

    def evaluating(self, name, eps, done, total):
        assert 0 < done <= total == 40

    def verifying(self, name, eps, total, counts):
        assert sum(counts.values()) <= total

    def finished(self, name, training, results):
        self.done.append((name, training is not None))


def comparison(tmp_path, **changes):
    return Comparison(read_experiment(None, {**FLAGS, "out": str(tmp_path / "run"), **changes}))


def ids(comparison):
    return {cell.id for entry in comparison.entries for cell in entry.cells}


def untimed(results):
    return [replace(result, **dict.fromkeys(COSTS)) for result in results]


def test_a_run_leaves_what_the_design_lists(tmp_path):
    results = comparison(tmp_path).run(Log())
    folder = tmp_path / "run"
    content = json.loads((folder / "results.json").read_text())
    assert [(r.method, r.eps_test) for r in results] == [(m, e) for m in ("ibp", "expected") for e in (0.02, 0.1)]
    assert content["schema"] == 1
    assert content["experiment"]["eps"] == [0.1]
    assert content["environment"]["versions"]["torch"]
    assert set(content["cells"][0]) >= DESIGN
    assert [Result(**cell) for cell in content["cells"]] == results
    assert set(content["cells"][0]["certified_accuracy"]) == {"ibp", "crown-ibp"}
    rows = list(csv.DictReader((folder / "results.csv").read_text().splitlines()))
    assert [float(row["certified_crown-ibp"]) for row in rows] == [r.certified_accuracy["crown-ibp"] for r in results]
    for cell in (folder / "cells").iterdir():
        assert {p.name for p in cell.iterdir()} == {
            *("result.json", "state.pt", "metrics.jsonl", "last.safetensors", "best.safetensors"),
            *("progress.json", ".lock", "examples.npz"),
        }


def test_the_same_run_again_keeps_its_cells(tmp_path):
    first = comparison(tmp_path).run(Log())
    log = Log()
    assert comparison(tmp_path).run(log) == first
    assert log.trained == []
    assert log.done == [("ibp", False), ("expected", False)]


def test_the_environment_is_that_of_the_figures(tmp_path):
    comparison(tmp_path).run(Log())
    file = tmp_path / "run/results.json"
    content = json.loads(file.read_text())
    content["environment"]["device"] = "another machine"
    file.write_text(json.dumps(content))
    comparison(tmp_path).run(Log())
    assert json.loads(file.read_text())["environment"] == content["environment"]
    comparison(tmp_path, methods="ibp,expected,nominal").run(Log())  # figures of this one are among them
    assert json.loads(file.read_text())["environment"]["device"] != "another machine"


def test_an_interrupted_run_goes_on_to_the_same_results(tmp_path):
    unbroken = Comparison(read_experiment(None, {**FLAGS, "out": str(tmp_path / "whole")})).run(Log())
    broken = Log(lambda _, progress: bool(broken.done) and progress.epoch == 2)  # whichever is estimated to take longer
    with pytest.raises(Killed):
        comparison(tmp_path).run(broken)
    assert len(json.loads((tmp_path / "run" / "results.json").read_text())["cells"]) == 2  # the finished method's
    log = Log()
    resumed = comparison(tmp_path).run(log)
    assert ("ibp", 1) not in log.trained
    assert ("expected", 1) not in log.trained
    assert untimed(resumed) == untimed(unbroken)


def test_what_is_left_is_counted_from_where_a_cell_stands(tmp_path):
    run = comparison(tmp_path, methods="ibp")
    with pytest.raises(Killed):
        run.run(Log(lambda name, progress: progress.epoch == 2), evaluation=False)
    epochs, (begun,) = run.workshop.trained(run.entries[0].cells[0]), planned(run.workshop)
    assert 1 <= len(epochs) <= 2
    assert begun.seconds == pytest.approx((3 - len(epochs)) * fmean(epochs))
    run.run(Log(), evaluation=False)
    (trained,) = planned(run.workshop)
    assert (trained.state, trained.seconds) == ("begun", 0)
    console = Console(record=True, width=100)
    console.print(cost_table(run.workshop))
    assert console.export_text().strip() == "1 cell is trained, and to be evaluated"


def test_equal_names_with_other_images_are_other_cells(tmp_path):
    one, two = comparison(tmp_path), comparison(tmp_path, train_limit=100)
    assert ids(one).isdisjoint(ids(two))
    assert ids(one) == ids(comparison(tmp_path, pgd_restarts=1))


def test_the_best_point_of_a_grid_is_chosen_on_images_that_nothing_was_trained_or_tested_on(tmp_path):
    grid = {"expected": {"name": "best", "masks": "ibp", "grid": {"eps": [0.05, 0.1], "learning_rate": [1e-6, 1e-3]}}}
    run = comparison(tmp_path, methods=["nominal", grid], validation=40, train_limit=None)
    assert len(run.workshop.data.train) == 1437 - 40
    results = run.run(Log())
    content = json.loads((tmp_path / "run" / "results.json").read_text())
    assert [(r.method, r.eps_test) for r in results] == [(m, e) for m in ("nominal", "best") for e in (0.02, 0.1)]
    points = content["grids"]["best"]
    assert [(p["changes"]["eps"], p["changes"]["learning_rate"]) for p in points] == [
        *((0.05, 1e-6), (0.05, 1e-3), (0.1, 1e-6), (0.1, 1e-3))
    ]
    for point in points:
        assert point["score"] == pytest.approx(sum(v["pgd_accuracy"] for v in point["validation"]) / 2)
        assert all(v["images"] == 40 for v in point["validation"])
    best = max(points, key=lambda p: p["score"])
    assert best["changes"]["learning_rate"] == 1e-3  # the others have learnt nothing
    assert (results[2].changes, results[2].eps_train) == (best["changes"], best["changes"]["eps"])
    tested = [cell for cell in (tmp_path / "run" / "cells").iterdir() if (cell / "result.json").exists()]
    assert len(tested) == 2
    log = Log()
    assert comparison(tmp_path, methods=["nominal", grid], validation=40, train_limit=None).run(log) == results
    assert log.trained == []


def test_a_grid_without_images_to_choose_on_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"'ibp' has a grid, and nothing to choose on: set training\.validation"):
        comparison(tmp_path, methods=[{"ibp": {"grid": {"eps": [0.1, 0.2]}}}])


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ("ibp,ibp:kapa=1", "unknown key of method 'ibp': 'kapa'"),
        ("ibp:kappa=1:kappa", "write an option as ibp:key=value"),
        ("ibp:eps=3", "method 'ibp': eps: 3 is in the wrong units"),
        ("ibp:mix={start", "'{start' is no value"),
        ("ibp:decay_at=50 epochs", "decay_at: '50 epochs' does not do"),
        ([{"ibp": {"decay_at": ["50 epochs"]}}], "decay_at 50 epochs is reached after 100 steps, and the run has 6"),
        ([{"ibp": {"name": "a"}}, {"pgd": {"name": "a"}}], "methods: 'a' is there twice"),
        ([3], "3 is no method"),
    ],
)
def test_a_changed_method_that_cannot_work_is_refused_before_anything_is_written(tmp_path, methods, message):
    with pytest.raises(ConfigError, match=message):
        comparison(tmp_path, methods=methods)
    assert not list(tmp_path.iterdir())


def test_another_experiment_in_the_folder_is_refused_and_unharmed(tmp_path):
    comparison(tmp_path).run(Log())
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(ConfigError, match=r"holds another experiment \(training.epochs 4 here, 3 there\)"):
        comparison(tmp_path, epochs=4).run(Log())
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_what_cannot_work_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigError, match="network 'small' does not fit images of 8 x 8"):
        comparison(tmp_path, model="small")
    assert not list(tmp_path.iterdir())


def test_a_method_that_cannot_take_the_network_is_named_with_the_layer(tmp_path, monkeypatch):
    def with_bessel(*_, **__):
        return nn.Sequential(nn.Conv2d(1, 2, 3), Bessel(), nn.Flatten(), nn.Linear(72, 10))

    monkeypatch.setattr(networks, "build", with_bessel)
    with pytest.raises(UnsupportedLayer, match=r"method 'ibp' cannot take network 'mlp-12x2': layer \S+"):
        comparison(tmp_path, methods="ibp,dual")


def test_weights_of_a_run_evaluate_to_the_same_accuracies(tmp_path):
    first = comparison(tmp_path).run(Log())
    request = read_evaluation({"eps_test": "0.02,0.1", "test_limit": 40, "pgd_steps": 5})
    again = Reevaluation(tmp_path / "run", request).run(Log(), tmp_path / "again")

    def key(result):
        return (result.method, result.eps_test)

    assert sorted(untimed(first), key=key) == sorted(untimed(again), key=key)
    assert json.loads((tmp_path / "again" / "results.json").read_text())["experiment"]["model"] == "mlp-12x2"


def test_a_record_that_breaks_the_chain_cannot_exist(tmp_path):
    result = comparison(tmp_path).run(Log())[0]
    for change, message in (
        ({"pgd_accuracy": 1.0, "clean_accuracy": 0.5}, "accuracy PGD 1.0 exceeds clean 0.5"),
        ({"certified_accuracy": {"ibp": 0.9}, "pgd_accuracy": 0.1}, "certified by ibp 0.9 exceeds PGD 0.1"),
    ):
        with pytest.raises(SoundnessError, match=message):
            Result(**{**asdict(result), **change})


def test_every_combination_of_network_radius_and_seed_is_a_cell(tmp_path):
    run = comparison(tmp_path, methods="nominal,ibp,ibp:eps=0.3", model="mlp-12x2,mlp-8x1", eps="0.1,0.2", seed="0,1")
    combinations = [(c.method.name, c.model, c.eps, c.seed) for e in run.entries for c in e.cells]
    assert len(combinations) == len(set(combinations)) == 2 * 2 * (1 + 2 + 1)  # nominal has no radius, the last its own
    assert {eps for name, _, eps, _ in combinations if name == "ibp"} == {0.1, 0.2, 0.3}
    assert run.entries[0].name == "nominal, mlp-12x2, seed 0"
    assert "ibp, mlp-8x1, eps 0.2, seed 1" in [entry.name for entry in run.entries]
    assert len({entry.name for entry in run.entries}) == len(run.entries)


def test_a_larger_experiment_in_the_folder_keeps_what_is_done_in_any_order(tmp_path):
    first = comparison(tmp_path).run(Log())
    log = Log()
    larger = comparison(tmp_path, methods="expected,pgd,ibp", seed="1,0").run(log)
    assert {name for name, _ in log.trained} == {
        *("pgd, seed 0", "pgd, seed 1", "ibp, seed 1", "expected, seed 1"),
    }
    assert [row for row in larger if row.seed == 0 and row.method == "ibp"] == [r for r in first if r.method == "ibp"]
    with pytest.raises(ConfigError, match=r"holds another experiment \(methods"):
        comparison(tmp_path).run(Log())


def test_a_further_attack_is_added_without_training_and_may_not_be_dropped(tmp_path, monkeypatch):
    monkeypatch.setattr(attacks.registry, "_registry", copy(attacks.registry._registry))
    attacks.register_attack("idle")(lambda network, box, labels, generator: (box.center, labels < 0))

    class Looser(Log):
        def evaluating(self, name, eps, done, total):  # the further attack takes a part of the images
            assert 0 < done <= total <= 40

    first, log = comparison(tmp_path).run(Log()), Looser()
    more = comparison(tmp_path, attack="idle").run(log)
    assert log.trained == []
    assert all(row.attacked_accuracy == {"idle": row.pgd_accuracy} for row in more)
    assert untimed(replace(row, attacked_accuracy={}) for row in more) == untimed(first)
    with pytest.raises(ConfigError, match=r"holds another experiment \(evaluation.attack pgd here, idle there\)"):
        comparison(tmp_path).run(Log())


def test_other_test_radii_are_evaluated_anew_without_training(tmp_path):
    comparison(tmp_path).run(Log())
    log = Log()
    results = comparison(tmp_path, eps_test="0.02,0.1,0.05").run(log)
    assert log.trained == []
    assert [r.eps_test for r in results] == [0.02, 0.1, 0.05] * 2


def test_a_cell_that_fails_leaves_the_others_and_is_run_again(tmp_path):
    def run(rate, **changes):
        methods = [{"ibp": {"learning_rate": rate}}, "expected"]
        return comparison(tmp_path, methods=methods, **changes)

    with pytest.raises(TrainingError, match="the loss is not finite in epoch 1"):
        run(1e30).run(Log())
    content = json.loads((tmp_path / "run" / "results.json").read_text())
    assert {cell["method"] for cell in content["cells"]} == {"expected"}
    status, failed = overview(run(1e30).workshop)
    assert (status.done, status.total) == (1, 2)
    assert "not finite" in failed["ibp learning_rate=1e+30"]
    assert [item.state for item in planned(run(1e30).workshop)] == ["failed", "done"]


def test_verification_fills_its_own_column(tmp_path):
    path = tmp_path / "e.yaml"
    path.write_text("verification: {images: '0:10', time_limit: 5, stages: [pgd, crown, bab]}\n")
    flags = {**FLAGS, "out": str(tmp_path / "run"), "methods": "ibp", "eps_test": "0.02"}
    (result,) = Comparison(read_experiment(path, flags)).run(Log())
    assert result.verified["images"] == [0, 10]
    assert result.verified["verified_accuracy"] + result.verified["unknown"] <= result.verified["clean_accuracy"]
    assert result.verified["verified_accuracy"] <= result.verified["pgd_accuracy"]
    assert list((tmp_path / "run/cells").glob("*/verified/results.json"))
    assert Comparison(read_experiment(path, flags)).run(Log()) == [result]


@pytest.mark.slow
def test_a_worker_that_is_done_as_the_run_is_stopped_ends_with_it(tmp_path, monkeypatch):
    """Its answer is never read, and it waited for another task, for a minute, until it was killed."""
    killed, kill = [], multiprocessing.process.BaseProcess.kill
    monkeypatch.setattr(multiprocessing.process.BaseProcess, "kill", lambda it: (killed.append(it.pid), kill(it)))
    monkeypatch.setattr(local, "_PATIENCE", 20.0)

    class Stopping(Log):
        def elsewhere(self, overview):
            while not list(tmp_path.glob("run/cells/*/result.json")):
                time.sleep(0.05)
            time.sleep(0.5)  # it has answered by now
            raise Killed

    with pytest.raises(Killed):
        comparison(tmp_path, workers=2).run(Stopping())
    assert not killed
    assert len(comparison(tmp_path).run(Log())) == 4


def test_a_worker_that_hangs_is_named_holds_up_no_other_and_goes_with_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "_SILENCE", 3.0)
    monkeypatch.setattr(local, "_PATIENCE", 1.0)
    said = []
    monkeypatch.setattr(local, "tell", said.append)
    changes = {"methods": "ibp,expected,nominal", "epochs": 6}
    hanging = None

    def names(line):
        return f"kill -9 {hanging} has another one go on" in line

    class Stopping(Log):
        def elsewhere(self, overview):
            nonlocal hanging
            if hanging is None:  # every worker has a task by the first look; later one may be done with all there are
                hanging = multiprocessing.active_children()[0].pid
                os.kill(hanging, signal.SIGSTOP)
            if any(names(line) for line in said) and overview.done == overview.total - 1:
                raise Killed

    with pytest.raises(Killed):
        comparison(tmp_path, **changes, workers=2, threads=1).run(Stopping())
    assert sum(map(names, said)) == 1
    assert not multiprocessing.active_children()
    log = Log()
    again = comparison(tmp_path, **changes).run(log)
    assert sum(trained for _, trained in log.done) == 1
    assert untimed(again) == untimed(comparison(tmp_path / "alone", **changes).run(Log()))
