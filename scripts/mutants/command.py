"""A command run in this process, in a folder of its own, its output kept apart."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

from edgeprune.cli.app import main


@contextmanager
def folder_of(files: Mapping[str, bytes]) -> Iterator[Path]:
    """A folder with these files, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as place:
        for name, content in files.items():
            path = Path(place) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        yield Path(place)


def run_in(folder: Path, arguments: Sequence[str]) -> tuple[int, str, str]:
    """The exit code, stdout and stderr of a command; native code's output too."""
    here, kept = os.getcwd(), [os.dup(1), os.dup(2)]
    files = [tempfile.TemporaryFile(), tempfile.TemporaryFile()]
    sys.stdout.flush()
    sys.stderr.flush()
    os.chdir(folder)
    for number, file in enumerate(files, 1):
        os.dup2(file.fileno(), number)
    try:
        with open(1, "w", closefd=False) as out, open(2, "w", closefd=False) as err:
            with redirect_stdout(out), redirect_stderr(err):
                code = main(arguments)
    finally:
        for number, descriptor in enumerate(kept, 1):
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.chdir(here)
    texts = []
    for file in files:
        file.seek(0)
        texts.append(file.read().decode("utf-8", "surrogateescape"))
        file.close()
    return code, texts[0], texts[1]
