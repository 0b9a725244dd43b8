"""A user's file is run by its path, and nothing is left beside it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from edgeprune.userfile import import_file


def test_it_imports_its_neighbours_and_leaves_no_bytecode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    (tmp_path / "neighbour_of_net.py").write_text("WIDTH = 7\n")
    (tmp_path / "net.py").write_text("from neighbour_of_net import WIDTH\n")
    module = import_file(tmp_path / "net.py", "edgeprune_test_net")
    assert module.WIDTH == 7
    assert sorted(os.listdir(tmp_path)) == ["neighbour_of_net.py", "net.py"]
    assert str(tmp_path) not in sys.path
    assert sys.dont_write_bytecode is False


def test_what_the_file_raises_comes_through_and_nothing_stays(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("raise RuntimeError('no')\n")
    with pytest.raises(RuntimeError, match="no"):
        import_file(tmp_path / "net.py", "edgeprune_test_broken")
    assert "edgeprune_test_broken" not in sys.modules
    assert str(tmp_path) not in sys.path
