"""The package from Python: any network, any images, in a call each; the same figures as the command line's parts."""

import copy
import json

import nbformat
import pytest
import torch
from nbclient import NotebookClient
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import etb_plugin
from etb_plugin.data import load, pixels
from etb_plugin.errors import ConfigError, DataError
from etb_plugin.verification import Verdict
from tests.command import etb


class Own(nn.Module):
    """A network as users write them."""

    def __init__(self, inputs: int = 64, classes: int = 10) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(inputs, 32), nn.Linear(32, classes)

    def forward(self, x):
        hidden = torch.relu(self.first(x.flatten(1)))
        return self.last(hidden + torch.relu(hidden - 0.1))


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    network, digits = Own(), load("digits")
    done = etb_plugin.train(network, digits, method="mtl-expected", eps=0.03, epochs=15, learning_rate=2e-3)
    assert len(done.epochs) == 15
    return network, digits


def test_a_network_is_trained_evaluated_and_verified_in_a_call_each(trained):
    network, digits = trained
    assert not network.training
    found = etb_plugin.evaluate(network, digits, eps=0.05, certify=["ibp", "crown"])
    assert found.clean_accuracy > 0.8
    certified = found.certified_accuracy
    assert 0.2 < certified["ibp"] <= certified["crown"] <= found.pgd_accuracy <= found.clean_accuracy
    images, labels = pixels(digits.test.images), digits.test.labels
    assert found.clean_accuracy == pytest.approx(float((network(images).argmax(1) == labels).double().mean()))
    verdicts = {}
    for index in range(12):
        one = etb_plugin.verify(network, images[index], int(labels[index]), eps=0.05, seconds=20)
        verdicts[one.verdict] = verdicts.get(one.verdict, 0) + 1
        if one.verdict is Verdict.FALSIFIED:
            assert (one.counterexample - images[index]).abs().max() <= 0.05 + 1e-6
            assert copy.deepcopy(network).double()(one.counterexample[None]).argmax() != labels[index]
        else:
            assert one.counterexample is None
    assert verdicts.get(Verdict.ROBUST, 0) > 4
    assert Verdict.UNKNOWN not in verdicts
    together = etb_plugin.verify(network, images[:12], labels[:12], eps=0.05, seconds=20)
    assert [one.verdict for one in together].count(Verdict.ROBUST) == verdicts[Verdict.ROBUST]
    assert Verdict.UNKNOWN not in {one.verdict for one in together}
    for image, label in ((images[0], 7.5), (images[0], torch.tensor(7.5)), (images[:12], labels[:12].double())):
        with pytest.raises(DataError, match="labels are integers"):
            etb_plugin.verify(network, image, label, eps=0.05)
    wrong = (int(labels[0]) + 1) % 10
    assert etb_plugin.verify(network, images[0], wrong, eps=0.01).verdict is Verdict.FALSIFIED


def test_tensors_a_loader_and_a_data_set_are_one_and_the_same(trained):
    network, digits = trained
    pair = (pixels(digits.test.images), digits.test.labels)
    loader = DataLoader(TensorDataset(*pair), batch_size=37)
    arrays = tuple(part.numpy() for part in pair)
    every = (digits, pair, loader, "digits", arrays)
    found = [etb_plugin.evaluate(network, data, eps=0.05, pgd_steps=5) for data in every]
    assert all(one == found[0] for one in found)


def test_training_goes_on_in_its_folder_and_refuses_another_call(tmp_path):
    images, labels = torch.rand(50, 6), torch.arange(50) % 3

    def call(**changes):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
        asked = {"method": "ibp", "eps": 0.1, "epochs": 3, "batch_size": 10, "folder": tmp_path / "run"} | changes
        etb_plugin.train(network, (images, labels), **asked)
        return network.state_dict()

    first, kept, apart = call(), call(), call(folder=None)
    for name, value in first.items():
        assert torch.equal(value, kept[name])
        assert torch.equal(value, apart[name])
    with pytest.raises(ConfigError, match=r"holds another experiment \(eps 0\.2 here, 0\.1 there"):
        call(eps=0.2)
    with pytest.raises(ConfigError, match="holds another experiment"):
        call(kappa={"end": 0.0})


