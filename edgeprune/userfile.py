"""Importing a Python file of the user's by its path."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


def import_file(path: str | os.PathLike[str], name: str) -> ModuleType:
    """Run the file as the module `name`; it may import its neighbours. Nothing is written beside it.

    Raises:
        ImportError: Python takes it for no source file.
        Exception: whatever the file itself raises.
    """
    full = os.path.abspath(path)
    spec = importlib.util.spec_from_file_location(name, full)
    if spec is None or spec.loader is None:
        raise ImportError(f"expected a Python file, got {full}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        with _beside(os.path.dirname(full)):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


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
