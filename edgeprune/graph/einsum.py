"""The one rule behind every operator that multiplies, adds or reduces: dims are letters, as in an einsum.

A letter that several operands have unites their units along it. A letter that is missing from the result is
contracted: its units stop here, which is exact where they read zero. The others carry their labels out.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from edgeprune.graph import reasons
from edgeprune.graph.labels import Layer, Value, core, remainder
from edgeprune.graph.reasons import Cause
from edgeprune.graph.rules import Labelling


@dataclass(frozen=True, slots=True, eq=False)
class Operand:
    """A value with a letter for each dim; letters are any hashable names."""

    value: Value
    letters: tuple[str, ...]

    def full(self, letter: str) -> bool:
        """Whether it has this letter with more than one index; a size of 1 is a broadcast."""
        return letter in self.letters and self.value.shape[self.letters.index(letter)] > 1

    def over(self, layer: Layer) -> tuple[str, ...]:
        """The letters along which a layer varies."""
        return tuple(self.letters[d] for d in layer.dims)

    def on(self, letter: str) -> list[Layer]:
        """The layers that vary along a letter."""
        return [layer for layer in self.value.layers if letter in self.over(layer)]

    def reads_zero(self, over: tuple[str, ...]) -> bool:
        """Whether units that vary along these letters alone read zero where they are removed."""
        found = [layer.zero for layer in self.value.layers if self.over(layer) == over]
        return bool(found) and all(found)

    def without(self, letters: set[str]) -> Operand:
        """The operand with no units along these letters; what else they vary along is pending."""
        shape = self.value.shape
        dims = {d: d for d, letter in enumerate(self.letters) if letter not in letters}
        kept = (x if letters.isdisjoint(self.over(x)) else remainder(x, dims, shape) for x in self.value.layers)
        return Operand(replace(self.value, layers=tuple(x for x in kept if x is not None)), self.letters)

    def fix(self, analysis: Labelling, letter: str, told: Cause | str) -> None:
        """No unit may vary along this letter."""
        if letter in self.letters:
            for layer in self.value.layers:
                analysis.fix(layer, self.letters.index(letter), told)

    def fix_all(self, analysis: Labelling, letters: set[str], told: Cause | str) -> None:
        """No unit may vary along these letters; units along none but these are locked."""
        for layer in self.value.layers:
            over = self.over(layer)
            if not layer.pending and letters.issuperset(over):
                analysis.lock(layer, told)
            elif not layer.pending:
                for letter in letters.intersection(over):
                    analysis.fix(layer, self.letters.index(letter), told)


def unify(analysis: Labelling, operands: Sequence[Operand]) -> list[Operand]:
    """Unite the units of all operands along every letter that they share.

    Returns the operands without the units that are locked because another operand has none along their letter: what
    follows need not wait for a pass to see that they are gone.
    """
    letters = dict.fromkeys(letter for operand in operands for letter in operand.letters)
    unprunable = {letter for letter in letters if not _unify_along(analysis, operands, letter)}
    if not unprunable:
        return list(operands)
    for operand in operands:
        operand.fix_all(analysis, unprunable, reasons.UNPRUNABLE_DIM)
    return [operand.without(unprunable) for operand in operands]


def _unify_along(analysis: Labelling, operands: Sequence[Operand], letter: str) -> bool:
    """Unite the units along one letter; False where an operand has none along it, so that none may go."""
    sharing = [operand for operand in operands if operand.full(letter)]
    if len(sharing) > 1 and not all(operand.on(letter) for operand in sharing):
        return False
    for other in sharing[1:]:
        _match(analysis, sharing[0], other, letter)
    return True


def _match(analysis: Labelling, one: Operand, other: Operand, letter: str) -> None:
    """Unite the layers of two operands that vary along the same letters; leave what is not resolved yet."""
    mine, theirs = one.on(letter), other.on(letter)
    if any(layer.pending for layer in (*mine, *theirs)):
        return
    alone, alone_other = _only(one, mine, letter), _only(other, theirs, letter)
    if len(alone) == len(mine) and len(alone_other) == len(theirs):
        _match_alone(analysis, (one, alone), (other, alone_other), letter)
        return
    for operand, partner, layers in ((one, other, mine), (other, one, theirs)):
        for layer in layers:
            if len(layer.dims) > 1:
                _match_several(analysis, operand, layer, partner, letter)


def _match_several(analysis: Labelling, operand: Operand, layer: Layer, partner: Operand, letter: str) -> None:
    """Unite a layer along several letters with the partner's along the same ones.

    A layer over (heads, channels) meets one over heads alone: heads it is, unless something forces it.
    """
    over = operand.over(layer)
    for twin in partner.on(letter):
        if set(partner.over(twin)) == set(over):
            order = [partner.over(twin).index(x) for x in over]
            analysis.unite(core(layer), core(twin).permute(order))
    is_alone = not any(partner.on(x) for x in over if x != letter)
    if is_alone and _only(partner, partner.on(letter), letter):
        analysis.prefer(layer, operand.letters.index(letter))


def _match_alone(
    analysis: Labelling, one: tuple[Operand, list[Layer]], other: tuple[Operand, list[Layer]], letter: str
) -> None:
    """Unite single-dim layers: one with one, several with several in the same pattern, else none may be removed."""
    pairs = list(zip(one[1], other[1], strict=False))
    if len(one[1]) == len(other[1]) and (len(pairs) == 1 or all(_same_pattern(core(a), core(b)) for a, b in pairs)):
        for a, b in pairs:
            analysis.unite(core(a), core(b))
        return
    if not analysis.settled:
        return  # other calls may lock some of them first
    if len(one[1]) != len(other[1]):  # heads x channels meet channels: one of the two stays whole
        operand, layers = max(one, other, key=lambda side: len(side[1]))
        fewest = min(layers, key=lambda layer: len(core(layer).unique()))
        analysis.fix(fewest, operand.letters.index(letter), reasons.TWO_PATTERNS)
        return
    for operand, layers in (one, other):
        for layer in layers:
            analysis.fix(layer, operand.letters.index(letter), reasons.TWO_PATTERNS)


def _only(operand: Operand, layers: Iterable[Layer], letter: str) -> list[Layer]:
    return [layer for layer in layers if operand.over(layer) == (letter,)]


def _same_pattern(a: Tensor, b: Tensor) -> bool:
    """Whether two label vectors repeat at the same places."""
    return torch.equal(_pattern(a), _pattern(b))


def _pattern(labels: Tensor) -> Tensor:
    _, inverse = labels.unique(return_inverse=True)
    first = torch.full((int(inverse.max()) + 1,), len(labels)).scatter_reduce(
        0, inverse, torch.arange(len(labels)), "amin"
    )
    return first[inverse]


def contract(
    analysis: Labelling,
    operands: Sequence[Operand],
    out: tuple[str, ...],
    shape: Sequence[int],
    fixed: Sequence[str] = (),
) -> Value:
    """Labels of the product of `operands`, summed over the letters that `out` lacks.

    `fixed` letters are ones along which no unit may vary (spatial positions, kernel offsets, softmax).
    `shape` is the result's, by the letters of `out`.
    """
    for operand in operands:
        for letter in fixed:
            operand.fix(analysis, letter, reasons.ALL_POSITIONS)
    operands = unify(analysis, operands)
    _count(analysis, operands)
    _choose_heads(analysis, operands)
    layers: list[Layer] = []
    seen: set[frozenset[str]] = set()
    for operand in operands:
        mine = set()  # the same operand may have several layers over the same letters
        for layer in operand.value.layers:
            over = operand.over(layer)
            _stop(analysis, operands, operand, layer, out)
            carried = _carry(analysis, operands, operand, layer, (out, tuple(shape)), fixed)
            key = frozenset(x for x in over if x in out and x not in fixed)
            if carried is not None and key not in seen:
                mine.add(key)
                layers.append(carried)
        seen |= mine
    return analysis.value(shape, layers)


def _choose_heads(analysis: Labelling, operands: Sequence[Operand]) -> None:
    """(heads, positions) times (heads, channels): both vary along the heads alone, or along what they do not share."""
    for one in operands:
        others = [other for other in operands if other is not one]
        partners = [set(o.over(twin)) for o in others for twin in o.value.layers if not analysis.is_undecided(twin)]
        for layer, partner in itertools.product(one.value.layers, partners):
            over = set(one.over(layer))
            shared, own = over & partner, over - partner
            if len(shared) == 1 and own and len(partner) > 1:
                letter = shared.pop() if analysis.attention == "heads" else min(own)
                analysis.prefer(layer, one.letters.index(letter), strong=True)


def _count(analysis: Labelling, operands: Sequence[Operand]) -> None:
    """The cost of a product is proportional to the size along each of its letters."""
    if len(operands) < 2:
        return
    for letter in dict.fromkeys(letter for operand in operands for letter in operand.letters):
        layers = [layer for operand in operands for layer in _only(operand, operand.on(letter), letter)]
        analysis.add_factors(layers[:1])


def _stop(
    analysis: Labelling, operands: Sequence[Operand], operand: Operand, layer: Layer, out: tuple[str, ...]
) -> None:
    """Units along a contracted letter end here; where no operand reads zero there, they cannot be removed."""
    over = operand.over(layer)
    if not analysis.settled or len(over) != 1 or over[0] in out:
        return
    if not any(_all_zero(other.on(over[0])) for other in operands):
        analysis.lock(layer, reasons.NOT_ZERO)


def _carry(
    analysis: Labelling,
    operands: Sequence[Operand],
    operand: Operand,
    layer: Layer,
    result: tuple[tuple[str, ...], tuple[int, ...]],
    fixed: Sequence[str],
) -> Layer | None:
    """The layer as the result (its letters and shape) has it, or None where all its letters are contracted."""
    out, shape = result
    over = operand.over(layer)
    dims = {d: out.index(x) for d, x in zip(layer.dims, over, strict=True) if x in out and x not in fixed}
    carried = remainder(layer, dims, shape)
    if carried is None:
        return None
    if len(dims) == len(over):
        zero = any(_all_zero(_with(other, frozenset(over))) for other in operands)
        return Layer(carried.labels, zero)
    if not set(over) & set(fixed):  # along which letter it will vary alone is a choice; fixed ones leave none
        analysis.prefer(layer, operand.letters.index(_better_letter(analysis, operands, over, out)))
    return carried


def _all_zero(layers: Sequence[Layer]) -> bool:
    """Whether an operand with these layers along a letter reads zero there, whichever of their units is removed."""
    return bool(layers) and all(layer.zero for layer in layers)


def _with(operand: Operand, over: frozenset[str]) -> list[Layer]:
    return [layer for layer in operand.value.layers if frozenset(operand.over(layer)) == over]


def _better_letter(
    analysis: Labelling, operands: Sequence[Operand], over: tuple[str, ...], out: tuple[str, ...]
) -> str:
    """Batch letters are heads: whole heads by default. Otherwise the contracted letter, which is the channels.

    A plain reduction has no choice but the letter that it keeps: what it reduces over are positions.
    """
    if len(operands) == 1:
        return next(x for x in over if x in out)
    kept, contracted = ([x for x in over if (x in out) is stays] for stays in (True, False))
    batch = [x for x in kept if sum(operand.full(x) for operand in operands) > 1]
    return batch[0] if batch and analysis.attention == "heads" else contracted[0]
