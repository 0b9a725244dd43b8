"""Reading models: the only module that opens checkpoints. Its content tells what a file is, not its suffix."""

from __future__ import annotations

import io
import os
import pickle
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from edgeprune.data.capturing import capture_named
from edgeprune.errors import EdgepruneError, InputError, UnsafeFileError
from edgeprune.formats import architectures
from edgeprune.formats.digests import digest
from edgeprune.formats.filekinds import foreign_kind, foreign_zip, is_torchscript, pickled_class
from edgeprune.formats.info import CHECKPOINT_FORMAT, INFO_FILE, info_from_dict
from edgeprune.formats.modelinputs import check_none_settled, checked_inputs, with_data_inputs
from edgeprune.formats.onnxin import OnnxFile, is_onnx, program_of, read_network
from edgeprune.formats.plain import tensors_of
from edgeprune.formats.pt2 import check_names, list_records, read_program, zip_names
from edgeprune.formats.recapture import check_same, check_size_free, rebuilt, with_free
from edgeprune.formats.shards import shards_of
from edgeprune.formats.sharing import templates_in
from edgeprune.formats.statedict import StateChoice, fitted_weights, module_in
from edgeprune.formats.trust import same_arch
from edgeprune.graph.capture import Program
from edgeprune.graph.faults import public
from edgeprune.graph.single import capture_single
from edgeprune.graph.sizes import Asked
from edgeprune.graph.weights import check_finite
from edgeprune.lines import error_line, one_line, shown
from edgeprune.reading import parse_json, read_file
from edgeprune.records import InputInfo, Model, ModelInfo
from edgeprune.usercode import running_user_code

__all__ = ["digest", "load", "load_model"]

_PROGRAM, _FOR_RUNTIMES = ".pt2", (".onnx", ".ort")
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"  # how such files begin
_WAY_OUT = "save model.state_dict() and give --arch, or trust the file and give --unsafe-pickle"


@dataclass(frozen=True, slots=True)
class _Request:
    arch: str | None
    input_shape: tuple[int, ...] | None
    unsafe_pickle: bool
    data_shape: tuple[int, ...] | None
    dynamic_size: bool
    module: str | None = None
    choice: StateChoice = field(default_factory=StateChoice)
    notes: list[str] = field(default_factory=list)
    dynamic: Mapping[str, Asked] | None = None
    inputs: tuple[InputInfo, ...] = ()
    data_inputs: tuple[InputInfo, ...] = ()


@public("load_model")
@running_user_code()
def load(  # noqa: PLR0913 - the public call: every choice has a name and a default
    path: str | os.PathLike[str],
    *,
    arch: str | None = None,
    input_shape: tuple[int, ...] | None = None,
    unsafe_pickle: bool = False,
    data_shape: tuple[int, ...] | None = None,
    dynamic_size: bool = False,
    module: str | None = None,
    state_key: str | None = None,
    ignore_keys: str | None = None,
    dynamic: Mapping[str, Asked] | None = None,
    inputs: Sequence[InputInfo] = (),
    data_inputs: Sequence[InputInfo] = (),
) -> Model:
    """Load a model as an exported program with a dynamic batch.

    Args:
        path: an edgeprune checkpoint, a state_dict (.pt or .safetensors), an exported program (.pt2), or an .onnx file.
        arch: what builds the network of a bare state_dict, see `edgeprune.formats.architectures.build`.
        input_shape: one input without the batch, e.g. `(3, 224, 224)`, where the file does not say.
        unsafe_pickle: unpickle a whole module; this runs whatever code the file holds.
        data_shape: that of the data which go with the model; it is one input's shape where nothing else says it.
        dynamic_size: height and width are free too, see `edgeprune.capture`.
        module: take this part of the network alone, by its dotted name; `input_shape` is that of the part.
        state_key: which weights of a checkpoint that holds several, e.g. `ema`, see `edgeprune.formats.statedict`.
        ignore_keys: patterns of names that are no weights of the network, e.g. `loss.*,similarity_*`.
        dynamic: the free dims of the inputs that are named, see `edgeprune.capture`.

    Raises:
        UnsafeFileError: the file needs unpickling, or is an exported program with unknown operators.
        InputError: missing, damaged, does not fit its architecture, or holds NaN or infinity.
    """
    file = Path(path)
    data = read_file(file, "model")
    try:
        choice = StateChoice(state_key, _patterns(ignore_keys))
        request = _Request(
            arch, input_shape, unsafe_pickle, data_shape, dynamic_size, module, choice, dynamic=dynamic,
            inputs=tuple(inputs), data_inputs=tuple(data_inputs),
        )  # fmt: skip
        content = _whole(file, data, unsafe_pickle)
        program, info = _from_content(content, request)
        check_finite(program)
        check_size_free(program, dynamic_size)
        shared = templates_in(content, program.state_dict)
        program, info = checked_inputs(program, info, input_shape, request.inputs)
    except EdgepruneError as error:
        raise type(error)(f"{file}: {error}") from error
    return Model(program, info, digest(program), file.stem, tuple(request.notes), shared)


