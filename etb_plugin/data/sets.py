"""Data sets: whole ones, on the device, as uint8. No worker processes.

A data set is loaded once (`load`), moved to the device once, and cut into batches there (`Batches`): shuffling,
cropping and flipping are tensor operations. Pixels are in [0, 1]; normalisation belongs to the network.

Sources, in this order: `DATA_DIR/NAME.npz` with x_train, y_train, x_test, y_test (uint8, Keras layout); the MNIST
family's IDX files in `DATA_DIR/NAME` or torchvision's layout; torchvision's own loaders.
What has a reader of its own (`digits`, `har`, `imagenet64`) has its own file here.
"""

import gzip
import hashlib
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from etb_plugin.data.pictures import read_class_folders
from etb_plugin.errors import ConfigError, DataError, unknown_name
from etb_plugin.registry import Registry, own_code

Arrays = dict[str, np.ndarray]
"""x_train and x_test, uint8 [n, height, width] or [n, height, width, channels]; y_train and y_test [n]."""
Statistics = tuple[tuple[float, ...], tuple[float, ...]]
_MOST_CLASSES = 100_000
_EXPANDS, _SMALL = 200, 2**26
"""How many times its size an archive may unpack to, and what it may at any rate, in bytes."""
ARRAYS = ("x_train", "y_train", "x_test", "y_test")
"""Its keys, in order."""


@dataclass(frozen=True)
class Source:
    """What is known of a named data set: its defaults, and how it is read.

    Training crops: of the image's size after padding it by `crop_padding`, or of the size `crop`, which testing takes
    from the middle. Without `classes` the labels say how many there are. `read` (folder, training images needed at
    least, or None for all) -> arrays.
    """

    default_eps: float
    normalization: Statistics | None = None
    crop_padding: int = 0
    flip: bool = False
    classes: int | None = 10
    default_model: str = "small"
    default_epochs: int = 20
    idx_folders: tuple[str, ...] = ()
    torchvision: str | None = None
    crop: int | None = None
    read: Callable[[Path, int | None], Arrays] | None = None


_SOURCES: Registry[Source] = Registry("dataset")
_OWN = Source(0.1, classes=None)


def register_source(name: str, source: Source) -> None:
    """Make a data set known by its name. Raises ConfigError where the name is taken."""
    _SOURCES.add(name, source)


# Augmentation and normalisation as Gowal et al. 2019, appendix A: crops and flips on CIFAR, crops on SVHN.
_CIFAR10 = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
_CIFAR100 = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
_SVHN = (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)
register_source("mnist", Source(0.1, idx_folders=("mnist", "MNIST/raw"), torchvision="MNIST"))
register_source(
    "fashion-mnist",
    Source(0.1, idx_folders=("fashion-mnist", "FashionMNIST/raw"), torchvision="FashionMNIST"),
)
register_source("cifar10", Source(2 / 255, _CIFAR10, 4, True, torchvision="CIFAR10"))
register_source("cifar100", Source(2 / 255, _CIFAR100, 4, True, 100, torchvision="CIFAR100"))
register_source("svhn", Source(0.01, _SVHN, 4, torchvision="SVHN"))


def sources() -> Mapping[str, Source]:
    """Return every named data set."""
    return _SOURCES


@dataclass(frozen=True)
class Split:
    """Images [n, channels, height, width], uint8 or float32 in [0, 1], and labels int64 [n], on one device."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images in [0, 1] and labels, in order."""
        for images, labels in zip(self.images.split(size), self.labels.split(size), strict=True):
            yield pixels(images), labels


@dataclass(frozen=True)
class Dataset:
    """A data set on a device, and what the network and the training need to know of it."""

    name: str
    train: Split
    test: Split
    classes: int
    source: Source = field(default=_OWN)
    validation: Split | None = None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """[channels, height, width]"""
        return tuple(self.test.images.shape[1:])

    def first_training_images(self, count: int) -> Tensor:
        """Return the first training images as the network would see them in testing, [count, *input_shape]."""
        return pixels(middle(self.train.images[:count], self.source.crop))

    def digest(self) -> str:
        """Return a short hash of all images and labels: equal names may hold different data."""
        content = hashlib.sha256()
        for split in (self.train, self.test, *([self.validation] if self.validation is not None else [])):
            content.update(split.images.cpu().numpy().tobytes())
            content.update(split.labels.cpu().numpy().tobytes())
        return content.hexdigest()[:8]


