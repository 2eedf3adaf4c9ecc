"""The true range of a small ReLU network by enumeration of its activation patterns: shares no code with the package."""

import itertools

import numpy as np
from scipy.optimize import linprog


def true_range(layers, lower, upper, spec):
    """Return the least and greatest value of each row of `spec` over the box.

    `layers` are (A, b) with a ReLU between any two. Each pattern of on and off makes the network affine on a polytope
    (those patterns that a box does not meet are infeasible), where a linear program finds the extremes.
    """
    units = sum(len(b) for _, b in layers[:-1])
    lows, highs = np.full(len(spec), np.inf), np.full(len(spec), -np.inf)
    for pattern in itertools.product((0.0, 1.0), repeat=units):
        signs = iter(pattern)
        G, g, rows, most = np.eye(len(lower)), np.zeros(len(lower)), [], []
        for A, b in layers[:-1]:
            G, g = A @ G, A @ g + b
            on = np.array([next(signs) for _ in b])
            rows.append((1 - 2 * on)[:, None] * G)  # on: -z <= 0, off: z <= 0
            most.append(-(1 - 2 * on) * g)
            G, g = on[:, None] * G, on * g
        A, b = layers[-1]
        G, g = spec @ A @ G, spec @ (A @ g + b)
        limits = {
            "A_ub": np.concatenate(rows),
            "b_ub": np.concatenate(most),
            "bounds": list(zip(lower, upper, strict=True)),
        }
        if linprog(np.zeros(len(lower)), **limits).status != 0:
            continue
        for r in range(len(spec)):
            lows[r] = min(lows[r], linprog(G[r], **limits).fun + g[r])
            highs[r] = max(highs[r], -linprog(-G[r], **limits).fun + g[r])
    return lows, highs
