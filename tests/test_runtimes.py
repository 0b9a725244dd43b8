"""What an export is written for: targets by name, each with what it needs, and timed where something here runs it."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import typer
from torch import nn
from torch.export import ExportedProgram

import edgeprune.commands.export as command
from edgeprune import runtimes
from edgeprune.cli.app import app
from edgeprune.commands.export import export
from edgeprune.errors import InputError
from edgeprune.export import targets as registry
from edgeprune.export.cheader import CHeader
from edgeprune.export.ortformat import OrtFormat
from edgeprune.export.target import Inputs, Material, Runner, Runtime
from edgeprune.export.targets import TARGETS, TargetOptions, targets_of
from edgeprune.formats.save import save_program
from edgeprune.graph.capture import capture
from edgeprune.progress import Progress, Silent
from edgeprune.records import ModelInfo
from edgeprune.requests import ExportRequest
from edgeprune.results import ExportedFile

SHORT = {"c-header", "ort", "executorch", "web"}  # with an option of their own beside --to


class Said(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, message: str) -> None:
        self.lines.append(message)


# --- the registry and what it is told by


def test_the_entries_the_registry_and_the_command_line_name_the_same_targets() -> None:
    assert [entry.name for entry in runtimes.TARGETS] == list(TARGETS)
    options = typer.main.get_command(app).commands["export"].whole().params  # type: ignore[attr-defined]
    helps = {option: parameter.help for parameter in options for option in parameter.opts if option.startswith("--")}
    for entry in runtimes.TARGETS:
        if entry.name in SHORT:
            assert helps[f"--{entry.name}"] == entry.summary
        assert entry.name in helps["--to"]
        assert [target.name for target in targets_of([entry.name])] == [entry.name]


def test_every_extra_is_one_of_the_package() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {entry.extra for entry in runtimes.TARGETS} - {None}
    assert extras == {"coreml", "executorch", "litert", "ncnn", "openvino"} and extras <= set(
        project["optional-dependencies"]
    )
    assert runtimes.target("executorch").install == "pip install 'edgeprune[executorch]'"
    assert runtimes.target("ort").install == "pip install edgeprune"


def test_targets_come_once_and_in_order_with_their_options() -> None:
    made = targets_of(("ort", "c-header", "ort"), TargetOptions(ort_platform="arm"))
    assert isinstance(made[0], CHeader) and made[1:] == (OrtFormat("arm"),)
    with pytest.raises(InputError, match="target: expected one of c-header, ort, .*executorch, c, web, got 'tflite'"):
        targets_of(("tflite",))
    with pytest.raises(InputError, match="target: expected one of c-header, .*, got 'tflite'"):
        runtimes.target("tflite")


# --- a runtime of its own: PyTorch's programs, run by PyTorch


@dataclass(frozen=True)
class Torch:
    """Runs .pt2 files, unless they are said to be of another machine."""

    here: bool = True
    name: str = "PyTorch"

    def draft(self, program: ExportedProgram, folder: Path, batch: int) -> Path:
        torch.export.save(program, folder / "draft.pt2")
        return folder / "draft.pt2"

    def runner(self, file: Path, inputs: Inputs, threads: int = 1) -> Runner | None:
        module, x = torch.export.load(file).module(), torch.from_numpy(inputs.program)
        return (lambda: module(x)) if self.here else None


@dataclass(frozen=True)
class Program:
    """Writes the network's program, with a folder of notes beside it."""

    runtime: Runtime | None
    name: str = "program"
    free_batch: bool = False

    def files(self, model: str) -> tuple[str, ...]:
        return f"{model}.net", "notes/"

    def check_installed(self) -> None:
        pass

    def check(self, program: ExportedProgram) -> None:
        if any("tanh" in str(node.target) for node in program.graph.nodes):
            raise InputError("--program: no tanh")

    def write(self, material: Material, told: Progress) -> tuple[ExportedFile, ...]:
        file, notes = material.folder / f"{material.name}.net", material.folder / "notes"
        torch.export.save(material.program, file)
        notes.mkdir()
        (notes / "manifest.json").write_text(f'{{"batch": {material.batch}, "real": {material.real is not None}}}')
        return ExportedFile(str(file), file.stat().st_size, None), ExportedFile(str(notes), 1, None)


