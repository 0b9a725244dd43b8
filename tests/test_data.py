"""Specs, splits, batches, and what bad data is answered with."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

import edgeprune.compat  # noqa: F401 - torchvision is imported below
from edgeprune.data import batches, check_fits, normalize, open_data
from edgeprune.data.splits import TensorSplit, measure, stratified
from edgeprune.errors import InputError
from edgeprune.records import DataSource, ModelInfo, Normalization

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def labels(split) -> torch.Tensor:
    return torch.cat([y for _, y in batches(split, 512)])


def pixels(split) -> torch.Tensor:
    return torch.cat([x for x, _ in batches(split, 512)])


def refused(spec: str, *fragments: str) -> None:
    """Opening `spec` is answered with one line that holds every fragment."""
    with pytest.raises(InputError) as caught:
        open_data(spec)
    message = str(caught.value)
    assert "\n" not in message
    for fragment in fragments:
        assert fragment in message, message


def write_idx(path: Path, array: np.ndarray) -> None:
    data = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def make_idx_set(folder: Path, suffix: str = ".gz", n_train: int = 100, n_test: int = 20) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for prefix, n in (("train", n_train), ("t10k", n_test)):
        write_idx(folder / f"{prefix}-images-idx3-ubyte{suffix}", rng.integers(0, 256, (n, 28, 28), np.uint8))
        write_idx(folder / f"{prefix}-labels-idx1-ubyte{suffix}", (np.arange(n) % 10).astype(np.uint8))
    return folder


def make_images(root: Path, counts: dict[str, int]) -> Path:
    """Class folders of small PNG files; the red channel holds the class."""
    for label, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (12, 8), (50 * label, i, 255)).save(root / name / f"{i:03d}.png")
    return root


# digits ---------------------------------------------------------------------------------------------------------------


def test_digits_are_the_whole_set_cut_60_20_20():
    data = open_data("digits")
    assert data.input_shape == (1, 8, 8)
    assert data.classes == tuple("0123456789")
    assert [len(split) for split in (data.train, data.val, data.test)] == [1079, 359, 359]
    x = torch.cat([pixels(split) for split in (data.train, data.val, data.test)])
    assert (x.min(), x.max(), x.dtype) == (0, 16, torch.float32)
    assert len({image.numpy().tobytes() for image in x}) == 1797, "an image is in two splits"


def test_digits_equal_the_source():
    datasets = pytest.importorskip("sklearn.datasets")
    data = open_data("digits")
    ours = sorted(
        (x.numpy().tobytes(), int(y))
        for split in (data.train, data.val, data.test)
        for x, y in zip(pixels(split), labels(split), strict=True)
    )
    source = datasets.load_digits()
    theirs = sorted((x.astype(np.float32).tobytes(), int(y)) for x, y in zip(source.images, source.target, strict=True))
    assert ours == theirs


def test_digits_splits_ignore_the_seed_and_are_stratified():
    first, second = open_data("digits", seed=0), open_data("digits", seed=7)
    assert torch.equal(pixels(first.test), pixels(second.test))
    counts = torch.bincount(labels(first.test))
    assert counts.min() >= 34 and counts.max() <= 38


def test_digits_normalisation_is_that_of_train():
    data = open_data("digits")
    x = normalize(pixels(data.train), data.normalization)
    assert x.mean().item() == pytest.approx(0, abs=1e-5)
    assert x.std(correction=0).item() == pytest.approx(1, abs=1e-5)


# splits, batches, normalisation ---------------------------------------------------------------------------------------


def test_stratified_parts_are_disjoint_and_keep_rare_classes_in_the_first():
    y = np.array([0] * 10 + [1] * 5 + [2])
    parts = stratified(y, (0.6, 0.2, 0.2))
    assert sorted(np.concatenate(parts)) == list(range(16))
    assert [np.bincount(y[part], minlength=3).tolist() for part in parts] == [[6, 3, 1], [2, 1, 0], [2, 1, 0]]


@pytest.mark.parametrize("kind", ["tensors", "tensor dataset", "samples"])
def test_batches_hold_every_sample_once(kind):
    x, y = torch.arange(21.0).reshape(21, 1), torch.arange(21)
    split = {
        "tensors": TensorSplit(x, y),
        "tensor dataset": TensorDataset(x.double(), y.int()),
        "samples": [(row, int(label)) for row, label in zip(x, y, strict=True)],
    }[kind]
    plain = list(batches(split, 8))
    assert [len(part) for _, part in plain] == [8, 8, 5]
    assert torch.cat([part for part, _ in plain]).tolist() == x.tolist()
    shuffled = list(batches(split, 8, shuffle=True, seed=3))
    order = torch.cat([part for _, part in shuffled])
    assert order.tolist() != y.tolist() and sorted(order.tolist()) == y.tolist()
    assert torch.equal(torch.cat([part for part, _ in shuffled])[:, 0], order.float())
    again = torch.cat([part for _, part in batches(split, 8, shuffle=True, seed=3)])
    assert torch.equal(order, again)


def test_no_batch_has_a_lone_sample():
    split = TensorSplit(torch.zeros(17, 1), torch.zeros(17, dtype=torch.int64))
    assert [len(y) for _, y in batches(split, 8)] == [8, 7, 2]


def test_bytes_are_read_as_zero_to_one():
    split = TensorSplit(torch.tensor([[0], [255]], dtype=torch.uint8), torch.tensor([0, 1]), 1 / 255)
    (x, _), *_ = batches(split, 2)
    assert x.tolist() == [[0.0], [1.0]]
    assert split[1][0].tolist() == [1.0]


def test_normalize_takes_one_value_or_one_per_channel():
    x = torch.ones(2, 3, 4, 4)
    assert normalize(x, Normalization((1.0,), (2.0,))).abs().max() == 0
    per_channel = normalize(x, Normalization((1.0, 0.0, -1.0), (1.0, 2.0, 4.0)))
    assert per_channel[0, :, 0, 0].tolist() == [0.0, 0.5, 0.5]
    with pytest.raises(InputError, match="expected 1 or 3 values of mean"):
        normalize(x, Normalization((1.0, 2.0), (1.0, 1.0)))


def test_measure_is_per_column_and_survives_constant_and_large_columns():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3000, 3)).astype(np.float32)
    x[:, 1] = 7.5
    x[:, 2] = 1e6 + rng.integers(0, 2, 3000)
    measured = measure(TensorSplit(torch.from_numpy(x), torch.zeros(3000, dtype=torch.int64)))
    np.testing.assert_allclose(measured.mean, x.astype(np.float64).mean(0), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(measured.std, [x[:, 0].std(), 1.0, 0.5], rtol=1e-3)


# does it fit ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("info", "n_outputs", "message"),
    [
        (ModelInfo((3, 8, 8)), 10, r"expects inputs of shape \(3, 8, 8\), got \(1, 8, 8\)"),
        (ModelInfo((1, 8, 8)), 12, "has 12 classes, got 10"),
        (ModelInfo((1, 8, 8), classes=("a", "b")), None, "has 2 classes, got 10"),
    ],
)
def test_data_that_do_not_fit_are_refused(info, n_outputs, message):
    with pytest.raises(InputError, match=message):
        check_fits(open_data("digits"), info, n_outputs)


def test_data_that_fit_pass():
    data = open_data("digits")
    assert check_fits(data, ModelInfo((1, 8, 8), classes=data.classes), 10) is None
    assert check_fits(data, ModelInfo((1, 8, 8)), None) is None


def test_columns_in_another_order_are_refused(tmp_path):
    file = tmp_path / "t.csv"
    file.write_text("a,b,kind\n" + "".join(f"{i},{-i},{'xy'[i % 2]}\n" for i in range(20)))
    data = open_data(f"csv:{file}?target=kind")
    with pytest.raises(InputError, match="feature 0 differs from the model's: expected 'b', got 'a'"):
        check_fits(data, ModelInfo((2,), feature_names=("b", "a")), 2)


# specs ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "fragments"),
    [
        ("digitz", ("expected digits, mnist", "'digitz'")),
        ("digits:somewhere", ("'digits:somewhere'",)),
        ("", ("expected digits",)),
        ("npz:", ("expected npz:PATH",)),
        ("csv:a.csv?goal=x", ("expected options target", "'goal'")),
        ("mnist?size", ("expected key=value",)),
        ("imagefolder:x?size=0", ("expected a size from 1 to 4096", "'0'")),
        ("imagefolder:/no/such", ("expected a folder of images", "/no/such")),
        ("npz:/no/such.npz", ("/no/such.npz", "nothing there")),
        ("csv:/no/such.csv?target=y", ("/no/such.csv", "nothing there")),
        ("mnist:/no/such", ("/no/such", "train-images-idx3-ubyte.gz", "download=True")),
        ("caltech101:/no/such", ("101_ObjectCategories", "/no/such")),
        ("/no/such.py:make", ("/no/such.py", "nothing there")),
    ],
)
def test_bad_specs_are_answered_in_one_line(spec, fragments):
    refused(spec, *fragments)


# IDX ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
@pytest.mark.parametrize("layout", ["flat", "plain", "torchvision"])
def test_idx_sets_are_read_from_every_layout(tmp_path, name, layout):
    inner = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}[name] + "/raw"
    make_idx_set(tmp_path / inner if layout == "torchvision" else tmp_path, "" if layout == "plain" else ".gz")
    data = open_data(f"{name}:{tmp_path}")
    assert data.input_shape == (1, 28, 28) and len(data.classes) == 10
    assert [len(split) for split in (data.train, data.val, data.test)] == [90, 10, 20]
    assert torch.bincount(labels(data.val)).tolist() == [1] * 10
    x = pixels(data.test)
    assert x.dtype == torch.float32 and x.max() == 1.0 and x.min() == 0.0


@pytest.mark.parametrize("root", [DEBIAN] if DEBIAN.is_dir() else [])
def test_debians_fashion_mnist(root):
    data = open_data(f"fashion-mnist:{root}")
    assert [len(split) for split in (data.train, data.val, data.test)] == [54000, 6000, 10000]
    assert data.classes[9] == "Ankle boot"
    assert torch.bincount(labels(data.test)).tolist() == [1000] * 10
    assert data.normalization.mean[0] == pytest.approx(0.286, abs=0.001)


def gz(data: bytes) -> bytes:
    # Without the time of day, which would give a parametrized test another name each second.
    return gzip.compress(data, mtime=0)


HEAD = struct.pack(">BBBB", 0, 0, 8, 3)


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        (b"", "empty file"),
        (b"not gzip", "cannot be read as an IDX file"),
        (gz(b""), "got nothing"),
        (gz(b"\x00\x00\x0d\x03" + bytes(12)), "00000d03"),
        (gz(HEAD + b"\0\0"), "expected a header of 16 bytes, got 6"),
        (gz(HEAD + struct.pack(">III", 100, 28, 28) + bytes(500)), "expected 78,400 bytes of data, got 500"),
        (gz(HEAD + struct.pack(">III", 2**20, 16, 16) + bytes(500)), "got a header that promises 268,435,456"),
        (gz(HEAD + struct.pack(">III", 10, 28, 28) + np.random.default_rng(0).bytes(7000)), "got 7,000"),
        (gz(HEAD + struct.pack(">III", 1, 28, 28) + bytes(785)), "expected 784 bytes of data, got more"),
        (gz(HEAD + struct.pack(">III", 2**32 - 1, 2**32 - 1, 2**32 - 1)), "expected at most"),
        (gz(HEAD + struct.pack(">III", 10, 28, 28) + bytes(7840))[:-30], "IDX file"),
    ],
)
def test_damaged_idx_files_are_refused(tmp_path, content, fragment):
    make_idx_set(tmp_path)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(content)
    refused(f"mnist:{tmp_path}", "train-images-idx3-ubyte.gz", fragment)


def test_idx_labels_must_match_the_images(tmp_path):
    make_idx_set(tmp_path)
    write_idx(tmp_path / "t10k-labels-idx1-ubyte.gz", np.zeros(19, np.uint8))
    refused(f"mnist:{tmp_path}", "expected 20 t10k labels", "got 19")
    write_idx(tmp_path / "t10k-labels-idx1-ubyte.gz", np.full(20, 10, np.uint8))
    refused(f"mnist:{tmp_path}", "labels below 10, got 10")
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    refused(f"mnist:{tmp_path}", "t10k-labels-idx1-ubyte.gz", "nothing there")


# torchvision's sets ---------------------------------------------------------------------------------------------------


def make_cifar10(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small CIFAR-10 in the real layout; torchvision's own reader is told its digests."""
    from torchvision.datasets import CIFAR10

    folder = root / CIFAR10.base_folder
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)

    def write(name: str, content: dict) -> list[str]:
        raw = pickle.dumps(content)
        (folder / name).write_bytes(raw)
        return [name, hashlib.md5(raw).hexdigest()]

    def batch(n: int) -> dict:
        return {"data": rng.integers(0, 256, (n, 3072), np.uint8), "labels": [i % 10 for i in range(n)]}

    monkeypatch.setattr(CIFAR10, "train_list", [write(f"data_batch_{i}", batch(20)) for i in range(1, 6)])
    monkeypatch.setattr(CIFAR10, "test_list", [write("test_batch", batch(20))])
    names = {"label_names": [f"class {i}" for i in range(10)]}
    meta = dict(zip(("filename", "md5"), write("batches.meta", names), strict=True), key="label_names")
    monkeypatch.setattr(CIFAR10, "meta", meta)


