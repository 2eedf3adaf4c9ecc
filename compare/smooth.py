"""Networks without a piecewise linear activation, for compare/results/mnist-smooth.yaml."""

from torch import nn


def _mlp(activation: type[nn.Module]) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Flatten()]
    for before in (784, 100, 100):
        layers += [nn.Linear(before, 100), activation()]
    return nn.Sequential(*layers, nn.Linear(100, 10))


def tanh() -> nn.Sequential:
    """Three hidden layers of 100."""
    return _mlp(nn.Tanh)


def sigmoid() -> nn.Sequential:
    """Three hidden layers of 100."""
    return _mlp(nn.Sigmoid)


def gelu() -> nn.Sequential:
    """Three hidden layers of 100."""
    return _mlp(nn.GELU)
