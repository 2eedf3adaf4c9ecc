"""Bound the margins of any network over boxes of images: sound bounds beside the expected one."""

import torch
from torch import nn

from etb_plugin import Box, bound, margin_spec

torch.manual_seed(0)
network = nn.Sequential(nn.Flatten(), nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10)).eval()
images, labels = torch.rand(5, 1, 8, 8), torch.arange(5)

box = Box.around(images, eps=0.02)  # every pixel may move by 0.02, and stays in [0, 1]
spec = margin_spec(labels, classes=10)  # the nine margins of each image: its own logit minus each other one
for name in ("ibp", "crown", "alpha-crown", "exact", "expected"):
    interval = bound(name, network, box, spec)
    kind = "sound" if interval.sound else "no certificate"
    print(f"{name:12} mean width {interval.width.mean():.4f}  ({kind})")
