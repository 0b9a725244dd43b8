"""Splits whose samples have named inputs: in memory, or read one by one from what the user's code gives."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from edgeprune.data.splits import MAX_STATISTICS_SAMPLES, TensorSplit, check_parts, each_split, measure, to_tensor
from edgeprune.errors import InputError
from edgeprune.records import CLASSES, IDENTITY, DataSource, InputInfo, Normalization, Targets

_BYTE = 1.0 / 255.0
_HELD = {np.dtype(name) for name in ("bool", "uint8", "int8", "int16", "int32", "int64")}  # which PyTorch has too


@dataclass(frozen=True, slots=True, eq=False)
class Column:
    """One input of all samples, `(n, ...)`: held as it came, given out in the type of the input."""

    held: Tensor
    info: InputInfo

    def take(self, index: Tensor) -> Tensor:
        """The samples at `index` `(k,)`; floats are float32, bytes among them times their scale."""
        return converted(self.held[index], self.info)

    def as_split(self, y: Tensor | None = None) -> TensorSplit:
        """The samples as those of a network with this input alone, with targets `y`; of scalars `(n, 1)`."""
        held = self.held if self.held.dim() > 1 else self.held[:, None]
        held = held if held.dtype == torch.uint8 else held.to(torch.float32)
        return TensorSplit(held, y, self.info.byte_scale or 1.0)


class NamedSplit(Dataset[Any]):
    """A split in memory with named inputs; `y` are the targets `(n, ...)`, None where there are none."""

    def __init__(self, columns: Sequence[Column], y: Tensor | None) -> None:
        self.columns, self.y = tuple(columns), y

    def __len__(self) -> int:
        return len(self.columns[0].held)

    def __getitem__(self, index: int) -> tuple[dict[str, Tensor], Any]:
        x, y = self.take(torch.tensor([index]))
        one = None if y is None else y[0]
        return {name: value[0] for name, value in x.items()}, (
            int(one) if one is not None and one.dim() == 0 and not one.is_floating_point() else one
        )

    def take(self, index: Tensor) -> tuple[dict[str, Tensor], Any]:
        """The samples at `index` `(k,)`: inputs by name, `(k, ...)` each, and y `(k, ...)`, or None."""
        x = {column.info.name: column.take(index) for column in self.columns}
        return x, None if self.y is None else self.y[index]

    def part(self, index: Tensor) -> NamedSplit:
        """The samples at `index` as a split of their own."""
        columns = [replace(column, held=column.held[index]) for column in self.columns]
        return NamedSplit(columns, None if self.y is None else self.y[index])


class NamedSamples(Dataset[Any]):
    """A split of the user's whose samples hold their inputs by name; each is checked as it is read.

    `limits` are the least number and the one after the largest that an input of whole numbers may hold.
    """

    def __init__(
        self,
        split: Any,
        infos: Sequence[InputInfo],
        where: str,
        limits: Mapping[str, tuple[int, int]] | None = None,
    ) -> None:
        self.split, self.infos, self.where, self.limits = split, tuple(infos), where, limits or {}

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[dict[str, Tensor], Any]:
        sample = self.split[index]
        x, y = input_of(sample), target_of(sample)
        where = f"{self.where}, sample {index}"
        if not isinstance(x, Mapping):
            raise InputError(f"{where}: expected inputs by name, got a {type(x).__name__}")
        check_names(self.infos, x, where)
        return {info.name: self._taken(x[info.name], info, f"{where}, input {info.name}") for info in self.infos}, y

    def _taken(self, value: Any, info: InputInfo, where: str) -> Tensor:
        held = held_tensor(value, info.dtype, where)
        check_shape(tuple(held.shape), info, where)
        if info.name in self.limits:
            check_limits(held, self.limits[info.name], where)
        return converted(held, info)


def input_of(sample: Any) -> Any:
    """What goes into the network of a sample."""
    return sample[0] if isinstance(sample, (tuple, list)) else sample


def target_of(sample: Any) -> Any:
    """A sample's target; None of an input alone."""
    return sample[1] if isinstance(sample, (tuple, list)) and len(sample) > 1 else None


# -- what inputs hold -------------------------------------------------------------------------------------------------


def converted(held: Tensor, info: InputInfo) -> Tensor:
    """Numbers as they are held in the type of the input: floats are float32, bytes among them times their scale."""
    if not info.is_float:
        return held.to(torch_type(info.dtype))
    return held.to(torch.float32) * info.byte_scale if held.dtype == torch.uint8 and info.byte_scale else held.float()


def torch_type(name: str) -> torch.dtype:
    """E.g. torch.int64; InputError for what is no type of PyTorch's."""
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise InputError(f"expected a type of PyTorch's, such as float32 or int64, got {name}")
    return dtype


