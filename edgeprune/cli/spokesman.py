"""Which of several processes tells of an error: one line, once, however slow the machine is."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

from edgeprune.processes import is_main, n_processes

_MAIN_FIRST_SECONDS = 3.0  # what befell all is best told by the main one
_REACHED = timedelta(seconds=10)
_SAID = timedelta(seconds=60)


@contextmanager
def turn() -> Iterator[bool]:
    """Whether this process is the one to tell; the others wait until it has, since the first to end ends them all.

    The processes count themselves in the store of `torchrun`'s agent, which outlives them; where there is none, each
    tells of its own.
    """
    if n_processes() == 1:
        yield True
        return
    if not is_main():
        time.sleep(_MAIN_FIRST_SECONDS)
    store, key = _agents_store(), f"edgeprune/told/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    if store is None or store.add(key, 1) == 1:
        try:
            yield True
        finally:
            if store is not None:
                store.set(f"{key}/said", "1")
        return
    yield False
    with suppress(RuntimeError):  # it may be at its end already, and the agent too
        store.wait([f"{key}/said"], _SAID)


def _agents_store() -> Any:
    """The store that `torchrun`'s agent keeps; None where another launcher started the processes, or it is gone."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    address, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    try:
        return TCPStore(address, int(port), is_master=False, timeout=_REACHED, wait_for_workers=False)
    except (RuntimeError, ValueError):
        return None