@pytest.mark.parametrize(
    ("images", "labels", "says"),
    [
        (torch.rand(4, 6, dtype=torch.float64), torch.zeros(4, dtype=int), "uint8, or float32"),
        (torch.rand(4, 6) + 1, torch.zeros(4, dtype=int), r"lie in \[0, 1\]"),
        (torch.full((4, 6), torch.nan), torch.zeros(4, dtype=int), r"lie in \[0, 1\]"),
        (torch.rand(4, 6), torch.tensor([0, 1, 2, 3]), "labels run from 0 to 2; got 0 to 3"),
        (torch.rand(4, 6), torch.tensor([0, -1, 2, 1]), "got -1 to 2"),
        (torch.rand(4, 6), torch.full((4,), 3), "got 3$"),
        (torch.rand(4, 6), torch.zeros(4), "labels are integers"),
        (torch.rand(4, 6), torch.zeros(3, dtype=int), "images are"),
        (torch.rand(0, 6), torch.zeros(0, dtype=int), "n at least 1"),
    ],
)
def test_data_that_cannot_be_meant_is_refused(images, labels, says):
    network = Own(6, 3)
    for call in (
        lambda: etb_plugin.evaluate(network, (images, labels), eps=0.1),
        lambda: etb_plugin.train(network, [(images, labels)], method="ibp", eps=0.1, epochs=1),
    ):
        with pytest.raises(DataError, match=says):
            call()


def test_networks_and_numbers_that_cannot_be_meant_are_refused():
    pair = torch.rand(4, 6), torch.tensor([0, 1, 2, 1])
    with pytest.raises(ConfigError, match=r"does not take \[\d+, 6\]"):
        etb_plugin.evaluate(Own(5, 3), pair, eps=0.1)
    with pytest.raises(ConfigError, match=r"logits \[batch, classes\]"):
        etb_plugin.evaluate(nn.Unflatten(1, (2, 3)), pair, eps=0.1)
    with pytest.raises(ConfigError, match="digits has 10 classes; the network gives 3 logits"):
        etb_plugin.evaluate(Own(64, 3), "digits", eps=0.1)
    with pytest.raises(ConfigError, match="digits is on meta, the network on cpu"):
        etb_plugin.evaluate(Own(), load("digits", device="meta"), eps=0.1)
    with pytest.raises(ConfigError, match=r"in torch\.float64, and images are float32"):
        etb_plugin.train(Own(6, 3).double(), pair, method="ibp", eps=0.1, epochs=1)
    with pytest.raises(ConfigError, match=r"images are torch\.float32 on cpu, the network torch\.float64"):
        etb_plugin.objective("ibp", Own(6, 3).double(), (6,), 3)(*pair, eps=0.1)
    with pytest.raises(ConfigError, match="not sound"):
        etb_plugin.evaluate(Own(6, 3), pair, eps=0.1, certify=["expected"])
    with pytest.raises(ConfigError, match="from 0 to 1; got 8"):
        etb_plugin.verify(Own(6, 3), pair[0][0], 0, eps=8)
    with pytest.raises(ConfigError, match="did you mean"):
        etb_plugin.train(Own(6, 3), pair, method="ipb", eps=0.1, epochs=1)
    with pytest.raises(ConfigError, match="a number from 0 to 1; got '8/255'"):
        etb_plugin.evaluate(Own(6, 3), pair, eps="8/255")
    with pytest.raises(ConfigError, match="unknown key of method 'ibp': 'kapa'; did you mean kappa"):
        etb_plugin.train(Own(6, 3), pair, method="ibp:kapa=0", eps=0.1, epochs=1)
    with pytest.raises(ConfigError, match="'lr'; did you mean learning_rate"):
        etb_plugin.train(Own(6, 3), pair, method="ibp", eps=0.1, epochs=1, lr=0.1)
    with pytest.raises(DataError, match="no batches"):
        etb_plugin.evaluate(Own(6, 3), [], eps=0.1)
    with pytest.raises(DataError, match=r"a batch is a pair \(images, labels\); got dict"):
        etb_plugin.evaluate(Own(6, 3), [{"x": pair[0], "y": pair[1]}], eps=0.1)


