"""What a file that is made of a program itself takes and gives: names, types, layouts, and what scales its inputs.

An ONNX file is one of several that a phone may load; those that are made of the program have the same inputs and
outputs by the same names, raw where preprocessing is folded, but for the layout of images.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind, TensorArgument
from torch.utils import _pytree as pytree

from edgeprune.data.inputs import spread_shape
from edgeprune.export.front import Preprocessing, feature_scaling
from edgeprune.export.target import Material
from edgeprune.graph.owninputs import spared
from edgeprune.graph.sizes import arguments, size_hint
from edgeprune.graph.specs import file_inputs, input_specs, output_names
from edgeprune.pruning.slim_inputs import gathered
from edgeprune.records import Normalization

Layout = Literal["nhwc", "nchw"]
_TO_LAST, _TO_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)  # the channels of an image
_RANK_OF_IMAGES = 4
NARROWED = {"int64": "int32", "float64": "float32"}  # by converters


@dataclass(frozen=True, slots=True)
class FileValue:
    """An input or an output of a file: its shape with the batch, as numpy names its type, `scaled` by mean and std.

    Their dim counts as in the program, whose images have their channels first.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    channels_last: bool = False
    scaled: Normalization | None = None

    @property
    def described(self) -> dict[str, Any]:
        """As features.json has it; converters make 64 bits 32."""
        layout = {"layout": "nhwc" if self.channels_last else "nchw"} if len(self.shape) == _RANK_OF_IMAGES else {}
        return {"name": self.name, "type": NARROWED.get(self.type, self.type), "shape": list(self.shape), **layout}

    def laid_out(self, array: np.ndarray) -> np.ndarray:
        """An array with its channels first, as the file has it."""
        return np.ascontiguousarray(array.transpose(_TO_LAST)) if self.channels_last else array

    def channels_first(self, array: np.ndarray) -> np.ndarray:
        """An array of the file with its channels first."""
        return array.transpose(_TO_FIRST) if self.channels_last else array


