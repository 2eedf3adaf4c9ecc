"""Captured steps, with a recorder of the tests' own in place of a GPU's; and that a whole step reads nothing back."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from etb_plugin.objectives import Losses, Point, Recipe, get_method
from etb_plugin.training.capture import CapturedStep
from etb_plugin.training.optimizers import optimizer_of, set_rate
from etb_plugin.training.state import Partial, State
from etb_plugin.training.step import Step, Sums, length_of_gradients
from etb_plugin.training.team import Team
from tests.conftest import fully_connected

POINTS = [Point(0.0, 1.0), *[Point(0.01 * i, 1 - 0.1 * i) for i in range(1, 5)], *[Point(0.1, 0.5)] * 3]


class Again:
    """Records by keeping the work, and replays by doing it."""

    recorded = 0

    def warm(self, work):
        for _ in range(3):
            work()

    def record(self, work):
        self.recorded += 1
        return work


def batch_normalised():
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3, bias=False),
        torch.nn.BatchNorm2d(4),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(64, 3),
    )
    return network.train()


def made(method, recipe, network, device="cpu"):
    generator = torch.Generator().manual_seed(1)
    state = State(network, optimizer_of(recipe, network.parameters(), 0.1), generator)
    sums = Sums(torch.device(device), Team())
    return Step(state, method.prepare(network, (1, 6, 6), 3), recipe, sums, Team())


def run(step, take):
    """Take a few steps, batches of 8 and a last one of 5."""
    images, labels = torch.rand(69, 1, 6, 6, generator=torch.Generator().manual_seed(2)), torch.arange(69) % 3
    step.sums.begin(1, Partial(torch.arange(69)))
    for i, point in enumerate([*POINTS, POINTS[-1]]):
        set_rate(step.state.optimizer, 0.01 / (i + 1))
        chosen = slice(8 * i, 8 * i + 8)
        take(images[chosen], labels[chosen], point, step.state.generator)
        step.sums.batches += 1
        step.sums.images += len(labels[chosen])
    optimizer = step.state.optimizer.state_dict()["state"]
    return step.state.network.state_dict(), optimizer, step.sums.read(), step.state.generator.get_state()


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("name", ["pgd", "ibp", "mtl-ibp", "dual", "dual-projected"])
def test_captured_steps_leave_what_the_steps_themselves_leave(name, optimizer):
    method = get_method(name)
    recipe = Recipe("a test", optimizer=optimizer, momentum=0.9, gradient_clip=1.0, micro_batch=3)
    plain = made(method, recipe, batch_normalised())
    want = run(plain, plain)
    step, recorder, said = made(method, recipe, batch_normalised()), Again(), []
    got = run(step, CapturedStep(step, 8, recorder, said.append))
    assert recorder.recorded == len({point.phase for point in POINTS})
    assert said == []
    for one, other in zip(got[:2], want[:2], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)  # scalars are float32 where they stay
    assert got[2] == pytest.approx(want[2], rel=1e-5)
    assert torch.equal(got[3], want[3])


class Failing(Again):
    def record(self, work):
        raise RuntimeError("operation not permitted when stream is capturing\nand more")


class Wrong(Again):
    def record(self, work):
        return lambda: None


@pytest.mark.parametrize(("recorder", "why"), [(Failing, "operation not permitted"), (Wrong, "differs")])
def test_what_cannot_be_captured_is_done_step_by_step_and_said_once(recorder, why):
    method, recipe = get_method("ibp"), get_method("ibp").recipe
    plain, step, said = made(method, recipe, batch_normalised()), made(method, recipe, batch_normalised()), []
    want, got = run(plain, plain), run(step, CapturedStep(step, 8, recorder(), said.append))
    assert len(said) == 1
    assert why in said[0]
    assert "\n" not in said[0]
    for one, other in zip(got[:2], want[:2], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
    assert torch.equal(got[3], want[3])


@pytest.mark.parametrize("clip", [None, 1.0])
def test_what_follows_the_gradients_reads_nothing_back_from_a_gpu(clip):
    """The cut, Adam's capturable form and the rate: tensors that say they are on a GPU, and have no values.
    Torch without CUDA has no backward pass for them, so the gradients are given; `test_fake_steps` has the passes."""
    network, recipe = fully_connected(6, 4, 3), Recipe("a test", gradient_clip=clip)
    with FakeTensorMode(allow_non_fake_inputs=True):
        weights = [torch.nn.Parameter(torch.empty(p.shape, device="cuda")) for p in network.parameters()]
        optimizer = optimizer_of(recipe, weights, 0.1)
        for weight in weights:
            weight.grad = torch.empty_like(weight)
        for _ in range(2):
            set_rate(optimizer, 0.1)
            length_of_gradients(weights, clip)
            optimizer.step()
        assert all(moment.is_cuda for one in optimizer.state.values() for moment in one.values())


def test_sums_read_nothing_back():
    with FakeTensorMode():
        sums, total = Sums(torch.device("cpu"), Team()), torch.empty(())
        sums.begin(1, Partial(torch.arange(5)))
        sums.add(Losses(total, total, total, torch.empty((), dtype=torch.int64)), 5)
        sums.end(total)