load_model = load  # under this name in the package


@running_user_code()
def load_architecture(
    spec: str,
    input_shape: tuple[int, ...] | None = None,
    dynamic_size: bool = False,
    module: str | None = None,
    dynamic: Mapping[str, Asked] | None = None,
    inputs: Sequence[InputInfo] = (),
) -> Model:
    """An architecture with random weights, for what depends on its graph alone; arguments and errors as `load`."""
    try:
        request = _Request(spec, input_shape, False, None, dynamic_size, module, dynamic=dynamic, inputs=tuple(inputs))
        check_none_settled(inputs)
        program, info = _from_module(architectures.build(spec), request)
    except EdgepruneError as error:
        raise type(error)(f"{spec}: {str(error).removeprefix(f'arch {spec}: ')}") from error
    return Model(program, info, digest(program), spec)


def carries_network(path: Path) -> bool:
    """Whether a file holds a network of PyTorch's, graph and all, rather than one for a runtime, or nothing known.

    Raises:
        InputError: it holds weights alone, is damaged or needs unpickling.
    """
    if path.suffix in (_PROGRAM, *_FOR_RUNTIMES) or not path.is_file():
        return path.suffix == _PROGRAM
    data = read_file(path, "model")
    if not (_is_safetensors(data) or data.startswith((_ZIP, _PICKLE))):
        return False
    try:
        content = _content(data, unsafe=False)
    except EdgepruneError as error:
        raise type(error)(f"{path}: {error}") from error
    if isinstance(content, _Pt2) or (isinstance(content, Mapping) and _is_checkpoint(content)):
        return True
    raise InputError(
        f"{path}: expected an .onnx, .ort or .pt2 file or a checkpoint of edgeprune's, got weights without their "
        "network; edgeprune export --onnx --arch ... writes it as ONNX"
    )


def _is_checkpoint(value: Mapping[str, Any]) -> bool:
    kind = value.get("format")
    return isinstance(kind, str) and kind.startswith("edgeprune-checkpoint/")


def _patterns(text: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())


def _whole(file: Path, data: bytes, unsafe: bool) -> Any:
    """What a file holds; the weights of all files together, where they are spread over several."""
    if is_onnx(file, data):
        return read_network(file)
    paths = shards_of(file, data)
    if paths == [file]:
        return _content(data, unsafe)
    weights: dict[str, Any] = {}
    for path in paths:
        part = _content(data if path == file else read_file(path, "model"), unsafe)
        if not isinstance(part, Mapping):
            raise InputError(f"{path.name}: expected a part of a state_dict, got a {type(part).__name__.strip('_')}")
        weights.update(part)
    return weights


@dataclass(frozen=True, slots=True, eq=False)
class _Pt2:
    program: ExportedProgram
    extra: Mapping[str, bytes]


def _content(data: bytes, unsafe: bool) -> Any:
    """What a file holds: an exported program, or what torch.save or safetensors wrote."""
    if _is_safetensors(data):  # first: its length may begin with a pickle's byte
        return _safetensors(data)
    if data.startswith(_ZIP):
        return _archive(data, unsafe)
    if data.startswith(_PICKLE):
        return _unpickle(data, unsafe)
    kind = foreign_kind(data) or "a file of another kind"
    raise InputError(f"expected a state_dict, a checkpoint, a .safetensors, a .pt2 or an .onnx, got {kind}")


