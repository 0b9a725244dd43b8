"""Networks of half and of double precision: trained on float32 copies, or refused before any work."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from typer.testing import CliRunner

import edgeprune
from edgeprune.cli.app import app
from edgeprune.formats.save import save_checkpoint
from edgeprune.graph.comparison import outputs_in_float64, own_rounding
from edgeprune.graph.precision import in_float64
from edgeprune.optim import make
from edgeprune.records import IDENTITY, ModelInfo
from edgeprune.training.placement import float_type, seeded

N = 200


def network(dtype: torch.dtype) -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 8, 3), nn.GroupNorm(4, 8), nn.ReLU(), nn.Flatten(), nn.Linear(32, 2))
    return nn.Sequential(*layers).to(dtype)


def samples() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(N) % 2
    return torch.randn(N, 1, 4, 4, generator=generator) + y[:, None, None, None], y


def steps(module: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> float:
    x, y = samples()
    dtype = next(module.parameters()).dtype
    for _ in range(count):
        optimizer.zero_grad()
        loss = cross_entropy(module(x.to(dtype)), y)
        loss.backward()
        optimizer.step()
    return loss.item()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_half_precision_trains_as_float32_does(name: str, dtype: torch.dtype) -> None:
    half, full = network(dtype), network(torch.float32)
    first = steps(half, make(name, half.named_parameters(), lr=1e-2), 30)
    second = steps(full, make(name, full.named_parameters(), lr=1e-2), 30)
    assert {param.dtype for param in half.parameters()} == {dtype}
    assert first == pytest.approx(second, abs=0.03) and first < 0.45


def test_steps_that_are_too_small_for_half_precision_add_up() -> None:
    param = nn.Parameter(torch.ones(4, 4, dtype=torch.float16))
    optimizer = make("sgd", [("weight", param)], lr=1e-5, weight_decay=0.0, momentum=0.0, nesterov=False)
    for _ in range(100):
        param.grad = torch.ones_like(param)
        optimizer.step()
    assert param.grad.dtype == torch.float16 and param.detach().float().mean().item() == pytest.approx(0.999, abs=5e-4)


def test_a_training_in_half_precision_goes_on_where_it_was_cut_off() -> None:
    whole = network(torch.float16)
    optimizer = make("adamw", whole.named_parameters())
    steps(whole, optimizer, 4)
    half, state = copy.deepcopy(whole), copy.deepcopy(optimizer.state_dict())
    resumed = make("adamw", half.named_parameters())
    resumed.load_state_dict(state)
    assert {value.dtype for one in resumed.state.values() for value in one.values()} == {torch.float32}
    steps(whole, optimizer, 4)
    steps(half, resumed, 4)
    assert all(torch.equal(*pair) for pair in zip(whole.parameters(), half.parameters(), strict=True))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("precisions")
    x, y = samples()
    np.savez(folder / "data.npz", x=x.numpy(), y=y.numpy())
    for dtype in (torch.float16, torch.float64):
        module = network(torch.float32)
        steps(module, make("adamw", module.named_parameters(), lr=1e-2), 30)
        program = edgeprune.capture(module.to(dtype).eval(), torch.randn(2, 1, 4, 4, dtype=dtype))
        name = str(dtype).removeprefix("torch.")
        save_checkpoint(folder / f"{name}.pt2", program, ModelInfo((1, 4, 4), normalization=IDENTITY))
    return folder


def compress(place: Path, name: str) -> tuple[int, str]:
    given = ["--data", f"npz:{place / 'data.npz'}", "--keep-macs", "0.6", "--finetune-epochs", "2", "--align", "1"]
    out = ["--out", str(place / name), "--threads", "1", "--max-drop", "50"]
    found = CliRunner().invoke(app, ["compress", str(place / f"{name}.pt2"), *given, *out])
    return found.exit_code, " ".join(found.output.split())


def test_half_precision_is_compressed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeprune.measure.candidates._FINAL_SECONDS", (0.01,))
    code, told = compress(place, "float16")
    assert code == 0, told
    assert "assumed finetuning on float32 copies of the weights" in told
    record = json.loads((place / "float16" / "run.json").read_text())
    assert record["slim"]["macs"] <= 0.6 * record["dense"]["macs"] and record["slim"]["val_accuracy"] > 0.7


def test_double_precision_is_refused_before_any_work(place: Path) -> None:
    code, told = compress(place, "float64")
    assert code == 2 and "float64 is of float64; convert it with model.float()" in told and "onnxruntime" in told
    assert "measure the dense network" not in told and "step 1" not in told


def test_a_network_in_float64_leaves_the_users_weights_as_they_are() -> None:
    """The graph of a program reads the very tensors of the module that it was exported from."""
    module = network(torch.float32).eval()
    program = torch.export.export(module, (torch.randn(2, 1, 4, 4),))
    wide = in_float64(program.module())
    assert {p.dtype for p in wide.parameters()} == {torch.float64}
    held = [*module.parameters(), *(t for t in program.state_dict.values() if t.is_floating_point())]
    assert {tensor.dtype for tensor in held} == {torch.float32}


CONVERTING = """
from torch import nn


