"""A network that is run node by node on many batches at once, so that a weight may change before it is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from edgeprune.graph.owninputs import spared

Values = dict[fx.Node, Any]


class Lockstep:
    """Every batch of a network stands at the same node, with the values that are still to be read.

    A batch may join later: it is run up to there by itself. `numbers` tells the batches apart. `peak` is the most
    memory that the values took since it was set to 0, where the network `is_weighed`.
    """

    def __init__(self, module: fx.GraphModule, is_weighed: bool = False) -> None:
        self._interpreter = fx.Interpreter(module)
        self._nodes: list[fx.Node] = list(module.graph.nodes)
        self.position = 0
        self.batches: list[Values] = []
        self.numbers: list[int] = []
        self.peak = 0
        self._is_weighed = is_weighed

    @property
    def is_done(self) -> bool:
        """Whether every node has been run."""
        return self.position == len(self._nodes)

    @property
    def next(self) -> fx.Node:
        """The node that is run next."""
        return self._nodes[self.position]

    @property
    def n_bytes(self) -> int:
        """The memory that the values of all batches take now, without the network's own tensors."""
        values = [value for batch in self.batches for node, value in batch.items() if node.op != "get_attr"]
        tensors = [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
        return sum(storages.values())

    def join(self, leaves: Sequence[Any], number: int) -> None:
        """Let one more batch come to where the others are; `leaves` are its inputs in order, which stay as they are."""
        inputs = [node for node in self._nodes if node.op == "placeholder"]
        values: Values = dict(zip(inputs, spared(self._interpreter, leaves), strict=True))
        for node in self._nodes[: self.position]:
            self._run(node, values)
        self.batches.append(values)
        self.numbers.append(number)

    def tried(self, values: Values) -> Any:
        """What the next node gives on one batch; it stays the next."""
        return self._result(self.next, values)

    def step(self) -> None:
        """Run the next node on every batch."""
        if self._is_weighed:
            self.peak = max(self.peak, self.n_bytes)
        for values in self.batches:
            self._run(self.next, values)
        self.position += 1

    def _run(self, node: fx.Node, values: Values) -> None:
        if node.op == "output":
            values.clear()
            return
        if node.op != "placeholder":
            values[node] = self._result(node, values)
        for read in self._interpreter.user_to_last_uses.get(node, ()):
            values.pop(read, None)

    def _result(self, node: fx.Node, values: Values) -> Any:
        self._interpreter.env = values
        with torch.no_grad():
            return self._interpreter.run_node(node)
