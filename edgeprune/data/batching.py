"""What every reader of a data set does: batches, the normalisation, and whether the data fit a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from edgeprune.data.inputs import Arrays, Inputs, as_arrays, changed, first_of, joined, stacked
from edgeprune.data.named import NamedSplit, target_of
from edgeprune.data.splits import Taking, check_finite
from edgeprune.data.usersplit import UserSplit
from edgeprune.errors import EdgepruneError, InputError
from edgeprune.records import DataSource, ModelInfo
from edgeprune.tasks.wanted import or_values
from edgeprune.usercode import calling_user_code, running_user_code

_AT_ONCE = (Taking, NamedSplit)
Change = Callable[[Tensor, Inputs, Any], tuple[Inputs, Any]]


def batches(
    split: Dataset[Any], batch_size: int, *, shuffle: bool = False, seed: int = 0
) -> Iterator[tuple[Inputs, Any]]:
    """All samples of a split, once, as raw batches: inputs and targets, see `read`.

    The order is that of `order`.
    """
    n_samples = len(split)  # type: ignore[arg-type]
    yield from read(split, order(n_samples, batch_size, shuffle=shuffle, seed=seed))


def order(n_samples: int, batch_size: int, *, shuffle: bool = False, seed: int = 0) -> list[Tensor]:
    """Which samples each batch holds: `(batch,)` indices, every sample in one of them.

    The order depends on `seed` alone. Every batch but the last holds `batch_size` samples; a lone last sample takes
    a companion from the batch before, because batch norm cannot train on a single sample.
    """
    if batch_size < 1:
        raise InputError(f"batch size: expected at least 1, got {batch_size}")
    generator = torch.Generator().manual_seed(seed)
    indices = torch.randperm(n_samples, generator=generator) if shuffle else torch.arange(n_samples)
    bounds = [*range(0, n_samples, batch_size), n_samples]
    if n_samples % batch_size == 1 and batch_size > 2 and len(bounds) > 2:
        bounds[-2] -= 1
    return [indices[start:stop] for start, stop in zip(bounds[:-1], bounds[1:], strict=True)]


@dataclass(frozen=True, slots=True)
class Share:
    """The part of every batch that falls to one of several processes."""

    rank: int = 0
    n_ranks: int = 1

    def of(self, batch: Tensor) -> Tensor:
        """E.g. of the 7 indices of a batch the first of two processes takes 4, the second 3."""
        return batch.tensor_split(self.n_ranks)[self.rank]

    def in_turn(self, batches: Sequence[Tensor]) -> Sequence[Tensor]:
        """E.g. of 5 batches the first of two processes takes the first, the third and the fifth."""
        return batches[self.rank :: self.n_ranks]


def read(
    split: Dataset[Any], indices: Sequence[Tensor], workers: int = 0, seed: int = 0, change: Change | None = None
) -> Iterator[tuple[Inputs, Any]]:
    """The samples at each of `indices`, as raw batches: inputs `(batch, ...)` and targets `(batch, ...)`.

    Inputs are a float32 tensor, or named ones of their own types.
    Targets that are whole numbers are int64, floats float32. Dicts, lists and tuples, which may differ in size from
    sample to sample, come as a list of them; where there are no targets, None.

    Args:
        workers: so many processes read ahead; a split in memory needs none.
        seed: of what is random in the workers, as a data set of the user's may be.
        change: what becomes of a batch, given its indices, inputs and targets; the workers do it.
    """
    batches_of = _Batches(split, change)
    if workers == 0 or isinstance(split, _AT_ONCE):
        for index in indices:
            yield batches_of.taken(index)
        return
    plain = [index.numpy() for index in indices]  # tensors would be sent through shared memory, whole
    generator = torch.Generator().manual_seed(seed)  # or the loader would draw from the random state of the training
    loader = DataLoader(batches_of, 1, sampler=plain, num_workers=workers, generator=generator, collate_fn=_only)
    for batch in _from_workers(loader, workers):
        if isinstance(batch, EdgepruneError):
            raise batch
        yield batch


def _from_workers(loader: Iterable[Any], workers: int) -> Iterator[Any]:
    """What the loader gives; one of its processes that is gone was killed, or ended by what the data set does."""
    try:
        yield from loader
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise InputError(
            f"expected the {workers} processes that read samples to last, got one that has ended: for want of memory, "
            "or by the data set's own code; without --workers it runs in this one"
        ) from error


class _Batches(Dataset[Any]):
    """A split whose items are whole batches; an error is handed over as it is, for the loader would reword it."""

    def __init__(self, split: Dataset[Any], change: Change | None) -> None:
        self.split, self.change = split, change

    def taken(self, index: Tensor) -> tuple[Inputs, Any]:
        """The samples at `index` `(n,)`."""
        taken = _take(self.split, index)
        return taken if self.change is None else self.change(index, *taken)

    def __getitem__(self, index: np.ndarray) -> tuple[Inputs, Any] | EdgepruneError:
        try:
            with running_user_code():
                return self.taken(torch.from_numpy(index))
        except EdgepruneError as error:
            return error


def _only(batch: list[Any]) -> Any:
    return batch[0]


def _take(split: Dataset[Any], index: Tensor) -> tuple[Inputs, Any]:
    if isinstance(split, _AT_ONCE):
        return split.take(index)
    if isinstance(split, TensorDataset) and len(split.tensors) <= 2:
        first, *targets = (tensor[index] for tensor in split.tensors)
        taken: tuple[Inputs, Any] = first.to(torch.float32), _plain(targets[0]) if targets else None
    else:
        taken = _stacked(split, index)
    # Splits in memory were checked when they were made; these come from the user's own code.
    changed(taken[0], lambda tensor: _finite(tensor, f"batch of samples {index[0]} and on"))
    return taken


def _finite(x: Tensor, where: str) -> Tensor:
    check_finite(x.numpy(), where)
    return x


def _stacked(split: Dataset[Any], index: Tensor) -> tuple[Inputs, Any]:
    if isinstance(split, UserSplit):
        with calling_user_code(f"{split.where}: reading samples {int(index[0])} and on raised"):
            return _stacked(split.split, index)
    samples = [split[int(i)] for i in index]
    inputs = [sample[0] if isinstance(sample, (tuple, list)) else sample for sample in samples]
    return stacked(inputs), _collated([target_of(sample) for sample in samples])


def _collated(targets: Sequence[Any]) -> Any:
    """The targets of a batch: numbers and arrays stacked, what holds several of them in a list.

    Raises:
        InputError: none of these, or arrays of different shapes.
    """
    if all(target is None for target in targets):
        return None
    if any(isinstance(target, (Mapping, list, tuple)) for target in targets):
        return list(targets)
    arrays = [_numbers(target) for target in targets]
    shapes = sorted({tuple(array.shape) for array in arrays})
    if len(shapes) > 1:
        raise InputError(f"targets: expected one shape for all samples, got {shapes[0]} and {shapes[1]}")
    return _plain(torch.stack(arrays))


def _numbers(target: Any) -> Tensor:
    if isinstance(target, Tensor):
        return target.detach().cpu()
    array = np.asarray(target)
    if array.dtype.kind not in "iubf":
        raise InputError(f"targets: expected numbers or arrays of them, got {array.dtype} {array.shape}")
    return torch.as_tensor(array)


def _plain(targets: Tensor) -> Tensor:
    return targets.to(torch.float32 if targets.is_floating_point() else torch.int64)


def check_fits(data: DataSource, info: ModelInfo, n_outputs: int | None, classes: bool = True) -> None:
    """Raise InputError when the shape, the number of classes or the column names of the data do not fit the model.

    `classes` is False where the task does not tell the classes apart.
    """
    if not data.inputs and tuple(data.input_shape) != tuple(info.input_shape):
        raise InputError(
            f"data {data.name}: the model expects inputs of shape {tuple(info.input_shape)}, "
            f"got {tuple(data.input_shape)}"
        )
    if classes and data.targets.kind == "classes":
        _check_classes(data, info, n_outputs)
    _check_names(info.feature_names, data.feature_names, f"data {data.name}")
    known = dict(info.input_feature_names)
    for one in data.inputs:
        _check_names(known.get(one.name, ()), one.feature_names, f"data {data.name}, input {one.name}")


def _check_names(expected: Sequence[str], got: Sequence[str], where: str) -> None:
    """Raise InputError where features are called otherwise than the model's; as both say it."""
    if not expected or not got or tuple(expected) == tuple(got):
        return
    if len(expected) != len(got):
        raise InputError(f"{where}: expected {len(expected)} feature names as the model has, got {len(got)}")
    at = next(i for i, (own, other) in enumerate(zip(expected, got, strict=True)) if own != other)
    raise InputError(f"{where}: feature {at} differs from the model's: expected {expected[at]!r}, got {got[at]!r}")


def _check_classes(data: DataSource, info: ModelInfo, n_outputs: int | None) -> None:
    n_classes = len(info.classes) or n_outputs
    for expected in {n_outputs, n_classes} - {None}:
        if expected != len(data.classes):
            may_be = or_values(data.classes) if n_outputs == 1 < len(data.classes) - 1 else ""
            raise InputError(f"data {data.name}: the model has {expected} classes, got {len(data.classes)}{may_be}")


def first_inputs(split: Dataset[Any], count: int | None) -> Arrays:
    """Raw inputs of the first `count` samples of a split, or of all, `(n, *input_shape)`, by name if they have such."""
    return as_arrays(first_samples(split, count))


def first_samples(split: Dataset[Any], count: int | None) -> Inputs:
    """The same as tensors."""
    found: list[Inputs] = []
    have = 0
    for x, _ in batches(split, 256):
        found.append(x)
        have += len(first_of(x))
        if count is not None and have >= count:
            break
    return changed(joined(found), lambda tensor: tensor[:count])
