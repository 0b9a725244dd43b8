"""The tail of the package's complexity, counted as radon does: boolean operators and comprehensions too."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from radon.complexity import cc_visit
from radon.visitors import Function

import edgeprune

PACKAGE = Path(edgeprune.__file__).parent
ROOT = PACKAGE.parent
FILES = sorted(PACKAGE.rglob("*.py"))
MUCH, MOST = 10, 15
LARGEST_SHARE = 0.03  # of functions above MUCH
MOST_LINES = 400


def place(path: Path) -> str:
    return str(path.relative_to(PACKAGE.parent))


@pytest.fixture(scope="module")
def functions() -> dict[str, int]:
    """The complexity of every function and method, by its place."""
    return {
        f"{place(path)}:{block.lineno} {block.fullname}": block.complexity
        for path in FILES
        for block in cc_visit(path.read_text(encoding="utf-8"))
        if isinstance(block, Function)
    }


def test_no_function_is_complex(functions: dict[str, int]) -> None:
    found = [f"{where}: {complexity}" for where, complexity in functions.items() if complexity > MOST]
    assert not found, f"expected at most {MOST}, got\n" + "\n".join(found)


def test_few_functions_are_complex(functions: dict[str, int]) -> None:
    found = {where: complexity for where, complexity in functions.items() if complexity > MUCH}
    most = int(LARGEST_SHARE * len(functions))
    listed = "\n".join(f"{where}: {found[where]}" for where in sorted(found, key=lambda where: -found[where]))
    assert len(found) <= most, f"expected at most {most} of {len(functions)} above {MUCH}, got {len(found)}\n{listed}"


def test_no_file_is_long() -> None:
    lengths = {place(path): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    long = {name: length for name, length in lengths.items() if length > MOST_LINES}
    assert not long, f"expected at most {MOST_LINES} lines, got {long}"


def test_every_script_is_looked_at() -> None:
    """A script has no suffix by which ruff would find it."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    scripts = {path for path in (ROOT / "scripts").iterdir() if path.is_file() and not path.suffix}
    python = {f"scripts/{path.name}" for path in scripts if "python" in path.read_text().partition("\n")[0]}
    assert python == set(settings["tool"]["ruff"]["extend-include"])
