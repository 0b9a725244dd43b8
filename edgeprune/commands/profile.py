"""`edgeprune profile`: how long the layers of a network take on this machine."""

from __future__ import annotations

import time

from edgeprune.commands.resolve import is_architecture, opened, own_device
from edgeprune.cost.coverage import coverage
from edgeprune.cost.layers import layer_shapes
from edgeprune.files import check_new, write_atomically
from edgeprune.graph.groups import analyze
from edgeprune.measure.profiling import Timing
from edgeprune.progress import Progress, Silent
from edgeprune.requests import ProfileRequest
from edgeprune.results import ProfiledKind, ProfileRecord
from edgeprune.usercode import running_user_code


@running_user_code()
def profile(request: ProfileRequest, progress: Progress | None = None) -> ProfileRecord:
    """Measure how long the layers of a network take on this machine at several widths, and write a device.json.

    Raises:
        InputError: the model, an option or the output place is wrong.
    """
    told, start = progress or Silent(), time.perf_counter()
    timing = Timing(request.threads, request.batch_size, request.runs, request.warmup)
    timing.check()
    check_new(request.out, request.force, "file")
    told.stage("load")
    model = opened(request, told)
    program = model.program
    device = own_device(program, timing, told, request.fresh)
    write_atomically(request.out, device.to_json().encode())
    graph = analyze(program)
    shapes, covered = [shape for shape in layer_shapes(graph).values() if device.knows(shape)], coverage(graph, device)
    total = sum(map(device.milliseconds, shapes))
    kinds = []
    for kind in dict.fromkeys(shape.kind for shape in shapes):
        own = [shape for shape in shapes if shape.kind == kind]
        ms = sum(map(device.milliseconds, own))
        kinds.append(ProfiledKind(kind, len(own), device.step(kind) or 1, ms, ms / total, covered.by_kind[kind]))
    return ProfileRecord(
        model=request.model,
        out=request.out,
        runtime=device.runtime,
        cpu=device.cpu,
        threads=device.threads,
        batch_size=device.batch,
        n_points=len(device.points),
        ms=total,
        kinds=tuple(kinds),
        seconds=time.perf_counter() - start,
        arch=request.model if is_architecture(request) else request.arch,
        data=model.info.data,
        task=model.info.task,
        unmeasured=covered.unmeasured,
        is_enough=covered.is_enough,
        input_shape=request.input_shape,
    )
