"""`edgeprune export --to`: several runtimes by name, or all that are installed, side by side."""

from __future__ import annotations

import importlib.metadata
import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.export import ExportedProgram
from typer.testing import CliRunner

import edgeprune.commands.export as command
import edgeprune.commands.targets as commands_targets
from edgeprune import runtimes
from edgeprune.cli.app import app
from edgeprune.commands.export import export
from edgeprune.errors import InputError, ParityError
from edgeprune.export import installed
from edgeprune.export import targets as registry
from edgeprune.export.installed import check_packages, numbers
from edgeprune.export.target import Inputs, Material, Runner, Runtime
from edgeprune.formats.save import save_program
from edgeprune.graph.capture import capture
from edgeprune.measure.targets import Candidate, compare_targets
from edgeprune.progress import Progress, Silent
from edgeprune.records import ModelInfo
from edgeprune.report import terminal
from edgeprune.requests import ExportRequest
from edgeprune.results import ExportedFile, LeftOutTarget
from edgeprune.runtimes import TARGETS, Package, target, targets_in

# --- names


def test_names_are_read_once_each() -> None:
    assert targets_in("onnx, ort,onnx") == ("onnx", "ort")
    assert targets_in("all") == ("all",)


@pytest.mark.parametrize("text", ["tflite", "onnx,tflite", "onnx,", "", "ONNX"])
def test_an_unknown_name_is_refused_with_all_names(text: str) -> None:
    wanted = ", ".join(("onnx", *(entry.name for entry in TARGETS), "all"))
    with pytest.raises(InputError, match=f"^--to: expected names of {wanted}, with commas between them, got '"):
        targets_in(text)


def test_the_command_line_says_it_in_one_line() -> None:
    done = CliRunner().invoke(app, ["export", "x.pt2", "--to", "onnx,tflite"])
    assert done.exit_code == 2 and done.stderr.count("\n") == 1 and "got 'tflite'" in done.stderr


# --- what is installed


