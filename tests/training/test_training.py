"""The loop: schedules, repeatability, resume to the last bit, and failures that say where."""

import io
import json
import os
import signal
from dataclasses import asdict, dataclass, fields, replace

import pytest
import torch
from safetensors import safe_open
from torch import nn
from torch.nn import functional as F

from etb_plugin.bounds import Box, bound, margin_spec
from etb_plugin.data import load, pixels
from etb_plugin.errors import CheckpointError, ConfigError, Stopped, TrainingError
from etb_plugin.networks import build
from etb_plugin.objectives import Losses, Method, Ramp, Recipe, Run, get_method
from etb_plugin.training import Settings, train
from etb_plugin.training.schedule import Schedule
from etb_plugin.training.state import read_state, sealed
from etb_plugin.training.tensorboard import TensorBoard

TIMES = ("seconds", "step_ms")


@pytest.fixture(scope="module")
def digits():
    return load("digits", train_limit=70, test_limit=20)


def network(digits, name="mlp-8x2", seed=0):
    return build(name, digits.input_shape, 10, seed=seed)


def settings(**changes):
    return replace(Settings(eps=0.05, epochs=4, batch_size=20), **changes)


def weights(net):
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def records(training):
    return [{k: v for k, v in asdict(epoch).items() if k not in TIMES} for epoch in training.epochs]


def test_a_schedule_counts_steps_from_the_first_to_the_last():
    recipe = Recipe("", decay_at=(0.5, 0.8), eps_ramp=Ramp(0.0, 1.0, length=0.5), kappa=Ramp(1.0, 0.5, length=0.5))
    schedule = Schedule(recipe, eps=0.2, learning_rate=0.1, run=Run(epochs=10, batches=2))
    assert schedule.run.steps == 20
    assert [schedule.point(i).eps for i in (0, 5, 10, 19)] == pytest.approx([0.0, 0.1, 0.2, 0.2])
    assert [schedule.point(i).kappa for i in (0, 5, 10)] == pytest.approx([1.0, 0.75, 0.5])
    assert [schedule.rate(i) for i in (0, 9, 10, 16, 19)] == pytest.approx([0.1, 0.1, 0.01, 0.001, 0.001])
    assert [schedule.settled(e) for e in (1, 5, 6, 10)] == [False, False, True, True]


@pytest.mark.parametrize("epochs", [1, 2, 3, 60])
@pytest.mark.parametrize("name", ["ibp", "pgd", "dual"])
def test_every_run_however_short_ends_at_the_full_eps(name, epochs):
    schedule = Schedule(get_method(name).recipe, 0.1, 1e-3, Run(epochs, batches=3))
    assert schedule.point(schedule.run.steps - 1).eps == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"eps_ramp": Ramp(0.0, 1.0, "20 steps", "8 epochs")},
            "eps_ramp is reached after 36 steps, and the run has",
        ),
        ({"kappa": Ramp(1.0, 0.5, "21 steps")}, "kappa is reached after 21 steps"),
        ({"decay_at": (0.5, "11 epochs")}, "decay_at 11 epochs is reached after 22 steps"),
    ],
)
def test_a_recipe_longer_than_the_run_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        Schedule(Recipe("", **changes), 0.1, 1e-3, Run(epochs=10, batches=2))


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_training_follows_plain_torch_step_by_step(digits, optimizer):
    """Two epochs of `nominal` beside a loop written out here."""
    recipe = Recipe("", optimizer=optimizer, learning_rate=0.01, momentum=0.9, decay_at=(0.5,))
    method = replace(get_method("nominal"), recipe=recipe)
    trained, plain = network(digits), network(digits)
    training = train(trained, method, digits, settings(epochs=2))
    torch_optimizer = (
        torch.optim.Adam(plain.parameters(), 0.01)
        if optimizer == "adam"
        else torch.optim.SGD(plain.parameters(), 0.01, momentum=0.9)
    )
    generator = torch.Generator().manual_seed(0)
    for epoch in range(2):
        torch_optimizer.param_groups[0]["lr"] = 0.01 / 10**epoch
        losses = []
        for chosen in torch.randperm(70, generator=generator).split(20):
            torch_optimizer.zero_grad()
            x, y = digits.train.images[chosen].float() / 255, digits.train.labels[chosen]
            loss = F.cross_entropy(plain(x), y)
            loss.backward()
            torch_optimizer.step()
            losses.append(loss.item() * len(y))
        assert training.epochs[epoch].loss == pytest.approx(sum(losses) / 70, rel=1e-5)
    assert torch.equal(weights(trained), weights(plain))
    assert not trained.training


