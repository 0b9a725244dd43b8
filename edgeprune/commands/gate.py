"""`compress --gate`: what does not go with it, and whether its mean cost can be reached."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from edgeprune.cost.macs import macs
from edgeprune.errors import BudgetError, InputError
from edgeprune.graph.capture import Program
from edgeprune.requests import CompressRequest
from edgeprune.search.candidate import Gauge
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


def check_reachable(programs: Sequence[Program], limit: GateLimit, gauge: Gauge | None) -> None:
    """Raise where each of the widths, from wide to narrow, takes more than the limit with the gate.

    Args:
        gauge: what measures the time, where that is limited; training changes nothing of it.

    Raises:
        InputError: of MACs.
        BudgetError: of the time, which is measured.
    """
    pooled = Pooled.of(programs[-1])
    if limit.is_latency:
        assert gauge is not None  # several networks are measured
        _check_times(programs, limit, gauge, gate_ms(pooled, programs, gauge))
        return
    least = mac_shares(programs, gate_macs(pooled, programs))[-1]
    if limit.share < least:
        raise InputError(
            f"--gate {limit}: expected a mean share of at least {least:.4f}, which the narrowest width takes with the "
            f"gate, got {limit.share:g}"
        )


def _check_times(programs: Sequence[Program], limit: GateLimit, gauge: Gauge, picking: float) -> None:
    """Raise BudgetError where no width keeps the limit; the narrowest, which mostly does, is timed first."""
    widest = gauge(programs[0], True).ms
    shares: list[float] = []
    for program in reversed(programs[1:]):
        shares.append((gauge(program, True).ms + picking) / widest)
        if shares[-1] <= limit.share:
            return
    raise BudgetError(
        f"--gate {limit}: expected a mean share of at least {min(shares):.3f} of the widest network's time, which a "
        f"narrower one takes with the gate, got {limit.share:g}"
    )


def gate_ms(pooled: Pooled, programs: Sequence[Program], gauge: Gauge) -> float:
    """What the gate takes for one sample, as a file of its own; with a layer of zeros, the same each time."""
    blank = Gate.blank(pooled, programs)
    with torch.no_grad():
        for parameter in blank.linear.parameters():
            parameter.zero_()
    return gauge(gate_program(blank, programs[-1]), True).ms


def gate_macs(pooled: Pooled, programs: Sequence[Program]) -> int:
    """Multiply-accumulates of the gate alone for one sample."""
    return macs(gate_program(Gate.blank(pooled, programs), programs[-1]))


def mac_shares(programs: Sequence[Program], picking: int) -> list[float]:
    """What a sample costs at each width, with the gate, as a share of the widest network's MACs."""
    costs = [macs(program) for program in programs]
    return [(cost + picking) / costs[0] for cost in costs]
