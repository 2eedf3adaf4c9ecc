"""The toy data of Wong and Kolter 2018 and of Gowal et al. 2019: some points of the unit square, in two classes."""

import torch

from etb_plugin.data import Dataset, Source, Split

REPEATS = 20
"""Steps of an epoch where a batch has as many images as there are points."""


def toy_points(number: int, positive: int, apart: float, seed: int) -> Dataset:
    """Return `number` points drawn uniformly, each at least `apart` from the others in l_inf, training and test alike.

    The first `positive` are of class 1. Images have two channels and one pixel. An epoch holds each point `REPEATS`
    times: it ends with files that cost more than a step.
    """
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(1, 2, generator=generator)
    while len(points) < number:
        point = torch.rand(1, 2, generator=generator)
        if float((points - point).abs().amax(1).min()) >= apart:
            points = torch.cat([points, point])
    images, labels = points[:, :, None, None], (torch.arange(number) < positive).long()
    train = Split(images.repeat(REPEATS, 1, 1, 1), labels.repeat(REPEATS))
    return Dataset("toy", train, Split(images, labels), classes=2, source=Source(apart))
