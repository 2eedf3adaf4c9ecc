"""Reading data sets, refusing broken ones, and cutting batches."""

import gzip
import pickle
import struct

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from etb_plugin import data
from etb_plugin.errors import ConfigError, DataError
from etb_plugin.networks import build
from etb_plugin.objectives import get_method
from etb_plugin.training import Settings, train


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
    images, labels = load_digits(return_X_y=True)
    images = np.rint(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    parts = train_test_split(images, labels, test_size=360, random_state=0, stratify=labels)
    for part, got in zip(
        parts, (digits.train.images, digits.test.images, digits.train.labels, digits.test.labels), strict=True
    ):
        np.testing.assert_array_equal(got.reshape(part.shape), part)
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
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte holds 1,279 bytes where its header says 1,280"):
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
        ({"x_test": np.zeros((20, 8, 8))}, r"x_test needs uint8 images .*store \(255 \* x\)\.round\(\) as uint8"),
        ({"y_train": np.zeros(29, int)}, "one label for each of the 30 images"),
        ({"y_train": np.full(30, -1)}, "integer labels from 0"),
        ({"y_test": np.full(20, 10)}, "label 10, beyond all of y_train"),
        ({"y_train": np.zeros(30, int), "y_test": np.zeros(20, int)}, "one class only"),
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


def write_har(folder, features=561, labels=(1, 6, 3)):
    for part in ("train", "test"):
        (folder / "UCI HAR Dataset" / part).mkdir(parents=True)
        table = np.random.default_rng(0).uniform(-1, 1, (len(labels), features))
        np.savetxt(folder / "UCI HAR Dataset" / part / f"X_{part}.txt", table, fmt=" %.8e")
        np.savetxt(folder / "UCI HAR Dataset" / part / f"y_{part}.txt", labels, fmt="%d")
    return table


def test_har_is_read_as_the_archive_holds_it(tmp_path):
    table = write_har(tmp_path)
    found = data.load("har", data_dir=tmp_path)
    assert (found.input_shape, found.classes) == ((561, 1, 1), 6)
    assert found.test.labels.tolist() == [0, 5, 2]
    x, _ = next(found.test.batches(3))
    np.testing.assert_allclose(x.flatten(1).numpy() * 2 - 1, table, atol=1e-6)
    network = build(found.source.default_model, found.input_shape, found.classes, seed=0)
    assert network(x).shape == (3, 6)
    training = train(network, get_method("ibp"), found, Settings(0.025, epochs=4))
    assert training.epochs[-1].width > 0


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ({"features": 560}, r"561 features and one label a line are needed; got \[3, 560\]"),
        ({"labels": (0, 1, 2)}, "labels run from 1 to 6; got 0 to 2"),
    ],
)
def test_a_har_folder_of_something_else_is_refused(tmp_path, kind, message):
    write_har(tmp_path, **kind)
    with pytest.raises(DataError, match=message):
        data.load("har", data_dir=tmp_path)


def test_missing_and_garbled_har_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"there is no .*X_train\.txt: unpack the UCI archive"):
        data.load("har", data_dir=tmp_path)
    write_har(tmp_path)
    (tmp_path / "UCI HAR Dataset" / "test" / "X_test.txt").write_text("1 2\nthree\n")
    with pytest.raises(DataError, match=r"X_test\.txt is no table of numbers"):
        data.load("har", data_dir=tmp_path)


def imagenet_batch(number, first):
    images = np.random.default_rng(first).integers(0, 256, (number, 3 * 64 * 64), dtype=np.uint8)
    return {"data": images, "labels": [first + i for i in range(number)], "mean": images.mean(0)}


def write_imagenet(folder, batches=10):
    (folder / "imagenet64").mkdir()
    files = [(f"train_data_batch_{i}", imagenet_batch(4, 10 * i)) for i in range(1, batches + 1)]
    for name, content in (*files, ("val_data", imagenet_batch(3, 998))):
        (folder / "imagenet64" / name).write_bytes(pickle.dumps(content, protocol=2))
    return dict(files)


