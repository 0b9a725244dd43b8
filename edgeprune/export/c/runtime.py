"""The part of C: a compiler of this machine makes a library of a file, and what it computes is read from its arena."""

from __future__ import annotations

import ctypes
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeprune.errors import InputError
from edgeprune.export.apart import Answer
from edgeprune.lines import one_line

_COMPILERS = ("cc", "gcc", "clang")
_FLAGS = ("-std=c99", "-O2", "-fPIC", "-shared")
_SECONDS = 600.0
_TYPES = {"float": np.float32, "uint8_t": np.uint8, "int8_t": np.int8, "int32_t": np.int32}


def compiler() -> tuple[str, ...]:
    """The command of a C compiler: what CC names, else the first of cc, gcc and clang.

    Raises:
        InputError: there is none.
    """
    named = shlex.split(os.environ.get("CC", ""))
    for command in (named, *([name] for name in _COMPILERS)):
        if command and shutil.which(command[0]):
            return tuple(command)
    raise InputError("C: expected a compiler to run the file with (cc, gcc or clang, or what CC names), got none")


def compiled(file: Path, out: Path, flags: Sequence[str] = _FLAGS) -> None:
    """Make a library of a C file.

    Raises:
        InputError: the compiler refuses it or takes too long; with the first error that it tells.
    """
    command = [*compiler(), *flags, "-o", str(out), str(file), "-lm"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        raise InputError(f"{command[0]} took more than {_SECONDS:.0f} s for {file.name}") from None
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        said = next((line for line in lines if "error" in line), lines[-1] if lines else "it said nothing")
        raise InputError(f"{command[0]} ended with {done.returncode}: {one_line(said, 160)}")


def load(file: Path, threads: int) -> Answer:
    """A C file, its header beside it, which takes what the network takes; it computes in one thread."""
    library = Library.of(file)

    def answer(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        library.fill(arrays)
        return library.run()

    return answer


def load_raw(file: Path, threads: int) -> Answer:
    """A C file whose inputs are made of raw ones: gives what it makes of these."""
    library = Library.of(file)

    def answer(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        library.load(arrays)
        return [np.array(one) for one in library.inputs]

    return answer


@dataclass(frozen=True, slots=True, eq=False)
class Library:
    """A compiled file in this process; `inputs`, `outputs` and the types of `raw` inputs are as its header says."""

    handle: Any
    prefix: str
    inputs: list[np.ndarray]
    outputs: list[np.ndarray]
    raw: list[Any]

    @classmethod
    def of(cls, file: Path) -> Library:
        """Compiled and loaded."""
        with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
            place = Path(folder) / "network.so"
            compiled(file, place)
            handle = ctypes.CDLL(str(place))
        header = file.with_suffix(".h").read_text(encoding="ascii")
        parts = [
            [_array(getattr(handle, f"{file.stem}_{kind}{k}"), *value) for k, value in enumerate(_values(header, kind))]
            for kind in ("input", "output")
        ]
        raw = [kind for kind, _ in _values(header, "raw")]
        return cls(handle, file.stem, parts[0], parts[1], raw)

    def fill(self, arrays: Sequence[np.ndarray]) -> None:
        """Put all inputs in their places."""
        for place, array in zip(self.inputs, arrays, strict=True):
            is_narrowed = place.dtype == np.int32  # of whole numbers of 64 bits
            np.copyto(place, array.reshape(place.shape), casting="same_kind" if is_narrowed else "no")

    def load(self, arrays: Sequence[np.ndarray]) -> None:
        """Let it make all inputs of raw ones."""
        held = [np.ascontiguousarray(array, kind) for array, kind in zip(arrays, self.raw, strict=True)]
        getattr(self.handle, f"{self.prefix}_load")(*(one.ctypes.data_as(ctypes.c_void_p) for one in held))

    def run(self) -> list[np.ndarray]:
        """All outputs, as arrays of their own."""
        getattr(self.handle, f"{self.prefix}_run")()
        return [np.array(one) for one in self.outputs]


def _values(header: str, kind: str) -> list[tuple[Any, tuple[int, ...]]]:
    """The type and the shape of all inputs, outputs or raw inputs that a header tells of."""
    found = re.findall(rf"_{kind.upper()}\d+_(TYPE|DIMS) (.+)", header)
    types = [_TYPES[text] for what, text in found if what == "TYPE"]
    shapes = [tuple(map(int, text.strip("{}").split(","))) for what, text in found if what == "DIMS"]
    return list(zip(types, shapes, strict=True))


def _array(function: Any, kind: Any, shape: tuple[int, ...]) -> np.ndarray:
    """What lies where a function points to."""
    function.restype = ctypes.POINTER(np.ctypeslib.as_ctypes_type(kind))
    return np.ctypeslib.as_array(function(), shape=shape)
