"""What an export hands to a device: the full and the slim contract, the preprocessing, and the list of features.

    full.onnx         normalised full input            -> logits   (the Gather is inside)
    slim.onnx         normalised kept features         -> logits
    preprocess.onnx   raw full input                   -> normalised kept features: what slim.onnx takes
    sound.onnx        samples of sound                 -> what the network's file takes, where the data are sounds
    features.json     for firmware: what each file takes and gives, the kept features, scaling and classes

With the preprocessing folded in, full.onnx takes the raw full input (uint8 where the data are bytes, else floats),
slim.onnx the raw kept features, and preprocess.onnx only gathers those.

Of a token input whose vocabulary was cut, full.onnx takes the old ids and slim.onnx the new ones; preprocess.onnx makes
these of those where it is the only input, and features.json lists them.

The network file is named after the model. One that keeps all its inputs has no full.onnx; its slim.onnx takes the full
input, and where that is raw there is no preprocess.onnx either.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from onnx import helper
from torch.export import ExportedProgram

from edgeprune.errors import InputError, ParityError
from edgeprune.export import ort
from edgeprune.export.answers import metadata as outputs_metadata
from edgeprune.export.description import FEATURES_FILE, Described, write_description
from edgeprune.export.front import (
    drawn_raw,
    fold_preprocessing,
    is_identity,
    kept,
    normalized,
    preprocess_model,
    raw_bytes,
)
from edgeprune.export.metadata import metadata_of
from edgeprune.export.namedcontracts import write_named
from edgeprune.export.onnx import check_fits_onnx
from edgeprune.export.parity import largest_error, outputs_of
from edgeprune.export.sound import LARGEST, is_of_sounds, sound_bytes, write_sound
from edgeprune.export.state import Whole, check_stateless
from edgeprune.export.writing import FULL, PREPROCESS, SOUND, Writing, opened, warned
from edgeprune.files import check_folder, staged_files
from edgeprune.graph.specs import fits, fitted, input_specs, row_chunks
from edgeprune.graph.tokens import kept_vocabularies
from edgeprune.pruning.slim_inputs import gathered, slim_contract
from edgeprune.records import InputFeatures, InputInfo, ModelInfo
from edgeprune.results import ExportedFile
from edgeprune.tasks.task import Task
from edgeprune.units import size_text

_FIXED_NAMES = (FULL, PREPROCESS, SOUND, FEATURES_FILE)
_CHUNK = 256


def write_contracts(  # noqa: PLR0913 - one argument a decision of the caller
    program: ExportedProgram,
    info: ModelInfo,
    folder: str | Path,
    raw_inputs: np.ndarray | Mapping[str, np.ndarray] | None = None,
    name: str = "slim",
    opset: int | None = None,
    simplify: bool = True,
    force: bool = True,
    preprocess: Literal["apart", "fold"] = "apart",
    byte_scale: float | None = None,
    inputs: Sequence[InputInfo] = (),
    task: Task | None = None,
    preparation: Mapping[str, Any] | None = None,
    leave_out: Callable[[str], None] = warned,
) -> list[ExportedFile]:
    """Export every contract of `program` into `folder`, after checking that all agree in onnxruntime.

    Args:
        program: takes the normalised input; may gather its features inside.
        info: the input shape, normalisation, classes and feature names.
        folder: made if it is missing; files in it are replaced only once all checks have passed.
        raw_inputs: real inputs `(n, *info.input_shape)` before normalisation, by name where there are several; all are
            used. None draws seeded ones.
        name: of the network's file, without `.onnx`; the others have fixed names.
        opset: as for `export_onnx`.
        simplify: as for `export_onnx`.
        force: whether files of an earlier export may be replaced; those that the new one lacks are deleted then.
        preprocess: "fold" puts scaling and normalisation into the networks' graphs, which then take raw inputs.
        byte_scale: what a byte is multiplied by to be a raw input, e.g. 1/255: what is folded takes uint8 then, else
            raw floats. "apart" says it in features.json.
        inputs: what the data say of inputs by name, their byte scales among it.
        task: what the outputs are for, see `export_onnx`.
        preparation: how raw inputs are made of files, which features.json states.
        leave_out: is told why a file is not written that the network can do without, sound.onnx; a warning by default.

    Raises:
        InputError: the program, the inputs or the normalisation do not fit each other, or there are such files.
        ParityError: two files, or a file and PyTorch, disagree; nothing is left in the folder.
    """
    if preprocess not in ("apart", "fold"):
        raise InputError(f"--preprocess: expected apart or fold, got {preprocess!r}")
    check_fits_onnx(program)
    target = Path(folder)
    earlier = check_contracts(target, name, force)
    with staged_files(target, earlier) as staged:
        fold, said = preprocess == "fold", preparation or {}
        writing = Writing(staged, info, name, opset, simplify, fold, byte_scale, tuple(inputs), task, said, leave_out)
        files = _write_all(writing, program, raw_inputs)
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


def _write_all(writing: Writing, program: ExportedProgram, raw_inputs: Any) -> list[ExportedFile]:
    if len(input_specs(program)) > 1 or kept_vocabularies(program):
        return write_named(writing, program, raw_inputs)
    features = gathered(program)
    writing.preprocessing(features).check()
    if writing.fold:
        check_stateless(program, "--preprocess fold")
        writing.preprocessing(features).check_foldable()
    raw = _raw_inputs(writing, program, raw_inputs)
    if writing.fold:
        return _write_folded(writing, program, features, raw)
    return _write_apart(writing, program, features, raw)


def _write_apart(
    writing: Writing, program: ExportedProgram, features: InputFeatures | None, raw: np.ndarray
) -> list[ExportedFile]:
    inputs = normalized(raw, writing.info.normalization)
    if features is None:
        files = [_exported(writing, program, "full", inputs)]
        if is_identity(writing.info.normalization):
            return _described(writing, files, None, str(raw.dtype))
    else:
        files = [
            _exported(writing, program, "full", inputs, FULL),
            _exported(writing, slim_contract(program), "slim", kept(inputs, features), features=features),
        ]
    files.append(_write_preprocess(writing, features, opened(files[-1])))
    files[-1] = replace(files[-1], parity=_check_chain(writing, program, raw, inputs))
    return _described(writing, files, features, str(raw.dtype))


def _write_folded(
    writing: Writing, program: ExportedProgram, features: InputFeatures | None, raw: np.ndarray
) -> list[ExportedFile]:
    """Export the network as it is, then put the front before it; what is checked is the file that the device gets."""
    inputs = normalized(raw, writing.info.normalization)
    handed = raw if writing.byte_scale is None else raw_bytes(raw, writing.byte_scale)
    network, taken = (program, inputs) if features is None else (slim_contract(program), kept(inputs, features))
    plain = opened(_exported(writing, network, "network", taken))
    if features is None:
        file = _put_front(writing, program, plain, "full", (handed, inputs))
        return _described(writing, [file], None, str(handed.dtype))
    files = [
        _put_front(writing, program, plain, "full", (handed, inputs), features),
        _put_front(writing, program, plain, "slim", (kept(handed, features), inputs), features),
        _write_preprocess(writing, features, plain),
    ]
    files[-1] = replace(files[-1], parity=_check_chain(writing, program, handed, inputs))
    return _described(writing, files, features, str(handed.dtype))


def _put_front(  # noqa: PLR0913 - what it writes, and what that is checked on
    writing: Writing,
    program: ExportedProgram,
    plain: onnx.ModelProto,
    contract: Literal["full", "slim"],
    samples: tuple[np.ndarray, np.ndarray],
    features: InputFeatures | None = None,
) -> ExportedFile:
    """One network with its front; `samples` are what the device hands over and the same, full and normalised."""
    folded = fold_preprocessing(plain, writing.preprocessing(features), gather=contract == "full")
    stated = metadata_of(writing.info, contract, writing.preprocessing(features), folded=True)
    helper.set_model_props(folded, stated | outputs_metadata(program))
    name = FULL if contract == "full" and features else writing.network
    file = writing.written(name, folded)
    session = ort.session(Path(file.path))
    network = Whole(program)
    handed, inputs = samples
    errors = (
        largest_error(network([inputs[rows]]), outputs_of(session, [handed[rows]]), f"{name} folded", writing.task)
        for rows in row_chunks(len(inputs), inputs[0].size)
    )
    return replace(file, parity=max(errors))


def _exported(  # noqa: PLR0913 - what it writes, and what that is checked on
    writing: Writing,
    program: ExportedProgram,
    contract: str,
    inputs: np.ndarray,
    name: str = "",
    features: InputFeatures | None = None,
) -> ExportedFile:
    stated = metadata_of(writing.info, contract, writing.preprocessing(features))
    return writing.exported(program, name or writing.network, inputs, stated)


# --- inputs


def _raw_inputs(writing: Writing, program: ExportedProgram, given: np.ndarray | None) -> np.ndarray:
    """Raw inputs of the program's type, the caller's or ones that are as drawn for the program after normalisation."""
    [spec] = input_specs(program)
    want = tuple(writing.info.input_shape)
    if not fits(spec.shape[1:], want):
        raise InputError(f"the program takes inputs of shape {spec.shape[1:]}, but the model file states {want}")
    if given is None:
        byte_scale = writing.byte_scale if writing.fold else None
        given = drawn_raw(program, _CHUNK, want, writing.info.normalization, byte_scale)
    [raw] = fitted([replace(spec, shape=(None, *want))], np.asarray(given), "inputs to check the export on")
    return raw.numpy()


# --- preprocess.onnx and features.json


def _write_preprocess(writing: Writing, features: InputFeatures | None, network: onnx.ModelProto) -> ExportedFile:
    """Gather first, then scale what was kept: the device touches no more numbers than it needs."""
    preprocessing = writing.preprocessing(features)
    model = preprocess_model(network, preprocessing, scale=not writing.fold)
    helper.set_model_props(model, metadata_of(writing.info, "preprocess", preprocessing, folded=writing.fold))
    onnx.checker.check_model(model, full_check=True)
    return writing.written(PREPROCESS, model)


def _described(
    writing: Writing, files: list[ExportedFile], features: InputFeatures | None, input_type: str
) -> list[ExportedFile]:
    """The files, sound.onnx where data are sounds, and features.json, which says of each what goes in and out."""
    if is_of_sounds(writing.preparation):
        files = [*files, *_sound(writing, features)]
    contracts = writing.contracts(files)
    said = Described(
        writing.info, features, contracts, input_type, writing.fold, writing.byte_scale, preparation=writing.preparation
    )
    return [*files, write_description(writing.folder, said)]


def _sound(writing: Writing, features: InputFeatures | None) -> list[ExportedFile]:
    """sound.onnx; nothing where it would be too large or gives something else than the data: the others are right."""
    n_bytes = sound_bytes(writing.preparation)
    if n_bytes > LARGEST:
        writing.leave_out(f"{SOUND}: expected at most {size_text(LARGEST)}, got {size_text(n_bytes)} at this rate")
        return []
    network = onnx.load(writing.folder / writing.network, load_external_data=False)
    try:
        return [write_sound(writing, features, network)]
    except ParityError as error:
        (writing.folder / SOUND).unlink(missing_ok=True)
        writing.leave_out(str(error))
        return []


# --- all agree


def _check_chain(writing: Writing, program: ExportedProgram, raw: np.ndarray, inputs: np.ndarray) -> float:
    """preprocess.onnx then slim.onnx on raw inputs = full.onnx = PyTorch on normalised `inputs`; the largest error."""
    preprocess, slim = (ort.session(writing.folder / name) for name in (PREPROCESS, writing.network))
    full_path = writing.folder / FULL
    full = ort.session(full_path) if full_path.exists() else None
    chain = f"preprocess.onnx then {writing.network}"
    network = Whole(program)
    worst = 0.0
    for rows in row_chunks(len(raw), raw[0].size):
        chained = outputs_of(slim, outputs_of(preprocess, [raw[rows]]))
        wanted = network([inputs[rows]])
        chained = chained[: len(wanted)]  # what follows is a state
        worst = max(worst, largest_error(wanted, chained, f"{chain} against PyTorch", writing.task))
        if full is not None:
            wanted = outputs_of(full, [raw[rows] if writing.fold else inputs[rows]])[: len(wanted)]
            worst = max(worst, largest_error(wanted, chained, f"{chain} against full.onnx", writing.task))
    return worst
