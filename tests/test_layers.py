"""Imports point down, nothing goes in circles, and the command line starts without torch."""

from __future__ import annotations

import ast
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import edgeprune

PACKAGE = Path(edgeprune.__file__).parent
# From the ground up; what stands on one floor does not import what stands beside it, but for the ground.
GROUND = {
    "catalog", "errors", "files", "lines", "memory", "places", "processes", "progress", "reading", "records",
    "requests", "results", "runrecord", "runtimes", "serving", "settings", "staging", "units", "usercode", "userfile",
    "versions",
}  # fmt: skip
FLOORS = (
    {"compat"},
    {"graph"},
    {"tasks"},
    {"data"},
    {"formats", "optim", "importance", "cost", "predictors"},
    {"methods", "pruning", "inspection", "certify"},
    {"reconstruction", "training"},
    {"search", "export", "report", "federated"},
    {"widths"},
    {"measure", "journal"},
    {"commands"},
    {"pruner"},
    {"pipeline", "integrations"},
    {"cli"},
    {"__main__"},
)
FLOOR_OF = {name: floor for floor, names in enumerate((GROUND, *FLOORS)) for name in names}
MOST_AT_THE_TOP = 24
HEAVY = {"torch", "numpy", "onnx", "onnxruntime", "scipy", "matplotlib", "jinja2"}
BARE_HELP = "import typer; app = typer.Typer(); app.command()(lambda: None); app(['--help'])"
# edgeprune's help beside that of an empty Typer command; 1.0 to 1.1 was measured, torch would make it 10.
HELP_RATIO = 1.3


def module_name(path: Path) -> str:
    parts = ("edgeprune", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"), str(MODULES[module]))


def room_of(module: str) -> str:
    """The room of a module, or its own name where it stands at the top; "" for the package itself."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def floor_of(module: str) -> int:
    """The floor of a module; the package itself (version, lazy names) is at the bottom."""
    return FLOOR_OF.get(room_of(module), 0)


def is_type_checking(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}


def imports(tree: ast.AST, *, type_checking: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """Every import below `tree`, in functions too; those under TYPE_CHECKING only where asked for."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node
        elif type_checking or not (isinstance(node, ast.stmt) and is_type_checking(node)):
            yield from imports(node, type_checking=type_checking)


def targets(module: str, node: ast.Import | ast.ImportFrom) -> list[str]:
    """The full names of the modules that `node` imports into `module`."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    base = node.module or ""
    if node.level:
        package = module.split(".") if MODULES[module].name == "__init__.py" else module.split(".")[:-1]
        parent = package[: len(package) - node.level + 1]
        base = ".".join([*parent, *([node.module] if node.module else [])])
    return [f"{base}.{alias.name}" if f"{base}.{alias.name}" in MODULES else base for alias in node.names]


def internal_imports(module: str) -> list[tuple[str, int]]:
    """The edgeprune modules that `module` imports, for types too, with line numbers."""
    nodes = imports(tree_of(module), type_checking=True)
    return [
        (target, node.lineno)
        for node in nodes
        for target in targets(module, node)
        if target.split(".")[0] == "edgeprune" and target != module
    ]


def test_every_module_has_a_floor() -> None:
    unknown = {module for module in MODULES if room_of(module) and room_of(module) not in FLOOR_OF}
    assert not unknown, f"give these a floor in FLOORS: {sorted(unknown)}"


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module: str) -> None:
    """Types included; on the ground alone may neighbours import each other."""
    floor = floor_of(module)
    upward = [
        f"{MODULES[module]}:{line}: {module} (floor {floor}) imports {target} (floor {floor_of(target)})"
        for target, line in internal_imports(module)
        if room_of(target) != room_of(module) and floor_of(target) >= floor and floor_of(target) > 0
    ]
    assert not upward, "\n".join(upward)


def test_there_are_no_cycles() -> None:
    """Types included: what would go in a circle names a protocol instead."""
    edges = {module: {target for target, _ in internal_imports(module)} for module in MODULES}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, "import cycle: " + " -> ".join([*path[path.index(module) :], module])
        if module in done:
            return
        for target in sorted(edges.get(module, ())):
            visit(target, (*path, module))
        done.add(module)

    for module in MODULES:
        visit(module, ())


def test_few_files_stand_at_the_top() -> None:
    top = sorted(path.name for path in PACKAGE.glob("*.py"))
    assert len(top) <= MOST_AT_THE_TOP, f"expected at most {MOST_AT_THE_TOP}, got {len(top)}: {', '.join(top)}"


def test_the_search_knows_neither_files_nor_clocks() -> None:
    rooms = {
        room_of(target) for module in MODULES if room_of(module) == "search" for target, _ in internal_imports(module)
    }
    assert not rooms & {"export", "measure"}


def test_a_request_is_read_in_the_commands_alone() -> None:
    readers = [m for m in MODULES if "edgeprune.requests" in [target for target, _ in internal_imports(m)]]
    assert {room_of(module) for module in readers} == {"cli", "commands"}, sorted(readers)


@pytest.mark.parametrize("module", [module for module in MODULES if room_of(module) in {"", *GROUND}])
def test_the_ground_needs_no_heavy_package(module: str) -> None:
    found = {
        target.split(".")[0]
        for node in imports(tree_of(module), type_checking=False)
        for target in targets(module, node)
    }
    assert not found & HEAVY


ALL_OPTIONS = """
import typer
from edgeprune.cli.app import app
[command.whole() for command in typer.main.get_command(app).commands.values()]
"""


@pytest.mark.parametrize("statements", ["import edgeprune", ALL_OPTIONS], ids=["library", "every-command"])
def test_importing_does_not_import_torch(statements: str) -> None:
    code = f"{statements}\nimport sys; print(sorted({HEAVY!r} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_help_is_quick(tmp_path: Path) -> None:
    def ratio() -> float:
        own = processor_seconds(tmp_path, "-m", "edgeprune", "--help", says="compress")
        return own / processor_seconds(tmp_path, "-c", BARE_HELP, says="Usage")

    ratio()  # from now on the modules are compiled, as they are after a user's first command
    # In turns: how fast the processor is varies from minute to minute. Five of nine tell what the median is.
    got: list[float] = []
    while len(got) < 9 and max(sum(r <= HELP_RATIO for r in got), sum(r > HELP_RATIO for r in got)) < 5:
        got.append(ratio())
    assert sum(r <= HELP_RATIO for r in got) >= 5, f"edgeprune --help took {got} times an empty command's: {HELP_RATIO}"


def processor_seconds(compiled: Path, *arguments: str, says: str) -> float:
    """What a Python process takes of the processor: other tests run beside it, and none of it waits for anything."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=True,
        env={**env, "PYTHONPYCACHEPREFIX": str(compiled)},
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert says in run.stdout
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
