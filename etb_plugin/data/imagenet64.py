"""Downscaled ImageNet, 64 x 64: its standard batch files train_data_batch_1 to 10 and val_data (Chrabaszcz 2017).

They are pickles, or .npz archives. A pickle is read by an unpickler that knows arrays and plain values only, so that
no file can run code.
"""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from etb_plugin.data.sets import Arrays, Source, register_source
from etb_plugin.errors import DataError

_SIZE, _CROP, _CLASSES = 64, 56, 1000
_KNOWN = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is no array")
        return super().find_class(module, name)


def read(folder: Path, limit: int | None) -> Arrays:
    """Return images [n, 64, 64, 3] and labels from 0; no more files than `limit` training images need.

    Raises DataError where files are missing, damaged, or hold something else.
    """
    root = folder / "imagenet64"
    arrays: Arrays = {}
    for part, names in (("train", [f"train_data_batch_{i}" for i in range(1, 11)]), ("test", ["val_data"])):
        images: list[np.ndarray] = []
        labels: list[np.ndarray] = []
        for name in names:
            if part == "train" and limit is not None and sum(len(some) for some in labels) >= limit:
                break
            batch = _batch(root / name)
            images.append(batch[0])
            labels.append(batch[1])
        arrays[f"x_{part}"], arrays[f"y_{part}"] = np.concatenate(images), np.concatenate(labels)
    return arrays


def _batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    archive = path.with_name(path.name + ".npz")
    found = archive if archive.is_file() else path
    if not found.is_file():
        raise DataError(
            f"there is no {path} (or {archive.name}): downscaled ImageNet is for its registered users to fetch"
        )
    try:
        if found == archive:
            with np.load(archive, allow_pickle=False) as file:
                content: Any = {key: file[key] for key in ("data", "labels")}
        else:
            content = _ArraysOnly(io.BytesIO(path.read_bytes()), encoding="latin1").load()
        data, labels = np.asarray(content["data"]), np.asarray(content["labels"], dtype=np.int64)
    except (pickle.UnpicklingError, ValueError, KeyError, TypeError, EOFError, OSError, AttributeError) as error:
        raise DataError(f"{found} is no batch of downscaled ImageNet: {error}") from error
    if data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3 * _SIZE * _SIZE or len(data) != len(labels):
        raise DataError(
            f"{found}: data needs uint8 [n, {3 * _SIZE * _SIZE}] and one label each; got {list(data.shape)}"
        )
    if labels.min() < 1 or labels.max() > _CLASSES:
        raise DataError(f"{found}: labels run from 1 to {_CLASSES}; got {labels.min()} to {labels.max()}")
    return data.reshape(-1, 3, _SIZE, _SIZE).transpose(0, 2, 3, 1), labels - 1


register_source(
    "imagenet64",
    Source(
        1 / 255,
        ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        crop=_CROP,
        flip=True,
        classes=_CLASSES,
        default_model="wide-resnet-10-10",
        default_epochs=160,
        read=read,
    ),
)