def test_cifar_through_torchvision(tmp_path, monkeypatch):
    make_cifar10(tmp_path, monkeypatch)
    data = open_data(f"cifar10:{tmp_path}")
    assert data.input_shape == (3, 32, 32)
    assert [len(split) for split in (data.train, data.val, data.test)] == [90, 10, 20]
    assert data.classes[3] == "class 3" and len(data.normalization.mean) == 3
    with (tmp_path / "cifar-10-batches-py" / "test_batch").open("rb") as file:
        first = pickle.load(file)["data"][0].reshape(3, 32, 32) / 255
    np.testing.assert_allclose(data.test[0][0].numpy(), first, atol=1e-6)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_is_never_downloaded_and_its_digests_are_checked(tmp_path, name, monkeypatch):
    refused(f"{name}:{tmp_path}", "in " + str(tmp_path), "download=True")
    assert not list(tmp_path.iterdir())
    make_cifar10(tmp_path, monkeypatch)
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(pickle.dumps({"data": []}))
    refused(f"cifar10:{tmp_path}", "damaged copy")


def test_caltech_through_torchvision(tmp_path):
    root = tmp_path / "caltech101" / "101_ObjectCategories"
    make_images(root, {"BACKGROUND_Google": 3, "ant": 10, "bass": 10})
    for path in root.glob("*/*.png"):
        Image.open(path).save(path.parent / f"image_{int(path.stem) + 1:04d}.jpg", quality=95)
        path.unlink()
    data = open_data(f"caltech101:{tmp_path}?size=16")
    assert data.input_shape == (3, 16, 16) and data.classes == ("ant", "bass")
    assert [len(split) for split in (data.train, data.val, data.test)] == [12, 4, 4]
    for x, y in data.test:
        assert x[0].mean().item() == pytest.approx(50 * (y + 1) / 255, abs=0.02)
    refused(f"caltech101:{tmp_path / 'caltech101'}", "caltech101/101_ObjectCategories")
    assert not (tmp_path / "caltech101" / "caltech101").exists(), "looking for the set made its folder"


