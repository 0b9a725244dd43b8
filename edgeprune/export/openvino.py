"""OpenVINO: .xml and .bin of the ONNX file, in float and half-precision weights, each run before it is kept."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper
from torch.export import ExportedProgram

from edgeprune.errors import ParityError
from edgeprune.export import apart
from edgeprune.export.feeds import arrays_of
from edgeprune.export.filecheck import HALF_TOLERANCE, error_of, samples_of_network
from edgeprune.export.installed import check_packages
from edgeprune.export.onnx import draft_onnx
from edgeprune.export.parity import PARITY_TOLERANCE, Sample
from edgeprune.export.state import check_stateless
from edgeprune.export.target import Inputs, Material, Runner, Runtime
from edgeprune.formats.onnx.file import read_onnx
from edgeprune.lines import one_line
from edgeprune.progress import Progress
from edgeprune.results import ExportedFile, LeftOut

_CONVERT, _LOAD = (f"edgeprune.export.openvino_runtime:{name}" for name in ("convert", "load"))


@dataclass(frozen=True, slots=True)
class OpenvinoRuntime:
    """OpenVINO's CPU device."""

    name: str = "OpenVINO"

    def draft(self, program: ExportedProgram, folder: Path, batch: int) -> Path:
        """A model of the program, whose batch is as in that."""
        draft_onnx(program, folder / "draft.onnx")
        return _converted(folder / "draft.onnx", folder / "draft.xml")

    def runner(self, file: Path, inputs: Inputs, threads: int = 1) -> Runner:
        """One inference a call, in this process: the file has run before."""
        from edgeprune.export.openvino_runtime import load

        model, arrays = load(file, threads), arrays_of(inputs.file)
        return lambda: model(arrays)


@dataclass(frozen=True, slots=True)
class Openvino:
    """OpenVINO as a target; its batch is free or fixed as that of the ONNX file."""

    name: str = "openvino"
    runtime: Runtime | None = OpenvinoRuntime()
    free_batch: bool = False

    def files(self, model: str) -> tuple[str, ...]:
        """The graph and its weights, in float and with the weights in half precision."""
        return tuple(f"{model}.openvino{kind}.{suffix}" for kind in ("", ".fp16") for suffix in ("xml", "bin"))

    def check_installed(self) -> None:
        """Raise InputError where OpenVINO is missing, too old or too new."""
        check_packages("openvino", "OpenVINO")

    def check(self, program: ExportedProgram) -> None:
        """Raise InputError for a network with a state."""
        check_stateless(program, "OpenVINO")

    def write(self, material: Material, told: Progress) -> tuple[ExportedFile, ...]:
        """Write all four files and run both models; one in half precision that is too far off is left out, and said.

        Raises:
            InputError: OpenVINO does not convert or run the network.
            ParityError: what it computes in float differs from PyTorch.
        """
        told.stage("write for OpenVINO and run it")
        samples = samples_of_network(material, material.batch)
        names = [material.folder / name for name in self.files(material.name)]
        done = _made(material.network, names[0], names[1], samples)
        try:
            return (*done, *_made(material.network, names[2], names[3], samples, half=True))
        except ParityError as error:
            for file in names[2:]:
                file.unlink()
            told.say(f"left out: {error}")
            return (replace(done[0], left_out=(LeftOut("fp16", one_line(str(error))),)), *done[1:])


def _made(
    source: Path, xml: Path, weights: Path, samples: list[Sample], half: bool = False
) -> tuple[ExportedFile, ExportedFile]:
    """Both files of a model, which has run."""
    _converted(source, xml, half)
    parity = _parity(xml, samples, HALF_TOLERANCE if half else PARITY_TOLERANCE)
    return (
        ExportedFile(str(xml), xml.stat().st_size, parity),
        ExportedFile(str(weights), weights.stat().st_size, None),
    )


def _converted(source: Path, out: Path, half: bool = False) -> Path:
    """The .xml of an ONNX file, its .bin beside it."""
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
        prepared = Path(folder) / source.name
        prepared.write_bytes(with_orders_apart(read_onnx(source)).SerializeToString())
        arguments = {"source": str(prepared), "out": str(out), "half": half}
        apart.called(_CONVERT, arguments, f"OpenVINO cannot convert {source.name}")
    return out


def _parity(file: Path, samples: list[Sample], tolerance: float) -> float:
    got = apart.answers(_LOAD, file, [sample.inputs for sample in samples], f"OpenVINO cannot run {file.name}")
    return error_of(samples, got, f"{file.name} in OpenVINO", tolerance)


# -- a fault of OpenVINO -------------------------------------------------------------------------------------------


def with_orders_apart(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with each Gather of all channels in another order as two of one half each, joined again.

    OpenVINO 2026.4 takes such a Gather for a change from RGB to BGR, moves it into the weights of the convolutions
    that follow, and loses it on the way where there are several: a channel shuffle gives wrong answers, without an
    error. Half of the channels is no such order.
    """
    orders = {tensor.name: order for tensor in proto.graph.initializer if (order := _order(tensor)) is not None}
    if not any(_is_meant(node, orders) for node in proto.graph.node):
        return proto
    changed = onnx.ModelProto()
    changed.CopyFrom(proto)
    del changed.graph.node[:]
    for node in proto.graph.node:
        if _is_meant(node, orders):
            _put_halves(changed.graph, node, orders[node.input[1]])
        else:
            changed.graph.node.append(node)
    return changed


def _order(tensor: onnx.TensorProto) -> np.ndarray | None:
    """The places in a tensor, if they are all from 0 on in an order that is not theirs."""
    if tensor.data_type not in (onnx.TensorProto.INT64, onnx.TensorProto.INT32) or len(tensor.dims) != 1:
        return None
    places = numpy_helper.to_array(tensor)
    ascending = np.arange(len(places))
    is_order = np.array_equal(np.sort(places), ascending) and not np.array_equal(places, ascending)
    return places if is_order else None


def _is_meant(node: onnx.NodeProto, orders: dict[str, np.ndarray]) -> bool:
    return node.op_type == "Gather" and not node.domain and node.input[1] in orders


def _put_halves(graph: onnx.GraphProto, node: onnx.NodeProto, order: np.ndarray) -> None:
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
    result = node.output[0]
    parts = []
    for which, half in enumerate(np.array_split(order, 2)):
        name = f"{result}_half_{which}"
        graph.initializer.append(numpy_helper.from_array(half, f"{name}_places"))
        graph.node.append(helper.make_node("Gather", [node.input[0], f"{name}_places"], [name], name, axis=axis))
        parts.append(name)
    graph.node.append(helper.make_node("Concat", parts, [result], f"{result}_joined", axis=axis))
