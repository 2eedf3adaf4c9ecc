"""Pictures in folders: PNG, JPEG or BMP files, and data sets that have a folder for each class."""

import itertools
from pathlib import Path
from typing import Literal

import numpy as np

from etb_plugin.errors import DataError

_SUFFIXES = (".jpeg", ".jpg", ".png", ".bmp")
_FORMATS = ("PNG", "JPEG", "BMP")
_LARGEST = 1024
"""Pixels on a side; a file may say that it has any number of them."""


def picture_files(folder: Path) -> list[Path]:
    """Return the pictures that lie in a folder, by name. Raises DataError where there are none."""
    files = sorted(file for file in folder.glob("*") if file.suffix.lower() in _SUFFIXES)
    if not files:
        raise DataError(f"there are no images in {folder}")
    return files


def read_picture(path: Path, mode: Literal["RGB", "L"] | None = None) -> np.ndarray:
    """Return a picture, uint8 [height, width, 3] in colour or [height, width] in grey, as it is or as `mode` says.

    Raises DataError for a file that is none, or is larger than 1,024 pixels on a side.
    """
    from PIL import Image  # matplotlib brings it

    try:
        with Image.open(path, formats=_FORMATS) as image:
            if max(image.size) > _LARGEST:
                raise DataError(f"{path} has {image.width:,} x {image.height:,} pixels; up to {_LARGEST:,} are taken")
            return np.asarray(image.convert(mode or ("L" if image.mode in ("1", "L") else "RGB")))
    except (OSError, ValueError, SyntaxError, MemoryError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} is no image that can be read: {error}") from error


def in_turn(classes: list[list[Path]]) -> list[tuple[Path, int]]:
    """Return the files of all classes with their labels, class by class in turn: the first ones are of all classes."""
    turns = itertools.zip_longest(*classes)
    return [(file, label) for turn in turns for label, file in enumerate(turn) if file is not None]


def read_class_folders(root: Path) -> dict[str, np.ndarray]:
    """Return the images and labels below `root`: train/CLASS/*.png, and test/CLASS/*.png or val/CLASS/*.png.

    Labels count the classes of `train` by name. Images are grey where all are. Raises DataError where a folder lacks or
    is of an unknown class, or where images differ in size.
    """
    tests = [root / name for name in ("test", "val") if (root / name).is_dir()]
    if not (root / "train").is_dir() or not tests:
        raise DataError(f"{root} needs the folders train and test (or val), with a folder of images for each class")
    names = _classes(root / "train")
    unknown = sorted(set(_classes(tests[0])) - set(names))
    if unknown:
        raise DataError(f"{tests[0]} has a class {unknown[0]!r}, and {root / 'train'} none of that name")
    files = {}
    for part, folder in (("train", root / "train"), ("test", tests[0])):
        there = [picture_files(folder / name) if (folder / name).is_dir() else [] for name in names]
        files[part] = in_turn(there)
    found = {part: [read_picture(file) for file, _ in some] for part, some in files.items()}
    first = found["train"][0].shape[:2]
    coloured = any(image.ndim == 3 for images in found.values() for image in images)
    arrays = {}
    for part, images in found.items():
        for image, (file, _) in zip(images, files[part], strict=True):
            if image.shape[:2] != first:
                size, others = (f"{shape[1]} x {shape[0]}" for shape in (image.shape, first))
                raise DataError(f"{file} has {size} pixels, {files['train'][0][0]} {others}: bring all to one size")
        arrays[f"x_{part}"] = np.stack([_in_colour(image) if coloured else image for image in images])
        arrays[f"y_{part}"] = np.array([label for _, label in files[part]], dtype=np.int64)
    return arrays


def _classes(folder: Path) -> list[str]:
    names = sorted(one.name for one in folder.iterdir() if one.is_dir() and not one.name.startswith("."))
    if not names:
        raise DataError(f"there are no folders of classes in {folder}")
    return names


def _in_colour(image: np.ndarray) -> np.ndarray:
    return image if image.ndim == 3 else np.repeat(image[:, :, None], 3, axis=2)
