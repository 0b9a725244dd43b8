"""The weights that a training loop of one's own leaves in a module, as a program has them."""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils._pytree import tree_map

from edgeprune.errors import InputError
from edgeprune.graph.apply import evaluated
from edgeprune.graph.comparison import TOLERANCE, outputs, relative_error
from edgeprune.graph.modulestate import restored
from edgeprune.graph.refusals import failure_on
from edgeprune.graph.renaming import own_name

_WRAPPED = ("_orig_mod", "module")  # where torch.compile, DataParallel and AveragedModel keep what they wrap
_MAX_NAMED = 3
_GIVEN = "with_weights: expected a module that this program's .module() gave"


def taken_weights(
    own: nn.Module, module: nn.Module, constants: Collection[str] = (), expected: str = _GIVEN
) -> dict[str, Tensor]:
    """Copies of a trained module's parameters and buffers, as `own` has them: their kind, their ties, on its device.

    Args:
        own: the program as a module, with the weights of before.
        module: what came of it, wrapped or not.
        constants: tensors that a forward makes, so that the class that was captured has none: they may be missing.
        expected: what a refusal begins with.

    Raises:
        InputError: a tensor is missing, or is not of the shape and the type that the program has; or it is not finite.
    """
    wanted = _tensors_of(own)
    inner = _unwrapped(module, wanted)
    wanted = {name: tensor for name, tensor in wanted.items() if name not in constants}
    found = {name: tensor for name in wanted if (tensor := _tensor_at(inner, name)) is not None}
    tied = _tied(wanted)
    problems = list(_problems(wanted, found, tied))
    if problems:
        more = f" and {len(problems) - _MAX_NAMED} more" if len(problems) > _MAX_NAMED else ""
        raise InputError(
            f"{expected}, got a {type(inner).__name__} with {', '.join(problems[:_MAX_NAMED])}{more}"
            f"{_hint(module, wanted)}"
        )
    copies = {number: _copy(wanted[names[0]], found[names[0]]) for number, names in tied.items()}
    return {name: copies[id(tensor)] for name, tensor in wanted.items()}


def _tied(wanted: Mapping[str, Tensor]) -> Mapping[int, list[str]]:
    """The names of each tensor, by its identity."""
    names: dict[int, list[str]] = defaultdict(list)
    for name, tensor in wanted.items():
        names[id(tensor)].append(name)
    return names


def _problems(
    wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], tied: Mapping[int, list[str]]
) -> Iterator[str]:
    """What keeps the tensors that were found from taking the place of those that are wanted."""
    yield from (f"missing {name}" for name in wanted if name not in found)
    yield from filter(None, (_misfit(name, wanted[name], tensor) for name, tensor in found.items()))
    yield from filter(None, (_untied(names, found) for names in tied.values()))


def _tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers under all of their names."""
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


def inside(module: nn.Module) -> Any:
    """What a wrapper wraps, or None."""
    return next((module._modules[name] for name in _WRAPPED if module._modules.get(name) is not None), None)


def _unwrapped(module: nn.Module, wanted: Mapping[str, Tensor]) -> nn.Module:
    """The module that has the tensors, out of torch.compile's, DistributedDataParallel's or AveragedModel's wrapper."""
    inner: Any = module
    while isinstance(inner, nn.Module):
        if any(_tensor_at(inner, name) is not None for name in wanted):
            return inner
        inner = inside(inner)
    return module


def _tensor_at(module: nn.Module, name: str) -> Tensor | None:
    """What the module computes with under a name, or its own name for it: of a parametrised tensor its value."""
    for known in (name, own_name(name)):
        try:
            value = operator.attrgetter(known)(module)
        except AttributeError:
            continue
        if isinstance(value, Tensor):
            return value
    return None


def _misfit(name: str, own: Tensor, tensor: Tensor) -> str:
    if type(tensor) not in (Tensor, nn.Parameter):  # shared out over processes, quantised, not made yet
        return f"{name} as a {type(tensor).__name__}"
    if tensor.shape != own.shape:
        return f"{name} {list(tensor.shape)} instead of {list(own.shape)}"
    if tensor.dtype != own.dtype or tensor.layout != own.layout or tensor.is_meta:
        return f"{name} of {tensor.dtype} on {tensor.device} instead of {own.dtype}"
    got = unfinite(tensor)
    return f"{got} in {name}" if got else ""


def check_finite(program: ExportedProgram) -> None:
    """NaN and infinity are refused; minus infinity may stand in a buffer, as attention masks have it."""
    for name, tensor in {**program.constants, **program.state_dict}.items():
        got = unfinite(tensor)
        if got:
            raise InputError(f"tensor {name!r}: expected finite values, got {got}")


def unfinite(tensor: Tensor) -> str:
    """NaN or infinity where a tensor has it, else nothing; a buffer may have minus infinity, as attention masks do."""
    if not (tensor.dtype.is_floating_point or tensor.dtype.is_complex) or torch.isfinite(tensor).all():
        return ""
    if tensor.isnan().any():
        return "NaN"
    never = isinstance(tensor, nn.Parameter) or tensor.dtype.is_complex
    return "infinity" if never or tensor.isposinf().any() else ""


def _untied(aliases: Sequence[str], found: Mapping[str, Tensor]) -> str:
    """One tensor under several names has to have one value."""
    first, *others = [name for name in aliases if name in found] or [""]
    for name in others:
        if found[name] is not found[first] and not torch.equal(found[name], found[first]):
            return f"other values in {name} than in {first}, to which it is tied"
    return ""


def _copy(own: Tensor, tensor: Tensor) -> Tensor:
    data = tensor.detach().to(own.device).clone()
    return nn.Parameter(data, own.requires_grad) if isinstance(own, nn.Parameter) else data


def _hint(module: nn.Module, wanted: Mapping[str, Tensor]) -> str:
    for name, part in module.named_modules():
        if name and all(_tensor_at(part, tensor) is not None for tensor in wanted):
            return f"; its part {name!r} fits"
    return ""


def check_answers(own: nn.Module, module: nn.Module, args: tuple[Any, ...]) -> None:
    """Refuse a module that computes something else than the program with its weights: its graph has been changed.

    Raises:
        InputError: it does not run on the program's inputs, or gives other outputs; says how far they are apart.
    """
    inner = _unwrapped(module, _tensors_of(own))
    device = next((tensor.device for tensor in inner.parameters()), torch.device("cpu"))
    args = tree_map(lambda value: value.to(device) if isinstance(value, Tensor) else value, args)
    with evaluated(inner), torch.random.fork_rng([device] if device.type == "cuda" else []):
        with restored(inner):  # a state that it writes to: both networks run from the same one
            failure = failure_on(inner, args)
        if failure:
            raise InputError(f"with_weights: the module does not run on the program's inputs: {failure}")
        torch.manual_seed(0)
        got = outputs(inner, args)
        torch.manual_seed(0)
        expected = outputs(own.to(device), args)
    error = relative_error(expected, got)
    tolerance = max((TOLERANCE.get(tensor.dtype, 0.0) for tensor in expected), default=0.0)
    if not error <= tolerance:
        raise InputError(
            "with_weights: the module computes something else than the program with its weights, as if layers had been "
            f"added or changed: expected a relative difference of at most {tolerance:g}, got {error:.3g}"
        )
