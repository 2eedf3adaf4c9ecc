"""Details of a recipe that any method can take: each against its own equation."""

import copy
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from etb_plugin.data import load
from etb_plugin.errors import ConfigError, OutOfMemory
from etb_plugin.networks import clean_statistics, evaluating, measure_statistics
from etb_plugin.objectives import Point, Ramp, Run, get_method
from etb_plugin.training import Settings, train
from etb_plugin.training.averaging import Average
from etb_plugin.training.optimizers import optimizer_of
from etb_plugin.training.schedule import Schedule
from etb_plugin.training.state import Partial, State
from etb_plugin.training.step import Step, Sums
from etb_plugin.training.team import Team
from tests.conftest import fully_connected


@pytest.fixture(scope="module")
def digits():
    return load("digits", train_limit=70, test_limit=20)


def normalised():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 8), nn.BatchNorm1d(8), nn.ReLU(),
        nn.Linear(8, 10),
    ).double()  # fmt: skip


def test_inside_the_clean_batchs_statistics_hold_and_afterwards_the_running_ones():
    network, x, other = normalised().train(), torch.rand(20, 1, 8, 8).double(), torch.rand(7, 1, 8, 8).double()
    with clean_statistics(network):
        clean = network(x)
        with evaluating(network):
            torch.testing.assert_close(network(x), clean)
            beside = network(other)
        network(other)  # a second batch in training mode is not recorded
        with evaluating(network):
            torch.testing.assert_close(network(x), clean)
    with evaluating(network):
        assert not torch.allclose(network(other), beside)
    assert network.training


@pytest.mark.parametrize("name", ["ibp", "crown-ibp", "expected", "sabr", "mtl-ibp"])
def test_a_robust_pass_at_a_tiny_radius_sees_what_the_clean_pass_sees(name):
    """With the clean batch's statistics the two losses are one; with the running ones they are not."""
    x, labels = torch.rand(20, 1, 8, 8).double(), torch.arange(20) % 10
    gaps = {}
    for bn in ("clean", "running"):
        network, method = normalised().train(), get_method(name).changed({"bn": bn})
        losses = method.prepare(network, (1, 8, 8), 10)(x, labels, Point(1e-9, 0.5), torch.Generator().manual_seed(0))
        gaps[bn] = abs(float(losses.robust - losses.clean))
    assert gaps["clean"] < 1e-5
    assert gaps["running"] > 1e-2


@pytest.mark.parametrize("name", ["ibp", "crown-ibp", "expected", "sabr", "mtl-ibp", "taps"])
def test_weights_before_a_normalisation_gain_nothing_by_their_size(name):
    """A batch's statistics are functions of the weights: what only scales them moves no loss, and the gradient along
    them is 0. With numbers for statistics smaller weights would seem to give narrower intervals."""
    network = normalised().train()
    for layer in network:
        layer.eps = 1e-14
    method = get_method(name).changed({"bn": "clean", "l1": 0.0})
    x, labels = torch.rand(20, 1, 8, 8).double(), torch.arange(20) % 10
    losses = method.prepare(network, (1, 8, 8), 10)(x, labels, Point(0.02, 0.5), torch.Generator().manual_seed(0))
    losses.total.backward()
    for layer in (network[0], network[4]):
        weight, gradient = layer.weight.detach(), layer.weight.grad
        assert abs((weight * gradient).sum()) < 1e-8 * weight.norm() * gradient.norm()


