"""Putting a slim program back into the module it was captured from: its tensors, its sizes, and a check of both.

Everything or nothing: where the module's forward has sizes of the dense network written into it, the module is left
as it was.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map

from edgeprune.errors import ApplyError
from edgeprune.graph.attributes import Shapes, attribute_changes
from edgeprune.graph.comparison import TOLERANCE, output_types, outputs, outputs_in_float64, relative_error
from edgeprune.graph.drawn import first_accepted
from edgeprune.graph.lines import source_line
from edgeprune.graph.modulestate import restored
from edgeprune.graph.names import GATHER, split_names
from edgeprune.graph.ops.registry import Kind, kind_of
from edgeprune.graph.randomness import drawing, told_of
from edgeprune.graph.refusals import error_on, explain_run, failing_layer, quiet_torch
from edgeprune.graph.renaming import own_name
from edgeprune.usercode import user_line

_PLANNED = "plan for it with appliable=True or --keep-equal-chunks, where that was not asked for"


@dataclass(frozen=True, slots=True)
class Applied:
    """What `apply_to` did to a module.

    `tensors` names what was sliced. `attributes` has (before, after) by name, e.g. `"conv1.out_channels": (64, 40)`.
    `unread` names the parameters that the program does not read, e.g. of heads that only training uses: they are as
    they were, and do not fit what was sliced around them. `error` is the largest relative difference of an output.
    """

    tensors: tuple[str, ...]
    attributes: Mapping[str, tuple[Any, Any]]
    unread: tuple[str, ...]
    error: float


def apply(
    tensors: Mapping[str, Tensor],
    parameters: Sequence[str],
    slim: fx.GraphModule,
    model: nn.Module,
    candidates: Iterable[tuple[Any, ...]],
) -> Applied:
    """Slice `model` in place so that it computes what `slim` does, with its weights.

    Args:
        tensors: the slim program's parameters and buffers by name.
        parameters: which of them are parameters.
        slim: the program as a module.
        model: what the dense program was captured from; its parameters are replaced by new ones, so optimizers are to
            be made afterwards. Left as it was where an error is raised.
        candidates: positional arguments that both should take, best first: they are compared on the first that the
            model does.

    Raises:
        ApplyError: the program was not captured from this module, or the module's forward has sizes written into it.
    """
    own = _tensors_of(model)
    _check_names(tensors, set(parameters), model, own)
    shapes = {name: (tuple(own[name].shape), tuple(new.shape)) for name, new in tensors.items() if name in own}
    _check_shapes(tensors, own)
    device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    placed = (tree_map(lambda v: v.to(device) if isinstance(v, Tensor) else v, args) for args in candidates)
    with evaluated(model):
        args = first_accepted(model, placed)
    failures = []
    for changes in attribute_changes(model, shapes, slim.graph):
        with _Transaction(model) as transaction:
            _replace_tensors(transaction, tensors, own)
            for change in changes:
                transaction.set(change.module, change.name, change.new)
            with _bare_norms_fitted(transaction, model):
                failure, error = _compared(model, slim, args, shapes)
            if not failure:
                transaction.keep()
                sliced = tuple(name for name, (old, new) in shapes.items() if old != new)
                return Applied(sliced, transaction.attributes(), _unread(model, tensors), error)
        failures.append(failure)
    raise ApplyError(
        f"{type(model).__name__} is left as it was: {failures[0]}{_told_of_blocks(model, tensors)}; "
        "the program's own .module() trains and runs in its place"
    )


# -- what fits what ---------------------------------------------------------------------------------------------------


def _tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers under all of their names."""
    return {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}


def _check_names(tensors: Mapping[str, Tensor], wanted: set[str], model: nn.Module, own: Mapping[str, Tensor]) -> None:
    gathers = [name for name in tensors if name.startswith(GATHER)]
    if gathers:
        name = gathers[0]
        raise ApplyError(
            f"the program picks {len(tensors[name])} features of input {name.removeprefix(GATHER)!r}, which a module "
            f"cannot do: expected a program that takes only those; make it with edgeprune.slim_contract(program)"
        )
    missing = sorted(wanted - set(own))
    for name in own:
        if set(split_names(name)) <= set(missing):
            layer = name.rpartition(".")[0] or name
            raise ApplyError(
                f"layer {layer!r} was split in two, which the class runs whole; the program's own .module() trains and "
                "runs in its place"
            )
    if missing:
        fitting = [name for name, part in model.named_modules() if name and wanted <= set(_tensors_of(part))]
        hint = f"; it fits its part {fitting[0]!r}" if fitting else ""
        raise ApplyError(
            f"the program was not captured from this {type(model).__name__}: expected a tensor {missing[0]!r}, got none"
            + hint
        )


