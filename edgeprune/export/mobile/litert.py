"""What LiteRT's delegates would take of a .tflite file: XNNPACK as LiteRT uses it here, GPUs by LiteRT's analyzer.

https://ai.google.dev/edge/litert/models/model_analyzer
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeprune.export import apart
from edgeprune.export.mobile.places import Fingerprint, Operator, layer_with, named, places
from edgeprune.lines import one_line

_CHECK = "edgeprune.export.mobile.litert_process:check"
_GRAPH = re.compile(r"^Subgraph#(\d+) .*->")
_OPERATOR = re.compile(r"^\s*Op#(\d+) ([\w-]+)\(")
_WARNING = re.compile(r"^\s*GPU COMPATIBILITY WARNING: (?!Subgraph#)(.*)")
_COMPATIBLE = "Your model looks compatible with GPU delegate"
_ISSUES = "GPU COMPATIBILITY WARNING: Subgraph#"
_MOST_REASONS = 3


@dataclass(frozen=True, slots=True)
class GpuCheck:
    """What the analyzer says: `left` are operators that GPUs lack, with where they stand, `reasons` its own words."""

    left: tuple[tuple[str, str], ...]
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LitertCheck:
    """What LiteRT's delegates would take of a network.

    `version` is LiteRT's; `left` are operators that XNNPACK leaves, with where they stand in the network, e.g.
    `("GATHER", "after features.3")`; `gpu` is None where the analyzer cannot tell what GPUs have from what they lack.
    """

    version: str
    n_operators: int
    n_parts: int
    left: tuple[tuple[str, str], ...]
    gpu: GpuCheck | None

    @property
    def words(self) -> tuple[str, str]:
        """A line for each delegate."""
        parts = f" in {self.n_parts} part{'s' * (self.n_parts != 1)}" if self.n_parts else ""
        stay = f"; {named(self.left)} {_stay(self.left)} on LiteRT's own kernels" if self.left else ""
        taken = f"LiteRT's XNNPACK takes {self._taken(self.left)}{parts}, as LiteRT {self.version} runs it here{stay}"
        return taken, self._gpu

    @property
    def _gpu(self) -> str:
        if self.gpu is None:
            return (
                f"LiteRT's GPU delegate: no checker on this machine: the analyzer of LiteRT {self.version} lets "
                "every operator pass, also one that no GPU has"
            )
        left = self.gpu.left
        stay = f"; {named(left)} {_stay(left)} on the CPU ({'; '.join(self.gpu.reasons)})" if left else ""
        return (
            f"LiteRT's GPU delegate would take {self._taken(left)}, by the analyzer of LiteRT {self.version}, which "
            f"asks no GPU{stay}"
        )

    def _taken(self, left: Sequence[object]) -> str:
        n, every = self.n_operators - len(left), f"{self.n_operators} operator{'s' * (self.n_operators != 1)}"
        return f"all {every}" if not left else f"{n} of {every}" if n else f"none of {every}"


def check_litert(file: Path, weights: Mapping[str, Fingerprint]) -> LitertCheck:
    """What LiteRT's delegates would take of a .tflite file.

    Args:
        file: the network.
        weights: what tells the layers of the same network by their weights, see `places.layer_prints`.

    Raises:
        InputError: LiteRT cannot load it.
    """
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
        out = Path(folder) / "found.json"
        apart.called(_CHECK, {"file": str(file.resolve()), "out": str(out)}, f"LiteRT cannot check {file.name}")
        return checked(json.loads(out.read_text(encoding="utf-8")), weights)


def checked(found: Mapping[str, Any], weights: Mapping[str, Fingerprint]) -> LitertCheck:
    """The check, of what LiteRT said; see `litert_process.check`."""
    layers = {int(value): layer_with(tuple(one), weights) for value, one in found["constants"].items()}
    operators = [_operator(one, layers) for one in found["operators"]]
    where = places(operators)
    delegates = [_operator(one, {}) for one in found["delegates"]]
    taken = {place for delegate in delegates for place in _within(operators, delegate)}
    said, of_probe = found["analyses"]
    return LitertCheck(
        version=found["version"],
        n_operators=len(operators),
        n_parts=len(delegates),
        left=tuple((one.kind, where[k]) for k, one in enumerate(operators) if k not in taken),
        gpu=_gpu_check(said, of_probe, [(one.kind, place) for one, place in zip(operators, where, strict=True)]),
    )


def _gpu_check(said: str, of_probe: str, operators: Sequence[tuple[str, str]]) -> GpuCheck | None:
    """What the analyzer says of the network; None where it lets pass what no GPU has, or says nothing."""
    if not _incompatible(of_probe) or not (_ISSUES in said or _COMPATIBLE in said):
        return None
    refused = _incompatible(said)
    left = tuple(operators[k] for k in refused if k < len(operators))
    return GpuCheck(left, tuple(dict.fromkeys(refused.values()))[:_MOST_REASONS])


def _operator(one: Mapping[str, Any], layers: Mapping[int, str]) -> Operator:
    layer = next(filter(None, (layers.get(value, "") for value in one["inputs"])), "")
    return Operator(one["kind"], tuple(one["inputs"]), tuple(one["outputs"]), layer)


def _within(operators: Sequence[Operator], delegate: Operator) -> set[int]:
    """Which operators a delegate's part holds: all that lead to its outputs and come after its inputs."""
    maker = {value: place for place, one in enumerate(operators) for value in one.outputs}
    borders, found = set(delegate.inputs), set[int]()
    left = list(delegate.outputs)
    while left:
        place = maker.get(left.pop())
        if place is not None and place not in found:
            found.add(place)
            left += [value for value in operators[place].inputs if value not in borders]
    return found


def _incompatible(analysis: str) -> dict[int, str]:
    """The operators of the main graph that an analyzer refuses to a GPU, with its reasons."""
    found: dict[int, str] = {}
    graph, operator = 0, 0
    for line in analysis.splitlines():
        if start := _GRAPH.match(line):
            graph = int(start[1])
        elif start := _OPERATOR.match(line):
            operator = int(start[1])
        elif (start := _WARNING.match(line)) and graph == 0:
            found[operator] = one_line(start[1], 80)
    return found


def _stay(left: Sequence[object]) -> str:
    return "stays" if len(left) == 1 else "stay"
