"""What Qualcomm's Hexagon would take of an ONNX file, by onnxruntime's QNN provider where it is installed.

Its library asks Qualcomm's own, which runs on Linux too, whether it has each operator; no phone is asked.
https://onnxruntime.ai/docs/execution-providers/QNN-ExecutionProvider.html
"""

from __future__ import annotations

import importlib.util
import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from edgeprune.export import apart
from edgeprune.export.mobile.places import named, onnx_operators, places

_CHECK = "edgeprune.export.mobile.qnn_process:check"
_RENAMED = re.compile(r"_token_\d+$")  # what its own changes of layout append


@dataclass(frozen=True, slots=True)
class QnnCheck:
    """What QNN takes, in its own count of nodes; `left` are the others with where they stand in the network."""

    version: str
    n_taken: int
    n_parts: int
    left: tuple[tuple[str, str], ...]

    @property
    def words(self) -> str:
        """E.g. `QNN takes all 19 nodes in 1 part, as onnxruntime-qnn 2.7.0 gives them to its Hexagon`."""
        n_nodes = self.n_taken + len(self.left)
        number = "all" if not self.left else f"{self.n_taken} of" if self.n_taken else "none of"
        parts = f" in {self.n_parts} part{'s' * (self.n_parts != 1)}" if self.n_parts else ""
        stays = "stays" if len(self.left) == 1 else "stay"
        stay = f"; {named(self.left)} {stays} on the CPU" if self.left else ""
        return (
            f"QNN takes {number} {n_nodes} node{'s' * (n_nodes != 1)}{parts}, as onnxruntime-qnn {self.version} gives "
            f"them to its Hexagon, without a phone{stay}"
        )


def is_installed() -> bool:
    """Whether onnxruntime's QNN provider is there."""
    return importlib.util.find_spec("onnxruntime_qnn") is not None


def check_qnn(proto: onnx.ModelProto, name: str) -> QnnCheck:
    """What QNN takes of a network with fixed sizes, as the phone sees it.

    Args:
        proto: the network.
        name: of its file, for messages.

    Raises:
        InputError: onnxruntime's QNN provider cannot load it.
    """
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
        file, out = Path(folder) / name, Path(folder) / "found.json"
        file.write_bytes(proto.SerializeToString())
        apart.called(_CHECK, {"file": str(file), "out": str(out)}, f"QNN cannot check {name}")
        return checked(json.loads(out.read_text(encoding="utf-8")), proto.graph)


def checked(found: Mapping[str, Any], graph: onnx.GraphProto) -> QnnCheck:
    """The check, of what the provider said; see `qnn_process.check`."""
    where = dict(zip((node.name for node in graph.node), places(onnx_operators(graph)), strict=True))
    taken = [part["nodes"] for part in found["parts"] if part["qnn"]]
    left = [node for part in found["parts"] if not part["qnn"] for node in part["nodes"]]
    return QnnCheck(
        version=found["version"],
        n_taken=sum(map(len, taken)),
        n_parts=len(taken),
        left=tuple((kind, where.get(_RENAMED.sub("", name), "")) for name, kind in left),
    )
