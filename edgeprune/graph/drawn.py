"""Inputs that a program accepts, drawn where no real ones are at hand; what all checks run on then.

Whole numbers that index (tokens, classes, positions) are drawn over all that they may be, others as in the example that
the program was captured with: between its least and its largest value, or as a mask of its kind. Floats are random
normal numbers, or between the least and the largest value of an example that has no negative ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind
from torch.utils._pytree import tree_leaves, tree_unflatten

from edgeprune.graph.comparison import outputs
from edgeprune.graph.indices import UNBOUNDED, IndexRange, index_ranges
from edgeprune.graph.sizes import arguments, free_dims, input_values, size_hint
from edgeprune.graph.tokens import kept_vocabularies, only_kept
from edgeprune.records import Vocabulary

Shapes = Sequence[tuple[int, ...] | None]  # a shape for each leaf, None for what is no tensor

_FEW = 2  # rows that tell whether a network takes them
_HUGE = 1e4  # a float of an example that is no quantity but shuts a place out of an attention


@dataclass(frozen=True, slots=True, eq=False)
class Leaf:
    """One input tensor: the sizes to draw, those among them that are free, and what example and graph tell of it.

    `kept` are the ids that it may hold, where others were cut.
    """

    dtype: torch.dtype
    sizes: tuple[int, ...]
    free: frozenset[int]
    example: Tensor | None
    range: IndexRange | None
    kept: Vocabulary | None = None


def drawn_leaves(
    program: ExportedProgram, batch: int, shapes: Shapes | None = None, seed: int = 0
) -> Iterator[list[Any]]:
    """Inputs for a program, best first: drawn ones, then ones that it accepts more surely, for where it fails on these.

    Args:
        program: takes tensors; what else it takes is as it was captured with.
        batch: the first size of every input where that is free.
        shapes: other sizes of the inputs, e.g. `grown_shapes`; those of the capture where it is left out.
        seed: of the numbers.

    Yields:
        A value for each leaf of the inputs: with and without an example there are two such lists.
    """
    leaves = list(_leaves(program, batch, shapes))
    constants = input_values(program)
    for surely in (False, True):
        generator = torch.Generator().manual_seed(seed)
        yield [
            constant if leaf is None else drawn_tensor(leaf, generator, surely)
            for leaf, constant in zip(leaves, constants, strict=True)
        ]


def drawn_tensors(
    program: ExportedProgram, batch: int, shapes: Shapes | None = None, seed: int = 0
) -> Iterator[tuple[Tensor, ...]]:
    """The tensors among them."""
    for leaves in drawn_leaves(program, batch, shapes, seed):
        yield tuple(leaf for leaf in leaves if isinstance(leaf, Tensor))


def drawn_arguments(
    program: ExportedProgram, batch: int, shapes: Shapes | None = None, seed: int = 0
) -> Iterator[tuple[Any, ...]]:
    """The values of `drawn_leaves` as positional arguments of the program."""
    for leaves in drawn_leaves(program, batch, shapes, seed):
        args, _ = tree_unflatten(leaves, program.call_spec.in_spec)
        yield tuple(args)


def first_accepted(network: Callable[..., Any], candidates: Iterable[tuple[Any, ...]]) -> tuple[Any, ...]:
    """The first arguments that a network runs on without NaN; the last ones where it does on none."""
    args: tuple[Any, ...] = ()
    for args in candidates:
        if _accepts(network, args):
            break
    return args


def _accepts(network: Callable[..., Any], args: tuple[Any, ...]) -> bool:
    try:
        results = outputs(network, args)
    except Exception:  # whatever a network raises on inputs that it does not take: others are tried
        return False
    return not any(bool(torch.isnan(result).any()) for result in results)


def drawn_input(program: ExportedProgram, batch: int, sizes: Sequence[int]) -> np.ndarray:
    """Values for the first input tensor of a program, `(batch, *sizes)`, of which it is seen to run on the first."""
    values, free, network = input_values(program), free_dims(program), program.module()
    first = next(place for place, value in enumerate(values) if isinstance(value, Tensor))
    shapes = [(batch, *sizes) if place == first else None for place in range(len(values))]
    leaves: list[Any] = []
    for leaves in drawn_leaves(program, batch, shapes):
        few = [leaf[:_FEW] if 0 in dims else leaf for leaf, dims in zip(leaves, free, strict=True)]
        if _accepts(network, arguments(program, [leaf for leaf in few if isinstance(leaf, Tensor)])):
            break
    drawn: np.ndarray = leaves[first].numpy()
    return drawn


def example_values(program: ExportedProgram) -> list[Any] | None:
    """The leaves of the example that a program was captured with; None where it has none of its inputs' sizes."""
    if program.example_inputs is None:
        return None
    leaves = tree_leaves(program.example_inputs)
    values = input_values(program)
    if len(leaves) != len(values):
        return None
    fits = all(
        not isinstance(value, Tensor)
        or (isinstance(leaf, Tensor) and list(leaf.shape) == [size_hint(size) for size in value.shape])
        for leaf, value in zip(leaves, values, strict=True)
    )
    return leaves if fits else None


def _leaves(program: ExportedProgram, batch: int, shapes: Shapes | None) -> Iterator[Leaf | None]:
    ranges, kept = index_ranges(program), kept_vocabularies(program)
    specs = [spec.arg for spec in program.graph_signature.input_specs if spec.kind is InputKind.USER_INPUT]
    values, free = input_values(program), free_dims(program)
    examples = example_values(program) or [None] * len(values)
    for position, (spec, value) in enumerate(zip(specs, values, strict=True)):
        if isinstance(spec, ConstantArgument) or not isinstance(value, Tensor):
            yield None
            continue
        sizes = list((shapes and shapes[position]) or map(size_hint, value.shape))
        if 0 in free[position]:
            sizes[0] = batch
        example = _known_example(examples[position])
        yield Leaf(value.dtype, tuple(sizes), free[position], example, ranges.get(spec.name), kept.get(spec.name))


