"""features.h: compiled by a strict C99 compiler, it makes of raw inputs what gives PyTorch's answers in onnxruntime."""

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
from edgeprune.errors import InputError
from edgeprune.export.cheader import header_text, write_header
from edgeprune.export.contracts import write_contracts
from edgeprune.graph.capture import Program, capture
from edgeprune.graph.names import CUT_ID
from edgeprune.records import ModelInfo, Normalization
from tests.token_nets import GOOD, KEEP, example

GCC = shutil.which("gcc") or shutil.which("cc")
STRICT = ("-std=c99", "-Wall", "-Wextra", "-pedantic", "-Werror", "-O1")
# Reads raw inputs from stdin, writes what the network takes to stdout, and every name to stderr, by its bytes.
FIRMWARE = """
#include <stdio.h>
#include "features.h"
#include "features.h"
int main(void)
{
    static edgeprune_raw raw[EDGEPRUNE_RAW_SIZE];
    static edgeprune_feature features[EDGEPRUNE_N_FEATURES * EDGEPRUNE_FEATURE_SIZE];
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
        command = [str(GCC), *STRICT, "-o", str(folder / "firmware"), str(folder / "firmware.c")]
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
    assert (tmp_path / "features.h").read_bytes().isascii()


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


def test_several_inputs_are_refused(tmp_path: Path) -> None:
    program = capture(nn.Bilinear(3, 4, 2), (torch.randn(2, 3), torch.randn(2, 4)))
    write_contracts(program, ModelInfo((3,)), tmp_path, simplify=False)
    with pytest.raises(InputError, match="--c-header: expected a network with one input, got 2: input1, input2"):
        write_header(tmp_path)
    assert not (tmp_path / "features.h").exists()


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