def entry_of(name: str) -> runtimes.TargetEntry:
    return runtimes.TargetEntry(name, "", name, (Package("main-part", "2.1", "3"), Package("helper", "1", "9")))


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Of the packages that are installed."""
    found: dict[str, str] = {"main-part": "2.1.0", "helper": "1.4"}

    def version(name: str) -> str:
        if name not in found:
            raise importlib.metadata.PackageNotFoundError(name)
        return found[name]

    monkeypatch.setattr(installed, "target", entry_of)
    monkeypatch.setattr(importlib.metadata, "version", version)
    return found


def test_packages_in_range_are_fine(versions: dict[str, str]) -> None:
    for version in ("2.1", "2.1.0", "2.10.3-22982-abc", "2.99rc1"):
        versions["main-part"] = version
        check_packages("thing", "Thing")
    assert numbers("2026.4.0-1-x") == (2026, 4) and numbers("x") == ()


@pytest.mark.parametrize(
    ("name", "version", "said"),
    [
        ("main-part", None, r"^Thing is not installed: pip install 'edgeprune\[thing\]'$"),
        ("helper", None, r"^Thing is not installed \(helper is missing\): pip install 'edgeprune\[thing\]'$"),
        ("main-part", "2.0.9", r"^Thing: expected main-part 2\.1 or later, before 3, got 2\.0\.9, which is too old: "),
        ("main-part", "3.0", r"^Thing: expected main-part 2\.1 or later, before 3, got 3\.0, which is too new: "),
    ],
)
def test_a_package_that_is_missing_or_of_another_time_is_told(
    versions: dict[str, str], name: str, version: str | None, said: str
) -> None:
    versions.pop(name)
    if version is not None:
        versions[name] = version
    with pytest.raises(InputError, match=said):
        check_packages("thing", "Thing")


def test_the_constraints_of_a_target_are_within_what_it_takes() -> None:
    folder = Path(__file__).parents[1] / "constraints"
    with_packages = [entry for entry in TARGETS if entry.packages]
    extras = tomllib.loads((folder.parent / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {entry.extra for entry in with_packages} <= {path.stem for path in folder.iterdir()} <= set(extras)
    for entry in with_packages:
        lines = (folder / f"{entry.extra}.txt").read_text(encoding="utf-8").splitlines()
        pinned = dict(line.split("==") for line in lines if line and not line.startswith("#"))
        for package in entry.packages:
            assert numbers(package.least) <= numbers(pinned[package.name]) < numbers(package.below)


# --- all of them


@dataclass(frozen=True)
class Slow:
    """Runs a network in PyTorch, several times an inference."""

    name: str = "Slow"

    def draft(self, program: ExportedProgram, folder: Path, batch: int) -> Path:
        torch.export.save(program, folder / "draft.pt2")
        return folder / "draft.pt2"

    def runner(self, file: Path, inputs: Inputs, threads: int = 1) -> Runner | None:
        module, x = torch.export.load(file).module(), torch.from_numpy(inputs.program)
        return lambda: [module(x) for _ in range(30)]


@dataclass(frozen=True)
class Fake:
    """Writes the program, or fails at a stage."""

    name: str
    fails: str = ""
    runtime: Runtime | None = None
    free_batch: bool = False

    def files(self, model: str) -> tuple[str, ...]:
        return f"{model}.{self.name}.net", f"{model}.{self.name}.notes/"

    def check_installed(self) -> None:
        if self.fails == "installed":
            raise InputError(f"{self.name} is not installed")

    def check(self, program: ExportedProgram) -> None:
        if self.fails == "check":
            raise InputError(f"{self.name}: no relu")

    def write(self, material: Material, told: Progress) -> tuple[ExportedFile, ...]:
        file, notes = (material.folder / name for name in self.files(material.name))
        torch.export.save(material.program, file)
        notes.mkdir()
        (notes / "manifest.json").write_text("{}")
        if self.fails == "parity":
            raise ParityError(f"{self.name}: largest error expected at most 1e-4, got 0.39")
        return ExportedFile(str(file), file.stat().st_size, 1e-7), ExportedFile(str(notes), 1, None)


@pytest.fixture
def net(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    program = capture(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(2, 6))
    save_program(tmp_path / "net.pt2", program, ModelInfo((6,)))
    return tmp_path / "net.pt2"


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    made = {
        "good": Fake("good", runtime=Slow()),
        "absent": Fake("absent", "installed"),
        "narrow": Fake("narrow", "check"),
        "wrong": Fake("wrong", "parity"),
        "other": Fake("other"),
    }
    every = {name: (lambda _, target=target: target) for name, target in made.items()}
    for module in (registry, command):
        monkeypatch.setattr(module, "TARGETS", every)
    monkeypatch.setattr(commands_targets, "RUNTIMES", tuple(made))
    monkeypatch.setattr(command, "RUNTIMES", tuple(made))


def request(net: Path, **changes: Any) -> ExportRequest:
    return ExportRequest(**{"model": str(net), "out": str(net.parent / "out"), "simplify": False, **changes})


@pytest.mark.usefixtures("fakes")
def test_all_takes_what_there_is_and_says_what_is_not(net: Path) -> None:
    record = export(request(net, every=True, dense=str(net)))
    out = net.parent / "out"
    made = {"net.onnx", "net.good.net", "net.good.notes", "net.other.net", "net.other.notes"}
    assert {path.name for path in out.iterdir()} == {*made, "features.json"}
    table = record.targets
    assert table is not None and [row.target for row in table.rows] == ["onnx", "good", "other"]
    assert table.left_out == (
        LeftOutTarget("absent", "absent is not installed"),
        LeftOutTarget("narrow", "narrow: no relu"),
        LeftOutTarget("wrong", "wrong: largest error expected at most 1e-4, got 0.39"),
    )
    onnx, good, other = table.rows
    assert onnx.ratio == 1.0 and onnx.verdict == "the reference" and onnx.path == str(out / "net.onnx")
    assert good.ratio_interval is not None and good.ratio_interval[0] > 1 and good.verdict == "slower"
    assert other.p50_ms is None and other.verdict == "not run on this machine"
    assert table.ship == str(out / "net.onnx")
    ratios = {Path(file.path).name: file.ratio for file in record.files if file.ratio is not None}
    assert set(ratios) == {"net.onnx", "net.good.net"}
    text = _printed(record)
    assert "ship net.onnx" in text and "wrong: wrong: largest error" in text


@pytest.mark.usefixtures("fakes")
def test_all_minds_what_lies_in_the_place_of_what_is_written_alone(net: Path) -> None:
    out = net.parent / "out"
    out.mkdir()
    for name in ("absent", "narrow"):
        (out / f"net.{name}.net").write_text("old")
    export(request(net, every=True))
    assert (out / "net.good.net").is_file() and (out / "net.absent.net").read_text() == "old"
    for file in out.iterdir():
        if file.name in ("net.onnx", "features.json"):
            file.unlink()
    with pytest.raises(InputError, match="net.good.net"):
        export(request(net, every=True))
    with pytest.raises(InputError, match="net.good.net"):
        export(request(net, targets=("good",)))


def _printed(record: Any) -> str:
    import io

    from rich.console import Console

    stream = io.StringIO()
    Console(file=stream, width=200).print(terminal.export(record))
    return stream.getvalue()


@pytest.mark.usefixtures("fakes")
@pytest.mark.parametrize("name", ["absent", "narrow", "wrong"])
def test_what_was_asked_for_by_name_has_to_be_written(net: Path, name: str) -> None:
    for every in (False, True):
        with pytest.raises(InputError, match=f"{name}( is not|: )"):  # the fakes are code of a user
            export(request(net, targets=("good", name), every=every))
    assert not (net.parent / "out").exists()


def test_without_a_runtime_there_is_no_table(net: Path) -> None:
    record = export(request(net, targets=("c-header",)))
    assert record.targets is None and "targets" not in record.json_names.values()
    assert record.json_names["targets"] is None and "runtimes" not in _printed(record)


def test_files_of_one_network_count_together_and_json_has_the_table(net: Path) -> None:
    done = CliRunner().invoke(
        app, ["export", str(net), "--to", "onnx,ort", "--out", str(net.parent / "o"), "--no-simplify", "--json"]
    )
    assert done.exit_code == 0, done.output
    table = json.loads(done.stdout)["targets"]
    assert [row["target"] for row in table["rows"]] == ["onnx", "ort"]
    assert table["rows"][1]["size_bytes"] == (net.parent / "o" / "net.ort").stat().st_size
    assert table["left_out"] == [] and Path(table["ship"]).parent == net.parent / "o"


# --- the choice


def compared(times: dict[str, float | None], sizes: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """What is shipped where files take so many milliseconds, spread by a tenth, and bytes."""
    rng = np.random.default_rng(0)
    columns = [time for time in times.values() if time is not None]
    measured = np.array(columns) * rng.uniform(0.95, 1.05, (60, len(columns)))
    monkeypatch.setattr("edgeprune.measure.targets.measure_runners", lambda *_, **__: measured)
    files = [
        Candidate(name, Path(name), sizes.get(name, 100), 0.0, None if time is None else object)
        for name, time in times.items()
    ]
    table = compare_targets(files, (), Silent())
    assert [row.p50_ms is None for row in table.rows] == [time is None for time in times.values()]
    return table.ship, table.why


def test_the_fastest_is_shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    ship, why = compared({"onnx": 1.0, "a": 0.8, "phone": None, "b": 0.5}, {}, monkeypatch)
    assert ship == "b" and why.startswith("the fastest on this processor: 0.5")


def test_else_the_smallest_that_is_not_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    ship, why = compared({"onnx": 1.0, "a": 1.5, "b": 1.0}, {"a": 10, "b": 50}, monkeypatch)
    assert ship == "b" and "0.50 of the ONNX file's size" in why


def test_else_the_onnx_file(monkeypatch: pytest.MonkeyPatch) -> None:
    assert compared({"onnx": 1.0, "a": 1.5, "b": 1.0}, {"a": 10}, monkeypatch)[0] == "onnx"
    assert compared({"onnx": 1.0}, {}, monkeypatch)[0] == "onnx"


def test_every_extra_is_told() -> None:
    for entry in TARGETS:
        if entry.extra:
            assert entry.install.startswith(f"pip install 'edgeprune[{entry.extra}]'")
    assert target("ort").install == "pip install edgeprune"