def _check_shapes(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    for name, new in tensors.items():
        if name not in own:
            continue
        old = own[name]
        fits = new.dim() == old.dim() and all(a <= b for a, b in zip(new.shape, old.shape, strict=True))
        if not fits or new.dtype != old.dtype:
            raise ApplyError(
                f"tensor {name!r}: expected one of {new.dtype} and at least the program's shape {tuple(new.shape)}, "
                f"got {old.dtype} and {tuple(old.shape)}"
            )


def _unread(model: nn.Module, tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    return tuple(name for name, _ in model.named_parameters(remove_duplicate=False) if name not in tensors)


def _told_of_blocks(model: nn.Module, tensors: Mapping[str, Tensor]) -> str:
    """What may stand in the way where the program lacks parameters of the module."""
    unread = _unread(model, tensors)
    return f"; the program has no {unread[0]!r}, and a class runs blocks that were taken out" if unread else ""


# -- all or nothing ---------------------------------------------------------------------------------------------------


class _Transaction:
    """Changes of a module's parameters, buffers and attributes that are taken back unless they are kept."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._undo: list[tuple[nn.Module, str, Any]] = []
        self._kept = False

    def __enter__(self) -> _Transaction:
        return self

    def set(self, owner: nn.Module, name: str, value: Any) -> None:
        """Set an attribute; a parameter by its module's own way, which keeps what else refers to it."""
        self._undo.append((owner, name, getattr(owner, name)))
        setattr(owner, name, value)

    def attributes(self) -> dict[str, tuple[Any, Any]]:
        """(before, after) of what is no tensor, by name."""
        paths = {id(module): path + "." if path else "" for path, module in self._model.named_modules()}
        return {
            paths[id(owner)] + name: (old, getattr(owner, name))
            for owner, name, old in self._undo
            if not isinstance(old, Tensor)
        }

    def keep(self) -> None:
        """Let the changes stand."""
        self._kept = True

    def __exit__(self, *_: object) -> None:
        if not self._kept:
            for owner, name, value in reversed(self._undo):
                setattr(owner, name, value)


def _replace_tensors(transaction: _Transaction, tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """The program's values under every name that a tensor has; tied ones stay tied."""
    names: dict[int, list[str]] = defaultdict(list)
    for name, old in own.items():
        names[id(old)].append(name)
    for aliases in names.values():
        source = next((name for name in aliases if name in tensors), None)
        if source is None:
            continue
        new = _like(own[source], tensors[source])
        for name in aliases:
            owner, _, attribute = name.rpartition(".")
            transaction.set(transaction._model.get_submodule(owner), attribute, new)


@contextmanager
def _bare_norms_fitted(transaction: _Transaction, model: nn.Module) -> Iterator[None]:
    """Layer norms without weights, whose shape no tensor tells, take the shape that comes in meanwhile."""
    fitted: dict[nn.Module, Any] = {}

    def fit(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        shape: Any = module.normalized_shape
        coming = tuple(inputs[0].shape[-len(shape) :])
        if coming != tuple(shape):
            module.normalized_shape = fitted[module] = type(shape)(coming)

    bare = [
        module
        for module in model.modules()
        if isinstance(module, (nn.LayerNorm, nn.RMSNorm)) and not module.elementwise_affine
    ]
    hooks = [module.register_forward_pre_hook(fit) for module in bare]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for module, shape in fitted.items():  # what was run inside is as it was again
            transaction.set(module, "normalized_shape", shape)


def _like(old: Tensor, values: Tensor) -> Tensor:
    """A copy of `values` as the kind of tensor that `old` is."""
    data = values.detach().to(old.device).clone()
    if not isinstance(old, nn.Parameter):
        return data
    new = nn.Parameter(data, old.requires_grad)
    new.__dict__.update(old.__dict__)
    return new


# -- the check --------------------------------------------------------------------------------------------------------


def _compared(model: nn.Module, slim: fx.GraphModule, args: tuple[Any, ...], shapes: Shapes) -> tuple[str, float]:
    """Why the module is not the slim program (nothing where it is), and the largest relative difference."""
    device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    with evaluated(model):
        with restored(model):  # a state that it writes to: both run from the same one
            raised = error_on(model, args)
        if raised is not None:
            told = explain_run(model, args, raised) + _to_leave(model, raised, slim.graph, shapes)
            return f"its forward has sizes of the dense network written into it: {told}", float("inf")
        error = relative_error(*(_drawn_alike(network, args) for network in (slim.to(device), model)))
        tolerance = min(TOLERANCE[dtype] for dtype in output_types(slim.graph))
        if tolerance < error:
            exact = _error_in_double(model, slim, args)
            if exact is not None and exact <= TOLERANCE[torch.float64]:
                return "", exact
    if error <= tolerance:
        return "", error
    if drawn := drawing(slim.graph):
        return f"{told_of(drawn[0])}, others than the slim program, so that both cannot be compared", error
    return (
        "it runs but gives other results than the slim program, so its forward has sizes of the dense network written "
        f"into it (a split, a shuffle, a scale): expected a relative difference of at most {tolerance:g}, "
        f"got {error:.3g}; {_PLANNED}"
    ), error


def _drawn_alike(network: nn.Module, args: tuple[Any, ...], run: Callable[..., Any] = outputs) -> Any:
    """The outputs of a network, whose random numbers are by one seed."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return run(network, args)


def _to_leave(model: nn.Module, raised: Exception, graph: fx.Graph, shapes: Shapes) -> str:
    """Advice: the sliced layers whose units come into the layer or the line that fails, or that are parts of it."""
    layer, line = failing_layer(model, raised)[0], user_line(raised).partition(" in ")[0]
    sliced = _narrower(shapes)
    candidates = (
        _layers_before(_reading(layer, graph)),
        sorted(name for name in sliced if layer and name.startswith(layer + ".")),
        _layers_before(_made_at(line, graph)),
    )
    names = next((found for each in candidates if (found := [name for name in each if name in sliced][:3])), [])
    if not names:
        return f"; {_PLANNED}"
    shown = ", ".join(map(repr, names))
    return f"; leave {shown} alone, plan(..., leave=[{shown}]) or --keep-layer {names[0]}, or {_PLANNED}"


def _narrower(shapes: Shapes) -> set[str]:
    """The layers that give fewer units than before."""
    return {name.rpartition(".")[0] for name, (old, new) in shapes.items() if old[:1] != new[:1] and len(old) > 1}


def _made_at(line: str, graph: fx.Graph) -> list[fx.Node]:
    """The calls that a line of the user's own makes, `file:line`."""
    return [node for node in graph.nodes if line and node.op == "call_function" and source_line(node) == line]


def _reading(layer: str, graph: fx.Graph) -> list[fx.Node]:
    """The first call that reads the weights of a layer."""
    return [node for node in graph.nodes if any(_is_of(n, layer) for n in node.all_input_nodes)][:1]


def _layers_before(calls: Sequence[fx.Node]) -> list[str]:
    """The names of the nearest layers with weights whose results calls take."""
    waiting = [node for call in calls for node in _calls_read(call)]
    found: dict[str, None] = {}
    seen = set(waiting)
    while waiting:
        node = waiting.pop(0)
        producer = _layer_of(node)
        if producer is not None:
            found.setdefault(producer)
            continue
        fresh = [n for n in _calls_read(node) if n not in seen]
        seen.update(fresh)
        waiting += fresh
    return list(found)


def _calls_read(node: fx.Node) -> list[fx.Node]:
    return [other for other in node.all_input_nodes if other.op == "call_function"]


def _layer_of(node: fx.Node) -> str | None:
    """The name of the layer with weights that a call is; None for a normalisation and for what has none."""
    weights = [str(n.target) for n in node.all_input_nodes if n.op == "get_attr"]
    if kind_of(node.target) is Kind.NORMALISATION or not any(name.endswith(".weight") for name in weights):
        return None
    return own_name(weights[0]).rpartition(".")[0]


def _is_of(node: fx.Node, layer: str) -> bool:
    return node.op == "get_attr" and own_name(str(node.target)).rpartition(".")[0] == layer


@contextmanager
def evaluated(model: nn.Module) -> Iterator[None]:
    """Run the model in eval mode; it is as before afterwards."""
    with restored(model), torch.no_grad(), quiet_torch():
        model.eval()
        yield


def _error_in_double(model: nn.Module, slim: nn.Module, args: tuple[Any, ...]) -> float | None:
    """The same with copies in float64, which tells rounding from a difference; None where they do not run so."""
    try:
        copies = copy.deepcopy(slim), copy.deepcopy(model)
    except Exception:  # whatever a model's own copying raises: float32 decides alone
        return None
    exact = [_drawn_alike(network, args, outputs_in_float64) for network in copies]
    return None if exact[0] is None or exact[1] is None else relative_error(exact[0], exact[1])
