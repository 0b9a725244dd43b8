"""int8 convolutions in the shapes that onnxruntime has quick kernels for, with the same numbers.

It has one that reads its inputs where they lie, if their channels come in fours; of an image's three channels it copies
each patch first, which takes twice the time. And it copies and multiplies each group for itself: with eight channels in
each, as in RegNet or ResNeXt, that takes up to five times as long as with 32, most of whose weights are zero. Both were
measured on an x86 CPU with VNNI.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

# What starting a group costs at one position, in multiplications: fitted to 3x3 convolutions of 32 to 448 channels in
# 4 to 112 groups.
_MACS_OF_A_GROUP = 14_000
_INPUTS = 4
_OUTPUTS = 16  # a convolution with fewer has no such kernel


def fit_to_kernels(model: onnx.ModelProto) -> None:
    """Join groups of int8 convolutions and fill up the channels of images with zeros, where that takes less time.

    Depthwise convolutions have a kernel of their own. Weights have to be symmetric integers that nothing else reads, as
    onnxruntime's quantisation writes them: others stay as they are. Values within the network are not filled up: to
    move them costs as much as it saves.
    """
    graph = _Graph(model.graph)
    for convolution in list(graph.convolutions()):
        if convolution.n_groups > 1:
            convolution.join_groups()
        elif convolution.n_outputs >= _OUTPUTS and graph.reads_image(convolution.node):
            graph.fill_inputs(convolution)


def fewer_groups(n_groups: int, shape: tuple[int, ...]) -> int:
    """How many groups take the least time, a divisor of `n_groups`, for weights `(out, in of a group, *kernel)`."""
    if shape[0] == n_groups and shape[1] == 1:  # depthwise
        return n_groups
    macs = math.prod(shape) * n_groups  # of one position, in a single group
    divisors = [n for n in range(1, n_groups + 1) if n_groups % n == 0]
    return min(divisors, key=lambda n: n * _MACS_OF_A_GROUP + macs / n)


@dataclass(frozen=True, slots=True, eq=False)
class _Convolution:
    """A convolution with symmetric integer weights `(out, in of a group, *kernel)` that nothing else reads."""

    node: onnx.NodeProto
    weight: onnx.TensorProto

    @property
    def n_groups(self) -> int:
        """1 where nothing is said."""
        return next((entry.i for entry in self.node.attribute if entry.name == "group"), 1)

    @property
    def n_outputs(self) -> int:
        """Its output channels."""
        return int(self.weight.dims[0])

    def join_groups(self) -> None:
        """Make neighbouring groups one, with zeros between them."""
        n_groups = fewer_groups(self.n_groups, tuple(self.weight.dims))
        if n_groups < self.n_groups:
            self.store(_joined(numpy_helper.to_array(self.weight), self.n_groups, self.n_groups // n_groups))
            next(entry for entry in self.node.attribute if entry.name == "group").i = n_groups

    def store(self, values: np.ndarray) -> None:
        """Take other weights."""
        self.weight.CopyFrom(numpy_helper.from_array(values, self.weight.name))


def _joined(values: np.ndarray, n_groups: int, n_joined: int) -> np.ndarray:
    """`(out, in, *kernel)` as `(out, n_joined * in, *kernel)`: each group reads its own channels of the joined ones."""
    out, width, *kernel = values.shape
    own = np.arange(out) // (out // n_groups) % n_joined
    wide = np.zeros((out, n_joined, width, *kernel), values.dtype)
    wide[np.arange(out), own] = values
    return wide.reshape(out, n_joined * width, *kernel)


class _Graph:
    """The operators of a quantised file, by what they make and read."""

    def __init__(self, proto: onnx.GraphProto) -> None:
        self._proto = proto
        self._stored = {tensor.name: tensor for tensor in proto.initializer}
        self._makers = {name: node for node in proto.node for name in node.output}
        self._readers = Counter(name for node in proto.node for name in node.input)

    def convolutions(self) -> Iterator[_Convolution]:
        """Those whose weights may be changed."""
        for node in self._proto.node:
            source = self._makers.get(node.input[1]) if node.op_type == "Conv" else None
            if source is None or source.op_type != "DequantizeLinear" or self._readers[node.input[1]] > 1:
                continue
            weight = self._stored.get(source.input[0])
            if weight is not None and self._readers[weight.name] == 1 and self._is_symmetric(source):
                yield _Convolution(node, weight)

    def _is_symmetric(self, source: onnx.NodeProto) -> bool:
        """Whether the integer 0 stands for 0."""
        names = [name for name in source.input[2:] if name]
        return all(name in self._stored and not numpy_helper.to_array(self._stored[name]).any() for name in names)

    def reads_image(self, node: onnx.NodeProto) -> bool:
        """Whether a convolution reads integers that no convolution has had a part in."""
        source = self._makers.get(node.input[0])
        if source is None or source.op_type != "DequantizeLinear":
            return False
        seen, waiting = set(), [source.input[0]]
        while waiting:
            name = waiting.pop()
            maker = self._makers.get(name)
            if maker is None or name in seen:
                continue
            if maker.op_type == "Conv":
                return False
            seen.add(name)
            waiting += maker.input
        return True

    def fill_inputs(self, convolution: _Convolution) -> None:
        """Bring the channels that it reads to a multiple of four; the weights of the new ones are zero."""
        node, values = convolution.node, numpy_helper.to_array(convolution.weight)
        missing, rank = -values.shape[1] % _INPUTS, values.ndim
        if not missing:
            return
        source, name = self._makers[node.input[0]], f"{node.name}_filled"
        pads = np.zeros((2, rank), np.int64)
        pads[1, 1] = missing
        convolution.store(np.pad(values, pads.T))
        self._proto.initializer.append(numpy_helper.from_array(pads.ravel(), f"{name}_pads"))
        filled = helper.make_node("Pad", [source.input[0], f"{name}_pads"], [f"{name}_integers"], f"{name}_pad")
        real = helper.make_node("DequantizeLinear", [filled.output[0], *source.input[1:]], [name], f"{name}_real")
        real.attribute.extend(source.attribute)
        at = list(self._proto.node).index(node)
        self._proto.node.insert(at, real)
        self._proto.node.insert(at, filled)
        self._readers[node.input[0]] -= 1
        if not self._readers[node.input[0]]:
            self._proto.node.remove(source)
        node.input[0] = name
