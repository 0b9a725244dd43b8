"""Distances between rows: captured with rows of free number, cut, and written to ONNX in every form that they have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import edgeprune
from edgeprune.graph.sizes import free_ranges

_FORMS = (None, "use_mm_for_euclid_dist", "donot_use_mm_for_euclid_dist", "use_mm_for_euclid_dist_if_necessary")


class Distances(nn.Module):
    def __init__(self, points: int = 10, **choices: Any) -> None:
        super().__init__()
        self.first, self.points, self.choices = nn.Linear(8, 16), nn.Parameter(torch.randn(points, 16)), choices

    def forward(self, x: Tensor) -> Tensor:
        return -torch.cdist(self.first(x).relu(), self.points, **self.choices)


def slim_of(net: nn.Module, x: Tensor) -> edgeprune.Program:
    torch.manual_seed(0)
    program = edgeprune.capture(net, x)
    assert free_ranges(program)[0][0] == (1, None)
    for rows in (1, 25, 26, 40):
        x = torch.randn(rows, *x.shape[1:])
        torch.testing.assert_close(program.module()(x), net(x), atol=1e-3, rtol=1e-3)
    graph = edgeprune.analyze(program)
    plan = edgeprune.plan(program, graph, keep_macs=0.5, align=1)
    slim = edgeprune.cut(program, plan, graph)
    assert edgeprune.prove(program, slim, plan) <= 1e-4
    assert slim.state_dict["points"].shape[-1] == slim.state_dict["first.weight"].shape[0] < 16
    return slim


@pytest.mark.parametrize("rows", [2, 40])
@pytest.mark.parametrize("form", _FORMS)
def test_the_batch_is_free_in_every_form(form: str | None, rows: int, tmp_path: Path) -> None:
    choices = {} if form is None else {"compute_mode": form}
    check_file(slim_of(Distances(**choices), torch.randn(rows, 8)), tmp_path / "slim.onnx")


@pytest.mark.parametrize("p", [1.0, 3.0, float("inf")])
def test_every_norm_is_written(p: float, tmp_path: Path) -> None:
    check_file(slim_of(Distances(p=p), torch.randn(2, 8)), tmp_path / "slim.onnx")


def test_the_count_of_differences_is_written(tmp_path: Path) -> None:
    check_file(edgeprune.capture(Distances(p=0.0), torch.randn(2, 8)), tmp_path / "dense.onnx")


def check_file(slim: edgeprune.Program, path: Path) -> None:
    edgeprune.export_onnx(slim, path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    x = torch.randn(7, 8)
    [got] = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(got, slim.module()(x).detach().numpy(), atol=1e-4, rtol=1e-4)
