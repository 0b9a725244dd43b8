"""Labels as people write them, the classes that they stand for, and those of a model that knows others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from edgeprune.data import batches, check_fits, open_data
from edgeprune.data.labels import with_classes_of
from edgeprune.data.places import found_from
from edgeprune.data.splits import LazySplit
from edgeprune.errors import InputError
from edgeprune.records import ModelInfo
from edgeprune.tasks.classification import CLASSIFICATION
from edgeprune.tasks.registry import wanted_targets

X = np.random.default_rng(0).normal(size=(50, 3))
Y = np.arange(50) % 5


@pytest.mark.parametrize(
    ("labels", "classes", "told"),
    [
        (Y + 1, "12345", "the classes are the labels that occur: 1, 2, 3, 4, 5"),
        (Y * 2 % 6, "024", "the classes are the labels that occur: 0, 2, 4"),
        (Y + 2**40, [str(2**40 + k) for k in range(5)], "the classes are"),
        (Y % 2 * 2 - 1, ("-1", "1"), "the classes are the labels that occur: -1, 1"),
        (Y > 2, ("False", "True"), ""),
        (np.array(list("ebcda"))[Y], "abcde", ""),
        (np.array(list("ebcda")).astype("S1")[Y], "abcde", ""),
        (np.eye(5, dtype=np.float32)[Y], "01234", "labels are one-hot rows of 5"),
        (Y.astype(np.uint64), "01234", ""),
    ],
)
def test_npz_labels_are_the_values_that_occur(tmp_path, labels, classes, told):
    np.savez(tmp_path / "a.npz", x=X, y=labels)
    data = open_data(f"npz:{tmp_path / 'a.npz'}")
    assert data.classes == tuple(classes)
    assert told in " ".join(data.notes) and bool(data.notes) is bool(told)
    names = labels.argmax(1) if labels.ndim == 2 else labels
    wanted = {row.tobytes(): name for row, name in zip(X.astype(np.float32), names, strict=True)}
    for x, y in data.test:
        name = wanted[x.numpy().tobytes()]
        assert data.classes[y] == (name.decode() if isinstance(name, bytes) else str(name))


@pytest.mark.parametrize("kind", ["npz", "csv"])
@pytest.mark.parametrize(
    ("targets", "npz_refused", "csv_refused"),
    [
        (np.arange(50) * 1000, "the val split is empty", "the val split is empty"),
        (np.arange(50) - 20, "expected labels from 0, got -20 at index 0", "the val split is empty"),
        (np.arange(50) // 5, "the model has 1 classes, got 10", "the model has 1 classes, got 10"),
    ],
)
def test_whole_numbers_that_may_be_values_are_told_of_a_regression(tmp_path, kind, targets, npz_refused, csv_refused):
    np.savez(tmp_path / "a.npz", x=X, y=targets)
    rows = np.column_stack([X, targets]).tolist()
    (tmp_path / "a.csv").write_text("a,b,c,y\n" + "".join(f"{a},{b},{c},{y:.0f}\n" for a, b, c, y in rows))
    spec = f"npz:{tmp_path / 'a.npz'}" if kind == "npz" else f"csv:{tmp_path / 'a.csv'}?target=y"
    with pytest.raises(InputError, match=npz_refused if kind == "npz" else csv_refused) as refusal:
        check_fits(open_data(spec), ModelInfo((3,)), 1)
    told = f"whole numbers were read as {len(np.unique(targets))} classes: if they are values, give --task regression"
    assert told in str(refusal.value)
    assert open_data(spec, wanted=wanted_targets("regression")).targets.kind == "values"


@pytest.mark.parametrize("labels", [np.array([f"id{k}" for k in range(50)]), np.zeros(50, bool)])
def test_what_is_no_whole_number_is_not_told_of_a_regression(tmp_path, labels):
    np.savez(tmp_path / "a.npz", x=X, y=labels)
    with pytest.raises(InputError) as refusal:
        open_data(f"npz:{tmp_path / 'a.npz'}")
    assert "regression" not in str(refusal.value)


def test_splits_share_their_classes(tmp_path):
    np.savez(tmp_path / "a.npz", x_train=X, y_train=Y + 1, x_test=X[:4], y_test=np.array([5, 5, 3, 3]))
    data = open_data(f"npz:{tmp_path / 'a.npz'}")
    assert data.classes == tuple("12345") and [y for _, y in data.test] == [4, 4, 2, 2]


@pytest.mark.parametrize(
    ("classes", "n_outputs", "numbers", "told"),
    [
        ((), 3, [0, 1, 2], ""),
        ((), 8, [1, 3, 7], "numbers of the network's 8 outputs"),
        ((), 7, [0, 1, 2], ""),
        ((), 2**31 - 1, [0, 1, 2], ""),
        (("7", "5", "1", "3"), 4, [2, 3, 0], "by their names"),
        (("1", "3", "7"), 3, [0, 1, 2], ""),
        (("a", "b", "c"), 3, [0, 1, 2], ""),
    ],
)
@pytest.mark.parametrize("lazy", [False, True])
def test_labels_follow_the_classes_of_the_model(tmp_path, classes, n_outputs, numbers, told, lazy):
    labels = np.array([1, 3, 7])[np.arange(48) % 3]
    np.savez(tmp_path / "a.npz", x=X[:48], y=labels)
    data = open_data(f"npz:{tmp_path / 'a.npz'}")
    if lazy:
        data = replace(data, test=LazySplit(data.test, np.arange(len(data.test))))
    fitted = with_classes_of(data, classes, n_outputs)
    assert {int(y) for _, y in fitted.test} == set(numbers)
    for (x, before), (same, after) in zip(data.test, fitted.test, strict=True):
        assert torch.equal(x, same) and after == numbers[before]
    assert told in " ".join(fitted.notes[len(data.notes) :]) and (fitted is data) is not bool(told)
    assert len(fitted.classes) == (len(classes) or (8 if told else 3))


@pytest.mark.parametrize("y", [torch.arange(4) / 2, torch.zeros(4, 2, dtype=torch.int64)])
def test_targets_that_are_no_classes_are_refused(y):
    x = torch.zeros(4, 3)
    samples = [(x[i], y[i]) for i in range(4)]
    for split in (TensorDataset(x, y), samples, LazySplit(samples, np.arange(4))):
        [(_, targets)] = batches(split, 4)
        with pytest.raises(InputError, match="labels: expected one int a sample, its class, got"):
            CLASSIFICATION.targets(targets)
    [(_, labels)] = batches(TensorDataset(x, torch.arange(4)[:, None]), 4)
    assert CLASSIFICATION.targets(labels).tolist() == [0, 1, 2, 3]


# names in arrays ------------------------------------------------------------------------------------------------------


def test_names_of_classes_and_features_stand_beside_the_arrays(tmp_path):
    np.savez(tmp_path / "a.npz", x=X, y=Y, class_names=list("abcde"), feature_names=np.array(["u", "v", "wé"]))
    data = open_data(f"npz:{tmp_path / 'a.npz'}")
    assert data.classes == tuple("abcde") and data.feature_names == ("u", "v", "wé")
    np.savez(tmp_path / "a.npz", x=X, y=Y % 2 + 1, class_names=list("abcde"))
    data = open_data(f"npz:{tmp_path / 'a.npz'}")  # names say which classes there are, though some do not occur
    assert data.classes == tuple("abcde") and {y for _, y in data.train} == {1, 2}


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"class_names": list("abcd")}, "expected labels from 0 to 3, got 4"),
        ({"class_names": list("abcda")}, "expected each of class_names once, got 'a' more often"),
        ({"feature_names": ["a", "b"]}, "expected 3 feature names for inputs (3,), got 2"),
        ({"feature_names": [1, 2, 3]}, "expected feature_names as texts (n,), got int64 (3,)"),
        ({"feature_names": np.array(["a", "b", "c"], object)}, "feature_names: expected an array of numbers or texts"),
        (
            {"y": np.array(list("abcde"))[Y], "class_names": list("abcde")},
            "expected labels as ints, numbers of the class",
        ),
    ],
)
def test_names_that_do_not_fit_are_refused(tmp_path, arrays, said):
    np.savez(tmp_path / "a.npz", **{"x": X, "y": Y, **arrays})
    with pytest.raises(InputError) as caught:
        open_data(f"npz:{tmp_path / 'a.npz'}")
    assert said in str(caught.value)


@pytest.mark.parametrize("made", ["{'x': x, 'y': y, **names}", "{'train': (x, y), 'test': (x, y), **names}"])
def test_a_factory_gives_names_too(tmp_path, made):
    (tmp_path / "own.py").write_text(
        "import numpy as np\nx, y = np.random.rand(50, 3), np.arange(50) % 2\n"
        "names = {'feature_names': ['a', 'b', 'c'], 'class_names': ['no', 'yes']}\n"
        f"def make(): return {made}\n"
    )
    data = open_data(f"{tmp_path / 'own.py'}:make")
    assert data.feature_names == tuple("abc") and data.classes == ("no", "yes")


# recorded places ------------------------------------------------------------------------------------------------------


def test_recorded_data_are_found_from_another_folder(tmp_path, monkeypatch):
    model = tmp_path / "project" / "runs" / "a" / "slim.pt2"
    model.parent.mkdir(parents=True)
    (tmp_path / "project" / "data.csv").touch()
    (tmp_path / "far.csv").touch()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    found = f"csv:{tmp_path}/project/data.csv?target=y&sep=;"
    assert found_from("csv:data.csv?target=y&sep=;", model) == found
    for spec in (
        "npz:far.csv",
        "npz:../data.csv",
        "npz:/data.csv",
        "npz:~/data.csv",
        "digits",
        "own.py:make",
        "npz:no",
    ):
        assert found_from(spec, model) == spec
    monkeypatch.chdir(model.parent)
    assert found_from("csv:data.csv", "slim.pt2") == f"csv:{tmp_path}/project/data.csv"
    (model.parent / "data.csv").touch()
    assert found_from("csv:data.csv", model) == "csv:data.csv"  # what is here goes first
