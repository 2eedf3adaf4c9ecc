"""The schema: what flags and files may say, and what is answered to all else."""

import pytest

from etb_plugin.errors import ConfigError
from etb_plugin.experiment import Experiment, eps_text, read_experiment, resolve_device, trace_experiment
from etb_plugin.files import claimed


def from_file(tmp_path, text, **flags):
    path = tmp_path / "e.yaml"
    path.write_text(text)
    return read_experiment(path, flags)


def names(experiment):
    return [variant.method for variant in experiment.methods]


def test_flags_override_the_file_and_the_file_the_defaults(tmp_path):
    text = """
dataset: mnist
methods: [ibp, expected]
eps: 8/255
training: {train-limit: 100, lr: 1e-3, epochs: 7}
evaluation:
  eps_test: 0.1, 0.2
"""
    path = tmp_path / "e.yaml"
    path.write_text(text)
    experiment = read_experiment(path, {"eps": "0.2", "epochs": 3, "model": None}, ["training.batch-size=20"])
    assert (experiment.dataset, names(experiment)) == ("mnist", ["ibp", "expected"])
    training = experiment.training
    assert (experiment.eps, training.epochs, training.train_limit) == ((0.2,), 3, 100)
    assert (training.lr, experiment.evaluation.eps_test) == (0.001, (0.1, 0.2))
    assert training.batch_size == 20


def test_where_each_value_stands_is_known(tmp_path):
    path = tmp_path / "e.yaml"
    path.write_text("dataset: mnist\ntraining:\n  epochs: 5\n  lr: 0.1\nmethods:\n  - ibp\n  - pgd\n")
    places = trace_experiment(path, {"lr": "0.2"}, ["evaluation.certify=ibp"]).places
    assert places["training", "epochs"] == f"{path}, line 3, training.epochs"
    assert places["training", "lr"] == "--lr"
    assert places["evaluation", "certify"] == "--set evaluation.certify"
    assert places["methods", 1].startswith(f"{path}, line 7")


def test_fractions_and_lists_are_understood():
    experiment = read_experiment(None, {"eps": "8/255", "eps_test": "2/255,8/255", "methods": "ibp, crown"})
    assert experiment.eps == pytest.approx((8 / 255,))
    assert read_experiment(None, {"eps": "2.2/255"}).eps == pytest.approx((2.2 / 255,))
    assert experiment.evaluation.eps_test == pytest.approx((2 / 255, 8 / 255))
    assert names(experiment) == ["ibp", "crown"]


@pytest.mark.parametrize("text", ["0", "0.1", "0.3", "0.2", "0.025", "2/255", "8/255", "1/255"])
def test_a_radius_is_shown_as_it_was_written(text):
    assert eps_text(read_experiment(None, {"eps": text}).eps[0]) == text


@pytest.mark.parametrize(
    ("dataset", "model", "eps"),
    [("digits", "tiny", 0.1), ("mnist", "small", 0.1), ("cifar10", "small", 2 / 255), ("svhn", "small", 0.01)],
)
def test_what_is_left_open_is_filled_as_the_design_says(dataset, model, eps):
    resolved = read_experiment(
        None, {"dataset": dataset, "methods": "nominal,expected,crown,dual-projected"}
    ).resolved()
    assert (resolved.model, resolved.eps, resolved.evaluation.eps_test) == ((model,), (eps,), (eps,))
    # Only sound bounds certify, whatever the methods train with.
    assert resolved.evaluation.certify == ("ibp", "crown-ibp", "crown")


_ORDERS = (("ibp,crown", "0.1,0.2"), ("crown,ibp", "0.2,0.1"))