def test_the_gradient_through_a_batchs_statistics_is_that_of_the_intervals_written_out():
    network, x, labels = normalised().train(), torch.rand(20, 1, 8, 8).double(), torch.arange(20) % 10
    method = get_method("ibp").changed({"bn": "clean", "elision": False})
    method.prepare(network, (1, 8, 8), 10)(x, labels, Point(0.1, 0.0), torch.Generator()).total.backward()
    got = [p.grad.clone() for p in network.parameters()]
    network.zero_grad()
    clean, (low, high) = x, ((x - 0.1).clamp(0, 1), (x + 0.1).clamp(0, 1))
    for layer in network:
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            dims = [d for d in range(clean.ndim) if d != 1]
            mean, scale = clean.mean(dims, keepdim=True), (clean.var(dims, False, keepdim=True) + layer.eps).rsqrt()
            shape = (1, -1, *[1] * (clean.ndim - 2))
            scale = scale * layer.weight.view(shape)
            clean, low, high = ((z - mean) * scale + layer.bias.view(shape) for z in (clean, low, high))
            low, high = torch.minimum(low, high), torch.maximum(low, high)
        elif isinstance(layer, nn.Conv2d | nn.Linear):
            apply = (lambda z, w: nn.functional.conv2d(z, w)) if isinstance(layer, nn.Conv2d) else nn.functional.linear
            middle, radius = layer((low + high) / 2), apply((high - low) / 2, layer.weight.abs())
            clean, low, high = layer(clean), middle - radius, middle + radius
        else:
            clean, low, high = layer(clean), layer(low), layer(high)
    mine = nn.functional.one_hot(labels, 10).bool()
    nn.functional.cross_entropy(torch.where(mine, low, high), labels).backward()
    for one, parameter in zip(got, network.parameters(), strict=True):
        torch.testing.assert_close(one, parameter.grad, rtol=1e-8, atol=1e-10)


def test_l1_counts_weights_and_no_biases_or_scales():
    network, x, labels = normalised().train(), torch.rand(20, 1, 8, 8).double(), torch.arange(20) % 10
    totals = []
    for l1 in (0.0, 0.25):
        loss = get_method("nominal").changed({"l1": l1}).prepare(network, (1, 8, 8), 10)
        totals.append(loss(x, labels, Point(0.1, 0.5), torch.Generator()).total)
    want = 0.25 * sum(network[i].weight.abs().sum() for i in (0, 4, 7))
    torch.testing.assert_close(totals[1] - totals[0], want)


