"""`compress --widths`: what does not go with it, what trains the widths together, and the files that they share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from edgeprune.commands.gate import check_gate, check_reachable
from edgeprune.commands.onnxfile import stated_of
from edgeprune.errors import InputError
from edgeprune.export.gated import WIDTHS
from edgeprune.graph.capture import Program
from edgeprune.graph.state import state_buffers
from edgeprune.journal.kept import KeptTrainer
from edgeprune.journal.shared import Results
from edgeprune.records import Model
from edgeprune.requests import CompressRequest
from edgeprune.results import SharedWeights
from edgeprune.search.candidate import Found, Gauge
from edgeprune.search.datatrainer import DataTrainer
from edgeprune.settings import ALLOCATIONS
from edgeprune.tasks.task import Task
from edgeprune.units import checked_widths, parse_gate
from edgeprune.widths.gate import check_gated
from edgeprune.widths.nested import NestedWidths
from edgeprune.widths.shared import write_widths
from edgeprune.widths.strategy import Widths
from edgeprune.widths.task import Sandwich

_OTHER_SHARES = "which says the MACs otherwise"
_OTHER_NETWORK = "as all widths take the same inputs"


def check_widths(request: CompressRequest, has_data: bool) -> None:
    """Raise InputError for widths that are none, or for an option that does not go with them."""
    check_gate(request)
    if request.widths is None:
        return
    if checked_widths(request.widths) != request.widths:
        raise InputError(f"--widths: expected the widest first, got {', '.join(map(width_name, request.widths))}")
    for option, got, why in _contradictions(request):
        if got not in (None, False, ()):
            told = "" if got is True else f" {', '.join(got) if isinstance(got, tuple) else got}"
            raise InputError(f"--widths: expected no {option}, {why}, got {option}{told}")
    if not has_data:
        raise InputError("--widths: expected data to train the widths together on, got none; give --data")


def _contradictions(request: CompressRequest) -> tuple[tuple[str, Any, str], ...]:
    """Options that say something else, what was given for them, and what they say."""
    measured, alone = "which is no share of the MACs", "which trains or judges one network at a time"
    return (
        ("--keep-macs", request.keep_macs, _OTHER_SHARES),
        ("--pareto", request.pareto, "whose networks share no weights"),
        ("--max-latency", request.max_latency, measured),
        ("--max-size", request.max_size, measured),
        ("--max-ram", request.max_ram, measured),
        ("--device", request.device, measured),
        ("--plan", request.plan, "which is one cut"),
        ("--allocation", request.allocation != ALLOCATIONS[0] and request.allocation, "which measures one cut"),
        ("--prune-schedule", request.prune_schedule, "as all widths are cut before the one training"),
        ("--depth", request.depth, "as a network without blocks is none of the same rows and columns"),
        ("--layer-ratio", request.layer_ratios, "which is the same for all widths"),
        ("--keep-equal-chunks", request.appliable, "as units are numbered anew"),
        ("--finetune", request.finetune, alone),
        ("--evaluate", request.evaluate, alone),
        ("--input-features", request.input_features not in ("auto", "off") and request.input_features, _OTHER_NETWORK),
        ("--input-features", request.vocabularies, _OTHER_NETWORK),
        ("--always-keep", request.always_keep, _OTHER_NETWORK),
        ("--feature-groups", request.feature_groups, _OTHER_NETWORK),
        ("--feature-price", request.feature_price, _OTHER_NETWORK),
    )


def width_name(share: float) -> str:
    """What a width is called, in folders and files: `0.25`."""
    return f"{share:g}"


def widths_of(
    request: CompressRequest, dense: Program, samples: DataTrainer | None, journal: Results, gauge: Gauge | None
) -> Widths | None:
    """What plans the widths and trains them together, its training kept in the journal; None where none are asked for.

    Raises:
        InputError: the dense network keeps a state, or has inputs that no gate reads where one is asked for.
    """
    if request.widths is None or samples is None:
        return None
    if state_buffers(dense):
        raise InputError("--widths: expected a network without a state, got one that keeps a state from run to run")
    together = KeptTrainer(replace(samples, task=Sandwich(samples.task)), journal)
    if request.gate is None:
        return Widths(request.widths, together)
    check_gated(dense)
    limit = parse_gate(request.gate)
    return Widths(request.widths, together, lambda programs: check_reachable(programs, limit, gauge))


def shared_widths(
    shares: tuple[float, ...], found: Found, folder: Path, model: Model, inputs: Any, task: Task | None
) -> SharedWeights:
    """Write the ONNX graphs of all widths and the weights that they share.

    Args:
        folder: the run's; the files go into the folder of the widths.
        model: the dense network, for what the files say of themselves.
        inputs: real ones to check on.
        task: whose decisions stay.
    """
    widest, *others = found.networks
    plans = [candidate.within for candidate in others]
    nested = NestedWidths((widest.program, *(other.program for other in others)), tuple(p for p in plans if p))
    names = [width_name(share) for share in shares]
    metadata = stated_of(model.program, model.info)
    return write_widths(nested, names, folder / WIDTHS, inputs=inputs, task=task, metadata=metadata)
