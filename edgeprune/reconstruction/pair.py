"""The dense and the slim network side by side, and the slim one's layers chosen anew as they are reached."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from edgeprune.data.ranks import ALONE, Ranks
from edgeprune.graph.names import split_names
from edgeprune.pruning.plan import PruningPlan
from edgeprune.reconstruction.lockstep import Lockstep
from edgeprune.reconstruction.moments import Moments, Solution, solved
from edgeprune.reconstruction.outputs import CONSTANT
from edgeprune.reconstruction.readers import Reader, readers_of
from edgeprune.reconstruction.reference import Noted, Reference, Wanted, norms_of, spread_of
from edgeprune.reconstruction.rows import drawn, inputs_at, inputs_of, n_rows, outputs_at
from edgeprune.reconstruction.samples import Piece, is_held_out
from edgeprune.records import LayerReconstruction

_ROWS, _MORE_ROWS = 4, 4096  # as many times as there are unknowns, and so many more
_FEWEST = 3  # rows held out: by fewer, what helps on them alone is taken for help
_VARIES, _MISSES = 8, 64  # units in the last place: what values that are the same, and sums of them, may be apart
_MOST = 4096  # unknowns that are solved at once
_MOST_TAPS = 2304  # the same of a convolution, whose channels alone are solved for where there are more


@dataclass(frozen=True, slots=True, eq=False)
class _Problem:
    """Rows of one layer: those that are solved on, those held out, and the mean square that its outputs vary by."""

    fit: Moments
    held: Moments
    variance: float

    @property
    def is_finite(self) -> bool:
        return self.fit.is_finite and self.held.is_finite


class Pair:
    """Runs both networks over the same samples; the slim module's tensors are written to.

    Args:
        module: the slim network.
        dense: the one that it was cut from, with the names of the plan.
        plan: what was kept.
        every: one piece of so many is held out.
    """

    def __init__(self, module: fx.GraphModule, dense: fx.GraphModule, plan: PruningPlan, every: int) -> None:
        self._module, self._dense, self._plan, self._every = module, dense, plan, every
        self._ranks: Ranks = ALONE
        self._tensors = _tensors_of(module)
        self._dense_tensors = _tensors_of(dense)
        halves = [(split.weight, *split_names(split.weight)) for split in plan.splits]
        self._dense_names = {up: whole for whole, _, up in halves}
        inner = {down for _, down, _ in halves}  # what these give the dense network does not have
        readers = (reader for reader in readers_of(module).values() if reader.weight not in inner)
        self._readers = {reader.node: reader for reader in readers}
        self._norms = norms_of(module)
        self._wanted = {self._whole(reader): self._wanted_of(reader) for reader in self._readers.values()}
        self._slim, self._reference = Lockstep(module), Reference(dense, self._wanted)

    def rehearsed(self, piece: Piece) -> list[int]:
        """The most bytes that a piece takes at each node of the slim network or any after it."""
        slim, reference = Lockstep(self._module, True), Reference(self._dense, self._wanted, True)
        slim.join(piece, 0)
        reference.join(piece, 0)
        reference.n_all = 1
        sizes = []
        while not slim.is_done:
            slim.peak, reference.peak = 0, reference.n_bytes
            self._come_along(slim, reference)
            slim.step()
            sizes.append(max(slim.peak, slim.n_bytes) + reference.peak)
        return list(itertools.accumulate(reversed(sizes), max))[::-1]

    def share_with(self, ranks: Ranks) -> None:
        """Share the pieces out, before any has joined; each process has to have one of the first that do."""
        self._ranks = ranks
        self._reference = Reference(self._dense, self._wanted, ranks=ranks)

    def join(self, piece: Piece) -> None:
        """Look at one more piece from here on, in the process whose turn it is."""
        number, share = self._reference.n_all, self._ranks.share
        self._reference.n_all += 1
        if number % share.n_ranks == share.rank:
            self._slim.join(piece, number)
            self._reference.join(piece, number)

    def step(self) -> LayerReconstruction | None:
        """Run the slim network's next node; what came of it where it is a layer that the dense network has too."""
        reader, norm = self._readers.get(self._slim.next), self._norms.get(self._slim.next)
        layer = None
        if reader is not None:
            noted = self._reference.noted(self._whole(reader))
            layer = None if noted is None else self._solved(reader, noted)
        elif norm is not None:
            self._shift(norm.source, norm.mean, norm.var)
        self._slim.step()
        return layer

    def _come_along(self, slim: Lockstep, reference: Reference) -> None:
        """Let the dense network come as far as a step would."""
        reader, norm = self._readers.get(slim.next), self._norms.get(slim.next)
        if reader is not None:
            reference.noted(self._whole(reader))
        elif norm is not None:
            reference.spread(norm.mean)

    # -- one layer -------------------------------------------------------------------------------------------------

    def _wanted_of(self, reader: Reader) -> Wanted:
        """A convolution with too many unknowns is solved for its channels alone, the same at every kernel offset."""
        weight = self._tensors[reader.weight]
        unknowns = reader.matrix(weight).shape[1]
        is_whole = reader.weight not in self._dense_names
        by_channel = is_whole and unknowns > _MOST_TAPS and reader.window is not None and reader.groups == 1
        if by_channel:
            unknowns = weight.shape[0 if reader.transposed else 1]
        return Wanted(_ROWS * unknowns + _MORE_ROWS, by_channel)

    def _solved(self, reader: Reader, noted: Noted) -> LayerReconstruction:
        layer, weight = reader.weight.removesuffix(".weight"), self._tensors[reader.weight]
        by_channel = self._wanted[self._whole(reader)].of_inputs
        if not by_channel and reader.matrix(weight).shape[1] > _MOST:
            return LayerReconstruction(layer, 0.0, 0.0, f"left alone: more than {_MOST} inputs")
        problem = self._of_inputs(reader, noted) if by_channel else self._of_outputs(reader, noted)
        if problem is None:
            return LayerReconstruction(layer, 0.0, 0.0, "left alone: its outputs have other positions than before")
        if not problem.is_finite:
            return LayerReconstruction(layer, 0.0, 0.0, "left alone: its values are not finite")
        if problem.held.n < _FEWEST:
            return LayerReconstruction(layer, 0.0, 0.0, f"left alone: {problem.held.n} rows held out are too few")
        eps = torch.finfo(weight.dtype).eps
        found = solved(problem.fit, problem.held, reader.is_centred, (_VARIES * eps) ** 2)
        scale = problem.variance or 1.0
        if found.before <= (_MISSES * eps) ** 2 * scale:
            return LayerReconstruction(layer, 0.0, 0.0)
        if found.helps:
            put = self._put_by_channel if by_channel else self._put
            put(reader, found)
        return LayerReconstruction(layer, found.before / scale, found.after / scale, _note(problem, found))

    def _of_outputs(self, reader: Reader, noted: Noted) -> _Problem | None:
        """What is missing of the dense layer's kept outputs, beside what the slim one reads."""
        groups, n_in, n_out = reader.matrix(self._tensors[reader.weight]).shape
        kept = self._kept_outputs(reader)
        sums = _Sums(Moments.none(groups, n_in, n_out), self._every)
        slim = zip(self._slim.numbers, self._slim.batches, strict=True)
        for (number, values), want, shape in zip(slim, noted.rows, noted.shapes):  # noqa: B905
            given = self._slim.tried(values)
            if n_rows(given, reader) != shape.numel() // shape[-1 if reader.window is None else 1]:
                return None
            index = drawn(n_rows(given, reader), noted.n_each, number)
            target = want[:, kept].double()
            missing = target - outputs_at(given, reader, index).double()
            rows = inputs_at(values[reader.source], reader, index).double()
            sums.add(number, rows, missing.reshape(len(index), groups, n_out), target)
        return sums.problem(self._ranks)

    def _of_inputs(self, reader: Reader, noted: Noted) -> _Problem | None:
        """What is missing of the dense layer's inputs, beside those that are left of them."""
        kept = self._kept(reader.weight, 0 if reader.transposed else 1)
        sums = _Sums(Moments.none(1, len(kept), noted.rows[0].shape[1]), self._every)
        for number, values, want in zip(self._slim.numbers, self._slim.batches, noted.rows):  # noqa: B905
            whole = inputs_of(values[reader.source])
            rows = whole[drawn(len(whole), noted.n_each, number)].double()
            if len(rows) != len(want):
                return None
            target = want.double()
            missing = target.index_add(1, kept, rows, alpha=-1)
            sums.add(number, rows.unsqueeze(1), missing.unsqueeze(1), target)
        return sums.problem(self._ranks)

    def _put(self, reader: Reader, found: Solution) -> None:
        weight = self._tensors[reader.weight]
        with torch.no_grad():
            weight.add_(reader.weight_of(found.change.matrix, weight))
            if reader.bias is not None:
                self._tensors[reader.bias].add_(found.change.bias.flatten())

    def _put_by_channel(self, reader: Reader, found: Solution) -> None:
        """The dense layer, fed by what the kept channels tell of all of them."""
        weight, whole = self._tensors[reader.weight], self._dense_tensors[reader.weight].double()
        channel = 0 if reader.transposed else 1
        kept = self._kept(reader.weight, channel)
        told = found.change.matrix[0].clone()  # (kept channels, all channels)
        told[torch.arange(len(kept)), kept] += 1
        outputs = whole.index_select(1 - channel, self._kept(reader.weight, 1 - channel))
        with torch.no_grad():
            weight.copy_(torch.tensordot(outputs, told, ([channel], [1])).movedim(-1, channel))
            if reader.bias is not None:
                taps = outputs.flatten(2).sum(2)
                shift = (taps.mT if reader.transposed else taps) @ found.change.bias[0]
                bias = self._dense_tensors[reader.bias][self._kept(reader.bias, 0)]
                self._tensors[reader.bias].copy_(bias.double() + shift)

    # -- batch norm ------------------------------------------------------------------------------------------------

    def _shift(self, source: fx.Node, mean: str, var: str) -> None:
        """Move a batch norm's statistics as far as what reaches it has moved on these samples.

        Estimated anew, they would also carry how these few samples differ from all that it was trained on.
        """
        before = self._reference.spread(mean)
        if before is None:
            return
        now = spread_of([values[source] for values in self._slim.batches[: before.n_batches]], self._ranks)
        kept = self._kept(mean, 0)
        ratio = torch.where(before.var[kept] > 0, now.var / before.var[kept], 1.0)
        if not (now.mean.isfinite().all() and ratio.isfinite().all()):
            return
        with torch.no_grad():
            running_mean, running_var = self._tensors[mean], self._tensors[var]
            dense_mean, dense_var = (self._dense_tensors[name][kept].double() for name in (mean, var))
            running_mean.copy_(dense_mean + (now.mean - before.mean[kept]))
            running_var.copy_(dense_var * ratio)

    # -- what is kept ----------------------------------------------------------------------------------------------

    def _whole(self, reader: Reader) -> str:
        """What the weight of a layer is called in the dense network; of one split in two, the second gives the same."""
        return self._dense_names.get(reader.weight, reader.weight)

    def _kept(self, name: str, dim: int) -> Tensor:
        """The kept indices of a dim of a dense tensor, `(n,)`."""
        kept = self._plan.tensors.get(name, {}).get(dim)
        if kept is None:
            return torch.arange(self._dense_tensors[name].shape[dim])
        return torch.tensor(kept)

    def _kept_outputs(self, reader: Reader) -> Tensor:
        """The kept output channels of a dense reader, `(n,)`."""
        if not reader.transposed:
            return self._kept(self._whole(reader), 0)
        n_in, per_group = self._dense_tensors[reader.weight].shape[:2]
        offsets, inputs = self._kept(reader.weight, 1), self._kept(reader.weight, 0)
        n_groups = self._dense_groups(reader.weight)
        groups = torch.unique(inputs // (n_in // n_groups))
        return (groups[:, None] * per_group + offsets[None]).flatten()

    def _dense_groups(self, weight: str) -> int:
        """How many groups a convolution had."""
        return next(reader.groups for reader in readers_of(self._dense).values() if reader.weight == weight)


class _Sums:
    """The moments of the rows of all pieces, one piece of a few held out."""

    def __init__(self, like: Moments, every: int) -> None:
        self._fit, self._held, self._every = like, like.plus(like), every
        self._targets = (0.0, 0, torch.zeros(1, dtype=torch.float64))

    def add(self, number: int, rows: Tensor, missing: Tensor, target: Tensor) -> None:
        """The rows of one piece; `target` is what they should come to."""
        (self._held if is_held_out(number, self._every) else self._fit).add(rows, missing)
        squares, count, total = self._targets
        self._targets = squares + float(target.square().sum()), count + len(target), total + target.sum(0)

    def problem(self, ranks: Ranks) -> _Problem:
        """All of it, of all processes."""
        squares, count, total = self._targets
        if ranks.share.n_ranks > 1:
            squares, n = ranks.summed(torch.tensor([squares, count], dtype=torch.float64)).tolist()
            count, total = int(n), ranks.summed(total)
        size = squares / count
        variance = size - float((total / count).square().sum())
        fit, held = self._fit.of_all(ranks), self._held.of_all(ranks)
        return _Problem(fit, held, variance if variance > CONSTANT * size else size)


def _note(problem: _Problem, found: Solution) -> str:
    """What there is to know of a layer's solve."""
    n_in, n = problem.fit.xx.shape[1], problem.fit.n
    if not found.helps:
        return "keeps its weights: others do no better on samples held out"
    return f"{n} rows for {n_in} unknowns: regularised by {found.penalty:g}" if n < n_in else ""


def _tensors_of(module: fx.GraphModule) -> Mapping[str, Tensor]:
    return {**dict(module.named_parameters(remove_duplicate=False)), **dict(module.named_buffers())}
