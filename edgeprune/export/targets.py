"""The targets that there are, by the name of their option."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from edgeprune.errors import InputError
from edgeprune.export.c.target import CSource
from edgeprune.export.cheader import CHeader
from edgeprune.export.coreml import CoreMl
from edgeprune.export.executorch import Executorch
from edgeprune.export.litert import Litert
from edgeprune.export.ncnn import Ncnn
from edgeprune.export.openvino import Openvino
from edgeprune.export.ortformat import OnnxRuntime, OrtFormat, Platform
from edgeprune.export.signature import Layout
from edgeprune.export.target import Runtime, Target
from edgeprune.export.web.runtime import RUNTIME_VERSION
from edgeprune.export.web.target import WebPage

ONNXRUNTIME: Runtime = OnnxRuntime()  # runs the ONNX files too, which every export has


@dataclass(frozen=True, slots=True)
class TargetOptions:
    """What can be said of single targets.

    Where an .ort file runs, which onnxruntime-web the page has, and how a .tflite file has images.
    """

    ort_platform: Platform | None = None
    web_runtime: str = RUNTIME_VERSION
    layout: Layout = "nhwc"


# In the order in which their files are written and told of.
TARGETS: Mapping[str, Callable[[TargetOptions], Target]] = {
    "c-header": lambda _: CHeader(),
    "ort": lambda options: OrtFormat(options.ort_platform),
    "litert": lambda options: Litert(options.layout),
    "coreml": lambda _: CoreMl(),
    "openvino": lambda _: Openvino(),
    "ncnn": lambda _: Ncnn(),
    "executorch": lambda _: Executorch(),
    "c": lambda _: CSource(),
    "web": lambda options: WebPage(options.web_runtime),
}


def targets_of(names: Collection[str], options: TargetOptions | None = None) -> tuple[Target, ...]:
    """The targets of these names, each once, in the order of `TARGETS`.

    Raises:
        InputError: there is none of a name.
    """
    unknown = [name for name in names if name not in TARGETS]
    if unknown:
        raise InputError(f"target: expected one of {', '.join(TARGETS)}, got {unknown[0]!r}")
    return tuple(make(options or TargetOptions()) for name, make in TARGETS.items() if name in names)
