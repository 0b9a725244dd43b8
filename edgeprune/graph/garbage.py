"""Python's garbage collector, held back."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_collection() -> Iterator[None]:
    """Let no collection run meanwhile: making many objects that stay sets off searches through all that there are.

    A quarter of an analysis went into them. Use as a decorator or in a `with` statement, around what is short.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
