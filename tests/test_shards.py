"""Tar shards: what is read from where, how samples are split, and hostile or damaged shards refused in one line."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edgeprune.data import batches, open_data
from edgeprune.data.shards import shards_of
from edgeprune.data.splits import by_hash
from edgeprune.data.tar import members
from edgeprune.data.texts import Texts
from edgeprune.errors import InputError
from edgeprune.tasks.wanted import WantedTargets
from edgeprune.tasks.weights import class_counts

N_MANY = 1_000_000
MEGABYTES = 150  # for the places and targets of a million samples, 36 bytes each, and what numpy makes of them


def picture(level: int, size: tuple[int, int] = (6, 4)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, (level, 0, 255 - level)).save(stream, "PNG")
    return stream.getvalue()


def shard(path: Path, files: Iterable[tuple[str, bytes]], kind: int = tarfile.GNU_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=kind) as archive:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def pairs(n: int, start: int = 0, n_classes: int = 3) -> list[tuple[str, bytes]]:
    files = []
    for number in range(start, start + n):
        label = number % n_classes
        files += [(f"a/{number:05d}.png", picture(20 * label)), (f"a/{number:05d}.cls", str(label).encode())]
    return files


def refused(spec: str, *said: str, wanted: WantedTargets | None = None) -> None:
    with pytest.raises(InputError) as caught:
        open_data(spec, wanted=wanted)
    text = str(caught.value)
    assert all(part in text for part in said) and "\n" not in text, text


def everything(data) -> list[tuple[float, int]]:
    return [
        (float(x[0].max()), y)
        for split in (data.train, data.val, data.test)
        for x, y in map(split.__getitem__, range(len(split)))
    ]


# -- what is read ------------------------------------------------------------------------------------------------------


def test_images_and_classes_are_read_from_several_shards(tmp_path: Path) -> None:
    for number in range(3):
        shard(tmp_path / f"d-{number:03d}.tar", pairs(20, 20 * number))
    data = open_data(f"webdataset:{tmp_path}/d-{{000..002}}.tar?height=4&width=6")
    assert data.classes == ("0", "1", "2") and data.input_shape == (3, 4, 6)
    found = everything(data)
    assert len(found) == 60
    assert all(round(level * 255) == 20 * label for level, label in found)
    assert sum(class_counts(data)) == len(data.train)
    assert data.byte_scale == 1 / 255 and data.preparation["height"] == 4
    [(x, y)] = list(batches(data.train, len(data.train)))
    assert x.shape == (len(data.train), 3, 4, 6) and y.dtype == torch.int64


def test_a_writer_of_webdataset_makes_shards_that_are_read(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset", reason="in the extra dev")
    with webdataset.ShardWriter(str(tmp_path / "w-%03d.tar"), maxcount=25, verbose=0) as writer:
        for number in range(60):
            image = np.full((4, 4, 3), number, np.uint8)
            writer.write(
                {"__key__": f"s{number:04d}", "png": image, "cls": number % 2, "json": {"kind": "ab"[number % 2]}}
            )
    data = open_data(f"webdataset:{tmp_path}/w-*.tar?size=4")
    named = open_data(f"webdataset:{tmp_path}?size=4&target=json:kind")
    assert data.classes == ("0", "1") and named.classes == ("a", "b")
    assert everything(data) == everything(named)
    assert sorted(round(level * 255) for level, _ in everything(data)) == list(range(60))


def test_long_names_of_both_formats_are_names(tmp_path: Path) -> None:
    long = "b/" + "x" * 150
    for kind in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path = shard(tmp_path / f"{kind}.tar", [(f"{long}.png", picture(1)), (f"{long}ü.cls", b"0")], kind)
        assert [member.name for member in members(path)] == [f"{long}.png", f"{long}ü.cls"]


def test_patterns_name_shards_in_their_order(tmp_path: Path) -> None:
    for name in ("t-8.tar", "t-9.tar", "t-10.tar", "u-08.tar"):
        shard(tmp_path / name, pairs(1))
    assert [path.name for path in shards_of(f"{tmp_path}/t-{{8..10}}.tar")] == ["t-8.tar", "t-9.tar", "t-10.tar"]
    assert [path.name for path in shards_of(f"{tmp_path}/{{u-08,t-9}}.tar")] == ["u-08.tar", "t-9.tar"]
    assert len(shards_of(str(tmp_path))) == 4
    for pattern, said in (
        ("pipe:cat x", "on this machine"),
        ("https://x/a.tar", "on this machine"),
        ("none-*", "nothing there"),
    ):
        with pytest.raises(InputError, match=said):
            shards_of(pattern)
    with pytest.raises(InputError, match="at most 100,000 shards"):
        shards_of(f"{tmp_path}/t-{{0..999999}}{{0..999999}}.tar")


# -- splits ------------------------------------------------------------------------------------------------------------


def test_a_sample_stays_in_its_split_when_shards_are_added(tmp_path: Path) -> None:
    shard(tmp_path / "a.tar", pairs(200, n_classes=2))
    before = open_data(f"webdataset:{tmp_path}?size=4").test.index
    shard(tmp_path / "b.tar", pairs(100, n_classes=2))
    data = open_data(f"webdataset:{tmp_path}?size=4")
    assert [index for index in data.test.index if index < 200] == list(before)
    assert 300 * 0.1 < len(data.test) < 300 * 0.3 and len(data.train) > 300 * 0.5


def test_a_class_of_one_sample_is_trained_on() -> None:
    labels = np.array([0] * 50 + [1])
    hashes = np.linspace(0, 2**64 - 2**60, 51).astype(np.uint64)
    train, val, test = by_hash(labels, hashes, (0.6, 0.2, 0.2))
    assert 50 in train and sorted([*train, *val, *test]) == list(range(51))


def test_shards_of_val_and_test_are_named_or_lie_in_folders(tmp_path: Path) -> None:
    for part, n in (("train", 30), ("val", 6), ("test", 9)):
        shard(tmp_path / part / f"{part}-0.tar", pairs(n))
        os.link(tmp_path / part / f"{part}-0.tar", tmp_path / f"{part}-0.tar")
    for spec in (f"{tmp_path}?size=4", f"{tmp_path}/train-*.tar?size=4&val=val-*.tar&test=test-0.tar"):
        data = open_data(f"webdataset:{spec}")
        assert [len(split) for split in (data.train, data.val, data.test)] == [30, 6, 9]
    refused(f"webdataset:{tmp_path}?val=../x.tar", "below the folder of the others")
    shard(tmp_path / "o-0.tar", pairs(6, n_classes=4))
    refused(f"webdataset:{tmp_path}/train-0.tar?size=4&test=o-0.tar", "of every class to train on, got none of '3'")


# -- targets -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "kind", "classes", "values"),
    [
        (["10", "9", "10"], None, ("9", "10"), [1, 0, 1]),
        (["b", "a", "b"], None, ("a", "b"), [1, 0, 1]),
        (["1", "x", "0.5"], None, ("0.5", "1", "x"), [1, 2, 0]),
        (["0.5", "2"], None, (), [0.5, 2]),
        (["3", "2"], "values", (), [3, 2]),
    ],
)  # fmt: skip
def test_texts_are_classes_or_values_as_in_a_table(texts, kind, classes, values) -> None:
    held = Texts(WantedTargets(kind), "d")
    for text in texts:
        held.append(text, "s")
    found = held.found()
    assert found.classes == classes and found.values["all"].tolist() == values


def test_texts_that_are_not_what_is_wanted_are_refused() -> None:
    held = Texts(WantedTargets("values"), "d")
    held.append("1", "s")
    with pytest.raises(InputError, match=r"s: expected a number as target, got 'x'"):
        held.append("x", "s")
    held = Texts(WantedTargets("classes"), "d")
    held.append("0.5", "s")
    with pytest.raises(InputError, match="whole numbers or texts as classes, got decimal"):
        held.found()
    many = Texts(WantedTargets(), "d")
    for number in range(100_002):
        many.append(f"{number}.5", "s")
    assert many.found().info.kind == "values"


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_a_shard_that_is_cut_off_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    whole = shard(tmp_path / "w.tar", pairs(4)).read_bytes()
    end = next(i for i in range(0, len(whole), 512) if not any(whole[i:]))
    for length in (end, end - 512, end - 700, 1024 + 100, 512 + 30, 100):
        path = tmp_path / "cut.tar"
        path.write_bytes(whole[:length])
        refused(f"webdataset:{path}", str(path), "expected a whole tar shard, got one that is cut off")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_what_is_no_file_in_a_shard_is_refused(tmp_path: Path, kind: bytes) -> None:
    path = shard(tmp_path / "s.tar", pairs(2))
    with tarfile.open(path, "a") as archive:
        info = tarfile.TarInfo("a/9.png")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
    refused(f"webdataset:{path}", "expected files in a tar shard, got", "a/9.png")


def test_samples_that_lack_something_are_told_by_shard_and_name(tmp_path: Path) -> None:
    path = shard(tmp_path / "s.tar", [*pairs(3), ("a/x.png", picture(0))])
    refused(f"webdataset:{path}", str(path), "sample 'a/x': expected png and cls, got png")
    path = shard(tmp_path / "t.tar", [*pairs(3), ("a/x.cls", b"0")])
    refused(f"webdataset:{path}", "sample 'a/x': expected an image and cls, got cls")
    path = shard(tmp_path / "u.tar", [*pairs(3), ("a/x.png", b"no image"), ("a/x.cls", b"0")])
    refused(f"webdataset:{path}", str(path), "'a/x.png': expected an image")
    path = shard(tmp_path / "v.tar", [("a/x.png", picture(0)), ("a/x.png", picture(0))])
    refused(f"webdataset:{path}", "each file of a sample once")
    path = shard(tmp_path / "j.tar", [("x.png", picture(0)), ("x.json", b'{"kind": [1]}')])
    refused(f"webdataset:{path}?target=json:kind", "'x.json': expected a text or number at 'kind', got [1]")


@pytest.mark.parametrize("option", ["target=pyd", "input=npy", "input=pth", "target=x.pickle"])
def test_what_would_be_unpickled_is_refused(tmp_path: Path, option: str) -> None:
    refused(f"webdataset:{shard(tmp_path / 's.tar', pairs(3))}?{option}", "which may need unpickling")


def test_packed_and_other_files_and_huge_sizes_are_refused(tmp_path: Path) -> None:
    packed = tmp_path / "p.tar"
    with tarfile.open(packed, "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a.png"))
    packed.write_bytes(packed.read_bytes().ljust(512, b"\0"))
    refused(f"webdataset:{packed}", "got a compressed one")
    (tmp_path / "n.tar").write_bytes(b"x" * 2048)
    refused(f"webdataset:{tmp_path / 'n.tar'}", "expected a plain tar shard")
    info = tarfile.TarInfo("a/b.png")
    info.size = 2**40
    (tmp_path / "h.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
    refused(f"webdataset:{tmp_path / 'h.tar'}", "cut off within 'a/b.png'")
    info = tarfile.TarInfo("././@LongLink")
    info.size, info.type = 2**20, tarfile.GNUTYPE_LONGNAME
    (tmp_path / "l.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(2**20 + 2048))
    refused(f"webdataset:{tmp_path / 'l.tar'}", "names of at most 65,536 bytes")


# -- very many ---------------------------------------------------------------------------------------------------------

_OPEN = """
import resource, sys
import PIL.Image, torch
from edgeprune.data import open_data, order, read
open_data("digits")
few = open_data(f"webdataset:{sys.argv[1]}/few.tar?size=4")
for _ in read(few.train, order(len(few.train), 500, shuffle=True)):
    pass
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
data = open_data(f"webdataset:{sys.argv[1]}/many-*.tar?size=4")
n = 0
for x, y in read(data.train, order(len(data.train), 500, shuffle=True)[:100]):
    n += len(y)
total = len(data.train) + len(data.val) + len(data.test)
print(total, n, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.sweep
def test_a_million_samples_take_little_memory(tmp_path: Path) -> None:
    first = shard(tmp_path / "many-0.tar", pairs(N_MANY // 20))
    for number in range(1, 20):
        os.link(first, tmp_path / f"many-{number}.tar")
    shard(tmp_path / "few.tar", pairs(2000))
    run = subprocess.run([sys.executable, "-c", _OPEN, str(tmp_path)], capture_output=True, text=True, check=True)
    total, n_read, kilobytes = map(int, run.stdout.split())
    assert (total, n_read) == (N_MANY, 50_000)
    assert kilobytes < MEGABYTES * 1024