@pytest.fixture
def net(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    program = capture(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(2, 6))
    save_program(tmp_path / "net.pt2", program, ModelInfo((6,)))
    return tmp_path / "net.pt2"


def register(monkeypatch: pytest.MonkeyPatch, runtime: Runtime | None) -> None:
    every = {**TARGETS, "program": lambda _: Program(runtime)}
    for module in (registry, command):
        monkeypatch.setattr(module, "TARGETS", every)


def request(net: Path, **changes: Any) -> ExportRequest:
    given = {"model": str(net), "out": str(net.parent / "out"), "simplify": False, "targets": ("program",)}
    return ExportRequest(**{**given, **changes})


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_new_runtime_is_one_target(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked for by name, its files lie and are told of beside the others, and are timed in its runtime."""
    register(monkeypatch, Torch())
    record = export(request(net, dense=str(net), targets=("program", "ort"), batch=2))
    files = {Path(file.path).name: file for file in record.files}
    assert list(files)[-4:] == ["net.ort", "net.required_operators_and_types.config", "net.net", "notes"]
    assert names(net.parent / "out") == set(files)
    timed = {name for name, file in files.items() if file.p50_ms is not None}
    assert timed == {"net.onnx", "net.ort", "net.net"}
    assert all(file.ratio is not None and file.ratio > 0 for file in files.values() if file.p50_ms is not None)
    assert (net.parent / "out" / "notes" / "manifest.json").read_text() == '{"batch": 2, "real": False}'


def test_what_no_runtime_here_runs_is_said_not_timed(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, Torch(here=False))
    said = Said()
    record = export(request(net, dense=str(net)), said)
    assert [Path(file.path).name for file in record.files if file.p50_ms is not None] == ["net.onnx"]
    told = [line for line in said.lines if "timed" in line]
    assert told == ["net.net is not timed: PyTorch does not run it on this machine"]


def test_files_of_an_earlier_export_go_whoever_wrote_them(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, None)
    out = net.parent / "out"
    export(request(net))
    assert {"net.net", "notes"} <= names(out)
    with pytest.raises(InputError, match="expected no file of an earlier export, got one; use --force to replace it"):
        export(request(net))
    export(request(net, targets=("c-header",), force=True))  # another target: what is stale goes
    assert names(out) == {"net.onnx", "features.json", "edgeprune_features.h"}
    (out / "notes").mkdir()
    (out / "notes" / "mine.txt").write_text("kept")
    export(request(net, targets=(), force=True))  # a folder that is none of ours stays
    assert names(out) == {"net.onnx", "features.json", "notes"}


def test_a_target_refuses_a_network_before_anything_is_written(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, None)
    save_program(net, capture(nn.Sequential(nn.Linear(6, 3), nn.Tanh()), torch.randn(2, 6)), ModelInfo((6,)))
    with pytest.raises(InputError, match="--program: no tanh"):
        export(request(net))
    assert not (net.parent / "out").exists()


# --- integers from data


@pytest.fixture
def words(tmp_path: Path) -> Path:
    """A network of five tokens, and data that hold them, as floats."""
    torch.manual_seed(0)
    program = capture(nn.Sequential(nn.Embedding(9, 8), nn.Flatten(), nn.Linear(40, 3)), torch.zeros(2, 5).long())
    save_program(tmp_path / "words.pt2", program, ModelInfo((5,)))
    ids = np.random.default_rng(0).integers(0, 9, (60, 5)).astype(np.float32)
    np.savez(tmp_path / "words.npz", x=ids, y=np.arange(60) % 3)
    ids[:, 2] += 0.5
    np.savez(tmp_path / "halves.npz", x=ids, y=np.arange(60) % 3)
    return tmp_path


def test_tokens_of_a_data_set_are_taken_as_they_are_or_refused(words: Path) -> None:
    def asked(data: str) -> ExportRequest:
        return request(words / "words.pt2", data=f"npz:{words / data}", targets=("ort",), force=True)

    record = export(asked("words.npz"))
    assert 0 < record.n_samples < 40  # fewer than in one batch below
    assert max(file.parity or 0.0 for file in record.files) < 1e-5
    export(replace(asked("words.npz"), batch=40))
    assert onnxruntime.InferenceSession(words / "out" / "words.ort").get_inputs()[0].shape == [40, 5]
    with pytest.raises(
        InputError, match=r"expected whole numbers for input input, in an array of that name, got \d\.5"
    ):
        export(asked("halves.npz"))
