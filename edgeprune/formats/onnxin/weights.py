"""The constants of a file as parameters and buffers of a module, by names that a module can have."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from edgeprune.formats.onnxin.known import Known, known_of

_OWN = re.compile(r"[A-Za-z_]\w*(\.\w+)+")  # as PyTorch names a weight, e.g. "layer1.0.conv1.weight"
_ODD = re.compile(r"[^A-Za-z0-9_.]+")


class Weights(nn.Module):
    """What a network holds; each constant is held once it was first read, as the operator that reads it wants it.

    `constants` are those of the file and those that follow from them. Once `sealed`, nothing more is held.
    """

    def __init__(self, constants: Mapping[str, Tensor], uses: Mapping[str, int]) -> None:
        super().__init__()
        self.constants: dict[str, Tensor] = dict(constants)
        self.origins: dict[str, str] = {}  # of a constant that follows from another
        self.uses = dict(uses)
        self.sealed = False
        self._numbers: dict[str, Known] = {}
        self._places: dict[tuple[str, str], str] = {}

    def held(self, key: str, form: str, make: Callable[[], Tensor], trained: bool, name: str) -> Tensor:
        """The tensor of constant `key` in this `form`: a parameter where it is `trained`, else a buffer.

        The first to read it names it and says what it is.
        """
        place = self._places.get((key, form))
        if place is None:
            if self.sealed:
                return make()
            place = self._register(self._free_name(name), make().contiguous(), trained)
            self._places[key, form] = place
        owner, _, leaf = place.rpartition(".")
        tensor: Tensor = getattr(self.get_submodule(owner), leaf)
        return tensor

    def keep_first_row(self, key: str) -> None:
        """Hold the first row `(1, ...)` alone of a constant whose rows are all the same, in its one form."""
        self.constants[key] = row = self.constants[key][:1]
        place = self._places.get((key, ""))
        if place is not None:
            owner, _, leaf = place.rpartition(".")
            tensor = getattr(self.get_submodule(owner), leaf)
            kept = nn.Parameter(row.clone()) if isinstance(tensor, nn.Parameter) else row.clone()
            setattr(self.get_submodule(owner), leaf, kept)

    def has_one_form(self, key: str) -> bool:
        """Whether a constant is held as the file has it, or not held."""
        return all(form == "" for other, form in self._places if other == key)

    def numbers(self, key: str) -> Known:
        """The numbers of a constant, kept once they were read: while it is exported, no tensor tells any."""
        if key not in self._numbers:
            self._numbers[key] = known_of(self.constants[key])
        return self._numbers[key]

    def name_for(self, key: str, node: str, role: str) -> str:
        """A weight's own name where it tells something, else that of its layer, e.g. "layer1.0.conv1.weight"."""
        own = self.origins.get(key, key)
        if _OWN.fullmatch(own):
            return own
        layer = _layer(node)
        return f"{layer}.{role}" if layer and "_" + role not in own else own

    def _register(self, place: str, tensor: Tensor, trained: bool) -> str:
        owner, _, leaf = place.rpartition(".")
        module: nn.Module = self
        for part in owner.split(".") if owner else ():
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        if trained and tensor.is_floating_point():
            module.register_parameter(leaf, nn.Parameter(tensor.clone()))
        else:
            module.register_buffer(leaf, tensor.clone())
        return place

    def _free_name(self, name: str) -> str:
        """A dotted name that is free, of letters, digits and underscores."""
        parts = [part for part in _ODD.sub("_", name).strip("_.").split(".") if part] or ["weight"]
        if not self._fits(parts):
            parts = ["_".join(parts)]
        base, number = parts[-1], 1
        while not self._fits(parts):
            number += 1
            parts = [*parts[:-1], f"{base}_{number}"]
        return ".".join(parts)

    def _fits(self, parts: list[str]) -> bool:
        """Whether nothing has the name, nor a tensor or an attribute that of a module on its way."""
        module: nn.Module = self
        for part in parts[:-1]:
            inner = module._modules.get(part)
            if inner is None:
                return not hasattr(module, part)
            module = inner
        return not hasattr(module, parts[-1])


def _layer(node: str) -> str:
    """The layer that a node's name tells, e.g. "layer1.0.conv1" of "/layer1/layer1.0/conv1/Conv"."""
    found: list[str] = []
    for part in node.strip("/").split("/")[:-1]:
        if found and part.startswith(found[-1] + "."):
            found[-1] = part
        else:
            found.append(part)
    return ".".join(found)


def is_float(tensor: Tensor) -> bool:
    """Whether a constant is one that can be trained: floats, more than one."""
    return tensor.is_floating_point() and tensor.numel() > 1 and tensor.dim() > 0 and tensor.dtype is not torch.bool
