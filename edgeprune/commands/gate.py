"""`compress --gate`: what does not go with it, and whether its mean cost can be reached."""

from __future__ import annotations

from collections.abc import Sequence

from edgeprune.cost.macs import macs
from edgeprune.errors import InputError
from edgeprune.graph.capture import Program
from edgeprune.requests import CompressRequest
from edgeprune.units import GateLimit, parse_gate
from edgeprune.widths.gate import Gate, Pooled, gate_program


def check_gate(request: CompressRequest) -> None:
    """Raise InputError for a gate without widths to pick from, or for a share that none of them has."""
    if request.gate is None:
        return
    limit = parse_gate(request.gate)
    if request.widths is None:
        raise InputError(
            f"--gate {limit}: expected several widths to pick from, got none; give them, as --widths 0.25,0.5,1"
        )
    least = request.widths[-1] / request.widths[0]
    if not limit.is_latency and limit.share < least:
        raise InputError(
            f"--gate {limit}: expected a mean share of the widest network's MACs from {least:g}, the narrowest "
            f"width's, to 1, got {limit.share:g}"
        )


def check_reachable(programs: Sequence[Program], limit: GateLimit) -> None:
    """Raise InputError where the narrowest of the widths, from wide to narrow, costs more MACs with the gate."""
    if limit.is_latency:
        return
    least = mac_shares(programs, gate_macs(Pooled.of(programs[-1]), programs))[-1]
    if limit.share < least:
        raise InputError(
            f"--gate {limit}: expected a mean share of at least {least:.4f}, which the narrowest width takes with the "
            f"gate, got {limit.share:g}"
        )


def gate_macs(pooled: Pooled, programs: Sequence[Program]) -> int:
    """Multiply-accumulates of the gate alone for one sample."""
    return macs(gate_program(Gate.blank(pooled, programs), programs[-1]))


def mac_shares(programs: Sequence[Program], picking: int) -> list[float]:
    """What a sample costs at each width, with the gate, as a share of the widest network's MACs."""
    costs = [macs(program) for program in programs]
    return [(cost + picking) / costs[0] for cost in costs]
