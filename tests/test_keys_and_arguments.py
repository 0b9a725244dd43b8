"""Dicts of inputs with any keys, and arguments in any script: cut, written, read, cut again and exported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import edgeprune
from edgeprune.commands.export import export
from edgeprune.formats.pt2 import read_program, write_program
from edgeprune.requests import ExportRequest
from tests.nets import Net


@pytest.mark.parametrize("key", ["observation.state", "my key", "größe", "日本", "__len__", 3])
def test_keys_of_a_dict_of_inputs_are_data(tmp_path: Path, key: Any) -> None:
    net = Net(
        lambda m, batch: {key: m.head(m.stem(batch[key]).relu() + m.side(batch["beside"]))},
        stem=nn.Linear(6, 16), side=nn.Linear(3, 16), head=nn.Linear(16, 4),
    )  # fmt: skip
    _check_the_whole_way(tmp_path, net, {key: torch.randn(2, 6), "beside": torch.randn(2, 3)})


@pytest.mark.parametrize("name", ["größe", "日本語大", "match"])
def test_arguments_are_words_of_any_script(tmp_path: Path, name: str) -> None:
    made: dict[str, Any] = {}
    exec(f"def forward(self, {name}): return self.head(self.stem({name}).relu())", made)  # as PyTorch itself does
    kind = type("Own", (nn.Module,), {"forward": made["forward"]})
    net = kind()
    net.stem, net.head = nn.Linear(6, 16), nn.Linear(16, 4)
    _check_the_whole_way(tmp_path, net, torch.randn(2, 6))


def _check_the_whole_way(folder: Path, net: nn.Module, x: Any) -> None:
    """Cut, written, read, cut and written again: it answers as before, and its ONNX file as it does."""
    pruner = edgeprune.Pruner(net, (x,), keep_macs=0.7, steps=1)
    [slim] = list(pruner)
    pruner.save(folder / "run")
    program = edgeprune.load_model(folder / "run" / "slim.pt2").program
    torch.testing.assert_close(program.module()(x), slim.eval()(x))
    cut = edgeprune.cut(program, edgeprune.plan(program, edgeprune.analyze(program), keep_macs=0.7))
    again, _ = read_program(write_program(cut, {}))
    torch.testing.assert_close(again.module()(x), cut.module()(x))
    export(ExportRequest(model=str(folder / "run" / "slim.pt2"), out=str(folder / "out")))
    session = onnxruntime.InferenceSession(folder / "out" / "slim.onnx")
    names = [one.name for one in session.get_inputs()]
    values = [value.numpy() for value in pytree.tree_leaves(x)]
    [got] = session.run(None, dict(zip(names, values, strict=True)))
    [want] = pytree.tree_leaves(program.module()(x))
    torch.testing.assert_close(torch.from_numpy(got), want.detach(), atol=1e-5, rtol=1e-4)
    told = json.loads((folder / "out" / "features.json").read_text())
    assert all(name in json.dumps(told) for name in names)
