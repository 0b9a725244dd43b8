"""Data with named inputs of any type: from arrays, from the user's samples, fitted to a network, into it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgeprune.commands.resolve import model_and_data
from edgeprune.commands.train import begun
from edgeprune.data import batches, first_inputs, open_data, order, prepared, read
from edgeprune.data.capturing import capture_named, captured
from edgeprune.data.fitting import limits_of, with_inputs_of, with_stated_inputs
from edgeprune.data.inputs import arguments_of, as_arrays, fed
from edgeprune.errors import InputError
from edgeprune.formats.info import info_from_dict, info_to_dict
from edgeprune.formats.recapture import with_free
from edgeprune.formats.save import save_checkpoint
from edgeprune.graph.capture import capture
from edgeprune.graph.specs import input_specs
from edgeprune.records import DataSource, InputInfo, ModelInfo, Normalization
from edgeprune.requests import CompressRequest, TrainRequest
from edgeprune.tasks.wanted import WantedTargets

N = 40
RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (N, 1, 4, 4), np.uint8)
TABLE = RNG.normal(size=(N, 3))
IDS = RNG.integers(0, 20, (N, 5))
IDS[0, :2] = 0, 19
AGE = RNG.normal(size=N).astype(np.float32)
Y = np.arange(N) % 2
CPU = torch.device("cpu")
FACTORY = """
import numpy as np, torch
from torch.utils.data import Dataset
from edgeprune.records import DataSource, Normalization

rng = np.random.default_rng(0)
inputs = {"ids": rng.integers(0, 20, (30, 5)), "table": rng.normal(size=(30, 3))}
y = np.arange(30) % 2

def whole():
    return inputs, y

def flat():
    return {**inputs, "y": y, "class_names": ["no", "yes"]}

def three():
    return {"train": (inputs, y), "val": ({k: v[:5] for k, v in inputs.items()}, y[:5]), "test": {**inputs, "y": y}}

class Rows(Dataset):
    def __init__(self, wrong=None):
        self.wrong = wrong
    def __len__(self):
        return 30
    def __getitem__(self, i):
        x = {"ids": inputs["ids"][i], "table": torch.tensor(inputs["table"][i])}
        if self.wrong == "missing" and i == 7:
            del x["table"]
        if self.wrong == "more" and i == 7:
            x["other"] = 1
        if self.wrong == "floats" and i == 7:
            x["ids"] = x["ids"] / 2
        if self.wrong == "shape" and i == 7:
            x["table"] = x["table"][:2]
        if self.wrong == "ids" and i == 7:
            x["ids"] = x["ids"] + 20
        if self.wrong == "tensor" and i == 7:
            return x["table"], int(y[i])
        return x, int(y[i])

def source(wrong=None):
    rows = Rows(wrong)
    return DataSource("rows", rows, Rows(), Rows(), (), ("no", "yes"), Normalization((0.0,), (1.0,)))
