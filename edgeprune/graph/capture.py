"""Capture: a module becomes an exported program with a dynamic batch; nothing of the user's classes is needed after."""

from __future__ import annotations

import copy
import inspect
import os
import traceback
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.export import Dim, ExportedProgram

from edgeprune.errors import CaptureError

# Position of the train flag among an operator's arguments.
_TRAIN_FLAG = {
    torch.ops.aten.batch_norm.default: 5,
    torch.ops.aten.instance_norm.default: 5,
    torch.ops.aten.dropout.default: 2,
    torch.ops.aten.dropout_.default: 2,
    torch.ops.aten.feature_dropout.default: 2,
    torch.ops.aten.feature_dropout_.default: 2,
    torch.ops.aten.alpha_dropout.default: 2,
    torch.ops.aten.alpha_dropout_.default: 2,
    torch.ops.aten.feature_alpha_dropout.default: 2,
    torch.ops.aten.rrelu.default: 3,
}


class TrainableModule(fx.GraphModule):
    """An exported graph as a module whose batch norm and dropout follow `.train()` and `.eval()`.

    Flags that were already on when the model was captured in eval mode (batch norm without running
    statistics, dropout meant to stay on) are left alone.
    """

    def __init__(self, root: nn.Module, graph: fx.Graph) -> None:
        super().__init__(root, graph)
        for node in self.graph.nodes:
            if node.target in _TRAIN_FLAG and "follows_train" not in node.meta:
                _spell_out(node, _TRAIN_FLAG[node.target])
                node.meta["follows_train"] = node.args[_TRAIN_FLAG[node.target]] is False

    def train(self, mode: bool = True) -> TrainableModule:
        """Set the mode of every batch norm and dropout in the graph that follows it."""
        super().train(mode)
        for node in self.graph.nodes:
            if node.meta.get("follows_train"):
                node.update_arg(_TRAIN_FLAG[node.target], mode)
        self.recompile()
        return self


def _spell_out(node: fx.Node, position: int) -> None:
    """Write out defaults, so that the node has an argument at `position`."""
    for argument in schema_arguments(node)[len(node.args) : position + 1]:
        given = {**node.kwargs}
        node.args = (*node.args, given.pop(argument.name, argument.default_value))
        node.kwargs = given


def schema_arguments(node: fx.Node) -> Sequence[Any]:
    """The arguments of an operator by its schema."""
    return node.target._schema.arguments  # type: ignore[union-attr]


class Program(ExportedProgram):
    """An `ExportedProgram` whose `.module()` can be trained."""

    @classmethod
    def adopt(cls, program: ExportedProgram) -> Program:
        """The same program, as this class; nothing is copied."""
        adopted = copy.copy(program)
        adopted.__class__ = cls
        return adopted  # type: ignore[return-value]

    def module(self, check_guards: bool = False) -> fx.GraphModule:
        """A fresh module with a copy of this program's weights; starts in eval mode and follows `.train()`."""
        unlifted = super().module(check_guards=check_guards)
        for node in list(unlifted.graph.nodes):
            if node.op == "call_module" and node.target == "_guards_fn":
                unlifted.graph.erase_node(node)
        module = TrainableModule(unlifted, unlifted.graph)
        _own_tensors(module)
        return module.eval()


def _own_tensors(module: nn.Module) -> None:
    """Replace every parameter and buffer by a copy of its own; tied ones stay tied."""
    copies: dict[int, torch.Tensor] = {}
    for owner in module.modules():
        for name, tensor in (*owner.named_parameters("", False, False), *owner.named_buffers("", False, False)):
            if id(tensor) not in copies:
                data = tensor.detach().clone()
                is_parameter = isinstance(tensor, nn.Parameter)
                copies[id(tensor)] = nn.Parameter(data, tensor.requires_grad) if is_parameter else data
            setattr(owner, name, copies[id(tensor)])


