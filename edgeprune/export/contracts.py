"""What an export hands to a device: the full and the slim contract, the preprocessing, and the list of features.

    full.onnx         normalised full input            -> logits   (the Gather is inside)
    slim.onnx         normalised kept features         -> logits
    preprocess.onnx   raw full input                   -> normalised kept features: what slim.onnx takes
    features.json     indices, names and scaling of the kept features, for firmware that does without preprocess.onnx

The network file is named after the model. One that keeps all its inputs has no full.onnx and no features.json; its
slim.onnx takes the normalised full
input.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch.export import ExportedProgram

from edgeprune.errors import InputError
from edgeprune.export import ort
from edgeprune.export.onnx import OnnxExport, export_onnx
from edgeprune.export.parity import input_specs, largest_error, outputs_of, quiet, row_chunks, torch_outputs
from edgeprune.features import gathered, slim_contract
from edgeprune.files import check_folder, kept_folder, named_as, write_atomically
from edgeprune.records import ExportedFile, InputFeatures, ModelInfo, Normalization

FEATURES_FORMAT = "edgeprune-features/1"
_FIXED_NAMES = ("full.onnx", "preprocess.onnx", "features.json")
_CHUNK = 256


@dataclass(frozen=True, slots=True)
class _Writing:
    """Where and how the files of one export are written."""

    folder: Path
    info: ModelInfo
    name: str
    opset: int | None
    simplify: bool

    @property
    def network(self) -> str:
        """The file that holds the network: of the slim contract where features are gathered, else of the full one."""
        return f"{self.name}.onnx"


def write_contracts(  # noqa: PLR0913 - one argument a decision of the caller
    program: ExportedProgram,
    info: ModelInfo,
    folder: str | Path,
    raw_inputs: np.ndarray | None = None,
    name: str = "slim",
    opset: int | None = None,
    simplify: bool = True,
    force: bool = True,
) -> list[ExportedFile]:
    """Export every contract of `program` into `folder`, after checking that all agree in onnxruntime.

    Args:
        program: takes the normalised input; may gather its features inside.
        info: the input shape, normalisation, classes and feature names.
        folder: made if it is missing; files in it are replaced only once all checks have passed.
        raw_inputs: real inputs `(n, *info.input_shape)` before normalisation; all are used. None draws seeded ones.
        name: of the network's file, without `.onnx`; the others have fixed names.
        opset: as for `export_onnx`.
        simplify: as for `export_onnx`.
        force: whether files of an earlier export may be replaced; those that the new one lacks are deleted then.

    Raises:
        InputError: the program, the inputs or the normalisation do not fit each other, or there are such files.
        ParityError: two files, or a file and PyTorch, disagree; nothing is left in the folder.
    """
    target = Path(folder)
    earlier = check_contracts(target, name, force)
    # Staged inside the folder: moving the files then cannot fail for want of space.
    with kept_folder(target), tempfile.TemporaryDirectory(prefix=".edgeprune-", dir=target) as staged:
        with named_as(target, os.path.abspath(staged)):
            files = _write_all(_Writing(Path(staged), info, name, opset, simplify), program, raw_inputs)
        for file in files:
            os.replace(file.path, target / Path(file.path).name)
        for stale in {path.name for path in earlier} - {Path(file.path).name for file in files}:
            (target / stale).unlink()
    return [ExportedFile(str(target / Path(file.path).name), file.size_bytes, file.parity) for file in files]


def check_contracts(folder: Path, name: str, force: bool) -> list[Path]:
    """The files of an earlier export in `folder`; refuses early what `write_contracts` would refuse of its place.

    Raises:
        InputError: there are such files and `force` is not given, `folder` cannot be written to, or the network's file
            would have the name of another.
    """
    if f"{name}.onnx" in _FIXED_NAMES:
        raise InputError(f"{name}.onnx: expected a name of its own, got that of another file; rename the model")
    earlier = [folder / f for f in (f"{name}.onnx", *_FIXED_NAMES) if os.path.lexists(folder / f)]
    if earlier and not force:
        raise InputError(f"{earlier[0]}: expected no file of an earlier export, got one; use --force to replace it")
    blocked = next((path for path in earlier if path.is_dir() and not path.is_symlink()), None)
    if blocked is not None:
        raise InputError(f"{blocked}: expected a file to replace, got a folder")
    check_folder(folder)
    return earlier


def _write_all(writing: _Writing, program: ExportedProgram, raw_inputs: np.ndarray | None) -> list[ExportedFile]:
    specs = input_specs(program)
    if len(specs) > 1:
        return [_exported(writing, program, writing.network, "full", raw_inputs)]
    raw = _raw_inputs(writing.info, raw_inputs, specs[0].shape, specs[0].dtype)
    return _write_single_input(writing, program, raw)


def _write_single_input(writing: _Writing, program: ExportedProgram, raw: np.ndarray) -> list[ExportedFile]:
    info = writing.info
    features = gathered(program)
    normalized = _normalized(raw, info.normalization)
    if features is None:
        files = [_exported(writing, program, writing.network, "full", normalized)]
        if info.normalization is None:
            return files
    else:
        kept = _kept(normalized, features)
        files = [
            _exported(writing, program, "full.onnx", "full", normalized),
            _exported(writing, slim_contract(program), writing.network, "slim", kept),
        ]
    files.append(_write_preprocess(writing, features, raw, files[-1].path))
    parity = _check_chain(writing, program, raw, normalized)
    files[-1] = ExportedFile(files[-1].path, files[-1].size_bytes, parity)
    if features is not None:
        files.append(_write_features(writing, features))
    return files


def _exported(writing: _Writing, program: ExportedProgram, name: str, contract: str, inputs: Any) -> ExportedFile:
    done: OnnxExport = export_onnx(
        program,
        writing.folder / name,
        inputs=inputs,
        opset=writing.opset,
        simplify=writing.simplify,
        metadata=metadata_of(writing.info, contract),
    )
    return ExportedFile(done.path, done.size_bytes, done.parity)


# --- inputs


def _raw_inputs(
    info: ModelInfo, given: np.ndarray | None, shape: tuple[int | None, ...], dtype: torch.dtype
) -> np.ndarray:
    """Raw inputs of the program's type, the caller's or seeded ones that are standard normal after normalisation."""
    want = tuple(info.input_shape)
    fits = len(want) + 1 == len(shape) and all(size in (None, have) for size, have in zip(shape[1:], want, strict=True))
    if not fits:
        raise InputError(f"the program takes inputs of shape {shape[1:]}, but the model file states {want}")
    _check_normalization(info.normalization, want)
    array_type = torch.zeros((), dtype=dtype).numpy().dtype
    if given is None:
        given = np.random.default_rng(0).standard_normal((_CHUNK, *want))
        if info.normalization is not None:
            mean, std = (_along_dim_1(values, given.ndim) for values in _scaling(info.normalization))
            given = given * std + mean
    given = np.asarray(given)
    if given.shape[1:] != want or not len(given):
        raise InputError(f"inputs to check the export on: expected (n, {str(want)[1:-1]}), got {given.shape}")
    return np.ascontiguousarray(given, dtype=array_type)


def _check_normalization(normalization: Normalization | None, input_shape: tuple[int, ...]) -> None:
    if normalization is None:
        return
    for name, values in (("mean", normalization.mean), ("std", normalization.std)):
        if len(values) not in (1, input_shape[0]):
            raise InputError(f"normalisation: expected 1 or {input_shape[0]} values of {name}, got {len(values)}")
    if not all(value > 0 for value in normalization.std):
        raise InputError(f"normalisation: expected every std above 0, got {normalization.std}")


def _scaling(normalization: Normalization) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(normalization.mean), np.asarray(normalization.std)


def _along_dim_1(values: np.ndarray, n_dims: int) -> np.ndarray:
    """`(n,)` to `(1, n, 1, ...)` with `n_dims` dims."""
    return values.reshape(1, -1, *(1,) * (n_dims - 2))


def _normalized(raw: np.ndarray, normalization: Normalization | None) -> np.ndarray:
    if normalization is None:
        return raw
    mean, std = (_along_dim_1(values.astype(raw.dtype), raw.ndim) for values in _scaling(normalization))
    return (raw - mean) / std


def _kept(inputs: np.ndarray, features: InputFeatures) -> np.ndarray:
    """The slim input: `(n, k, ...)` for channels and columns, `(n, k)` for features of the flattened input."""
    source = inputs if features.dim == 1 else inputs.reshape(len(inputs), -1)
    return np.ascontiguousarray(source[:, list(features.keep)])


# --- preprocess.onnx


def _write_preprocess(
    writing: _Writing, features: InputFeatures | None, raw: np.ndarray, network_path: str
) -> ExportedFile:
    """Gather first, then scale what was kept: the device touches no more numbers than it needs."""
    network = onnx.load(network_path, load_external_data=False)
    shape = raw.shape[1:]
    nodes: list[onnx.NodeProto] = []
    constants: list[onnx.TensorProto] = []
    value = "input"
    if features is not None:
        if features.dim is None and len(shape) > 1:
            nodes.append(helper.make_node("Flatten", [value], ["flat"], name="flatten", axis=1))
            value = "flat"
        constants.append(numpy_helper.from_array(np.asarray(features.keep, dtype=np.int64), "keep"))
        nodes.append(helper.make_node("Gather", [value, "keep"], ["kept"], name="gather", axis=1))
        value = "kept"
    out_shape = _kept(raw[:1], features).shape[1:] if features is not None else shape
    if writing.info.normalization is not None:
        mean, std = _feature_scaling(writing.info.normalization, features, shape)
        for name, op, scale in (("mean", "Sub", mean), ("std", "Div", std)):
            array = _along_dim_1(scale.astype(raw.dtype), len(out_shape) + 1)
            constants.append(numpy_helper.from_array(array, name))
            nodes.append(helper.make_node(op, [value, name], [f"{value}_{op.lower()}"], name=op.lower()))
            value = f"{value}_{op.lower()}"
    nodes[-1].output[0] = "features"
    kind = helper.np_dtype_to_tensor_dtype(raw.dtype)
    sizes = network.graph.input[0].type.tensor_type.shape.dim
    taken = [size.dim_param or size.dim_value for size in sizes]  # by the network; height and width may be free
    graph = helper.make_graph(
        nodes,
        "preprocess",
        [helper.make_tensor_value_info("input", kind, taken if features is None else ["batch", *shape])],
        [helper.make_tensor_value_info("features", kind, taken)],
        constants,
    )
    model = helper.make_model(
        graph, opset_imports=list(network.opset_import), ir_version=network.ir_version, producer_name="edgeprune"
    )
    helper.set_model_props(model, metadata_of(writing.info, "preprocess"))
    onnx.checker.check_model(model, full_check=True)
    path = writing.folder / "preprocess.onnx"
    content = model.SerializeToString(deterministic=True)
    write_atomically(path, content)
    return ExportedFile(str(path), len(content), None)


def _feature_scaling(
    normalization: Normalization, features: InputFeatures | None, shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and std `(k,)`, one per kept feature; per channel where all inputs are kept."""
    mean, std = (np.broadcast_to(values, (shape[0],)) for values in _scaling(normalization))
    if features is None:
        return mean, std
    per_channel = features.size // shape[0] if features.dim is None else 1
    channels = np.asarray(features.keep) // per_channel
    return mean[channels], std[channels]


