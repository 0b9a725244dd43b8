"""A buffer that the network writes to: proved over several steps, an input and an output of the file, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import edgeprune
from edgeprune.errors import InputError, ProofError
from edgeprune.export.fixed import write_fixed_batch
from edgeprune.export.state import check_stateless, states_of
from edgeprune.graph.capture import Program
from edgeprune.graph.state import state_buffers
from edgeprune.pruning.plan import PruningPlan


class Cached(nn.Module):
    """Adds half of what the hidden layer was in the step before, and counts the steps."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 4)
        self.cell = nn.Module()
        self.cell.register_buffer("cache", torch.ones(1, 16))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Any:
        h = self.a(x).relu() + 0.5 * self.cell.cache
        self.cell.cache.copy_(h)
        self.count += 1
        return self.b(h) * self.count


class Mean(nn.Module):
    """Takes off a running mean, which is written in place; the batch is free."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 4)
        self.register_buffer("mean", torch.zeros(16))

    def forward(self, x: Tensor) -> Any:
        h = self.a(x).relu()
        self.mean.mul_(0.9).add_(0.1 * h.mean(0))
        return self.b(h - self.mean)


def cut(net: nn.Module, batch: int | None) -> tuple[Program, PruningPlan, Program]:
    torch.manual_seed(0)
    program = edgeprune.capture(net, torch.randn(batch or 2, 6), dynamic_batch=batch is None)
    plan = edgeprune.plan(program, edgeprune.analyze(program), keep_macs=0.5, align=1)
    return program, plan, edgeprune.cut(program, plan)


NETS = {"cache": (Cached, 1, ("count", "cell.cache")), "mean": (Mean, None, ("mean",))}


@pytest.mark.parametrize("name", NETS)
def test_the_file_takes_and_gives_the_state(name: str, tmp_path: Path) -> None:
    build, batch, buffers = NETS[name]
    program, plan, slim = cut(build(), batch)
    assert state_buffers(program) == state_buffers(slim) == buffers
    assert edgeprune.prove(program, slim, plan) <= 1e-5
    for network in (program, slim):
        done = edgeprune.export_onnx(network, tmp_path / "net.onnx")
        assert done.parity <= 1e-5
        states = states_of(network)
        assert all(f"{state.input} takes what {state.output} gave" in done.note for state in states)
        assert largest_error_over_steps(network, tmp_path / "net.onnx", batch or 3) <= 1e-5
    if batch is None:
        write_fixed_batch(tmp_path / "net.onnx", tmp_path / "net.onnx", 1)
        assert largest_error_over_steps(slim, tmp_path / "net.onnx", 1) <= 1e-5


def largest_error_over_steps(program: Program, path: Path, batch: int) -> float:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    told = json.loads(session.get_modelmeta().custom_metadata_map["edgeprune.state"])
    names, module, worst = [value.name for value in session.get_outputs()], program.module(), 0.0
    held: dict[str, np.ndarray] = {}
    for _ in range(5):
        x = torch.randn(batch, 6)
        with torch.no_grad():
            want = module(x).numpy()
        got = dict(zip(names, session.run(None, {"input": x.numpy(), **held}), strict=True))
        worst = max(worst, float(np.abs(want - got["logits"]).max()))
        held = {one["input"]: got[one["output"]] for one in told}
    return worst


def test_the_state_is_narrower_in_the_slim_file(tmp_path: Path) -> None:
    _, _, slim = cut(Cached(), 1)
    edgeprune.export_onnx(slim, tmp_path / "slim.onnx")
    inputs = onnx.load(tmp_path / "slim.onnx").graph.input
    sizes = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in inputs}
    width = slim.state_dict["a.weight"].shape[0]
    assert width < 16 and sizes == {"input": [1, 6], "cell_cache_in": [1, width], "count_in": []}


def test_a_wrong_state_is_found() -> None:
    program, plan, slim = cut(Cached(), 1)
    slim.state_dict["cell.cache"].add_(0.5)
    with pytest.raises(ProofError, match="not the masked dense network"):
        edgeprune.prove(program, slim, plan)


def test_what_would_lose_the_state_refuses_and_names_it() -> None:
    program, _, _ = cut(Cached(), 1)
    with pytest.raises(InputError, match="--ort: expected a network without a state, .* buffers count, cell.cache"):
        check_stateless(program, "--ort")
