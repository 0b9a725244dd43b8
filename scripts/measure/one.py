"""One network through every stage: capture, analysis, plan, cut, proof, float64 check, ONNX."""

from __future__ import annotations

import re
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgeprune import analyze, capture, cut, export_onnx, plan, prove
from edgeprune.cost.macs import count_parameters, macs
from edgeprune.cost.models import macs_model
from edgeprune.errors import ApplyError, BudgetError, CaptureError, EdgepruneError, InputError, PlanError, ProofError
from edgeprune.export import ort
from edgeprune.export.parity import outputs_of
from edgeprune.graph.capture import Program
from edgeprune.graph.comparison import outputs, relative_error
from edgeprune.graph.groups import ChannelGraph
from edgeprune.graph.precision import arguments_in_float64, float64_by_default, in_float64
from edgeprune.pruning.masked import masked
from edgeprune.pruning.plan import PruningPlan
from edgeprune.pruning.planner import make_plan
from measure.networks import Network, build, build_detector

KEEP_MACS = 0.5
ALIGN = 8
REMOVED = 0.4  # share of every group's units in the random keep-sets
DOUBLE_BELOW = 150e6  # parameters: larger networks are not checked in float64
DOUBLE_TOLERANCE = 1e-10
ONNX_TOLERANCE = 1e-3
_TRIES = 5
_REFUSING = ("build", "capture", "analyze", "onnx")  # where bad input is told; elsewhere it is a defect
_LEAST = re.compile(r"at most (\d+), got no lower than (\d+)")

Record = dict[str, Any]
Emit = Callable[[Record], None]


