"""One ONNX file with all widths and the gate: `If` runs the width that the gate picks, one sample at a time.

    gate: pooling, Gemm, ArgMax -> width
    If width == 0: the widest; else: If width == 1: the next one; else: ... the narrowest

A branch holds the graph of a width's own file. What that reads of the shared weights stands in the outer graph: not
every runtime looks for other files within a branch. The file takes a batch of 1, as there is one decision a run, and
tells the width that was picked beside the network's outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, helper, numpy_helper
from torch import nn
from torch.utils.data import Dataset

from edgeprune.data import order
from edgeprune.data.inputs import first_of
from edgeprune.errors import ParityError
from edgeprune.export import ort
from edgeprune.export.gated import Gated, OneByOne, gated_in
from edgeprune.export.parity import Sample, error_on, torch_outputs
from edgeprune.files import write_atomically
from edgeprune.formats.onnx.file import parse_onnx, read_onnx
from edgeprune.graph.capture import Program
from edgeprune.progress import Progress
from edgeprune.records import Normalization
from edgeprune.training import outputs_of
from edgeprune.widths.gate import Gate

_BATCH = 256
_ROUNDING = 1e-5  # of a score

Rename = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class GatedWidth:
    """A width of a gated file: what it is called, its own graph's file, and the MACs of a sample that it runs on."""

    name: str
    path: Path
    macs: int


def write_gated(path: Path, widths: Sequence[GatedWidth], gate: Path, gate_macs: int) -> None:
    """Write the file of all widths with their gate beside the weights that they share.

    Args:
        path: the file to write, in the folder of the widths' own.
        widths: from wide to narrow.
        gate: an ONNX file that gives for inputs `(n, ...)` the number of a width, int64 `(n,)`.
        gate_macs: what the gate costs for each sample.
    """
    protos = [parse_onnx(width.path) for width in widths]
    picks = read_onnx(gate)
    widest = protos[0].graph
    [given] = _inputs(widest)
    names = [value.name for value in widest.output]
    width = _fresh("width", {given.name, *names})
    nodes, held = _gate_nodes(picks.graph, given.name, width)
    branches = [_branch(proto.graph, f"w{number}/") for number, proto in enumerate(protos)]
    held += [
        numpy_helper.from_array(np.array([number], np.int64), f"number/{number}") for number in range(len(protos) - 1)
    ]
    for branch in branches:
        held += _taken_out(branch)
    choice = _choice(branches, width, names, 0)
    graph = helper.make_graph(
        [*nodes, *choice],
        "widths",
        [_of_one(given)],
        [*map(_of_one, widest.output), helper.make_tensor_value_info(width, TensorProto.INT64, [1])],
        held,
    )
    told = Gated(width, tuple(one.name for one in widths), tuple(one.macs for one in widths), gate_macs)
    model = _model(graph, [*protos, picks], told)
    write_atomically(path, model.SerializeToString(deterministic=True))


def _model(graph: GraphProto, parts: Sequence[onnx.ModelProto], told: Gated) -> onnx.ModelProto:
    """The graph as a model that says what its first part does, and of its widths."""
    opsets = {opset.domain: opset for proto in parts for opset in proto.opset_import}
    model = helper.make_model(graph, opset_imports=list(opsets.values()), ir_version=parts[0].ir_version)
    stated = {entry.key: entry.value for entry in parts[0].metadata_props}
    helper.set_model_props(model, dict(sorted({**stated, **told.metadata}.items())))
    return model


def checked_gated(  # noqa: PLR0913 - the file, what it is made of, and the samples it is checked on
    path: Path,
    programs: Sequence[Program],
    gate: Gate,
    split: Dataset[Any],
    normalization: Normalization,
    progress: Progress,
) -> float:
    """The largest error of an answer on all samples of a split; each must be that of the width that PyTorch picks.

    Raises:
        ParityError: another width is picked, where the gate decides by more than rounding, or an answer is off.
    """
    session = ort.session(path)
    stated = session.get_modelmeta().custom_metadata_map
    gated = gated_in(stated, [value.name for value in session.get_outputs()], str(path))
    assert gated is not None
    plain, modules = OneByOne(session, gated), [program.frozen_module() for program in programs]
    n_samples, worst, done = len(split), 0.0, 0  # type: ignore[arg-type]
    scored = nn.Sequential(gate.pooled, gate.linear)
    for x, scores, _ in outputs_of(scored, split, normalization, order(n_samples, _BATCH)):
        arrays = (first_of(x).numpy(),)
        got = plain.run(None, {plain.get_inputs()[0].name: arrays[0]})
        picks = _agreed(scores.numpy(), np.array(plain.picked[done:]), path)
        answers = [torch_outputs(module, arrays) for module in modules]
        for width in np.unique(picks):
            rows = picks == width
            want = tuple(output[rows] for output in answers[width])
            where = f"{path.name} at width {gated.widths[width]}"
            worst = max(worst, error_on(Sample((), want), [output[rows] for output in got], where))
        done += len(picks)
        progress.advance(done, n_samples)
    return worst


