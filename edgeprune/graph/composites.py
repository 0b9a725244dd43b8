"""Composite operators, kept whole by what was worked out once.

Each decomposition looks through all of PyTorch's operators for the 500 that are made of others, and puts twenty kernels
in the place of each, one by one, so that they are not taken apart: two thirds of the time that a small network takes.
What it finds and puts there stays the same from one decomposition to the next.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses import fake_impls
from torch.export import decomp_utils, exported_program

from edgeprune.graph.patches import replaced

_COLLECT = "_collect_all_valid_cia_ops"  # finds the composite operators
_OVERRIDE = "_override_composite_implicit_decomp"  # puts kernels in their place, within it
_collect: Any = getattr(exported_program, _COLLECT, None)
_override: Any = getattr(exported_program, _OVERRIDE, None)
_sizes: Any = getattr(fake_impls, "op_implementations_dict", None)  # what tensors without contents are computed by


@dataclass(frozen=True, slots=True, eq=False)
class _Overridden:
    """What overriding makes of an operator that had the kernels `before`."""

    before: dict[Any, Any]
    after: dict[Any, Any]
    size: Any

    def holds(self, operator: Any) -> bool:
        """Whether overriding the operator now makes the same of it."""
        return self.before == operator.py_kernels and operator not in _sizes


_overridden: dict[tuple[Any, Any], _Overridden] = {}  # by operator and what is put in its place
_composites: dict[tuple[str, ...], set[Any]] = {}


@contextlib.contextmanager
def composites_known() -> Iterator[None]:
    """Within it a decomposition goes by what an earlier one worked out, as far as that still holds."""
    with contextlib.ExitStack() as stack:
        # Another version of PyTorch may lack any of these, and keep what it knows itself.
        if _collect is not None:
            for owner in (exported_program, decomp_utils):
                stack.enter_context(replaced(owner, _COLLECT, all_composites))
        if _override is not None and _sizes is not None:
            stack.enter_context(replaced(exported_program, _OVERRIDE, _overriding))
        yield


def registered() -> tuple[str, ...]:
    """The names of all composite operators: what is known of them holds until some are added."""
    return tuple(torch._C._dispatch_get_registrations_for_dispatch_key("CompositeImplicitAutograd"))


def all_composites() -> set[Any]:
    """The composite operators that taking apart leaves whole where it is not asked to take them apart."""
    names = registered()
    if names not in _composites:
        _composites.clear()
        _composites[names] = set(_collect())
    return set(_composites[names])


@contextlib.contextmanager
def _overriding(kernels: Mapping[Any, Any]) -> Iterator[None]:
    """As PyTorch's own, which is asked for the operators that it was not asked for with these kernels before."""
    found = {operator: _overridden.get((operator, kernel)) for operator, kernel in kernels.items()}
    known = {operator: one for operator, one in found.items() if one is not None and one.holds(operator)}
    rest = {operator: kernel for operator, kernel in kernels.items() if operator not in known}
    plain = {operator: dict(operator.py_kernels) for operator in rest if operator not in _sizes}
    with _override(rest):
        for operator, before in plain.items():
            after = dict(operator.py_kernels)
            _overridden[operator, rest[operator]] = _Overridden(before, after, _sizes[operator])
        try:
            for operator, one in known.items():
                _put(operator, one.after)
                _sizes[operator] = one.size
            yield
        finally:
            for operator, one in known.items():
                _put(operator, one.before)
                _sizes.pop(operator, None)


def _put(operator: Any, kernels: Mapping[Any, Any]) -> None:
    operator.py_kernels.clear()
    operator.py_kernels.update(kernels)
    operator._dispatch_cache.clear()