@dataclass(frozen=True)
class Batches:
    """Shuffled, augmented batches of a split, drawn on its device. Iterating once is one epoch."""

    split: Split
    size: int
    generator: torch.Generator
    crop_padding: int = 0
    flip: bool = False
    crop: int | None = None

    @classmethod
    def of(cls, data: Dataset, size: int, generator: torch.Generator) -> "Batches":
        """Return the training batches of a data set, augmented as it asks for."""
        source = data.source
        return cls(data.train, size, generator, source.crop_padding, source.flip, source.crop)

    def __len__(self) -> int:
        return -(-len(self.split) // self.size)

    def order(self) -> Tensor:
        """Draw the order of one epoch, [images]."""
        return torch.randperm(len(self.split), generator=self.generator, device=self.split.labels.device)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.cut(self.order())

    def cut(self, order: Tensor, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of an epoch in `order`, from batch `start` on."""
        for chosen in order.split(self.size)[start:]:
            yield pixels(self._augmented(self.split.images[chosen])), self.split.labels[chosen]

    def _augmented(self, images: Tensor) -> Tensor:
        if self.crop_padding or self.crop:
            images = _cropped(images, self.crop_padding, self.crop or images.shape[2], self.generator)
        if self.flip:
            flipped = torch.rand(len(images), generator=self.generator, device=images.device) < 0.5
            images = torch.where(flipped.view(-1, 1, 1, 1), images.flip(3), images)
        return images


def pixels(images: Tensor) -> Tensor:
    """Return uint8 images as float32 in [0, 1], and float32 ones as they are."""
    return images.float() / 255 if images.dtype == torch.uint8 else images


def beyond(images: Tensor, labels: Tensor, classes: int) -> str | None:
    """Return what is wrong with the values of images, which lie in [0, 1], or of labels; None for nothing. It waits for
    the device."""
    if not bool(((images >= 0) & (images <= 1)).all()):
        return "images have to lie in [0, 1]: put the normalisation into the network, as its first layer"
    if not bool(((labels >= 0) & (labels < classes)).all()):
        least, most = int(labels.min()), int(labels.max())
        return f"labels run from 0 to {classes - 1}; got {least}" + (f" to {most}" if most != least else "")
    return None


def middle(images: Tensor, size: int | None) -> Tensor:
    """Return the crops of `size` in the middle; the images themselves for None."""
    if size is None:
        return images
    top = (images.shape[2] - size) // 2
    return images[:, :, top : top + size, top : top + size]


def _cropped(images: Tensor, padding: int, size: int, generator: torch.Generator) -> Tensor:
    """Pad with zeros and crop each image to `size` at its own random place."""
    count, _, height, _ = images.shape
    padded = torch.nn.functional.pad(images, (padding,) * 4)
    places = height + 2 * padding - size + 1
    start = torch.randint(0, places, (2, count, 1), generator=generator, device=images.device)
    rows = start[0] + torch.arange(size, device=images.device)
    columns = start[1] + torch.arange(size, device=images.device)
    example = torch.arange(count, device=images.device)
    # Advanced indices around a slice put the channels last.
    return padded[example[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def describe(name: str) -> Source:
    """Return what is known of the data set `name` (the defaults for a path). Raises ConfigError for neither."""
    if name in _SOURCES:
        return _SOURCES[name]
    if name.endswith((".npz", "/")):
        return _OWN
    if own_code(name) is not None:
        raise ConfigError(
            f"data set {name} is code of your own, which runs where the command names it: --dataset {name}"
        )
    raise unknown_name("dataset", name, _SOURCES)


def load(
    name: str,
    *,
    data_dir: str | Path | None = None,
    train_limit: int | None = None,
    test_limit: int | None = None,
    validation: int | None = None,
    device: torch.device | str = "cpu",
) -> Dataset:
    """Return the data set `name`, or that in `path/to/file.npz` or below the folder `path/to/folder/`, on `device`.

    `data_dir` defaults to the environment variable ETB_DATA_DIR, then to `data`. With `validation` the last so many
    training images are set aside; the limits keep the first examples of the rest. Raises ConfigError for an unknown
    name and DataError where files are missing or unreadable.
    """
    source = describe(name)
    folder = Path(data_dir or os.environ.get("ETB_DATA_DIR") or "data")
    if name.endswith(".npz"):
        if not Path(name).is_file():
            raise DataError(f"there is no file {name}")
        arrays = _read_npz(Path(name))
    elif name.endswith("/"):
        arrays = checked(read_class_folders(Path(name)), Path(name))
    else:
        needed = train_limit if validation is None else None
        arrays = _find(name, source, folder, needed)
    classes = _classes(name, source, arrays)
    aside = None
    if validation is not None:
        if not 1 <= validation < len(arrays["y_train"]):
            raise ConfigError(f"validation is {validation}; {name} has {len(arrays['y_train'])} training images")
        aside = _split(arrays["x_train"][-validation:], arrays["y_train"][-validation:], device, source.crop)
        for key in ("x_train", "y_train"):
            arrays[key] = arrays[key][:-validation]
    for part, limit in (("train", train_limit), ("test", test_limit)):
        if limit is not None and limit < 1:
            raise ConfigError(f"the {part} limit is {limit}; it must be at least 1")
        for key in (f"x_{part}", f"y_{part}"):
            arrays[key] = arrays[key][:limit]
    shapes = [list(arrays[f"x_{part}"].shape[1:]) for part in ("train", "test")]
    if shapes[0] != shapes[1]:
        raise DataError(f"{name}: training images {shapes[0]}, test images {shapes[1]}")
    train = _split(arrays["x_train"], arrays["y_train"], device, None)
    test = _split(arrays["x_test"], arrays["y_test"], device, source.crop)
    return Dataset(Path(name).stem, train, test, classes=classes, source=source, validation=aside)


def _split(images: np.ndarray, labels: np.ndarray, device: torch.device | str, crop: int | None) -> Split:
    tensor = middle(_channels_first(images), crop).contiguous()
    return Split(tensor.to(device), torch.from_numpy(labels.astype(np.int64)).to(device))


def _classes(name: str, source: Source, arrays: Arrays) -> int:
    """Return the number of classes, from the whole data set: a limit must not change it."""
    seen = int(max(arrays["y_train"].max(), arrays["y_test"].max())) + 1
    if source.classes is None:
        known = int(arrays["y_train"].max())
        if seen < 2:
            raise DataError(f"{name} has one class only; there is nothing to tell apart")
        if seen > known + 1:
            raise DataError(f"{name}: y_test has the label {seen - 1}, beyond all of y_train (up to {known})")
        return seen
    if seen > source.classes:
        raise DataError(f"{name} has {source.classes} classes; its files hold the label {seen - 1}")
    return source.classes


def _channels_first(images: np.ndarray) -> Tensor:
    tensor = torch.from_numpy(images)
    tensor = tensor.unsqueeze(1) if tensor.ndim == 3 else tensor.permute(0, 3, 1, 2)
    return tensor.contiguous()


def _find(name: str, source: Source, folder: Path, needed: int | None) -> Arrays:
    if source.read is not None:
        return source.read(folder, needed)
    if (folder / f"{name}.npz").is_file():
        return _read_npz(folder / f"{name}.npz")
    for place in source.idx_folders:
        if _idx_file(folder / place, "train-images-idx3-ubyte") is not None:
            return _read_idx_folder(folder / place)
    if source.torchvision is not None and not source.idx_folders:
        arrays = _read_torchvision(name, source.torchvision, folder)
        if arrays is not None:
            return arrays
    wanted = folder / f"{name}.npz"
    raise DataError(
        f"there is no {name} in {folder}: put {wanted} there "
        f"(x_train, y_train, x_test, y_test) or torchvision's files\n"
        f"  python -c \"import torchvision; torchvision.datasets.{source.torchvision}('{folder}', download=True)\" "
        f"fetches them; --data-dir or ETB_DATA_DIR names another folder"
    )


def _read_npz(path: Path) -> Arrays:
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            missing = [key for key in ARRAYS if key not in file]
            if missing:
                raise DataError(f"{path} lacks {', '.join(missing)}; it needs {', '.join(ARRAYS)}")
            size = sum(entry.file_size for entry in file.zip.infolist())
            if size > max(_EXPANDS * path.stat().st_size, _SMALL):
                raise DataError(f"{path} would unpack to {size / 2**20:,.0f} MiB, more than {_EXPANDS} times its size")
            arrays = {key: file[key] for key in ARRAYS}
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, OSError, MemoryError) as error:
        raise DataError(f"{path} is truncated or is no .npz file: {error}") from error
    return checked(arrays, path)


def checked(arrays: Arrays, path: Path) -> Arrays:
    """Return arrays as every reader of files gives them. Raises DataError, naming `path`, for what is no data set."""
    for part in ("train", "test"):
        images, labels = arrays[f"x_{part}"], arrays[f"y_{part}"]
        if images.dtype != np.uint8 or images.ndim not in (3, 4):
            floats = "; from 0 to 1 store (255 * x).round() as uint8" if images.dtype.kind == "f" else ""
            raise DataError(
                f"{path}: x_{part} needs uint8 images [n, height, width] or [n, height, width, channels]; "
                f"got {images.dtype} {list(images.shape)}{floats}"
            )
        if images.ndim == 4 and images.shape[3] not in (1, 3):
            raise DataError(
                f"{path}: images need shape [n, height, width] or [n, height, width, 1 or 3]; got {images.shape}"
            )
        if not len(images) or not labels.size:
            raise DataError(f"{path}: there are no images in x_{part}, or no labels in y_{part}")
        labels = labels.reshape(len(labels), -1)
        if labels.shape[1:] != (1,) or len(labels) != len(images):
            raise DataError(f"{path}: y_{part} needs one label for each of the {len(images)} images")
        if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
            raise DataError(f"{path}: y_{part} needs integer labels from 0")
        if labels.max() >= _MOST_CLASSES:
            raise DataError(f"{path}: y_{part} has the label {labels.max()}; up to {_MOST_CLASSES:,} classes are taken")
        arrays[f"y_{part}"] = labels[:, 0]
    return arrays


def _idx_file(folder: Path, name: str) -> Path | None:
    return next((p for p in (folder / f"{name}.gz", folder / name) if p.is_file()), None)


def _read_idx_folder(folder: Path) -> Arrays:
    arrays = {}
    for key, name in zip(
        ARRAYS,
        (
            "train-images-idx3-ubyte",
            "train-labels-idx1-ubyte",
            "t10k-images-idx3-ubyte",
            "t10k-labels-idx1-ubyte",
        ),
        strict=True,
    ):
        path = _idx_file(folder, name)
        if path is None:
            raise DataError(f"{folder} lacks {name} (or {name}.gz)")
        arrays[key] = _read_idx(path)
    return checked(arrays, folder)


def _read_idx(path: Path) -> np.ndarray:
    """Read an IDX file of unsigned bytes: two zeros, type 8, the number of sizes, the sizes, the data."""
    opener: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            start = file.read(4)
            dimensions = start[3] if len(start) == 4 and start[:3] == b"\0\0\x08" else 0
            sizes = file.read(4 * dimensions)
            if dimensions not in (1, 3) or len(sizes) < 4 * dimensions:
                raise DataError(f"{path} is no IDX file of unsigned bytes, of images or of labels")
            shape = struct.unpack(f">{dimensions}I", sizes)
            wanted = math.prod(shape)
            content = _read_at_most(file, wanted + 1)  # one more, to see that there is no more
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path} is truncated or damaged: {error}") from error
    if len(content) != wanted:
        found = "more" if len(content) > wanted else f"{len(content):,}"
        raise DataError(f"{path} holds {found} bytes where its header says {wanted:,}")
    return np.frombuffer(content, np.uint8).reshape(shape).copy()


def _read_at_most(file: Any, count: int) -> bytes:
    """Read up to `count` bytes, by and by: a header may ask for more than there is."""
    parts, left = [], count
    while left and (part := file.read(min(left, 2**24))):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _read_torchvision(name: str, loader: str, folder: Path) -> Arrays | None:
    """Read through torchvision; None where its files are not in `folder`."""
    traces = {"CIFAR10": "cifar-10-batches-py", "CIFAR100": "cifar-100-python", "SVHN": "train_32x32.mat"}
    if not (folder / traces[loader]).exists():
        return None
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError) as error:
        raise DataError(
            f"torchvision cannot be imported ({error}), most often beside a CPU-only build of torch\n"
            f"  put {folder / name}.npz there instead (x_train, y_train, x_test, y_test), or install matching builds"
        ) from error
    arrays: Arrays = {}
    try:
        for part in ("train", "test"):
            choice = {"split": part} if loader == "SVHN" else {"train": part == "train"}
            data = getattr(datasets, loader)(folder, **choice)
            images = data.data.transpose(0, 2, 3, 1) if loader == "SVHN" else data.data
            arrays[f"x_{part}"] = images
            arrays[f"y_{part}"] = np.asarray(data.labels if loader == "SVHN" else data.targets)
    except (RuntimeError, OSError, EOFError) as error:
        raise DataError(f"{folder}: torchvision cannot read {name}: {error}") from error
    return checked(arrays, folder)
