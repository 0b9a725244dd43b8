"""Every kind of file that edgeprune reads: a good one, what reads it, and the edits that make mutants of it."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import socket
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import nn

import edgeprune
from edgeprune.formats.save import save_checkpoint, save_program
from edgeprune.records import ModelInfo
from mutants import sources
from mutants.archives import NPZ, PT, PT2
from mutants.command import folder_of, run_in
from mutants.documents import CSV, JSON
from mutants.edits import BLIND, Edit
from mutants.networks import ONNX, SAFETENSORS
from mutants.pictures import IDX, IDX_GZ, IMAGES

_ROOT = Path(__file__).resolve().parents[2]
_NET = """from torch import nn

def net():
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
"""
_FAST = ("--runs", "10", "--allow-chance")
_NAMES = ("ax", "ay", "az", "load")


@dataclass(frozen=True, slots=True)
class Kind:
    """A good file, and the command that reads it.

    Args:
        content: its bytes.
        place: where it lies in the folder that the command runs in.
        arguments: the command.
        edits: those of its format; half of the mutants are made by them, a tenth lies in a place that is no file.
        around: the other files in the folder, by their place.
    """

    content: bytes
    place: str
    arguments: tuple[str, ...]
    edits: Sequence[Edit]
    around: Mapping[str, bytes] = field(default_factory=dict)


def kinds() -> dict[str, Kind]:
    """Every kind by name; tables of Arrow only where that is installed."""
    return {**_models(), **_data(), **_documents(), **_sources(), **_left()}


# How many of 3,500 mutants each kind gets.
SHARES = {
    "state_dict": 270, "checkpoint": 300, "training": 80, "safetensors": 200, "pt2": 450, "npz": 370, "csv": 220,
    "idx": 100, "idx.gz": 120, "png": 150, "jpg": 50, "tiff": 50, "bmp": 30, "webp": 30,
    "gif": 20, "plan": 110, "run": 40, "device": 100, "groups": 60, "onnx": 250, "tar": 100,
    "wav": 70, "parquet": 70, "arrow": 50, "hf.info": 30, "hf.state": 20, "recipe": 60, "journal.asked": 30,
    "journal.results": 40, "journal.weights": 30,
}  # fmt: skip


def mutant(kind: Kind, choose: random.Random, folder: Path) -> None:
    """Lay a mutant of the kind, and the files around it, into an empty folder."""
    for place, content in kind.around.items():
        path = folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    target = folder / kind.place
    target.parent.mkdir(parents=True, exist_ok=True)
    dice = choose.random()
    if dice < 0.04:
        choose.choice(_NO_FILES)(target)
        return
    edits = kind.edits if dice < 0.65 else BLIND
    content = choose.choice(edits)(kind.content, choose)
    if dice > 0.97:
        content = choose.choice(BLIND)(content, choose)
    target.write_bytes(content)


def _socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the name of a socket must be short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


_NO_FILES: Sequence[Callable[[Path], Any]] = (
    os.mkfifo, os.mkdir, _socket, Path.touch,
    lambda path: path.symlink_to("/dev/zero"), lambda path: path.symlink_to(path), lambda path: path.symlink_to("none"),
    lambda path: path.symlink_to("/dev/stdin"), lambda path: path.symlink_to("/proc/self/mem"),
)  # fmt: skip


# --- models


def _net() -> nn.Module:
    space: dict[str, Any] = {}
    exec(_NET, space)
    torch.manual_seed(0)
    made: nn.Module = space["net"]()
    return made.eval()


def _models() -> dict[str, Kind]:
    net = _net()
    program = edgeprune.capture(net, torch.randn(3, 4))
    info = ModelInfo(input_shape=(4,), classes=("a", "b", "c"), feature_names=_NAMES)
    arch = ("--arch", "net.py:net", "--input-shape", "4")
    source = {"net.py": _NET.encode()}
    from safetensors.torch import save

    return {
        "state_dict": Kind(_saved(net.state_dict()), "m.pt", ("inspect", "m.pt", *arch), PT, source),
        "checkpoint": Kind(_written(save_checkpoint, program, info), "m.pt", ("inspect", "m.pt"), PT),
        "safetensors": Kind(save(net.state_dict()), "m.bin", ("inspect", "m.bin", *arch), SAFETENSORS, source),
        "pt2": Kind(_written(save_program, program, info), "m.pt2", ("inspect", "m.pt2"), PT2),
        "onnx": Kind(_onnx((4,)), "m.onnx", ("validate", "m.onnx", "slim.onnx", "--data", "npz:d.npz", *_FAST), ONNX, {
            "slim.onnx": _onnx((4,)), "d.npz": _npz()}),
        "training": _training(),
    }  # fmt: skip


def _training() -> Kind:
    """The state of a training that was stopped after its last epoch."""
    from edgeprune.training.state import StateFile

    command = ("train", "--arch", "net.py:net", "--data", "npz:d.npz", "--epochs", "1", "--out", "o.pt")
    around = {"net.py": _NET.encode(), "d.npz": _npz()}
    kept: list[bytes] = []
    remove = StateFile.remove
    StateFile.remove = lambda self: kept.append(self.path.read_bytes())  # type: ignore[method-assign]
    try:
        with folder_of(around) as folder:
            run_in(folder, command)
    finally:
        StateFile.remove = remove  # type: ignore[method-assign]
    return Kind(kept[0], "o.pt.training", (*command, "--resume"), PT, around)


def _saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _written(write: Callable[..., None], program: Any, info: ModelInfo) -> bytes:
    with folder_of({}) as folder:
        write(folder / "file", program, info)
        return (folder / "file").read_bytes()


def _onnx(shape: tuple[int, ...], n_classes: int = 3) -> bytes:
    width = int(np.prod(shape))
    weights = np.random.default_rng(0).standard_normal((width, n_classes)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["input"], ["flat"]),
            helper.make_node("Gemm", ["flat", "weight", "bias"], ["hidden"]),
            helper.make_node("Relu", ["hidden"], ["output"]),
        ],
        "network",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", *shape])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", n_classes])],
        [
            onnx.numpy_helper.from_array(weights, "weight"),
            onnx.numpy_helper.from_array(np.zeros(n_classes, np.float32), "bias"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    stated = {"mean": [0.0], "std": [1.0]}
    helper.set_model_props(model, {"edgeprune.normalization": json.dumps(stated)})
    content: bytes = model.SerializeToString()
    return content


# --- data


def _npz() -> bytes:
    rng = np.random.default_rng(0)
    buffer = io.BytesIO()
    np.savez(buffer, x=rng.standard_normal((60, 4)).astype(np.float32), y=np.arange(60) % 3)
    return buffer.getvalue()


def _csv() -> bytes:
    rng = np.random.default_rng(0)
    rows = [",".join([f"k{i % 3}", *(f"{value:.3f}" for value in rng.standard_normal(4))]) for i in range(60)]
    return "\n".join(["kind," + ",".join(_NAMES), *rows, ""]).encode()


def _idx(n: int) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (n, 4, 4), dtype=np.uint8)
    return bytes([0, 0, 8, 3]) + struct.pack(">III", n, 4, 4) + pixels.tobytes()


def _labels(n: int) -> bytes:
    return bytes([0, 0, 8, 1]) + struct.pack(">I", n) + bytes(i % 10 for i in range(n))


def _picture(form: str) -> bytes:
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def _data() -> dict[str, Kind]:
    def validate(spec: str) -> tuple[str, ...]:
        return ("validate", "dense.onnx", "slim.onnx", "--data", spec, *_FAST)

    def pair(shape: tuple[int, ...], n_classes: int = 3) -> dict[str, bytes]:
        return {name: _onnx(shape, n_classes) for name in ("dense.onnx", "slim.onnx")}

    idx = {"s/train-labels-idx1-ubyte": _labels(200), "s/t10k-images-idx3-ubyte": _idx(20),
           "s/t10k-labels-idx1-ubyte": _labels(20), **pair((1, 4, 4), 10)}  # fmt: skip
    good = {f"f/{name}/{i}.png": _picture("PNG") for name in ("a", "b", "c") for i in range(5)}
    folder = {**good, **pair((3, 8, 8))}
    del folder["f/a/2.png"]
    found = {
        "npz": Kind(_npz(), "d.npz", validate("npz:d.npz"), NPZ, pair((4,))),
        "csv": Kind(_csv(), "d.csv", validate("csv:d.csv?target=kind"), CSV, pair((4,))),
        "idx": Kind(_idx(200), "s/train-images-idx3-ubyte", validate("mnist:s"), IDX, idx),
        "idx.gz": Kind(
            gzip.compress(_idx(200), mtime=0), "s/train-images-idx3-ubyte.gz", validate("mnist:s"), IDX_GZ, idx
        ),
    }
    forms = (("png", "PNG"), ("jpg", "JPEG"), ("tiff", "TIFF"), ("bmp", "BMP"), ("webp", "WEBP"), ("gif", "GIF"))
    for suffix, form in forms:
        name = "png" if suffix == "gif" else suffix  # no .gif is looked for, so one lies under another name
        found[suffix] = Kind(_picture(form), f"f/a/2.{name}", validate("imagefolder:f?size=8"), IMAGES, folder)
    return found


def _sources() -> dict[str, Kind]:
    def validate(spec: str) -> tuple[str, ...]:
        return ("validate", "dense.onnx", "slim.onnx", "--data", spec, *_FAST)

    def pair(shape: tuple[int, ...]) -> dict[str, bytes]:
        return {name: _onnx(shape) for name in ("dense.onnx", "slim.onnx")}

    shards = {"s/b.tar": sources.shard(30), **pair((3, 8, 8))}
    sounds = {f"a/{name}/{i}.wav": sources.sound(k) for k, name in enumerate("abc") for i in range(6)}
    del sounds["a/b/2.wav"]
    spec = "audiofolder:a?rate=8000&seconds=0.25&mels=8"
    found = {
        "tar": Kind(sources.shard(), "s/a.tar", validate("webdataset:s?size=8"), sources.TAR, shards),
        "wav": Kind(sources.sound(1), "a/b/2.wav", validate(spec), sources.WAV, {**sounds, **pair((8, 23))}),
    }
    tables = sources.tables()
    if tables:
        around = {**tables, **pair((4,))}
        folder = validate("hf:h?target=kind")
        found["parquet"] = _of(around, "d.parquet", validate("parquet:d.parquet?target=kind"), BLIND)
        found["arrow"] = _of(around, "h/data-00000-of-00001.arrow", folder, BLIND)
        found["hf.info"] = _of(around, "h/dataset_info.json", folder, JSON)
        found["hf.state"] = _of(around, "h/state.json", folder, JSON)
    return found


def _of(files: Mapping[str, bytes], place: str, arguments: tuple[str, ...], edits: Sequence[Edit]) -> Kind:
    """The kind of one of these files, the others around it."""
    return Kind(files[place], place, arguments, edits, {name: held for name, held in files.items() if name != place})


def _left() -> dict[str, Kind]:
    """Recipes, and what is left of a compress run that was stopped."""
    program = edgeprune.capture(_net(), torch.randn(3, 4))
    info = ModelInfo(input_shape=(4,), feature_names=_NAMES)
    model = {"m.pt2": _written(save_program, program, info), "d.npz": _npz()}
    command = ("compress", "m.pt2", "--data", "npz:d.npz", "--keep-macs", "0.5", "--finetune-epochs", "1",
               "--normalize", "none", "--allow-chance", "--threads", "1", "--out", "out")  # fmt: skip
    left = sources.stopped(model, command, "out")
    [weights] = [name for name in left if not name.endswith((".json", ".jsonl"))][:1]
    resumed = (*command, "--resume")
    train = (
        "train",
        "--arch",
        "net.py:net",
        "--data",
        "npz:d.npz",
        "--epochs",
        "1",
        "--recipe",
        "r.toml",
        "--out",
        "o.pt",
    )
    return {
        "recipe": Kind(sources.RECIPE, "r.toml", train, sources.TOML, {"net.py": _NET.encode(), "d.npz": _npz()}),
        "journal.asked": _of({**model, **left}, "out.compressing/asked.json", resumed, JSON),
        "journal.results": _of({**model, **left}, "out.compressing/results.jsonl", resumed, sources.LINES),
        "journal.weights": _of({**model, **left}, weights, resumed, PT),
    }


# --- documents


def _documents() -> dict[str, Kind]:
    net = _net()
    program = edgeprune.capture(net, torch.randn(3, 4))
    model = {"m.pt2": _written(save_program, program, ModelInfo(input_shape=(4,), feature_names=_NAMES))}
    plan = edgeprune.plan(program, edgeprune.analyze(program), keep_macs=0.5)
    slim = {"r/slim.pt2": _written(save_program, edgeprune.cut(program, plan), ModelInfo(input_shape=(4,)))}
    compress = ("compress", "m.pt2", "--out", "out", "--finetune-epochs", "0", "--keep-macs", "0.5")
    points = [
        {"layer": layer, "width_in": i, "width_out": o, "ms": 0.001 * i * o}
        for layer in ("linear rows 1",)
        for i in (4, 6, 8)
        for o in range(1, 20)
    ]
    device = {"format": "edgeprune-device/1", "runtime": "onnxruntime 1.31", "cpu": "a cpu", "threads": 1, "batch": 1,
              "points": points}  # fmt: skip
    run = {"format": "edgeprune-run/1", "model": {"path": "m.pt2", "arch": None, "module": None, "sha256": "0" * 64}}
    groups = {"acceleration": ["ax", 1], "rest": ["load", 2]}
    kinds = {
        "plan": Kind(
            plan.to_json().encode(),
            "plan.json",
            ("compress", "m.pt2", "--out", "out", "--finetune-epochs", "0", "--plan", "plan.json"),
            JSON,
            model,
        ),
        "device": Kind(json.dumps(device).encode(), "device.json", (*compress, "--device", "device.json"), JSON, model),
        "groups": Kind(
            json.dumps(groups).encode(),
            "g.json",
            (*compress, "--feature-groups", "g.json", "--input-features", "0.75"),
            JSON,
            model,
        ),
        "run": Kind(
            json.dumps(run).encode(), "r/run.json", ("export", "r/slim.pt2", "--onnx", "--out", "o"), JSON, {
                **model, **slim}
        ),
    }  # fmt: skip
    return kinds