def _known_example(example: Any) -> Tensor | None:
    """An example that tells something: floats that are all zero stand for one that nobody gave."""
    if not isinstance(example, Tensor) or (example.is_floating_point() and not bool(example.any())):
        return None
    return example.detach().cpu()


def drawn_tensor(leaf: Leaf, generator: torch.Generator, surely: bool) -> Tensor:
    """Numbers for one input; `surely`: ones that a network accepts that failed on the others."""
    drawn = _drawn(leaf, generator, surely)
    return drawn if leaf.kept is None or leaf.kept.unknown is not None else only_kept(drawn, leaf.kept)


def _drawn(leaf: Leaf, generator: torch.Generator, surely: bool) -> Tensor:
    if leaf.example is not None and surely:
        return _rows_of_example(leaf, generator, shuffled=False)
    if leaf.dtype.is_floating_point or leaf.dtype.is_complex:
        return _float(leaf, generator, surely)
    numbers = _whole(leaf, generator, surely)
    if leaf.range is None or not bool((leaf.range.high < UNBOUNDED).any()):
        return numbers
    low, high = _at_sizes(leaf, leaf.range)
    bounded = high < UNBOUNDED
    share = torch.rand(leaf.sizes, generator=generator, dtype=torch.float64)
    indices = low + (share * (torch.where(bounded, high, 1) - low).clamp(min=1)).long()
    return torch.where(bounded, indices, numbers.long()).to(leaf.dtype)


def _at_sizes(leaf: Leaf, numbers: IndexRange) -> tuple[Tensor, Tensor]:
    """The range of the captured sizes at other ones: the narrowest along every size that is free."""
    low, high = numbers.low, numbers.high
    for dim in leaf.free:
        low, high = low.amax(dim, keepdim=True), high.amin(dim, keepdim=True)
    return low.expand(leaf.sizes), high.expand(leaf.sizes)


# -- floats -----------------------------------------------------------------------------------------------------------


def _float(leaf: Leaf, generator: torch.Generator, surely: bool) -> Tensor:
    example = leaf.example
    if example is not None and not leaf.dtype.is_complex:
        if _is_mask(example) and bool((example == 0).any()):
            return _mask(leaf, generator, surely)
        if not bool(torch.isfinite(example).all()) or float(example.abs().max()) >= _HUGE:
            return _rows_of_example(leaf, generator, shuffled=True)
        least, largest = float(example.min()), float(example.max())
        if 0 <= least < largest:
            share = torch.rand(leaf.sizes, generator=generator, dtype=torch.float64)
            return (least + share * (largest - least)).to(leaf.dtype)
    if surely and not leaf.dtype.is_complex:  # logarithms and roots take these
        return torch.rand(leaf.sizes, generator=generator, dtype=torch.float64).to(leaf.dtype)
    return torch.randn(leaf.sizes, generator=generator, dtype=leaf.dtype)


# -- whole numbers ----------------------------------------------------------------------------------------------------


def _whole(leaf: Leaf, generator: torch.Generator, surely: bool) -> Tensor:
    """Numbers that index nothing: masks, or as large as in the example."""
    example = leaf.example
    if example is None or _is_mask(example):
        return _mask(leaf, generator, surely)
    least, largest = int(example.min()), int(example.max())
    return torch.randint(least, largest + 1, leaf.sizes, generator=generator).to(leaf.dtype)


def _is_mask(example: Tensor) -> bool:
    return bool(((example == 0) | (example == 1)).all())


def _mask(leaf: Leaf, generator: torch.Generator, surely: bool) -> Tensor:
    """Ones and zeros as padding has them: of one kind over the first places of every row, of the other after them.

    The first place is as in the example, and what the example leaves out stays so. Without one, no row is all of one
    kind, so that it does not matter which kind tells what is left out; `surely` turns it round.
    """
    if leaf.example is None:
        first_is_one = not surely
        rows = torch.full(leaf.sizes, float(first_is_one))
    else:
        first_is_one = bool(leaf.example.any())
        rows = _rows_of_example(leaf, generator, True).float()
    if rows.dim() < 2:  # a number for each sample, and nothing to be left out
        return (rows if leaf.example is not None else torch.ones(leaf.sizes)).to(leaf.dtype)
    if bool((rows[..., :1] != float(first_is_one)).any()):
        return rows.to(leaf.dtype)  # padded on the left, or no mask over a sequence
    length = leaf.sizes[-1]
    longest = length if leaf.example is not None else max(1, length - 1)
    ends = torch.randint(1, longest + 1, (leaf.sizes[0], *[1] * (rows.dim() - 1)), generator=generator)
    ends[0] = longest
    inside = torch.arange(length) < ends
    return torch.where(inside, rows, float(not first_is_one)).to(leaf.dtype)


def _rows_of_example(leaf: Leaf, generator: torch.Generator, shuffled: bool) -> Tensor:
    """The example's own values at the sizes that are asked for: its rows in another order, or again and again."""
    assert leaf.example is not None
    values = leaf.example
    for dim, size in enumerate(leaf.sizes):
        index = torch.arange(size) % values.shape[dim]
        if shuffled and dim == 0 and 0 in leaf.free:
            index = torch.randint(0, values.shape[dim], (size,), generator=generator)
        values = values.index_select(dim, index)
    return values.clone()
