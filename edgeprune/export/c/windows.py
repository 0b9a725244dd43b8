"""Windows that move over lines and images: of convolutions and of pools."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx

from edgeprune.export.c.rules import Lowering, options, refusal

_DIMS = 2  # a line is an image with one row


@dataclass(frozen=True, slots=True)
class Window:
    """Sizes of what a window reads and writes, each as (height, width); `end` is the padding after the last number."""

    n: int
    channels: tuple[int, int]
    size: tuple[int, ...]
    out: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    pad: tuple[int, ...]
    end: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    @property
    def fields(self) -> tuple[int, ...]:
        """In the order of the struct in C."""
        into, out = self.channels
        dims = (self.kernel, self.stride, self.pad, self.end, self.dilation)
        return (self.n, into, *self.size, out, *self.out, *(number for pair in dims for number in pair), self.groups)

    @property
    def reads_no_padding(self) -> bool:
        """Whether all of it lies in the image, wherever it is."""
        last = zip(self.out, self.stride, self.kernel, self.dilation, self.pad, strict=True)
        reach = [(out - 1) * stride + (kernel - 1) * apart - pad for out, stride, kernel, apart, pad in last]
        return not any(self.pad) and all(end < size for end, size in zip(reach, self.size, strict=True))

    def always_holds(self, padded: bool) -> bool:
        """Whether each place of it holds a number of the image, or of the padding too."""
        dims = zip(self.out, self.stride, self.kernel, self.dilation, self.pad, self.end, self.size, strict=True)
        for out, stride, kernel, apart, pad, end, size in dims:
            first, last = (-pad, size + end) if padded else (0, size)
            taps = [tap * apart - pad for tap in range(kernel)]
            if not all(any(first <= place * stride + tap < last for tap in taps) for place in range(out)):
                return False
        return True


def pool_window(low: Lowering, node: onnx.NodeProto) -> Window:
    """That of a pool; raises InputError for one over volumes, and where it holds nothing to pool at some place."""
    told = options(node, count_include_pad=0)
    window = window_of(low, node, told["kernel_shape"])
    if not window.always_holds(padded=bool(told["count_include_pad"])):
        raise refusal(node, "with a window that holds no number")
    return window


def window_of(low: Lowering, node: onnx.NodeProto, kernel: Sequence[int]) -> Window:
    """That of a convolution or a pool; raises InputError for one over volumes."""
    shape, given = low.net.shapes[node.input[0]], low.net.shapes[node.output[0]]
    rank = len(kernel)
    if not 1 <= rank <= _DIMS:
        raise refusal(node, f"over {rank} dims")
    told = options(node, group=1, auto_pad="NOTSET")
    strides, dilations = told.get("strides", [1] * rank), told.get("dilations", [1] * rank)
    pads = told.get("pads", [0] * 2 * rank)
    if told["auto_pad"] == "VALID":
        pads = [0] * 2 * rank
    elif told["auto_pad"] != "NOTSET":
        spans = zip(shape[2:], given[2:], strides, kernel, dilations, strict=True)
        every = [max((out - 1) * step + (k - 1) * apart + 1 - size, 0) for size, out, step, k, apart in spans]
        less, more = [one // 2 for one in every], [one - one // 2 for one in every]
        pads = [*less, *more] if told["auto_pad"] == "SAME_UPPER" else [*more, *less]
    return Window(
        shape[0],
        (shape[1], given[1]),
        _as_image(shape[2:], 1),
        _as_image(given[2:], 1),
        _as_image(kernel, 1),
        _as_image(strides, 1),
        _as_image(pads[:rank], 0),
        _as_image(pads[rank:], 0),
        _as_image(dilations, 1),
        told["group"],
    )


def _as_image(numbers: Sequence[int], filled: int) -> tuple[int, ...]:
    return (*[filled] * (_DIMS - len(numbers)), *map(int, numbers))