# image folders --------------------------------------------------------------------------------------------------------


def test_one_image_folder_is_cut_60_20_20(tmp_path):
    make_images(tmp_path, {"cat": 10, "dog": 5})
    data = open_data(f"imagefolder:{tmp_path}?size=4")
    assert data.input_shape == (3, 4, 4) and data.classes == ("cat", "dog")
    assert [len(split) for split in (data.train, data.val, data.test)] == [9, 3, 3]
    for x, y in data.train:
        assert x[0].unique().tolist() == pytest.approx([50 * y / 255])
        assert x[2].min() == 1.0
    assert data.normalization.std[2] == 1.0


@pytest.mark.parametrize(
    ("folders", "sizes"),
    [(("train", "val", "test"), [20, 20, 20]), (("train", "val"), [18, 2, 20]), (("train", "test"), [18, 2, 20])],
)
def test_split_image_folders(tmp_path, folders, sizes):
    for folder in folders:
        make_images(tmp_path / folder, {"cat": 10, "dog": 10})
    data = open_data(f"imagefolder:{tmp_path}?size=4")
    assert [len(split) for split in (data.train, data.val, data.test)] == sizes
    assert pixels(data.test).shape == (20, 3, 4, 4)


def test_links_out_of_the_image_folder_are_refused(tmp_path):
    outside = make_images(tmp_path / "outside", {"cat": 1}) / "cat" / "000.png"
    root = make_images(tmp_path / "root", {"cat": 10, "dog": 10})
    (root / "cat" / "link.png").symlink_to(outside)
    refused(f"imagefolder:{root}", "link.png", "got a link to", str(outside))
    (root / "cat" / "link.png").unlink()
    (root / "cat" / "more").symlink_to(outside.parent)
    refused(f"imagefolder:{root}", "more", "not followed")
    (root / "cat" / "more").unlink()
    (root / "emu").symlink_to(outside.parent)
    refused(f"imagefolder:{root}", "emu", "got a link to")