def capture(model: nn.Module, example_inputs: torch.Tensor | Sequence[Any]) -> Program:
    """Export `model` in eval mode with a dynamic batch (the first dim of every input tensor).

    Args:
        model: the network; left as it was.
        example_inputs: one tensor `(batch, ...)` or the sequence of positional arguments. A batch of 1 is doubled,
            so that no size is mistaken for a broadcast.

    Raises:
        CaptureError: the forward cannot be traced; names the line that stopped it.
    """
    if isinstance(example_inputs, torch.Tensor):
        example_inputs = (example_inputs,)
    args = tuple(_at_least_two(value) for value in example_inputs)
    was_training = {name: module.training for name, module in model.named_modules()}
    model.eval()
    try:
        return _export(model, args)
    finally:
        for name, module in model.named_modules():
            module.training = was_training[name]


def reexport(module: fx.GraphModule, args: tuple[Any, ...]) -> Program:
    """Export an edited graph again; `args` as for `capture`."""
    return _export(module, args)


def example_inputs(program: ExportedProgram) -> tuple[Any, ...]:
    """Zeros of the shapes and dtypes that a program takes, with a batch of 2, as its positional arguments.

    Raises:
        CaptureError: the program takes keyword arguments.
    """
    values = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    flat = [_example(values[name]) if isinstance(name, str) else name for name in program.graph_signature.user_inputs]
    args, kwargs = torch.utils._pytree.tree_unflatten(flat, program.call_spec.in_spec)
    if kwargs:
        raise CaptureError(f"the program takes keyword arguments ({', '.join(kwargs)}); expected positional ones alone")
    return tuple(args)


def _example(val: Any) -> Any:
    if not isinstance(val, torch.Tensor):
        return size_hint(val)
    return torch.zeros([size_hint(size) for size in val.shape], dtype=val.dtype)


def size_hint(size: Any) -> Any:
    """A symbolic size as the int that it had at capture, at least 2; other things unchanged."""
    if isinstance(size, torch.SymInt):
        hint = size.node.hint
        return int(hint) if hint is not None and hint > 1 else 2
    return size


def _export(model: nn.Module, args: tuple[Any, ...]) -> Program:
    batch = Dim("batch", min=1)
    # A one-tuple-deep tree: every tensor argument has its first dim dynamic.
    shapes = tuple({0: batch} if isinstance(value, torch.Tensor) and value.dim() else None for value in args)
    try:
        with torch.no_grad():
            return Program.adopt(
                torch.export.export(model, args, dynamic_shapes=_by_signature(model, shapes), strict=False)
            )
    except Exception as error:
        raise CaptureError(_explain(model, error)) from error


def _by_signature(model: nn.Module, shapes: tuple[Any, ...]) -> tuple[Any, ...]:
    """Dynamic shapes follow the forward's signature: `*args` takes them as one nested tuple."""
    parameters = list(inspect.signature(model.forward).parameters.values())
    if parameters and parameters[0].kind is inspect.Parameter.VAR_POSITIONAL:
        return (shapes,)
    return shapes


def _at_least_two(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.dim() and value.shape[0] == 1:
        return torch.cat([value, value])
    return value


def _explain(model: nn.Module, error: Exception) -> str:
    """One line: which class, what stopped the export, and in which line of the user's code."""
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    where = _user_line(error)
    return (
        f"{type(model).__name__} cannot be exported: {reason}"
        + (f" (at {where})" if where else "")
        + "; if only a part of the model depends on the data, export its backbone instead"
    )


def _user_line(error: BaseException) -> str:
    """The innermost frame of the traceback outside of PyTorch and edgeprune, as `file:line in function`."""
    library = (os.path.dirname(torch.__file__), os.path.dirname(os.path.dirname(__file__)))
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(library)]
    return f"{frames[-1].filename}:{frames[-1].lineno} in {frames[-1].name}" if frames else ""