def _archive(data: bytes, unsafe: bool) -> Any:
    """What a zip holds, as torch.save and torch.export.save write them."""
    plain = _names(zip_names(data))
    if is_torchscript(plain):  # whose records are compressed, and those of what follows never are
        raise InputError(
            "expected a state_dict or an exported program, got a TorchScript file; save model.state_dict() and give "
            "--arch"
        )
    kind = foreign_zip(plain)
    if kind is not None:
        raise InputError(f"expected a model file, got {kind}")
    names = _names(record.filename for record in list_records(data))
    if "archive_format" in names:
        if unsafe:
            raise InputError(
                "expected --unsafe-pickle only for a pickled module, got it for a .pt2, which never needs it"
            )
        return _Pt2(*read_program(data))
    if "serialized_exported_program.json" in names:
        raise UnsafeFileError(
            "expected a .pt2 of PyTorch 2.8 or later, got an older one that needs unpickling; export again"
        )
    if "data.pkl" in names:
        return _unpickle(data, unsafe)
    raise InputError("expected a model file, got another kind of zip archive")


def _names(records: Iterable[str]) -> list[str]:
    """The records' names without the root folder that PyTorch puts before each."""
    return [name.partition("/")[2] or name for name in records]


def _unpickle(data: bytes, unsafe: bool) -> Any:
    """What torch.save wrote, by the weights-only loader; by the unlimited one where the user says so."""
    try:
        with warnings.catch_warnings(action="ignore"):  # about the pickle protocol
            return torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        if not unsafe:
            name = pickled_class(str(error))
            got = "objects that need unpickling" + (f" ({name})" if name else "")
            raise UnsafeFileError(f"expected weights only, got {got}; {_WAY_OUT}") from error
    except Exception as error:
        raise InputError(f"expected a whole file of torch.save, got a damaged one ({error_line(error)})") from error
    try:
        return torch.load(io.BytesIO(data), weights_only=False, map_location="cpu")  # noqa: S614  (--unsafe-pickle)
    except Exception as error:
        raise InputError(f"expected a file that can be unpickled here, got {error_line(error)}") from error


def unpack(data: bytes, where: str) -> Any:
    """Tensors and plain values as torch.save wrote them; nothing is unpickled, and errors name `where`."""
    try:
        return _unpickle(data, unsafe=False)
    except UnsafeFileError as error:
        raise UnsafeFileError(f"{where}: expected tensors and plain values, got what has to be unpickled") from error
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _is_safetensors(data: bytes) -> bool:
    """Eight bytes of length, then a JSON header of that length."""
    return len(data) > 9 and int.from_bytes(data[:8], "little") <= len(data) - 8 and data[8:9] == b"{"


def _safetensors(data: bytes) -> dict[str, torch.Tensor]:
    from safetensors.torch import load as load_safetensors

    try:
        return dict(load_safetensors(data))
    except Exception as error:
        raise InputError(f"expected a whole .safetensors file, got a damaged one ({error_line(error)})") from error


def _from_content(value: Any, request: _Request) -> tuple[Program, ModelInfo]:
    if isinstance(value, OnnxFile):
        return _from_onnx(value, request)
    check_none_settled(request.inputs)
    if isinstance(value, _Pt2):
        return _from_pt2(value, request)
    if isinstance(value, nn.Module):
        return _from_module(value, request)
    if not isinstance(value, Mapping):
        raise InputError(f"expected a state_dict or a checkpoint, got a {type(value).__name__}")
    if _is_checkpoint(value):
        return _from_checkpoint(value, request)
    module = module_in(value, request.choice)
    if module is not None:  # only ever in a file that was trusted
        return _from_module(module.float(), request)
    return _from_state_dict(value, request)


def _from_checkpoint(value: Mapping[str, Any], request: _Request) -> tuple[Program, ModelInfo]:
    if value["format"] != CHECKPOINT_FORMAT:
        raise InputError(f"expected a checkpoint {CHECKPOINT_FORMAT}, got {shown(value['format'])}")
    carried, state = value.get("program"), value.get("state_dict")
    if not (isinstance(carried, torch.Tensor) and carried.dtype == torch.uint8 and carried.dim() == 1):
        raise InputError("checkpoint: expected its program as bytes, got none")
    weights = tensors_of(state)
    program, _ = read_program(carried.numpy().tobytes(), weights)
    return _stored(program, info_from_dict(value), request)