def test_a_link_made_after_opening_is_not_followed(tmp_path):
    outside = make_images(tmp_path / "outside", {"cat": 1}) / "cat" / "000.png"
    root = make_images(tmp_path / "root", {"cat": 10, "dog": 10})
    data = open_data(f"imagefolder:{root}?size=4")
    for path in root.glob("*/*.png"):
        path.unlink()
        path.symlink_to(outside)
    with pytest.raises(InputError, match="got a link to"):
        data.test[0]


def test_damaged_and_oversized_images_are_refused(tmp_path, monkeypatch):
    root = make_images(tmp_path, {"cat": 10, "dog": 10})
    monkeypatch.setattr("edgeprune.data.images.MAX_PIXELS", 95)
    refused(f"imagefolder:{root}", "expected at most 95 pixels, got 12x8")
    monkeypatch.undo()
    for path in root.glob("cat/*.png"):
        path.write_bytes(path.read_bytes()[:50])
    refused(f"imagefolder:{root}", "cat", "expected an image")


@pytest.mark.parametrize(
    ("folders", "fragment"),
    [
        ({"train": {"cat": 3, "dog": 3}}, "val or test beside train"),
        ({"train": {"cat": 3, "dog": 3}, "val": {"cat": 3, "emu": 3}}, "got also emu"),
        ({"train": {"cat": 3, "dog": 3}, "val": {"cat": 0, "dog": 0}}, "expected images"),
        ({".": {"cat": 5}}, "at least 2 classes"),
        ({}, "one folder per class"),
    ],
)
def test_image_folders_that_cannot_be_used(tmp_path, folders, fragment):
    for folder, counts in folders.items():
        make_images(tmp_path / folder, counts)
    refused(f"imagefolder:{tmp_path}", fragment)


