"""The digits inside scikit-learn, 8 x 8 pixels: no download."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from etb_plugin.data.sets import Arrays, Source, register_source
from etb_plugin.errors import DataError

_TEST = 360
_ORDER = Path(__file__).with_name("digits_order.npy")
"""scikit-learn's stratified split of seed 0: the training images in its order, then those for testing."""


def read(folder: Path, limit: int | None) -> Arrays:
    """Return all digits, 360 of them for testing, the same ones each time. Nothing is read from `folder`.

    The file is read where scikit-learn lies: importing that takes as long as importing torch.
    """
    package = find_spec("sklearn")
    file = Path(*(package.submodule_search_locations or ()) if package else (), "datasets/data/digits.csv.gz")
    try:
        content = np.loadtxt(file, delimiter=",")[np.load(_ORDER)]
    except (OSError, ValueError, IndexError) as error:
        raise DataError(f"scikit-learn's digits cannot be read from {file}: {error}") from error
    images = np.rint(content[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    labels = content[:, -1].astype(np.int64)
    return {
        "x_train": images[:-_TEST],
        "y_train": labels[:-_TEST],
        "x_test": images[-_TEST:],
        "y_test": labels[-_TEST:],
    }


register_source("digits", Source(0.1, default_model="tiny", read=read))
