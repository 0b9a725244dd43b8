"""Files that take data by the names of their inputs: which they are, and what makes them of raw samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from edgeprune.data.fitting import with_specs
from edgeprune.data.inputs import normalize
from edgeprune.errors import InputError
from edgeprune.export import ort
from edgeprune.export.front import raw_bytes
from edgeprune.export.metadata import byte_scale_in, byte_scales_in
from edgeprune.export.onnxfile import spec_of
from edgeprune.graph.specs import InputSpec
from edgeprune.measure.fixedbatch import with_free_batch
from edgeprune.measure.foreign import bounds_of, check_file, loaded, readable, stated_in
from edgeprune.records import DataSource, InputInfo, Normalization

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

_PREPROCESS = "preprocess.onnx"


@dataclass(frozen=True, slots=True, eq=False)
class NamedFile:
    """How a file takes inputs by name.

    `names` are those of its inputs, in the order of the data's; `byte_scales` what a byte stands for, of inputs that
    take bytes; `preprocess` what makes its inputs of raw ones, where it takes only a part of them. `is_open` says that
    there are floats of which the file does not say how they are made.
    """

    names: tuple[str, ...]
    made: tuple[str, ...]
    byte_scales: Mapping[str, float] = field(default_factory=dict)
    preprocess: InferenceSession | None = None
    is_open: bool = False

    def inputs(self, raw: Mapping[str, Tensor], normalization: Normalization, bounds: ort.Bounds) -> ort.Feed:
        """The file's inputs for raw ones `(batch, ...)`, whose floats it takes normalised unless they are bytes."""
        handed = {file: self._handed(file, x) for file, x in zip(self.names, raw.values(), strict=True)}
        if self.preprocess is not None:
            made = ort.run_by_name(self.preprocess, handed, bounds)
            return dict(zip(self.made, made, strict=True))
        return {
            file: handed[file] if file in self.byte_scales else _normalised(x, normalization.of(name))
            for file, (name, x) in zip(self.names, raw.items(), strict=True)
        }

    def _handed(self, file: str, x: Tensor) -> np.ndarray:
        return raw_bytes(x.numpy(), self.byte_scales[file]) if file in self.byte_scales else x.numpy()


def _normalised(x: Tensor, normalization: Normalization | None) -> np.ndarray:
    if normalization is None or not x.is_floating_point():
        return np.ascontiguousarray(x.numpy())
    return np.ascontiguousarray(normalize(x, normalization).numpy())


# --- which inputs there are


def with_inputs_of_file(data: DataSource, path: Path) -> DataSource:
    """The data with their inputs by the names and in the types of a file; as they are for one input of floats.

    Raises:
        InputError: an input that is missing, that nothing takes, of another shape or type.
    """
    values, scaled = raw_values(path), _scaled_bytes(path)
    if not data.inputs and len(values) == 1 and values[0].type not in _WHOLE - scaled:
        return data
    specs = [_raw_spec(path, value, scaled) for value in values]
    if len(specs) == 1 and len(data.inputs) == 1:  # a single one has no name of its own in a file
        specs = [replace(specs[0], name=data.inputs[0].name)]
    return with_specs(data, specs, {})


def names_of_file(path: Path) -> tuple[str, ...]:
    """What a file with several inputs calls them; () for one, which has no name of its own."""
    names = tuple(value.name for value in raw_values(path))
    return names if len(names) > 1 else ()


def raw_values(path: Path) -> Sequence[Any]:
    """The inputs of a file in onnxruntime, or of what makes them of raw ones."""
    session = loaded(path)
    beside = path.parent / _PREPROCESS
    if _takes_a_part(session) and beside.is_file():
        session = loaded(beside)
    return list(with_free_batch(session).get_inputs())


def _takes_a_part(session: InferenceSession) -> bool:
    return session.get_modelmeta().custom_metadata_map.get("edgeprune.contract") == "slim"


_BYTES = "tensor(uint8)"
_WHOLE = {"tensor(int64)", "tensor(int32)", "tensor(int16)", "tensor(int8)", _BYTES, "tensor(bool)"}


