"""A network's ONNX file with templates and coefficients in the place of the weights that are mixtures of them.

    coefficients (n_tiles, N) -> MatMul with templates (N, size of a tile) -> Reshape, Transpose, Reshape -> the weight

Where the exporter has folded batch norm into a weight, its factors go through a Mul; a weight of a linear layer that it
has transposed is transposed again. All of these read constants alone, so that a runtime computes them once, when it
loads the file; then it runs the operators of the plain file, which is checked in onnxruntime.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from edgeprune.errors import ParityError
from edgeprune.export.factors import factor_between
from edgeprune.export.floatfile import all_nodes
from edgeprune.export.parity import quiet
from edgeprune.graph.templates import Mixture, Tiling


@dataclass(frozen=True, slots=True, eq=False)
class _Found:
    """What a tensor of the graph is of a shared weight: the weight, transposed or not, times `factor`, if any."""

    mixture: Mixture
    name: str
    transposed: bool = False
    factor: np.ndarray | None = None


def with_templates(
    plain: onnx.ModelProto, mixtures: Sequence[Mixture], weights: Mapping[str, np.ndarray]
) -> tuple[onnx.ModelProto, tuple[str, ...], tuple[str, ...]]:
    """A copy of a graph that makes its weights of templates, the names of those, and of those that it has in full.

    A weight is in full where the graph has it in another form.

    Args:
        plain: the graph with all weights.
        mixtures: what they are mixtures of, by the names of the program.
        weights: those of the program, by name.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(plain)
    graph = proto.graph
    made = _Graph(graph, _names_in(graph))
    kept, used = list(graph.initializer), dict.fromkeys(name for own in mixtures for name in own.family.members)
    del graph.initializer[:]
    shared: set[str] = set()
    for tensor in kept:
        found = _find(tensor, mixtures, weights)
        if found is None:
            graph.initializer.append(tensor)
        else:
            shared.add(found.name)
            made.weight(tensor.name, found)
    nodes = [*made.nodes, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    return proto, tuple(name for name in used if name in shared), tuple(name for name in used if name not in shared)


def _find(tensor: onnx.TensorProto, mixtures: Sequence[Mixture], weights: Mapping[str, np.ndarray]) -> _Found | None:
    """The shared weight that a tensor is; the one of its name first, as equal layers may have equal weights."""
    if tensor.data_type != onnx.TensorProto.FLOAT or len(tensor.dims) < 2:
        return None
    array = numpy_helper.to_array(tensor)
    for mixture in mixtures:
        for name in sorted(mixture.family.members, key=lambda own: own != tensor.name):
            found = _match(array, mixture, name, weights[name])
            if found is not None:
                return found
    return None


def _match(array: np.ndarray, mixture: Mixture, name: str, weight: np.ndarray) -> _Found | None:
    for transposed in (False, True):
        if transposed and weight.ndim != 2:
            break
        turned = weight.T if transposed else weight
        if turned.shape != array.shape:
            continue
        if np.array_equal(turned, array):
            return _Found(mixture, name, transposed)
        factor = factor_between(turned, array)
        if factor is not None:
            return _Found(mixture, name, transposed, factor)
    return None


# An operator, its inputs after the first, and how it permutes dims, if it does.
_Step = tuple[str, list[str], list[int]]


@dataclass(slots=True, eq=False)
class _Graph:
    """A graph that is being made to read templates: its names, the templates it has, and the nodes that go first."""

    graph: onnx.GraphProto
    taken: set[str]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    held: dict[tuple[int, str], str] = field(default_factory=dict)
    shapes: dict[tuple[int, ...], str] = field(default_factory=dict)

    def weight(self, output: str, found: _Found) -> None:
        """Give a tensor as nodes that make it of templates."""
        mixture, tiling = found.mixture, found.mixture.family.members[found.name]
        templates = self._once(mixture, "templates", mixture.templates.flatten(1).numpy())
        coefficients = self._once(mixture, found.name, mixture.coefficients[found.name].numpy())
        steps: list[_Step] = [("MatMul", [templates], []), *self._laid_out(tiling)]
        if found.transposed:
            steps.append(("Transpose", [], [1, 0]))
        if found.factor is not None:
            steps.append(("Mul", [self._constant("factor", found.factor)], []))
        value = coefficients
        for number, (kind, inputs, perm) in enumerate(steps, start=1):
            result = output if number == len(steps) else self._fresh(f"{output}.tiles")
            node = helper.make_node(kind, [value, *inputs], [result])
            node.attribute.extend([helper.make_attribute("perm", perm)] if perm else [])
            self.nodes.append(node)
            value = result

    def _laid_out(self, tiling: Tiling) -> list[_Step]:
        """From `(n_tiles, size)` to the weight: tiles below each other need not be moved."""
        height, width, *kernel = tiling.tile
        whole: _Step = ("Reshape", [self._shape(tiling.shape)], [])
        if tiling.columns == 1:
            return [whole]
        apart = (tiling.rows, tiling.columns, height, width, *kernel)
        perm = [0, 2, 1, *range(3, len(apart))]
        return [("Reshape", [self._shape(apart)], []), ("Transpose", [], perm), whole]

    def _once(self, mixture: Mixture, what: str, array: np.ndarray) -> str:
        """A tensor of a mixture, which is in the file once."""
        key = id(mixture), what
        if key not in self.held:
            self.held[key] = self._constant(what if what == "templates" else f"{what}.coefficients", array)
        return self.held[key]

    def _shape(self, sizes: tuple[int, ...]) -> str:
        if sizes not in self.shapes:
            self.shapes[sizes] = self._constant("shape", np.array(sizes, np.int64))
        return self.shapes[sizes]

    def _constant(self, wanted: str, array: np.ndarray) -> str:
        name = self._fresh(wanted)
        self.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def _fresh(self, wanted: str) -> str:
        """A name that nothing in the graph has."""
        name, count = wanted, 1
        while name in self.taken:
            name, count = f"{wanted}_{count}", count + 1
        self.taken.add(name)
        return name


def _names_in(graph: onnx.GraphProto) -> set[str]:
    """Every name that a graph uses, those within branches and loops too."""
    names = {value.name for value in (*graph.input, *graph.output, *graph.initializer)}
    return names.union(*((*node.input, *node.output) for node in all_nodes(graph.node)))


# --- folded when it is loaded


def check_folded(plain: Path, shared: Path) -> None:
    """Raise ParityError unless onnxruntime, once it has loaded them, runs the same operators of both files."""
    wanted, got = operators(plain), operators(shared)
    if wanted != got:
        more = [f"{count} {kind} more" for kind, count in sorted((got - wanted).items())]
        fewer = [f"{count} {kind} fewer" for kind, count in sorted((wanted - got).items())]
        raise ParityError(
            f"{shared.name}: expected onnxruntime to fold the templates when it loads the file and to run what it runs "
            f"of {plain.name}, got {', '.join(more + fewer)}"
        )


def operators(path: Path) -> Counter[str]:
    """How many operators of each kind onnxruntime runs of a file, once it has optimised it."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder, quiet():
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        optimized = onnx.load(options.optimized_model_filepath)
    return Counter(_kinds(optimized.graph.node))


def _kinds(nodes: Iterable[onnx.NodeProto]) -> list[str]:
    return [node.op_type for node in all_nodes(nodes)]
