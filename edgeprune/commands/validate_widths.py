"""`edgeprune validate` of one network at several widths: each is compared with the dense one in turn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from edgeprune.commands.validate import validate
from edgeprune.errors import InputError
from edgeprune.export.gated import GATE, WIDTHS
from edgeprune.lines import shown
from edgeprune.progress import Progress, Silent
from edgeprune.requests import ValidateRequest
from edgeprune.results import ValidateWidthsRecord


def validate_widths(request: ValidateRequest, progress: Progress | None = None) -> ValidateWidthsRecord:
    """Compare the graphs in the folder `request.slim`, a run's or that of its widths, with `request.dense`.

    The file in which a gate picks one of them comes last, where there is one; batches of more than one sample leave it
    out, which is said at once.

    Raises:
        InputError: the folder holds no widths; and as `validate`.
    """
    told = progress or Silent()
    files = _files(Path(request.slim))
    gate = files[0].parent / GATE
    if gate.is_file() and request.batch_size > 1:
        told.say(f"left out: {gate.name}, which takes one sample at a time, of batches of {request.batch_size}")
    elif gate.is_file():
        files.append(gate)
    found = tuple(validate(replace(request, slim=str(file)), told) for file in files)
    return ValidateWidthsRecord(tuple(file.stem for file in files), found)


def _files(folder: Path) -> list[Path]:
    """The graphs of a folder, which are called by their shares of the MACs, the widest first."""
    if (folder / WIDTHS).is_dir():
        folder = folder / WIDTHS
    shares = {file: _share(file) for file in folder.glob("*.onnx") if file.name != GATE}
    wrong = sorted(file.name for file, share in shares.items() if share is None)
    if not shares or wrong:
        got = shown(wrong[0]) if wrong else "none"
        raise InputError(f"{folder}: expected the .onnx files of several widths, such as 0.5.onnx, got {got}")
    return sorted(shares, key=lambda file: shares[file] or 0.0, reverse=True)


def _share(file: Path) -> float | None:
    try:
        share = float(file.stem)
    except ValueError:
        return None
    return share if 0 < share <= 1 else None
