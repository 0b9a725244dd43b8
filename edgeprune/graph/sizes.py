"""Which sizes of a program's inputs are free: asked for at capture, kept by every later export, and checked.

Inputs are seen as their leaves, in order: a list or dict of tensors counts as its tensors. The sizes of a leaf that
are free are the numbers of its dims, each with its least and its largest size; dim 0 is the batch.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten
from torch.utils._sympy.numbers import int_oo

from edgeprune.errors import CaptureError
from edgeprune.graph.tables import table_end

FILE_INPUT = "input"  # what files call the only input of a network

Range = tuple[int, int | None]  # the least and the largest size; None: no bound
Free = Sequence[Mapping[int, Range]]  # for each leaf the dims of free size
Asked = Sequence[int] | Mapping[int, Range | None]  # what a caller says of one input

_ANY: Range = (1, None)
_FACTORS = (2, 64)  # a size is free where the traced path holds at these multiples of the example's too
_AUTO: Any = Dim.AUTO


@dataclass(frozen=True, slots=True)
class Fixed:
    """A size that was to be free and that the model fixes.

    `why` says what the traced path requires; `shapes` are inputs' shapes at which it does not hold, a tuple for each
    leaf (None for what is no tensor); `line` is where the model asked, as far as PyTorch tells; `most` is the largest
    size that it takes, where there is one.
    """

    leaf: int
    dim: int
    why: str
    shapes: tuple[tuple[int, ...] | None, ...]
    line: str
    most: int | None = None


def free_dims(program: ExportedProgram) -> tuple[frozenset[int], ...]:
    """The free sizes of a program's inputs."""
    return tuple(frozenset(ranges) for ranges in free_ranges(program))


def free_ranges(program: ExportedProgram) -> tuple[dict[int, Range], ...]:
    """The free sizes of a program's inputs, with their bounds."""
    return tuple(
        {d: _range_of(program, size) for d, size in enumerate(value.shape) if _is_free(size)}
        if isinstance(value, Tensor)
        else {}
        for value in input_values(program)
    )


def _range_of(program: ExportedProgram, size: Any) -> Range:
    bounds = program.range_constraints.get(_symbol(size))
    if bounds is None:
        return _ANY
    low, high = (None if bound in (int_oo, sympy.oo, -int_oo) else int(bound) for bound in (bounds.lower, bounds.upper))
    return low or 1, high


def input_values(program: ExportedProgram) -> list[Any]:
    """What the graph knows of each input: a fake tensor, or the constant that it was captured with."""
    values = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    specs = [spec.arg for spec in program.graph_signature.input_specs if spec.kind is InputKind.USER_INPUT]
    return [arg.value if isinstance(arg, ConstantArgument) else values[arg.name] for arg in specs]


def same_sizes(one: Sequence[Any], other: Sequence[Any]) -> bool:
    """Whether two shapes are the same, free sizes by their symbols: to compare those with numbers would fix them."""
    return [_expression(size) for size in one] == [_expression(size) for size in other]


def _expression(size: Any) -> Any:
    return size.node.expr if isinstance(size, torch.SymInt) else size


def size_hint(size: Any) -> Any:
    """A symbolic size as the int that it had at capture, at least 2; other things unchanged."""
    if isinstance(size, torch.SymInt):
        hint = size.node.hint
        return int(hint) if hint is not None and hint > 1 else 2
    return size


def arguments(program: ExportedProgram, tensors: Sequence[Tensor]) -> tuple[Any, ...]:
    """The positional arguments of a program, with `tensors` in the places of its tensors and numbers as captured."""
    given = iter(tensors)
    leaves = [next(given) if isinstance(value, Tensor) else value for value in input_values(program)]
    args: tuple[Any, ...] = tree_unflatten(leaves, program.call_spec.in_spec)[0]
    return args


def grown_shapes(program: ExportedProgram) -> tuple[tuple[int, ...] | None, ...] | None:
    """Other shapes that the inputs may have, every other free size beside the batches doubled, within its bounds.

    A shape for each leaf, None for what is no tensor; None in all where only batches are free.
    """
    values = input_values(program)
    batches = {_symbol(value.shape[0]) for value in values if isinstance(value, Tensor) and value.dim()}
    free = [size for size in _symbolic(values) if _symbol(size) not in batches]
    symbols = {_symbol(size): another_size(_hint(size), _range_of(program, size)) for size in free}
    if not symbols or not all(symbol.is_Symbol for symbol in symbols):
        return None
    return _grown(values, {symbol: symbols[symbol] for symbol in list(symbols)[::2]}, {})


