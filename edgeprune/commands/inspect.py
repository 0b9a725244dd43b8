"""`edgeprune inspect`: the channel groups of a model, and why the rest is locked."""

from __future__ import annotations

from dataclasses import replace

from edgeprune.commands.resolve import opened
from edgeprune.files import check_new, write_atomically
from edgeprune.inspection.drawing import draw
from edgeprune.inspection.table import inspect_program
from edgeprune.measure.peaks import device_peaks
from edgeprune.progress import Progress, Silent
from edgeprune.report.diagram import dot, svg
from edgeprune.requests import InspectRequest
from edgeprune.results import InspectRecord
from edgeprune.usercode import running_user_code


@running_user_code()
def inspect(request: InspectRequest, progress: Progress | None = None) -> InspectRecord:
    """The channel groups of a model, and why the rest is locked.

    Raises:
        InputError: the model is wrong.
    """
    told = progress or Silent()
    drawings = {path: render_as for path, render_as in ((request.dot, dot), (request.svg, svg)) if path is not None}
    for path in drawings:
        check_new(path, request.force, "file")
    told.stage("load")
    model = opened(request, told)
    told.stage("analyse")
    found = inspect_program(model.program, request.model, request.attention)
    if drawings:
        picture = draw(found)
        for path, render_as in drawings.items():
            write_atomically(path, render_as(picture).encode())
    return replace(found.record, files=tuple(drawings), **device_peaks(model.program)._asdict())
