"""A network that runs the operators of an ONNX file; its export writes them down as a graph of PyTorch's."""

from __future__ import annotations

import inspect
import keyword
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from edgeprune.errors import InputError
from edgeprune.formats.onnxin import rules
from edgeprune.formats.onnxin.batchdims import as_in_file, batch_first
from edgeprune.formats.onnxin.call import Call, Value
from edgeprune.formats.onnxin.choices import chosen_branch
from edgeprune.formats.onnxin.freeing import BATCH, grown_dims
from edgeprune.formats.onnxin.known import Known
from edgeprune.formats.onnxin.nodes import Graph, Node
from edgeprune.formats.onnxin.weights import Weights, is_float
from edgeprune.lines import first_line

# What takes one row in the place of equal ones: a batch of a constant.
_SPREADING = {
    "Add", "Sub", "Mul", "Div", "Pow", "Mod", "Min", "Max", "Mean", "Sum", "Where", "And", "Or", "Xor", "Equal",
    "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "MatMul", "Concat",
}  # fmt: skip
_MOVES = {"Transpose", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Cast"}


class OnnxNetwork(Weights):
    """The network of an ONNX file; takes its inputs in their order, gives a dict where it has several outputs."""

    free_batch_advice = (
        "export it again with a batch that is free throughout its graph"  # where a capture finds it fixed
    )

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph.constants, graph.uses)
        self.graph = graph
        self.base: dict[str, tuple[int, ...]] = {}
        self.steps = self._folded(graph.nodes)

    def run(self, inputs: Sequence[Tensor], record: bool = False) -> Any:
        """What the network gives out; with `record` the shapes are kept as those of the batch that the file states."""
        values = self._values(inputs)
        if record:
            tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
            self.base = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
            self.base[BATCH] = tuple(inputs[0].shape[:1])
        return self._outputs(values)

    def end_of_batch(self, inputs: Sequence[Tensor]) -> Node | None:
        """The first operator that is given another batch than the file's and gives none on, e.g. a Gather of a row.

        It is of a file that states its batch, whose shapes were recorded.
        """
        values = self._values(inputs)
        for node in self.steps:
            given = [name for name in node.outputs if isinstance(values.get(name), Tensor)]
            taken = any(self._follows(name, values) for name in node.inputs)
            if given and taken and not any(self._follows(name, values) for name in given):
                return node
        return None

    def free_constants(self) -> None:
        """Let constants that were repeated for the batch which the file states, e.g. a class token, follow any other.

        Of one with equal rows the first is kept, where all that read it spread it over the batch again.
        """
        (batch,) = self.base[BATCH]
        if batch == 1:
            return
        for name in dict.fromkeys(name for node in self.steps for name in node.inputs if name in self.constants):
            if self._is_repeated(name, batch) and self.has_one_form(name) and name not in self.graph.outputs:
                self.keep_first_row(name)

    def _is_repeated(self, name: str, batch: int) -> bool:
        """Whether a constant has so many equal rows, and one would do for all that read it."""
        constant = self.constants[name]
        if constant.dim() < 2 or constant.shape[0] != batch or not constant.equal(constant[:1].expand_as(constant)):
            return False
        readers = (node for node in self.steps if name in node.inputs)
        return all(self._spreads(node, constant.dim(), batch) for node in readers)

    def _spreads(self, node: Node, n_dims: int, batch: int) -> bool:
        """Whether a node gives the batch to one row of a constant of so many dims, as another of its inputs has it."""
        shapes = [self.base[name] for name in node.inputs if name in self.base]
        beside = any(len(shape) == n_dims and shape[0] == batch for shape in shapes)
        axis = node.attributes.get("axis", 0) if node.op == "Concat" else 1
        return node.op in _SPREADING and beside and axis % n_dims != 0 and (node.op != "MatMul" or n_dims > 2)

    def _follows(self, name: str, values: Mapping[str, Value]) -> bool:
        """Whether a tensor has the dims that the file says, one of them grown with the batch."""
        value, base = values.get(name), self.base.get(name)
        if not isinstance(value, Tensor) or base is None or value.dim() != len(base):
            return False
        return bool(grown_dims(value.shape, base))

    def _values(self, inputs: Sequence[Tensor]) -> dict[str, Value]:
        values: dict[str, Value] = {
            given.name: as_in_file(tensor, given.batch_dim)
            for given, tensor in zip(self.graph.inputs, inputs, strict=True)
        }
        waiting, ran, is_decided = list(reversed(self.steps)), [], False
        while waiting:
            node = waiting.pop()
            call = Call(node, self.graph.opset, values, self, self.base)
            results = self._results(node, call)
            values.update(zip(node.outputs, results, strict=False))
            if node.branches:
                node, chosen = chosen_branch(call)
                taken_in = self._folded(chosen)
                if len(taken_in) < len(chosen):  # so that what moves a weight which it chose moves a constant
                    waiting = list(reversed(self._folded(reversed(waiting))))
                waiting += reversed(taken_in)
                is_decided = True
            ran.append(node)
        if is_decided:
            self.steps = ran
        return values

    def _results(self, node: Node, call: Call) -> tuple[Value, ...]:
        try:
            found = rules.apply(call)
        except InputError as error:
            raise InputError(f"{node.told}: {error}") from error
        except KeyError as error:
            raise InputError(f"{node.told}: expected what it reads to be there by then, got no {error}") from error
        except (RuntimeError, TypeError, ValueError, IndexError, ArithmeticError, MemoryError) as error:
            if _is_of_torch(error):  # how an export finds out
                raise
            raise InputError(f"{node.told}: {first_line(error)}") from error
        return found if isinstance(found, tuple) else (found,)

    def _outputs(self, values: dict[str, Value]) -> Any:
        found: dict[str, Tensor] = {}
        for name in self.graph.outputs:
            value = values.get(name)
            if value is None:
                constant = self.constants.get(name)
                if constant is None:
                    raise InputError(f"output {name!r}: expected one that an operator gives, got none")
                value = self.held(name, "", lambda constant=constant: constant, False, name)  # type: ignore[misc]
            tensor = value.tensor() if isinstance(value, Known) else value
            tensor = batch_first(tensor, self.graph.batch_dims.get(name, 0))
            found[name] = tensor.clone() if any(tensor is value for value in found.values()) else tensor
        return next(iter(found.values())) if len(found) == 1 else found

    def _folded(self, nodes: Iterable[Node]) -> list[Node]:
        """The operators that are left once those on constants alone have run."""
        left: list[Node] = []
        for node in nodes:
            rules.check_known(node)
            if node.branches or not self._is_constant(node):
                left.append(node)
                continue
            call = Call(node, self.graph.opset, {}, self, folding=True)
            for name, value in zip(node.outputs, self._results(node, call), strict=False):
                self.constants[name] = value.tensor() if isinstance(value, Known) else value.detach()
                sources = [given for given in node.inputs if given and is_float(self.constants[given])]
                if sources:
                    self.origins[name] = self.origins.get(sources[0], sources[0])
        return left

    def _is_constant(self, node: Node) -> bool:
        """Whether all that it reads is constant; a weight that others read too is moved at each run and stays one."""
        given = [name for name in node.inputs if name]
        if not all(name in self.constants for name in given):
            return False
        tied = any(self.uses.get(name, 0) > 1 and is_float(self.constants[name]) for name in given)
        return not (tied and node.op in _MOVES and node.op != "Identity")


def _is_of_torch(error: Exception) -> bool:
    """Whether an error is one of the symbols of an export, which PyTorch itself wants to see."""
    return type(error).__module__.startswith(("torch.fx", "torch._dynamo", "torch.export", "torch.utils"))


def argument_names(graph: Graph) -> list[str]:
    """The names of the inputs as arguments of a function, e.g. "input_1" for "input.1"."""
    names: list[str] = []
    for given in graph.inputs:
        name = re.sub(r"\W", "_", given.name, flags=re.ASCII)
        name = f"input_{name}" if not name or name[0].isdigit() or keyword.iskeyword(name) or name == "self" else name
        while name in names:
            name += "_"
        names.append(name)
    return names


def network_of(graph: Graph) -> OnnxNetwork:
    """The network of a graph, whose forward takes the inputs by their names."""

    def forward(self: OnnxNetwork, *inputs: Tensor) -> Any:
        return self.run(inputs)

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, kind, annotation=torch.Tensor) for name in ["self", *argument_names(graph)]]
    forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    made: OnnxNetwork = type("OnnxNetwork", (OnnxNetwork,), {"forward": forward})(graph)
    return made.eval()
