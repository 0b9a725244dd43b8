"""The library's import by a command: no search for garbage goes through what it makes, and the next ones go on."""

from __future__ import annotations

import gc
import sys

import pytest

from edgeprune.cli.library import imported_for_good


@pytest.fixture
def frozen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What was frozen, in place of freezing the tests' own objects."""
    calls: list[int] = []
    monkeypatch.setattr(gc, "freeze", lambda: calls.append(1))
    return calls


def test_an_import_is_not_searched_and_stays(frozen: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "edgeprune.pipeline", raising=False)
    with imported_for_good():
        assert not gc.isenabled()
    assert gc.isenabled() and frozen == [1]


def test_one_that_fails_leaves_searches_on(frozen: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "edgeprune.pipeline", raising=False)
    with pytest.raises(ImportError), imported_for_good():
        raise ImportError
    assert gc.isenabled() and not frozen


def test_what_is_imported_already_is_left_alone(frozen: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "edgeprune.pipeline", sys)
    with imported_for_good():
        assert gc.isenabled()
    assert gc.isenabled() and not frozen


def test_who_has_turned_searches_off_keeps_them_off(frozen: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "edgeprune.pipeline", raising=False)
    gc.disable()
    try:
        with imported_for_good():
            pass
        assert not gc.isenabled() and not frozen
    finally:
        gc.enable()