def test_gradients_are_cut_and_weights_drawn_as_the_recipe_says(digits):
    recipe = replace(get_method("nominal").recipe, optimizer="sgd", learning_rate=1.0, gradient_clip=1e-3)
    method = replace(get_method("nominal"), recipe=recipe)
    trained = network(digits)
    before = weights(trained).clone()
    training = train(trained, method, digits, settings(epochs=1, batch_size=70))
    assert training.epochs[0].gradient_norm > 1e-2
    assert float((weights(trained) - before).detach().norm()) == pytest.approx(1e-3, rel=1e-3)
    drawn = network(digits)
    method = replace(method, recipe=replace(recipe, initialization="ibp", learning_rate=1e-9))
    train(drawn, method, digits, settings(epochs=1))
    first = next(p for p in drawn.parameters() if p.ndim > 1)
    assert float(first.detach().std() * first[0].numel()) == pytest.approx((2 * torch.pi) ** 0.5, rel=0.1)


def test_epochs_say_how_wide_and_unstable_the_network_is(digits):
    net = network(digits, "mlp-8x1")
    epoch = train(net, get_method("ibp"), digits, settings(epochs=1)).epochs[-1]
    box = Box.around(digits.train.images[:100].float() / 255, epoch.eps)
    with torch.no_grad():
        interval = bound("ibp", net, box)
    assert epoch.width == pytest.approx(float(interval.width.mean()), rel=1e-5)
    hidden = net[: next(i for i, layer in enumerate(net) if isinstance(layer, nn.ReLU))]
    with torch.no_grad():
        before = bound("ibp", hidden, box)
    assert epoch.unstable == pytest.approx(float(((before.lower < 0) & (before.upper > 0)).float().mean()))


