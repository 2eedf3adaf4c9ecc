"""The expected bound as one more method of auto_LiRPA's own compute_bounds."""

import torch
from torch import nn

import etb_plugin  # isort: skip  # noqa: F401 - first: auto_LiRPA 0.3 does not import beside today's numpy without it
from auto_LiRPA import BoundedModule, BoundedTensor, PerturbationLpNorm

torch.manual_seed(0)
network = nn.Sequential(nn.Flatten(), nn.Linear(64, 50), nn.ReLU(), nn.Linear(50, 10)).eval()
images = torch.rand(3, 1, 8, 8)

bounded = BoundedModule(network, images)
x = BoundedTensor(images, PerturbationLpNorm(eps=0.02))
for method in ("IBP", "CROWN", "expected"):
    lower, upper = bounded.compute_bounds(x=(x,), method=method)
    print(f"{method:9} mean width {(upper - lower).mean():.4f}")