def test_the_folder_is_named_after_what_determines_the_results():
    base = {"dataset": "digits", "methods": "ibp", "device": "cpu"}
    folder = read_experiment(None, base).resolved().folder
    assert folder == read_experiment(None, {**base, "eps": "0.1", "model": "tiny", "data_dir": "x"}).resolved().folder
    assert folder != read_experiment(None, {**base, "eps": "0.2"}).resolved().folder
    assert folder == read_experiment(None, {**base, "engine": "print"}).resolved().folder
    several = [read_experiment(None, {**base, "methods": m, "eps": e}).resolved() for m, e in _ORDERS]
    assert several[0].folder == several[1].folder != folder
    assert str(read_experiment(None, {**base, "out": "mine"}).resolved().folder) == "mine"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"eps": "-0.1"}, r"--eps: -0.1 is negative"),
        ({"eps": "nan"}, r"--eps: nan is no finite number"),
        ({"eps": "8"}, r"--eps: 8 is in the wrong units: .* write 8/255 if"),
        ({"eps": "big"}, r"--eps: 'big' is no number; write 0\.1 or 8/255"),
        ({"eps": "8/0"}, r"--eps: '8/0' is no number"),
        ({"eps_test": "0.1,2"}, r"--eps-test: 2 is in the wrong units"),
        ({"eps_test": "0.1,,0.2"}, r"--eps-test: .* has an empty entry"),
        ({"eps_test": "0.1,0.1"}, r"--eps-test: .* names something twice"),
        ({"lr": "0"}, r"--lr: 0 is no learning rate"),
        ({"epochs": 0}, r"--epochs: 0 does not do: .*greater than or equal to 1"),
        ({"batch_size": -1}, r"--batch-size: -1 does not do"),
        ({"methods": "ibp,ibp"}, r"--methods: .* names something twice"),
        ({"seed": -1}, r"--seed: -1 does not do"),
    ],
)
def test_a_flag_that_cannot_be_meant_is_refused_by_name(flags, message):
    with pytest.raises(ConfigError, match=message):
        read_experiment(None, flags)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"methods": "ibp,crwon"}, "unknown method 'crwon'; did you mean crown"),
        ({"model": "smal"}, "unknown network 'smal'; did you mean .*small"),
        ({"dataset": "minst"}, "unknown dataset 'minst'; did you mean mnist"),
        ({"certify": "ibp,expected"}, "bound 'expected' is not sound"),
        ({"certify": "ipb"}, "unknown bound 'ipb'; did you mean ibp"),
        ({"device": "gpu"}, "unknown device 'gpu'; write auto, cpu, cuda"),
        ({"device": "mps"}, "unknown device 'mps'"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(flags, message):
    with pytest.raises(ConfigError, match=message):
        read_experiment(None, flags).resolved()


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert resolve_device("cuda:0") == "cuda:0"
    with pytest.raises(ConfigError, match="device 'cuda:1' does not exist: torch sees 1 CUDA devices"):
        resolve_device("cuda:1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dataset: digits\nmethod: ibp\n", r"e\.yaml, line 2, method: there is no such key; did you mean methods"),
        ("dataset: digits\ntraining:\n  epochs: many\n", r"e\.yaml, line 3, training\.epochs: 'many' does not do"),
        ("training: {epochs: 1.5}\n", r"e\.yaml, line 1, training\.epochs: 1\.5 does not do"),
        ("training: {epochs: true}\n", r"e\.yaml, line 1, training\.epochs: True does not do"),
        ("epochs: 5\n", r"e\.yaml, line 1, epochs: there is no such key; it stands in training: write training: {"),
        ("training: {epoch: 5}\n", r"e\.yaml, line 1, training\.epoch: there is no such key; did you mean epochs"),
        ("training: 5\n", r"e\.yaml, line 1, training: 5 does not do"),
        ("training: {epochs: 1, epochs: 2}\n", r"e\.yaml, line 1: key 'epochs' stands in line 1 already"),
        ("methods: [ibp, 3]\n", r"e\.yaml, line 1, methods: 3 is no method"),
        ("methods:\n  - ibp\n  - {ibp: {a: 1}, pgd: {}}\n", r"e\.yaml, line 3, methods: .* is no method"),
        ("dataset: minst\n", r"e\.yaml, line 1, dataset: unknown dataset 'minst'; did you mean mnist"),
        ("methods:\n  - ibp\n  - crwon\n", r"e\.yaml, line 3, methods: unknown method 'crwon'; did you mean crown"),
        ("methods:\n- ibp:\n    kapa: 1\n", r"e\.yaml, line 2, methods: unknown key of method 'ibp': 'kapa'"),
        ("methods: [{ibp: {kappa: high}}]\n", r"e\.yaml, line 1, methods: kappa: 'high' does not do"),
        ("model: smal\n", r"e\.yaml, line 1, model: unknown network 'smal'; did you mean .*small"),
        ("evaluation: {certify: expected}\n", r"line 1, evaluation\.certify: bound 'expected' is not sound"),
        ("methods: [ibp, ibp]\n", r"e\.yaml, line 1, methods: .* names something twice"),
        ("methods: []\n", r"e\.yaml, line 1, methods: .* has an empty entry"),
        ("eps: []\n", r"e\.yaml, line 1, eps: .* has an empty entry"),
        ("methods: [{ibp: {grid: {kappa: []}}}]\n", r"line 1, methods: the grid of 'ibp' has no value for kappa"),
        ("methods: [{ibp: {grid: {kappa: 1}}}]\n", r"line 1, methods: 1 does not do: input should be a valid list"),
        ("seed: [0, x]\n", r"e\.yaml, line 1, seed: 'x' does not do"),
        ("engine: {workers: 0}\n", r"e\.yaml, line 1, engine\.workers: 0 does not do"),
        ("verification: {images: '9:3'}\n", r"line 1, verification\.images: '9:3' holds no image"),
        ("eps: *none\n", r"e\.yaml, line 1: found undefined alias"),
        ("methods: &a [*a]\n", r"e\.yaml, line 1: a value that contains itself"),
        ("eps: !!python/object/apply:os.system ['true']\n", r"e\.yaml, line 1: could not determine a constructor"),
        ("eps: yes\n", r"e\.yaml, line 1, eps: True is no number"),
        ("dataset: digits\neps:\n\t0.1\n", r"e\.yaml, line 3: a tab; YAML is indented by spaces"),
        ("eps: 0.1\nlr: 0.1\neps: 0.2\n", r"e\.yaml, line 3: key 'eps' stands in line 1 already"),
        ("train-limit: 5\ntrain_limit: 6\n", r"e\.yaml, line 2: key 'train_limit' stands in line 1 already"),
        ("- digits\n", r"e\.yaml holds no keys"),
        ("a: [1\n", r"e\.yaml, line \d"),
        ("dataset: [mnist]\n", r"e\.yaml, line 1, dataset: \['mnist'\] does not do"),
        ("2: 3\n", r"e\.yaml, line 1, 2: there is no such key"),
        ("? [a, b]\n: 3\n", r"e\.yaml, line 1"),
    ],
)
def test_a_file_is_refused_with_line_and_key(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message) as error:
        from_file(tmp_path, text)
    assert len(str(error.value).splitlines()) <= 2


