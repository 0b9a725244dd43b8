"""Which modules a program gave away, and what program a module came from.

A program's `.module()` is a copy: training it does not reach the program. So whoever is about to use a program's
weights asks first whether a module that it gave away, or a copy of one, has been trained since.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.export import ExportedProgram

from edgeprune.errors import InputError
from edgeprune.graph.weights import inside

_ORIGIN, _GIVEN = "_edgeprune_origin", "_edgeprune_given"


class _Given:
    """The modules that a program gave away, as long as they live."""

    def __init__(self) -> None:
        self.modules: weakref.WeakSet[nn.Module] = weakref.WeakSet()

    def __deepcopy__(self, memo: object) -> _Given:
        return _Given()

    def __reduce__(self) -> tuple[type[_Given], tuple[()]]:
        return _Given, ()


class _Giver(Protocol):
    """A program that gives modules away and takes their weights back."""

    def with_weights(self, module: nn.Module) -> ExportedProgram:
        """This program with the weights of a module that it gave away."""


class _Origin:
    """What a module came from; its copies came from the same, and one that is pickled forgets it."""

    def __init__(self, program: _Giver | None = None) -> None:
        self.program = program

    def __deepcopy__(self, memo: object) -> _Origin:
        return self

    def __reduce__(self) -> tuple[type[_Origin], tuple[()]]:
        return _Origin, ()


# -- which module came from which program -----------------------------------------------------------------------------


def give(program: _Giver, module: nn.Module) -> None:
    """Note that `module` is a copy of `program`, with its weights."""
    given: _Given = program.__dict__.setdefault(_GIVEN, _Given())
    given.modules.add(module)
    module.__dict__[_ORIGIN] = _Origin(program)


def give_copy(module: nn.Module, copied: nn.Module) -> None:
    """Note that `copied` came from where `module` did, if that is known."""
    origin: _Origin | None = module.__dict__.get(_ORIGIN)
    if origin is not None and origin.program is not None:
        give(origin.program, copied)


def forget_given(program: ExportedProgram) -> None:
    """Let a program, a shallow copy of another, know of no module that it gave away."""
    program.__dict__.pop(_GIVEN, None)


def check_untrained(program: ExportedProgram) -> None:
    """Refuse a program whose weights have been trained on in a module that it gave away.

    Raises:
        InputError: a module that its `.module()` gave, or a copy of one, has other weights than the program.
    """
    if _first_trained(program) is None:
        return
    gc.collect()  # what nobody holds any more may be left in a cycle
    name = _first_trained(program)
    if name is not None:
        raise InputError(
            f"the program's module has been trained, which does not reach the program ({name!r} differs): expected "
            "slim.with_weights(module), a program with the module's weights, got slim itself"
        )


def _first_trained(program: ExportedProgram) -> str | None:
    """A tensor that a module of this program has trained on, by name."""
    given: _Given | None = program.__dict__.get(_GIVEN)
    if given is None:
        return None
    own = {**program.constants, **program.state_dict}
    for module in list(given.modules):
        for name, tensor in _learnt(module):
            if name in own and not _same(own[name], tensor):
                return name
    return None


def _learnt(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters, and buffers where the module ever was in training mode: others may be what inference keeps."""
    yield from module.named_parameters(remove_duplicate=False)
    if getattr(module, "has_trained", False):
        yield from module.named_buffers(remove_duplicate=False)


def _same(own: Tensor, tensor: Tensor) -> bool:
    """Whether a tensor has the program's values, up to the type and the place that its module was moved to."""
    if tensor.is_meta or isinstance(tensor, FakeTensor):  # nobody trains what has no values
        return True
    plain = type(tensor) in (Tensor, nn.Parameter)
    return (
        plain
        and own.shape == tensor.shape
        and torch.equal(own.detach().to(tensor.device, tensor.dtype), tensor.detach())
    )


def giver_of(module: nn.Module) -> _Giver | None:
    """The program that gave a module away, or what it is a copy of, in a wrapper or not; None where none is known."""
    inner: Any = module
    while isinstance(inner, nn.Module):
        origin: _Origin | None = inner.__dict__.get(_ORIGIN)
        if origin is not None and origin.program is not None:
            return origin.program
        inner = inside(inner)
    return None


def current_program(given: ExportedProgram | nn.Module) -> ExportedProgram:
    """The program that is meant: itself, or that of a module, with the module's weights.

    Raises:
        InputError: a program that `check_untrained` refuses, or a module that came from none.
    """
    if isinstance(given, ExportedProgram):
        check_untrained(given)
        return given
    program = giver_of(given)
    if program is not None:
        return program.with_weights(given)
    raise InputError(
        f"expected a program, or a module that a program's .module() gave, got a {type(given).__name__} of another "
        "origin; use edgeprune.capture(module, example_inputs)"
    )
