"""An exported graph as a module that trains: its batch norm and dropout follow its mode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn

from edgeprune.graph import binding
from edgeprune.graph.given import give_copy
from edgeprune.graph.memory import is_in_place, is_view
from edgeprune.graph.modes import recompile

_TRAIN_FLAGS = {"train", "training", "use_input_stats"}


class TrainableModule(fx.GraphModule):
    """An exported graph as a module whose batch norm and dropout follow `.train()` and `.eval()`.

    Flags that were already on when the model was captured in eval mode (batch norm without running statistics, dropout
    meant to stay on) are left alone. A batch norm whose momentum is 0 never learns statistics: it goes by those that it
    has in training too, or it would be trained by others than it is judged by. `has_trained` says whether it ever was
    in training mode; without `draws` only batch norm follows, and what is drawn at random stays out, as in eval mode.
    """

    has_trained: bool = False
    draws: bool = True

    def __init__(self, root: nn.Module, graph: fx.Graph) -> None:
        for node in graph.nodes:
            flag = train_flag(node)
            if flag is not None and "follows_train" not in node.meta:
                _spell_out(node, flag)
                node.meta["follows_train"] = node.args[flag] is False and not _keeps_statistics(node)
        super().__init__(root, graph)

    def train(self, mode: bool = True) -> TrainableModule:
        """Set the mode of every batch norm and dropout in the graph that follows it."""
        super().train(mode)
        self.has_trained = self.has_trained or mode
        wanted = [(node, flag, mode and (self.draws or _is_norm(node))) for node, flag in _following(self.graph)]
        changed = [(node, flag, value) for node, flag, value in wanted if node.args[flag] is not value]
        for node, flag, value in changed:
            node.update_arg(flag, value)
        if changed:
            recompile(self)
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> fx.GraphModule:
        copied = super().__deepcopy__(memo)
        copied.__dict__["has_trained"] = self.has_trained
        give_copy(self, copied)
        return copied


def let_state_train(module: fx.GraphModule) -> None:
    """Let a graph that writes to buffers run forward and backward again and again, in place.

    What is written takes no gradient along: a state that a forward leaves is a number to the next one, as where it is
    written under `torch.no_grad()`, which a captured graph does not tell. What is read of it before is a copy, as the
    backward pass still needs it.
    """
    writes = [node for node in module.graph.nodes if is_in_place(node) and _root(node).op == "get_attr"]
    for write in writes:
        _write_numbers_alone(write)
        _read_a_copy(_root(write), write)
    if writes:
        recompile(module)


def _root(node: fx.Node) -> fx.Node:
    """What an in-place operator writes to in the end: the tensor that its target shows, or was written to before."""
    while is_in_place(node) or is_view(node):
        node = node.args[0]  # type: ignore[assignment]
    return node


def _write_numbers_alone(write: fx.Node) -> None:
    """Detach what an in-place operator takes beside its target."""
    target = write.args[0]
    for source in write.all_input_nodes:
        if source is target or source.target is torch.ops.aten.detach.default:
            continue
        with write.graph.inserting_before(write):
            detached = write.graph.call_function(torch.ops.aten.detach.default, (source,))
        detached.meta = dict(source.meta)
        write.replace_input_with(source, detached)


def _read_a_copy(buffer: fx.Node, write: fx.Node) -> None:
    """Let what reads a buffer of floats before the write read a copy, which the write does not change."""
    readers = [user for user in buffer.users if user < write and not (is_in_place(user) or is_view(user))]
    readers = [user for user in readers if user.target is not torch.ops.aten.clone.default]
    if not readers:
        return
    with buffer.graph.inserting_after(buffer):
        copied = buffer.graph.call_function(torch.ops.aten.clone.default, (buffer,))
    copied.meta = dict(buffer.meta)
    for reader in readers:
        reader.replace_input_with(buffer, copied)


def _following(graph: fx.Graph) -> list[tuple[fx.Node, int]]:
    """The operators that follow the module's mode, with the position of the argument that says it."""
    found = [(node, train_flag(node)) for node in graph.nodes if node.meta.get("follows_train")]
    return [(node, flag) for node, flag in found if flag is not None]


def _keeps_statistics(node: fx.Node) -> bool:
    """Whether a batch norm's running statistics stay as they are."""
    given = {argument.name: value for argument, value in zip(schema_arguments(node), node.args, strict=False)}
    return bool({**given, **node.kwargs}.get("momentum") == 0)


def _is_norm(node: fx.Node) -> bool:
    """Whether an operator trains by taking the statistics of what it sees, rather than by drawing at random."""
    return "norm" in str(node.target)


def _spell_out(node: fx.Node, position: int) -> None:
    """Write out defaults, so that the node has an argument at `position`."""
    for argument in schema_arguments(node)[len(node.args) : position + 1]:
        given = {**node.kwargs}
        node.args = (*node.args, given.pop(argument.name, argument.default_value))
        node.kwargs = given


def train_flag(node: fx.Node) -> int | None:
    """The position of the argument that tells an operator whether it trains, or None where it has none."""
    schema = binding.schema_of(node) if node.op == "call_function" else None
    names = [] if schema is None else [argument.name for argument in schema.arguments]
    return next((position for position, name in enumerate(names) if name in _TRAIN_FLAGS), None)


def schema_arguments(node: fx.Node) -> Sequence[Any]:
    """The arguments of an operator by its schema."""
    return node.target._schema.arguments  # type: ignore[union-attr]