class Converting(nn.Sequential):
    def forward(self, x):
        return super().forward(x.double())


def net():
    return Converting(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10)).double()
"""


def test_a_network_that_converts_its_inputs_to_float64_is_trained_and_compressed(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(CONVERTING)
    common = ["--data", "digits", "--threads", "1", "--json"]
    trained = CliRunner().invoke(
        app, ["train", "--arch", f"{tmp_path}/net.py:net", "--epochs", "1", "--out", f"{tmp_path}/m.pt", *common]
    )
    assert trained.exit_code == 0, trained.output
    asked = ["--keep-macs", "0.6", "--finetune-epochs", "1", "--max-drop", "90", "--allow-chance"]
    found = CliRunner().invoke(app, ["compress", f"{tmp_path}/m.pt", "--out", f"{tmp_path}/run", *asked, *common])
    assert found.exit_code == 0, found.output
    assert edgeprune.load_model(tmp_path / "run" / "slim.pt2").program.module()(torch.zeros(2, 1, 8, 8)).shape == (
        2,
        10,
    )


def test_inputs_are_of_the_type_that_a_graph_states_unless_it_was_converted_since() -> None:
    converting = edgeprune.capture(Double(nn.Linear(3, 2).double()), torch.zeros(2, 3))
    assert float_type(converting) == float_type(converting.frozen_module()) == torch.float32
    plain = edgeprune.capture(nn.Linear(3, 2), torch.zeros(2, 3))
    assert float_type(plain.own_module().double()) == float_type(nn.Linear(3, 2).double()) == torch.float64
    assert float_type(edgeprune.capture(nn.Embedding(5, 2).double(), torch.zeros(2, 3).long())) == torch.float64


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.other, self.last = nn.Linear(8, 32), nn.Linear(4, 32), nn.Linear(32, 2)

    def forward(self, half: torch.Tensor, wide: torch.Tensor) -> torch.Tensor:
        return self.last((self.first(half.float()) + self.other(wide.float())).relu())


@pytest.mark.parametrize("other", [torch.float32, torch.float64])
def test_inputs_of_several_types_are_each_fed_in_their_own(tmp_path: Path, other: torch.dtype) -> None:
    torch.manual_seed(0)
    half, wide = torch.randn(N, 8).half(), torch.randn(N, 4, dtype=other)
    y = (half[:, 0] + wide[:, 0] > 0).long()
    net = Mixed()
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        cross_entropy(net(half, wide), y).backward()
        optimizer.step()
    np.savez(tmp_path / "data.npz", half=half.numpy(), wide=wide.numpy(), y=y.numpy())
    program = edgeprune.capture(net, (half[:4], wide[:4]))
    assert float_type(program) == float_type(program.module()) == {"half": torch.float16, "wide": other}
    save_checkpoint(tmp_path / "net.pt", program, ModelInfo(()))
    spec, run = f"npz:{tmp_path / 'data.npz'}", str(tmp_path / "run")
    asked = [str(tmp_path / "net.pt"), "--data", spec, "--keep-macs", "0.5", "--finetune-epochs", "1", "--out", run]
    done = CliRunner().invoke(app, ["compress", *asked])
    assert done.exit_code == 0, done.output
    done = CliRunner().invoke(app, ["export", "--onnx", f"{run}/slim.pt2", "--data", spec, "--out", run])
    assert done.exit_code == 0, done.output


class Double(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x.double())


def test_processes_draw_otherwise() -> None:
    drawn = []
    for rank in range(3):
        with seeded(7, rank, torch.device("cpu")):
            drawn.append(torch.rand(4))
    torch.manual_seed(7)
    assert torch.equal(drawn[0], torch.rand(4))
    assert not torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[1], drawn[2])


class Cancels(nn.Module):
    """Large numbers that take each other away: float32 rounds the fractions off."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x + 1e7) - torch.full_like(x, 1e7)


class Fixed(nn.Module):
    """Runs in float32 alone."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ torch.eye(3, dtype=torch.float32)


def test_float64_tells_what_a_network_rounds_itself() -> None:
    x = torch.tensor([[1.0, 2.5, 3.0]])
    exact = outputs_in_float64(Cancels(), (x,))
    assert exact is not None and torch.equal(exact[0], x.double())
    assert own_rounding(Cancels()(x), exact[0]) == 0.5 and own_rounding(x, x) == 0
    assert outputs_in_float64(Fixed(), (x,)) is None
    assert own_rounding(x, exact[0][:, :2]) == own_rounding(x.int(), exact[0]) == 0
    assert own_rounding(torch.tensor([1.0, torch.inf]), torch.tensor([1.5, torch.nan])) == 0.5
