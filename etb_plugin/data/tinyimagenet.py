"""TinyImageNet, 64 x 64, 200 classes: the folder that people have, `tiny-imagenet-200` as it is unpacked."""

from pathlib import Path

import numpy as np

from etb_plugin.data.pictures import in_turn, picture_files, read_picture
from etb_plugin.data.sets import Arrays, Source, register_source
from etb_plugin.errors import DataError

_SIZE, _CLASSES = 64, 200
_FOLDERS = ("tiny-imagenet-200", "tinyimagenet")


def read(folder: Path, limit: int | None) -> Arrays:
    """Return images [n, 64, 64, 3] and labels from 0 in the order of wnids.txt; as many training images as `limit`.

    Training images come class by class in turn, so that the first ones hold all classes. The test images are those of
    `val`, by its annotations or in a folder for each class; the folder `test` has no labels. Raises DataError where
    files are missing or hold something else.
    """
    root = next((folder / name for name in _FOLDERS if (folder / name).is_dir()), None)
    if root is None:
        raise DataError(f"there is no {folder / _FOLDERS[0]}: unpack tiny-imagenet-200.zip there, or change --data-dir")
    names = _lines(root / "wnids.txt")
    if len(names) != _CLASSES:
        raise DataError(f"{root / 'wnids.txt'} names {len(names)} classes; TinyImageNet has {_CLASSES}")
    number = {name: label for label, name in enumerate(names)}
    train = in_turn([_files(root / "train" / name) for name in names])[:limit]
    test = _annotated(root / "val", number)
    arrays: Arrays = {}
    for part, files in (("train", train), ("test", test)):
        arrays[f"x_{part}"] = np.stack([_image(file) for file, _ in files])
        arrays[f"y_{part}"] = np.array([label for _, label in files], dtype=np.int64)
    return arrays


def _annotated(val: Path, number: dict[str, int]) -> list[tuple[Path, int]]:
    """Return the validation images and their labels."""
    if not (val / "val_annotations.txt").is_file():
        return [(file, label) for name, label in number.items() for file in _files(val / name)]
    found = []
    for line in _lines(val / "val_annotations.txt"):
        file, name, *_ = [*line.split("\t"), ""]
        if name not in number or Path(file).name != file:
            raise DataError(f"{val / 'val_annotations.txt'}: {line!r} is no file name and class of wnids.txt")
        found.append((val / "images" / file, number[name]))
    return found


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise DataError(f"there is no {path}: unpack tiny-imagenet-200.zip whole")
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _files(folder: Path) -> list[Path]:
    """Return the images of a class, in `images` or in the folder itself."""
    return picture_files(folder / "images" if (folder / "images").is_dir() else folder)


def _image(path: Path) -> np.ndarray:
    pixels = read_picture(path, "RGB")  # a few are grey
    if pixels.shape != (_SIZE, _SIZE, 3):
        raise DataError(f"{path} has {pixels.shape[1]} x {pixels.shape[0]} pixels; TinyImageNet has {_SIZE} x {_SIZE}")
    return pixels


register_source(
    "tinyimagenet",
    Source(
        1 / 255,
        ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)),
        crop_padding=4,
        flip=True,
        classes=_CLASSES,
        default_model="cnn7-bn",
        default_epochs=160,
        read=read,
    ),
)
