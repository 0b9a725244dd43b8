"""What code of the user's sets of PyTorch holds while it runs, and does not reach what edgeprune does."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import edgeprune
from edgeprune import usercode
from edgeprune.data import open_data
from edgeprune.errors import InputError
from edgeprune.formats.architectures import build
from edgeprune.search.ownscript import EVALUATE_TOLD, FINETUNE_TOLD, NamedFigure, OwnFigure, OwnFinetuning, OwnFunction
from edgeprune.search.trainer import Round
from edgeprune.tasks.registry import open_task
from edgeprune.usercode import calling_user_code
from edgeprune.userfile import load_function

CHANGE = """
import torch
from types import SimpleNamespace

SEEN = []

def change():
    SEEN.append((torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled(), torch.is_grad_enabled()))
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(torch.get_num_threads() + 1)
    torch.set_grad_enabled(False)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_float32_matmul_precision("medium")
    torch.set_default_device("meta")
    torch.autograd.set_detect_anomaly(True)
    torch.manual_seed(3)

def train(module):
    assert torch.is_grad_enabled()
    with torch.no_grad():
        next(module.parameters()).mul_(1.5)
    change()

def figure(module):
    change()
    return 0.5

def network():
    change()
    return torch.nn.Linear(4, 2, device="cpu")

def samples():
    change()
    x = torch.arange(80.0, device="cpu").reshape(20, 4)
    return x, torch.arange(20, device="cpu") % 2

class Own:
    metric = SimpleNamespace(name="own", unit="", scale=1.0, higher_is_better=True)
    def loss(self, outputs, targets):
        return outputs.square().mean()
    def outcomes(self, outputs, targets):
        return [0.0] * len(outputs)
    def value(self, outcomes):
        change()
        return 1.0

def task():
    change()
    return Own()
"""


def settings() -> tuple[Any, ...]:
    return (
        torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(),
        torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision(), torch.get_default_device(),
        torch.is_anomaly_enabled(), torch.utils._device.CURRENT_DEVICE,
    )  # fmt: skip


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(usercode, "_theirs", {})
    path = tmp_path / "script.py"
    path.write_text(CHANGE)
    before = settings()
    yield path
    assert settings() == before


def function(script: Path, name: str, told: tuple[str, ...]) -> OwnFunction:
    return OwnFunction(load_function(script, name), f"{script}:{name}", told)


def test_finetuning_and_figures_leave_no_trace(script: Path) -> None:
    before, state = settings(), torch.get_rng_state()
    module = nn.Linear(4, 2)
    finetuning = OwnFinetuning(function(script, "train", FINETUNE_TOLD), None, 0)
    assert finetuning(module, Round(1, 1, 0.5, 10)) and finetuning(module, Round(2, 1, 0.5, 10))
    _, value = OwnFigure.of(function(script, "figure", EVALUATE_TOLD), 0, NamedFigure("x"), module)
    assert value == 0.5 and settings() == before
    assert torch.randn(2).dtype == torch.float32 and (module.weight * 1).requires_grad
    torch.set_rng_state(state)


def test_factories_and_tasks_leave_no_trace(script: Path) -> None:
    before = settings()
    net = build(f"{script}:network")
    assert net.weight.dtype == torch.float64, "as their code has it"
    state = torch.get_rng_state()
    data = open_data(f"{script}:samples")
    task = open_task(f"{script}:task", data)
    assert task.value([0.0]) == 1 and torch.equal(torch.get_rng_state(), state)
    assert settings() == before and data.train[0][0].dtype == torch.float32


def test_the_users_code_finds_again_what_it_has_set_but_for_gradients(script: Path) -> None:
    first, second = load_function(script, "figure"), load_function(script, "figure")
    for one in (first, first):
        with calling_user_code("it raised"):
            one(None)
    assert first.__globals__["SEEN"] == [(torch.float32, False, True), (torch.float64, True, True)]
    assert second.__globals__["SEEN"] == []
    program = edgeprune.capture(nn.Sequential(nn.Linear(4, 2, device="cpu", dtype=torch.float32)), torch.ones(2, 4))
    assert program.module()(torch.ones(3, 4)).dtype == torch.float32


def test_what_is_raised_leaves_no_trace_either(script: Path) -> None:
    with pytest.raises(InputError, match="it raised ValueError: no"), calling_user_code("it raised"):
        torch.set_default_dtype(torch.float64)
        raise ValueError("no")
    assert torch.get_default_dtype() == torch.float32


def test_a_process_in_which_pytorch_has_chosen_no_device_yet(tmp_path: Path) -> None:
    """PyTorch imports what knows the default device where it first needs it; asking for it is no reason."""
    (tmp_path / "nets.py").write_text("from torch import nn\ndef net():\n    return nn.Linear(3, 2)\n")
    code = (
        "import sys, torch\n"
        "from pathlib import Path\n"
        "from edgeprune.usercode import calling_user_code\n"
        "from edgeprune.userfile import load_function\n"
        "assert 'torch.utils._device' not in sys.modules\n"
        "with calling_user_code('net'):\n"
        "    print(load_function(Path('nets.py'), 'net')().out_features)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "2\n"), done.stderr
