"""An exported graph as a module that trains: its batch norm and dropout follow its mode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx, nn

from edgeprune.graph import binding
from edgeprune.graph.given import give_copy
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