@dataclass(frozen=True, slots=True)
class Signature:
    """All inputs and all outputs of a file, in their order; the shapes are as the file has them."""

    inputs: tuple[FileValue, ...]
    outputs: tuple[FileValue, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values, from which `from_json` makes it again."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Signature:
        """Of what `to_json` gave, through a file."""
        return cls(*(tuple(map(_value_of, value[part])) for part in ("inputs", "outputs")))

    def described(self) -> dict[str, list[dict[str, Any]]]:
        """Inputs and outputs as features.json has them."""
        return {"inputs": [one.described for one in self.inputs], "outputs": [one.described for one in self.outputs]}

    def laid_out(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Inputs as the file takes them."""
        return [value.laid_out(array) for value, array in zip(self.inputs, arrays, strict=True)]

    def channels_first(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Outputs of the file as PyTorch has them; as many as there are."""
        if len(arrays) != len(self.outputs):
            return list(arrays)
        return [value.channels_first(array) for value, array in zip(self.outputs, arrays, strict=True)]


def _value_of(plain: dict[str, Any]) -> FileValue:
    scaled = plain["scaled"]
    own = None if scaled is None else Normalization(tuple(scaled["mean"]), tuple(scaled["std"]), dim=scaled["dim"])
    return FileValue(plain["name"], tuple(plain["shape"]), plain["type"], plain["channels_last"], own)


def signature_of(
    program: ExportedProgram,
    inputs: Sequence[np.ndarray],
    outputs: Sequence[np.ndarray],
    layout: Layout = "nchw",
    scaling: Sequence[Normalization | None] | None = None,
) -> Signature:
    """That of a file of a program.

    Args:
        program: names inputs and outputs as for its ONNX file.
        inputs: one batch, as the file takes it but for the layout.
        outputs: what the program makes of it.
        layout: of images: inputs with four dims, and outputs with four dims where there are such inputs.
        scaling: what is done to each input first, by the file itself.
    """
    of_images = layout == "nhwc"
    numbers = scaling or [None] * len(inputs)
    taken = [
        _value(name, array, of_images, one)
        for name, array, one in zip(_plain_names(file_inputs(program)), inputs, numbers, strict=True)
    ]
    of_images = any(value.channels_last for value in taken)
    given = zip(_plain_names(output_names(program), [value.name for value in taken]), outputs, strict=True)
    return Signature(tuple(taken), tuple(_value(name, array, of_images) for name, array in given))


def _value(name: str, array: np.ndarray, of_images: bool, scaled: Normalization | None = None) -> FileValue:
    channels_last = of_images and array.ndim == _RANK_OF_IMAGES
    shape = tuple(array.shape[dim] for dim in _TO_LAST) if channels_last else array.shape
    return FileValue(name, tuple(map(int, shape)), array.dtype.name, channels_last, scaled)


def _plain_names(names: Iterable[str], taken: Iterable[str] = ()) -> list[str]:
    """The names as words that any language can use, each once."""
    found: list[str] = []
    for name in names:
        plain = re.sub(r"\W", "_", name, flags=re.ASCII)
        plain = plain if re.match(r"[A-Za-z_]", plain) else f"_{plain}"
        candidates = (plain if k == 1 else f"{plain}_{k}" for k in range(1, len(found) + 99))
        found.append(next(one for one in candidates if one not in found and one not in taken))
    return found


def scaling_of(material: Material) -> list[Normalization | None]:
    """What the files of a network do to each input first: nothing unless preprocessing is folded into them."""
    names = file_inputs(material.program)
    if not material.folds:
        return [None] * len(names)
    if material.front is not None:
        parts = material.front.parts
        return [_numbers(parts[name]) if name in parts else None for name in names]
    info = material.info
    features = gathered(material.model.program)
    return [_numbers(Preprocessing(tuple(info.input_shape), info.normalization, features, material.byte_scale))]


def _numbers(preprocessing: Preprocessing) -> Normalization | None:
    """What the scaling of a byte adds is taken into mean and std."""
    if not preprocessing.scales:
        return None
    unit, own = preprocessing.byte_scale or 1.0, feature_scaling(preprocessing)
    mean, std = (tuple(value / unit for value in values) for values in (own.mean, own.std))
    return Normalization(mean, std, dim=own.dim)


def example_inputs(program: ExportedProgram, batch: int) -> list[np.ndarray]:
    """Zeros of the shapes and types that a program takes, with a batch where it is free, else as it was captured."""
    specs = input_specs(program)
    shapes = [(batch, *spec.example[1:]) if spec.batched else spec.example for spec in specs]
    return [np.zeros(shape, spec.array_type) for shape, spec in zip(shapes, specs, strict=True)]


def example_outputs(program: ExportedProgram) -> list[np.ndarray]:
    """Zeros of the shapes and types that a program gives, as it was captured."""
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    named = [
        values[spec.arg.name]
        for spec in program.graph_signature.output_specs
        if spec.kind is OutputKind.USER_OUTPUT and isinstance(spec.arg, TensorArgument)
    ]
    return [
        np.zeros(tuple(map(size_hint, value.shape)), torch.zeros(0, dtype=value.dtype).numpy().dtype) for value in named
    ]


class Wrapped(nn.Module):
    """A program as a module that takes and gives what a file does, in its order."""

    def __init__(self, program: ExportedProgram, signature: Signature) -> None:
        super().__init__()
        self.network = program.module()
        self.training = False  # a program's module cannot be told
        self._program, self._signature = program, signature
        types = [spec.dtype for spec in input_specs(program)]
        self.taken = nn.ModuleList(Taken(*one) for one in zip(signature.inputs, types, strict=True))

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """All outputs that are tensors, for all inputs."""
        given = [taken(x) for taken, x in zip(self.taken, inputs, strict=True)]
        leaves = pytree.tree_leaves(self.network(*spared(self.network, arguments(self._program, given))))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        return tuple(
            tensor.permute(_TO_LAST) if value.channels_last else tensor
            for tensor, value in zip(tensors, self._signature.outputs, strict=True)
        )


class Taken(nn.Module):
    """What the program takes of an input of the file: a module, whose name converters give to what it does."""

    def __init__(self, value: FileValue, dtype: torch.dtype) -> None:
        super().__init__()
        self._value, self._dtype = value, dtype

    def forward(self, x: Tensor) -> Tensor:
        """The input of the file with its channels first, of the program's type and scaled."""
        x = (x.permute(_TO_FIRST) if self._value.channels_last else x).to(self._dtype)
        own = self._value.scaled
        if own is None:
            return x
        mean, std = (
            torch.tensor(one, dtype=self._dtype).reshape(spread_shape(len(one), own.dim, x.dim()))
            for one in (own.mean, own.std)
        )
        return (x - mean) / std
