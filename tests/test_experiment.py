"""The schema: what flags and files may say, and what is answered to all else."""

import pytest

from etb_plugin.errors import ConfigError
from etb_plugin.experiment import eps_text, read_experiment, resolve_device


def from_file(tmp_path, text, **flags):
    path = tmp_path / "e.yaml"
    path.write_text(text)
    return read_experiment(path, flags)


def names(experiment):
    return [variant.method for variant in experiment.methods]


def test_flags_override_the_file_and_the_file_the_defaults(tmp_path):
    text = "dataset: mnist\nmethods: [ibp, expected]\neps: 8/255\ntrain-limit: 100\nlr: 1e-3\neps_test: 0.1, 0.2\n"
    experiment = from_file(tmp_path, text, eps="0.2", epochs=3, model=None)
    assert (experiment.dataset, names(experiment)) == ("mnist", ["ibp", "expected"])
    assert (experiment.eps, experiment.epochs, experiment.train_limit) == (0.2, 3, 100)
    assert (experiment.lr, experiment.eps_test) == (0.001, (0.1, 0.2))
    assert experiment.batch_size == 100


def test_fractions_and_lists_are_understood():
    experiment = read_experiment(None, {"eps": "8/255", "eps_test": "2/255,8/255", "methods": "ibp, crown"})
    assert experiment.eps == pytest.approx(8 / 255)
    assert read_experiment(None, {"eps": "2.2/255"}).eps == pytest.approx(2.2 / 255)
    assert experiment.eps_test == pytest.approx((2 / 255, 8 / 255))
    assert names(experiment) == ["ibp", "crown"]


@pytest.mark.parametrize("text", ["0", "0.1", "0.3", "0.2", "0.025", "2/255", "8/255", "1/255"])
def test_a_radius_is_shown_as_it_was_written(text):
    assert eps_text(read_experiment(None, {"eps": text}).eps) == text


@pytest.mark.parametrize(
    ("dataset", "model", "eps"),
    [("digits", "tiny", 0.1), ("mnist", "small", 0.1), ("cifar10", "small", 2 / 255), ("svhn", "small", 0.01)],
)
def test_what_is_left_open_is_filled_as_the_design_says(dataset, model, eps):
    resolved = read_experiment(
        None, {"dataset": dataset, "methods": "nominal,expected,crown,dual-projected"}
    ).resolved()
    assert (resolved.model, resolved.eps, resolved.eps_test) == (model, eps, (eps,))
    # Only sound bounds certify, whatever the methods train with.
    assert resolved.certify == ("ibp", "crown-ibp", "crown")


def test_the_folder_is_named_after_what_determines_the_results():
    base = {"dataset": "digits", "methods": "ibp", "device": "cpu"}
    folder = read_experiment(None, base).resolved().folder
    assert folder == read_experiment(None, {**base, "eps": "0.1", "model": "tiny", "data_dir": "x"}).resolved().folder
    assert folder != read_experiment(None, {**base, "eps": "0.2"}).resolved().folder
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
        ({"device": "mps"}, "device 'mps' is not supported"),
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
        ("dataset: digits\nepochs: many\n", r"e\.yaml, line 2, epochs: 'many' does not do"),
        ("dataset: digits\nepochs: 1.5\n", r"e\.yaml, line 2, epochs: 1\.5 does not do"),
        ("epochs: true\n", r"e\.yaml, line 1, epochs: True does not do"),
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


def test_an_empty_file_is_all_defaults(tmp_path):
    assert from_file(tmp_path, "# nothing yet\n") == read_experiment(None, {})
