"""The dense network beside the slim one: what its layers give, noted for a few rows as they are passed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from edgeprune.data.ranks import ALONE, Ranks
from edgeprune.graph import binding
from edgeprune.graph.call import operator_name
from edgeprune.reconstruction.lockstep import Lockstep
from edgeprune.reconstruction.readers import Reader, readers_of
from edgeprune.reconstruction.rows import drawn, inputs_of, n_rows, outputs_at


@dataclass(frozen=True, slots=True, eq=False)
class Norm:
    """A batch norm with running statistics: what it reads, and the names of its buffers."""

    source: fx.Node
    mean: str
    var: str


@dataclass(frozen=True, slots=True, eq=False)
class Spread:
    """Mean and variance of every channel, float64 `(n_channels,)`; `n_batches` of them lie in this process."""

    mean: Tensor
    var: Tensor
    n_batches: int


@dataclass(frozen=True, slots=True, eq=False)
class Noted:
    """Rows of what a reader gives, or of what it reads, for each batch, and the shapes of all that it gives.

    At most `n_each` are looked at of each batch.
    """

    rows: list[Tensor]
    shapes: list[torch.Size]
    n_each: int


@dataclass(frozen=True, slots=True)
class Wanted:
    """How many rows of a reader are looked at in all; of its inputs, where `of_inputs` is set."""

    n_rows: int
    of_inputs: bool = False


class Reference(Lockstep):
    """The dense network, run as far as the slim one asks.

    Args:
        wanted: by the weights of the readers that are to be noted.
        ranks: the processes among which the batches are shared out; `n_all` counts those of all of them.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        wanted: Mapping[str, Wanted],
        is_weighed: bool = False,
        ranks: Ranks = ALONE,
    ) -> None:
        super().__init__(module, is_weighed)
        self._wanted, self._ranks, self.n_all = wanted, ranks, 0
        self._readers = {reader.node: reader for reader in readers_of(module).values() if reader.weight in wanted}
        self._norms = norms_of(module)
        self._noted: dict[str, Noted] = {}
        self._spreads: dict[str, Spread] = {}

    def noted(self, weight: str) -> Noted | None:
        """What there is to know of a reader, once; None where the dense network has no such one."""
        while weight not in self._noted and not self.is_done:
            self.step()
        return self._noted.pop(weight, None)

    def spread(self, mean: str) -> Spread | None:
        """What reaches the batch norm with this running mean, once."""
        while mean not in self._spreads and not self.is_done:
            self.step()
        return self._spreads.pop(mean, None)

    def step(self) -> None:
        """Run the next node on every batch, and note what is asked for."""
        node = self.next
        norm, reader = self._norms.get(node), self._readers.get(node)
        if norm is not None:
            self._spreads[norm.mean] = spread_of([values[norm.source] for values in self.batches], self._ranks)
        read = [values[reader.source] for values in self.batches] if reader is not None else []
        super().step()
        if reader is not None:
            given: list[Tensor] = [values[node] for values in self.batches]
            self._noted[reader.weight] = self._of_reader(reader, read, given)

    def _of_reader(self, reader: Reader, read: list[Tensor], given: list[Tensor]) -> Noted:
        wanted = self._wanted[reader.weight]
        each = -(-wanted.n_rows // max(1, self.n_all))
        shapes = [y.shape for y in given]
        if wanted.of_inputs:
            whole = [inputs_of(x) for x in read]
            of_inputs = zip(self.numbers, whole, strict=True)
            return Noted([rows[drawn(len(rows), each, seed)] for seed, rows in of_inputs], shapes, each)
        of_outputs = zip(self.numbers, given, strict=True)
        return Noted(
            [outputs_at(y, reader, drawn(n_rows(y, reader), each, seed)) for seed, y in of_outputs], shapes, each
        )


def norms_of(module: fx.GraphModule) -> dict[fx.Node, Norm]:
    """The batch norms that go by running statistics."""
    found = {}
    for node in module.graph.nodes:
        if node.op == "call_function" and operator_name(node.target) == "batch_norm":
            call = binding.bind(node, lambda value: value)
            source, mean, var = call["input"], call["running_mean"], call["running_var"]
            if not call["training"] and all(
                isinstance(part, fx.Node) and part.op == "get_attr" for part in (mean, var)
            ):
                found[node] = Norm(source, str(mean.target), str(var.target))
    return found


def spread_of(xs: Sequence[Tensor], ranks: Ranks = ALONE) -> Spread:
    """Of values `(batch, n_channels, ...)`, one of each batch of all processes; each has at least one."""
    dims, shape = [0, *range(2, xs[0].dim())], [1, -1] + [1] * (xs[0].dim() - 2)
    count = sum(x.numel() // x.shape[1] for x in xs)
    if ranks.share.n_ranks > 1:
        count = int(ranks.summed(torch.tensor(count)))
    mean = ranks.summed(torch.stack([x.double().sum(dims) for x in xs]).sum(0)) / count
    # The squares are summed of what is centred: E[x^2] - E[x]^2 would lose digits.
    squares = [(x.double() - mean.reshape(shape)).square().sum(dims) for x in xs]
    return Spread(mean, ranks.summed(torch.stack(squares).sum(0)) / max(1, count - 1), len(xs))
