"""A bound on what a foreign library may take of the memory, for what cannot be known before it runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def bounded_memory(n_bytes: int) -> Iterator[None]:
    """Let the process grow by `n_bytes` of address space at most; what wants more fails to get it.

    Where the system tells no process how large it is, nothing is bounded.
    """
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except (ImportError, OSError, ValueError):
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = pages * resource.getpagesize() + n_bytes
    infinite = resource.RLIM_INFINITY
    limits = [limit for limit in (wanted, soft, hard) if limit != infinite]
    resource.setrlimit(resource.RLIMIT_AS, (min(limits), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
