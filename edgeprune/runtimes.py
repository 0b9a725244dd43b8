"""What an export can be written for, by name: one line each, and the packages that it needs; no torch."""

from __future__ import annotations

from dataclasses import dataclass

from edgeprune.errors import InputError


@dataclass(frozen=True, slots=True)
class Package:
    """A distribution that a target needs, by the name that pip knows; from version `least` on, ahead of `below`."""

    name: str
    least: str
    below: str

    @property
    def expected(self) -> str:
        """E.g. `openvino 2026.4 or later, before 2027`."""
        return f"{self.name} {self.least} or later, before {self.below}"


@dataclass(frozen=True, slots=True)
class TargetEntry:
    """One target of `edgeprune export`: its option without the dashes, and the extra of edgeprune that it needs.

    `packages` are those that it runs; `apart` are some that pip installs only without what they ask for.
    `is_runtime` marks what runs a network on a device: those are what `--to all` writes for.
    """

    name: str
    summary: str
    extra: str | None = None
    packages: tuple[Package, ...] = ()
    apart: str | None = None
    is_runtime: bool = True

    @property
    def install(self) -> str:
        """What installs all that it needs, e.g. `pip install 'edgeprune[executorch]'`."""
        first = f"pip install 'edgeprune[{self.extra}]'" if self.extra else "pip install edgeprune"
        return f"{first} && pip install --no-deps {self.apart}" if self.apart else first


TARGETS = (
    TargetEntry(
        "c-header",
        "Write features.json as C too: edgeprune_features.h, kept inputs, scaling and classes for firmware.",
        is_runtime=False,
    ),
    TargetEntry("ort", "Write the ORT format too, and the list of operators for a reduced build."),
    TargetEntry(
        "litert",
        "Write a .tflite for LiteRT too, images with their channels last; see --layout.",
        "litert",
        (
            Package("litert-torch", "0.10", "0.11"),
            Package("ai-edge-litert", "2.3", "2.4"),
            Package("ai-edge-quantizer", "0.10", "0.11"),
        ),
        apart="litert-converter==0.5.0 litert-torch==0.10.0",
    ),
    TargetEntry(
        "coreml",
        "Write packages for Core ML too, in float, half precision and with 8-bit weights.",
        "coreml",
        (Package("coremltools", "9.0", "10"),),
    ),
    TargetEntry(
        "openvino",
        "Write OpenVINO's .xml and .bin too, in float and with half-precision weights.",
        "openvino",
        (Package("openvino", "2026.4", "2027"),),
    ),
    TargetEntry(
        "ncnn",
        "Write ncnn's .param and .bin too.",
        "ncnn",
        (Package("ncnn", "1.0.20261020", "1.1"), Package("pnnx", "20261020", "20280000")),
    ),
    TargetEntry("executorch", "Write a .pte for ExecuTorch (XNNPACK) too.", "executorch"),
    TargetEntry("c", "Write C99 for microcontrollers too: a header and a file that allocate nothing."),
    TargetEntry(
        "web",
        "Write a page that runs the dense and this network in a phone's browser; see edgeprune serve.",
        is_runtime=False,
    ),
)
ONNX, EVERY = "onnx", "all"


def target(name: str) -> TargetEntry:
    """The entry of a target; InputError where there is none."""
    found = next((entry for entry in TARGETS if entry.name == name), None)
    if found is None:
        raise InputError(f"target: expected one of {', '.join(entry.name for entry in TARGETS)}, got {name!r}")
    return found


def targets_in(text: str) -> tuple[str, ...]:
    """The names in a text such as `onnx,ort`, each once; `all` stays as it is.

    Raises:
        InputError: there is no target of a name.
    """
    given = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    known = (ONNX, *(entry.name for entry in TARGETS), EVERY)
    unknown = [name for name in given if name not in known]
    if unknown:
        raise InputError(f"--to: expected names of {', '.join(known)}, with commas between them, got {unknown[0]!r}")
    return given
