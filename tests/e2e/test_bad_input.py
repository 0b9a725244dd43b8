"""Bad input through the command line: exit 2, one line that says what, where, expected and got, nothing written."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import CNN, MLP, NETS, done, refused, says, snapshot
from torch import nn

ARCH = ("--arch", f"{NETS}:mlp", "--input-shape", "1,8,8")
FACTORIES = """
from torch import nn

def raises():
    raise ValueError("no GPU here\\nand more")

def number():
    return 3

class Two(nn.Module):
    def forward(self, x, y):
        return x + y

def two():
    return Two()

class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, x):
        return self.layer(x.flatten(1)) if x.sum() > 0 else x.flatten(1)[:, :10]

def branching():
    return Branching()
"""


@pytest.fixture(scope="module")
def checkpoint() -> dict[str, Any]:
    """The digits MLP's checkpoint as a plain dict."""
    content: dict[str, Any] = torch.load(MLP, weights_only=True)
    return content


class Evil:
    """Unpickling it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return (open, (str(self.marker), "w"))


# -- files that are no models ------------------------------------------------------------------------------------------


def _missing(path: Path) -> None:
    assert not path.exists()


def _folder(path: Path) -> None:
    path.mkdir()


def _text(path: Path) -> None:
    path.write_text("this is no model\n" * 50)


def _half(path: Path) -> None:
    content = Path(MLP).read_bytes()
    path.write_bytes(content[: len(content) // 2])


def _end_missing(path: Path) -> None:
    path.write_bytes(Path(MLP).read_bytes()[:-10])


@pytest.mark.parametrize("command", ["compress", "export", "inspect"])
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (_missing, "expected a model file, got nothing there"),
        (_folder, "expected a model file, got a folder"),
        (Path.touch, "expected a model file, got an empty file"),
        (_text, "expected a state_dict, a checkpoint, a .safetensors, a .pt2 or an .onnx, got a file of another kind"),
        (_half, "got a truncated or damaged one"),
        (_end_missing, "got a truncated or damaged one"),
    ],
)
def test_what_is_no_model(tmp_path: Path, command: str, make: Callable[[Path], None], said: str) -> None:
    make(tmp_path / "my model.pt")
    arguments = ("export", "--onnx") if command == "export" else (command,)
    line = refused(tmp_path, *arguments, "my model.pt")
    assert line.startswith("edgeprune: my model.pt: ") and said in line


def test_a_pickled_module_is_refused_with_the_way_out(tmp_path: Path) -> None:
    torch.save(nn.Linear(3, 3), tmp_path / "module.pt")
    line = refused(tmp_path, "compress", "module.pt")
    assert says(
        line, ["module.pt: expected weights only", "save model.state_dict() and give --arch", "--unsafe-pickle"]
    )
    torch.save({"weight": Evil(tmp_path / "marker")}, tmp_path / "evil.pt")
    refused(tmp_path, "compress", "evil.pt")
    assert not (tmp_path / "marker").exists()


def _program(path: Path, replaced: Callable[[str, bytes], bytes]) -> None:
    """A .pt2 as torch.export writes it, its records changed."""
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(net, (torch.zeros(2, 4),)), buffer)
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            target.writestr(name, replaced(name, source.read(name)))


def test_a_program_whose_samples_run_code_is_refused(tmp_path: Path) -> None:
    evil = io.BytesIO()
    torch.save(((Evil(tmp_path / "marker"),), {}), evil)
    _program(tmp_path / "evil.pt2", lambda name, old: evil.getvalue() if "sample_inputs" in name else old)
    for command in (("compress",), ("export", "--onnx"), ("inspect",)):
        assert "evil.pt2: " in refused(tmp_path, *command, "evil.pt2")
    assert not (tmp_path / "marker").exists()
    code = "import sys, torch; torch.export.load(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "evil.pt2")], capture_output=True, timeout=600)
    assert (tmp_path / "marker").exists()


def test_a_program_with_an_unknown_operator_is_refused(tmp_path: Path) -> None:
    _program(tmp_path / "odd.pt2", lambda name, old: old.replace(b"aten.relu.default", b"evil.relu.default"))
    line = refused(tmp_path, "compress", "odd.pt2", "--keep-macs", "0.5")
    assert says(line, ["odd.pt2: ", "evil.relu.default"])


# -- weights that do not fit -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arch", "said"),
    [
        (None, ["expected --arch beside a bare state_dict, got none"]),
        (f"{NETS}:cnn", ["expected the weights of", "missing 0.weight", "and 33 more"]),
        (f"{NETS}:mlp?hidden=(10,)", ["2.weight [256, 64] instead of [10, 64]"]),
        (f"{NETS}:mpl", ["expected a known name, got 'mpl'; did you mean mlp?"]),
        ("torchvision:resnet19", ["expected a known name, got 'resnet19'; did you mean resnet18"]),
        ("torchvison:resnet18", ["did you mean torchvision?"]),
        ("nowhere.py:net", ["nowhere.py, got none"]),
        ("mlp", ["expected torchvision:NAME, timm:NAME, pkg.module:factory or path/file.py:factory, got 'mlp'"]),
        ("own.py:raises", ["expected a network, got ValueError: no GPU here and more", "own.py:5 in raises"]),
        ("own.py:number", ["expected an nn.Module from 'number', got int"]),
    ],
)
def test_weights_and_architectures(tmp_path: Path, checkpoint: Any, arch: str | None, said: list[str]) -> None:
    torch.save(checkpoint["state_dict"], tmp_path / "weights.pt")
    (tmp_path / "own.py").write_text(FACTORIES)
    options = ("--arch", arch) if arch else ()
    line = refused(tmp_path, "compress", "weights.pt", "--data", "digits", *options)
    assert line.startswith("edgeprune: weights.pt: ") and says(line, said)


@pytest.mark.parametrize(
    ("arch", "said"),
    [
        ("own.py:raises", ["ValueError: no GPU here and more"]),
        ("own.py:two", ["own.py:two on inputs (1, 8, 8) of data digits", "one input, got 2: x, y"]),
        ("own.py:branching", ["Branching cannot be exported", " in forward)"]),
        (f"{NETS}:mlp?hidden=(0.5,)", ["expected a network, got TypeError"]),
    ],
)
def test_factories_that_cannot_be_trained(tmp_path: Path, arch: str, said: list[str]) -> None:
    (tmp_path / "own.py").write_text(FACTORIES)
    assert says(refused(tmp_path, "train", "--arch", arch, "--data", "digits", "--out", "m.pt"), said)


def test_a_network_that_does_not_take_the_data(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("from torch import nn\ndef net():\n    return nn.Linear(5, 10)\n")
    line = refused(tmp_path, "train", "--arch", "own.py:net", "--data", "digits", "--out", "m.pt")
    assert "own.py:net on inputs (1, 8, 8) of data digits: " in line
    few = refused(
        tmp_path, "train", "--arch", f"{NETS}:mlp", "--data", "digits", "--out", "no/such/../m.pt", "--epochs", "0"
    )
    assert "'--epochs': expected a number of at least 1, got 0" in few


@pytest.mark.parametrize(("value", "called"), [(float("nan"), "NaN"), (float("inf"), "infinity")])
def test_weights_that_are_no_numbers(tmp_path: Path, checkpoint: Any, value: float, called: str) -> None:
    state = {name: tensor.clone() for name, tensor in checkpoint["state_dict"].items()}
    state["2.weight"][3, 4] = value
    torch.save({**checkpoint, "state_dict": state}, tmp_path / "m.pt")
    for command in (("compress",), ("export", "--onnx"), ("inspect",)):
        assert f"m.pt: tensor '2.weight': expected finite values, got {called}" in refused(tmp_path, *command, "m.pt")


def test_a_network_whose_last_layer_is_still_zero(tmp_path: Path, checkpoint: Any) -> None:
    state = dict(checkpoint["state_dict"])
    *_, last = (name for name, tensor in state.items() if tensor.dim() > 1)
    torch.save({**checkpoint, "state_dict": state | {last: torch.zeros_like(state[last])}}, tmp_path / "zero.pt")
    line = refused(tmp_path, "compress", "zero.pt", "--keep-macs", "0.5", "--out", "run")
    assert "the network gives the same outputs whatever comes in" in line
    assert f"got zeros (all of {last}); train it first" in line


# -- data that do not fit ----------------------------------------------------------------------------------------------


def _arrays(shape: tuple[int, ...], n_classes: int, n: int = 100) -> dict[str, np.ndarray]:
    x = np.random.default_rng(0).random((n, *shape), dtype=np.float32)
    return {"x": x, "y": np.arange(n) % n_classes}


def _with_nan() -> dict[str, np.ndarray]:
    arrays = _arrays((1, 8, 8), 10)
    arrays["x"][3, 0, 2, 1] = np.nan
    return arrays


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        (_arrays((3, 8, 8), 10), "the model expects inputs of shape (1, 8, 8), got (3, 8, 8)"),
        (_arrays((64,), 10), "the model expects inputs of shape (1, 8, 8), got (64,)"),
        (_arrays((1, 8, 8), 12), "the model has 10 classes, got 12"),
        (_with_nan(), "expected finite values, got nan at index [3, 0, 2, 1]"),
        (_arrays((1, 8, 8), 10, 20), "the val split is empty; expected at least one sample there, got 20 in all"),
        (_arrays((1, 8, 8), 1), "expected at least 2 classes, got 1"),
        ({**_arrays((1, 8, 8), 10, 20), "y": np.zeros(20, np.float32)}, "expected outputs like the targets, (batch)"),
        ({"images": np.zeros(3)}, "expected arrays x and y, or x_train, y_train, x_test, y_test; got images"),
        ({"x": np.array([None, {}]), "y": np.arange(2)}, "got Python objects, which need unpickling"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_arrays_that_do_not_fit(tmp_path: Path, arrays: dict[str, np.ndarray], said: str) -> None:
    np.savez(tmp_path / "data.npz", **arrays)  # type: ignore[arg-type]
    assert said in refused(tmp_path, "compress", MLP, "--data", "npz:data.npz")


def test_a_header_that_promises_too_much(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "huge.npz", "w") as archive:
        for name, shape in (("x", (10**9, 64)), ("y", (10**9,))):
            header = io.BytesIO()
            fields = {"descr": "<f4" if name == "x" else "<i8", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(header, fields)  # type: ignore[arg-type]
            archive.writestr(f"{name}.npy", header.getvalue() + b"\0" * 64)
    assert "expected at most 4,294,967,296 bytes of data" in refused(
        tmp_path, "compress", MLP, "--data", "npz:huge.npz"
    )


@pytest.mark.parametrize(
    ("rows", "target", "said"),
    [
        ("1,2,x\n2,3,y\n", "?target=kind", "expected ?target=COLUMN with one of a, b, k; got 'kind'"),
        (
            "1,2,x\n2,3,y\n",
            "?target=a,b",
            "got 'a,b'; several targets go as y (n, 2) beside x in an .npz file, npz:FILE",
        ),
        ("1,2,x\n2,3,y\n", "", "expected ?target=COLUMN with one of a, b, k; got no target"),
        ("1,2,x\n2,3,x\n3,4,x\n", "?target=k", "expected at least 2 classes, got 1"),
        ("1,,x\n2,3,y\n", "?target=k", "row 1, column 'b': expected a finite number, got nan"),
        ("1,2,\n2,3,y\n", "?target=k", "row 1, column 'k': expected a target, got nothing"),
        ("1,red,x\n2,3,y\n", "?target=k", "expected numeric feature columns, got text or dates in b"),
        ("1,2,x\n" * 30 + "2,3,y\n" * 30, "?target=k", "the model expects inputs of shape (1, 8, 8), got (2,)"),
    ],
)
def test_tables_that_do_not_fit(tmp_path: Path, rows: str, target: str, said: str) -> None:
    pytest.importorskip("pandas")
    (tmp_path / "data.csv").write_text("a,b,k\n" + rows)
    assert said in refused(tmp_path, "compress", MLP, "--data", f"csv:data.csv{target}")


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("digit", "data: expected digits, mnist[:ROOT]"),
        ("npz:none.npz", "none.npz: expected an .npz file, got nothing there"),
        ("csv:none.csv?target=x", "none.csv: expected a CSV file, got nothing there"),
        ("imagefolder:none", "none"),
        ("none.py:data", "none.py: expected a Python file, got nothing there"),
    ],
)
def test_data_that_are_not_there(tmp_path: Path, spec: str, said: str) -> None:
    assert said in refused(tmp_path, "compress", MLP, "--data", spec)


# -- options -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["0", "1.5", "-0.5", "nan", "half"])
def test_keep_macs_is_a_share(tmp_path: Path, value: str) -> None:
    line = refused(tmp_path, "compress", MLP, f"--keep-macs={value}")
    assert "invalid value for '--keep-macs': expected a share in (0, 1], got" in line


@pytest.mark.parametrize("arguments", [("compress", ""), ("compress", MLP, "--out", ""), ("compress", MLP, "--data=")])
def test_empty_arguments(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    assert "expected a value after" in refused(tmp_path, *arguments)


def test_budgets_that_cannot_be_met_name_the_groups(tmp_path: Path) -> None:
    line = refused(tmp_path, "compress", MLP, "--keep-macs", "0.0001", code=1)
    assert says(
        line, ["0.0001 of the MACs cannot be met", "MACs; in the way: groups at their least width", "locked: 8 ("]
    )


def test_pixels_of_a_convolution_cannot_go(tmp_path: Path) -> None:
    for asked in ("32", "0.5"):
        line = refused(tmp_path, "compress", CNN, "--input-features", asked)
        assert says(line, ["a convolution shares its weights over all positions", "use --input-features off"])
    assert "expected 1 to 64" in refused(tmp_path, "compress", MLP, "--input-features", "65")


def test_plans_that_are_none(tmp_path: Path) -> None:
    assert "no.json: expected a plan.json, got nothing there" in refused(tmp_path, "compress", MLP, "--plan", "no.json")
    for content, said in (("{", "got no JSON"), ("{}", "expected 'edgeprune-plan/1', got None")):
        (tmp_path / "plan.json").write_text(content)
        line = refused(tmp_path, "compress", MLP, "--plan", "plan.json")
        assert line.startswith("edgeprune: plan.json: ") and said in line


def test_arch_and_shape_must_agree_with_a_checkpoint(tmp_path: Path) -> None:
    assert "expected no --arch" in refused(tmp_path, "compress", MLP, "--arch", "torchvision:resnet18")
    line = refused(tmp_path, "compress", MLP, "--input-shape", "3,8,8")
    assert "expected inputs of shape [1, 8, 8], got --input-shape [3, 8, 8]" in line


def test_export_and_validate_need_their_files(tmp_path: Path) -> None:
    assert "runs/: expected a run to export, got none" in refused(tmp_path, "export", "--onnx")
    assert "expected --onnx" in refused(tmp_path, "export", MLP)
    line = refused(tmp_path, "validate", "a.onnx", "b.onnx", "--data", "digits")
    assert "a.onnx: expected an ONNX file, got nothing there" in line


# -- places that cannot be written to ----------------------------------------------------------------------------------

COMMANDS = [
    ("compress", MLP, "--keep-macs", "0.5"),
    ("train", "--arch", f"{NETS}:mlp", "--data", "digits"),
    ("export", "--onnx", MLP),
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_places_that_cannot_be_written_to(tmp_path: Path, command: tuple[str, ...]) -> None:
    (tmp_path / "file").write_text("mine")
    line = refused(tmp_path, *command, "--out", "file/run")
    assert "file/run: expected a place that can be written to, got a file where a folder is needed" in line
    assert "expected a place that can be written to" in refused(tmp_path, *command, "--out", "/proc/edgeprune/run")
    assert "expected a place that can be written to, got a name that is too long" in refused(
        tmp_path, *command, "--out", "x" * 300
    )


@pytest.mark.parametrize("command", COMMANDS[:2], ids=lambda command: command[0])
def test_what_exists_is_not_overwritten(tmp_path: Path, command: tuple[str, ...]) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("mine")
    (tmp_path / "file.pt").write_text("mine")
    (tmp_path / "link").symlink_to("run")
    for place in ("run", "file.pt", "link", "."):
        assert "--force replaces it" in refused(tmp_path, *command, "--out", place)
    wrong, kinds = ("file.pt", "a folder to replace, got a file") if command[0] == "compress" else (
        "run", "a file to replace, got a folder"
    )  # fmt: skip
    assert f"expected {kinds}" in refused(tmp_path, *command, "--out", wrong, "--force")
    assert "got a link" in refused(tmp_path, *command, "--out", "link", "--force")
    assert "expected" in refused(tmp_path, *command, "--out", ".", "--force")


def test_force_replaces_an_earlier_run(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "old.txt").write_text("old")
    done(tmp_path, *COMMANDS[0], "--finetune-epochs", "0", "--out", "run", "--force", "--threads", "1")
    assert set(snapshot(tmp_path)) == {"run", "run/plan.json", "run/report.html", "run/run.json", "run/slim.pt2"}


def test_a_folder_of_another_user(tmp_path: Path) -> None:
    """Root may write anywhere, so there the mode says nothing and the run succeeds."""
    place = tmp_path / "theirs"
    place.mkdir()
    place.chmod(0o500)
    try:
        if os.geteuid() == 0:
            done(tmp_path, *COMMANDS[2], "--out", "theirs")
            assert (place / "digits_mlp.onnx").stat().st_size > 0
        else:
            assert "got no permission" in refused(tmp_path, *COMMANDS[2], "--out", "theirs")
    finally:
        place.chmod(0o700)
