"""ncnn: .param and .bin for one sample, run by ncnn before they are kept."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.export import ExportedProgram

from edgeprune.errors import InputError, ParityError
from edgeprune.export import apart
from edgeprune.export.description import add_contract
from edgeprune.export.feeds import arrays_of
from edgeprune.export.filecheck import error_of, samples_of_network
from edgeprune.export.fixed import is_batch_free, write_fixed_batch
from edgeprune.export.fixedsizes import at_shapes
from edgeprune.export.installed import check_packages
from edgeprune.export.onnx import draft_onnx
from edgeprune.export.parity import Sample
from edgeprune.export.signature import Signature, example_inputs, example_outputs, scaling_of, signature_of
from edgeprune.export.state import check_stateless
from edgeprune.export.target import Inputs, Material, Runner, Runtime
from edgeprune.formats.onnx.file import read_onnx
from edgeprune.progress import Progress
from edgeprune.results import ExportedFile

_CONVERT, _TRACE, _LOAD = (f"edgeprune.export.ncnn_runtime:{name}" for name in ("convert", "trace", "load"))
_RECURRENT, _RANK_OF_SEQUENCES = ("LSTM", "GRU", "RNN"), 3
Checked = TypeVar("Checked")


@dataclass(frozen=True, slots=True)
class NcnnRuntime:
    """ncnn on the CPU, in float."""

    name: str = "ncnn"

    def draft(self, program: ExportedProgram, folder: Path, batch: int) -> Path:
        """A .param file, with the .bin beside it, by the first way that ncnn loads."""
        draft_onnx(program, folder / "draft.onnx")
        inputs = example_inputs(program, 1)
        signature = signature_of(program, inputs, example_outputs(program))
        out = folder / "draft.param"
        _first(out, program, folder / "draft.onnx", signature, lambda: _answers(out, [inputs]))
        return out

    def runner(self, file: Path, inputs: Inputs, threads: int = 1) -> Runner:
        """One inference a call, in this process: the file has run before."""
        from edgeprune.export.ncnn_runtime import load

        model, arrays = load(file, threads), arrays_of(inputs.file)
        return lambda: model(arrays)


@dataclass(frozen=True, slots=True)
class Ncnn:
    """ncnn as a target; it takes one sample at a time."""

    name: str = "ncnn"
    runtime: Runtime | None = NcnnRuntime()
    free_batch: bool = False

    def files(self, model: str) -> tuple[str, ...]:
        """The graph and its weights."""
        return f"{model}.ncnn.param", f"{model}.ncnn.bin"

    def check_installed(self) -> None:
        """Raise InputError where ncnn or pnnx is missing, too old or too new."""
        check_packages("ncnn", "ncnn")

    def check(self, program: ExportedProgram) -> None:
        """Raise InputError for a network with a state."""
        check_stateless(program, "ncnn")

    def write(self, material: Material, told: Progress) -> tuple[ExportedFile, ...]:
        """Write both files and run them.

        Raises:
            InputError: ncnn cannot express or run the network, or a batch of several was asked for.
            ParityError: what it computes differs from PyTorch.
        """
        if material.batch not in (None, 1):
            raise InputError(f"ncnn takes one sample at a time: expected --batch 1, got {material.batch}")
        told.stage("write for ncnn and run it")
        samples = samples_of_network(material, 1)
        # ncnn is handed floats, raw ones too.
        given = [array.astype(np.float32) if array.dtype == np.uint8 else array for array in samples[0].inputs]
        signature = signature_of(material.program, given, samples[0].outputs, scaling=scaling_of(material))
        param, weights = (material.folder / name for name in self.files(material.name))
        parity = _first(param, material.program, material.network, signature, lambda: _parity(param, samples))
        numbered = replace(
            signature,
            inputs=tuple(replace(one, name=f"in{place}") for place, one in enumerate(signature.inputs)),
            outputs=tuple(replace(one, name=f"out{place}") for place, one in enumerate(signature.outputs)),
        )
        add_contract(material.folder, material.network.name, self.name, param.name, numbered.described())
        done = ExportedFile(str(param), param.stat().st_size, parity)
        return done, ExportedFile(str(weights), weights.stat().st_size, None)


def _first(
    out: Path, program: ExportedProgram, network: Path, signature: Signature, check: Callable[[], Checked]
) -> Checked:
    """Write the file in the first way in which pnnx gets the network right; return what its check said.

    pnnx reads ONNX and TorchScript; each has operators that it knows of one alone.

    Raises:
        InputError, ParityError: what was wrong with the first.
    """
    errors: list[InputError | ParityError] = []
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as name:
        folder = Path(name)
        for made in (lambda: _prepared(network, folder), lambda: _traced(program, signature, folder)):
            try:
                source = made()
                asked = {"source": str(source), "signature": signature.to_json(), "param": str(out)}
                asked["weights"] = str(out.with_suffix(".bin"))
                apart.called(_CONVERT, asked, f"ncnn cannot convert {network.stem}")
                return check()
            except (InputError, ParityError) as error:
                errors.append(error)
    raise errors[0] from errors[-1]


def _answers(file: Path, samples: Sequence[Sequence[np.ndarray]]) -> list[list[np.ndarray]]:
    return apart.answers(_LOAD, file, samples, f"ncnn cannot run {file.name}")


def _parity(file: Path, samples: Sequence[Sample]) -> float:
    got = [
        [_shaped(array, want) for array, want in zip(outputs, sample.outputs, strict=False)]
        for outputs, sample in zip(_answers(file, [sample.inputs for sample in samples]), samples, strict=True)
    ]
    return error_of(samples, got, f"{file.name} in ncnn")


def _shaped(array: np.ndarray, want: np.ndarray) -> np.ndarray:
    """ncnn has no batch: dims of 1 at the start are not its own."""
    return array.reshape(want.shape) if array.size == want.size else array


# -- what pnnx reads -----------------------------------------------------------------------------------------------


def _traced(program: ExportedProgram, signature: Signature, folder: Path) -> Path:
    source, out = folder / "program.pt2", folder / "traced.pt"
    torch.export.save(at_shapes(program, [value.shape for value in signature.inputs]), source)
    asked = {"program": str(source), "signature": signature.to_json(), "out": str(out)}
    apart.called(_TRACE, asked, "PyTorch cannot trace the network")
    return out


def _prepared(network: Path, folder: Path) -> Path:
    """The ONNX file for one sample, without what pnnx gets wrong."""
    out = folder / "network.onnx"
    out.write_bytes(network.read_bytes())
    if is_batch_free(read_onnx(out)):
        write_fixed_batch(out, out, 1)
    proto = with_pooled_means(with_slices(read_onnx(out)))
    for value in proto.graph.input:  # ncnn hands over floats
        if value.type.tensor_type.elem_type == TensorProto.UINT8:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    out.write_bytes(proto.SerializeToString())
    return out


def with_slices(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with each Gather of several known places as slices, joined again.

    pnnx (20261020) takes it for that of one place, and ncnn has no other.
    """
    places = {tensor.name: tensor for tensor in proto.graph.initializer if len(tensor.dims) == 1}
    changed = onnx.ModelProto()
    changed.CopyFrom(proto)
    del changed.graph.node[:]
    for node in proto.graph.node:
        if node.op_type == "Gather" and not node.domain and node.input[1] in places:
            _put_slices(changed.graph, node, numpy_helper.to_array(places[node.input[1]]))
        else:
            changed.graph.node.append(node)
    return changed


