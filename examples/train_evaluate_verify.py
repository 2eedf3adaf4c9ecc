"""Any network and any images: trained by a method, measured, and verified, in a call each."""

import torch
from torch import nn

import etb_plugin
from etb_plugin.data import load, pixels

torch.manual_seed(0)
digits = load("digits")
train, test = ((pixels(part.images), part.labels) for part in (digits.train, digits.test))
network = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

etb_plugin.train(network, train, method="mtl-expected", eps=0.05, epochs=40, learning_rate=2e-3)
found = etb_plugin.evaluate(network, test, eps=0.05, certify=["crown"])
print(f"mtl-expected: clean {found.clean_accuracy:.3f}, PGD {found.pgd_accuracy:.3f}, {found.certified_accuracy}")
print(etb_plugin.verify(network, test[0][0], int(test[1][0]), eps=0.05).verdict)