def _scaled_bytes(path: Path) -> set[str]:
    """The type of bytes, where a file of edgeprune's says how it scales them: they are raw floats in the data."""
    metadata = stated_in(path)
    is_scaled = byte_scale_in(metadata, str(path)) is not None or bool(byte_scales_in(metadata, str(path)))
    return {_BYTES} if is_scaled or (path.parent / _PREPROCESS).is_file() else set()


def _raw_spec(path: Path, value: Any, scaled: set[str]) -> InputSpec:
    """An input as the data hold it."""
    spec = spec_of(path, value)
    return replace(spec, dtype=torch.float32) if value.type in scaled else spec


# --- what makes them


def named_file(path: Path, session: InferenceSession, data: DataSource, bounds: ort.Bounds) -> NamedFile:
    """How a file takes the inputs of the data; where it takes a part of them, by the preprocess.onnx beside it.

    Raises:
        InputError: inputs that are not those of the data, or a preprocess.onnx that is missing or makes others.
    """
    own = tuple(value.name for value in session.get_inputs())
    if not _takes_a_part(session):
        names, scales = _checked(path, session, data)
        is_open = any(info.is_float and name not in scales for name, info in zip(names, data.inputs, strict=True))
        return NamedFile(names, own, scales, None, is_open)
    beside = path.parent / _PREPROCESS
    if not beside.is_file():
        raise InputError(
            f"{path}: expected a {_PREPROCESS} beside it, as it takes only kept features or new ids, got nothing there"
        )
    preprocess = with_free_batch(readable(beside, bounds_of(check_file(beside), data)))
    _check_made(beside, preprocess, path, session)
    names, scales = _checked(beside, preprocess, data)
    return NamedFile(names, own, scales, preprocess)


def _checked(path: Path, session: InferenceSession, data: DataSource) -> tuple[tuple[str, ...], dict[str, float]]:
    """The names of a file's inputs in the order of the data's, and its byte scales; they take what the data hold."""
    values = {value.name: value for value in session.get_inputs()}
    names = tuple(values) if len(values) == len(data.inputs) == 1 else tuple(info.name for info in data.inputs)
    if set(names) != set(values):
        raise InputError(f"{path}: expected inputs {', '.join(names)} as in data {data.name}, got {', '.join(values)}")
    scales = byte_scales_in(session.get_modelmeta().custom_metadata_map, str(path))
    for name, info in zip(names, data.inputs, strict=True):
        _check_input(path, values[name], info, name in scales)
    return names, scales


def _check_input(path: Path, value: Any, info: InputInfo, is_bytes: bool) -> None:
    """Raise InputError unless an input takes what the data hold, with a free batch."""
    spec = spec_of(path, value)
    want = "uint8" if is_bytes else info.dtype
    got = str(spec.dtype).removeprefix("torch.")
    if got != want:
        raise InputError(f"{path}: expected {want} for input {value.name}, got {got}")
    if not spec.batched:
        raise InputError(f"{path}: expected a free batch as the first size of {value.name}, got {value.shape}")
    shape = spec.shape[1:]
    is_other = any(None not in pair and pair[0] != pair[1] for pair in zip(shape, info.shape, strict=False))
    if len(shape) != len(info.shape) or is_other:
        raise InputError(f"{path}: expected input {value.name} {_show(info.shape)} as in the data, got {_show(shape)}")


def _check_made(beside: Path, preprocess: InferenceSession, path: Path, session: InferenceSession) -> None:
    """Raise InputError unless preprocess.onnx gives, in order, what the file takes."""
    given, taken = preprocess.get_outputs(), session.get_inputs()
    fitting = len(given) == len(taken) and all(
        have.type == want.type and _accepts(want.shape, have.shape) for have, want in zip(given, taken, strict=True)
    )
    if not fitting:
        told = (", ".join(f"{value.name} {value.type} {value.shape}" for value in values) for values in (taken, given))
        wanted, got = told
        raise InputError(f"{beside}: expected outputs {wanted} as {path.name} takes, got {got}")


def _accepts(wanted: Sequence[int | str], given: Sequence[int | str]) -> bool:
    return len(wanted) == len(given) and all(
        not isinstance(want, int) or want == have for want, have in zip(wanted, given, strict=True)
    )


def _show(shape: Sequence[int | None]) -> str:
    return "(" + ", ".join(["batch", *("*" if size is None else str(size) for size in shape)]) + ")"
