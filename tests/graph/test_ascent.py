"""Gradient ascent, against torch's Adam."""

import torch

from etb_plugin.graph.ascent import Ascent, Moved


def test_steps_are_those_of_torchs_adam_within_the_limits():
    generator = torch.Generator().manual_seed(0)
    starts = [torch.rand(4, 5, dtype=torch.float64, generator=generator) for _ in range(2)]
    mine, theirs = ([start.clone().requires_grad_() for start in starts] for _ in range(2))
    zero, one = torch.zeros(()).double(), torch.ones(()).double()
    ascent = Ascent([Moved(mine[0], zero, one), Moved(mine[1], zero, one, pace=0.2)], rate=0.5, decay=0.95)
    groups = [{"params": theirs[:1], "lr": 0.5}, {"params": theirs[1:], "lr": 0.1}]
    optimizer = torch.optim.Adam(groups, maximize=True)
    inside = 0
    for _ in range(12):
        gradients = [torch.randn(4, 5, dtype=torch.float64, generator=generator) for _ in range(2)]
        ascent.step(gradients)
        for leaf, gradient in zip(theirs, gradients, strict=True):
            leaf.grad = gradient
        optimizer.step()
        for leaf in theirs:
            leaf.data.clamp_(0, 1)
        for group in optimizer.param_groups:
            group["lr"] *= 0.95
        for own, other in zip(mine, theirs, strict=True):
            torch.testing.assert_close(own, other, rtol=0, atol=1e-12)
            inside += int(((other > 0) & (other < 1)).sum())
    assert inside > 50
    before = mine[0].detach().clone()
    ascent.step([None, torch.ones_like(before)])
    assert torch.equal(mine[0], before)
