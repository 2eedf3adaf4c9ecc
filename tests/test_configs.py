"""Every experiment file in configs/ is one that etb takes."""

from pathlib import Path

import pytest

from etb_plugin.data import sources
from etb_plugin.experiment import read_experiment
from etb_plugin.objectives import Run
from etb_plugin.training.schedule import Schedule

CONFIGS = Path(__file__).parent.parent / "configs"
TRAINING_IMAGES = {"digits": 1437, "mnist": 60_000, "cifar10": 50_000, "tinyimagenet": 100_000}
FILES = sorted(file for folder in ("papers", "quick", "ctbench") for file in (CONFIGS / folder).glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_file_is_valid_down_to_its_schedules(file):
    experiment = read_experiment(file, {"device": "cpu"}).resolved()
    assert experiment.dataset in sources()
    training = experiment.training
    images = TRAINING_IMAGES[experiment.dataset] - (training.validation or 0)
    run = Run(training.epochs, -(-images // training.batch_size))
    for variant in experiment.methods:
        for changes in variant.points():
            method, eps = variant.at(changes, experiment.eps[0])
            schedule = Schedule(method.recipe, eps, method.recipe.learning_rate, run)
            assert schedule.point(run.steps - 1).eps == pytest.approx(eps)


def test_files_of_papers_name_their_table():
    for file in (CONFIGS / "papers").glob("*.yaml"):
        first = file.read_text().partition("\n")[0]
        assert first.startswith("# ")
        assert any(word in first for word in ("table", "figure", "MNIST at", "CIFAR-10 at"))
