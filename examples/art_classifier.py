"""ART's PyTorchClassifier, trained by a certified objective, attacked by ART, and certified."""

import torch
from art.attacks.evasion import ProjectedGradientDescent
from art.estimators.classification import PyTorchClassifier
from torch import nn

import etb_plugin
from etb_plugin.data import load, pixels

torch.manual_seed(0)
digits = load("digits")
images, labels = pixels(digits.train.images), digits.train.labels
network = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
classifier = PyTorchClassifier(
    network,
    loss=nn.CrossEntropyLoss(),
    optimizer=torch.optim.Adam(network.parameters(), 2e-3),
    input_shape=(1, 8, 8),
    nb_classes=10,
    clip_values=(0.0, 1.0),
)

# ART's own `fit` has the loss see logits alone; a bound needs the network, so the loop is here: four lines.
loss = etb_plugin.objective("mtl-expected", network, (1, 8, 8), 10, eps=0.05, epochs=15, batches=15)
network.train()
for _ in range(15):
    for chosen in torch.randperm(len(images)).split(100):
        classifier.optimizer.zero_grad()
        loss(images[chosen], labels[chosen]).backward()
        classifier.optimizer.step()
network.eval()

test, wanted = pixels(digits.test.images), digits.test.labels
attack = ProjectedGradientDescent(classifier, norm="inf", eps=0.05, eps_step=0.0125, max_iter=20, verbose=False)
stands = torch.from_numpy(classifier.predict(attack.generate(test.numpy(), wanted.numpy()))).argmax(1) == wanted
found = etb_plugin.evaluate(network, digits, eps=0.05, certify=["crown"])
print(f"mtl-expected: under ART's PGD {stands.double().mean():.3f}, certified {found.certified_accuracy}")