def test_imagenet64_is_read_from_its_batches_and_cropped(tmp_path):
    files = write_imagenet(tmp_path)
    found = data.load("imagenet64", data_dir=tmp_path)
    assert (len(found.train), len(found.test), found.classes, found.input_shape) == (40, 3, 1000, (3, 56, 56))
    assert found.test.labels.tolist() == [997, 998, 999]
    assert found.train.labels[:5].tolist() == [9, 10, 11, 12, 19]
    first = files["train_data_batch_1"]["data"][0].reshape(3, 64, 64)
    assert np.array_equal(found.train.images[0].numpy(), first)
    batches = data.Batches.of(found, 40, torch.Generator().manual_seed(0))
    order = torch.arange(40)
    (crops, _), (again, _) = next(batches.cut(order)), next(batches.cut(order))
    assert crops.shape == (40, 3, 56, 56)
    assert not torch.equal(crops, again)
    places = torch.from_numpy(first).unfold(1, 56, 1).unfold(2, 56, 1).permute(1, 2, 0, 3, 4).flatten(0, 1) / 255
    assert min(float((places - c).abs().amax((1, 2, 3)).min()) for c in (crops[0], crops[0].flip(2))) < 1e-6
    torch.testing.assert_close(found.first_training_images(1)[0], torch.from_numpy(first[:, 4:60, 4:60]) / 255)


def test_imagenet64_reads_archives_and_no_more_files_than_needed(tmp_path):
    write_imagenet(tmp_path, batches=2)
    assert len(data.load("imagenet64", data_dir=tmp_path, train_limit=6).train) == 6
    with pytest.raises(DataError, match=r"there is no .*train_data_batch_3"):
        data.load("imagenet64", data_dir=tmp_path)
    (tmp_path / "imagenet64" / "train_data_batch_1").unlink()
    np.savez(tmp_path / "imagenet64" / "train_data_batch_1.npz", **imagenet_batch(4, 10))
    assert data.load("imagenet64", data_dir=tmp_path, train_limit=4).train.labels.tolist() == [9, 10, 11, 12]


class Harmful:
    def __reduce__(self):
        return print, ("this ran",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"data": Harmful()}, "is no batch of downscaled ImageNet: it names builtins.print, which is no array"),
        ({"labels": [1]}, "is no batch of downscaled ImageNet"),
        ({"data": np.zeros((2, 5), np.uint8), "labels": [1, 2]}, r"data needs uint8 \[n, 12288\]"),
        ({"data": np.zeros((1, 12288), np.uint8), "labels": [0]}, "labels run from 1 to 1000; got 0 to 0"),
    ],
)
def test_a_batch_of_something_else_is_refused_and_runs_nothing(tmp_path, capsys, content, message):
    write_imagenet(tmp_path)
    (tmp_path / "imagenet64" / "val_data").write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match=message):
        data.load("imagenet64", data_dir=tmp_path)
    assert capsys.readouterr().out == ""


@pytest.fixture
def tiny_imagenet(tmp_path, monkeypatch):
    """The folder with three classes of two training images and one validation image each."""

    root = tmp_path / "tiny-imagenet-200"
    names = ["n3", "n1", "n2"]
    monkeypatch.setattr("etb_plugin.data.tinyimagenet._CLASSES", 3)
    (root / "val" / "images").mkdir(parents=True)
    (root / "wnids.txt").write_text("\n".join(names) + "\n")
    lines = []
    for label, name in enumerate(names):
        folder = root / "train" / name / "images"
        folder.mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (64, 64), (10 * label, i, 0)).save(folder / f"{name}_{i}.png")
        Image.new("L", (64, 64), 7).save(root / "val" / "images" / f"val_{label}.png")  # a grey one
        lines.append(f"val_{label}.png\t{name}\t0\t0\t1\t1")
    (root / "val" / "val_annotations.txt").write_text("\n".join(reversed(lines)))
    return root


