"""Exported programs from and to .pt2 bytes. What is loaded is never the foreign file: it is an archive made anew here.

`torch.export.load` unpickles sample inputs, weights and constants, evaluates symbolic sizes, imports what tree
specs name and writes names into source code. So a file is taken apart first, every piece is checked, and PyTorch
is given an archive that holds nothing else.
"""

from __future__ import annotations

import copy
import io
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram, ModuleCallEntry
from torch.export.pt2_archive._package import load_pt2
from torch.serialization import get_unsafe_globals_in_checkpoint
from torch.utils import _pytree as pytree

from edgeprune.errors import InputError, UnsafeFileError
from edgeprune.formats.pt2.archive import list_records, read_records, write_records
from edgeprune.formats.pt2.document import checked, is_weight_name, parsed
from edgeprune.formats.pt2.graph import check_graph, example_inputs
from edgeprune.formats.pt2.tensors import empty_records, records_from_tensors, tensors_from_records
from edgeprune.formats.pt2.values import check_values
from edgeprune.graph.containers import plain_spec
from edgeprune.graph.renaming import free_names
from edgeprune.lines import shown

_MODEL = "models/model.json"
_SAMPLES = "data/sample_inputs/model.pt"
_WEIGHTS, _CONSTANTS = "data/weights/", "data/constants/"
_WEIGHTS_CONFIG = _WEIGHTS + "model_weights_config.json"
_CONSTANTS_CONFIG = _CONSTANTS + "model_constants_config.json"
_FORMAT, _VERSION = (b"pt2", b"0")
_EXTRA = "extra/"


@dataclass(frozen=True, slots=True, eq=False)
class Contents:
    """The checked pieces of a .pt2: graph, weights and constants by name, and the extra files."""

    document: dict[str, Any]
    weights: dict[str, torch.Tensor]
    constants: dict[str, torch.Tensor]
    extra: dict[str, bytes]


def read_program(
    data: bytes, weights: Mapping[str, torch.Tensor] | None = None
) -> tuple[ExportedProgram, dict[str, bytes]]:
    """The program in a .pt2 and its extra files by name; whatever sample inputs the file has, the program has none.

    Args:
        data: the file's bytes.
        weights: the state_dict, where the archive was written without its own.

    Raises:
        UnsafeFileError: it needs unpickling, or names what no network needs.
        InputError: it is damaged, of another version, or does not fit its weights.
    """
    contents = inspect(data, weights)
    # PyTorch gets hollow tensors of the right shapes; the real ones take their place, so nothing is copied again.
    hollow = {name: _hollow(tensor) for name, tensor in contents.weights.items()}
    hollow_constants = {name: _hollow(tensor) for name, tensor in contents.constants.items()}
    clean = _compose(Contents(contents.document, hollow, hollow_constants, {}), empty=True)
    try:
        program = load_pt2(io.BytesIO(clean)).exported_programs["model"]
    except Exception as error:
        raise InputError(
            f"expected an exported program that PyTorch {torch.__version__} can load, got {_last_line(error)}"
        ) from error
    program.example_inputs = None  # made-up zeros: nothing may take them for real ones
    _tie(contents.weights)
    program.state_dict.update(contents.weights)
    program.constants.update(contents.constants)
    check_values(program)
    free_names(program)
    return program, contents.extra


