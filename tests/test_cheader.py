"""The C header of features.json: compiled as strict C99, it makes of raw inputs what gives PyTorch's answers."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from edgeprune import analyze, cut, plan, vocabularies
from edgeprune.data import normalize
from edgeprune.errors import InputError
from edgeprune.export.cheader import header_text, write_header
from edgeprune.export.contracts import write_contracts
from edgeprune.graph.capture import Program, capture
from edgeprune.graph.names import CUT_ID
from edgeprune.records import InputInfo, ModelInfo, Normalization
from tests.token_nets import GOOD, KEEP, example

GCC = shutil.which("gcc") or shutil.which("cc")
STRICT = ("-std=c99", "-Wall", "-Wextra", "-pedantic", "-Werror", "-O1")
# Reads raw inputs from stdin, writes what the network takes to stdout, and every name to stderr, by its bytes.
FIRMWARE = """
#include <stdio.h>
#include "edgeprune_features.h"
#include "edgeprune_features.h"
#ifndef EDGEPRUNE_N_BLOCKS
#define EDGEPRUNE_N_BLOCKS 1
#endif
int main(void)
{
    static edgeprune_raw raw[EDGEPRUNE_RAW_SIZE];
    static edgeprune_feature features[EDGEPRUNE_N_BLOCKS * EDGEPRUNE_N_FEATURES * EDGEPRUNE_FEATURE_SIZE];
    size_t i;
    while (fread(raw, sizeof raw, 1, stdin) == 1) {
        edgeprune_features(raw, features);
        fwrite(features, sizeof features, 1, stdout);
    }
    for (i = 0; i < EDGEPRUNE_N_FEATURES; i++) fprintf(stderr, "%s%c", edgeprune_feature_names[i], 0);
#if EDGEPRUNE_N_CLASSES > 0
    for (i = 0; i < EDGEPRUNE_N_CLASSES; i++) fprintf(stderr, "%s%c", edgeprune_classes[i], 0);
#endif
    fprintf(stderr, "%s%c%s%c", EDGEPRUNE_FILE, 0, EDGEPRUNE_INPUT_NAME, 0);
    fprintf(stderr, "%lu", (unsigned long)edgeprune_output_sizes[0]);
    return 0;
}
"""
HOSTILE = (
    'say "hi"', "back\\slash", "new\nline", "??/ ??' ??(", "*/ int x; /*", "größe 温度", "\x1b[31m", "%s%n",
    "9\x009", "\u202eevil", "\udcff",
)  # fmt: skip


class Gathering(nn.Module):
    """Gathers `keep` along dim 1, of the flattened input where `flat`, then runs `tail`."""

    def __init__(self, keep: tuple[int, ...], tail: nn.Module, flat: bool) -> None:
        super().__init__()
        self.register_buffer("edgeprune_keep_x", torch.tensor(keep))
        self.tail, self.flat = tail, flat

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1) if self.flat else x
        return self.tail(torch.index_select(x, 1, self.edgeprune_keep_x))


def pixels() -> Program:
    return capture(Gathering((3, 40, 64, 107), nn.Linear(4, 3), flat=True), torch.randn(2, 3, 6, 6))


def colours() -> Program:
    tail = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5))
    return capture(Gathering((0, 2), tail, flat=False), torch.randn(2, 3, 6, 6))


def whole() -> Program:
    return capture(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 5)), torch.randn(2, 3, 6, 6))


COLOURS = ModelInfo((3, 6, 6), classes=HOSTILE, normalization=Normalization((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)))
TABLE = ModelInfo((len(HOSTILE),), normalization=Normalization((1e-7,), (2.5,)), feature_names=HOSTILE)


def run(path: Path, array: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: array})[0]


@pytest.fixture
def firmware(tmp_path: Path) -> Any:
    """Compile the program beside the header in a folder, feed it, and give its features and its texts."""
    if GCC is None:
        pytest.skip("no C compiler here")

    def compiled(folder: Path, raw: np.ndarray, kind: Any) -> tuple[np.ndarray, list[bytes]]:
        (folder / "firmware.c").write_text(FIRMWARE)
        command = [str(GCC), *STRICT, f"-I{folder}", "-o", str(folder / "firmware"), str(folder / "firmware.c")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        ran = subprocess.run([folder / "firmware"], input=raw.tobytes(), capture_output=True, check=True)
        return np.frombuffer(ran.stdout, dtype=kind).reshape(len(raw), -1), ran.stderr.split(b"\0")

    return compiled


@pytest.mark.parametrize(("build", "fold"), [(pixels, False), (pixels, True), (colours, False), (whole, True)])
def test_bytes_become_what_the_network_takes(build: Any, fold: bool, tmp_path: Path, firmware: Any) -> None:
    program, raw = build(), np.random.default_rng(3).integers(0, 256, (6, 3, 6, 6), dtype=np.uint8)
    preprocess = "fold" if fold else "apart"
    given = raw / np.float32(255)
    write_contracts(program, COLOURS, tmp_path, given, simplify=False, preprocess=preprocess, byte_scale=1 / 255)
    written = write_header(tmp_path)
    assert Path(written.path).stat().st_size == written.size_bytes
    features, texts = firmware(tmp_path, raw, np.uint8 if fold else np.float32)
    [taken] = onnxruntime.InferenceSession(tmp_path / "slim.onnx").get_inputs()
    answers = run(tmp_path / "slim.onnx", features.reshape(len(raw), *taken.shape[1:]))
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (COLOURS.normalization.mean, COLOURS.normalization.std))
    with torch.no_grad():
        want = program.module()((torch.from_numpy(raw / np.float32(255)) - mean) / std).numpy()
    np.testing.assert_allclose(answers, want, atol=1e-5)
    assert texts[-3:] == [b"slim.onnx", b"input", str(want.shape[1]).encode()]


class Picked(nn.Module):
    """Gathers `keep` along a dim."""

    def __init__(self, keep: tuple[int, ...], dim: int, tail: nn.Module) -> None:
        super().__init__()
        self.register_buffer("edgeprune_keep_x", torch.tensor(keep))
        self.dim, self.tail = dim, tail

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(torch.index_select(x, self.dim, self.edgeprune_keep_x))


@pytest.mark.parametrize("scaled", [1, 2, 3, None])
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_features_along_any_dim_are_scaled_along_any(
    dim: int, scaled: int | None, tmp_path: Path, firmware: Any
) -> None:
    shape, draws = (4, 3, 5), np.random.default_rng(dim)
    keep, sizes = (0, 2), [4, 3, 5]
    sizes[dim - 1] = 2
    tail = nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(sizes)), 3))
    program = capture(Picked(keep, dim, tail), torch.randn(2, *shape))
    count = 1 if scaled is None else shape[scaled - 1]
    mean, std = (tuple(values.tolist()) for values in (draws.normal(size=count), draws.uniform(0.5, 2, count)))
    own = Normalization(mean, std, dim=scaled or 1)
    raw = draws.normal(size=(6, *shape)).astype(np.float32)
    write_contracts(program, ModelInfo(shape, normalization=own), tmp_path, raw, simplify=False)
    write_header(tmp_path)
    features, texts = firmware(tmp_path, raw, np.float32)
    want = normalize(torch.from_numpy(raw), own)
    taken = want.index_select(dim, torch.tensor(keep)).numpy()
    np.testing.assert_allclose(features, taken.reshape(6, -1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(run(tmp_path / "preprocess.onnx", raw), taken, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        np.testing.assert_allclose(run(tmp_path / "slim.onnx", taken), program.module()(want).numpy(), atol=1e-5)
    assert texts[:2] == [f"x[{':,' * (dim - 1)}{index}]".encode() for index in keep]


def test_a_table_with_hostile_names_compiles_and_keeps_them(tmp_path: Path, firmware: Any) -> None:
    n = len(HOSTILE)
    program = capture(nn.Linear(n, 3), torch.randn(2, n))
    raw = np.random.default_rng(0).standard_normal((5, n)).astype(np.float32)
    write_contracts(program, replace(TABLE, classes=HOSTILE[:3]), tmp_path, raw, simplify=False)
    write_header(tmp_path)
    features, texts = firmware(tmp_path, raw, np.float32)
    with torch.no_grad():
        want = program.module()((torch.from_numpy(raw) - 1e-7) / 2.5).numpy()
    np.testing.assert_allclose(run(tmp_path / "slim.onnx", features), want, atol=1e-5)
    names = [name.encode("utf-8", "surrogatepass").split(b"\0") for name in (*HOSTILE, *HOSTILE[:3])]
    assert [text for text in texts[:-3]] == [part for name in names for part in name[:1]]
    assert (tmp_path / "edgeprune_features.h").read_bytes().isascii()


def test_raw_floats_and_whole_numbers_pass_unscaled(tmp_path: Path, firmware: Any) -> None:
    embedding = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 2))
    ids = np.random.default_rng(0).integers(0, 9, (4, 3))
    write_contracts(
        capture(embedding, torch.zeros(2, 3, dtype=torch.int64)), ModelInfo((3,)), tmp_path, ids, simplify=False
    )
    write_header(tmp_path)
    features, texts = firmware(tmp_path, ids, np.int64)
    np.testing.assert_array_equal(features, ids)
    assert texts[:3] == [b"x[0]", b"x[1]", b"x[2]"]


def test_doubles_keep_their_digits(tmp_path: Path, firmware: Any) -> None:
    info = ModelInfo((2,), normalization=Normalization((1 / 3, 1e9), (1e-9, 7.0)))
    write_contracts(
        capture(nn.Linear(2, 2).double(), torch.randn(2, 2, dtype=torch.float64)), info, tmp_path, simplify=False
    )
    write_header(tmp_path)
    raw = np.array([[1 / 3 + 1e-9, 2e9]])
    features, _ = firmware(tmp_path, raw, np.float64)
    np.testing.assert_array_equal(features, (raw - [[1 / 3, 1e9]]) / [[1e-9, 7.0]])


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The features.json of a network with one input feature."""
    folder = tmp_path_factory.mktemp("described")
    info = ModelInfo((1,), normalization=Normalization((0.5,), (2.0,)))
    write_contracts(capture(nn.Linear(1, 2), torch.randn(2, 1)), info, folder, simplify=False)
    return (folder / "features.json").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": "float16"}, "expected inputs of a type that C99 has"),
        ({"scaling": {"mean": [1e39]}}, "within the range of float32, got 1e\\+39"),
        ({"scaling": {"std": [1e-50]}}, "expected every std above 0 in float32, got 1e-50"),
        ({"names": ["x" * 5000]}, "expected names of at most 4095 bytes, got 'xxxx"),
    ],
)
def test_what_c_does_not_have_is_refused(change: dict[str, Any], message: str, described: str) -> None:
    document = json.loads(described)
    [taken] = document["contracts"]["full"]["inputs"]
    document["names"] = change.get("names", document["names"])
    taken["type"] = change.get("type", taken["type"])
    taken["scaling"] |= change.get("scaling", {})
    with pytest.raises(InputError, match=f"--c-header: .*{message}"):
        header_text(document)


