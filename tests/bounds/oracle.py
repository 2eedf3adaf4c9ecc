"""A dense float64 NumPy reference of the expected bound and of IBP, written from equations 1, 3 and 6.

A network is a list of layers, each ({source: A}, b): its value z_i is the sum of A h_source plus b, where h_0 is the
input and h_j = max(z_j, 0). A plain network has one source a layer, a residual one has more. Matrices are read off
torch layers by applying them to the unit vectors, so the reference shares no code with the package.
"""

import math

import numpy as np
import torch
from torch import nn


def dense(layer: nn.Module, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    """Return A and b of an affine layer on inputs of `shape`, and its output's shape."""
    size = int(np.prod(shape))
    with torch.no_grad():
        b = layer(torch.zeros(1, *shape).double())
        A = (layer(torch.eye(size).double().view(size, *shape)) - b).flatten(1).T
    return A.numpy(), b.flatten().numpy(), tuple(b.shape[1:])


def dense_layers(network: nn.Sequential, shape: tuple[int, ...]) -> list[tuple[dict[int, np.ndarray], np.ndarray]]:
    """Return the layers of a sequential network on inputs of `shape`."""
    layers = []
    for layer in network:
        if isinstance(layer, nn.Linear | nn.Conv2d):
            A, b, shape = dense(layer, shape)
            layers.append(({len(layers): A}, b))
        elif isinstance(layer, nn.Flatten):
            shape = (int(np.prod(shape)),)
    return layers


def total(layer, values, bias=True):
    """Return the sum of A v over the sources, with or without b."""
    matrices, b = layer
    return sum(A @ values[j] for j, A in matrices.items()) + (b if bias else 0)


def ibp(layers, lower, upper):
    """Equation 1, layer after layer; returns the upper ends before each ReLU and the last interval."""
    uppers, m, r = [], [(upper + lower) / 2], [(upper - lower) / 2]
    for layer in layers:
        matrices, _ = layer
        center, radius = total(layer, m), sum(abs(A) @ r[j] for j, A in matrices.items())
        uppers.append(center + radius)
        low, high = np.maximum(center - radius, 0), np.maximum(center + radius, 0)
        m.append((high + low) / 2)
        r.append((high - low) / 2)
    return uppers[:-1], (center - radius, center + radius)


def normal_share(z, deviation):
    pairs = zip(z, deviation, strict=True)
    return np.array([0.5 * math.erfc(-x / s / math.sqrt(2)) if s > 0 else float(x >= 0) for x, s in pairs])


def slopes_by_moments(layers, lower, upper):
    """P(z >= 0) for z normal: means and variances through the layers, all units independent."""
    mean, variance, slopes = [(upper + lower) / 2], [(upper - lower) ** 2 / 12], []
    for layer in layers[:-1]:
        mu = total(layer, mean)
        var = sum((A * A) @ variance[j] for j, A in layer[0].items())
        s = np.sqrt(var)
        share, density = normal_share(mu, s), np.exp(-0.5 * (mu / s) ** 2) / math.sqrt(2 * math.pi)
        first, second = mu * share + s * density, (mu**2 + var) * share + mu * s * density
        slopes.append(share)
        mean.append(first)
        variance.append(second - first**2)
    return slopes


def expected(layers, lower, upper, masks, spec=None, columns=None):
    """Equations 3 and 6 with biases: G_i = sum of A M G_source, g_i likewise plus b_i.

    `masks` names what M is; `columns` [input, k] are the projections of "sketch".
    """
    m, r = (upper + lower) / 2, (upper - lower) / 2
    uppers, _ = ibp(layers, lower, upper)
    moments = slopes_by_moments(layers, lower, upper) if masks == "slope" else None
    G, g, own, pushed = [np.eye(len(m))], [np.zeros(len(m))], [m], [columns]
    for i, layer in enumerate(layers):
        rows, constant, z = total(layer, G, bias=False), total(layer, g), total(layer, own)
        if i == len(layers) - 1:
            break
        if masks == "ibp":
            M = uppers[i] >= 0
        elif masks == "blockwise":
            M = rows @ m + constant + abs(rows) @ r >= 0
        elif masks == "center":
            M = z >= 0
        elif masks == "slope":
            M = moments[i]
        else:
            image = total(layer, pushed, bias=False)
            # torch's median is the lower one of the two in the middle.
            M = rows @ m + constant + np.sort(abs(image), axis=1)[:, (image.shape[1] - 1) // 2] >= 0
            pushed.append(M.astype(float)[:, None] * image)
        G.append(M.astype(float)[:, None] * rows)
        g.append(M * constant)
        own.append(np.maximum(z, 0))
    if spec is not None:
        rows, constant = spec @ rows, spec @ constant
    return rows @ m + constant - abs(rows) @ r, rows @ m + constant + abs(rows) @ r
