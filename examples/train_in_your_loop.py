"""A certified objective in a plain training loop: any network, any batches, any optimizer."""

import torch
from torch import nn

from etb_plugin import Box, bound, margin_spec, objective
from etb_plugin.data import load, pixels

torch.manual_seed(0)
digits = load("digits")
images, labels = pixels(digits.train.images), digits.train.labels
network = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

epochs, batches = 20, len(images) // 100 + 1
loss = objective("mtl-expected", network, (1, 8, 8), 10, eps=0.05, epochs=epochs, batches=batches)
optimizer = torch.optim.Adam(network.parameters(), 2e-3)
for _ in range(epochs):
    for chosen in torch.randperm(len(images)).split(100):
        optimizer.zero_grad()
        loss(images[chosen], labels[chosen]).backward()  # in place of F.cross_entropy
        optimizer.step()

network.eval()
test, wanted = pixels(digits.test.images), digits.test.labels
margins = bound("crown", network, Box.around(test, 0.05), margin_spec(wanted, 10)).lower
print(f"mtl-expected: accuracy {(network(test).argmax(1) == wanted).double().mean():.3f}")
print(f"certified at 0.05 by crown {(margins > 0).all(1).double().mean():.3f}")
