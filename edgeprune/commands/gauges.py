"""What the networks of a compress run are measured with, and the dense one as a file, which stands beside them."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from edgeprune.commands.examples import PARITY_SAMPLES, example_feed, real_inputs
from edgeprune.commands.onnxfile import draft, write_onnx
from edgeprune.commands.opening import Assume, Opened
from edgeprune.commands.resolve import own_device, written_info
from edgeprune.commands.unfinished import generators_kept
from edgeprune.cost.coverage import check_known
from edgeprune.cost.device import Device, device_in, read_device
from edgeprune.graph.groups import analyze
from edgeprune.journal.kept import kept_gauge
from edgeprune.journal.shared import Results, measured_by_main
from edgeprune.measure.candidates import OnnxGauge, PeakGauge, foreign
from edgeprune.measure.profiling import Timing
from edgeprune.progress import Progress
from edgeprune.report.formats import quoted
from edgeprune.requests import CompressRequest
from edgeprune.search.candidate import Budgets, Gauge
from edgeprune.training import Team
from edgeprune.units import LatencyLimit

_DENSE = "dense.onnx"


@dataclass(frozen=True, slots=True, eq=False)
class DenseFile:
    """The dense network as ONNX, which onnxruntime was seen to run as PyTorch does; it goes with its `folder`."""

    folder: tempfile.TemporaryDirectory[str]
    n_bytes: int

    @property
    def path(self) -> Path:
        """The file."""
        return Path(self.folder.name) / _DENSE


def dense_file(request: CompressRequest, opened: Opened, team: Team, told: Progress) -> DenseFile:
    """Write the dense network as ONNX: what no such file can hold is refused before anything is searched.

    The main process of the team alone has it. What data draw at random is drawn afterwards as if nothing had been.

    Raises:
        InputError: ONNX cannot express the network.
        ParityError: the file disagrees with PyTorch.
    """
    folder = tempfile.TemporaryDirectory(prefix="edgeprune-")

    def written() -> int:
        told.stage("export the dense network")
        with generators_kept():
            inputs = real_inputs(opened.model, opened.data, PARITY_SAMPLES)
            path = Path(folder.name) / _DENSE
            info = written_info(request, opened.model, opened.data)
            return write_onnx(opened.model.program, info, path, inputs=inputs, task=opened.task).size_bytes

    return DenseFile(folder, team.by_main(written))


def device_of(  # noqa: PLR0913 - what was asked for, of what, what is known of it and who is told
    request: CompressRequest,
    limit: LatencyLimit | None,
    opened: Opened,
    journal: Results,
    team: Team,
    told: Progress,
    assume: Assume,
) -> Device | None:
    """The profile that is planned with: the one given, or this machine's where a latency is asked for."""
    if request.device is not None:
        device = read_device(request.device)
        graph = analyze(opened.dense, attention=request.attention)
        check_known(graph, device, request.device, f"make it with: {_profiling(request, opened)}")
        return device
    if limit is None:
        return None
    assume("--device this machine")
    if "device" not in journal.facts:
        timing = Timing(threads=opened.threads.runtime)
        found = team.by_main(lambda: own_device(opened.dense, timing, told).to_json())
        journal.facts["device"] = json.loads(found)
    return device_in(journal.facts["device"])  # as it was when the run began: no two measurements are alike


def _profiling(request: CompressRequest, opened: Opened) -> str:
    """The command that profiles the network of a request."""
    words = ["edgeprune", "profile", str(request.model)]
    if request.arch is not None:
        words += ["--arch", request.arch]
        shape = opened.model.info.input_shape
        words += ["--input-shape", ",".join(map(str, shape))] if shape else []
    return " ".join(map(quoted, words))


def gauge_of(  # noqa: PLR0913 - what was asked, what it is asked of, and what it is measured with
    request: CompressRequest,
    budgets: Budgets,
    device: Device | None,
    opened: Opened,
    journal: Results,
    team: Team,
    told: Progress,
) -> Gauge | None:
    """What measures networks, where a budget or a front asks for it; what is measured of files is kept."""
    has_several = request.pareto is not None or request.widths is not None
    if not budgets.is_measured and not has_several:
        return None
    of_files: Gauge | None = None
    if has_several or budgets.max_latency is not None or budgets.max_bytes is not None:
        by_main = measured_by_main(team, lambda: _file_gauge(request, budgets, device, opened, told))
        of_files = kept_gauge(by_main, journal)
    return of_files if budgets.max_ram is None else PeakGauge(opened.dense, of_files)


def _file_gauge(
    request: CompressRequest, budgets: Budgets, device: Device | None, opened: Opened, told: Progress
) -> Gauge:
    """What measures networks as files."""
    other = foreign(device)
    if other is not None and budgets.max_latency is not None:
        told.say(f"--max-latency is judged by what {request.device} foretells: it is of another device than this one")
    example = example_feed(opened.model, kept=opened.vocabularies)
    told.stage("export the dense network to measure it")
    info = written_info(request, opened.model, opened.data)
    return OnnxGauge(opened.dense, example, opened.threads.runtime, told, partial(draft, info), other)
