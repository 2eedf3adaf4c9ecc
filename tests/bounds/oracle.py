"""A dense float64 NumPy reference of the expected bound and of IBP, written from equations 1, 3 and 6.

A network is a list of (A, b); a layer's matrix is read off its torch layer by applying it to the unit vectors, so the
reference shares no code with the package.
"""

import numpy as np
import torch
from torch import nn


def dense_layers(network: nn.Sequential, shape: tuple[int, ...]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return (A, b) of every affine layer of a sequential network on inputs of `shape`."""
    layers = []
    for layer in network:
        if isinstance(layer, nn.Linear | nn.Conv2d):
            size = int(np.prod(shape))
            with torch.no_grad():
                b = layer(torch.zeros(1, *shape).double())
                A = (layer(torch.eye(size).double().view(size, *shape)) - b).flatten(1).T
            layers.append((A.numpy(), b.flatten().numpy()))
            shape = tuple(b.shape[1:])
        elif isinstance(layer, nn.Flatten):
            shape = (int(np.prod(shape)),)
    return layers


def ibp(layers, lower, upper):
    """Equation 1, layer after layer; returns the upper ends before each ReLU and the last interval."""
    uppers = []
    for i, (A, b) in enumerate(layers):
        m, r = (upper + lower) / 2, (upper - lower) / 2
        lower, upper = A @ m + b - abs(A) @ r, A @ m + b + abs(A) @ r
        if i < len(layers) - 1:
            uppers.append(upper)
            lower, upper = np.maximum(lower, 0), np.maximum(upper, 0)
    return uppers, (lower, upper)


def expected(layers, lower, upper, masks, spec=None):
    """Equations 3 and 6 with biases: G_i = A_{i+1} M_i G_{i-1}, g_i = A_{i+1} M_i g_{i-1} + b_{i+1}."""
    m, r = (upper + lower) / 2, (upper - lower) / 2
    given, _ = ibp(layers, lower, upper)
    G, g = layers[0]
    for i, (A, b) in enumerate(layers[1:]):
        u = given[i] if masks == "ibp" else G @ m + g + abs(G) @ r
        M = np.diag((u >= 0).astype(float))
        G, g = A @ M @ G, A @ M @ g + b
    if spec is not None:
        G, g = spec @ G, spec @ g
    return G @ m + g - abs(G) @ r, G @ m + g + abs(G) @ r
