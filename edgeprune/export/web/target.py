"""The web page as a target: both networks on the same samples, and the dense one's layers to profile."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from torch.export import ExportedProgram

from edgeprune.cost.layers import layer_shapes
from edgeprune.cost.macs import count_parameters, macs
from edgeprune.errors import InputError
from edgeprune.export.onnx import export_onnx
from edgeprune.export.ort import Feed
from edgeprune.export.probes import probes_of, reference_probes
from edgeprune.export.state import check_stateless
from edgeprune.export.target import Material, Runtime
from edgeprune.export.web.runtime import RUNTIME_VERSION, WebRuntime, web_runtime
from edgeprune.export.web.widths import WebWidths
from edgeprune.export.web.writer import WebNetwork, WebProbe, WebTask, write_web
from edgeprune.graph.groups import analyze
from edgeprune.progress import Progress
from edgeprune.records import POINTS, Model
from edgeprune.results import ExportedFile
from edgeprune.tasks.registry import kind_of

WEB = "web"  # the page's folder
_SAMPLES = 64


class WebPage:
    """The page that runs the dense and this network in a browser, where they are timed: not on this machine.

    `source` is as for `web_runtime`; what that gives is fetched once.
    """

    name = "web"
    runtime: Runtime | None = None
    free_batch = True

    def __init__(self, source: str | Path = RUNTIME_VERSION) -> None:
        self._source = source
        self._fetched: WebRuntime | None = None

    def files(self, model: str) -> tuple[str, ...]:
        """The folder, whatever the model's name."""
        return (f"{WEB}/",)

    def check_installed(self) -> None:
        """Fetch onnxruntime-web, or read it from where it lies."""
        self._fetched = web_runtime(self._source)

    def check(self, program: ExportedProgram) -> None:
        """Raise InputError for a network with a state."""
        check_stateless(program, "--web")

    def write(self, material: Material, told: Progress) -> tuple[ExportedFile, ...]:
        """Write the folder; raises InputError where the dense network is not known."""
        dense = material.dense
        if dense is None:
            raise InputError("--web: expected the dense network, got none; give --dense")
        told.stage("write the web page")
        samples = material.samples(_SAMPLES)
        with tempfile.TemporaryDirectory(prefix="edgeprune-") as place:
            file = Path(place) / "dense.onnx"
            export_onnx(dense.program, file, inputs=samples.full, task=material.answering)
            page = write_web(
                material.folder / WEB,
                WebNetwork(file, samples.full),
                WebNetwork(material.network, samples.file),
                title=dense.name,
                facts=_facts(dense, material.model),
                probes=list(_probes(dense)),
                task=_task(material),
                widths=_widths(material, samples.full),
                runtime=self._fetched or self._source,
            )
        return (ExportedFile(str(material.folder / WEB), sum(part.size_bytes for part in page), None),)


def _task(material: Material) -> WebTask | None:
    """How the answers are shown; None where nobody knows what they are for."""
    task, data = material.answering, material.data
    if task is None:
        return None
    metric, classes = task.metric, material.info.classes if data is None else data.classes
    return WebTask(kind_of(task), metric.name, "" if metric.unit == POINTS else metric.unit, classes)


def _widths(material: Material, inputs: Feed) -> WebWidths | None:
    """The widths of the network's run; None where it has none."""
    return None if material.widths is None else WebWidths(material.widths, inputs)


def _facts(dense: Model, slim: Model) -> list[tuple[str, str, str]]:
    figures = [(macs(model.program), count_parameters(model.program)) for model in (dense, slim)]
    return [(what, f"{a:,}", f"{b:,}") for what, a, b in zip(("MACs", "parameters"), *figures, strict=True)]


def _probes(dense: Model) -> Iterator[WebProbe]:
    shapes = list(layer_shapes(analyze(dense.program)).values())
    for probe in (*reference_probes(shapes), *probes_of(shapes)):
        yield WebProbe(probe.shape.key, probe.width_in, probe.width_out, probe.model(), probe.inputs(), probe.batch)