def test_measured_statistics_are_those_of_the_data():
    network, x = normalised().train(), torch.rand(60, 1, 8, 8).double()
    before = copy.deepcopy(network)
    measure_statistics(network, x.split(20))
    inside = network[0](x)
    torch.testing.assert_close(network[1].running_mean, inside.mean((0, 2, 3)))
    assert network[1].momentum == before[1].momentum
    assert network.training
    for one, other in zip(network.parameters(), before.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("bn", ["clean", "running"])
def test_a_batch_in_parts_is_normalised_as_a_whole(bn):
    x, labels = torch.rand(24, 1, 8, 8).double(), torch.arange(24) % 10
    found = {}
    for size in (None, 7):
        network = normalised().train()
        method = get_method("ibp").changed({"bn": bn, "micro_batch": size, "kappa": 0.5})
        state = State(network, optimizer_of(method.recipe, network.parameters(), 0.0), torch.Generator())
        sums = Sums(x.device, Team())
        sums.begin(1, Partial(torch.arange(24)))
        Step(state, method.prepare(network, (1, 8, 8), 10), method.recipe, sums, Team())(
            x, labels, Point(0.05, 0.5), torch.Generator()
        )
        sums.images, sums.batches = 24, 1
        found[size] = (sums.read(), network[1].running_mean.clone(), int(network[1].num_batches_tracked))
        assert all(layer.training for layer in network.modules())
    losses = [found[size][0] for size in (None, 7)]
    assert losses[0][1] == pytest.approx(losses[1][1], rel=1e-9)  # the clean loss
    if bn == "clean":
        assert losses[0] == pytest.approx(losses[1], rel=1e-9)  # the robust one too, and the gradient's length
    torch.testing.assert_close(found[None][1], found[7][1])
    assert found[None][2] == found[7][2] == 1


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_a_batch_that_memory_does_not_hold_is_taken_in_parts(error, digits, monkeypatch, capsys):
    settings = Settings(0.05, 2, batch_size=40)
    found = {}
    for case, size in (("in parts", 10), ("scarce", None)):
        network = normalised().float()
        method = get_method("pgd").changed({"micro_batch": size})
        prepare = type(method.objective).prepare

        def scarce(objective, *arguments, prepare=prepare):
            loss = prepare(objective, *arguments)

            def limited(images, labels, point, generator):
                losses = loss(images, labels, point, generator)  # draws, and moves running statistics
                if len(images) > 15:
                    raise error
                return losses

            return limited

        with monkeypatch.context() as patch:
            if case == "scarce":
                patch.setattr(type(method.objective), "prepare", scarce)
            run = train(network, method, digits, settings)
        found[case] = [e.loss for e in run.epochs], [*network.state_dict().values()]
    assert found["in parts"][0] == found["scarce"][0]
    for one, other in zip(*(weights for _, weights in found.values()), strict=True):
        assert torch.equal(one, other)
    said = capsys.readouterr().err.splitlines()
    assert [line.partition("here on ")[2].partition(" images")[0] for line in said] == ["20", "10"]


def test_an_image_that_memory_does_not_hold_ends_the_run_in_a_line(digits, monkeypatch):
    method = get_method("ibp")

    def none(*_):
        raise MemoryError

    monkeypatch.setattr(type(method.objective), "prepare", lambda *_: none)
    with pytest.raises(OutOfMemory, match="with a single image"):
        train(normalised().float(), method, digits, Settings(0.05, 1))


def test_the_average_of_weights_is_their_mean():
    networks = [fully_connected(4, 5, 3) for _ in range(3)]
    average = Average.of(networks[0])
    for network in networks:
        average.add(network)
    for mean, *weights in zip(average.network.parameters(), *(n.parameters() for n in networks), strict=True):
        torch.testing.assert_close(mean, torch.stack(weights).mean(0))


@pytest.mark.parametrize("precise", [False, True])
def test_averaged_runs_keep_the_mean_of_their_last_epochs_and_resume_to_the_same_bits(digits, tmp_path, precise):
    changes = {"swa_from": "2 epochs", "precise_bn": precise, "bn": "clean", "l1": 1e-5, "regulariser": 0.5}
    method, settings = get_method("ibp").changed(changes), Settings(0.05, 4, seed=3)
    seen, after = [], []
    whole = normalised().float()
    train(whole, method, digits, settings, after_epoch=lambda _: seen.append(copy.deepcopy(whole.state_dict())))
    assert len(seen) == 4
    mean = torch.stack([state["0.weight"] for state in seen[1:]]).mean(0)
    torch.testing.assert_close(whole[0].weight.detach(), mean)
    images = torch.cat([x for x, _ in digits.train.batches(100)])
    torch.testing.assert_close(whole[1].running_mean, whole[0](images).mean((0, 2, 3)), atol=1e-2, rtol=1e-2)

    class Enough(Exception):
        pass

    def stop(epoch):
        after.append(epoch)
        if len(after) == 3:
            raise Enough

    parts = normalised().float()
    with pytest.raises(Enough):
        train(parts, method, digits, settings, folder=tmp_path, after_epoch=stop)
    resumed = normalised().float()
    train(resumed, method, digits, settings, folder=tmp_path)
    for one, other in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_a_smooth_ramp_bends_and_ends_like_the_line():
    ramp, run = Ramp(0.0, 1.0, 0.2, 0.5, "smooth"), Run(10, 100)
    values = [ramp.at(step, run) for step in range(1000)]
    assert values[200] == 0
    assert values[700] == 1
    slopes = [b - a for a, b in pairwise(values)]
    assert min(slopes) >= 0
    assert max(abs(b - a) for a, b in pairwise(slopes[200:700])) < 1e-4  # no kink
    assert values[210] < 0.1 * Ramp(0.0, 1.0, 0.2, 0.5).at(210, run)


def test_a_constant_robust_weight_weighs_the_two_losses():
    network, x, labels = fully_connected(4, 8, 3), torch.rand(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    method = get_method("ibp").changed({"robust_weight": 0.7})
    point = Schedule(method.recipe, 0.1, 1e-3, Run(2, 10)).point(15)
    losses = method.prepare(network, (4,), 3)(x, labels, point, torch.Generator())
    torch.testing.assert_close(losses.total.detach(), 0.3 * losses.clean + 0.7 * losses.robust)
    torch.testing.assert_close(losses.clean, F.cross_entropy(network(x), labels).detach())
    with pytest.raises(ConfigError, match="it has kappa in place of robust_weight"):
        get_method("expected").changed({"robust_weight": 0.7}).prepare(network, (4,), 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"robust_weight": 1.5}, "from 0 to 1; got 1.5"), ({"l1": -1.0}, "from 0 on"), ({"swa_from": "3"}, "no length")],
)
def test_numbers_out_of_range_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        replace(get_method("ibp").recipe, **changes)
