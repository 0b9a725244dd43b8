"""What the outputs of dense layers lie along on real inputs, by which they are split in two."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from edgeprune.graph.call import operator_name
from edgeprune.graph.capture import Program
from edgeprune.graph.owninputs import spared
from edgeprune.graph.prepare import prepared
from edgeprune.pruning.lowrank import layer_nodes, principal
from edgeprune.reconstruction.rows import drawn
from edgeprune.reconstruction.samples import pieces

N_SAMPLES = 512
_ROWS = 4096  # of a layer's inputs in one piece of samples
_TIE = 1e-6  # of the inputs' mean square: where they are no guide, the weights are


def directions(program: ExportedProgram, weights: Collection[str], batches: Iterable[Any]) -> dict[str, Tensor]:
    """By the weight's name, the directions that a layer's outputs without its bias lie along, the first the most.

    These are the left singular vectors of `W C^(1/2)`, float64 `(n_out, n)`, of a weight `W` `(n_out, n_in)` whose
    inputs have the second moments `C`. A layer whose inputs are not finite is left out.

    Args:
        weights: of layers that `dense_layers` names.
        batches: of the program's inputs, as `reconstruct` takes them.

    Raises:
        InputError: the inputs are not the program's, or not finite.
    """
    if not weights:
        return {}
    module = Program.adopt(prepared(program)).frozen_module()
    named = {name: tensor.detach() for name, tensor in module.named_parameters() if name in weights}
    moments = _Moments(module, layer_nodes(module.graph, named), named)
    samples, _ = pieces(program, batches, N_SAMPLES)
    with torch.no_grad():
        for piece in samples:
            moments.run(*spared(moments, piece), enable_io_processing=False)
    return {name: principal(_seen(named[name], sums)) for name, sums in moments.sums.items() if sums.isfinite().all()}


class _Moments(fx.Interpreter):
    """Runs a network and adds up the second moments of what layers read, or of what they give where that is less."""

    def __init__(self, module: fx.GraphModule, nodes: Mapping[str, fx.Node], weights: Mapping[str, Tensor]) -> None:
        super().__init__(module)
        self._names = {node: name for name, node in nodes.items()}
        self._weights = {name: weights[name].flatten(1).double() for name in nodes}
        self.sums = {name: weight.new_zeros([min(weight.shape)] * 2) for name, weight in self._weights.items()}

    def run_node(self, n: fx.Node) -> Any:
        """Run a node, and look at what it reads where it is one of the layers."""
        name = self._names.get(n)
        if name is not None:
            weight = self._weights[name]
            args, kwargs = self.fetch_args_kwargs_from_env(n)
            source: Tensor = args[0] if args else kwargs["input"]
            rows = source if operator_name(n.target) == "linear" else source.movedim(1, -1)
            rows = rows.reshape(-1, rows.shape[-1])
            rows = rows[drawn(len(rows), _ROWS, 0)].double()
            seen = rows if weight.shape[1] <= weight.shape[0] else rows @ weight.mT
            self.sums[name] += seen.mT @ seen
        return super().run_node(n)


def _seen(weight: Tensor, sums: Tensor) -> Tensor:
    """A matrix `(n_out, n)` whose left singular vectors are those of `W C^(1/2)`."""
    matrix = weight.flatten(1).double()
    of_inputs = matrix.shape[1] <= matrix.shape[0]
    like = torch.eye(len(sums), dtype=sums.dtype) if of_inputs else matrix @ matrix.mT
    whole = sums + _TIE * sums.trace() / like.trace().clamp(min=torch.finfo(sums.dtype).tiny) * like
    values, vectors = torch.linalg.eigh(whole)
    root = vectors * values.clamp(min=0).sqrt()
    return matrix @ root if of_inputs else root
