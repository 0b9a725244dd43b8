"""Data sets that Hugging Face's library has saved: its files are read, nothing that they name is fetched or run."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgeprune.data import open_data, rows
from edgeprune.data.rows import RowsSplit
from edgeprune.errors import InputError
from edgeprune.tasks.wanted import WantedTargets

arrow = pytest.importorskip("pyarrow", reason="in the extra arrow, whose wheel of 55 MB is not in dev")

IMAGE = {"_type": "Image"}
LABEL = {"names": ["cat", "dog"], "_type": "ClassLabel"}


def value(dtype: str) -> dict[str, Any]:
    return {"dtype": dtype, "_type": "Value"}


def picture(level: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (6, 4), (level, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


def saved(folder: Path, features: dict[str, Any], *shards: dict[str, Any]) -> Path:
    """As `save_to_disk` of datasets 5.2 lays it out."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"data-{number:05d}-of-{len(shards):05d}.arrow" for number in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        table = arrow.table(shard)
        with arrow.OSFile(str(folder / name), "wb") as file, arrow.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=7)
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}), encoding="utf-8")
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "x", "_format_type": None}
    (folder / "state.json").write_text(json.dumps(state), encoding="utf-8")
    return folder


def images(start: int, stop: int) -> dict[str, Any]:
    held = [{"bytes": picture(number), "path": None} for number in range(start, stop)]
    return {"image": held, "label": [number % 2 for number in range(start, stop)]}


def refused(spec: str, *said: str, wanted: WantedTargets | None = None) -> None:
    with pytest.raises(InputError) as caught:
        open_data(spec, wanted=wanted)
    text = str(caught.value)
    assert all(part in text for part in said) and "\n" not in text, text


def test_images_are_read_where_they_lie(tmp_path: Path) -> None:
    saved(tmp_path, {"image": IMAGE, "label": LABEL}, images(0, 25), images(25, 60))
    data = open_data(f"hf:{tmp_path}?height=4&width=6")
    assert data.classes == ("cat", "dog") and data.input_shape == (3, 4, 6) and data.byte_scale == 1 / 255
    assert data.preparation["width"] == 6
    found = [split[i] for split in (data.train, data.val, data.test) for i in range(len(split))]
    levels = [round(float(x[0].max()) * 255) for x, _ in found]
    assert sorted(levels) == list(range(60)) and [y for _, y in found] == [level % 2 for level in levels]
    assert [len(split) for split in (data.train, data.val, data.test)] == [36, 12, 12]


def test_splits_are_those_that_were_saved(tmp_path: Path) -> None:
    features = {"image": IMAGE, "label": LABEL}
    for name, bounds in (("train", (0, 40)), ("validation", (40, 46)), ("test", (46, 54))):
        saved(tmp_path / name, features, images(*bounds))
    for names, sizes in ((["train", "validation", "test"], [40, 6, 8]), (["train", "test"], [36, 4, 8])):
        (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": names}), encoding="utf-8")
        data = open_data(f"hf:{tmp_path}?size=4")
        assert [len(split) for split in (data.train, data.val, data.test)] == sizes
        assert round(float(data.test[0][0].max()) * 255) == 46


def test_numbers_and_lists_are_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.arange(150, dtype=np.float32).reshape(30, 5)
    features = {
        "a": value("float32"),
        "b": value("int64"),
        "kind": value("string"),
        "v": {"feature": value("float32"), "length": 5, "_type": "List"},
    }
    columns = {"a": np.arange(30) / 2, "b": np.arange(30), "kind": ["x", "y"] * 15, "v": vectors.tolist()}
    saved(tmp_path, features, columns)
    data = open_data(f"hf:{tmp_path}?input=v&target=kind")
    assert data.classes == ("x", "y") and data.input_shape == (5,)
    assert all(x[0].item() // 5 % 2 == y for x, y in map(data.train.__getitem__, range(len(data.train))))
    monkeypatch.setattr(rows, "HELD_BYTES", 8)
    on_disk = open_data(f"hf:{tmp_path}?input=v&target=kind")
    assert isinstance(on_disk.train, RowsSplit)
    assert [on_disk.test[i][0].tolist() for i in range(6)] == [data.test[i][0].tolist() for i in range(6)]
    table = open_data(f"hf:{saved(tmp_path / 't', dict(list(features.items())[:3]), columns)}?target=kind")
    assert table.feature_names == ("a", "b") and table.input_shape == (2,)
    assert open_data(f"hf:{tmp_path}?input=b&target=a").targets.kind == "values"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("", "expected ?target=COLUMN with one of a, kind, v; got no column of class labels"),
        ("?target=b", "expected ?target= with one of a, kind, v; got 'b'"),
        ("?target=a", "numbers alone beside the target, got kind, v; ?input=COLUMN names one"),
        ("?target=a&input=kind", "expected ?input= with a column of images or numbers"),
        ("?target=v&input=a", "expected ints or texts as classes, got list"),
        ("?target=a&input=v", "expected 5 numbers in each row, got 4"),
    ],
)
def test_columns_that_do_not_fit_are_refused(tmp_path: Path, options: str, said: str) -> None:
    features = {"a": value("float32"), "kind": value("string"), "v": {"feature": value("float32"), "_type": "List"}}
    lists = [[1.0] * 5] * 29 + [[1.0] * 4]
    saved(tmp_path, features, {"a": np.arange(30.0), "kind": ["x"] * 30, "v": lists})
    refused(f"hf:{tmp_path}{options}", said)


def test_nothing_that_a_file_names_is_opened(tmp_path: Path) -> None:
    features = {"image": IMAGE, "label": LABEL}
    for place in ("/etc/passwd", "https://localhost/x.png"):
        held = [{"bytes": None, "path": place}] * 30
        saved(tmp_path, features, {"image": held, "label": [0, 1] * 15})
        refused(f"hf:{tmp_path}", "row 1, column 'image': expected the bytes of an image", "got a path or address")
    saved(tmp_path, features, images(0, 30))
    state = {"_data_files": [{"filename": "../other.arrow"}]}
    (tmp_path / "state.json").write_text(json.dumps(state), encoding="utf-8")
    refused(f"hf:{tmp_path}", "expected names of files beside it, got ../other.arrow")


def test_damaged_folders_are_refused_in_one_line(tmp_path: Path) -> None:
    refused(f"hf:{tmp_path / 'none'}", "expected a folder that save_to_disk made")
    refused(f"hf:{tmp_path}", "dataset_info.json", "got nothing there")
    features = {"image": IMAGE, "label": LABEL}
    wrong = images(0, 30)
    wrong["label"][4] = 2
    refused(f"hf:{saved(tmp_path, features, wrong)}", "expected labels from 0 to 1, got 2")
    refused(
        f"hf:{saved(tmp_path, {**features, 'label': {'_type': 'ClassLabel', 'names': 'ab'}}, images(0, 9))}", "names"
    )
    refused(f"hf:{saved(tmp_path, features, {'label': [0, 1]})}", "dataset_info.json names, got no image")
    path = next(saved(tmp_path, features, images(0, 30)).glob("*.arrow"))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused(f"hf:{tmp_path}", str(path), "cannot be read as a table")
    rng = np.random.default_rng(0)
    for _ in range(40):
        damaged = bytearray(whole)
        for place in rng.integers(4, len(whole), 5):
            damaged[place] = rng.integers(0, 256)
        path.write_bytes(damaged)
        try:
            assert len(open_data(f"hf:{tmp_path}?size=4").train) > 0
        except InputError as error:
            assert "\n" not in str(error)
