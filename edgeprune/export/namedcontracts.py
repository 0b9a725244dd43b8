"""What an export of a network with several inputs is made of: how each input is scaled, beside its file or inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor
from torch.export import ExportedProgram

from edgeprune.data.inputs import normalize
from edgeprune.errors import InputError
from edgeprune.export.front import Preprocessing, along_dim_1, fold_preprocessing, raw_bytes
from edgeprune.graph.drawn import drawn_tensors
from edgeprune.graph.specs import fitted, input_specs
from edgeprune.records import InputInfo, Normalization

_SAMPLES = 64
Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True, eq=False)
class NamedFront:
    """What is done to the raw inputs of a network with several; `parts` are those of floats, by name.

    With `fold` the files do it themselves, and take bytes where the data are such.
    """

    parts: Mapping[str, Preprocessing]
    fold: bool

    @classmethod
    def of(
        cls,
        program: ExportedProgram,
        normalization: Normalization | None,
        infos: Sequence[InputInfo],
        fold: bool,
    ) -> NamedFront:
        """As a model records it, of inputs as the data have them; raises InputError where nothing would be folded."""
        scales = {info.name: info.byte_scale for info in infos}
        parts = {}
        for spec in input_specs(program):
            if spec.dtype.is_floating_point:
                own = None if normalization is None else normalization.of(spec.name)
                sizes = spec.example[1:] or (1,)
                parts[spec.name] = Preprocessing(sizes, own, None, scales.get(spec.name) if fold else None)
                parts[spec.name].check()
        if fold and not any(part.scales for part in parts.values()):
            raise InputError(
                "--preprocess fold: the model takes its inputs as they are and its data are no bytes, so there is "
                "nothing to fold; leave the option out"
            )
        return cls(parts, fold)

    def raw(self, program: ExportedProgram, given: Arrays | None) -> dict[str, np.ndarray]:
        """Raw inputs by name, the caller's or ones that are as drawn for the program once they are normalised."""
        specs = input_specs(program)
        if given is not None:
            tensors: Sequence[Tensor] = fitted(specs, dict(given), "inputs to check the export on")
            return {spec.name: tensor.numpy() for spec, tensor in zip(specs, tensors, strict=True)}
        drawn = next(drawn_tensors(program, _SAMPLES))
        return {spec.name: self._raw(spec.name, x.numpy()) for spec, x in zip(specs, drawn, strict=True)}

    def _raw(self, name: str, drawn: np.ndarray) -> np.ndarray:
        part = self.parts.get(name)
        if part is None:
            return drawn
        raw = drawn
        if part.normalization is not None:
            own = part.normalization
            mean, std = (along_dim_1(np.asarray(values), drawn.ndim) for values in (own.mean, own.std))
            raw = raw * std + mean
        if part.byte_scale is not None:
            raw = np.clip(np.rint(raw / part.byte_scale), 0, 255) * part.byte_scale
        return np.asarray(raw.astype(drawn.dtype))

    def normalized(self, raw: Arrays) -> dict[str, np.ndarray]:
        """Raw inputs as the program takes them."""
        return {name: self._normalized(name, x) for name, x in raw.items()}

    def _normalized(self, name: str, raw: np.ndarray) -> np.ndarray:
        part = self.parts.get(name)
        if part is None or part.normalization is None:
            return raw
        return np.asarray(normalize(torch.from_numpy(raw), part.normalization).numpy())

    def handed(self, raw: Arrays) -> dict[str, np.ndarray]:
        """Raw inputs as the files take them: bytes where these scale them."""
        scales = {name: part.byte_scale for name, part in self.parts.items() if part.byte_scale is not None}
        return {name: raw_bytes(x, scales[name]) if name in scales else x for name, x in raw.items()}

    def folded(self, network: onnx.ModelProto) -> onnx.ModelProto:
        """The network with what scales its inputs in front of it."""
        for name, part in self.parts.items():
            if part.scales:
                network = fold_preprocessing(network, part, name=name)
        return network

    def told(self) -> dict[str, Any]:
        """What is left to do for whoever feeds the files, by input: mean and std, none where the files do it."""
        left = {name: part.normalization for name, part in self.parts.items() if not self.fold}
        return {name: {"mean": list(one.mean), "std": list(one.std)} for name, one in left.items() if one is not None}