# -- several inputs ----------------------------------------------------------------------------------------------------

# Reads one sample of every input from stdin, one after the other, and writes what the network takes of each.
SEVERAL = """
#include <stdio.h>
#include "edgeprune_features.h"
int main(void)
{
    for (;;) {
        ALL
    }
}
"""
ONE = """{
        static edgeprune_inputK_raw raw[EDGEPRUNE_INPUTK_RAW_SIZE];
        static edgeprune_inputK_feature features[EDGEPRUNE_INPUTK_N_FEATURES * EDGEPRUNE_INPUTK_FEATURE_SIZE];
        if (fread(raw, sizeof raw, 1, stdin) != 1) return 0;
        edgeprune_inputK_features(raw, features);
        fwrite(features, sizeof features, 1, stdout);
        fprintf(stderr, "%s %s %d\\n", EDGEPRUNE_INPUTK_NAME, EDGEPRUNE_INPUTK_TYPE, EDGEPRUNE_INPUTK_N_DIMS);
    }
"""


def handed_over(folder: Path, raw: dict[str, np.ndarray], *defined: str) -> dict[str, np.ndarray]:
    """What the compiled header makes of samples `(n, ...)`, by name, as the file takes it."""
    taken = onnxruntime.InferenceSession(folder / "slim.onnx").get_inputs()
    each = "".join(ONE.replace("INPUTK", f"INPUT{k}").replace("inputK", f"input{k}") for k in range(len(taken)))
    (folder / "several.c").write_text(SEVERAL.replace("ALL", each))
    command = [str(GCC), *STRICT, *defined, f"-I{folder}", "-o", str(folder / "several"), str(folder / "several.c")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    n = len(next(iter(raw.values())))
    fed = b"".join(raw[one.name][i].tobytes() for i in range(n) for one in taken)
    ran = subprocess.run([folder / "several"], input=fed, capture_output=True, check=True)
    document = json.loads((folder / "features.json").read_text())["contracts"]
    entries = (document.get("slim") or document["full"])["inputs"]
    told = [f"{one['name']} {one['type']} {len(one['shape']) - 1}" for one in entries]
    assert ran.stderr.decode().splitlines() == told * n
    sizes = [
        one["shape"][1:] if all(isinstance(n, int) for n in one["shape"][1:]) else raw[one["name"]].shape[1:]
        for one in entries
    ]
    row = np.dtype([(one["name"], one["type"], tuple(size)) for one, size in zip(entries, sizes, strict=True)])
    made = np.frombuffer(ran.stdout, dtype=row)
    return {name: np.ascontiguousarray(made[name]) for name in row.names or ()}


class Three(nn.Module):
    """A picture, a table and ids whose length is free, with an input of one number beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.picture, self.table = nn.Conv2d(2, 4, 3), nn.Linear(3, 4)
        self.rows, self.head = nn.Embedding(9, 4), nn.Linear(4, 2)

    def forward(self, image: Tensor, table: Tensor, ids: Tensor, age: Tensor) -> Tensor:
        inner = self.picture(image).mean((2, 3)) + self.table(table) + self.rows(ids).mean(1)
        return self.head(torch.relu(inner + age[:, None]))


SCALED = Normalization(
    (0.0,),
    (1.0,),
    inputs=(
        ("image", Normalization((0.4, 0.2), (0.3, 0.5))),
        ("table", Normalization((1.0, 2.0, 3.0), (2.0, 1.0, 4.0))),
        ("age", Normalization((50.0,), (9.0,))),
    ),
)


@pytest.mark.skipif(GCC is None, reason="no C compiler here")
@pytest.mark.parametrize("fold", [False, True])
def test_several_inputs_have_a_section_each(tmp_path: Path, fold: bool) -> None:
    rng = np.random.default_rng(0)
    raw = {
        "image": rng.integers(0, 256, (5, 2, 4, 4), np.uint8),
        "table": rng.normal(2, 2, (5, 3)).astype(np.float32),
        "ids": rng.integers(0, 9, (5, 6)),
        "age": rng.normal(50, 9, 5).astype(np.float32),
    }
    given = {**raw, "image": raw["image"] / np.float32(255)}
    torch.manual_seed(0)
    example = tuple(torch.from_numpy(x) for x in given.values())
    program = capture(Three(), example, dynamic={"ids": (0, 1)})
    infos = (InputInfo("image", (2, 4, 4), byte_scale=1 / 255),)
    info = ModelInfo((), normalization=SCALED, classes=("no", "yes"))
    write_contracts(
        program, info, tmp_path, given, simplify=False, preprocess="fold" if fold else "apart", inputs=infos
    )
    write_header(tmp_path)
    assert "is free in the file" in (tmp_path / "edgeprune_features.h").read_text()
    made = handed_over(tmp_path, raw, "-DEDGEPRUNE_INPUT2_SIZE_1=6")
    assert [x.dtype.name for x in made.values()] == ["uint8" if fold else "float32", "float32", "int64", "float32"]
    session = onnxruntime.InferenceSession(tmp_path / "slim.onnx", providers=["CPUExecutionProvider"])
    normal = {
        name: torch.from_numpy((x - np.reshape(own.mean, at)) / np.reshape(own.std, at)).float()
        for (name, own), x, at in zip(
            SCALED.inputs, (given["image"], raw["table"], raw["age"]), ((1, 2, 1, 1), (1, 3), (1,)), strict=True
        )
    }
    with torch.no_grad():
        want = program.module()(normal["image"], normal["table"], torch.from_numpy(raw["ids"]), normal["age"])
    np.testing.assert_allclose(session.run(None, made)[0], want.numpy(), atol=1e-5)


@pytest.mark.skipif(GCC is None, reason="no C compiler here")
def test_a_free_size_that_is_not_said_stops_the_compiler(tmp_path: Path) -> None:
    program = capture(Three(), example_of_three(), dynamic={"ids": (0, 1)})
    write_contracts(program, ModelInfo(()), tmp_path, simplify=False)
    write_header(tmp_path)
    (tmp_path / "x.c").write_text('#include "edgeprune_features.h"\nint main(void) { return 0; }\n')
    done = subprocess.run(
        [str(GCC), *STRICT, str(tmp_path / "x.c")], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "define EDGEPRUNE_INPUT2_SIZE_1: this size is free in the file" in done.stderr


def example_of_three() -> tuple[Tensor, ...]:
    return torch.randn(2, 2, 4, 4), torch.randn(2, 3), torch.randint(0, 9, (2, 6)), torch.randn(2)


class Kept(nn.Module):
    """Gathers some columns of a table and some pixels of a picture, beside ids."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("edgeprune_keep_table", torch.tensor([0, 3]))
        self.register_buffer("edgeprune_keep_image", torch.tensor([1, 6, 10, 20]))
        self.table, self.image, self.rows = nn.Linear(2, 4), nn.Linear(4, 4), nn.Embedding(9, 4)

    def forward(self, table: Tensor, image: Tensor, ids: Tensor) -> Tensor:
        columns = torch.index_select(table, 1, self.edgeprune_keep_table)
        pixels = torch.index_select(image.flatten(1), 1, self.edgeprune_keep_image)
        return self.table(columns) + self.image(pixels) + self.rows(ids).mean(1)


@pytest.mark.skipif(GCC is None, reason="no C compiler here")
def test_each_input_keeps_its_own_features(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    raw = {
        "table": rng.normal(2, 2, (5, 4)).astype(np.float32),
        "image": rng.random((5, 2, 4, 4), dtype=np.float32),
        "ids": rng.integers(0, 9, (5, 6)),
    }
    info = ModelInfo(
        (),
        normalization=Normalization(
            (0.0,),
            (1.0,),
            inputs=(
                ("table", Normalization((1.0, 2.0, 3.0, 4.0), (2.0, 1.0, 4.0, 3.0))),
                ("image", Normalization((0.4, 0.2), (0.3, 0.5))),
            ),
        ),
    )
    program = capture(Kept(), tuple(torch.from_numpy(x) for x in raw.values()))
    write_contracts(program, info, tmp_path, raw, simplify=False)
    write_header(tmp_path)
    made = handed_over(tmp_path, raw)
    assert {name: x.shape[1:] for name, x in made.items()} == {"table": (2,), "image": (4,), "ids": (6,)}
    preprocess = onnxruntime.InferenceSession(tmp_path / "preprocess.onnx", providers=["CPUExecutionProvider"])
    for name, want in zip(made, preprocess.run(None, raw), strict=True):
        np.testing.assert_allclose(made[name], want, atol=1e-6)


@pytest.mark.parametrize("unknown", [None, 7])
def test_ids_are_numbered_anew(tmp_path: Path, firmware: Any, unknown: int | None) -> None:
    program = capture(GOOD["embedding"][0]().float(), example(1))
    kept = vocabularies(program, {"inputs_0": list(KEEP)}, {"inputs_0": unknown} if unknown else None)
    graph = analyze(program, vocabularies=kept)
    write_contracts(cut(program, plan(program, graph, keep_macs=None), graph), ModelInfo((6,)), tmp_path)
    write_header(tmp_path)
    given = np.array([[1, 15, 8, 0, 19, 5], [3, 4, 7, 8, 11, 1]], dtype=np.int64)
    made, _ = firmware(tmp_path, given, np.int64)
    gone = CUT_ID if unknown is None else KEEP.index(unknown)
    assert made.reshape(2, 6).tolist() == [[0, 6, 4, gone, gone, gone], [1, 2, 3, 4, 5, 0]]