# --- features.json


def _write_features(writing: _Writing, features: InputFeatures) -> ExportedFile:
    info = writing.info
    normalization = info.normalization or Normalization((0.0,), (1.0,))
    mean, std = _feature_scaling(normalization, features, tuple(info.input_shape))
    document = {
        "format": FEATURES_FORMAT,
        "input_shape": list(info.input_shape),
        "size": features.size,
        "dim": features.dim,
        "indices": list(features.keep),
        "names": _feature_names(info, features),
        "scaling": {"mean": mean.tolist(), "std": std.tolist()},
    }
    path = writing.folder / "features.json"
    content = (json.dumps(document, indent=1) + "\n").encode()
    write_atomically(path, content)
    return ExportedFile(str(path), len(content), None)


def _feature_names(info: ModelInfo, features: InputFeatures) -> list[str]:
    """The data's names where it has them, else the position, e.g. `x[0,3,5]`: channel 0, row 3, column 5."""
    if len(info.feature_names) == features.size:
        return [info.feature_names[index] for index in features.keep]
    shape = (features.size,) if features.dim == 1 else tuple(info.input_shape)
    places = (np.unravel_index(index, shape) for index in features.keep)
    return ["x[" + ",".join(str(int(place)) for place in position) + "]" for position in places]


# --- all agree


