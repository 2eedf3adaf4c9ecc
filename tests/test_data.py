"""Reading data sets, refusing broken ones, and cutting batches."""

import gzip
import struct

import numpy as np
import pytest
import torch

from etb_plugin import data
from etb_plugin.errors import ConfigError, DataError


def arrays(channels: int = 0) -> data.Arrays:
    generator = np.random.default_rng(0)
    shape = (8, 8) if not channels else (8, 8, channels)
    return {
        "x_train": generator.integers(0, 256, (30, *shape), np.uint8),
        "y_train": np.arange(30) % 10,
        "x_test": generator.integers(0, 256, (20, *shape), np.uint8),
        "y_test": np.arange(20) % 10,
    }


def test_digits_are_whole_and_never_mixed():
    digits = data.load("digits")
    assert (len(digits.train), len(digits.test), digits.input_shape, digits.classes) == (
        1437,
        360,
        (1, 8, 8),
        10,
    )
    assert digits.train.images.max() == 255
    again = data.load("digits", train_limit=100)
    assert torch.equal(again.train.images, digits.train.images[:100])


@pytest.mark.parametrize("channels", [0, 1, 3])
def test_a_file_of_ones_own_is_read_with_channels_first(tmp_path, channels):
    path = tmp_path / "mine.npz"
    np.savez(path, **arrays(channels))
    loaded = data.load(str(path))
    assert loaded.input_shape == (max(channels, 1), 8, 8)
    want = arrays(channels)["x_test"].reshape(20, 8, 8, -1).transpose(0, 3, 1, 2)
    assert (loaded.test.images.numpy() == want).all()


def test_idx_files_are_read_from_both_layouts_plain_or_compressed(tmp_path):
    content = arrays()
    for folder, opener, ending in (
        (tmp_path / "a/mnist", gzip.open, ".gz"),
        (tmp_path / "b/MNIST/raw", open, ""),
    ):
        folder.mkdir(parents=True)
        for key, name in (("train", "train"), ("test", "t10k")):
            x, y = content[f"x_{key}"], content[f"y_{key}"].astype(np.uint8)
            with opener(folder / f"{name}-images-idx3-ubyte{ending}", "wb") as file:
                file.write(struct.pack(">I3I", 0x803, *x.shape) + x.tobytes())
            with opener(folder / f"{name}-labels-idx1-ubyte{ending}", "wb") as file:
                file.write(struct.pack(">II", 0x801, len(y)) + y.tobytes())
    for root in ("a", "b"):
        loaded = data.load("mnist", data_dir=tmp_path / root)
        assert (loaded.train.images[:, 0].numpy() == content["x_train"]).all()
        assert (loaded.test.labels.numpy() == content["y_test"]).all()
    path = tmp_path / "b/MNIST/raw/t10k-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte holds 1279 bytes where its header says 1280"):
        data.load("mnist", data_dir=tmp_path / "b")


def test_a_truncated_file_is_named(tmp_path):
    path = tmp_path / "cifar10.npz"
    np.savez(path, **arrays(3))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"cifar10\.npz is truncated"):
        data.load("cifar10", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_train": None}, "lacks x_train"),
        ({"x_test": np.zeros((20, 8, 8))}, "x_test needs uint8 images"),
        ({"y_train": np.zeros(29, int)}, "one label for each of the 30 images"),
        ({"y_train": np.full(30, -1)}, "integer labels from 0"),
    ],
)
def test_arrays_that_cannot_be_meant_are_refused(tmp_path, change, message):
    content = {k: v for k, v in {**arrays(), **change}.items() if v is not None}
    np.savez(tmp_path / "mine.npz", **content)
    with pytest.raises(DataError, match=message):
        data.load(str(tmp_path / "mine.npz"))


def test_missing_data_says_where_to_put_it_and_how_to_get_it(tmp_path):
    with pytest.raises(DataError) as error:
        data.load("cifar10", data_dir=tmp_path)
    lines = str(error.value).splitlines()
    assert len(lines) == 2
    assert f"put {tmp_path}/cifar10.npz there" in lines[0]
    assert "download=True" in lines[1]


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match="unknown dataset 'minst'; did you mean"):
        data.load("minst")


def test_an_epoch_shows_every_image_once_and_a_seed_repeats_it():
    split = data.Split(torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1), torch.arange(10))
    epochs = [list(data.Batches(split, 4, torch.Generator().manual_seed(5))) for _ in range(2)]
    assert [len(y) for _, y in epochs[0]] == [4, 4, 2]
    assert sorted(torch.cat([y for _, y in epochs[0]]).tolist()) == list(range(10))
    for (x, y), (_, again) in zip(*epochs, strict=True):
        assert torch.equal(y, again)
        torch.testing.assert_close(x.flatten() * 255, y.float())


def test_crops_and_flips_are_shifts_and_mirrors_of_the_image():
    image = torch.arange(1, 10, dtype=torch.uint8).view(1, 1, 3, 3)
    split = data.Split(image.repeat(64, 1, 1, 1), torch.zeros(64, dtype=torch.long))
    padded = torch.nn.functional.pad(image, (1,) * 4)[0, 0]
    allowed = {
        tuple((crop.flip(1) if flip else crop).flatten().tolist())
        for i in range(3)
        for j in range(3)
        for crop in [padded[i : i + 3, j : j + 3]]
        for flip in (False, True)
    }
    batches = data.Batches(split, 64, torch.Generator().manual_seed(0), crop_padding=1, flip=True)
    ((images, _),) = list(batches)
    seen = {tuple((x * 255).round().int().flatten().tolist()) for x in images}
    assert seen <= allowed
    assert len(seen) > 12


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused(limit):
    with pytest.raises(ConfigError, match=f"the train limit is {limit}; it must be at least 1"):
        data.load("digits", train_limit=limit)


def test_a_limit_does_not_change_the_number_of_classes(tmp_path):
    np.savez(tmp_path / "mine.npz", **arrays())
    assert data.load(str(tmp_path / "mine.npz"), train_limit=3, test_limit=2).classes == 10


def test_labels_that_the_data_set_does_not_have_are_refused(tmp_path):
    np.savez(tmp_path / "cifar10.npz", **{**arrays(3), "y_test": np.full(20, 10)})
    with pytest.raises(DataError, match="cifar10 has 10 classes; its files hold the label 10"):
        data.load("cifar10", data_dir=tmp_path)
