"""How a .pt2's inputs and outputs belong together: a nesting of containers, as a JSON text in the JSON text.

What is made of it has tuples, lists and dicts alone. PyTorch would look a class up that a tree names, and import what
another names: here a class's name is not even kept, and what it holds is a dict by the names of its fields.
"""

from __future__ import annotations

import json
import re
from typing import Any

from edgeprune.errors import InputError, UnsafeFileError
from edgeprune.graph.containers import field_names
from edgeprune.lines import shown
from edgeprune.reading import parse_json

_MAX_DEPTH = 32
IDENTIFIER = re.compile(r"(?!__\w*__$)[A-Za-z_][A-Za-z0-9_]{0,511}", re.ASCII)
_OUTPUT_KEY = re.compile(r"[^\"'\\\x00-\x1f]{1,200}")
_TUPLE, _LIST, _DICT, _ORDERED = "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"
_DEFAULT_DICT = "collections.defaultdict"
_PLAIN = {"collections.deque": _LIST, "collections.namedtuple": _TUPLE}
_LEAF: dict[str, Any] = {"type": None, "context": None, "children_spec": []}


def checked_input_tree(value: Any, where: str) -> str:
    """The tree of a call's arguments, all of them positional in their order: a name tells a program nothing.

    Raises:
        UnsafeFileError: no tree, or one that PyTorch does not write.
    """
    tree = _checked(value, IDENTIFIER, where)
    parts = tree["children_spec"]
    if tree["type"] == _TUPLE and [part["type"] for part in parts] == [_TUPLE, _DICT]:
        positional, named = parts
        everything = _node(_TUPLE, None, [*positional["children_spec"], *named["children_spec"]])
        tree = _node(_TUPLE, None, [everything, _node(_DICT, [], [])])
    return json.dumps([1, tree])


def checked_output_tree(value: Any, where: str) -> str:
    """The tree of what a call gives; errors as `checked_input_tree`."""
    return json.dumps([1, _checked(value, _OUTPUT_KEY, where)])


def _checked(value: Any, key: re.Pattern[str], where: str) -> dict[str, Any]:
    tree = parse_json(typed(value, str, where), f"{where}: expected a tree")
    if type(tree) is not list or len(tree) != 2 or tree[0] != 1:
        raise UnsafeFileError(f"{where}: expected a tree of version 1, got {shown(value, 40)}")
    return _checked_node(tree[1], key, where, _MAX_DEPTH)


def _checked_node(tree: Any, key: re.Pattern[str], where: str, levels: int) -> dict[str, Any]:
    kind, context = typed(tree, dict, where).get("type"), tree.get("context")
    children = typed(tree.get("children_spec"), list, where)
    if levels == 0:
        raise UnsafeFileError(f"{where}: expected at most {_MAX_DEPTH} levels, got more")
    if kind is None and context is None and not children:
        return _LEAF
    if type(kind) is not str:
        raise UnsafeFileError(f"{where}: expected tuples, lists, dicts and classes, got {shown(kind)}")
    plain, keys = _contained(kind, context, len(children), where)
    if keys is not None:
        _check_keys(keys, len(children), key, where)
    return _node(plain, keys, [_checked_node(child, key, where, levels - 1) for child in children])


def _contained(kind: str, context: Any, n_children: int, where: str) -> tuple[str, list[Any] | None]:
    """What stands for a container, and its keys where it has them, by what the file tells of it."""
    if kind in _PLAIN:
        return _PLAIN[kind], None
    if kind == _DEFAULT_DICT:
        return _DICT, typed(typed(context, dict, where).get("dict_context"), list, where)
    if kind not in (_TUPLE, _LIST, _DICT, _ORDERED):
        names = field_names(_told(context, where), n_children)
        return (_TUPLE, None) if names is None else (_DICT, names)
    told = parse_json(typed(context, str, where), f"{where}: expected keys")
    if kind in (_DICT, _ORDERED):
        return kind, typed(told, list, where)
    if told is not None:
        raise UnsafeFileError(f"{where}: expected no context for {kind}, got {shown(told)}")
    return kind, None


def _told(context: Any, where: str) -> Any:
    """What a class tells of itself, in JSON as PyTorch writes it, or in whatever words of its own."""
    try:
        return parse_json(context, where) if type(context) is str else context
    except InputError:
        return None


def _node(kind: str, keys: list[Any] | None, children: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": kind, "context": json.dumps(keys), "children_spec": children}


def _check_keys(keys: list[Any], n_children: int, pattern: re.Pattern[str], where: str) -> None:
    is_plain = all(type(key) is int or (type(key) is str and pattern.fullmatch(key)) for key in keys)
    if not is_plain or len(keys) != n_children or len(set(keys)) != n_children:
        raise UnsafeFileError(f"{where}: expected one plain name a child, got {shown(keys)}")


def typed(value: Any, kind: type, where: str) -> Any:
    """The value, which is of just this type; UnsafeFileError where it is not."""
    if type(value) is not kind:
        raise UnsafeFileError(f"{where}: expected a {kind.__name__}, got a {type(value).__name__}")
    return value