def _agreed(scores: np.ndarray, picks: np.ndarray, path: Path) -> np.ndarray:
    """What the file picked; raises ParityError where PyTorch picks another width by more than rounding."""
    rows = np.arange(len(picks))
    gap = scores.max(axis=1) - scores[rows, picks]
    wrong = int((gap > _ROUNDING * np.abs(scores).max(initial=1.0)).sum())
    if wrong:
        raise ParityError(f"{path.name}: expected the width that PyTorch picks, got another for {wrong} samples")
    return picks


def _inputs(graph: GraphProto) -> list[onnx.ValueInfoProto]:
    held = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in held]


def _fresh(wanted: str, taken: set[str]) -> str:
    name, count = wanted, 1
    while name in taken:
        name, count = f"{wanted}_{count}", count + 1
    return name


def _gate_nodes(graph: GraphProto, given: str, width: str) -> tuple[list[NodeProto], list[TensorProto]]:
    """The gate's operators and tensors under names of their own, between the input and the width."""
    [own], [output] = _inputs(graph), graph.output
    ends = {own.name: given, output.name: width}
    renamed = _prefixed("gate/", ends)
    return [_node(node, renamed) for node in graph.node], [_tensor(one, renamed) for one in graph.initializer]


def _branch(graph: GraphProto, prefix: str) -> GraphProto:
    """A width's graph as a branch: it reads the input of the file, and has its own names for all else."""
    [given] = _inputs(graph)
    renamed = _prefixed(prefix, {given.name: given.name})
    return _renamed_graph(graph, renamed, inputs=False)


def _taken_out(branch: GraphProto) -> list[TensorProto]:
    """The tensors of a branch that lie in another file, which it has no longer."""
    tensors = list(branch.initializer)
    outside = [tensor for tensor in tensors if tensor.data_location == TensorProto.EXTERNAL]
    del branch.initializer[:]
    branch.initializer.extend(tensor for tensor in tensors if tensor.data_location != TensorProto.EXTERNAL)
    return outside


def _choice(branches: Sequence[GraphProto], width: str, outputs: Sequence[str], number: int) -> list[NodeProto]:
    """The operators that run one of the branches from this number on, and give its outputs these names."""
    other = branches[number + 1 :]
    is_this = f"is/{number}"
    if len(other) == 1:
        rest = other[0]
    else:
        inner = [f"rest{number + 1}/{name}" for name in outputs]
        values = [_named(value, name) for value, name in zip(branches[number].output, inner, strict=True)]
        rest = helper.make_graph(_choice(branches, width, inner, number + 1), f"rest{number + 1}", [], values)
    equal = helper.make_node("Equal", [width, f"number/{number}"], [is_this])
    return [equal, helper.make_node("If", [is_this], outputs, then_branch=branches[number], else_branch=rest)]


def _prefixed(prefix: str, known: Mapping[str, str]) -> Rename:
    """Short names, numbered in turn: those of three graphs weigh as much as the rest of them."""
    names = dict(known)
    return lambda name: names.setdefault(name, f"{prefix}{len(names)}") if name else name


def _node(node: NodeProto, renamed: Rename) -> NodeProto:
    made = NodeProto()
    made.CopyFrom(node)
    del made.input[:], made.output[:]
    made.name = ""
    made.ClearField("doc_string")
    del made.metadata_props[:]
    made.input.extend(map(renamed, node.input))
    made.output.extend(map(renamed, node.output))
    for attribute in made.attribute:
        if attribute.type == AttributeProto.GRAPH:
            attribute.g.CopyFrom(_renamed_graph(attribute.g, renamed))
    return made


def _renamed_graph(graph: GraphProto, renamed: Rename, inputs: bool = True) -> GraphProto:
    return helper.make_graph(
        [_node(node, renamed) for node in graph.node],
        renamed(graph.name or "graph"),
        [_named(value, renamed(value.name)) for value in graph.input] if inputs else [],
        [_named(value, renamed(value.name)) for value in graph.output],
        [_tensor(tensor, renamed) for tensor in graph.initializer],
    )


def _tensor(tensor: TensorProto, renamed: Rename) -> TensorProto:
    made = TensorProto()
    made.CopyFrom(tensor)
    made.name = renamed(tensor.name)
    return made


def _named(value: onnx.ValueInfoProto, name: str) -> onnx.ValueInfoProto:
    made = onnx.ValueInfoProto()
    made.CopyFrom(value)
    made.name = name
    return made


def _of_one(value: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    """The same input or output with a batch of 1."""
    made = _named(value, value.name)
    sizes = made.type.tensor_type.shape.dim
    if sizes:
        sizes[0].Clear()
        sizes[0].dim_value = 1
    return made
