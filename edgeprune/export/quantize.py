"""int8 files of a float ONNX file, by onnxruntime's own tools, with the layers left in float that cost too much.

The float file is calibrated once; what no 8 bits can hold, such as the mask of an attention, stays in float. All layers
are quantised first; only where that costs more than the budget is each layer measured alone, and the worst are left in
float, as few as bring the drop within the budget.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx

from edgeprune.errors import InputError, NotFiniteError
from edgeprune.export.floatfile import FloatFile, agreement, open_float, weighted_nodes, with_header_of
from edgeprune.export.int8ranges import calibrated, too_wide
from edgeprune.export.int8shapes import fit_to_kernels
from edgeprune.export.judging import Judge, Judged, QuantizedFile, check_places, left_in_float, record_of, shortened
from edgeprune.export.quanttools import Reader, prepared, tools_for
from edgeprune.files import write_atomically
from edgeprune.progress import Progress, Silent
from edgeprune.records import ACCURACY, Metric

# What onnxruntime has int8 kernels for on a CPU, and what only moves numbers. Left out although its tools know them:
# softmax and the norms, which would run in float between two conversions and lose accuracy for nothing.
OP_TYPES = (
    "Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Mul", "Relu", "LeakyRelu", "Clip", "Sigmoid", "MaxPool",
    "AveragePool", "GlobalAveragePool", "Concat", "Split", "Slice", "Gather", "Pad", "Resize", "Reshape", "Flatten",
    "Transpose", "Squeeze", "Unsqueeze",
)  # fmt: skip
_RANKING_FEEDS = 1  # one batch is enough to tell layers apart; the drop itself is measured on all


def write_int8(  # noqa: PLR0913 - the public entry point spells its options out
    source: Path,
    out: Path,
    calibration: Any,
    *,
    value: Callable[[Path], float] | None = None,
    metric: Metric = ACCURACY,
    max_drop: float = 1.0,
    threads: int = 1,
    reduce_range: bool = True,
    progress: Progress = Silent(),  # noqa: B008 - it has no state
) -> QuantizedFile:
    """Quantise a float file statically: uint8 activations, symmetric int8 weights for each output channel, QDQ format.

    Args:
        source: a float file as `export_onnx` writes it; its batch stays free and its metadata go with it.
        out: the file to write; it appears whole or not at all.
        calibration: real inputs `(n, ...)` as `source` takes them, or a sequence of them for several inputs.
        value: measures a file by the metric; None compares the best class on the calibration inputs where the metric
            is accuracy, and the signal-to-noise ratio (at least 20 dB) where it is another or there are no classes.
        metric: what is measured.
        max_drop: what may be lost, in the metric's unit.
        threads: onnxruntime threads within an operator.
        reduce_range: weights of 7 bits, whose products saturate on no CPU; else of 8, for CPUs whose do not.
        progress: told of the stages.

    Returns:
        The file; where no choice of layers keeps the budget, the closest one, and `note` says so.

    Raises:
        InputError: nothing to quantise, or a file, inputs or a budget that cannot be used.
        ParityError: the quantised file does not run, or gives NaN or infinity whichever layers are left in float.
    """
    check_places(source, out, max_drop)
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
        progress.stage("int8: calibrate")
        work = work_of(open_float(source, calibration, threads), Path(folder), reduce_range)
        judge = Judge(work.file, value, metric, max_drop, threads)
        judged, in_float = search(work, judge, progress)
        write_atomically(out, judged.path.read_bytes())
    file = record_of("int8", judged, out, [layer.name for layer in in_float], len(work.layers))
    return replace(file, note="; ".join(_notes(work, file, judge, judged)))


def check_quantizable(source: Path, calibration: Any, reduce_range: bool = True) -> None:
    """Raise where `write_int8` would of the same arguments, whatever it costs; this takes no search and no samples.

    Raises:
        InputError, ParityError: as `write_int8`.
    """
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
        work = work_of(open_float(source, calibration), Path(folder), reduce_range)
        try:
            agreement(work.file, work.quantized((), "all"))
        except NotFiniteError:
            if len(work.layers) == 1:  # else there are layers that may be left in float
                raise


def _notes(work: Work, file: QuantizedFile, judge: Judge, judged: Judged) -> list[str]:
    notes = []
    if not file.within_budget:
        notes.append(judge.missed(judged))
    if file.excluded:
        notes.append(left_in_float(file))
    if work.too_wide:
        notes.append(f"left in float as no 8 bits hold their range: {shortened(work.too_wide)}")
    if work.reduce_range:
        notes.append("weights of 7 bits, whose products saturate on no CPU")
    return notes


# --- quantise


@dataclass(frozen=True, slots=True)
class Layer:
    """One operator with weights, and those after it up to the next one: they are left in float with it."""

    name: str
    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """A float file made ready for onnxruntime's quantisation, and the folder of its trials.

    `source` is the file that is quantised, by the ranges of the activations in `folder`. `too_wide` names the nodes
    that stay in float whatever it costs.
    """

    file: FloatFile
    folder: Path
    source: Path
    layers: tuple[Layer, ...]
    swishes: tuple[str, ...]
    too_wide: tuple[str, ...]
    reduce_range: bool

    @property
    def ranges(self) -> Path:
        """Where the ranges of the activations are kept."""
        return _ranges_in(self.folder)

    def quantized(self, in_float: Collection[Layer], name: str, *, fitted: bool = True) -> Path:
        """Write the file that leaves these layers in float; in the shapes of quick kernels if it is to be `fitted`."""
        from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

        path = self.folder / f"{name}.onnx"
        with tools_for(self.file):
            quantize_static(
                self.source,
                path,
                Reader(self.file.feeds),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(OP_TYPES),
                per_channel=True,
                reduce_range=self.reduce_range,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=[*self.swishes, *self.too_wide, *(node for layer in in_float for node in layer.nodes)],
                calibrate_method=CalibrationMethod.MinMax,
                # Products of two activations, as in attention, stay in float.
                extra_options={"MatMulConstBOnly": True},
                calibration_cache_path=self.ranges,
            )
        made = onnx.load(path)
        if fitted:
            fit_to_kernels(made)
        path.write_bytes(with_header_of(self.file, made, {"edgeprune.quantization": "int8"}))
        return path


def work_of(file: FloatFile, folder: Path, reduce_range: bool) -> Work:
    """A float file made ready in a folder; raises InputError where it has nothing to quantise."""
    source = prepared(file, folder)
    graph = onnx.load(source).graph
    layers = _layers(graph)
    if not layers:
        raise InputError(
            f"{file.path}: expected float32 convolutions, linear layers or matrix products to quantise, got none"
        )
    bounds = calibrated(file, source, _ranges_in(folder), OP_TYPES)
    return Work(file, folder, source, layers, _hard_swishes(graph), too_wide(graph, bounds, OP_TYPES), reduce_range)


def _ranges_in(folder: Path) -> Path:
    return folder / "ranges.json"


def _hard_swishes(graph: onnx.GraphProto) -> tuple[str, ...]:
    """The nodes of hard-swish, a value times a gate that is made of it.

    onnxruntime has no int8 kernel for the gate: were the product quantised all the same, every activation would be
    converted once more each way, which took a third of MobileNetV3-Small's time.
    """
    gates = {node.output[0]: node for node in graph.node if node.op_type == "HardSigmoid"}
    found = []
    for node in graph.node:
        gate = next((gates[name] for name in node.input if name in gates), None)
        if node.op_type == "Mul" and gate is not None and gate.input[0] in node.input:
            found += [gate.name, node.name]
    return tuple(found)


def _layers(graph: onnx.GraphProto) -> tuple[Layer, ...]:
    """The nodes that can be quantised, cut into layers in the order in which they run."""
    weighted = {node.name: node for node in weighted_nodes(graph)}
    nodes: list[list[str]] = []
    early: list[str] = []
    for node in graph.node:
        if node.name in weighted:
            nodes.append([node.name])
        elif node.op_type in OP_TYPES:
            (nodes[-1] if nodes else early).append(node.name)
    if nodes:
        nodes[0] += early
    return tuple(Layer(_name(weighted[names[0]]), tuple(names)) for names in nodes)


def _name(node: onnx.NodeProto) -> str:
    """The module's name where the weight has it, e.g. `layer1.0.conv1`, else the node's."""
    weight = next((name for name in node.input if name.endswith(".weight")), "")
    return weight.removesuffix(".weight") or str(node.name)


# --- which layers stay in float


def search(work: Work, judge: Judge, progress: Progress) -> tuple[Judged, tuple[Layer, ...]]:
    """The judged file with the fewest layers in float that keeps the budget, else the closest of those tried.

    Raises:
        NotFiniteError: each that was tried gives NaN or infinity.
    """
    progress.stage("int8: all layers")
    first = _judged(work, judge, (), "0")
    if first is not None and (first.within_budget or len(work.layers) == 1):
        return first, ()
    tried = {} if first is None else {0: first}
    order = _ranked(work, judge, progress)
    progress.stage("int8: layers in float")

    def keeps_budget(count: int) -> bool:
        judged = _judged(work, judge, order[:count], str(count))
        told = "NaN or infinity" if judged is None else judge.in_words(judged.worst)
        progress.say(f"int8: {count} of {len(order)} layers in float: {told}")
        if judged is None:
            return False
        tried[count] = judged
        return judged.within_budget

    best = _fewest(keeps_budget, len(order) - 1)
    if best is None:
        if not tried:
            raise NotFiniteError(
                f"{work.file.path}: expected finite outputs with some layers in int8, got NaN or infinity with any"
            )
        best = min(tried, key=lambda count: (tried[count].cost, count))
    return tried[best], order[:best]


def _judged(work: Work, judge: Judge, in_float: Sequence[Layer], name: str) -> Judged | None:
    """What it costs to quantise all but these layers; None where it gives NaN or infinity, worse than any cost."""
    try:
        return judge(work.quantized(in_float, name))
    except NotFiniteError:
        return None


def _fewest(keeps_budget: Callable[[int], bool], most: int) -> int | None:
    """The smallest count from 1 to `most` that does, doubled until one does and then halved in; None if none does."""
    if not most:
        return None
    low, high = 0, 1
    while not keeps_budget(high):
        if high == most:
            return None
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if keeps_budget(middle) else (middle, high)
    return high


def _ranked(work: Work, judge: Judge, progress: Progress) -> tuple[Layer, ...]:
    """The layers, most harmful first: by the signal-to-noise ratio of the network when one alone is quantised."""
    progress.stage("int8: each layer alone")
    ratios = []
    for done, layer in enumerate(work.layers, 1):
        path = work.quantized([other for other in work.layers if other is not layer], "alone")
        ratios.append(judge.snr_db(path, _RANKING_FEEDS))
        progress.advance(done, len(work.layers), layer.name)
    return tuple(layer for _, layer in sorted(zip(ratios, work.layers, strict=True), key=lambda pair: pair[0]))
