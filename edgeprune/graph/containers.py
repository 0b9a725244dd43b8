"""What holds a network's inputs and outputs, as tuples, lists and dicts alone: of a class the names of its fields.

No class of the user's is made, called or looked up: what PyTorch's tree of a network says of it is data.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._pytree import TreeSpec


def held(spec: TreeSpec, leaves: Iterable[Any]) -> Any:
    """The leaves in tuples, lists and dicts as `spec` has them; a dataclass is a dict of the fields that are set.

    Example: `{"scores": 0, "heads": [1, 2]}` for a dataclass with these fields and the leaves 0, 1 and 2.
    """
    return _held(spec, iter(leaves))


def plain_spec(spec: TreeSpec) -> TreeSpec:
    """The same leaves in tuples, lists and dicts: a file that needs no class can name none."""
    return pytree.tree_structure(held(spec, range(spec.num_leaves)))


def field_names(context: Any, n_children: int) -> list[str] | None:
    """The names of a class's children, as its tree tells them beside them; None where it tells something else.

    A dataclass tells those that are set and those that are None, a ModelOutput of transformers those that are set.
    """
    if isinstance(context, (list, tuple)) and len(context) == 2 and isinstance(context[0], (list, tuple)):
        context = context[0]
    if not isinstance(context, (list, tuple)) or len(context) != n_children:
        return None
    return list(context) if all(type(name) is str for name in context) else None


def register_dataclasses(outputs: Any) -> None:
    """Make every dataclass in `outputs` known to PyTorch, as an export asks."""
    for leaf in pytree.tree_leaves(outputs):
        if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            torch.export.register_dataclass(type(leaf))
            register_dataclasses([getattr(leaf, field.name) for field in dataclasses.fields(leaf)])


def _held(spec: TreeSpec, leaves: Iterator[Any]) -> Any:
    if spec.type is None:
        return next(leaves)
    children = [_held(child, leaves) for child in spec.children()]
    kind = spec.type if isinstance(spec.type, type) else tuple  # of any named tuple, PyTorch says `namedtuple`
    if issubclass(kind, (list, deque)):
        return children
    names = _keys(kind, spec)
    if names is None:  # tuples, named ones too, and what does not tell what it calls its parts
        return tuple(children)
    made = OrderedDict if kind is OrderedDict else dict
    return made(zip(names, children, strict=True))


def _keys(kind: type, spec: TreeSpec) -> list[Any] | None:
    if kind in (dict, OrderedDict):
        return list(spec.context)
    if kind is defaultdict:
        return list(spec.context[1])
    return None if issubclass(kind, tuple) else field_names(spec.context, spec.num_children)
