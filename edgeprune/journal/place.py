"""The folder of a journal: what is asked for, the results so far, the weights that trainings left."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeprune.errors import InputError
from edgeprune.files import parents_of, write_atomically, writing_to
from edgeprune.reading import parse_json, read_file, read_json
from edgeprune.staging import clear, sole
from edgeprune.training.state import different, expected_got

FORMAT = "edgeprune-compressing/1"
_ASKED, _RESULTS = "asked.json", "results.jsonl"
_ALONE = {"processes": 1}  # what is left out where there is one


@dataclass(frozen=True, slots=True)
class Entry:
    """One result: what it is of, what came of it, and how many seconds the search had run by then.

    `asked` is a digest of what was asked for, `weights` that of the file of weights that goes with it, if any.
    """

    kind: str
    asked: str
    value: Any
    weights: str | None
    at: float


@dataclass(frozen=True, slots=True)
class Place:
    """Where a journal lies while its search is underway; `told_as` says how what was asked for differs."""

    path: Path
    told_as: Callable[[str, str, str], str] = expected_got

    @property
    def is_there(self) -> bool:
        """Whether something was left there."""
        return os.path.lexists(self.path)

    @property
    def is_begun(self) -> bool:
        """Whether it holds more than what was asked for."""
        return self.path.is_dir() and any(path.name != _ASKED for path in self.path.iterdir())

    def check_free(self) -> None:
        """Raise InputError where another process works on it."""
        if self.path.is_dir():
            with sole(self.path) as is_sole:
                self._check_sole(is_sole)

    @contextlib.contextmanager
    def held(self, fresh: bool) -> Iterator[None]:
        """Make the folder, or take what is there, anew where it is `fresh`; nobody else takes it until the end.

        Raises:
            InputError: another process works on it, or it cannot be made.
        """
        with writing_to(self.path), parents_of(self.path):
            made = not self.is_there
            if made:
                self.path.mkdir()
            elif self.path.is_symlink() or not self.path.is_dir():
                raise InputError(f"{self.path}: expected the folder of an unfinished run, got something else")
            with sole(self.path) as is_sole:
                self._check_sole(is_sole)
                clear(self.path)
                if fresh and not made:
                    self._check_ours()
                    for path in self.path.iterdir():
                        path.unlink()
                yield

    def remove(self) -> None:
        """Nothing is left to go on with."""
        shutil.rmtree(self.path, ignore_errors=True)

    def begin(self, asked: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        """Write down what the run is, whole."""
        document = {"format": FORMAT, "asked": dict(asked), "facts": dict(facts)}
        write_atomically(self.path / _ASKED, json.dumps(document, indent=1).encode())

    def facts(self, asked: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """What was measured before the search began; None where nothing was written down yet.

        Raises:
            InputError: damaged, or of another run; says what differs.
        """
        file = self.path / _ASKED
        if not os.path.lexists(file):
            return None
        document = read_json(file, "run")
        found = document if isinstance(document, dict) and document.get("format") == FORMAT else {}
        known, facts = found.get("asked"), found.get("facts")
        if not isinstance(known, dict) or not isinstance(facts, dict):
            raise InputError(f"{file}: expected the beginning of a run ({FORMAT}), got something else")
        differing = different(_ALONE | dict(asked), _ALONE | known, self.told_as)
        if differing:
            raise InputError(
                f"{self.path}: this is the state of another run; {differing}; --force starts afresh in its place"
            )
        return facts

    def entries(self) -> tuple[Entry, ...]:
        """The results that are there; a last line that a kill cut off goes.

        Raises:
            InputError: damaged.
        """
        file = self.path / _RESULTS
        if not os.path.lexists(file) or (file.is_file() and file.stat().st_size == 0):
            return ()
        content = read_file(file, "results")
        whole, _, torn = content.rpartition(b"\n")
        if torn:
            with writing_to(file):
                os.truncate(file, len(content) - len(torn))
        lines = whole.split(b"\n") if whole else []
        return tuple(_entry(line, f"{file}: line {number}") for number, line in enumerate(lines, 1))

    def add(self, entry: Entry) -> None:
        """Write a result down, to stay."""
        line = [entry.kind, entry.asked, entry.value, entry.weights, entry.at]
        file = self.path / _RESULTS
        with writing_to(file), open(file, "ab") as results:
            results.write(json.dumps(line, allow_nan=False).encode() + b"\n")
            results.flush()
            os.fsync(results.fileno())

    def weights_file(self, number: int) -> Path:
        """Where the weights lie that go with a result."""
        return self.path / f"{number:06d}.pt"

    def training_file(self, number: int) -> Path:
        """Where the state of the training lies that is to come to a result."""
        return self.path / f"{number:06d}.training"

    def _check_sole(self, is_sole: bool) -> None:
        if not is_sole:
            raise InputError(f"{self.path}: expected a run that was stopped, got one that another process works on")

    def _check_ours(self) -> None:
        """Raise InputError where it holds anything that no journal does: it would be lost."""
        for path in sorted(self.path.iterdir()):
            known = path.name in (_ASKED, _RESULTS) or path.suffix in (".pt", ".training", ".part")
            if not known or path.is_dir():
                raise InputError(
                    f"{self.path}: expected the folder of an unfinished run, got one that holds {path.name}"
                )


def _entry(line: bytes, where: str) -> Entry:
    value = parse_json(line, f"{where}: expected a result")
    match value:
        case [str(kind), str(asked), found, (None | str()) as weights, (int() | float()) as at]:
            return Entry(kind, asked, found, weights, float(at))
    raise InputError(f"{where}: expected a result of a search, got something else")