def test_tensorboard_has_every_figure_of_every_epoch(digits, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    training = train(
        network(digits), get_method("ibp"), digits, settings(epochs=3), after_epoch=TensorBoard(tmp_path / "logs")
    )
    logs = EventAccumulator(str(tmp_path / "logs")).Reload()
    tags = {tag.partition("/")[2]: tag for tag in logs.Tags()["scalars"]}
    assert set(tags) == {f.name for f in fields(training.epochs[0])} - {"epoch"}
    for name, tag in tags.items():
        logged = [(event.step, event.value) for event in logs.Scalars(tag)]
        found = [(e.epoch, getattr(e, name)) for e in training.epochs]
        assert logged == [(epoch, pytest.approx(value, rel=1e-6)) for epoch, value in found if value is not None]


@pytest.mark.parametrize("name", ["nominal", "ibp", "expected"])
def test_a_method_lowers_its_loss_and_reports_what_it_cost(digits, name):
    training = train(network(digits), get_method(name), digits, settings(epochs=20, eps=0.01, learning_rate=0.01))
    first, last = training.epochs[0], training.epochs[-1]
    assert last.clean_loss < 0.8 * first.clean_loss
    assert last.accuracy > 0.5
    assert training.train_seconds >= training.seconds_per_epoch > 0
    assert training.step_ms > 0
    assert training.nominal_step_ms > 0
    assert training.peak_memory_mib > 10


def test_equal_seeds_give_equal_bits_and_torchs_generator_is_left_alone(digits):
    before = torch.get_rng_state()
    runs = []
    for seed in (0, 0, 1):
        net = network(digits)
        train(net, get_method("pgd"), digits, settings(epochs=2, seed=seed))
        runs.append(weights(net))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    assert torch.equal(torch.get_rng_state(), before)


class Killed(BaseException):
    """What a test raises in the middle of an epoch."""


@pytest.mark.parametrize("name", ["ibp", "pgd", "dual-projected"])
def test_a_resumed_run_equals_an_unbroken_one_to_the_last_bit(digits, name, tmp_path, monkeypatch):
    monkeypatch.setattr("etb_plugin.training.loop._WATCH_EVERY", 0.0)
    method = get_method(name)
    unbroken = network(digits)
    whole = train(unbroken, method, digits, settings(), folder=tmp_path / "whole")

    def killed_in_epoch_3(progress):
        if progress.epoch == 3 and progress.step == 11:
            raise Killed

    with pytest.raises(Killed):
        train(network(digits), method, digits, settings(), folder=tmp_path / "broken", watch=killed_in_epoch_3)
    resumed, steps = network(digits, seed=5), []
    parts = train(resumed, method, digits, settings(), folder=tmp_path / "broken", watch=lambda p: steps.append(p.step))
    assert steps[0] == 9  # epochs 1 and 2 were not run again
    assert torch.equal(weights(resumed), weights(unbroken))
    assert records(parts) == records(whole)
    for file in ("last.safetensors", "best.safetensors"):
        assert (tmp_path / "broken" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


@pytest.mark.parametrize("name", ["ibp", "pgd", "dual-projected"])
@pytest.mark.parametrize(
    "steps", [(3,), (6, 7), *(pytest.param(s, marks=pytest.mark.slow) for s in ((1,), (4, 5, 8, 15)))]
)
def test_a_run_stopped_between_batches_goes_on_to_the_same_bits(digits, name, steps, tmp_path, monkeypatch):
    """Four batches an epoch; stops in the middle and at ends of epochs, and several times."""
    monkeypatch.setattr("etb_plugin.training.loop._WATCH_EVERY", 0.0)
    method, data = get_method(name), replace(digits, source=replace(digits.source, crop_padding=1, flip=True))
    unbroken = network(digits)
    whole = train(unbroken, method, data, settings(), folder=tmp_path / "whole")
    for step in steps:

        def stop(progress, step=step):
            if progress.step == step:
                raise Stopped(signal.SIGTERM)

        start = network(digits, seed=0 if step == steps[0] else 7)
        with pytest.raises(Stopped):
            train(start, method, data, settings(), folder=tmp_path / "parts", watch=stop)
    resumed, seen = network(digits, seed=8), []
    parts = train(resumed, method, data, settings(), folder=tmp_path / "parts", watch=lambda p: seen.append(p.step))
    assert seen[0] == steps[-1] + 1
    assert torch.equal(weights(resumed), weights(unbroken))
    assert records(parts) == records(whole)
    lines = [json.loads(line) for line in (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4]
    assert [line["loss"] for line in lines] == [epoch.loss for epoch in whole.epochs]


def test_a_state_of_another_layout_is_refused(digits, tmp_path):
    train(network(digits), get_method("nominal"), digits, settings(epochs=1), folder=tmp_path)
    content = torch.load(io.BytesIO(read_state(tmp_path / "state.pt", pytest.fail)), weights_only=True)
    torch.save({**content, "version": 99}, changed := io.BytesIO())
    (tmp_path / "state.pt").write_bytes(sealed(changed.getvalue()))
    with pytest.raises(CheckpointError, match=r"has layout 99, and this version of etb reads 3"):
        train(network(digits), get_method("nominal"), digits, settings(epochs=2), folder=tmp_path)


def test_a_full_disk_leaves_the_last_good_checkpoint(digits, tmp_path, monkeypatch):
    train(network(digits), get_method("nominal"), digits, settings(epochs=1), folder=tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            train(network(digits), get_method("nominal"), digits, settings(epochs=2), folder=tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    assert len(train(network(digits), get_method("nominal"), digits, settings(epochs=2), folder=tmp_path).epochs) == 2


def test_a_finished_run_is_not_trained_again(digits, tmp_path):
    net = network(digits)
    first = train(net, get_method("ibp"), digits, settings(), folder=tmp_path)
    again = network(digits, seed=3)
    second = train(again, get_method("ibp"), digits, settings(), folder=tmp_path, watch=lambda _: pytest.fail("ran"))
    assert second == first
    assert torch.equal(weights(again), weights(net))


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda _: b"", lambda _: b"not a checkpoint"])
def test_a_damaged_state_is_refused_by_name(digits, tmp_path, damage):
    train(network(digits), get_method("nominal"), digits, settings(epochs=1), folder=tmp_path)
    path = tmp_path / "state.pt"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match=r"state\.pt cannot be resumed from: .*delete it to start afresh"):
        train(network(digits), get_method("nominal"), digits, settings(epochs=2), folder=tmp_path)


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda _: b"", lambda b: b[:5000] + b"?" + b[5001:]])
def test_behind_a_damaged_state_the_one_before_goes_on_to_the_same_bits(digits, tmp_path, damage, capsys):
    def stopped(progress):
        if progress.epoch == 3:
            raise Stopped(2)

    whole, parts = network(digits), network(digits)
    want = train(whole, get_method("ibp"), digits, settings(), folder=tmp_path / "whole")
    with pytest.raises(Stopped):
        train(parts, get_method("ibp"), digits, settings(), folder=tmp_path / "parts", watch=stopped)
    path = tmp_path / "parts" / "state.pt"
    good = path.read_bytes()
    path.write_bytes(damage(good))
    assert path.read_bytes() != good
    resumed = network(digits, seed=8)
    found = train(resumed, get_method("ibp"), digits, settings(), folder=tmp_path / "parts")
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "going on from the epoch before" in said
    assert torch.equal(weights(resumed), weights(whole))
    assert records(found) == records(want)
    assert not (tmp_path / "parts" / "state.before.pt").exists()


