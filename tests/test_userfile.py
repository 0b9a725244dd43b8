"""A user's file is run by its path, nothing is left beside it, and what it only imports is not its own."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeprune.data import open_data
from edgeprune.errors import InputError
from edgeprune.formats.architectures import build
from edgeprune.userfile import import_file


def test_it_imports_its_neighbours_and_leaves_no_bytecode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    (tmp_path / "neighbour_of_net.py").write_text("WIDTH = 7\n")
    (tmp_path / "net.py").write_text("from neighbour_of_net import WIDTH\n")
    module = import_file(tmp_path / "net.py")
    assert module.WIDTH == 7
    assert sorted(os.listdir(tmp_path)) == ["neighbour_of_net.py", "net.py"]
    assert str(tmp_path) not in sys.path
    assert sys.dont_write_bytecode is False


def test_what_the_file_raises_comes_through_and_nothing_stays(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("raise RuntimeError('no')\n")
    with pytest.raises(RuntimeError, match="no"):
        import_file(tmp_path / "net.py")
    assert not [name for name, module in sys.modules.items() if str(tmp_path) in str(getattr(module, "__file__", ""))]
    assert str(tmp_path) not in sys.path


# -- defined in the file that is named ---------------------------------------------------------------------------------

NETS = """
import functools
from functools import partial
from os import system
import os
from elsewhere import borrowed, Borrowed, PARTIAL, decorate, made_by
from torch.nn import Linear
alias_of_import = os.system
again = borrowed
half_borrowed = partial(borrowed, width=3)
by_lambda = lambda width=3: borrowed(width)
def plain(width=3): return borrowed(width)
@decorate
def decorated(width=3): return borrowed(width)
@functools.cache
def cached(width=3): return borrowed(width)
class Own(Linear):
    def __init__(self, width=3): super().__init__(width, 1)
alias = plain
alias_again = alias
Alias: type = Own
made = made_by(plain)
for name in ("a", "b"):
    globals()[f"net_{name}"] = lambda width=3: borrowed(width)
table = {"t": plain}
from_table = table["t"]
try:
    from nowhere import tried
except ImportError:
    def tried(width=3): return borrowed(width)
if True:
    def branched(width=3): return borrowed(width)
"""
ELSEWHERE = """
from functools import partial
from torch import nn
def borrowed(width=3): return nn.Linear(width, 1)
class Borrowed(nn.Linear):
    def __init__(self): super().__init__(3, 1)
PARTIAL = partial(borrowed, 3)
def decorate(f):
    def wrapper(*args, **named): return f(*args, **named)
    return wrapper
def made_by(f): return decorate(f)
"""
OWN = (
    "half_borrowed by_lambda plain decorated cached Own alias alias_again Alias made net_a net_b from_table tried "
    "branched"
).split()
IMPORTED = "system borrowed Borrowed PARTIAL Linear alias_of_import again decorate".split()


@pytest.fixture
def nets(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "elsewhere.py").write_text(ELSEWHERE)
    (tmp_path / "nets.py").write_text(NETS)
    yield tmp_path / "nets.py"
    sys.modules.pop("elsewhere", None)


@pytest.mark.parametrize("name", OWN)
def test_what_a_file_defines_is_built(nets: Path, name: str) -> None:
    assert build(f"{nets}:{name}").in_features == 3  # type: ignore[comparison-overlap]


@pytest.mark.parametrize("name", IMPORTED)
def test_what_a_file_imports_is_none_of_its_own(nets: Path, name: str) -> None:
    for call in (build, open_data):
        with pytest.raises(InputError, match=rf"expected '{name}' to be defined in .*nets\.py, got what is imported"):
            call(f"{nets}:{name}?command=touch {nets.parent / 'MARKER'}")
    assert not (nets.parent / "MARKER").exists()


def test_a_package_hands_on_what_it_imports(nets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = nets.parent / "package_of_nets"
    package.mkdir()
    (package / "inner.py").write_text("from torch import nn\ndef net(): return nn.Linear(3, 1)\n")
    (package / "__init__.py").write_text("from package_of_nets.inner import net\n")
    monkeypatch.chdir(nets.parent)
    assert build("package_of_nets:net").in_features == 3  # type: ignore[comparison-overlap]
