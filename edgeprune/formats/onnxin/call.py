"""One operator as its rule sees it: its inputs as tensors, as weights or as known numbers, and its attributes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from edgeprune.errors import InputError
from edgeprune.formats.onnxin.known import Known, Size
from edgeprune.formats.onnxin.nodes import Node
from edgeprune.formats.onnxin.weights import Weights, is_float

MOST_KNOWN = 4096  # numbers of a constant that shapes are made of
Value = Tensor | Known


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """A node with the values of its inputs.

    `base` are the shapes that values have at the batch which the file states, where it is to be freed. While constants
    are `folding`, nothing is held as a weight.
    """

    node: Node
    opset: int
    values: Mapping[str, Value]
    weights: Weights
    base: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    folding: bool = False

    def __len__(self) -> int:
        return len(self.node.inputs)

    def has(self, position: int) -> bool:
        """Whether there is such an input."""
        return position < len(self.node.inputs) and self.node.inputs[position] != ""

    def constant(self, position: int) -> Tensor | None:
        """An input that is constant, as the file has it; None for any other."""
        return self.weights.constants.get(self.node.inputs[position]) if self.has(position) else None

    def tensor(self, position: int, role: str = "constant") -> Tensor:
        """An input as a tensor; a constant is held as a buffer."""
        return self._tensor(position, role, trained=False)

    def operand(self, position: int, role: str = "bias") -> Tensor:
        """An input as a tensor; a constant of several floats is held as a parameter."""
        constant = self.constant(position)
        return self._tensor(position, role, trained=constant is not None and is_float(constant))

    def weight(
        self, position: int, role: str = "weight", form: str = "", make: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """An input as a weight: a constant is held as a parameter.

        Args:
            position: of the input.
            role: what it is to the layer, e.g. `"bias"`.
            form: what `make` does, e.g. `"transposed"`; a constant that others read too stays as it is.
            make: how the operator wants the tensor.
        """
        constant, make = self.constant(position), make or (lambda tensor: tensor)
        if constant is None:
            return make(self.tensor(position))
        key = self.node.inputs[position]
        if form and self.weights.uses.get(key, 0) > 1:
            return make(self._tensor(position, role, trained=True))
        if self.folding:
            return make(constant)
        name = self.weights.name_for(key, self.node.name, role)
        return self.weights.held(key, form, lambda: make(constant), trained=True, name=name)

    def optional(self, position: int, role: str = "bias") -> Tensor | None:
        """A weight, or None where it is left out."""
        return self.weight(position, role) if self.has(position) else None

    def made(self, form: str, tensor: Tensor, trained: bool = False) -> Tensor:
        """A tensor that the rule makes of constants alone, held under the node's output."""
        if self.folding:
            return tensor
        key = self.node.outputs[0]
        name = self.weights.name_for(key, self.node.name, form)
        return self.weights.held(key, form, lambda: tensor, trained=trained, name=name)

    def _tensor(self, position: int, role: str, trained: bool) -> Tensor:
        if not self.has(position):
            raise InputError(f"expected an input {position + 1}, got none")
        key = self.node.inputs[position]
        constant = self.weights.constants.get(key)
        if constant is None:
            value = self.values[key]
            return value.tensor() if isinstance(value, Known) else value
        if self.folding:
            return constant
        name = self.weights.name_for(key, self.node.name, role)
        return self.weights.held(key, "", lambda: constant, trained=trained, name=name)

    def is_known(self, position: int) -> bool:
        """Whether the numbers of an input are known while the network is captured."""
        if not self.has(position):
            return False
        constant = self.constant(position)
        if constant is not None:
            return constant.numel() <= MOST_KNOWN
        return isinstance(self.values[self.node.inputs[position]], Known)

    def known(self, position: int) -> Known:
        """The numbers of an input; raises InputError where they come of the data."""
        if self.constant(position) is not None:
            return self.weights.numbers(self.node.inputs[position])
        value = self.values.get(self.node.inputs[position]) if self.has(position) else None
        if not isinstance(value, Known):
            raise InputError(f"expected input {position + 1} to be known before it runs, got one that is computed")
        return value

    def ints(self, position: int) -> list[Size]:
        """Sizes, indices or axes in an input."""
        return list(self.known(position).values.flat)

    def scalar(self, position: int) -> Any:
        """The one number in an input."""
        values = self.ints(position)
        if len(values) != 1:
            raise InputError(f"expected one number as input {position + 1}, got {len(values)}")
        return values[0]

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute, or what stands for it where it is left out."""
        return self.node.attributes.get(name, default)

    def text(self, name: str, default: str) -> str:
        """An attribute that is a text."""
        return str(self.attribute(name, default))

    def listed(self, name: str, position: int) -> list[Size] | None:
        """A list that is an attribute in earlier opsets and an input in later ones; None where it is left out."""
        if name in self.node.attributes:
            return list(self.node.attributes[name])
        return self.ints(position) if self.has(position) else None

    def base_of(self, name: str) -> tuple[int, ...] | None:
        """The shape of a value at the batch that the file states, where it is to be freed."""
        return self.base.get(name)

    def refuse_if(self, wrong: bool, expected: str, got: object) -> None:
        """Raise InputError for what the rule does not take."""
        if wrong:
            raise InputError(f"expected {expected}, got {got}")


def axis_of(axis: int, n_dims: int) -> int:
    """An axis counted from the front; raises InputError where there is none such."""
    if not -n_dims <= axis < n_dims:
        raise InputError(f"expected an axis of {n_dims}, got {axis}")
    return int(axis) % n_dims


def axes_of(axes: Sequence[Size], n_dims: int) -> list[int]:
    """Axes counted from the front."""
    return [axis_of(axis, n_dims) for axis in axes]
