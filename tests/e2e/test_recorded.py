"""Files of others through the commands: what they record is refused in one line that shows it, and never runs."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import MLP, done, refused, run, says
from conftest import Run

from edgeprune.export.web.runtime import MODULES
from edgeprune.formats.load import load
from edgeprune.formats.save import save_program

EVIL = """
import pathlib
HERE = pathlib.Path(__file__).parent
(HERE / "MARKER").touch()
def data(command="", seed=0): (HERE / "MARKER").touch()
def net(**options): (HERE / "MARKER").touch()
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "evil.py").write_text(EVIL)
    return tmp_path


@pytest.fixture(scope="module")
def checkpoint() -> dict[str, Any]:
    content: dict[str, Any] = torch.load(MLP, weights_only=True)
    return content


def _unmarked(place: Path) -> bool:
    return not list(place.rglob("MARKER"))


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "spec",
    [
        "evil.py:data",
        "./evil.py:data?command=x",
        f"{os.__file__}:system?command=touch MARKER",
        f"{os.__file__}:popen?cmd=touch MARKER",
        "npz:evil.py:data",
        "digits:evil.py:data",
        "evil:data",
    ],
)
def test_recorded_data_that_are_code(place: Path, checkpoint: Any, spec: str) -> None:
    (place / "npz:evil.py").write_text(EVIL)
    (place / "digits:evil.py").write_text(EVIL)
    torch.save({**checkpoint, "data": spec}, place / "m.pt")
    slim = load(MLP)
    save_program(place / "slim.pt2", slim.program, load(place / "m.pt").info)
    for model in ("m.pt", "slim.pt2"):
        for command in (("compress", model), ("export", "--onnx", model, "--out", "o")):
            line = refused(place, *command)
            assert says(
                line, [f"{model}: expected built-in data on record, got {spec!r}", "--data", "--trust-recorded"]
            )
    assert _unmarked(place)
    done(place, "inspect", "m.pt")
    assert _unmarked(place)


def test_recorded_data_run_where_the_user_says_so(place: Path, checkpoint: Any) -> None:
    (place / "own.py").write_text(
        "def data():\n    from edgeprune.data import open_data\n    return open_data('digits')\n"
    )
    torch.save({**checkpoint, "data": "own.py:data"}, place / "m.pt")
    assert "own.py:data" in refused(place, "export", "--onnx", "m.pt", "--out", "refused")
    done(place, "export", "--onnx", "m.pt", "--out", "trusted", "--trust-recorded")


def test_recorded_data_are_not_looked_for_in_all_of_the_machine(place: Path, checkpoint: Any) -> None:
    torch.save({**checkpoint, "data": "imagefolder:/"}, place / "m.pt")
    assert says(refused(place, "compress", "m.pt"), ["got 'imagefolder:/'", "--data names what to read"])


def _web_runtime(folder: Path) -> Path:
    """A package that passes for onnxruntime-web; no browser runs it here."""
    (folder / "dist").mkdir(parents=True)
    (folder / "package.json").write_text(json.dumps({"name": "onnxruntime-web", "version": "1.30.0"}))
    for name in MODULES:
        (folder / name).write_bytes(b"\0asm")
    return folder


@pytest.fixture
def hostile_run(place: Path, quick_run: Run) -> Callable[..., None]:
    """Copies a run to `run`, with other things on its record."""
    shutil.copytree(quick_run.folder, place / "run")
    document = json.loads((place / "run" / "run.json").read_text())

    def write(**changed: Any) -> None:
        model = {**document["model"], **changed}
        (place / "run" / "run.json").write_text(json.dumps({**document, "model": model}))

    return write


def test_a_run_whose_architecture_is_code(place: Path, checkpoint: Any, hostile_run: Any) -> None:
    torch.save(checkpoint["state_dict"], place / "dense.pt")
    package = _web_runtime(place / "onnxruntime-web")
    for arch in ("os:system?command=touch MARKER", "evil.py:net?a=1", "timm:resnet18?checkpoint_path=evil.pth"):
        hostile_run(path="dense.pt", arch=arch, module=None)
        result = run(place, "export", "--web", "run/slim.pt2", "--out", "page", "--web-runtime", package)
        assert result.code == 2 and not (place / "page").exists()
        assert says(result.err, ["--web: expected the dense network", "run.json: expected torchvision:", repr(arch)])
    assert _unmarked(place)


def test_a_run_is_not_believed_where_its_model_lies(place: Path, tmp_path: Path, hostile_run: Any) -> None:
    elsewhere = tmp_path.parent / f"{tmp_path.name}-elsewhere"
    elsewhere.mkdir()
    shutil.copy(MLP, elsewhere / "m.pt")
    (place / "link.pt").symlink_to(elsewhere / "m.pt")
    hostile_run(path="link.pt")
    result = run(place, "export", "--onnx", "run/slim.pt2", "--out", "out", "--json")
    assert result.code == 0 and "run.json: expected a recorded file in the working folder, got 'link.pt'" in result.err
    assert all(file["ratio"] is None for file in result.json["files"])


def test_the_model_of_ones_own_run_is_found(place: Path, checkpoint: Any, hostile_run: Any) -> None:
    """Where the user works it is found; a factory of theirs builds it once it is named."""
    (place / "nets.py").write_text((Path(MLP).parent / "digits.py").read_text())
    torch.save(checkpoint["state_dict"], place / "dense.pt")
    dense = load(place / "dense.pt", arch=f"{place}/nets.py:mlp", input_shape=(1, 8, 8))
    hostile_run(path="dense.pt", arch="nets.py:mlp", sha256=dense.sha256)
    slim = load(place / "run" / "slim.pt2")
    save_program(place / "run" / "slim.pt2", slim.program, replace(slim.info, arch="nets.py:mlp"))
    result = done(place, "export", "--onnx", "run/slim.pt2", "--out", "out", "--arch", "./nets.py:mlp", "--json")
    assert any(file["ratio"] is not None for file in result.json["files"])
    other = ("--out", "o", "--arch", "evil.py:net")
    assert "expected no --arch" in refused(place, "export", "--onnx", "run/slim.pt2", *other)
    assert _unmarked(place)
