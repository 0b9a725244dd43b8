"""Export to ONNX, checked: PyTorch = ONNX = simplified ONNX on real inputs, or no file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind, TensorArgument
from torch.utils import _pytree as pytree

from edgeprune.errors import InputError, ParityError
from edgeprune.export.answers import metadata as outputs_metadata
from edgeprune.export.attention import with_plain_attention
from edgeprune.export.distances import with_distances_apart
from edgeprune.export.lookups import with_lookups
from edgeprune.export.padding import with_padding_apart
from edgeprune.export.parity import PARITY_TOLERANCE, Sample, parity_of, quiet, samples_of
from edgeprune.export.plainly import Plainly
from edgeprune.export.refusals import check_groups, check_weights, refusal, told_by, told_of_float64
from edgeprune.export.signatures import signatures_read_once
from edgeprune.export.state import (
    State,
    at_start,
    file_names,
    in_words,
    put_starts,
    states_of,
    steps_of,
    with_state_apart,
)
from edgeprune.export.state import metadata as state_metadata
from edgeprune.files import write_atomically
from edgeprune.graph.capture import Program
from edgeprune.graph.copies import copied_module
from edgeprune.graph.faults import public
from edgeprune.graph.given import current_program
from edgeprune.graph.renaming import renamed
from edgeprune.graph.specs import file_inputs, input_specs
from edgeprune.tasks.task import Task

_EXPORTERS_NAME = re.compile(r"val_\d+")  # what PyTorch's exporter calls values of its own, and so files that it wrote
# The sizes after the batch, by the number of dims of an input.
_SIZE_NAMES = {
    3: ("length", "length"),
    4: ("channels", "height", "width"),
    5: ("channels", "depth", "height", "width"),
}
MAX_BYTES = 2**31 - 2**20  # protobuf ends at 2 GiB; the graph itself needs a little of it


@dataclass(frozen=True, slots=True)
class OnnxExport:
    """A written and checked ONNX file.

    `parity` is the largest absolute error of any output against PyTorch. `note` says why a graph that was tried
    first (optimised, simplified) was not the one written; empty when nothing went wrong.
    """

    path: str
    size_bytes: int
    parity: float
    simplified: bool
    note: str = ""


@public("export_onnx")
def export_onnx(  # noqa: PLR0913 - the public entry point spells its options out
    program: ExportedProgram | nn.Module,
    path: str | Path,
    *,
    inputs: Any = None,
    opset: int | None = None,
    simplify: bool = True,
    tolerance: float = PARITY_TOLERANCE,
    metadata: Mapping[str, str] | None = None,
    task: Task | None = None,
) -> OnnxExport:
    """Write `program` as one ONNX file, after checking it in onnxruntime.

    A buffer that the program writes to becomes an input and an output, see `export.state`; then several steps are run.

    Args:
        program: takes tensors; sizes that are free in it (the batch) are free in the file. Or a module that a program's
            `.module()` gave, trained or not, also in a wrapper: its program is written with its weights.
        path: the file to write; it appears whole or not at all.
        inputs: real inputs `(n, ...)` to check on, array or tensor (a sequence of them for several inputs); all are
            used. Without them seeded random ones are drawn.
        opset: ONNX operator set; None takes PyTorch's default.
        simplify: also run onnxsim, and keep its graph if it agrees and is not larger.
        tolerance: largest error allowed on any output, times the larger of 1 and the largest output.
        metadata: stored in the file as `metadata_props`.
        task: what the outputs are for, e.g. `tasks.classification.CLASSIFICATION`: what it decides by them stays.

    Raises:
        InputError: the program cannot be expressed in ONNX (names the operator), or is over 2 GiB; the program's module
            has been trained since, or the module came from no program; see `Program.with_weights`.
        ParityError: what onnxruntime computes differs from PyTorch; nothing is written.

    Example: `export_onnx(slim, "slim.onnx", inputs=images)`.
    """
    program = current_program(program)
    check_fits_onnx(program)
    states = states_of(program)
    names = file_names(program, states)
    if states:
        apart = with_state_apart(program, states)
        program, samples = apart, steps_of(program, apart, states, inputs)
    else:
        samples = samples_of(program, inputs, task)
    proto, parity, note = _translate_checked(_Translation(program, names, opset), samples, tolerance)
    simplified = False
    if simplify:
        smaller, smaller_parity, why_not = _simplify_checked(proto, samples, tolerance)
        if smaller is not None:
            proto, parity, simplified = smaller, smaller_parity, True
        note = "; ".join(filter(None, (note, why_not)))
    if states:
        put_starts(proto, states)
        parity = max(parity, parity_of(proto, [at_start(samples[0], len(states))], tolerance))
    note = "; ".join(filter(None, (note, in_words(states))))
    _say(proto, program, states, metadata)
    content = proto.SerializeToString(deterministic=True)
    write_atomically(path, content)
    return OnnxExport(str(path), len(content), parity, simplified, note)


def draft_onnx(program: ExportedProgram, path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write `program` as ONNX without a check, to be timed and thrown away; it says of itself what its file would.

    Raises:
        InputError: the program cannot be expressed in ONNX (names the operator), or is over 2 GiB.
    """
    check_fits_onnx(program)
    states = states_of(program)
    names = file_names(program, states)
    apart = with_state_apart(program, states) if states else program
    proto = _translate(_Translation(apart, names, None), True)
    put_starts(proto, states)
    _say(proto, apart, states, metadata)
    write_atomically(path, proto.SerializeToString())