# npz ------------------------------------------------------------------------------------------------------------------

X = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float64)
Y = np.arange(50) % 5


@pytest.mark.parametrize(
    ("arrays", "sizes"),
    [
        ({"x": X, "y": Y}, [30, 10, 10]),
        ({"X": X, "y": Y[:, None]}, [30, 10, 10]),
        ({"x_train": X, "y_train": Y, "x_test": X[:7], "y_test": Y[:7]}, [45, 5, 7]),
        ({"x_train": X, "y_train": Y, "x_val": X[:7], "y_val": Y[:7]}, [45, 5, 7]),
        (
            {"x_train": X, "y_train": Y, "x_val": X[:7], "y_val": Y[:7], "x_test": X[:9], "y_test": Y[:9], "z": Y},
            [50, 7, 9],
        ),
    ],
)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path, arrays, sizes, save):
    save(tmp_path / "a.npz", **arrays)
    data = open_data(f"npz:{tmp_path / 'a.npz'}")
    assert data.input_shape == (3,) and data.classes == tuple("01234")
    assert [len(split) for split in (data.train, data.val, data.test)] == sizes
    assert len(data.normalization.mean) == 3
    rows = {row.tobytes(): label for row, label in zip(X.astype(np.float32), Y, strict=True)}
    assert all(rows[x.numpy().tobytes()] == y for x, y in data.test)


