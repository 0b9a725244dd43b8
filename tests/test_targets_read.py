"""Targets of every kind, from arrays, tables and the user's own code, as they look and as a task wants them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgeprune.data import batches, open_data
from edgeprune.errors import InputError
from edgeprune.records import Targets
from edgeprune.tasks.registry import open_task, wanted_targets
from edgeprune.tasks.wanted import WantedTargets

RNG = np.random.default_rng(0)
X = RNG.normal(size=(50, 3)).astype(np.float32)
FLAGS = (RNG.random((50, 4)) < 0.5).astype(np.uint8)
FLAGS[0] = 1  # so that they are no one-hot rows
MASKS = RNG.integers(0, 3, (50, 4, 6)).astype(np.uint8)


def opened(folder, wanted: str | None = None, ignore: int | None = 255, **arrays):
    np.savez(folder / "a.npz", **arrays)
    return open_data(f"npz:{folder / 'a.npz'}", wanted=WantedTargets(wanted, ignore))


@pytest.mark.parametrize(
    ("y", "wanted", "kind", "shape", "classes", "dtype"),
    [
        (np.arange(50) % 5, None, "classes", (), 5, torch.int64),
        (np.eye(5)[np.arange(50) % 5], None, "classes", (), 5, torch.int64),
        (X[:, 0], None, "values", (), 0, torch.float32),
        (X[:, :1], None, "values", (), 0, torch.float32),
        (X[:, :2].astype(np.float64), None, "values", (2,), 0, torch.float32),
        (np.arange(50) % 5, "values", "values", (), 0, torch.float32),
        (np.arange(50.0) % 2, None, "values", (), 0, torch.float32),
        (FLAGS, None, "flags", (4,), 4, torch.float32),
        (FLAGS.astype(float), None, "flags", (4,), 4, torch.float32),
        (np.eye(5)[np.arange(50) % 5], "flags", "flags", (5,), 5, torch.float32),
        (MASKS, None, "masks", (4, 6), 3, torch.uint8),
        (MASKS.astype(np.uint16), None, "masks", (4, 6), 3, torch.int64),
        (MASKS[:, 0], "masks", "masks", (6,), 3, torch.uint8),
        (MASKS > 1, None, "masks", (4, 6), 2, torch.int64),
        (None, None, "none", (), 0, None),
        (np.arange(50) % 5, "none", "classes", (), 5, torch.int64),
    ],
)
def test_targets_are_what_they_look_like_or_what_is_wanted(tmp_path, y, wanted, kind, shape, classes, dtype):
    data = opened(tmp_path, wanted, x=X, **({} if y is None else {"y": y}))
    assert (data.targets.kind, data.targets.shape, len(data.classes)) == (kind, shape, classes)
    found = list(batches(data.train, 8))
    assert all((targets is None) if dtype is None else targets.dtype == dtype for _, targets in found)
    assert all(targets is None or targets.shape[1:] == shape for _, targets in found)
    assert sum(len(x) for part in (data.train, data.val, data.test) for x, _ in batches(part, 8)) == 50


def test_each_target_stays_with_its_sample(tmp_path):
    data = opened(tmp_path, x=X, y=X * 2)
    for split in (data.train, data.val, data.test):
        assert len(split) and all(torch.equal(y, x * 2) for x, y in batches(split, 8))


def test_the_spread_of_values_is_that_of_the_training_split(tmp_path):
    y = RNG.normal(size=(50, 2)) * [1, 40]
    data = opened(tmp_path, x_train=X, y_train=y, x_test=X, y_test=y * 100)
    assert data.targets.spread == pytest.approx(y.std(axis=0), rel=1e-6)
    assert opened(tmp_path, x=X, y=np.full(50, 2.5)).targets.spread == (1.0,)


BLACK_AND_WHITE = (MASKS > 1) * np.uint8(255)


@pytest.mark.parametrize(
    ("arrays", "task", "classes"),
    [
        ({"y": BLACK_AND_WHITE}, None, ("0", "255")),
        ({"y": BLACK_AND_WHITE.astype(np.int64)}, "segmentation", ("0", "255")),
        ({"y": BLACK_AND_WHITE}, "segmentation?ignore=none", ("0", "255")),
        ({"y": BLACK_AND_WHITE, "class_names": np.array(["a", "b"])}, None, ("a", "b")),
        ({"y_train": BLACK_AND_WHITE, "y_test": BLACK_AND_WHITE * 0}, None, ("0", "255")),
    ],
)
def test_255_is_class_1_of_masks_that_are_black_and_white(tmp_path, arrays, task, classes):
    rows = {"x": X} if "y" in arrays else {"x_train": X, "x_test": X}
    np.savez(tmp_path / "a.npz", **rows, **arrays)
    data = open_data(f"npz:{tmp_path / 'a.npz'}", wanted=wanted_targets(task))
    assert data.classes == classes and data.notes == (
        "255 in the masks is read as class 1, as they hold 0 and 255 alone",
    )
    for x, y in (sample for split in (data.train, data.val) for sample in split):
        row = int((X == x.numpy()).all(axis=1).argmax())
        np.testing.assert_array_equal(y.numpy(), MASKS[row] > 1)
    assert sum(int(y.sum()) for _, y in data.test) == (0 if "y_test" in arrays else int((data.test.y > 0).sum()))
    two, three = (torch.zeros(2, n, 4, 6) for n in (2, 3))
    open_task(task, data).check(two, data)
    if classes == ("0", "255") and task != "segmentation?ignore=none":
        with pytest.raises(InputError, match="expected outputs of 2 classes, as the masks hold 0 and 255 alone"):
            open_task(task, data).check(three, data)  # where 255 may be what is ignored of more classes
    else:
        open_task(task, data).check(three, data)


@pytest.mark.parametrize(
    ("arrays", "task", "n_classes"),
    [
        ({"y": np.where(MASKS == 2, 255, MASKS)}, None, 2),
        ({"y_train": BLACK_AND_WHITE, "y_test": MASKS}, None, 3),
        ({"y": BLACK_AND_WHITE, "class_names": np.array(["a", "b", "c"])}, None, 3),
        ({"y": BLACK_AND_WHITE, "class_names": np.array(["a", "b"])}, "segmentation?ignore=255", 2),
    ],
)
def test_255_is_ignored_beside_other_classes_or_where_it_is_asked_for(tmp_path, arrays, task, n_classes):
    rows = {"x": X} if "y" in arrays else {"x_train": X, "x_test": X}
    np.savez(tmp_path / "a.npz", **rows, **arrays)
    data = open_data(f"npz:{tmp_path / 'a.npz'}", wanted=wanted_targets(task))
    assert len(data.classes) == n_classes and data.notes == ("pixels of value 255 in the masks are ignored",)
    assert max(int(y.max()) for _, y in data.train) == 255
    np.savez(tmp_path / "b.npz", x=X, y=BLACK_AND_WHITE)
    with pytest.raises(InputError, match="at least 2 classes, got 1 beside 255, which is ignored"):
        open_data(f"npz:{tmp_path / 'b.npz'}", wanted=wanted_targets("segmentation?ignore=255"))


def test_masks_name_what_they_ignore(tmp_path):
    masks = MASKS.copy()
    masks[:, 0] = 255
    data = opened(tmp_path, x=X, y=masks)
    assert len(data.classes) == 3 and "pixels of value 255 in the masks are ignored" in data.notes
    assert len(opened(tmp_path, x=X, y=masks, ignore=None).classes) == 256
    named = opened(tmp_path, x=X, y=MASKS, class_names=np.array(["sky", "road", "tree", "car"]))
    assert named.classes == ("sky", "road", "tree", "car")


@pytest.mark.parametrize(
    ("arrays", "wanted", "message"),
    [
        ({"x": X, "y": X[:, 0]}, "classes", r"expected labels y as ints .* got float32 \(50,\) such as .* regression"),
        ({"x": X, "y": np.array(["a", "b"] * 25)}, "values", "all, targets: expected numbers, got <U1"),
        ({"x": X, "y": np.where(X[:, 0] > 1, np.nan, 1.0)}, None, "expected finite values, got nan at index"),
        ({"x": X, "y": X[:, 0].astype(float) * 1e39}, None, "as float32: expected finite values, got"),
        ({"x": X, "y": FLAGS * 2}, "flags", "expected rows of 0 and 1, got 2"),
        ({"x": X, "y": X[:, 0]}, "flags", r"expected rows \(n, n_labels\) of 0 and 1, got float32 \(50,\)"),
        ({"x": X, "y": MASKS.astype(np.int64) - 1}, None, "expected values from 0 to 99999, or 255.*, got -1"),
        ({"x": X, "y": MASKS, "class_names": np.array(["a", "b"])}, None, "values from 0 to 1, or 255, .* got 2"),
        ({"x": X, "y": MASKS * 0}, None, "expected masks of at least 2 classes, got 1"),
        ({"x": X, "y": X.reshape(50, 3, 1)}, "masks", r"whole numbers \(n, height, width\), got float32 \(50, 3, 1\)"),
        ({"x_train": X, "y_train": MASKS, "x_test": X, "y_test": MASKS[:, 1:]}, None, "targets of one shape in every"),
        ({"x": X, "y": FLAGS, "class_names": np.array(["a", "b"])}, None, "expected 4 class_names, one a flag, got 2"),
        ({"x": X, "y": X[:40, 0]}, None, r"expected x of shape \(40, ...\), one sample per label"),
        (
            {"x": X, "y": X[:0, 0]},
            None,
            r"all, targets: expected \(n, ...\) of at least one sample, got float32 \(0,\)",
        ),
        ({"x": X[:0], "y": MASKS[:0]}, "values", "all, targets: expected .* of at least one sample, got "),
        (
            {"x": X, "y": np.float32(3)},
            None,
            r"all, targets: expected \(n, ...\) of at least one sample, got float32 \(\)",
        ),
        ({"x": X, "y": X[:, :0]}, None, r"all, targets: expected .* of at least one sample, got float32 \(50, 0\)"),
    ],
)
def test_targets_that_cannot_be_taken_are_refused(tmp_path, arrays, wanted, message):
    with pytest.raises(InputError, match=message):
        opened(tmp_path, wanted, **arrays)


TABLE = "a,b,y\n" + "".join(f"{i},{i * i % 7},{i / 4}\n" for i in range(20))


def test_a_column_of_decimal_numbers_is_a_value(tmp_path):
    (tmp_path / "t.csv").write_text(TABLE)
    spec = f"csv:{tmp_path / 't.csv'}?target=y"
    data = open_data(spec)
    assert data.targets.kind == "values" and data.classes == ()
    assert all(torch.equal(y, x[:, 0] / 4) for x, y in batches(data.train, 4))
    with pytest.raises(InputError, match="expected ints or strings as classes, got float64"):
        open_data(spec, wanted=WantedTargets("classes"))
    whole = open_data(f"csv:{tmp_path / 't.csv'}?target=b", wanted=WantedTargets("values"))
    assert whole.targets.kind == "values" and open_data(f"csv:{tmp_path / 't.csv'}?target=b").targets.kind == "classes"


def test_a_table_without_a_target_is_taken_where_none_is_wanted(tmp_path):
    (tmp_path / "t.csv").write_text(TABLE)
    data = open_data(f"csv:{tmp_path / 't.csv'}", wanted=WantedTargets("none"))
    assert data.targets.kind == "none" and data.feature_names == ("a", "b", "y")
    assert next(batches(data.val, 2))[1] is None
    with pytest.raises(InputError, match="target=COLUMN"):
        open_data(f"csv:{tmp_path / 't.csv'}")


OWN = """
import numpy as np, torch
from torch.utils.data import Dataset
from edgeprune.data.splits import measure
from edgeprune.records import DataSource

