"""Where in a network an operator stands: the layer whose weights it has, or the one that it comes after."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from edgeprune.lines import one_line

_MOST_PLACES = 3  # that are named of one kind of operator
_LONGEST = 60
_CLOSE = 1e-5  # relative: a batch norm that went into weights rounds them otherwise in each runtime
Fingerprint = tuple[int, float, float]  # of an array: its size, the sums of its sizes and of its squares


@dataclass(frozen=True, slots=True)
class Operator:
    """One of a graph's, in the order in which they run; `layer` is that of its own weights, "" without."""

    kind: str
    inputs: tuple[Hashable, ...]
    outputs: tuple[Hashable, ...]
    layer: str = ""


def places(operators: Sequence[Operator]) -> list[str]:
    """Where each stands: `features.3`, `after features.3`, or "" where no layer comes before it."""
    layers: dict[Hashable, str] = {}
    found = []
    for one in operators:
        before = one.layer or next(filter(None, (layers.get(value, "") for value in one.inputs)), "")
        layers |= dict.fromkeys(one.outputs, before)
        found.append(before if one.layer else f"after {before}" if before else "")
    return found


def onnx_operators(graph: onnx.GraphProto) -> list[Operator]:
    """Those of an ONNX graph; a layer's name is that of its weights, `features.3` of `features.3.weight`."""
    held = {one.name: layer_of(one.name) for one in graph.initializer if one.dims}
    return [
        Operator(
            node.op_type,
            tuple(node.input),
            tuple(node.output),
            next(filter(None, (held.get(name, "") for name in node.input)), ""),
        )
        for node in graph.node
    ]


def layer_of(name: str) -> str:
    """The layer of a tensor; "" for a constant, whose name has no dot."""
    return one_line(name.rpartition(".")[0], _LONGEST)


def layer_prints(graph: onnx.GraphProto) -> dict[str, Fingerprint]:
    """What tells the weights of an ONNX graph, by their name, whatever the order of their dims elsewhere."""
    floats = [one for one in graph.initializer if one.data_type == onnx.TensorProto.FLOAT and layer_of(one.name)]
    return {one.name: fingerprint(numpy_helper.to_array(one)) for one in floats}


def fingerprint(array: np.ndarray) -> Fingerprint:
    """The same for an array whose dims are in another order."""
    values = np.abs(np.asarray(array, np.float64))
    return int(values.size), float(values.sum()), float((values**2).sum())


def layer_with(wanted: Fingerprint, known: Mapping[str, Fingerprint]) -> str:
    """The layer of the weights with these figures; "" where there are none or several."""
    found = {layer_of(name) for name, one in known.items() if _is_close(wanted, one)}
    return found.pop() if len(found) == 1 else ""


def _is_close(a: Fingerprint, b: Fingerprint) -> bool:
    return a[0] == b[0] and a[1] > 0 and all(abs(x - y) <= _CLOSE * y for x, y in zip(a[1:], b[1:], strict=True))


def named(found: Iterable[tuple[str, str]]) -> str:
    """Operators with where they stand, by kind: `Gelu (2: after fc1, after fc2), Softplus (1)`."""
    kinds: dict[str, list[str]] = {}
    for kind, place in found:
        kinds.setdefault(one_line(kind, _LONGEST), []).append(place)
    return ", ".join(f"{kind} ({_counted(where)})" for kind, where in sorted(kinds.items()))


def _counted(where: Sequence[str]) -> str:
    known = list(dict.fromkeys(filter(None, where)))
    more = f" and {len(known) - _MOST_PLACES} more" if len(known) > _MOST_PLACES else ""
    return f"{len(where)}: {', '.join(known[:_MOST_PLACES])}{more}" if known else str(len(where))
