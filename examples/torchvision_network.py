"""A network of torchvision with its ends replaced, fine-tuned by a certified objective, and verified."""

import torch
from torch import nn
from torchvision.models import resnet18

import etb_plugin
from etb_plugin.data import load, pixels

torch.manual_seed(0)
digits = load("digits")
network = resnet18(weights=None)  # weights="DEFAULT" starts from ImageNet's, where they can be downloaded
network.conv1 = nn.Conv2d(1, 64, 3, padding=1, bias=False)  # digits are 8 x 8, in grey
network.maxpool = nn.Identity()
network.fc = nn.Linear(512, 10)

etb_plugin.train(network, digits, method="ibp", eps=0.01, epochs=3)
found = etb_plugin.evaluate(network, digits, eps=0.01, certify=["ibp"], pgd_steps=10)
print(f"expected, which is no certificate: {found.expected_accuracy:.3f}; certified {found.certified_accuracy}")
image, label = pixels(digits.test.images)[0], int(digits.test.labels[0])
print(etb_plugin.verify(network, image, label, eps=0.01, stages=["pgd", "ibp", "crown-ibp"]).verdict)
