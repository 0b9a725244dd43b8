"""A Python file of the user's, by its path, and whether what is named in it is its own."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from edgeprune.errors import InputError
from edgeprune.reading import open_file
from edgeprune.usercode import calling_user_code, name_own


def import_file(path: str | os.PathLike[str]) -> ModuleType:
    """Run the file as a module of a name of its own; it may import its neighbours. Nothing is written beside it.

    Raises:
        ImportError: Python takes it for no source file.
        BaseException: whatever the file itself raises.
    """
    full = os.path.abspath(path)
    name = f"edgeprune_user_{hashlib.sha256(os.fsencode(full)).hexdigest()[:16]}"  # two files may both be model.py
    spec = importlib.util.spec_from_file_location(name, full)
    if spec is None or spec.loader is None:
        raise ImportError(f"expected a Python file, got {full}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        with _beside(os.path.dirname(full)):
            spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def run_file(path: str | os.PathLike[str], told: str) -> ModuleType:
    """As `import_file`; what the file raises is an InputError that begins with `told`, see `calling_user_code`."""
    name_own(path)
    with calling_user_code(told):
        return import_file(path)


def load_function(path: Path, function: str) -> Callable[..., Any]:
    """What a file of the user's defines by this name, which can be called.

    Raises:
        InputError: the file is none, raises as it is imported, or defines no such function.
    """
    return function_in(load_file(path), path, function)


def load_file(path: Path) -> ModuleType:
    """A file of the user's as a module.

    Raises:
        InputError: the file is none, or raises as it is imported.
    """
    open_file(path, "code").close()  # a pipe would be waited for
    return run_file(path, f"{path}: importing it raised")


def function_in(module: ModuleType, path: Path, function: str) -> Callable[..., Any]:
    """What a module made of a file defines by this name, which can be called; InputError where it does not."""
    found = getattr(module, function, None)
    if not callable(found):
        raise InputError(f"{path}: expected a function {function!r}, got nothing of that name that can be called")
    check_defined(module, function, str(path))
    return found


def literal(value: str) -> Any:
    """An option's value as Python writes it; what is none stays a text."""
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return value


def check_defined(module: ModuleType, name: str, where: str) -> None:
    """Refuse what a file has only imported: `os.py:system` names what `os.py` took from elsewhere.

    Raises:
        InputError: neither the file's text nor its code makes what the name stands for; begins with `where`.
    """
    with calling_user_code(f"{where}: looking at {name!r} raised"):
        own = _is_defined(name, str(module.__file__)) or _is_of(vars(module).get(name), module)
    if not own:
        raise InputError(
            f"{where}: expected {name!r} to be defined in {module.__file__}, got what is imported into it; name the "
            "file that defines it"
        )


def _is_of(found: Any, module: ModuleType) -> bool:
    """Whether a function or class was made by the module's own code, e.g. in a loop; decorators are looked through."""
    plain = inspect.unwrap(found) if isinstance(found, FunctionType) else found
    if isinstance(plain, partial):
        plain = plain.func
    if isinstance(plain, FunctionType):
        return plain.__code__.co_filename == module.__file__
    return isinstance(plain, type) and plain.__module__ == module.__name__


def _is_defined(name: str, path: str) -> bool:
    """Whether the file's text defines the name: by `def` or `class`, or as what an expression of its own makes.

    E.g. `net = partial(cnn, width=8)` and `net = lambda: Net()`; but `net = other.net` only gives another name to
    something.
    """
    with open(path, "rb") as file:
        tree = ast.parse(file.read())
    bound: dict[str, ast.AST] = {}
    for node in _outer(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            bound[node.name] = node
        elif isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            bound |= {target.id: node.value for target in targets if isinstance(target, ast.Name)}
    seen: set[str] = set()
    while isinstance(alias := bound.get(name), ast.Name) and name not in seen:  # `net = cnn`, further up
        seen.add(name)
        name = alias.id
    return isinstance(bound.get(name), (ast.FunctionDef, ast.ClassDef, ast.Call, ast.Lambda))


def _outer(tree: ast.AST) -> Iterator[ast.AST]:
    """The statements that bind names of the module: those within `if`, `try` and `with` too, but no bodies."""
    for node in ast.iter_child_nodes(tree):
        yield node
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)):
            yield from _outer(node)


@contextmanager
def _beside(folder: str) -> Iterator[None]:
    """Let `folder` be imported from, without leaving bytecode in it."""
    writes_none = sys.dont_write_bytecode
    sys.path.insert(0, folder)
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.dont_write_bytecode = writes_none
        if folder in sys.path:
            sys.path.remove(folder)
