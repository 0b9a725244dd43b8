"""The parameters, buffers and constants of a program, under the names that they go by."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from torch import Tensor
from torch.export import ExportedProgram


class Tensors:
    """A program's tensors; tied ones are known by the first of their names."""

    def __init__(self, program: ExportedProgram) -> None:
        self._named: dict[str, Any] = {**program.constants, **program.state_dict}
        self._first = _first_name_of_each_storage(self._named)
        self._names: dict[str, list[str]] = defaultdict(list)
        for name, first in self._first.items():
            self._names[first].append(name)
        specs = program.graph_signature.input_specs
        self._readers = {self._first.get(spec.target): spec.arg.name for spec in reversed(specs) if spec.target}

    def __getitem__(self, name: str) -> Any:
        return self._named[name]

    def first_name(self, name: str) -> str:
        """The first of the names that a tensor goes by."""
        return self._first.get(name, name)

    def aliases(self, first: str) -> list[str]:
        """Every name that the tensor `first` goes by; tied weights have several."""
        return self._names.get(first, [])

    def rank(self, name: str) -> int:
        """The number of dims of a parameter, buffer or constant tensor; 0 for what is none."""
        tensor = self._named.get(name)
        return tensor.dim() if isinstance(tensor, Tensor) else 0

    def reader(self, first: str) -> str:
        """The name of the placeholder that holds the tensor `first`."""
        return self._readers[first]


def is_inexact(tensor: Tensor) -> bool:
    """Whether it holds floating-point or complex numbers."""
    return tensor.is_floating_point() or tensor.is_complex()


def _first_name_of_each_storage(tensors: dict[str, Any]) -> dict[str, str]:
    """Name -> the first name that the same memory goes by; tied weights export under several."""
    first: dict[Any, str] = {}
    aliases = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, Tensor) and tensor.numel():
            key = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
            aliases[name] = first.setdefault(key, name)
    return aliases