def _put_slices(graph: onnx.GraphProto, node: onnx.NodeProto, places: np.ndarray) -> None:
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
    result = node.output[0]
    parts = []
    for which, run in enumerate(np.split(places, np.flatnonzero(np.diff(places) != 1) + 1)):
        name = f"{result}_run_{which}"
        bounds = [f"{name}_{what}" for what in ("start", "end", "axis")]
        end = int(run[-1]) + 1
        for bound, value in zip(bounds, (int(run[0]), end or np.iinfo(np.int64).max, axis), strict=True):
            graph.initializer.append(numpy_helper.from_array(np.array([value], dtype=np.int64), bound))
        graph.node.append(helper.make_node("Slice", [node.input[0], *bounds], [name], name))
        parts.append(name)
    graph.node.append(helper.make_node("Concat", parts, [result], f"{result}_joined", axis=axis))


def with_pooled_means(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with means over the steps of what a recurrent layer gives as pooling over all of them.

    Behind an LSTM or GRU pnnx (20261020) takes the steps for the batch, and a mean over them for one over nothing.
    """
    if not any(node.op_type in _RECURRENT for node in proto.graph.node):
        return proto
    values = onnx.shape_inference.infer_shapes(proto).graph.value_info
    sequences = {value.name for value in values if len(value.type.tensor_type.shape.dim) == _RANK_OF_SEQUENCES}
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    changed = onnx.ModelProto()
    changed.CopyFrom(proto)
    del changed.graph.node[:]
    for node in proto.graph.node:
        if node.op_type == "ReduceMean" and node.input[0] in sequences and _is_over_steps(node, held):
            _put_pooling(changed.graph, node)
        else:
            changed.graph.node.append(node)
    return changed


def _is_over_steps(node: onnx.NodeProto, held: Mapping[str, np.ndarray]) -> bool:
    """Whether a mean is over the second of three dims, which it drops."""
    said = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    axes = held.get(node.input[1], ()) if len(node.input) > 1 else said.get("axes", ())
    return list(axes) in ([1], [-2]) and said.get("keepdims", 1) == 0


def _put_pooling(graph: onnx.GraphProto, node: onnx.NodeProto) -> None:
    result = node.output[0]
    turned, pooled, last = (f"{result}_{what}" for what in ("turned", "pooled", "last"))
    graph.initializer.append(numpy_helper.from_array(np.array([2]), last))
    graph.node.extend(
        [
            helper.make_node("Transpose", [node.input[0]], [turned], turned, perm=[0, 2, 1]),
            helper.make_node("GlobalAveragePool", [turned], [pooled], pooled),
            helper.make_node("Squeeze", [pooled, last], [result], f"{result}_squeezed"),
        ]
    )