def test_npz_bytes_are_images(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (40, 6, 6), np.uint8)
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(40) % 2)
    data = open_data(f"npz:{tmp_path / 'a.npz'}")
    assert pixels(data.train).max() <= 1.0 and data.input_shape == (6, 6)
    assert len(data.normalization.mean) == 1


def with_nan() -> np.ndarray:
    x = X.copy()
    x[17, 2] = np.nan
    return x


@pytest.mark.parametrize(
    ("arrays", "fragment"),
    [
        ({"a": X}, "expected arrays x and y"),
        ({"y": Y}, "got y alone"),
        ({"x_train": X, "y_train": Y, "x_test": X}, "targets in every split or in none, got none in test"),
        ({"x": X, "y": Y[:-1]}, "expected x of shape (49, ...)"),
        ({"x": X, "y": Y - 1}, "expected labels from 0, got -1 at index 0"),
        ({"x": X * 1e39, "y": Y}, "expected values that float32 holds, up to 3.4e38"),
        ({"x_train": X, "y_train": Y, "x_test": X, "y_test": Y.astype(str)}, "labels of one kind in every split"),
        ({"x": X, "y": Y * 0}, "at least 2 classes"),
        ({"x": X[:, 0], "y": Y}, "one sample per label"),
        ({"x": X[:0], "y": Y[:0]}, "at least one sample"),
        ({"x": X[:, :0], "y": Y}, "at least one feature"),
        ({"x": X[:4], "y": Y[:4]}, "split is empty"),
        ({"x": with_nan(), "y": Y}, "got nan at index [17, 2]"),
        ({"x": X + np.inf, "y": Y}, "got inf at index [0, 0]"),
        ({"x": X * 1j, "y": Y}, "expected real numbers, got complex128"),
        ({"x": X.astype(object), "y": Y}, "need unpickling"),
        ({"x": X, "y": np.array(["a"] * 50)}, "at least 2 classes"),
        ({"x_train": X, "y_train": Y}, "train with val or test"),
        ({"x_train": X, "y_train": Y, "x_test": X[:, :2], "y_test": Y}, "samples of one shape"),
    ],
)
def test_npz_that_cannot_be_used(tmp_path, arrays, fragment):
    np.savez(tmp_path / "a.npz", **arrays)
    refused(f"npz:{tmp_path / 'a.npz'}", "a.npz", fragment)