def _hollow(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of the same shape, type and kind that takes no memory."""
    hollow = torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)
    return nn.Parameter(hollow, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else hollow


def _tie(state: dict[str, torch.Tensor]) -> None:
    """Names of one and the same memory get one and the same tensor, so that tied weights train as one."""
    first: dict[Any, torch.Tensor] = {}
    for name, tensor in state.items():
        if tensor.numel():
            key = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), type(tensor))
            state[name] = first.setdefault(key, tensor)


def write_program(program: ExportedProgram, extra: Mapping[str, bytes], with_weights: bool = True) -> bytes:
    """A .pt2 that loads without unpickling anything; the same program gives the same bytes.

    Args:
        program: the program; left as it was.
        extra: files to lie beside it, by name.
        with_weights: False leaves the state_dict's values out; `read_program` then needs it.

    Raises:
        InputError: the program has an operator, input or constant that `read_program` would refuse.
    """
    check_names(program)
    constants: dict[str, torch.Tensor] = {}
    for name, value in program.constants.items():
        if not isinstance(value, torch.Tensor):
            raise InputError(f"constant {name!r}: expected a tensor, got {type(value).__name__}")
        constants[name] = value
    bare = copy.copy(program)
    bare._example_inputs = None
    bare._module_call_graph = [_of_plain_containers(program.module_call_graph[0]), *program.module_call_graph[1:]]
    bare._state_dict = {name: _hollow(tensor) for name, tensor in program.state_dict.items()}
    bare._constants = {name: _hollow(tensor) for name, tensor in constants.items()}
    buffer = io.BytesIO()
    try:
        with warnings.catch_warnings(action="ignore"):  # about the hollow tensors
            torch.export.save(bare, buffer)
    except Exception as error:
        raise InputError(f"program: expected one that torch.export can save, got {_last_line(error)}") from error
    document = _document(read_records(buffer.getvalue()))
    contents = Contents(document, dict(program.state_dict), constants, dict(extra))
    check_graph(document, {**contents.constants, **contents.weights})
    return _compose(contents, with_weights=with_weights)


def check_names(program: ExportedProgram) -> None:
    """Raise InputError where a weight has a name that no .pt2 of edgeprune may have."""
    for name in (*program.state_dict, *program.constants):
        if not is_weight_name(name):
            raise InputError(
                f"tensor {shown(name)}: expected a name of letters, digits, spaces and _-/:+@#=, as a .pt2 can hold, "
                "got another one; rename the module or the parameter"
            )


def _of_plain_containers(call: ModuleCallEntry) -> ModuleCallEntry:
    """A call whose classes are dicts of their fields, and whose named tuples are tuples."""
    signature = call.signature
    if signature is None:
        return call
    in_spec, out_spec = plain_spec(signature.in_spec), plain_spec(signature.out_spec)
    return replace(call, signature=replace(signature, in_spec=in_spec, out_spec=out_spec))


def inspect(data: bytes, weights: Mapping[str, torch.Tensor] | None = None) -> Contents:
    """Take a .pt2 apart and check every piece; nothing of it is run. Arguments and errors as `read_program`."""
    records = read_records(data)
    _check_kind(records)
    _check_samples(records.get(_SAMPLES, b""))
    document = _document(records)
    constants = _tensors(records, _CONSTANTS_CONFIG, _CONSTANTS, "tensor_")
    if weights is None:
        state = _tensors(records, _WEIGHTS_CONFIG, _WEIGHTS, "weight_")
    else:
        state = _with_flags(_config(records, _WEIGHTS_CONFIG), weights)
    check_graph(document, {**constants, **state})
    extra = {name[len(_EXTRA) :]: content for name, content in records.items() if name.startswith(_EXTRA)}
    return Contents(document, state, constants, extra)


def _check_kind(records: Mapping[str, bytes]) -> None:
    if records.get("archive_format") != _FORMAT:
        raise InputError("expected a .pt2 archive, got another kind of zip archive")
    if records.get("archive_version") != _VERSION:
        raise InputError(f"expected .pt2 archive version 0, got {records.get('archive_version', b'none')[:20]!r}")
    models = [name for name in records if name.startswith("models/")]
    if models != [_MODEL]:
        raise InputError(f"expected one exported program, {_MODEL}, got {', '.join(models)[:120] or 'none'}")
    for name in records:
        if name.startswith((_WEIGHTS, _CONSTANTS)) and name.endswith(".pt"):
            raise UnsafeFileError(f"record {name!r}: expected raw bytes, got weights that need unpickling")
        if name.startswith(("data/aotinductor/", "executorch/")):
            raise UnsafeFileError(f"record {name!r}: expected an exported program, got compiled code")


def _check_samples(samples: bytes) -> None:
    """Refuse sample inputs of anything but plain tensors. They are looked through, never unpickled, and not used."""
    if not samples:
        return
    try:
        list_records(samples)
        unsafe = get_unsafe_globals_in_checkpoint(io.BytesIO(samples))
    except Exception as error:
        unsafe = [_last_line(error)]
    if unsafe:
        raise UnsafeFileError(
            f"sample inputs: expected plain tensors, got what needs unpickling ({', '.join(sorted(unsafe))[:120]}); "
            "export again with tensors as example inputs"
        )


def _last_line(error: BaseException) -> str:
    line = next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), "")
    return f"{type(error).__name__}: {line[:200]}"


def _document(records: Mapping[str, bytes]) -> dict[str, Any]:
    document: dict[str, Any] = checked(parsed(records[_MODEL], _MODEL), "Program")
    return document


def _config(records: Mapping[str, bytes], name: str) -> dict[str, dict[str, Any]]:
    if name not in records:
        raise InputError(f"expected the record {name!r}, got none")
    config: dict[str, dict[str, Any]] = checked(parsed(records[name], name), "PayloadConfig")["config"]
    return config


def _tensors(records: Mapping[str, bytes], config: str, folder: str, prefix: str) -> dict[str, torch.Tensor]:
    return tensors_from_records(_config(records, config), records, folder, prefix)


def _with_flags(config: Mapping[str, dict[str, Any]], weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The given weights, as parameters or buffers as the archive has them."""
    missing, unexpected = sorted(set(config) - set(weights)), sorted(set(weights) - set(config))
    if missing or unexpected:
        raise InputError(
            f"state_dict: expected the weights of the program, got missing {missing[:3]}, unexpected {unexpected[:3]}"
        )
    state: dict[str, torch.Tensor] = {}
    for name, payload in config.items():
        tensor = weights[name].detach()
        floating = tensor.dtype.is_floating_point or tensor.dtype.is_complex
        requires_grad = bool((payload.get("tensor_meta") or {}).get("requires_grad")) and floating
        state[name] = nn.Parameter(tensor, requires_grad=requires_grad) if payload["is_param"] else tensor
    return state


def _compose(contents: Contents, *, with_weights: bool = True, empty: bool = False) -> bytes:
    """The archive; `empty` writes the tensors' shapes, and records without bytes."""
    make = empty_records if empty else records_from_tensors
    weights, weights_config = make(contents.weights, _WEIGHTS, "weight_")
    constants, constants_config = make(contents.constants, _CONSTANTS, "tensor_")
    records = {
        _MODEL: json.dumps(contents.document).encode(),
        **(weights if with_weights else {}),
        _WEIGHTS_CONFIG: json.dumps({"config": weights_config}).encode(),
        **constants,
        _CONSTANTS_CONFIG: json.dumps({"config": constants_config}).encode(),
        _SAMPLES: _samples(contents.document),
        **{_EXTRA + name: content for name, content in contents.extra.items()},
    }
    return write_records(records)


def _samples(document: dict[str, Any]) -> bytes:
    call = document["graph_module"]["module_call_graph"][0]["signature"]
    try:
        inputs = pytree.tree_unflatten(example_inputs(document), pytree.treespec_loads(call["in_spec"]))
    except ValueError as error:
        raise InputError(f"input: expected the inputs that the program declares, got {error}") from error
    buffer = io.BytesIO()
    torch.save(inputs, buffer)
    return buffer.getvalue()