def _say(
    proto: onnx.ModelProto, program: ExportedProgram, states: Sequence[State], metadata: Mapping[str, str] | None
) -> None:
    """Put into a file what it says of itself: its metadata, the structure of its outputs and its states."""
    stated = {**(metadata or {}), **outputs_metadata(program), **state_metadata(states)}
    onnx.helper.set_model_props(proto, dict(sorted(stated.items())))


def check_fits_onnx(program: ExportedProgram) -> None:
    """Raise InputError for what an ONNX file cannot hold or express, or that onnxruntime does not compute with."""
    check_groups(program, "ONNX")
    check_weights(program, "one ONNX file", MAX_BYTES, "onnxruntime does not run on a CPU")


# --- translate


@dataclass(frozen=True, slots=True, eq=False)
class _Translation:
    """A program without a state, the names of its inputs (None: the exporter's) and outputs, and the operator set."""

    program: ExportedProgram
    names: tuple[list[str] | None, list[str]]
    opset: int | None


def _translate_checked(
    told: _Translation, samples: Sequence[Sample], tolerance: float
) -> tuple[onnx.ModelProto, float, str]:
    """The exporter's optimised graph, or its plain one where the optimised one is wrong or fails."""
    note = ""
    failure: Exception | None = None
    for optimize in (True, False):
        try:
            proto = _translate(told, optimize)
            return proto, parity_of(proto, samples, tolerance), note
        except (InputError, ParityError) as error:
            failure = failure or error
            note = f"the exporter's optimised graph was left out: {error}"
    assert failure is not None
    told_shorter = told_of_float64(failure, told.program)
    if told_shorter:
        raise InputError(told_shorter) from failure
    raise failure


def _without_projections(program: ExportedProgram) -> ExportedProgram:
    """ONNX has no LSTM with a projection, and the exporter does not see it: write it out step by step."""
    lstm = torch.ops.aten.lstm.input
    calls = [node for node in program.graph.nodes if node.target is lstm]
    widths = [[state.meta["val"].shape[2] for state in call.args[1]] for call in calls]
    if all(hidden == cell for hidden, cell in widths):
        return program
    unrolled: ExportedProgram = program.run_decompositions({lstm: torch._decomp.decomposition_table[lstm]})
    return unrolled


def _translate(told: _Translation, optimize: bool) -> onnx.ModelProto:
    """The bare ONNX graph of a program: no paths, no traces, input and output names of the contract."""
    program, opset, (input_names, names) = told.program, told.opset, told.names
    try:
        with quiet(), signatures_read_once():
            plain = with_lookups(with_plain_attention(_without_numbers(program)))
            ready = _without_projections(with_distances_apart(with_padding_apart(plain)))
            apart = _with_names_apart(ready, {*(input_names or file_inputs(program)), *names})
            exported = torch.onnx.export(
                Plainly.adopt(apart) if optimize else apart,
                dynamo=True,
                verbose=False,
                optimize=optimize,
                opset_version=opset,
                input_names=input_names,
                output_names=names,
            )
            assert exported is not None
            proto = exported.model_proto
    except Exception as error:  # the exporter raises whatever its translation functions raise
        raise InputError(_explain(error)) from error
    _check_opset(proto, opset)
    _strip(proto)
    if any(spec.batched for spec in input_specs(program)):
        _check_batch(proto)
    return proto


def _without_numbers(program: ExportedProgram) -> ExportedProgram:
    """The program without outputs that are no tensors, which a file cannot give."""
    specs = program.graph_signature.output_specs
    stays = [isinstance(spec.arg, TensorArgument) for spec in specs]
    if all(stay or getattr(spec.arg, "value", 0) is None for stay, spec in zip(stays, specs, strict=True)):
        return program
    changed = Program.adopt(program)
    changed._graph_module = copied_module(program.graph_module)
    output = changed.graph.output_node()
    results: Any = output.args[0]
    output.args = (tuple(compress(results, stays)),)
    changed.graph.eliminate_dead_code()
    kept = list(compress(specs, stays))
    changed._graph_signature = replace(program.graph_signature, output_specs=kept)
    n_user = sum(spec.kind is OutputKind.USER_OUTPUT for spec in kept)
    root, *parts = program.module_call_graph
    assert root.signature is not None
    signature = replace(root.signature, out_spec=pytree.tree_structure((0,) * n_user))
    changed._module_call_graph = [replace(root, signature=signature), *parts]
    return changed


