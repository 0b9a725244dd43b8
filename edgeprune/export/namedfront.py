"""What is done to the raw inputs of a network with several, or with a cut vocabulary: beside its files or inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor
from torch.export import ExportedProgram

from edgeprune.data.inputs import normalize
from edgeprune.errors import InputError
from edgeprune.export.front import (
    Preprocessing,
    denormalized,
    feature_scaling,
    fold_preprocessing,
    kept,
    numbers_of,
    raw_bytes,
)
from edgeprune.graph.drawn import drawn_tensors, first_accepted
from edgeprune.graph.sizes import arguments
from edgeprune.graph.specs import InputSpec, file_inputs, fitted, input_specs
from edgeprune.graph.tokens import kept_vocabularies, only_kept, with_numbers
from edgeprune.pruning.slim_inputs import gathered_inputs
from edgeprune.records import IDENTITY, InputFeatures, InputInfo, Normalization, Vocabulary

_SAMPLES = 64
Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True, eq=False)
class NamedFront:
    """What is done to raw inputs, by the names that they have in files.

    `parts` are those of floats, and of whatever else features are gathered from; `vocabularies` those that were cut.
    With `fold` the files scale by themselves, and take bytes where the data are such.
    """

    names: tuple[str, ...]
    parts: Mapping[str, Preprocessing]
    fold: bool
    vocabularies: Mapping[str, Vocabulary]

    @classmethod
    def of(
        cls,
        program: ExportedProgram,
        normalization: Normalization | None,
        infos: Sequence[InputInfo],
        fold: bool,
    ) -> NamedFront:
        """As a model records it, of inputs as the data have them; raises InputError where nothing would be folded."""
        scales = {info.name: info.byte_scale for info in infos if fold}
        features, vocabularies = gathered_inputs(program), kept_vocabularies(program)
        specs, names = input_specs(program), file_inputs(program)
        parts = {
            name: _part(spec, normalization, features.get(spec.name), scales.get(spec.name))
            for name, spec in zip(names, specs, strict=True)
            if spec.dtype.is_floating_point or spec.name in features
        }
        own = {spec.name: name for name, spec in zip(names, specs, strict=True)}
        cut = {own[name]: one for name, one in vocabularies.items()}
        if fold:
            _check_foldable(parts)
        return cls(tuple(names), parts, fold, cut)

    @property
    def narrows(self) -> bool:
        """Whether the slim contract takes something else than the full one: some features alone, or new ids."""
        return bool(self.vocabularies) or any(part.features is not None for part in self.parts.values())

    # --- inputs

    def raw(self, program: ExportedProgram, given: Any) -> dict[str, np.ndarray]:
        """Raw inputs, the caller's or ones that are as drawn for the program once they are normalised.

        Ids that are cut, and that nothing stands for, have become kept ones.
        """
        specs, what = input_specs(program), "inputs to check the export on"
        tensors: Sequence[Tensor] = self._drawn(program) if given is None else fitted(specs, given, what)
        found = dict(zip(self.names, tensors, strict=True))
        for name, one in self.vocabularies.items():
            found[name] = found[name] if one.unknown is not None else only_kept(found[name], one)
        arrays = {name: tensor.numpy() for name, tensor in found.items()}
        return arrays if given is not None else {name: self._raw(name, x) for name, x in arrays.items()}

    def _drawn(self, program: ExportedProgram) -> tuple[Tensor, ...]:
        module = program.module()
        return first_accepted(lambda *x: module(*arguments(program, x)), drawn_tensors(program, _SAMPLES))

    def _raw(self, name: str, drawn: np.ndarray) -> np.ndarray:
        part = self.parts.get(name)
        if part is None:
            return drawn
        raw = denormalized(drawn, part.normalization)
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
        """Raw inputs as a device has them: bytes where the files scale these."""
        scales = {name: part.byte_scale for name, part in self.parts.items() if part.byte_scale is not None}
        return {name: raw_bytes(x, scales[name]) if name in scales else x for name, x in raw.items()}

    def slim(self, full: Arrays) -> dict[str, np.ndarray]:
        """What the slim contract takes of the inputs of the full one."""
        found = dict(full)
        for name, part in self.parts.items():
            if part.features is not None:
                found[name] = kept(found[name], part.features)
        return dict(with_numbers(self.vocabularies, found))

    # --- files

    def folded(self, network: onnx.ModelProto, contract: str) -> onnx.ModelProto:
        """The network of a contract with what scales its inputs in front of it."""
        for name, part in self._parts_of(contract).items():
            if part.scales:
                network = fold_preprocessing(network, part, name=name)
        return network

    def told(self, contract: str) -> dict[str, dict[str, Any]]:
        """What is left to do for whoever feeds the files, by input: mean and std, none where the files do it."""
        return {} if self.fold else self._numbers(contract)

    def told_folded(self, contract: str) -> dict[str, dict[str, Any]]:
        """What the files do by themselves."""
        return self._numbers(contract) if self.fold else {}

    def byte_scales(self) -> dict[str, float]:
        """What a byte stands for, where the files take bytes."""
        return {name: part.byte_scale for name, part in self.parts.items() if part.byte_scale is not None}

    def _numbers(self, contract: str) -> dict[str, dict[str, Any]]:
        return {
            name: numbers_of(part.normalization if part.features is None else feature_scaling(part))
            for name, part in self._parts_of(contract).items()
            if part.normalization is not None
        }

    def _parts_of(self, contract: str) -> dict[str, Preprocessing]:
        """The full contract takes all features, and gathers inside."""
        is_slim = contract == "slim"
        return {name: part if is_slim else replace(part, features=None) for name, part in self.parts.items()}


def _part(
    spec: InputSpec, normalization: Normalization | None, features: InputFeatures | None, byte_scale: float | None
) -> Preprocessing:
    """What is done to one input; nothing to the numbers of whole ones."""
    sizes = spec.example[1:] or (1,)
    if not spec.dtype.is_floating_point:
        return Preprocessing(sizes, None, features)
    own = None if normalization is None else normalization.of(spec.name) or IDENTITY
    part = Preprocessing(sizes, own, features, byte_scale)
    part.check()
    return part


def _check_foldable(parts: Mapping[str, Preprocessing]) -> None:
    """Raise InputError where nothing would be folded."""
    if not any(part.scales for part in parts.values()):
        raise InputError(
            "--preprocess fold: the model takes its inputs as they are and its data are no bytes, so there is "
            "nothing to fold; leave the option out"
        )
