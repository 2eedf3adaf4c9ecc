"""Human activity recognition: 561 features of a telephone's motion, 6 activities (UCI HAR Dataset, as downloaded)."""

from pathlib import Path

import numpy as np

from etb_plugin.data.sets import Arrays, Source, register_source
from etb_plugin.errors import DataError

_FOLDER = "UCI HAR Dataset"
_FEATURES = 561


def read(folder: Path, limit: int | None) -> Arrays:
    """Return the features mapped from [-1, 1] to [0, 1], as images of one pixel and 561 channels; labels from 0.

    A radius is therefore half of the one in the features' own units. Raises DataError where files are missing or hold
    something else.
    """
    root = folder / _FOLDER if (folder / _FOLDER).is_dir() else folder / "har"
    arrays: Arrays = {}
    for part in ("train", "test"):
        features, labels = (_table(root / part / f"{letter}_{part}.txt") for letter in "Xy")
        if features.shape[1:] != (_FEATURES,) or labels.shape != (len(features), 1):
            raise DataError(
                f"{root / part}: {_FEATURES} features and one label a line are needed; got {list(features.shape)} and "
                f"{list(labels.shape)}"
            )
        if not (np.abs(features) <= 1).all():
            raise DataError(f"{root / part}/X_{part}.txt: features run from -1 to 1; got {np.abs(features).max():g}")
        if not np.isin(labels, range(1, 7)).all():
            raise DataError(
                f"{root / part}/y_{part}.txt: labels run from 1 to 6; got {labels.min():g} to {labels.max():g}"
            )
        arrays[f"x_{part}"] = ((features + 1) / 2).astype(np.float32)[:, None, None, :]
        arrays[f"y_{part}"] = labels[:, 0].astype(np.int64) - 1
    return arrays


def _table(path: Path) -> np.ndarray:
    if not path.is_file():
        raise DataError(f"there is no {path}: unpack the UCI archive 'UCI HAR Dataset.zip' into the data folder")
    try:
        return np.loadtxt(path, ndmin=2)
    except (ValueError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is no table of numbers: {error}") from error


register_source("har", Source(0.025, classes=6, default_model="mlp-500x1", read=read))