def own_type(held: Tensor) -> str:
    """The type of an input that nobody stated: bytes are quantities, other whole numbers int64."""
    if held.dtype == torch.bool:
        return "bool"
    return "float32" if held.is_floating_point() or held.dtype == torch.uint8 else "int64"


def held_tensor(value: Any, dtype: str | None, where: str) -> Tensor:
    """Numbers of the user's as a tensor that an input of this type (None: not known yet) can be given of.

    Raises:
        InputError: no numbers, not finite, or floats for an input of whole numbers.
    """
    array = _as_array(value, where)
    if array.dtype.kind == "f":
        if dtype is not None and not InputInfo("", (), dtype).is_float:
            raise InputError(f"{where}: expected {dtype}, got {array.dtype}: whole numbers are given as such")
        return to_tensor(array, where)[0].reshape(array.shape)  # which of one number makes a row
    if array.dtype.newbyteorder("=") not in _HELD:
        array = _as_int64(array, where)
    held = torch.from_numpy(np.array(array, array.dtype.newbyteorder("="), order="C"))
    if dtype is not None:
        _check_held(held, dtype, where)
    return held


def _as_array(value: Any, where: str) -> np.ndarray:
    """Real numbers of the user's in numpy."""
    try:
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{where}: expected an array or tensor of numbers, got a {type(value).__name__}") from error
    if array.dtype.kind not in "iubf":
        raise InputError(f"{where}: expected real numbers, got {array.dtype}")
    return array


def _as_int64(array: np.ndarray, where: str) -> np.ndarray:
    """Unsigned whole numbers of a type that PyTorch does without."""
    if array.size and int(array.max()) > np.iinfo(np.int64).max:
        raise InputError(f"{where}: expected numbers that int64 holds, got {array.max()}")
    return array.astype(np.int64)


def _check_held(held: Tensor, dtype: str, where: str) -> None:
    """Raise InputError where a type of whole numbers does not hold these."""
    wanted = torch_type(dtype)
    if wanted.is_floating_point or not held.numel():
        return
    least, largest = (0, 1) if wanted == torch.bool else (torch.iinfo(wanted).min, torch.iinfo(wanted).max)
    got = int(held.min()) if int(held.min()) < least else int(held.max())
    if not least <= got <= largest:
        raise InputError(f"{where}: expected numbers that {dtype} holds, got {got}")


def check_names(infos: Sequence[InputInfo], got: Iterable[str], where: str) -> None:
    """Raise InputError for inputs that are missing, or that nothing takes."""
    expected, given = [info.name for info in infos], list(map(str, got))
    if set(expected) != set(given):
        lacking = ", ".join(name for name in expected if name not in given)
        more = ", ".join(name for name in given if name not in expected)
        why = " and ".join([*([f"no {lacking}"] if lacking else []), *([f"also {more}"] if more else [])])
        raise InputError(f"{where}: expected inputs {', '.join(expected)}, got {why}")


def check_shape(shape: Sequence[int | None], info: InputInfo, where: str) -> None:
    """Raise InputError where a sample's shape is not the input's."""
    fits = len(shape) == len(info.shape) and all(
        want in (None, have) for want, have in zip(info.shape, shape, strict=True)
    )
    if not fits:
        raise InputError(f"{where}: expected shape {shown_shape(info.shape)}, got {shown_shape(shape)}")


def shown_shape(shape: Sequence[int | None]) -> str:
    """E.g. "(1, *)"; a free size is a star."""
    return "(" + ", ".join("*" if size is None else str(size) for size in shape) + ")"


def check_limits(held: Tensor, limits: tuple[int, int], where: str) -> None:
    """Raise InputError for whole numbers below `limits[0]`, or not below `limits[1]`, which index what is not there."""
    least, end = limits
    if not held.numel():
        return
    got = int(held.min()) if int(held.min()) < least else int(held.max())
    if not least <= got < end:
        raise InputError(
            f"{where}: expected numbers from {least} to {end - 1}, as many rows as the network has for them, got {got}"
        )


# -- data sets --------------------------------------------------------------------------------------------------------


def described_inputs(held: Mapping[str, Tensor]) -> tuple[InputInfo, ...]:
    """What inputs are, of some samples `(n, ...)`: shape, type, and what whole numbers lie between."""
    return tuple(_described(name, x) for name, x in held.items())


def _described(name: str, x: Tensor) -> InputInfo:
    info = InputInfo(name, tuple(x.shape[1:]), own_type(x), byte_scale=_BYTE if x.dtype == torch.uint8 else None)
    return info if info.is_float else spanned(info, [x])


