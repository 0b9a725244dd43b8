"""How a .pt2's inputs and outputs belong together: a nesting of containers, as a JSON text in the JSON text.

What is made of it has tuples, lists and dicts alone. PyTorch would look a class up that a tree names, and import what
another names: here a class's name is not even kept, and what it holds is a dict by the names of its fields.
"""

from __future__ import annotations

import json
import keyword
import re
import unicodedata
from typing import Any

from edgeprune.errors import InputError, UnsafeFileError
from edgeprune.graph.containers import field_names
from edgeprune.lines import shown
from edgeprune.reading import parse_json

_MAX_DEPTH = 32
# A call's node; what stands for a letter outside ASCII is an underscore, so that a name may be those alone.
IDENTIFIER = re.compile(r"(?!__\w*[A-Za-z0-9]\w*__$)[A-Za-z_][A-Za-z0-9_]{0,511}", re.ASCII)
# A dict's key is data: it stands in JSON alone. Not even what quotes it carelessly can be left by it.
_KEY = re.compile(r"[^\"'\\\x00-\x1f]{1,512}")
_SPECIAL, _MAX_ARGUMENT = re.compile(r"__\w*__"), 512
_TUPLE, _LIST, _DICT, _ORDERED = "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"
_DEFAULT_DICT = "collections.defaultdict"
_PLAIN = {"collections.deque": _LIST, "collections.namedtuple": _TUPLE}
_LEAF: dict[str, Any] = {"type": None, "context": None, "children_spec": []}


def checked_input_tree(value: Any, where: str) -> str:
    """The tree of a call's arguments, all of them positional in their order: a name tells a program nothing.

    Raises:
        UnsafeFileError: no tree, or one that PyTorch does not write.
    """
    tree = _checked(value, where)
    parts = tree["children_spec"]
    if tree["type"] == _TUPLE and [part["type"] for part in parts] == [_TUPLE, _DICT]:
        positional, named = parts
        everything = _node(_TUPLE, None, [*positional["children_spec"], *named["children_spec"]])
        tree = _node(_TUPLE, None, [everything, _node(_DICT, [], [])])
    return json.dumps([1, tree])


def checked_output_tree(value: Any, where: str) -> str:
    """The tree of what a call gives; errors as `checked_input_tree`."""
    return json.dumps([1, _checked(value, where)])


def _checked(value: Any, where: str) -> dict[str, Any]:
    tree = parse_json(typed(value, str, where), f"{where}: expected a tree")
    if type(tree) is not list or len(tree) != 2 or tree[0] != 1:
        raise UnsafeFileError(f"{where}: expected a tree of version 1, got {shown(value, 40)}")
    return _checked_node(tree[1], where, _MAX_DEPTH)


def _checked_node(tree: Any, where: str, levels: int) -> dict[str, Any]:
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
        _check_keys(keys, len(children), where)
    return _node(plain, keys, [_checked_node(child, where, levels - 1) for child in children])


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


def _check_keys(keys: list[Any], n_children: int, where: str) -> None:
    is_plain = all(type(key) is int or (type(key) is str and _KEY.fullmatch(key)) for key in keys)
    if not is_plain or len(keys) != n_children or len(set(keys)) != n_children:
        raise UnsafeFileError(f"{where}: expected one plain name a child, got {shown(keys)}")


def checked_argument(value: Any, where: str) -> str:
    """The name of an argument, which stands in source code as it is: a word of any script, as Python reads it.

    Raises:
        UnsafeFileError: no such word, a keyword, or one with underscores around it.
    """
    is_word = type(value) is str and value.isidentifier() and len(value) <= _MAX_ARGUMENT
    # Python takes `ｃ` for `c`: two arguments may look different and be one, and a keyword need not look like one.
    if not is_word or unicodedata.normalize("NFKC", value) != value or _is_taken(value):
        raise UnsafeFileError(f"{where}: expected an identifier, got {shown(value)}")
    return str(value)


def _is_taken(word: str) -> bool:
    return keyword.iskeyword(word) or _SPECIAL.fullmatch(word) is not None


def typed(value: Any, kind: type, where: str) -> Any:
    """The value, which is of just this type; UnsafeFileError where it is not."""
    if type(value) is not kind:
        raise UnsafeFileError(f"{where}: expected a {kind.__name__}, got a {type(value).__name__}")
    return value