def _check_chain(writing: _Writing, program: ExportedProgram, raw: np.ndarray, normalized: np.ndarray) -> float:
    """preprocess.onnx then slim.onnx on raw inputs = full.onnx on normalised ones = PyTorch; the largest error."""
    preprocess, slim = (ort.session(writing.folder / name) for name in ("preprocess.onnx", writing.network))
    full_path = writing.folder / "full.onnx"
    full = ort.session(full_path) if full_path.exists() else None
    with quiet():
        module = program.module()
    worst = 0.0
    for rows in row_chunks(len(raw), raw[0].size):
        chained = outputs_of(slim, outputs_of(preprocess, [raw[rows]]))
        wanted = torch_outputs(module, [normalized[rows]])
        worst = max(worst, largest_error(wanted, chained, f"preprocess.onnx then {writing.network} against PyTorch"))
        if full is not None:
            wanted = outputs_of(full, [normalized[rows]])
            worst = max(
                worst, largest_error(wanted, chained, f"preprocess.onnx then {writing.network} against full.onnx")
            )
    return worst


# --- what a file says of itself


def metadata_of(info: ModelInfo, contract: str) -> dict[str, str]:
    """ONNX metadata: the contract (`full`, `slim` or `preprocess`) and what is known of the network's inputs."""
    entries: dict[str, Any] = {"input_shape": list(info.input_shape)}
    if info.classes:
        entries["classes"] = list(info.classes)
    if info.normalization is not None:
        entries["normalization"] = {
            name: [float(value) for value in values]
            for name, values in (("mean", info.normalization.mean), ("std", info.normalization.std))
        }
    return {"edgeprune.contract": contract, **{f"edgeprune.{key}": json.dumps(value) for key, value in entries.items()}}


def normalization_in(metadata: Mapping[str, str], where: str) -> Normalization | None:
    """The normalisation that a file states, or None.

    Raises:
        InputError: the entry is malformed; `where` names the file.
    """
    text = metadata.get("edgeprune.normalization")
    if text is None:
        return None
    try:
        entry = json.loads(text)
        mean, std = (tuple(float(value) for value in entry[key]) for key in ("mean", "std"))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(f"{where}: edgeprune.normalization: expected lists mean and std, got {text[:80]!r}") from error
    if not mean or not std or not np.isfinite([*mean, *std]).all() or min(std) <= 0:
        raise InputError(f"{where}: edgeprune.normalization: expected finite values and std above 0, got {text[:80]!r}")
    return Normalization(mean, std)