def measure(network: Network, emit: Emit, until: str = "onnx") -> Record:
    """Take one network through the stages up to "cut", "apply" or "onnx" and return its record.

    `emit` gets what is known after each stage.
    """
    record: Record = {"name": network.name, "source": network.source, "family": network.family, "status": "failed"}
    record["seconds"] = {}
    try:
        _stages(network, record, emit, until)
        record["status"] = "slim"
        del record["stage"]
    except EdgepruneError as error:
        refused = isinstance(error, InputError) and record["stage"] in _REFUSING
        record["status"] = "refused" if refused or isinstance(error, NothingToPrune) else "failed"
        record["reason"] = _plain(f"{error}" if refused else f"{type(error).__name__}: {error}")
        traceback.print_exc()
    except Exception as error:  # whatever it is, it is this network's result
        record["reason"] = _plain(f"{type(error).__name__}: {error} (at {_place(error)})")
        traceback.print_exc()
    record["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    emit(record)
    return record


class NothingToPrune(EdgepruneError):
    """No channel of the network can go."""


def _stages(network: Network, record: Record, emit: Emit, until: str) -> None:
    @contextmanager
    def stage(name: str) -> Iterator[None]:
        record["stage"] = name
        emit(record)
        start = time.perf_counter()
        yield
        record["seconds"][name] = round(time.perf_counter() - start, 3)

    with stage("build"):
        model, inputs = build(network)
        record["input"] = [list(tensor.shape[1:]) for tensor in inputs]
        record["parameters"] = sum(p.numel() for p in model.parameters())
    try:
        with stage("capture"):
            program = capture(model, inputs)
    except CaptureError as error:
        if "dynamic_batch=False" not in str(error):
            raise
        record["fixed_batch"] = True  # the model itself fixes it, and the error says so: captured as it asks for
        with stage("capture"):
            program = capture(model, inputs, dynamic_batch=False)
    record["nodes"] = len(program.graph.nodes)
    with stage("analyze"):
        graph = analyze(program)
    record.update(_channels(model, graph))
    if not graph.groups:
        raise NothingToPrune(f"nothing can be pruned: {record['locks']}")
    with stage("plan"):
        pruning = _plan(program, graph, record)
    with stage("cut"):
        slim = cut(program, pruning, graph)
    record["macs"] = [macs(program), macs(slim)]
    record["slim_parameters"] = [count_parameters(program), count_parameters(slim)]
    if until == "cut":
        return
    with stage("prove"):
        record["proof_error"] = prove(program, slim, pruning, inputs=inputs)
    with stage("distance"):
        record["masked_distance"] = relative_error(
            outputs(program.module(), inputs), outputs(masked(program, pruning), inputs)
        )
    if record["parameters"] < DOUBLE_BELOW:
        with stage("double"):
            record["double_error"] = _double_error(program, graph, inputs)
    with stage("apply"):
        record["applied"] = _applied(network, model, slim)
    if until == "onnx":
        with stage("onnx"):
            record.update(_onnx(slim, inputs))


# -- what can be pruned ----------------------------------------------------------------------------------------------


def _channels(model: nn.Module, graph: ChannelGraph) -> Record:
    """How many output channels of layers can be removed and why the others cannot, the model's outputs left out."""
    sources = {
        key: source for key, source in graph.analysis.sources.items()
        if key[0] == "tensor" and key[2] == _output_dim(model, key[1])
    }  # fmt: skip
    canonical = graph.analysis.solver.canonical
    n_channels = sum(len(source.ids) for source in sources.values())
    n_free = sum(int((canonical[source.ids] > 0).sum()) for source in sources.values())
    locks: dict[str, int] = {}
    for lock in graph.locked:
        if ("tensor", lock.name, lock.dim) in sources:
            reason = "output" if lock.node == "output" else _without_names(lock.reason)
            locks[reason] = locks.get(reason, 0) + len(lock.indices)
    n_outputs = locks.pop("output", 0)
    most = sorted(locks.items(), key=lambda item: -item[1])
    inner = n_channels - n_outputs
    return {
        "groups": len(graph.groups),
        "renormalised_groups": sum(not group.exact for group in graph.groups),
        "channels": inner,
        "output_channels": n_outputs,
        "prunable_share": round(n_free / inner, 4) if inner else 0.0,
        "locks": [[reason, count] for reason, count in most[:4]],
    }


def _output_dim(model: nn.Module, name: str) -> int | None:
    """The dim of a weight that holds a layer's output channels; None for what is no layer's weight."""
    owner, _, parameter = name.rpartition(".")
    try:
        module = model.get_submodule(owner)
    except AttributeError:
        return None
    tensor = getattr(module, parameter, None)
    if not isinstance(tensor, Tensor) or tensor.dim() < 2 or "weight" not in parameter:
        return None
    if isinstance(module, nn.Embedding):
        return None
    return 1 if isinstance(module, nn.modules.conv._ConvTransposeNd) else 0


def _without_names(reason: str) -> str:
    """A lock's reason without the name of the tensor, so that equal reasons add up."""
    return re.sub(r"\b(along|of) (dim \d+ of )?\S*\.\S+", r"\1 \2...", reason)


# -- plan ------------------------------------------------------------------------------------------------------------


def _plan(program: Program, graph: ChannelGraph, record: Record) -> PruningPlan:
    """Half of the MACs; where that cannot be reached, a random part of every group."""
    try:
        pruning = plan(program, graph, keep_macs=KEEP_MACS, criterion="l2", align=ALIGN)
        record["plan"] = "half"
        return pruning
    except BudgetError as error:
        record["plan"] = "random"
        found = _LEAST.search(str(error))
        if found:
            record["least_macs"] = round(int(found[2]) / macs_model(graph).total, 4)
        return _random_plan(program, graph)


def _random_plan(program: Program, graph: ChannelGraph, seed: int = 0) -> PruningPlan:
    """Remove a random 40 % of the units of every group; drawn again where nothing would be left of some tensor."""
    generator = np.random.default_rng(seed)
    for attempt in range(_TRIES):
        keep = np.ones(len(graph.analysis.solver.canonical), dtype=bool)
        for group in graph.groups:
            keep[generator.choice(group.units, int(group.n_units * REMOVED), replace=False)] = False
        try:
            return make_plan(program, graph, keep)
        except PlanError:
            if attempt == _TRIES - 1:
                raise
    raise AssertionError("unreachable")


# -- checks ----------------------------------------------------------------------------------------------------------


def _double_error(program: Program, graph: ChannelGraph, inputs: tuple[Tensor, ...]) -> float:
    """Slim against masked dense in float64, a random 40 % of every group removed.

    Raises:
        ProofError: they differ by more than 1e-10.
    """
    pruning = _random_plan(program, graph, seed=1)
    slim = cut(program, pruning, graph)
    networks = [in_float64(masked(program, pruning)), in_float64(slim.module())]
    doubles = arguments_in_float64(inputs)
    with float64_by_default():
        expected, got = (outputs(network, doubles) for network in networks)
    error = relative_error(expected, got)
    if not error <= DOUBLE_TOLERANCE:
        raise ProofError(
            f"random keep-sets in float64: expected an error of at most {DOUBLE_TOLERANCE:g}, got {error:.3g}"
        )
    return error


def _applied(network: Network, model: nn.Module, slim: Program) -> str:
    """Whether the slim program can be put back into the user's module: "yes", or why not; a detector must run then.

    Raises:
        ProofError: a detector with a slim backbone gives what is no detection.
    """
    try:
        slim.apply_to(model)
    except ApplyError as error:
        return _plain(str(error))
    if network.source == "torchvision detection":
        detector, images = build_detector(network)
        slim.apply_to(detector.backbone)
        with torch.no_grad():
            found = detector(images)
        if len(found) != len(images) or not all(torch.isfinite(f["boxes"]).all() for f in found):
            raise ProofError(f"the detector with a slim backbone: expected boxes for {len(images)} images, got {found}")
    return "yes"


def _onnx(slim: Program, inputs: tuple[Tensor, ...]) -> Record:
    """Export and compare with PyTorch in onnxruntime.

    Raises:
        ProofError: an output is off by more than 1e-3 of its largest number.
    """
    arrays = [tensor.numpy() for tensor in inputs]
    with tempfile.TemporaryDirectory(prefix="coverage-") as folder:
        path = Path(folder) / "slim.onnx"
        written = export_onnx(slim, path, inputs=arrays, tolerance=ONNX_TOLERANCE)
        got = [torch.as_tensor(np.array(array)) for array in outputs_of(ort.session(path), arrays)]
    error = relative_error(outputs(slim.module(), inputs), got)
    if not error <= ONNX_TOLERANCE:
        raise ProofError(f"ONNX: expected a relative error of at most {ONNX_TOLERANCE:g}, got {error:.3g}")
    return {"onnx_error": error, "onnx_bytes": written.size_bytes, "onnx_note": _plain(written.note)}


# -- words -----------------------------------------------------------------------------------------------------------


def _plain(text: str) -> str:
    """One line without this machine's folders."""
    text = re.sub(r"\S*/site-packages/", "", text)
    text = text.replace(f"{Path(__file__).resolve().parents[2]}/", "").replace(str(Path(sys.prefix)), "")
    return " ".join(text.split())[:600]


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "/edgeprune/" in frame.filename] or frames
    return f"{own[-1].filename}:{own[-1].lineno}"