@dataclass(frozen=True)
class Planned:
    """An objective whose loss is given in advance, one per step."""

    plan: tuple[float, ...]
    bound = None

    def prepare(self, network, input_shape, classes):
        values = iter(self.plan)

        def loss(images, labels, point, generator):
            value = F.cross_entropy(network(images), labels) * 0 + next(values)
            return Losses(value, value.detach(), value.detach(), torch.tensor(0))

        return loss


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_with_epoch_and_batch(digits, bad):
    method = Method("planned", "", Planned((1.0,) * 4 + (1.0, bad, 1.0, bad)), Recipe(""))
    with pytest.raises(TrainingError, match="not finite in epoch 2, batch 2"):
        train(network(digits), method, digits, settings())


def test_the_best_checkpoint_is_the_lowest_loss_at_the_final_eps(digits, tmp_path):
    by_epoch = [0.1, 0.2, 2.0, 1.0, 1.5, 1.0]  # the ramp is over from epoch 4 on
    plan = tuple(value for value in by_epoch for _ in range(4))
    method = Method("planned", "", Planned(plan), Recipe("", eps_ramp=Ramp(0.0, 1.0, length=0.5)))
    train(network(digits), method, digits, settings(epochs=6), folder=tmp_path, about={"method": "planned"})
    for name, epoch in (("best", 4), ("last", 6)):
        with safe_open(tmp_path / f"{name}.safetensors", "pt") as file:
            assert json.loads(file.metadata()["etb"]) == {"method": "planned", "epoch": epoch}


def test_micro_batches_add_up_to_the_batch(digits):
    nets = []
    for size in (None, 7):
        method = get_method("ibp")
        method = replace(method, recipe=replace(method.recipe, micro_batch=size, optimizer="sgd", learning_rate=0.1))
        net = network(digits)
        training = train(net, method, digits, settings())
        nets.append((weights(net), training.epochs[-1].loss, training.epochs[-1].accuracy))
    torch.testing.assert_close(nets[0], nets[1], rtol=1e-4, atol=1e-6)


def test_batch_norm_trains_under_a_bound_and_ends_in_eval_mode(digits):
    net = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 10))
    training = train(net, get_method("ibp"), digits, settings())
    assert not net.training
    assert int(net[1].num_batches_tracked) == 16  # the clean images of each step, and nothing else
    assert training.epochs[-1].eps == pytest.approx(0.05)


def test_the_logs_say_what_ibp_certifies_and_what_stands_under_an_attack(digits):
    net = network(digits)
    training = train(net, get_method("ibp"), digits, settings(epochs=5))
    images, labels = pixels(digits.train.images), digits.train.labels
    margins = bound("ibp", net, Box.around(images, 0.05), margin_spec(labels, 10)).lower
    assert training.epochs[-1].certified_accuracy == float((margins > 0).all(1).double().mean())
    accuracy = float((net(images).argmax(1) == labels).double().mean())
    assert training.epochs[-1].certified_accuracy <= training.epochs[-1].pgd_accuracy <= accuracy
    assert [epoch.pgd_accuracy is None for epoch in training.epochs] == [True] * 4 + [False]  # epochs are short here
