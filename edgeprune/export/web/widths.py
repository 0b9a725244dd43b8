"""Several widths of one network on the page: their graphs, the weights that they share, and the gate that picks one."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeprune.errors import InputError
from edgeprune.export import ort
from edgeprune.export.gated import GATE, WEIGHTS, gated_in
from edgeprune.export.ort import Feed
from edgeprune.formats.onnx.file import external_files, parse_onnx
from edgeprune.lines import shown

_MOST_NAMED = 3


@dataclass(frozen=True, slots=True, eq=False)
class WebWidths:
    """The folder of a run's widths, and real inputs `(n, ...)` as each of them takes them."""

    folder: Path
    inputs: Feed

    @property
    def files(self) -> list[Path]:
        """The graphs, from narrow to wide, and last the one in which a gate picks, where there is one.

        Raises:
            InputError: a graph is not called by its share of the MACs.
        """
        gate = self.folder / GATE
        graphs = [file for file in self.folder.glob("*.onnx") if file != gate]
        try:
            graphs.sort(key=lambda file: float(file.stem))
        except ValueError as error:
            raise InputError(
                f"{self.folder}: expected the .onnx files of several widths, such as 0.5.onnx: {error}"
            ) from error
        return [*graphs, *([gate] if gate.is_file() else [])]

    def shared(self) -> Path | None:
        """The file of weights that all graphs read; None where all are so small that each graph holds its own.

        Raises:
            InputError: it is not the one of a run.
        """
        names = sorted({name for file in self.files for name in external_files(parse_onnx(file))})
        weights = self.folder / WEIGHTS
        if not names:
            return None
        if names != [WEIGHTS] or not weights.is_file():
            got = ", ".join(map(shown, names[:_MOST_NAMED])) or "none"
            raise InputError(f"{self.folder}: expected the graphs' weights in {WEIGHTS} beside them alone, got {got}")
        return weights


def copied_weights(staged: Path, widths: WebWidths) -> dict[str, Any] | None:
    """Copy the shared weights; returns their part of the manifest, None where the graphs hold all of theirs."""
    weights = widths.shared()
    if weights is None:
        return None
    copy = Path(shutil.copyfile(weights, staged / weights.name))
    return {"file": copy.name, "bytes": copy.stat().st_size}


def told_width(file: Path) -> dict[str, Any]:
    """What the page calls a width; of the gate, the output that tells which it has picked, and their names."""
    session = ort.session(file)
    names = [value.name for value in session.get_outputs()]
    gated = gated_in(session.get_modelmeta().custom_metadata_map, names, str(file))
    if gated is None:
        return {"name": file.stem}
    return {"name": "by the gate", "picks": {"output": gated.output, "widths": list(gated.widths)}}
