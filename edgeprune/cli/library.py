"""The library's import, which a command line that is only parsed goes without."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_LIBRARY = "edgeprune.pipeline"


@contextmanager
def imported_for_good() -> Iterator[None]:
    """Within it the library is imported; what that makes stays, and no search for garbage looks at it, ever.

    It is half a million objects, and searches through all of them took a tenth of a command's time.
    """
    if _LIBRARY in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()