def test_a_file_that_is_not_there_or_no_text_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml cannot be read"):
        read_experiment(tmp_path / "none.yaml", {})
    (tmp_path / "e.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"e\.yaml"):
        read_experiment(tmp_path / "e.yaml", {})


def test_a_file_that_is_no_experiment_by_its_size_is_refused_unread(tmp_path):
    with pytest.raises(ConfigError, match=r"e\.yaml has 10,240 KiB; an experiment is a page of text"):
        from_file(tmp_path, "#" * 10 * 2**20)
    deep = "a: &a [x, x, x, x, x, x, x, x]\n"
    deep += "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 8)}]\n" for a, b in zip("abcdefg", "bcdefgh", strict=True))
    with pytest.raises(ConfigError, match="its aliases make more than 20,000 values of it"):
        from_file(tmp_path, deep)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("training.epochs", "write --set training.epochs=5"),
        ("training=5", "write --set training.epochs=5"),
        ("training.epochs=[", r"'\[' is no YAML value"),
        ("training.epoch=5", "--set training.epoch: there is no such key; did you mean epochs"),
        ("epochs=5", r"--set epochs: there is no such key; it stands in training"),
        ("eps.x=5", "--set eps.x: there is no such key"),
    ],
)
def test_a_change_that_cannot_be_meant_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        read_experiment(None, {}, [change])


def test_the_schema_for_editors_knows_every_key_and_method():
    schema = Experiment.model_json_schema()
    assert schema["additionalProperties"] is False
    assert set(schema["properties"]) == set(Experiment.model_fields)
    assert all("description" in key for key in schema["$defs"]["TrainingSection"]["properties"].values())
    assert "crown-ibp" in schema["$defs"]["Variant"]["anyOf"][0]["enum"]


def test_the_experiment_of_a_run_folder_can_be_run_again(tmp_path):
    folder = tmp_path / "run"
    first = read_experiment(None, {"dataset": "digits", "methods": "ibp:eps=0.2", "eps": "0.1,0.2"}).resolved()
    with claimed(folder, first.plain):
        again = read_experiment(folder / "experiment.yaml", {}).resolved()
    assert again == first


def test_an_empty_file_is_all_defaults(tmp_path):
    assert from_file(tmp_path, "# nothing yet\n") == read_experiment(None, {})


def test_a_label_says_which_keys_of_a_ramp_are_changed():
    from etb_plugin.experiment.variant import changed_text

    changes = {"eps_ramp": {"length": 0.3}, "kappa": {"start": 1, "end": 0.5}, "fusion": False}
    assert changed_text("ibp", changes) == "ibp eps_ramp={length: 0.3} kappa=1→0.5 fusion=false"
    ramps = {
        "eps_ramp": {"start": 0.0, "end": 1.0, "wait": "2000 steps", "length": 2 / 7, "form": "smooth"},
        "kappa": {"start": 0, "end": 0, "length": 0.5},
    }
    assert changed_text("ibp", ramps) == "ibp eps_ramp=0→1 (wait 2000 steps, over 0.2857, smooth) kappa=0"
