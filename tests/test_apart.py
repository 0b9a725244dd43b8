"""Foreign converters in a process of their own: what fails, crashes or hangs there is one line here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgeprune.errors import InputError
from edgeprune.export import apart


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module that a process of its own imports by name."""
    (tmp_path / "foreign.py").write_text(
        "import os, signal, sys, time\n"
        "from edgeprune.errors import InputError\n"
        "def write(place, text):\n"
        "    print('noise')\n"
        "    open(place, 'w').write(text)\n"
        "def fails(): raise KeyError('lost')\n"
        "def refuses(): raise InputError('layer conv1: no such thing')\n"
        "def crashes():\n"
        "    print('layer Foo not exists', file=sys.stderr, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGSEGV)\n"
        "def leaves():\n"
        "    print('cannot go on', flush=True)\n"
        "    os._exit(7)\n"
        "def hangs(place):\n"
        "    child = os.fork()\n"
        "    if child: open(place, 'w').write(str(child))\n"
        "    print('still at it', flush=True)\n"
        "    time.sleep(600)\n"
        "def load(file, threads):\n"
        "    factor = float(file.read_text())\n"
        "    return lambda arrays: [arrays[0] * factor, arrays[1] + threads]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return "foreign"


def test_a_function_is_called_elsewhere_and_is_silent_here(
    foreign: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    apart.called(f"{foreign}:write", {"place": str(tmp_path / "out"), "text": "ü 1"}, "it cannot be written")
    assert (tmp_path / "out").read_text() == "ü 1" and foreign not in sys.modules
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("fails", r"^no way: KeyError: 'lost'$"),
        ("refuses", r"^no way: layer conv1: no such thing$"),
        ("crashes", r"^no way: its process crashed \(SIGSEGV\); its last words: layer Foo not exists$"),
        ("leaves", r"^no way: its process ended with exit code 7; its last words: cannot go on$"),
    ],
)
def test_a_failure_is_one_line(foreign: str, name: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        apart.called(f"{foreign}:{name}", {}, "no way")


def test_what_hangs_is_ended_with_all_that_it_started(foreign: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^no way: it took more than 3 s; its last words: still at it$"):
        apart.called(f"{foreign}:hangs", {"place": str(tmp_path / "child")}, "no way", seconds=3)
    child = int((tmp_path / "child").read_text())
    wait_until(lambda: not _is_running(child))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_what_was_asked_by_a_process_that_is_killed_ends_with_it(foreign: str, tmp_path: Path, number: int) -> None:
    place = tmp_path / "pid"
    asks = f"from edgeprune.export import apart; apart.called('{foreign}:hangs', {{'place': {str(place)!r}}}, 'no way')"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    caller = subprocess.Popen([sys.executable, "-c", asks], env=env)
    wait_until(lambda: place.exists() and bool(place.read_text()))
    os.kill(caller.pid, number)
    caller.wait()
    wait_until(lambda: not _is_running(int(place.read_text())))


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def _is_running(process: int) -> bool:
    """One that nobody has waited for yet runs no more."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_answers_of_a_file_come_back_as_they_are(foreign: str, tmp_path: Path) -> None:
    file = tmp_path / "model"
    file.write_text("2.5")
    samples = [(np.full((n, 2), n, np.float32), np.arange(n)) for n in (1, 3)]
    first, second = apart.answers(f"{foreign}:load", file, samples, "it cannot be run")
    assert [array.dtype for array in first] == [np.float32, np.int64]
    np.testing.assert_array_equal(second[0], np.full((3, 2), 7.5, np.float32))
    np.testing.assert_array_equal(second[1], [1, 2, 3])
    with pytest.raises(InputError, match=r"^it cannot be run: FileNotFoundError"):
        apart.answers(f"{foreign}:load", tmp_path / "none", samples, "it cannot be run")
    assert os.listdir(tmp_path).count("model") == 1