X = np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32)

class Samples(Dataset):
    def __init__(self, target):
        self.target = target
    def __len__(self):
        return len(X)
    def __getitem__(self, i):
        x = torch.from_numpy(X[i])
        made = {"none": None, "value": 2.5 * i, "values": X[i, :2] * 3, "boxes": {"boxes": torch.zeros(i % 3, 4)}}
        return (x, made[self.target]) if self.target != "alone" else (x,)

def source(target):
    split = Samples(target)
    norm = measure(split)
    return DataSource("own", split, split, split, (3,), (), norm, measured=norm)

def array():
    return X

def parts():
    return {"train": X, "val": X, "test": X}

def floats():
    return X, X[:, 0]

def ragged():
    class Ragged(Samples):
        def __getitem__(self, i):
            return torch.from_numpy(X[i]), torch.zeros(i + 1)
    split = Ragged("value")
    norm = measure(split)
    return DataSource("own", split, split, split, (3,), (), norm, measured=norm)
"""


@pytest.fixture
def own(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    return f"{tmp_path / 'own.py'}"


def test_what_a_factory_yields_may_have_any_targets(own):
    value = open_data(f"{own}:source?target='value'")
    assert value.targets == Targets("values", (), pytest.approx((2.5 * np.arange(30).std(),), rel=1e-6))
    assert next(batches(value.val, 3))[1].tolist() == [0, 2.5, 5]
    values = open_data(f"{own}:source?target='values'")
    assert values.targets.shape == (2,) and len(values.targets.spread) == 2
    boxes = open_data(f"{own}:source?target='boxes'")
    assert boxes.targets.kind == "other"
    assert [len(target["boxes"]) for target in next(batches(boxes.val, 4))[1]] == [0, 1, 2, 0]
    for name in ("source?target='none'", "source?target='alone'", "array", "parts"):
        data = open_data(f"{own}:{name}")
        assert data.targets.kind == "none" and next(batches(data.val, 3))[1] is None
    assert open_data(f"{own}:floats").targets.kind == "values"


def test_arrays_of_different_shapes_in_a_batch_are_refused(own):
    data = open_data(f"{own}:ragged")
    with pytest.raises(InputError, match=r"targets: expected one shape for all samples, got \(1,\) and \(2,\)"):
        next(batches(data.val, 3))