def test_tinyimagenet_is_read_from_the_folder_that_people_have(tiny_imagenet):
    found = data.load("tinyimagenet", data_dir=tiny_imagenet.parent)
    assert found.input_shape == (3, 64, 64)
    assert found.classes == 200
    assert found.train.labels.tolist() == [0, 1, 2, 0, 1, 2]  # class by class in turn
    assert found.train.images[:, :2, 0, 0].tolist() == [[0, 0], [10, 0], [20, 0], [0, 1], [10, 1], [20, 1]]
    assert found.test.labels.tolist() == [2, 1, 0]  # as annotated
    assert found.test.images[0, :, 5, 5].tolist() == [7, 7, 7]
    assert len(data.load("tinyimagenet", data_dir=tiny_imagenet.parent, train_limit=4).train) == 4
    (tiny_imagenet / "val" / "val_annotations.txt").unlink()
    for label, name in enumerate(("n3", "n1", "n2")):  # sorted into classes, as many have it
        (tiny_imagenet / "val" / name).mkdir()
        (tiny_imagenet / "val" / "images" / f"val_{label}.png").rename(tiny_imagenet / "val" / name / "a.png")
    assert data.load("tinyimagenet", data_dir=tiny_imagenet.parent).test.labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / "wnids.txt").unlink(), "there is no .*wnids.txt"),
        (lambda root: (root / "wnids.txt").write_text("n1\n"), "names 1 classes"),
        (lambda root: (root / "train/n1/images/n1_0.png").write_bytes(b"\x89PNG no"), "is no image that can be read"),
        (lambda root: (root / "val/val_annotations.txt").write_text("../x.png\tn1\n"), "is no file name and class"),
        (lambda root: [f.unlink() for f in (root / "train/n1/images").iterdir()], "there are no images in"),
    ],
)
def test_a_tinyimagenet_that_is_not_whole_is_refused(tiny_imagenet, spoil, message):
    spoil(tiny_imagenet)
    with pytest.raises(DataError, match=message):
        data.load("tinyimagenet", data_dir=tiny_imagenet.parent)


@pytest.fixture
def class_folders(tmp_path):
    """Pictures of 4 x 5 pixels: 3 and 1 of cats and dogs to train on, 1 of a dog to test on."""
    root = tmp_path / "pets"
    for number, (part, name) in enumerate([*[("train", "cat")] * 3, ("train", "dog"), ("test", "dog")]):
        (root / part / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((5, 4), 10 * number, np.uint8)).save(root / part / name / f"{number}.png")
    return root


def test_a_folder_for_each_class_is_a_data_set(class_folders):
    found = data.load(f"{class_folders}/")
    assert (found.name, found.classes, found.input_shape) == ("pets", 2, (1, 5, 4))
    assert found.train.labels.tolist() == [0, 1, 0, 0]  # in turn, so that the first ones are of all classes
    assert found.train.images[:, 0, 0, 0].tolist() == [0, 30, 10, 20]
    assert (found.test.labels.tolist(), found.test.images.unique().tolist()) == ([1], [40])
    (class_folders / "test").rename(class_folders / "val")
    Image.new("RGB", (4, 5), (1, 2, 3)).save(class_folders / "val/dog/colour.png")
    found = data.load(f"{class_folders}/")
    assert found.input_shape == (3, 5, 4)
    assert found.test.images[:, :, 0, 0].tolist() == [[40, 40, 40], [1, 2, 3]]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / "test").rename(root / "other"), "needs the folders train and test"),
        (lambda root: (root / "test/dog").rename(root / "test/cow"), "test has a class 'cow', and .*train none"),
        (lambda root: Image.new("L", (4, 4)).save(root / "test/dog/4.png"), "4.png has 4 x 4 pixels, .*0.png 4 x 5"),
        (lambda root: (root / "train/dog/3.png").unlink(), "there are no images in .*dog"),
        (lambda root: (root / "train/cat/0.png").write_bytes(b"no image"), "0.png is no image that can be read"),
    ],
)
def test_class_folders_that_do_not_do_are_refused(class_folders, spoil, message):
    spoil(class_folders)
    with pytest.raises(DataError, match=message):
        data.load(f"{class_folders}/")
