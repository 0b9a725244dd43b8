"""The journal of one search: results are taken from it as long as there are any, and added to it from then on."""

from __future__ import annotations

import contextlib
import hashlib
import io
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from edgeprune.errors import CheckError, InputError, came_from_outside
from edgeprune.files import write_atomically
from edgeprune.formats.digests import update_with
from edgeprune.formats.load import unpack
from edgeprune.journal.place import Entry, Place
from edgeprune.lines import error_line
from edgeprune.progress import Progress
from edgeprune.reading import read_file
from edgeprune.training.state import Pace, StateFile, check_alike


class Journal:
    """What a search has come to, in a place on the disk while it is `held`; otherwise nothing is kept.

    Args:
        place: the folder.
        asked: what makes the run this one and no other, as plain values.
        resume: whether the search goes on from what is there; else that is replaced.

    Raises:
        InputError: what is to be resumed is damaged, of another run, or in another process's hands.
    """

    def __init__(self, place: Place, asked: Mapping[str, Any], resume: bool) -> None:
        self._place, self._asked = place, asked
        self._goes_on = resume and place.is_there
        place.check_free()
        found = place.facts(asked) if self._goes_on else None
        self.facts: dict[str, Any] = dict(found or {})
        self._entries: list[Entry] = []
        self._reached = 0  # results that the search has come to
        self._is_held = self._is_found = False
        self._underway: str | None = None
        self._pace = Pace()
        self._started, self._before = time.perf_counter(), 0.0

    @property
    def replaces(self) -> bool:
        """Whether the run goes on: then its output place was free, or was to be replaced, when it began."""
        return self._goes_on

    @property
    def earlier(self) -> float:
        """Seconds that the search took in earlier processes."""
        return self._before

    def clock(self) -> float:
        """Seconds that the search has taken, in whatever processes."""
        return time.perf_counter() - self._started + self._before

    @contextlib.contextmanager
    def held(self, told: Progress) -> Iterator[None]:
        """Keep what the search comes to inside; it goes when the body ends, and where going on cannot help.

        What ends the body from outside (Ctrl-C, a full disk), or once the search has `found` what it was to, leaves it,
        and that is said.

        Raises:
            InputError: another process works on it, or it is damaged.
        """
        with self._place.held(fresh=not self._goes_on):
            try:
                self._begin(told)
                self._is_held = True
                yield
            except BaseException as error:
                self._leave(error, told)
                raise
            finally:
                self._is_held = False
            self._place.remove()

    def _begin(self, told: Progress) -> None:
        known = self._place.facts(self._asked) if self._goes_on else None
        if known is None:
            self._place.begin(self._asked, self.facts)
        self._entries = list(self._place.entries())
        if self._entries:
            told.say(f"{self._place.path}: {len(self._entries)} results are there; the search goes on after them")

    def _leave(self, error: BaseException, told: Progress) -> None:
        if self._place.is_begun and (self._is_found or came_from_outside(error)):
            told.say(f"{self._place.path} holds what the search has come to; --resume goes on with it")
        elif not self._goes_on or isinstance(error, CheckError):
            self._place.remove()  # nothing is there, or it would come to the same again

    def found(self) -> None:
        """The search is over: what fails from here on, a file or a measurement, can be tried again without it."""
        self._is_found = True

    # -- results ---------------------------------------------------------------------------------------------------

    @property
    def has_next(self) -> bool:
        """Whether the next result is there."""
        return self._is_held and self._reached < len(self._entries)

    def comes_to(self, kind: str) -> bool:
        """Whether the next result is there, and of this kind."""
        return self.has_next and self._entries[self._reached].kind == kind

    def kept(self, kind: str, asked: str, work: Callable[[], Any], module: nn.Module | None = None) -> Any:
        """What `work` gives, as plain JSON values: from the journal where it is there, else it is done and kept.

        Args:
            kind: what is done, e.g. "finetune".
            asked: a digest of all that it depends on.
            module: what the work trains in place; its weights are kept and put back.

        Raises:
            InputError: what is there is the result of something else, or damaged; the disk is full.
        """
        if not self._is_held:
            return work()
        if self.has_next:
            return self._taken(kind, asked, module)
        self._underway = asked
        try:
            value = work()
        finally:
            self._underway = None
        self._keep(kind, asked, value, module)
        return value

    def running(self) -> StateFile | None:
        """Where the training that is underway keeps the state after its epochs; it goes on from what is there."""
        if self._underway is None:
            return None
        file = self._place.training_file(self._reached)
        return StateFile(file, {"asked": self._underway}, resume=True, pace=self._pace)

    def _taken(self, kind: str, asked: str, module: nn.Module | None) -> Any:
        entry, number = self._entries[self._reached], self._reached
        if (entry.kind, entry.asked) != (kind, asked):
            raise InputError(
                f"{self._place.path}: result {number + 1}: expected that of the {kind} which the search comes to, got "
                f"another ({entry.kind}): on this machine it goes another way; --force starts afresh"
            )
        if module is not None and entry.weights is not None:
            self._put_back(number, entry.weights, module)
        self._reached += 1
        self._place.training_file(number).unlink(missing_ok=True)
        self._before = max(self._before, entry.at - (time.perf_counter() - self._started))
        return entry.value

    def _keep(self, kind: str, asked: str, value: Any, module: nn.Module | None) -> None:
        weights = None
        if module is not None:
            buffer = io.BytesIO()
            torch.save({name: tensor.detach() for name, tensor in tensors_of(module).items()}, buffer)
            content = buffer.getvalue()
            weights = hashlib.sha256(content).hexdigest()
            write_atomically(self._place.weights_file(self._reached), content)
        entry = Entry(kind, asked, value, weights, self.clock())
        self._place.add(entry)
        self._entries.append(entry)
        self._place.training_file(self._reached).unlink(missing_ok=True)
        self._reached += 1

    def _put_back(self, number: int, digest: str, module: nn.Module) -> None:
        file = self._place.weights_file(number)
        content = read_file(file, "training")
        if hashlib.sha256(content).hexdigest() != digest:
            raise InputError(f"{file}: expected the weights that the search wrote there, got others")
        own, kept = tensors_of(module), unpack(content, str(file))
        try:
            check_alike(own, kept, "weights")
        except ValueError as error:
            raise InputError(f"{file}: expected weights of this network, got others: {error_line(error)}") from error
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(kept[name])


def fingerprint(tensors: Mapping[str, Tensor], *asked: object) -> str:
    """A digest of a network's weights and buffers, and of what is asked of it, by what `repr` says of that."""
    total = hashlib.sha256(repr(asked).encode())
    for name, tensor in sorted(tensors.items()):
        update_with(total, name, tensor)
    return total.hexdigest()


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """A module's weights and buffers by name, those that are tied under each."""
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }
