"""What a network's file weighs beside what it gets right: trained whole, of templates, pruned or in int8."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from edgeprune import analyze, cut, plan, prove
from edgeprune.cost.macs import macs
from edgeprune.data import batches, normalize
from edgeprune.data.splits import TensorSplit
from edgeprune.export import ort
from edgeprune.export.onnx import export_onnx
from edgeprune.export.quantize import write_int8
from edgeprune.export.sharing import check_folded, with_templates
from edgeprune.formats.onnx.file import read_onnx
from edgeprune.graph.capture import Program
from edgeprune.graph.single import capture_single
from edgeprune.graph.templates import Mixture
from edgeprune.methods import Method
from edgeprune.methods.shared_weights import SharedTemplates
from edgeprune.records import DataSource, Templates

from .place import Place, in_memory, with_splits

Figures = dict[str, float]
_CHECKED, _CALIBRATION, _BATCH = 16, 256, 250  # samples
_ALL = 100.0  # points that int8 may lose: every layer is quantised


# A training by all that it depends on: contenders that differ in what is made of it alone share it.
_TRAINED: dict[str, tuple[nn.Module, Method]] = {}


def in_bytes(  # noqa: PLR0913 - what a config may say, each with its default
    place: Place,
    samples: int | None = None,
    judged: int | None = None,
    keep: float | None = None,
    int8: bool = False,
    finetune: float = 0.4,
) -> Figures:
    """Train, make the file smaller, and measure what it weighs beside the dense network's file, and gets right.

    Args:
        samples: so many of the training images alone.
        judged: so many of the test images, and a quarter as many of the validation split's.
        keep: the share of the MACs that channels are pruned to, once, for the last epochs to be finetuned.
        int8: whether the file is quantised, every layer.
        finetune: the share of the epochs for that.
    """
    data, epochs = first_of(place.data, samples, judged), place.settings().epochs
    n_after = 0 if keep is None else max(1, round(finetune * epochs))
    module, method = _trained(place, data, epochs - n_after)
    dense = program = capture_single(module, data.input_shape)
    if keep is not None:
        program = _pruned(place, data, dense, keep, n_after)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole = _file(dense, data, folder / "dense.onnx")
        path = whole if keep is None else _file(program, data, folder / "slim.onnx")
        if isinstance(method, SharedTemplates):
            path = _of_templates(path, program, method.templates, folder / "shared.onnx")
        if int8:
            path = _in_int8(path, data, folder / "int8.onnx")
        right = {f"{split}_accuracy": _right(path, getattr(data, split), data) for split in ("val", "test")}
        n_bytes = path.stat().st_size
        return {**right, "n_bytes": float(n_bytes), "bytes_share": n_bytes / whole.stat().st_size,
                "macs_share": macs(program) / macs(dense)}  # fmt: skip


def first_of(data: DataSource, samples: int | None, judged: int | None) -> DataSource:
    """The data with the first of its samples: so many to train and to test on, to validate on a quarter of these."""
    counts = {"train": samples, "test": judged, "val": None if judged is None else judged // 4}

    def first(name: str, split: TensorSplit) -> TensorSplit:
        assert split.y is not None
        return TensorSplit(split.x[: counts[name]], split.y[: counts[name]], split.scale)

    return with_splits(data, first)


def _trained(place: Place, data: DataSource, n_epochs: int) -> tuple[nn.Module, Method]:
    """The network after so many epochs, and its method."""
    run, n_samples = place.run, len(data.train)  # type: ignore[arg-type]
    key = json.dumps([run.experiment, run.seed, run.quick, run.train, n_epochs, n_samples])
    if key not in _TRAINED:
        module, methods = place.build(), list[Method]()
        place.fit(module, replace(place.settings(), epochs=n_epochs), data=data, finished=methods.append)
        _TRAINED[key] = module, methods[0]
    return _TRAINED[key]


def _pruned(place: Place, data: DataSource, dense: Program, keep: float, n_epochs: int) -> tuple[Program, nn.Module]:
    """A cut to a share of the MACs, finetuned for so many epochs."""
    pruning = plan(dense, analyze(dense), keep_macs=keep, align=1)
    slim = cut(dense, pruning)
    prove(dense, slim, pruning)
    module = slim.module()
    settings = place.settings()
    recipe = replace(settings.for_finetuning(), epochs=n_epochs, threads=settings.threads, device=settings.device)
    place.fit(module, recipe, stage="finetune", data=data)
    return slim.with_weights(module)


def _file(program: Program, data: DataSource, path: Path) -> Path:
    export_onnx(program, path, inputs=_inputs(data.test, data, _CHECKED))
    return path


def _of_templates(plain: Path, program: Program, own: tuple[Templates, ...], path: Path) -> Path:
    weights = {name: tensor.detach().numpy() for name, tensor in program.state_dict.items()}
    mixtures = [Mixture.told(one, {name: weight.shape for name, weight in weights.items()}) for one in own]
    proto, _, _ = with_templates(read_onnx(plain), mixtures, weights)
    path.write_bytes(proto.SerializeToString(deterministic=True))
    check_folded(plain, path)
    return path


def _in_int8(plain: Path, data: DataSource, path: Path) -> Path:
    write_int8(plain, path, _inputs(data.train, data, _CALIBRATION), max_drop=_ALL)
    return path


def _inputs(split: object, data: DataSource, count: int) -> np.ndarray:
    """The first samples of a split, normalised."""
    own = in_memory(split, data.name)  # type: ignore[arg-type]
    raw = torch.stack([own[index][0] for index in range(count)])
    found: np.ndarray = normalize(raw, data.normalization).numpy()
    return found


def _right(path: Path, split: object, data: DataSource) -> float:
    """The share of a split that the file gets right in onnxruntime."""
    session = ort.session(path)
    n_right = n_all = 0
    for x, y in _normalised(split, data):
        n_right += int((ort.run(session, x.numpy()).argmax(axis=1) == y.numpy()).sum())
        n_all += len(y)
    return n_right / n_all


def _normalised(split: object, data: DataSource) -> Iterator[tuple[Tensor, Tensor]]:
    for x, y in batches(split, _BATCH):  # type: ignore[arg-type]
        yield normalize(x, data.normalization), y
