"""sound.onnx: from samples of sound to what the network's file takes, the logarithm of mel bands on the way.

    samples (batch, n_samples) -> Conv, stride hop: the DFT's real and imaginary parts, times the Hann window
    -> Mul: squares -> Conv 1x1: mel bands, the floor as its bias -> Log -> gather, scale as preprocess.onnx does

It is `data.sounds.LogMel` in float32 and in operators that every runtime has. A band that is cut is not computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, compose, helper, numpy_helper

from edgeprune.data.sounds import FLOOR, LogMel, hann, mel_weights
from edgeprune.errors import ParityError
from edgeprune.export import ort
from edgeprune.export.front import Preprocessing, feature_scaling, kept, normalized, preprocess_model, spread_numbers
from edgeprune.export.metadata import metadata_of, slim_input
from edgeprune.export.parity import outputs_of
from edgeprune.export.writing import SOUND, Writing
from edgeprune.records import IDENTITY, InputFeatures
from edgeprune.results import ExportedFile

LARGEST = 32_000_000  # bytes; beyond that from 82,000 samples a second on, as it grows with the square of the rate
TOLERANCE = 1e-2  # of a band's logarithm, that is 1 % of its power: float32 beside float64 where a sound is loud
_PREFIX = "sound_"
_BANDS = f"{_PREFIX}bands"


def is_of_sounds(preparation: Mapping[str, Any]) -> bool:
    """Whether raw inputs are made of sounds."""
    return preparation.get("kind") == "log-mel"


def sound_bytes(preparation: Mapping[str, Any]) -> int:
    """About how large sound.onnx is: the waves of the DFT, a real and an imaginary part of each frequency, are most."""
    mel = LogMel.of_stated(preparation)
    return 2 * len(_used(mel_weights(mel.rate, mel.n_fft, mel.n_mels))) * mel.window * np.dtype(np.float32).itemsize


def write_sound(writing: Writing, features: InputFeatures | None, network: onnx.ModelProto) -> ExportedFile:
    """Write sound.onnx, checked on sounds of all kinds beside the features that networks are trained on.

    Args:
        features: those that the network's file takes; None for all.
        network: that file.

    Raises:
        ParityError: the file gives something else than the pipeline.
    """
    mel, preprocessing = LogMel.of_stated(writing.preparation), writing.preprocessing(features)
    bands, behind = tuple(range(mel.n_mels)), preprocessing
    if features is not None and features.dim == 1 and mel.layout == "bands":
        shape, normalization = slim_input(preprocessing)
        bands, behind = features.keep, replace(preprocessing, shape=shape, normalization=normalization, features=None)
    front = preprocess_model(network, behind, scale=not writing.fold)
    own = _log_mel(mel, bands, front)
    model = compose.merge_models(own, front, io_map=[(own.graph.output[0].name, front.graph.input[0].name)])
    model.producer_name = "edgeprune"
    del model.metadata_props[:]
    helper.set_model_props(model, metadata_of(writing.info, "sound", Preprocessing((mel.n_samples,))))
    onnx.checker.check_model(model, full_check=True)
    file = writing.written(SOUND, model)
    return replace(file, parity=_largest_error(Path(file.path), mel, preprocessing, scaled=not writing.fold))


def _log_mel(mel: LogMel, bands: tuple[int, ...], front: onnx.ModelProto) -> onnx.ModelProto:
    """The graph from samples to the logarithm of these bands, of the type, opset and version of what follows."""
    weights = mel_weights(mel.rate, mel.n_fft, mel.n_mels)[:, list(bands)]
    used = _used(weights)
    angles = 2 * np.pi * np.outer(used, np.arange(mel.window)) / mel.n_fft
    waves = np.concatenate([np.cos(angles), np.sin(angles)]) * hann(mel.window)
    triangles = np.concatenate([weights[used], weights[used]]).T
    constants = {
        "one_channel": np.array([0, 1, -1], np.int64),
        "waves": waves[:, None].astype(np.float32),
        "triangles": triangles[:, :, None].astype(np.float32),
        "floor": np.full(len(bands), FLOOR, np.float32),
        "image": np.array([0, 1, len(bands), mel.n_frames], np.int64),
    }
    steps: list[tuple[str, list[str], dict[str, Any]]] = [
        ("Reshape", ["samples", "one_channel"], {}),
        ("Conv", ["0", "waves"], {"strides": [mel.hop]}),
        ("Mul", ["1", "1"], {}),
        ("Conv", ["2", "triangles", "floor"], {}),
        ("Log", ["3"], {}),
    ]
    if mel.layout == "image":
        steps.append(("Reshape", [str(len(steps) - 1), "image"], {}))
    kind = front.graph.input[0].type.tensor_type.elem_type
    if kind != TensorProto.FLOAT:
        steps.append(("Cast", [str(len(steps) - 1)], {"to": kind}))
    nodes = [
        helper.make_node(op, [_named(name) for name in inputs], [_named(str(number))], _named(f"{op}_{number}"), **said)
        for number, (op, inputs, said) in enumerate(steps)
    ]
    nodes[-1].output[0] = _BANDS
    read = {name for node in nodes for name in node.input}
    held = [numpy_helper.from_array(array, _named(name)) for name, array in constants.items() if _named(name) in read]
    shape = [len(bands), mel.n_frames] if mel.layout == "bands" else [1, len(bands), mel.n_frames]
    taken = helper.make_tensor_value_info("samples", TensorProto.FLOAT, ["batch", mel.n_samples])
    given = helper.make_tensor_value_info(_BANDS, kind, ["batch", *shape])
    graph = helper.make_graph(nodes, "sound", [taken], [given], held)
    return helper.make_model(graph, opset_imports=list(front.opset_import), ir_version=front.ir_version)


def _used(weights: np.ndarray) -> np.ndarray:
    """The frequencies that any of these bands `(n_frequencies, n_bands)` holds."""
    return np.flatnonzero(weights.any(axis=1))


def _named(name: str) -> str:
    return name if name == "samples" else f"{_PREFIX}{name}"


def _largest_error(path: Path, mel: LogMel, preprocessing: Preprocessing, scaled: bool) -> float:
    """The largest difference of a logarithm from the pipeline's own; ParityError above the tolerance."""
    session, worst = ort.session(path), 0.0
    normalization = preprocessing.normalization if scaled else IDENTITY
    scaling = feature_scaling(replace(preprocessing, normalization=normalization))
    for name, sound in _sounds(mel):
        bands = mel.of(sound)
        wanted = normalized((bands if mel.layout == "bands" else bands[None])[None], normalization)
        if preprocessing.features is not None:
            wanted = kept(wanted, preprocessing.features)
        [got] = outputs_of(session, [sound[None]])
        _, std = spread_numbers(scaling, wanted.ndim)
        error = float((np.abs(got.astype(np.float64) - wanted) * std).max())
        if not error <= TOLERANCE:
            raise ParityError(
                f"{path.name}: expected the logarithms of {name} within {TOLERANCE:g} of the data's, got {error:.2g}"
            )
        worst = max(worst, error)
    return worst


def _sounds(mel: LogMel) -> Iterator[tuple[str, np.ndarray]]:
    """Sounds float32 `(n_samples,)` of all kinds and levels, by what they are."""
    rng, time = np.random.default_rng(0), np.arange(mel.n_samples) / mel.rate
    sweep = np.sin(np.pi * mel.rate / 2 * time**2 / time[-1])
    yield "silence", np.zeros(mel.n_samples, np.float32)
    yield "a click", np.eye(1, mel.n_samples, mel.n_samples // 2, dtype=np.float32)[0]
    yield "a loud tone", np.sign(np.sin(2 * np.pi * 440 * time)).astype(np.float32)
    for level in (1.0, 1e-2, 1e-4):
        yield f"noise at {level:g}", (level * rng.uniform(-1, 1, mel.n_samples)).astype(np.float32)
        yield f"a sweep at {level:g}", (level * sweep).astype(np.float32)