def _with_names_apart(program: ExportedProgram, taken: set[str]) -> ExportedProgram:
    """The program without tensors called as an input, an output or a value of the exporter's in the file.

    A file has one room for all names.
    """
    names = {*program.state_dict, *program.constants}
    doubled = [name for name in names if name in taken or _EXPORTERS_NAME.fullmatch(name)]
    if not doubled:
        return program
    free = {name: next(n for k in range(1, len(names) + 2) if (n := name + "_" * k) not in names) for name in doubled}
    apart = Program.adopt(program)
    renamed(apart, lambda name: free.get(name, name))
    return apart


def _explain(error: BaseException) -> str:
    """One line that names the operators which stopped the exporter."""
    pattern = r"No ONNX function found for <OpOverload\(op='([\w.:]+)', overload='(\w+)'"
    told = "\n".join(told_by(error))
    of = " of complex numbers" if "complex-valued" in told else ""
    return refusal(error, "ONNX", sorted({f"{name}.{overload}{of}" for name, overload in re.findall(pattern, told)}))


def _check_opset(proto: onnx.ModelProto, opset: int | None) -> None:
    got = next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if opset is not None and got != opset:
        raise InputError(f"the network cannot be written in ONNX opset {opset}: the exporter only reached {got}")


def _check_batch(proto: onnx.ModelProto) -> None:
    for value in proto.graph.input:
        dims = value.type.tensor_type.shape.dim
        if dims and dims[0].dim_param == "batch":
            return
    raise ParityError("the exporter fixed the batch size: no input of the ONNX graph has a free first dim")


# --- clean


def _strip(proto: onnx.ModelProto) -> None:
    """Drop what describes the author's machine or repeats the weights' shapes; give free sizes readable names."""
    names = _size_names(proto.graph)
    proto.doc_string = ""
    del proto.metadata_props[:]
    for function in proto.functions:
        function.doc_string = ""
        del function.metadata_props[:]
        del function.value_info[:]
        _strip_nodes(function.node, names)
    _strip_graph(proto.graph, names)


def _size_names(graph: onnx.GraphProto) -> dict[str, str]:
    """Free size -> its name: `batch`, `height`, `width` and so on, by its place in the first input that has it."""
    names: dict[str, str] = {}
    for value in graph.input:
        dims = value.type.tensor_type.shape.dim
        for position, dim in enumerate(dims):
            if not dim.dim_param or dim.dim_param in names:
                continue
            wanted = ("batch", *_SIZE_NAMES.get(len(dims), ()))[position : position + 1] or (f"size_{position}",)
            taken = set(names.values())
            candidates = (wanted[0] if k == 0 else f"{wanted[0]}_{k + 1}" for k in range(len(taken) + 1))
            names[dim.dim_param] = next(name for name in candidates if name not in taken)
    return names


def _strip_graph(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    graph.doc_string = ""
    del graph.metadata_props[:]
    del graph.value_info[:]
    for named in (*graph.input, *graph.output, *graph.initializer):
        named.doc_string = ""
        del named.metadata_props[:]
    for value in (*graph.input, *graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = re.sub(r"\w+", lambda word: names.get(word.group(), word.group()), dim.dim_param)
    _strip_nodes(graph.node, names)


def _strip_nodes(nodes: Any, names: Mapping[str, str]) -> None:
    for node in nodes:
        node.doc_string = ""
        del node.metadata_props[:]
        for attribute in node.attribute:
            attribute.doc_string = ""
            for graph in (*((attribute.g,) if attribute.HasField("g") else ()), *attribute.graphs):
                _strip_graph(graph, names)


# --- simplify and check


def _simplify_checked(
    proto: onnx.ModelProto, samples: Sequence[Sample], tolerance: float
) -> tuple[onnx.ModelProto | None, float, str]:
    """onnxsim's graph and its parity, or None and why it was not kept."""
    import onnxsim

    try:
        with quiet():
            simplified, _ = onnxsim.simplify(proto)
    except Exception as error:  # a C++ library: the type says nothing; the checked graph is there to fall back on
        return None, 0.0, f"onnxsim failed: {str(error).strip().splitlines()[0] if str(error).strip() else error!r}"
    _strip(simplified)
    if simplified.ByteSize() > proto.ByteSize():
        return None, 0.0, f"onnxsim made the graph larger ({proto.ByteSize()} to {simplified.ByteSize()} bytes)"
    try:
        return simplified, parity_of(simplified, samples, tolerance), ""
    except (InputError, ParityError) as error:
        return None, 0.0, f"onnxsim's graph was left out: {error}"
