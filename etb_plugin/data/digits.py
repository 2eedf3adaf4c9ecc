"""The digits inside scikit-learn, 8 x 8 pixels: no download."""

from pathlib import Path

import numpy as np

from etb_plugin.data.sets import Arrays, Source, register_source


def read(folder: Path, limit: int | None) -> Arrays:
    """Return all digits, 360 of them for testing, the same ones each time. Nothing is read from `folder`."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    images = np.rint(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    x_train, x_test, y_train, y_test = train_test_split(images, labels, test_size=360, random_state=0, stratify=labels)
    return {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}


register_source("digits", Source(0.1, default_model="tiny", read=read))