def another_size(size: int, bounds: Range) -> int:
    """Another size than this one: twice as much, or what the bounds allow of that."""
    low, high = bounds
    larger = 2 * size if high is None else min(2 * size, high)
    return larger if larger != size else max(low, 2, size // 2)


def _is_free(size: Any) -> bool:
    """Whether a size is a symbol still; one that turned out to be a number may be wrapped like a symbol."""
    return isinstance(size, torch.SymInt) and not size.node.expr.is_number


def by_own_names(named: Mapping[str, Asked], names: Sequence[str]) -> Mapping[str, Asked]:
    """What is asked of inputs by the network's own `names`: files call a single one `input`, and so may the user."""
    if len(names) != 1 or FILE_INPUT in names or FILE_INPUT not in named:
        return named
    others = {name: asked for name, asked in named.items() if name != FILE_INPUT}
    return {**others, names[0]: named[FILE_INPUT]}


def asked_dims(
    model: nn.Module, args: tuple[Any, ...], batch: bool, size: bool, named: Mapping[str, Asked]
) -> tuple[dict[int, Range], ...]:
    """The sizes that a caller of `capture` wants free.

    Args:
        model: the network that `args` are for.
        args: its positional arguments.
        batch: whether the first size of every tensor is free.
        size: whether the sizes from the third on are free.
        named: dims for the inputs that are named, in place of these rules, with bounds or without.

    Raises:
        CaptureError: a name or a dim that the inputs do not have, or bounds that are none or that the example breaks.
    """
    names = argument_names(model, args)
    named = by_own_names(named, names)
    unknown = sorted(set(named) - set(names))
    if unknown:
        raise CaptureError(f"dynamic: expected names of inputs ({', '.join(names)}), got {', '.join(unknown)}")
    free = []
    for name, argument in zip(names, args, strict=True):
        for leaf in tree_leaves(argument):
            rank = leaf.dim() if isinstance(leaf, Tensor) else 0
            dims = dict.fromkeys([*([0] if batch and rank else []), *(range(2, rank) if size else [])], _ANY)
            if name in named:
                dims = _asked_of(name, named[name], leaf) if rank else {}
            free.append(dims)
    return tuple(free)


def _asked_of(name: str, asked: Asked, leaf: Tensor) -> dict[int, Range]:
    """The dims that a caller names for one tensor, with their bounds."""
    given: Mapping[int, Any] = asked if isinstance(asked, Mapping) else dict.fromkeys(asked)
    if not set(given) <= set(range(leaf.dim())):
        raise CaptureError(f"dynamic[{name!r}]: expected dims from 0 to {leaf.dim() - 1}, got {sorted(given)}")
    dims = {}
    for dim, bounds in sorted(given.items()):
        low, high = _checked_bounds(f"dynamic[{name!r}][{dim}]", bounds)
        size = max(leaf.shape[dim], 2)  # an example's batch of one is doubled
        if not low <= size or (high is not None and high < size):
            raise CaptureError(
                f"dynamic[{name!r}][{dim}]: expected an example of a size from {max(low, 2)} to {high or 'any'}, "
                f"got {leaf.shape[dim]}"
            )
        dims[dim] = (low, high)
    return dims


def _checked_bounds(where: str, bounds: Any) -> Range:
    """A least and a largest size; None for no bounds."""
    if bounds is None:
        return _ANY
    pair = tuple(bounds) if isinstance(bounds, (tuple, list)) else ()
    low, high = pair if len(pair) == 2 else (None, None)
    if type(low) is not int or low < 1 or not (high is None or (type(high) is int and high > max(low, 1))):
        raise CaptureError(f"{where}: expected None or (least, largest) such as (1, 64), got {bounds!r}")
    return low, high


def argument_names(model: nn.Module, args: tuple[Any, ...]) -> list[str]:
    """The name of each positional argument: the forward's own, numbered for `*args`.

    Raises:
        CaptureError: the forward takes another number of them.
    """
    signature = inspect.signature(model.forward)
    try:
        signature.bind(*args)
    except TypeError as error:
        raise CaptureError(
            f"{type(model).__name__}.forward{signature}: expected example inputs that it can be called with, "
            f"got {len(args)}: {error}"
        ) from error
    names: list[str] = []
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL:
            names += [f"{parameter.name}_{k}" for k in range(len(args) - len(names))]
        elif parameter.kind is not parameter.VAR_KEYWORD:
            names.append(parameter.name)
    return names[: len(args)]


def dynamic_shapes(model: nn.Module, args: tuple[Any, ...], free: Free, strict_batch: bool = True) -> Any:
    """`free` as torch.export takes it; all batches are one size, unless `strict_batch` is off."""
    batch = _batch_dim(free)
    leaves, tree = tree_flatten(args)
    shapes = [
        {d: batch if d == 0 and strict_batch else _bounded(dims[d]) for d in sorted(dims)}
        if isinstance(leaf, Tensor) and dims
        else None
        for leaf, dims in zip(leaves, free, strict=True)
    ]
    return _by_parameter(model, tree_unflatten(shapes, tree))


def _batch_dim(free: Free) -> Any:
    """The one batch of all inputs, within the bounds of each."""
    batches = [dims[0] for dims in free if 0 in dims]
    most = min((high for _, high in batches if high is not None), default=None)
    return Dim("batch", min=max([1, *(low for low, _ in batches)]), max=most)


def _by_parameter(model: nn.Module, by_argument: tuple[Any, ...]) -> tuple[Any, ...]:
    """What is said of each argument by the parameters of the forward: `*args` takes one nested tuple."""
    kinds = [parameter.kind for parameter in inspect.signature(model.forward).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL in kinds[: len(by_argument)]:
        first = kinds.index(inspect.Parameter.VAR_POSITIONAL)
        return (*by_argument[:first], by_argument[first:])
    return by_argument


def _bounded(bounds: Range) -> Any:
    low, high = bounds
    return _AUTO if high is None and low <= 2 else _AUTO(min=low, max=high)


def first_fixed(program: ExportedProgram, free: Free) -> Fixed | None:
    """The first size among `free` that the program fixes, bounds further from above or ties to something else."""
    values = input_values(program)
    places: dict[Any, tuple[int, int]] = {}  # symbol -> the leaf and dim that it stands for
    for leaf, (value, dims) in enumerate(zip(values, free, strict=True)):
        for dim in sorted(dims):
            size = value.shape[dim]
            if not _is_free(size):
                grown = _grown(values, {}, {(leaf, dim): int(size) * _FACTORS[0]})
                return Fixed(leaf, dim, f"expected {size}", grown, _line_of_constant(values, int(size)))
            places.setdefault(size.node.expr, (leaf, dim))
    asked = _largest_asked(values, free)
    for symbol, (leaf, dim) in places.items():
        _, most = _range_of(program, values[leaf].shape[dim])
        if most is not None and (asked[symbol] is None or most < asked[symbol]):
            shapes = _grown(values, {symbol: most + 1}, {})
            return Fixed(leaf, dim, f"expected at most {most}", shapes, _line_of_bound(values, symbol), most)
    return _broken_guard(values, places, asked) or _beyond_table(program, values, places, asked)


def _largest_asked(values: Sequence[Any], free: Free) -> dict[Any, Any]:
    """The largest size that each symbol is asked to take, None for any; of several inputs the least counts."""
    found: dict[Any, Any] = {}
    for value, dims in zip(values, free, strict=True):
        for dim, (_, high) in dims.items():
            symbol = _symbol(value.shape[dim])
            known = found.get(symbol)
            found[symbol] = high if known is None else known if high is None else min(known, high)
    return found


def _beyond_table(
    program: ExportedProgram, values: Sequence[Any], places: Mapping[Any, tuple[int, int]], asked: Mapping[Any, Any]
) -> Fixed | None:
    """A table of learnt positions that has no row for a size, though the program would run on to it."""
    hints = {_symbol(size): _hint(size) for size in _symbolic(values)}
    for symbol, (leaf, dim) in places.items():
        found = table_end(program, hints, symbol, asked[symbol])
        if found is not None:
            shapes = _grown(values, {symbol: found.most + 1}, {})
            return Fixed(leaf, dim, f"expected at most {found.most}, {found.why}", shapes, found.line, found.most)
    return None


def _broken_guard(
    values: Sequence[Any], places: Mapping[Any, tuple[int, int]], asked: Mapping[Any, Any]
) -> Fixed | None:
    """A condition of the traced path that does not hold at multiples of the example's sizes."""
    hints = {_symbol(size): _hint(size) for size in _symbolic(values)}
    choices = [[symbol] for symbol in places] + ([list(places)] if len(places) > 1 else [])
    for factor, chosen in itertools.product(_FACTORS, choices):
        grown = {symbol: hints[symbol] * factor for symbol in chosen}
        sizes = hints | {symbol: min(size, asked[symbol] or size) for symbol, size in grown.items()}
        guard = _first_broken(values, sizes)
        if guard is not None:
            leaf, dim = places[next((s for s in chosen if s in guard.expr.free_symbols), chosen[0])]
            why = f"expected {_readable(guard.expr, places)}"
            return Fixed(leaf, dim, why, _grown(values, sizes, {}), _location(guard))
    return None


def _first_broken(values: Sequence[Any], sizes: Mapping[Any, int]) -> Any:
    """The first condition of the traced path that does not hold at these sizes, or None."""
    numbers = {symbol: sympy.Integer(size) for symbol, size in sizes.items()}
    return next((guard for guard in _guards(values) if guard.expr.xreplace(numbers) == sympy.false), None)


def _grown(
    values: Sequence[Any], symbols: Mapping[Any, int], places: Mapping[tuple[int, int], int]
) -> tuple[tuple[int, ...] | None, ...]:
    """The inputs' shapes with other sizes for some symbols or some dims of leaves."""
    shapes: list[tuple[int, ...] | None] = []
    for leaf, value in enumerate(values):
        if not isinstance(value, Tensor):
            shapes.append(None)
            continue
        sizes = []
        for dim, size in enumerate(value.shape):
            known = _hint(size) if _is_free(size) else int(size)
            known = symbols.get(_symbol(size), known)
            sizes.append(places.get((leaf, dim), known))
        shapes.append(tuple(sizes))
    return tuple(shapes)


def _symbol(size: Any) -> Any:
    """The symbol that a free size is; None for a number."""
    return size.node.expr if _is_free(size) else None


def _hint(size: Any) -> int:
    """The size that a free one had in the example; 2 where the program does not say."""
    return int(size.node.hint) if size.node.hint is not None else 2


def _symbolic(values: Sequence[Any]) -> list[Any]:
    tensors = (value for value in values if isinstance(value, Tensor))
    return [size for tensor in tensors for size in tensor.shape if _is_free(size)]


def _guards(values: Sequence[Any]) -> list[Any]:
    """The conditions on sizes that PyTorch met while it traced."""
    modes = (getattr(value, "fake_mode", None) for value in values)
    environment = next((mode.shape_env for mode in modes if mode is not None), None)
    return [] if environment is None else list(environment.guards)


def _line_of_constant(values: Sequence[Any], size: int) -> str:
    found = (g for g in _guards(values) if isinstance(g.expr, sympy.Eq) and g.expr.rhs == size and g.expr.lhs.is_Symbol)
    return next(filter(None, map(_location, found)), "")


def _line_of_bound(values: Sequence[Any], symbol: Any) -> str:
    found = (g for g in _guards(values) if g.expr.free_symbols == {symbol})
    return next(filter(None, map(_location, found)), "")


def _location(guard: Any) -> str:
    """Where the model met the condition, or nothing where that is a line of PyTorch's."""
    frame = getattr(guard.sloc, "framework_loc", None)
    file = getattr(frame, "filename", "")
    own = file and "/torch/" not in file.replace("\\", "/")
    return f"{file}:{frame.lineno} in {frame.name}" if own and frame is not None else ""


def _readable(condition: Any, places: Mapping[Any, tuple[int, int]]) -> str:
    """A condition with sizes in place of symbols, e.g. "4*size(2)*size(3) == 4096"."""
    names = {symbol: sympy.Symbol(f"size({dim})", integer=True) for symbol, (_, dim) in places.items()}
    named = condition.xreplace(names)
    return (
        f"{named.lhs} {named.rel_op} {named.rhs}" if isinstance(named, sympy.core.relational.Relational) else str(named)
    )
