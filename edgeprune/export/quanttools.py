"""onnxruntime's quantisation tools: made ready for, kept quiet, and fitted to the CPU."""

from __future__ import annotations

import contextlib
import logging
import platform
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import onnx
from onnx import helper, numpy_helper

from edgeprune.errors import EdgepruneError, InputError
from edgeprune.export.floatfile import Feed, FloatFile, all_nodes
from edgeprune.export.parity import quiet
from edgeprune.lines import error_reason

_CPU_FLAGS = Path("/proc/cpuinfo")
_IMAGE_RANK = 4  # (batch, channels, height, width)
_X86 = ("x86_64", "amd64")


class Reader:
    """Batches one by one, as onnxruntime's calibration takes them."""

    def __init__(self, feeds: Sequence[Feed]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> Feed | None:
        """The next batch, None after the last."""
        return next(self._feeds, None)


@contextlib.contextmanager
def tools_for(file: FloatFile) -> Iterator[None]:
    """Keep the tools' prints and logs away from the user, and tell of their errors as of the file's."""
    root = logging.getLogger()
    handlers, disabled = list(root.handlers), logging.root.manager.disable
    try:
        logging.disable(logging.CRITICAL)
        with quiet():
            yield
    except EdgepruneError:
        raise
    except Exception as error:  # they raise whatever their parts raise
        reason = error_reason(error)
        raise InputError(f"{file.path}: onnxruntime cannot quantise it: {reason}") from error
    finally:
        logging.disable(disabled)
        root.handlers[:] = handlers  # their first log message would have added one that prints all others


def prepared(file: FloatFile, folder: Path) -> Path:
    """The float file with shapes inferred, constants folded and every node named: what the tools ask for."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    source, path = Path(file.path).absolute(), folder.absolute() / "prepared.onnx"
    # Where the symbolic inference fails it leaves the model in the folder that it is called in.
    with tools_for(file), contextlib.chdir(folder):
        try:
            quant_pre_process(source, path)
        except Exception:  # it knows fewer operators than the plain one, which is enough
            quant_pre_process(source, path, skip_symbolic_shape=True)
    proto = onnx.load(path)
    taken: set[str] = set()
    for index, node in enumerate(proto.graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{index}_unnamed"
        taken.add(node.name)
    _means_to_pools(proto.graph)
    path.write_bytes(proto.SerializeToString())
    return path


def _means_to_pools(graph: onnx.GraphProto) -> None:
    """Write means over height and width as global average pools: of the two only those have an int8 kernel.

    On EfficientNet-B0 the means alone took a seventh of the int8 network's time.
    """
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in (*graph.input, *graph.value_info)}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    given: set[str] = set()
    for node in graph.node:
        if node.op_type == "ReduceMean" and ranks.get(node.input[0]) == _IMAGE_RANK:
            given.update(node.input[1:])
            nodes += _pooled(node, constants)
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in all_nodes(nodes) for name in node.input}
    for name in sorted(given & constants.keys() - used):
        graph.initializer.remove(constants[name])


def _is_over_images(mean: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> bool:
    """Whether a mean goes over height and width, which an attribute says, or a constant in later operator sets."""
    attribute = next((entry for entry in mean.attribute if entry.name == "axes"), None)
    axes = [] if attribute is None else helper.get_attribute_value(attribute)
    if len(mean.input) > 1 and mean.input[1] in constants:
        axes = numpy_helper.to_array(constants[mean.input[1]]).tolist()
    return sorted(axis % _IMAGE_RANK for axis in axes) == [2, 3]


def _pooled(mean: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> list[onnx.NodeProto]:
    """A mean over height and width made a pool, and what drops these dims where the mean did; another as it is."""
    if not _is_over_images(mean, constants):
        return [mean]
    keeps_dims = next((entry.i for entry in mean.attribute if entry.name == "keepdims"), 1)
    mean.op_type = "GlobalAveragePool"
    del mean.attribute[:], mean.input[1:]
    if keeps_dims:
        return [mean]
    result, mean.output[0] = mean.output[0], f"{mean.output[0]}_pooled"
    return [mean, helper.make_node("Flatten", [mean.output[0]], [result], f"{mean.name}_flat", axis=1)]


def has_vnni() -> bool | None:
    """Whether this CPU multiplies int8 without saturating (x86 VNNI); None where that is not known, and not on x86.

    Example: False for x86 before 2019, where int8 gains little and 8-bit weights may saturate.
    """
    if platform.machine().lower() not in _X86:
        return None
    try:
        lines = _CPU_FLAGS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        return None
    flags = next((set(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), None)
    return None if flags is None else bool(flags & {"avx512_vnni", "avx_vnni"})


def may_saturate_here() -> bool:
    """Whether products of 8-bit weights may saturate on this CPU; on an x86 one of which nothing is known they may."""
    return has_vnni() is not True and platform.machine().lower() in _X86


def cpu_in_words() -> str:
    """What this CPU is to int8 products, e.g. `x86 with VNNI, whose int8 products do not saturate`."""
    if platform.machine().lower() not in _X86:
        return f"{platform.machine()}, whose int8 products do not saturate"
    with_vnni = {
        True: "x86 with VNNI, whose int8 products do not saturate",
        False: "x86 without VNNI, whose int8 products saturate at 16 bits",
        None: "x86, not known to have VNNI: its int8 products may saturate at 16 bits",
    }
    return with_vnni[has_vnni()]