def npy(shape: tuple[int, ...], data: bytes) -> bytes:
    """An .npy file whose header promises float64 of `shape`."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": shape})
    return file.getvalue() + data


@pytest.mark.parametrize(
    ("content", "compression", "fragment"),
    [
        (npy((2**40, 8), b""), zipfile.ZIP_STORED, "expected at most"),
        (npy((10_000, 8), bytes(64)), zipfile.ZIP_DEFLATED, "the header promises 640,000 bytes"),
        (npy((50, 8), bytes(64)), zipfile.ZIP_DEFLATED, "the header promises 3,200 bytes, got 64"),
        (npy((1, 8), bytes(64)), zipfile.ZIP_LZMA, "compression type 14"),
        (b"no npy at all", zipfile.ZIP_STORED, "expected the npy format 1 to 3"),
    ],
)
def test_npz_whose_sizes_lie_are_refused_before_memory_is_taken(tmp_path, content, compression, fragment):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", compression) as archive:
        archive.writestr("x.npy", content)
    refused(f"npz:{tmp_path / 'a.npz'}", "a.npz", fragment)


def test_truncated_npz_and_other_files_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", x=X, y=Y)
    whole = (tmp_path / "a.npz").read_bytes()
    for content, fragment in ((whole[:-40], "cannot be read"), (b"", "empty file"), (b"text", "cannot be read")):
        (tmp_path / "a.npz").write_bytes(content)
        refused(f"npz:{tmp_path / 'a.npz'}", fragment)
    refused(f"npz:{tmp_path}", "got a folder")


# csv ------------------------------------------------------------------------------------------------------------------

TABLE = "width,height,round,kind\n" + "".join(f"{i / 7},{-i},{i % 2 == 0},{('ash', 'elm')[i % 2]}\n" for i in range(40))


def test_csv(tmp_path):
    (tmp_path / "t.csv").write_text(TABLE)
    data = open_data(f"csv:{tmp_path / 't.csv'}?target=kind")
    assert data.feature_names == ("width", "height", "round")
    assert data.classes == ("ash", "elm") and data.input_shape == (3,)
    assert [len(split) for split in (data.train, data.val, data.test)] == [24, 8, 8]
    for x, y in data.train:
        assert (-x[1].item()) % 2 == y and x[2].item() == 1 - y
        assert x[0].item() == pytest.approx(-x[1].item() / 7)


def test_csv_with_ints_as_classes(tmp_path):
    (tmp_path / "t.csv").write_text("a,y\n" + "".join(f"{i},{(10, 2)[i % 2]}\n" for i in range(20)))
    data = open_data(f"csv:{tmp_path / 't.csv'}?target=y")
    assert data.classes == ("2", "10")
    assert all(y == (0 if x[0] % 2 else 1) for x, y in data.train)


@pytest.mark.parametrize(
    ("text", "target", "fragments"),
    [
        (TABLE, "sort", ("width, height, round, kind", "'sort'")),
        (TABLE, "", ("width, height, round, kind",)),
        (TABLE, "width", ("numeric feature columns", "kind")),
        (TABLE.replace(",kind", ",kind,who").replace("ash", "ash,x"), "kind", ("numeric", "who")),
        (TABLE.replace("-3,", ","), "kind", ("row 4", "'height'", "finite")),
        (TABLE.replace("-3,", "inf,"), "kind", ("row 4", "'height'", "got inf")),
        (TABLE.replace("-3,", "1e300,"), "kind", ("row 4", "'height'", "got inf")),
        ("a,y\n1,x\n2,\n", "y", ("row 2", "'y'", "got nothing")),
        ("a,y\n1,0.5\n2,1.5\n", "y", ("val split is empty",)),
        ("a,y\n1,x\n2,x\n", "y", ("at least 2 classes",)),
        ("y\n1\n2\n", "y", ("feature columns", "0 columns")),
        ("a,y\n", "y", ("got 0 rows",)),
        ("a,y\n1,2,3\n1,2,3,4\n", "y", ("cannot be read as a CSV file",)),
        ("a,y\n1,x,3\n2,z,4\n", "y", ("cannot be read as a CSV file",)),
        ("a,y\n1,x\n2,3\n", "y", ("val split is empty",)),
        ("\x00\x01", "y", ("t.csv",)),
    ],
)
def test_csv_that_cannot_be_used(tmp_path, text, target, fragments):
    (tmp_path / "t.csv").write_text(text)
    refused(f"csv:{tmp_path / 't.csv'}?target={target}", "t.csv", *fragments)


def test_csv_that_is_not_text_is_refused(tmp_path):
    (tmp_path / "t.csv").write_bytes(gzip.compress(TABLE.encode()))
    refused(f"csv:{tmp_path / 't.csv'}?target=kind", "cannot be read as a CSV file")


def test_missing_pandas_says_how_to_install_it(tmp_path, monkeypatch):
    (tmp_path / "t.csv").write_text(TABLE)
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    refused(f"csv:{tmp_path / 't.csv'}?target=kind", "pip install 'edgeprune[csv]'")


# factories ------------------------------------------------------------------------------------------------------------

FACTORIES = """
import numpy as np, torch
from helper import N
x = np.random.default_rng(0).normal(size=(N, 4)); y = np.arange(N) % 2
def three(): return (x, y), (x[:10], y[:10]), (torch.tensor(x[:20]), torch.tensor(y[:20]))
def named(): return {"train": (x, y), "test": (x[:20], y[:20])}
def like_npz(): return {"X": x, "y": y}
def pair(n=50, scale=1.0, seed=None): return x[:n] * scale + 0 * seed, y[:n]
def source():
    from edgeprune.data import open_data
    return open_data("digits")