def spanned(info: InputInfo, tensors: Iterable[Tensor]) -> InputInfo:
    """An input of whole numbers with the least and the largest of them."""
    spans = [(int(x.min()), int(x.max())) for x in tensors if x.numel()]
    return replace(info, least=min(low for low, _ in spans), largest=max(high for _, high in spans)) if spans else info


def build_named(  # noqa: PLR0913 - the fields of a DataSource
    name: str,
    splits: Sequence[Dataset[Any]],
    infos: Sequence[InputInfo],
    classes: Sequence[str],
    notes: Sequence[str] = (),
    targets: Targets = CLASSES,
) -> DataSource:
    """A DataSource of samples with named inputs from train, val and test; floats are measured on train, one by one.

    Raises:
        InputError: as `splits.build`.
    """
    check_parts(name, splits, classes, targets)
    measured = measured_inputs(splits[0], infos)
    return DataSource(
        name=name,
        train=splits[0],
        val=splits[1],
        test=splits[2],
        input_shape=(),
        classes=tuple(classes),
        normalization=measured,
        measured=measured,
        notes=tuple(notes),
        targets=targets,
        inputs=tuple(infos),
    )


def measured_inputs(split: Dataset[Any], infos: Sequence[InputInfo]) -> Normalization:
    """Mean and std of every input of floats, along its features' dim or dim 1."""
    own = [(info.name, measure(_one_input(split, info), info.feature_dim)) for info in infos if info.is_float]
    return Normalization((0.0,), (1.0,), tuple(own))


def _one_input(split: Dataset[Any], info: InputInfo) -> Dataset[Any]:
    if isinstance(split, NamedSplit):
        return next(column for column in split.columns if column.info.name == info.name).as_split(split.y)
    return _OneInput(split, info.name)


def without_name(data: DataSource) -> DataSource:
    """The data set with its only input, of floats, as the `x` that it is."""
    [info] = data.inputs
    plain = each_split(data, lambda split, name: _one_input(split, info))
    shape = tuple(plain.train[0][0].shape)
    scaled = [one.of(info.name) or IDENTITY for one in (data.normalization, data.measured or IDENTITY)]
    return replace(
        plain,
        input_shape=shape,
        inputs=(),
        normalization=scaled[0],
        measured=scaled[1],
        byte_scale=info.byte_scale,
        feature_dim=info.feature_dim,
        feature_names=info.feature_names or data.feature_names,
    )


class _OneInput(Dataset[Any]):
    """The samples of a split as those of a network with one of their inputs alone; a single number is a row of it."""

    def __init__(self, split: Any, name: str) -> None:
        self.split, self.name = split, name

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        x, y = self.split[index]
        return (x[self.name] if x[self.name].dim() else x[self.name][None]), y


def with_inputs(data: DataSource, infos: Sequence[InputInfo], limits: Mapping[str, tuple[int, int]]) -> DataSource:
    """The data set with its inputs in this order and as these say; whole numbers are checked against the limits.

    Raises:
        InputError: samples that do not fit, as far as they are in memory; others as they are read.
    """
    names = [info.name for info in infos]
    fitted = each_split(data, lambda split, name: _refitted(split, infos, limits, f"data {data.name}, {name}"))
    known = {info.name: info for info in data.inputs}
    same = all(known[name].is_float == info.is_float for name, info in zip(names, infos, strict=True))
    normalization = data.normalization
    if not same and not data.states_normalization:
        normalization = measured_inputs(fitted.train, infos)
        return replace(fitted, inputs=tuple(infos), normalization=normalization, measured=normalization)
    return replace(fitted, inputs=tuple(infos))


def _refitted(
    split: Dataset[Any], infos: Sequence[InputInfo], limits: Mapping[str, tuple[int, int]], where: str
) -> Dataset[Any]:
    if isinstance(split, NamedSamples):
        return NamedSamples(split.split, infos, split.where, limits)
    assert isinstance(split, NamedSplit)
    columns = {column.info.name: column for column in split.columns}
    return NamedSplit([_checked(columns[info.name], info, limits, where) for info in infos], split.y)


def _checked(column: Column, info: InputInfo, limits: Mapping[str, tuple[int, int]], where: str) -> Column:
    where = f"{where}, input {info.name}"
    if column.held.is_floating_point() and not info.is_float:
        raise InputError(f"{where}: expected {info.dtype}, got float32: whole numbers are given as such")
    _check_held(column.held, info.dtype, where)
    if info.name in limits:
        check_limits(column.held, limits[info.name], where)
    return replace(column, info=info)


def some_samples(split: Any, read: Callable[[Any], Any]) -> list[Any]:
    """What `read` makes of some samples, evenly spaced over a split."""
    chosen = np.unique(np.linspace(0, len(split) - 1, min(len(split), MAX_STATISTICS_SAMPLES)).astype(int))
    return [read(split[int(index)]) for index in chosen]
