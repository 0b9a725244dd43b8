"""The places of a server: who holds one and takes nothing makes room for others, and so does who holds most of them."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

_STALLED_SECONDS = 1.0  # without taking anything, after which a place may go to another client
_FAIR = 8  # places of one client, of which a browser takes six; more are its own only while nobody else wants them


@dataclass(eq=False, slots=True)
class _Place:
    """A connection, whose it is, and when anything was sent on it last."""

    connection: socket.socket
    client: str
    moved: float


class Places:
    """So many connections at a time.

    Example: `places.take(connection, "192.168.1.5")`, `places.moved(connection)` as it goes on, then `places.leave`.
    """

    def __init__(self, n_places: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._n_places = n_places
        self._clock = clock
        self._lock = threading.Lock()
        self._taken: dict[int, _Place] = {}

    def __len__(self) -> int:
        return len(self._taken)

    def take(self, connection: socket.socket, client: str) -> bool:
        """Whether there is a place for the connection; another one may have been ended for it."""
        now = self._clock()
        with self._lock:
            if len(self._taken) >= self._n_places:
                idle = self._idlest(client, now)
                if idle is None:
                    return False
                del self._taken[id(idle.connection)]
                with contextlib.suppress(OSError):  # it has gone just now
                    idle.connection.shutdown(socket.SHUT_RDWR)  # its thread finds that it is over
            self._taken[id(connection)] = _Place(connection, client, now)
        return True

    def moved(self, connection: socket.socket) -> None:
        """Something was sent on it."""
        with self._lock:
            if id(connection) in self._taken:
                self._taken[id(connection)].moved = self._clock()

    def leave(self, connection: socket.socket) -> None:
        """It is over."""
        with self._lock:
            self._taken.pop(id(connection), None)

    def _idlest(self, client: str, now: float) -> _Place | None:
        """The place to be given to `client`: of those who hold most, the one that has not moved for longest."""
        held = Counter(place.client for place in self._taken.values())
        free = [
            place
            for place in self._taken.values()
            if now - place.moved >= _STALLED_SECONDS or (held[place.client] > _FAIR and place.client != client)
        ]
        return max(free, key=lambda place: (held[place.client], now - place.moved), default=None)