"""


class Three(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.rows = nn.Linear(16, 6), nn.Embedding(20, 6)
        self.table, self.head = nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, image: torch.Tensor, ids: torch.Tensor, scale: Any = None, table: Any = None) -> torch.Tensor:
        inner = self.image(image.flatten(1)) + self.rows(ids).mean(1)
        inner = inner if table is None else inner + self.table(table)
        return self.head(torch.relu(inner if scale is None else inner * scale))


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rows, self.head = nn.Embedding(20, 6), nn.Linear(6, 2)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        return self.head(self.rows(words).mean(1))


def saved(folder: Path, **arrays: Any) -> str:
    np.savez(folder / "a.npz", **arrays)
    return f"npz:{folder / 'a.npz'}"


@pytest.fixture
def three(tmp_path: Path) -> DataSource:
    return open_data(saved(tmp_path, image=IMAGE, ids=IDS, table=TABLE, y=Y))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "own.py"
    path.write_text(FACTORY)
    return path


def rows_of(data: DataSource) -> Iterator[tuple[dict[str, torch.Tensor], Any]]:
    for split in (data.train, data.val, data.test):
        for i in range(len(split)):  # type: ignore[arg-type]
            yield split[i]


# -- read -------------------------------------------------------------------------------------------------------------


def test_arrays_go_by_the_names_of_inputs(three: DataSource) -> None:
    assert three.input_shape == () and three.classes == ("0", "1") and three.byte_scale is None
    assert [(info.name, info.shape, info.dtype) for info in three.inputs] == [
        ("image", (1, 4, 4), "float32"),
        ("ids", (5,), "int64"),
        ("table", (3,), "float32"),
    ]
    assert [len(split) for split in (three.train, three.val, three.test)] == [24, 8, 8]
    assert (three.inputs[1].least, three.inputs[1].largest) == (IDS.min(), IDS.max())
    found = {tuple(x["ids"].tolist()): (x, y) for x, y in rows_of(three)}
    for image, ids, table, y in zip(IMAGE, IDS, TABLE, Y, strict=True):
        x, got = found[tuple(ids.tolist())]
        assert x["ids"].dtype == torch.int64 and x["image"].dtype == torch.float32 and got == y
        np.testing.assert_array_equal(x["image"].numpy(), image.astype(np.float32) * np.float32(1 / 255))
        np.testing.assert_array_equal(x["table"].numpy(), table.astype(np.float32))


def test_floats_are_measured_one_by_one_and_whole_numbers_not(three: DataSource) -> None:
    found = dict(three.normalization.inputs)
    assert set(found) == {"image", "table"} and three.normalization.of("ids") is None
    table = np.stack([three.train[i][0]["table"].numpy() for i in range(24)]).astype(np.float64)
    np.testing.assert_allclose(found["table"].mean, table.mean(0), atol=1e-6)
    np.testing.assert_allclose(found["table"].std, table.std(0), rtol=1e-5)
    [(x, _)] = batches(three.train, 100)
    taken = prepared(x, three.normalization, CPU, torch.float64)
    assert isinstance(taken, dict) and {name: value.dtype for name, value in taken.items()} == {
        "image": torch.float64, "ids": torch.int64, "table": torch.float64,
    }  # fmt: skip
    torch.testing.assert_close(taken["table"].mean(0), torch.zeros(3, dtype=torch.float64), atol=1e-6, rtol=0)
    assert torch.equal(taken["ids"], x["ids"])


def test_splits_scalars_and_several_types(tmp_path: Path) -> None:
    flags, wide = Y.astype(bool), IDS.astype(np.uint32)
    spec = saved(tmp_path, age_train=AGE, age_test=AGE[:5], flag_train=flags, flag_test=flags[:5], w_train=wide,
                 w_test=wide[:5], y_train=AGE, y_test=AGE[:5])  # fmt: skip
    data = open_data(spec)
    assert [(info.name, info.shape, info.dtype) for info in data.inputs] == [
        ("age", (), "float32"), ("flag", (), "bool"), ("w", (5,), "int64"),
    ]  # fmt: skip
    assert data.targets.kind == "values" and len(data.test) == 5 and len(data.train) + len(data.val) == N
    [(x, _)] = batches(data.train, 100)
    taken = prepared(x, data.normalization, CPU, torch.float32)
    assert isinstance(taken, dict) and abs(float(taken["age"].mean())) < 1e-5 and taken["flag"].dtype == torch.bool
    assert first_inputs(data.test, 2)["w"].shape == (2, 5)  # type: ignore[call-overload]


@pytest.mark.parametrize("name", ["whole", "flat", "three"])
def test_factories_yield_dicts(file: Path, name: str) -> None:
    data = open_data(f"{file}:{name}")
    assert [info.name for info in data.inputs] == ["ids", "table"] and data.targets.kind == "classes"
    assert data.classes == (("no", "yes") if name == "flat" else ("0", "1"))
    sizes = [len(split) for split in (data.train, data.val, data.test)]  # type: ignore[arg-type]
    assert sizes == ([30, 5, 30] if name == "three" else [18, 6, 6])
    assert next(rows_of(data))[0]["ids"].dtype == torch.int64


def test_samples_of_the_users_hold_inputs_by_name(file: Path) -> None:
    data = open_data(f"{file}:source")
    assert data.input_shape == () and [info.name for info in data.inputs] == ["ids", "table"]
    assert dict(data.normalization.inputs).keys() == {"table"}
    for workers in (0, 1):
        [(x, y)] = read(data.val, order(30, 64), workers)
        assert x["ids"].dtype == torch.int64 and x["table"].dtype == torch.float32 and y.tolist() == [0, 1] * 15


def test_an_x_stays_the_only_input(tmp_path: Path) -> None:
    spec = saved(tmp_path, x=TABLE, y=Y, extra=IDS)
    assert open_data(spec).inputs == () and open_data(spec).input_shape == (3,)
    named = open_data(spec, wanted=WantedTargets(inputs=("x", "extra")))
    assert [info.name for info in named.inputs] == ["x", "extra"]


@pytest.mark.parametrize(
    ("arrays", "fragment"),
    [
        (
            {"a": TABLE, "b": IDS[:-1], "y": Y},
            "as many samples of each input, got 40 of a, 39 of b, 40 of targ",
        ),
        ({"a": TABLE, "b": IDS, "y": Y[:-1]}, "got 40 of a, 40 of b, 39 of targets"),
        ({"a": TABLE, "a_train": TABLE, "y": Y}, "expected each input once, got a and a_train"),
        (
            {"a_train": TABLE, "b": IDS, "y_train": Y},
            "every array for all samples or for train, got b for all",
        ),
        (
            {"a_train": TABLE, "a_test": TABLE, "b_train": IDS},
            "same inputs in every split, got a, b in train and a in",
        ),
        (
            {"a_train": TABLE, "a_test": TABLE[:, :2], "y_train": Y, "y_test": Y},
            "(3,) as in train, got float32 (2,)",
        ),
        (
            {"a_train": IDS, "a_test": IDS / 2, "y_train": Y, "y_test": Y},
            "int64 (5,) as in train, got float32 (5,)",
        ),
        ({"a": TABLE, "b": np.array("text"), "y": Y}, "input b: expected real numbers, got <U4"),
        ({"a": TABLE, "b": np.array(3.0), "y": Y}, "input b: expected (n, ...), one row a sample"),
        ({"a": TABLE, "b": IDS[:, :0], "y": Y}, "input b: expected numbers, got none in shape (40, 0)"),
        ({"a": TABLE * np.nan, "y": Y}, "input a: expected finite values"),
        ({"a": np.full((N, 2), 2**64 - 1, np.uint64), "y": Y}, "input a: expected numbers that int64 holds"),
        (
            {"a": TABLE, "b": AGE, "y": Y, "feature_names": ["p", "q", "r"]},
            "expected the names of each input's features",
        ),
        ({"a_train": TABLE, "y_train": Y}, "expected all samples together, or train with val or test, got train"),
    ],
)
def test_arrays_that_cannot_be_used(tmp_path: Path, arrays: dict[str, Any], fragment: str) -> None:
    with pytest.raises(InputError, match=re.escape(fragment)):
        open_data(saved(tmp_path, **arrays))


# -- beside a network -------------------------------------------------------------------------------------------------


def test_a_network_says_order_and_types(three: DataSource) -> None:
    program = captured(Three(), three)
    assert [spec.name for spec in input_specs(program)] == ["image", "ids", "table"]
    assert limits_of(program) == {"ids": (0, 20)}
    stated = (InputInfo("ids", (5,), "int32"), InputInfo("table", (None,)), InputInfo("image", (1, 4, 4), "uint8"))
    data = with_stated_inputs(three, stated)
    x, _ = data.train[0]
    assert list(x) == ["ids", "table", "image"] and x["ids"].dtype == torch.int32
    assert x["image"].dtype == torch.uint8 and x["image"].max() > 1, "bytes stay whole where they are taken so"
    assert set(dict(data.normalization.inputs)) == {"table"}


class CalledX(nn.Sequential):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)


class CalledSignal(nn.Sequential):
    def forward(self, signal: torch.Tensor) -> torch.Tensor:
        return super().forward(signal)


class CalledCapital(nn.Sequential):
    def forward(self, X: torch.Tensor) -> torch.Tensor:  # noqa: N803 - as some call it
        return super().forward(X)


WHOLE, CUT = {"x": TABLE, "y": Y}, {"x_train": TABLE, "y_train": Y, "x_test": TABLE[:9], "y_test": Y[:9]}
LISTS = {"feature_names": ["p", "q", "r"], "class_names": ["no", "yes"]}


@pytest.mark.parametrize("called", [CalledX, CalledSignal, CalledCapital])
@pytest.mark.parametrize(
    "arrays",
    [
        WHOLE,
        WHOLE | LISTS,
        CUT | LISTS,
        {"X": TABLE, "y": Y} | LISTS,
        WHOLE | {"class_names": LISTS["class_names"]},
        WHOLE | {"weight": AGE},
        WHOLE | {"feature_names": LISTS["feature_names"], "ids": IDS},
    ],
    ids=["plain", "names", "splits", "capital", "classes", "more", "names-and-more"],
)
@pytest.mark.parametrize("form", ["npz", "factory"])
@pytest.mark.sampled(3)
def test_a_lone_x_is_read_from_the_record_as_it_was_for_training(
    tmp_path: Path, form: str, arrays: dict[str, Any], called: type[nn.Module]
) -> None:
    spec = saved(tmp_path, **arrays)
    if form == "factory":
        (tmp_path / "own.py").write_text(f"import numpy as np\ndef made():\n    return dict(np.load({spec[4:]!r}))\n")
        spec = f"{tmp_path / 'own.py'}:made"
    trained = open_data(spec)
    program = capture(called(nn.Linear(3, 4), nn.Linear(4, 2)).eval(), (torch.zeros(2, 3),))
    info = ModelInfo((3,), data=spec, classes=trained.classes, feature_names=trained.feature_names)
    save_checkpoint(tmp_path / "m.pt", program, info)
    for asked in (None, spec):
        _, data = model_and_data(CompressRequest(str(tmp_path / "m.pt"), data=asked, trust_recorded=True))
        assert data is not None and not data.inputs
        assert (data.feature_names, data.classes) == (trained.feature_names, trained.classes)
        for split, same in ((data.train, trained.train), (data.val, trained.val), (data.test, trained.test)):
            for (x, y), (wanted, label) in zip(batches(split, 100), batches(same, 100), strict=True):
                assert torch.equal(x, wanted) and torch.equal(y, label)


def test_graphs_and_modules_are_fed_alike(three: DataSource) -> None:
    module = Three().eval()
    program = captured(module, three)
    [(raw, _)] = batches(three.val, 100)
    x = prepared(raw, three.normalization, CPU, torch.float32)
    graph = program.module()
    torch.testing.assert_close(fed(graph, x), fed(module, x))
    assert [type(value) for value in arguments_of(graph, x)] == [torch.Tensor, torch.Tensor, type(None), torch.Tensor]
    swapped = dict(reversed(x.items()))  # type: ignore[union-attr]
    torch.testing.assert_close(fed(graph, swapped), fed(module, x))


def test_lengths_stay_free() -> None:
    program = capture_named(Words(), (InputInfo("words", (None,), "int64"),))
    [spec] = input_specs(program)
    assert spec.shape == (None, None) and program.module()(torch.ones(3, 11, dtype=torch.int64)).shape == (3, 2)


@pytest.mark.parametrize("name", ["words", "input"])
def test_a_free_length_is_asked_for_by_the_name_that_the_network_or_its_files_have(name: str) -> None:
    program = capture(Words(), (torch.ones(2, 5, dtype=torch.int64),), dynamic={name: (0, 1)})
    assert input_specs(program)[0].shape == (None, None)
    again = with_free(program, ModelInfo((5,)), None, False, {name: (0, 1)})
    assert input_specs(again)[0].shape == (None, None)
    with pytest.raises(InputError, match=r"dynamic: expected names of inputs \(words\), got other"):
        capture(Words(), (torch.ones(2, 5, dtype=torch.int64),), dynamic={"other": (0, 1)})


def test_a_lone_x_of_whole_numbers_is_the_input_that_takes_them(tmp_path: Path) -> None:
    data = open_data(saved(tmp_path, x=IDS, y=Y))
    program = capture_named(Words(), (InputInfo("words", (5,), "int64"),))
    fitted = with_inputs_of(data, program)
    x, _ = fitted.train[0]
    assert x["words"].dtype == torch.int64 and fitted.normalization.inputs == ()
    for wrong, got in ((IDS * 0 + 0.5, "got 0.5"), (IDS * 0 + 2**25, "got 3.35544e+07")):
        with pytest.raises(InputError, match=re.escape(f"for input words, in an array of that name, {got}")):
            with_inputs_of(open_data(saved(tmp_path, x=wrong, y=Y)), program)


def test_training_takes_a_lone_x_of_ids_without_a_word(tmp_path: Path) -> None:
    """Floats fail in the embedding; what is no ids is refused by what it says of them."""
    (tmp_path / "own.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.embed, self.head = nn.Embedding(64, 4), nn.Linear(4, 2)\n"
        "    def forward(self, words):\n"
        "        return self.head(self.embed(words).mean(1))\n"
        "net = Net\n"
    )
    request = TrainRequest(f"{tmp_path / 'own.py'}:net", saved(tmp_path, x=IDS, y=Y), str(tmp_path / "m.pt"))
    _, program, data, _, info = begun(request)
    assert [(one.name, one.dtype) for one in data.inputs] == [("words", "int64")]
    assert [spec.name for spec in input_specs(program)] == ["words"] and info.input_shape == ()
    with pytest.raises(InputError, match="FloatTensor"):
        begun(replace(request, data=saved(tmp_path, x=IDS + 0.5, y=Y)))


@pytest.mark.parametrize(
    ("arrays", "fragment"),
    [
        ({"image": IMAGE, "table": TABLE}, "expected inputs image, ids, table, got no ids"),
        ({"image": IMAGE, "ids": IDS, "table": TABLE, "b": IDS}, "expected inputs image, ids, table, got also b"),
        ({"image": IMAGE, "ids": IDS / 2, "table": TABLE}, "input ids: expected int64, got float32: whole numbers are"),
        ({"image": IMAGE, "ids": IDS[:, :4], "table": TABLE}, "input ids: expected shape (5), got (4)"),
        ({"image": IMAGE, "ids": IDS + 1, "table": TABLE}, "input ids: expected numbers from 0 to 19, as many rows as"),
        (
            {"image": IMAGE, "ids": IDS - 1, "table": TABLE},
            "from 0 to 19, as many rows as the network has for",
        ),
        ({"x": TABLE}, "expected inputs by name (image, ids, table), got one without a name"),
    ],
)
def test_inputs_that_a_network_does_not_take(
    tmp_path: Path, three: DataSource, arrays: dict[str, Any], fragment: str
) -> None:
    program = captured(Three(), three)
    with pytest.raises(InputError, match=re.escape(fragment)):
        with_inputs_of(open_data(saved(tmp_path, **arrays, y=Y)), program)


@pytest.mark.parametrize(
    ("wrong", "fragment"),
    [
        ("missing", "data rows, train, sample 7: expected inputs ids, table, got no table"),
        ("more", "sample 7: expected inputs ids, table, got also other"),
        ("floats", "sample 7, input ids: expected int64, got float64"),
        ("shape", "sample 7, input table: expected shape (3), got (2)"),
        ("tensor", "sample 7: expected inputs by name, got a Tensor"),
        ("ids", "sample 7, input ids: expected numbers from 0 to 19"),
    ],
)
def test_samples_are_checked_as_they_are_read(file: Path, wrong: str, fragment: str) -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows, self.table = nn.Embedding(20, 4), nn.Linear(3, 4)

        def forward(self, ids: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
            return self.rows(ids).mean(1) + self.table(table)

    program = captured(Pair(), open_data(f"{file}:whole"))
    with pytest.raises(InputError, match=re.escape(fragment)):
        list(batches(with_inputs_of(open_data(f"{file}:source?wrong='{wrong}'"), program).train, 64))


@pytest.mark.parametrize(
    ("infos", "fragment"),
    [
        (
            (InputInfo("image", (1, 4, 4)),),
            "image, ids as the network takes them (and scale, table where",
        ),
        ((InputInfo("image", (1, 4, 4)), InputInfo("ids", (5,), "int64"), InputInfo("b", ())), "got image, ids, b"),
    ],
)
def test_a_module_says_what_it_takes(infos: tuple[InputInfo, ...], fragment: str) -> None:
    with pytest.raises(InputError, match=re.escape(fragment)):
        capture_named(Three(), infos)


def test_normalisations_by_name_are_kept_in_files() -> None:
    own = Normalization(
        (0.0,), (1.0,), (("image", Normalization((0.5,), (0.25,))), ("t", Normalization((1.0, 2.0), (3.0,))))
    )
    plain = info_to_dict(ModelInfo((), normalization=own))
    assert info_from_dict(plain).normalization == own
    assert plain["normalization"]["inputs"]["image"] == {"mean": [0.5], "std": [0.25]}
    assert "inputs" not in info_to_dict(ModelInfo((3,), normalization=Normalization((0.0,), (1.0,))))["normalization"]
    for wrong in ({"a": {"mean": [0.0], "std": [0.0]}}, [1], {"a": 3}):
        with pytest.raises(InputError, match="model info: expected"):
            info_from_dict({**plain, "normalization": {"mean": [0.0], "std": [1.0], "inputs": wrong}})


def test_inputs_that_no_runtime_takes_are_refused() -> None:
    halved = torch.ones(2, 3, dtype=torch.float16)
    assert as_arrays({"x": halved})["x"].dtype == np.float16 and as_arrays(halved).shape == (2, 3)
    for inputs in (halved.bfloat16(), {"ids": torch.ones(2), "x": halved.bfloat16()}):
        with pytest.raises(InputError, match=r"a type that numpy has, got bfloat16: convert .* model.float\(\)"):
            as_arrays(inputs)