def wrong_source():
    import dataclasses
    return dataclasses.replace(source(), input_shape=(64,))
def boom(): raise KeyError("lost")
def lines(): raise ValueError("first\\nsecond")
def number(): return 3
def mixed(): return {"train": (x, y), "extra": 3}
constant = 3
"""


@pytest.fixture
def factory_file(tmp_path) -> Path:
    (tmp_path / "helper.py").write_text("N = 100\n")
    (tmp_path / "mine.py").write_text(FACTORIES)
    return tmp_path / "mine.py"


@pytest.mark.parametrize(
    ("call", "sizes"),
    [
        ("three", [100, 10, 20]),
        ("named", [90, 10, 20]),
        ("like_npz", [60, 20, 20]),
        ("pair", [30, 10, 10]),
        ("pair?n=100&scale=2.5", [60, 20, 20]),
        ("source", [1079, 359, 359]),
    ],
)
def test_factories(factory_file, call, sizes):
    data = open_data(f"{factory_file}:{call}", seed=4)
    assert isinstance(data, DataSource)
    assert [len(split) for split in (data.train, data.val, data.test)] == sizes


@pytest.mark.parametrize(
    ("call", "fragment"),
    [
        ("absent", "expected a function 'absent'"),
        ("constant", "expected a function 'constant'"),
        ("boom", "the factory raised KeyError: 'lost'"),
        ("lines", "the factory raised ValueError: first"),
        ("pair?depth=3", "unexpected keyword argument 'depth'"),
        ("number", "got int"),
        ("mixed", "got 'extra'"),
        ("wrong_source", "expected samples of shape (64,), got (1, 8, 8)"),
    ],
)
def test_factories_that_cannot_be_used(factory_file, call, fragment):
    refused(f"{factory_file}:{call}", "mine.py", fragment)


def test_a_factory_file_that_cannot_be_imported(tmp_path):
    (tmp_path / "bad.py").write_text("1 / 0")
    refused(f"{tmp_path / 'bad.py'}:make", "bad.py", "raised ZeroDivisionError")
