"""After a cut the kept units take over what the removed ones told: one least-squares solve a layer, no training.

What a removed unit told is a linear function of what the kept ones tell, as far as it is one. He, Zhang and Sun,
Channel Pruning for Accelerating Very Deep Neural Networks, ICCV 2017, solve the layer behind each cut for it. Here
every layer is solved, in the order of the graph, against what the slim network feeds it by then, so that it also takes
back what those before it could not mend; the target is what the same layer gives in the dense network.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch.export import ExportedProgram

from edgeprune.data.ranks import ALONE, Ranks
from edgeprune.errors import InputError
from edgeprune.graph.capture import Program, reexport_like
from edgeprune.graph.faults import public
from edgeprune.graph.given import check_untrained
from edgeprune.graph.state import state_buffers
from edgeprune.pruning.folding import fold
from edgeprune.pruning.plan import PruningPlan
from edgeprune.reconstruction.outputs import errors
from edgeprune.reconstruction.pair import Pair
from edgeprune.reconstruction.samples import Piece, period, pieces
from edgeprune.records import LayerReconstruction, Reconstruction

N_SAMPLES = 512
_MEMORY = 2**30  # bytes of activations that both networks may hold


@dataclass(frozen=True, slots=True, eq=False)
class Reconstructed:
    """The slim network with its new weights, and what they have come to.

    `judged` tells whether samples were held out; there was only one where not, and the weights are those of before.
    """

    program: Program
    record: Reconstruction
    judged: bool


@public("reconstruct")
def reconstruct(
    program: ExportedProgram, slim: Program, plan: PruningPlan, batches: Iterable[Any], *, n_samples: int = N_SAMPLES
) -> Program:
    """Solve every linear layer and convolution of a cut network to give what the dense one's gives, without training.

    One least-squares problem a layer, in the order of the graph: the kept units take over what the removed ones told,
    as far as it is a linear function of theirs. Biases are solved too, and the statistics of batch norms move as what
    reaches them does. A quarter of the samples is held out: it chooses how far each layer is regularised, and a layer
    that does no better on it keeps its weights; so do all where the outputs come no nearer to the dense network's.
    Recurrent layers keep theirs, and weights that several calls share. No labels are needed.

    Args:
        program: the dense program that was cut.
        slim: what `cut` made of it, whether trained since or not; left as it is.
        plan: what was kept.
        batches: of inputs as the networks take them: a tensor `(batch, ...)`, a sequence with one for each input, or a
            dict by their names.
        n_samples: at most so many are looked at.

    Returns:
        The slim program with other weights: `prove` holds for the one before.

    Raises:
        InputError: the inputs are not the program's, fewer than two samples or not finite; or the network keeps a
            state.

    Example: `slim = edgeprune.reconstruct(program, slim, plan, [images])`.
    """
    found = reconstructed(program, slim, plan, batches, n_samples=n_samples)
    if not found.judged:
        raise InputError(
            "reconstruct: expected at least 2 samples (2 batches of a network whose batch is fixed), as one is held "
            f"out to see whether it helps; got {found.record.n_samples}"
        )
    return found.program


def reconstructed(  # noqa: PLR0913 - two networks, how the one came of the other, and what they are looked at with
    program: ExportedProgram,
    slim: Program,
    plan: PruningPlan,
    batches: Iterable[Any],
    *,
    n_samples: int = N_SAMPLES,
    ranks: Ranks = ALONE,
) -> Reconstructed:
    """`reconstruct`, with the record of it; with one sample nothing is solved.

    The processes of `ranks` are all given the same batches, and run their part of the samples; each gets the same.
    """
    start = time.perf_counter()
    check_untrained(program)
    check_untrained(slim)
    if has_state(program, plan):
        raise InputError("reconstruct: expected a network that keeps no state from run to run, got one that does")
    samples, count = pieces(slim, batches, n_samples)
    module = slim.own_module()
    dense = Program.adopt(fold(program) if plan.folded else program).frozen_module()
    every = period(len(samples))
    layers = _run(Pair(module, dense, plan, every), samples, ranks) if every > 1 else []
    before, after = errors(dense, (slim.frozen_module(), module), samples[every - 1 :: every])
    spoilt = [layer for layer in layers if layer.before > 0]
    means = [sum(getattr(one, name) for one in spoilt) / max(1, len(spoilt)) for name in ("before", "after")]
    record = Reconstruction(count, means[0], means[1], before, after, time.perf_counter() - start, tuple(layers))
    return Reconstructed(reexport_like(module, slim) if record.helps else slim, record, every > 1)


def has_state(program: ExportedProgram, plan: PruningPlan) -> bool:
    """Whether a network takes up what a run before has left, so that samples cannot be looked at one by one."""
    return bool(plan.state) or bool(state_buffers(program))


def _run(pair: Pair, samples: list[Piece], ranks: Ranks) -> list[LayerReconstruction]:
    """Run both networks side by side over all samples, each layer once it is solved.

    As the values that are still to be read become smaller, more samples join. Where fewer begin than there are
    processes, each runs all of them.
    """
    layers = []
    rooms = [
        max(period(len(samples)), min(_MEMORY // max(1, most), len(samples))) for most in pair.rehearsed(samples[0])
    ]
    if rooms and rooms[0] >= ranks.share.n_ranks:
        pair.share_with(ranks)
    waiting = iter(samples)
    joined = 0
    for room in rooms:
        for _ in range(room - joined):
            pair.join(next(waiting))
        joined = max(joined, room)
        layer = pair.step()
        if layer is not None:
            layers.append(layer)
    return layers