def _from_pt2(value: _Pt2, request: _Request) -> tuple[Program, ModelInfo]:
    info = ModelInfo(input_shape=())
    if INFO_FILE in value.extra:
        info = info_from_dict(parse_json(value.extra[INFO_FILE], f"{INFO_FILE}: expected what a model says of itself"))
    return _stored(value.program, info, request)


def _stored(program: ExportedProgram, info: ModelInfo, request: _Request) -> tuple[Program, ModelInfo]:
    """A file's own program; or one of its weights with the sizes free that are asked for, or of the part that is."""
    _check_arch(info, request)
    if request.module not in (None, info.module):
        assert request.arch is not None
        return _part_anew(program, info, request, request.arch)
    found = with_free(program, info, request.arch, request.dynamic_size, request.dynamic or {})
    check_names(found)
    return found, info


def _part_anew(program: ExportedProgram, info: ModelInfo, request: _Request, arch: str) -> tuple[Program, ModelInfo]:
    """A part of the architecture that the user names, with the weights of a file's own program, captured anew."""
    model = rebuilt(program, info, arch, "--module", "has no such parts any more: give --module where it is cut")
    check_same(program, model.eval(), arch)
    return _from_module(model, request)


def _from_onnx(file: OnnxFile, request: _Request) -> tuple[Program, ModelInfo]:
    info = ModelInfo(input_shape=())
    _check_arch(info, request)
    shapes = request.input_shape, request.data_shape, with_data_inputs(request.inputs, request.data_inputs)
    program, notes = program_of(file, *shapes, request.dynamic_size, request.dynamic)
    check_names(program)
    request.notes.extend(notes)
    return program, info


def _check_arch(info: ModelInfo, request: _Request) -> None:
    is_whole_of_known = info.arch is not None and info.module is None
    if request.module not in (None, info.module) and not (is_whole_of_known and request.arch is not None):
        way = "give the network's state_dict and --arch"
        if is_whole_of_known:
            way = f"--arch {one_line(info.arch or '', 120)} beside it captures its weights anew"
        raise InputError(
            "expected no --module, as the file holds an exported program, which has no parts, got "
            f"{request.module}; {way}"
        )
    if request.choice != StateChoice():
        raise InputError("expected no --state-key and no --ignore-keys, as the file carries its network")
    if request.arch is not None and not (info.arch is not None and same_arch(request.arch, info.arch)):
        raise InputError(f"expected no --arch, as the file carries its network ({info.arch}), got {request.arch}")


def _from_state_dict(value: Mapping[str, Any], request: _Request) -> tuple[Program, ModelInfo]:
    if request.arch is None:
        raise InputError("expected --arch beside a bare state_dict, got none; e.g. --arch torchvision:resnet18")
    model = architectures.build(request.arch)
    fitted = fitted_weights(value, model, request.arch, request.choice)
    request.notes.extend(fitted.notes)
    state = tensors_of(fitted.state)
    floats = {tensor.dtype for tensor in state.values() if tensor.dtype.is_floating_point}
    if floats == {torch.float64}:
        model = model.double()
    try:
        model.load_state_dict(state)
    except Exception as error:
        raise InputError(f"state_dict: expected weights that fit {request.arch}, got {error_line(error)}") from error
    return _from_module(model, request)


def _from_module(model: nn.Module, request: _Request) -> tuple[Program, ModelInfo]:
    if request.module is not None:
        model = architectures.part_of(model, request.module)
    dtype = next((tensor.dtype for tensor in model.parameters() if tensor.dtype.is_floating_point), torch.float32)
    named = request.inputs or (() if request.input_shape else request.data_inputs)
    if named:
        program = capture_named(model, named, dtype, request.dynamic, request.dynamic_size)
        check_names(program)
        return program, ModelInfo(input_shape=(), arch=request.arch, module=request.module)
    shape = request.input_shape or request.data_shape or architectures.own_input_shape(model)
    if shape is None:
        raise InputError(
            "expected the shape of one input, which the file does not say, e.g. --input-shape 3,224,224, got none"
        )
    program = capture_single(model, shape, dtype, request.dynamic_size, request.dynamic)
    check_names(program)  # before any work is done that could not be written down
    return program, ModelInfo(input_shape=shape, arch=request.arch, module=request.module)