COMPARE = {
    "dataset": "digits",
    "model": "mlp-20x2",
    "methods": ["ibp", "expected"],
    "epochs": 2,
    "train_limit": 200,
    "evaluation": {"test_limit": 40, "pgd_steps": 3, "eps_test": [0.05]},
    "threads": 1,
}


def test_a_comparison_in_python_is_the_commands_own(tmp_path):
    found = etb_plugin.compare(**COMPARE, out=tmp_path / "run", progress=False)
    (tmp_path / "e.yaml").write_text(
        "dataset: digits\nmodel: mlp-20x2\nmethods: [ibp, expected]\ntraining: {epochs: 2, train_limit: 200}\n"
        "evaluation: {test_limit: 40, pgd_steps: 3, eps_test: [0.05]}\nengine: {threads: 1}\n"
    )
    done = etb("compare", "e.yaml", "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("kept from an earlier run") == 2
    assert done.stdout.startswith(repr(found))
    again = etb_plugin.compare(tmp_path / "e.yaml", out=tmp_path / "run", progress=False)
    assert again.results == found.results
    frame = found.to_pandas()
    assert list(frame["method"]) == ["ibp", "expected"]
    assert frame["certified_crown-ibp"].tolist() == [r.certified_accuracy["crown-ibp"] for r in found.results]
    found.save(tmp_path / "table.csv")
    assert (tmp_path / "table.csv").read_text() == (tmp_path / "run" / "results.csv").read_text()
    for keys, says in (({"modl": "tiny"}, "did you mean model"), ({"epochs": 0}, "epochs: 0 does not do")):
        with pytest.raises(ConfigError, match=says):
            etb_plugin.compare(**COMPARE | keys)


def test_results_go_to_pandas_and_to_files(trained, tmp_path):
    network, digits = trained
    found = etb_plugin.evaluate(network, digits, eps=0.05, pgd_steps=2, progress=False)
    assert found.to_pandas()["certified_ibp"].tolist() == [found.certified_accuracy["ibp"]]
    image = pixels(digits.test.images)[0]
    one = etb_plugin.verify(network, image, int(digits.test.labels[0]), eps=0.02)
    for result in (found, one):
        result.save(tmp_path / "one.json")
        assert json.loads((tmp_path / "one.json").read_text()) == json.loads(json.dumps(result.rows()))
        assert "<table>" in result._repr_html_()
    with pytest.raises(ConfigError, match=r"\.json or \.csv"):
        one.save(tmp_path / "one.txt")


@pytest.mark.slow
def test_a_notebook_shows_tables_plots_and_bars(tmp_path):
    cells = [
        "import etb_plugin\netb_plugin.compare(dataset='digits', model='tiny', methods=['ibp', 'expected'], epochs=3, "
        f"train_limit=300, test_limit=40, pgd_steps=2, threads=1, out={str(tmp_path / 'run')!r})",
        "from torch import nn\nnetwork = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
        "etb_plugin.train(network, 'digits', method='nominal', eps=0.0, epochs=1)",
        "etb_plugin.evaluate(network, 'digits', eps=0.05, pgd_steps=2)",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    outputs = [cell.outputs for cell in notebook.cells]
    compared, trained, evaluated = ([o.data for o in found if "data" in o] for found in outputs)
    assert any("application/vnd.jupyter.widget-view+json" in data for data in compared)  # the bars
    page = next(data["text/html"] for data in compared if 'class="etb"' in data.get("text/html", ""))
    assert page.count("<table") == 1
    assert page.count("data:image/svg+xml") >= 2
    assert "NOT a certificate" in page
    assert "gradient_norm" in trained[-1]["text/html"]
    assert "certified_crown-ibp" in evaluated[-1]["text/html"]
