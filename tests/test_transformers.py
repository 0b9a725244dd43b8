"""Networks as the package transformers writes them: token ids beside a mask, and outputs in a class of its own."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest
import torch
import transformers
from torch import nn

from edgeprune import (
    analyze,
    capture,
    compat,  # noqa: F401  (torchvision can be imported after it)
    cut,
    export_onnx,
    plan,
    prove,
)
from edgeprune.cost.macs import macs


@pytest.fixture(scope="module")
def encoder() -> tuple[nn.Module, tuple[torch.Tensor, torch.Tensor]]:
    """A small text encoder, ids `(2, 12)` and a mask that leaves the last three of the second text out."""
    torch.manual_seed(0)
    config = transformers.DistilBertConfig(vocab_size=200, dim=64, n_layers=1, n_heads=4, hidden_dim=128)
    model = transformers.DistilBertModel(config).eval()
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[1, 9:] = 0
    return model, (torch.randint(0, 200, (2, 12)), mask)


def test_half_of_a_text_encoder_is_proved_and_runs_in_onnxruntime(
    encoder: tuple[nn.Module, tuple[torch.Tensor, torch.Tensor]], tmp_path: Path
) -> None:
    """Its mask holds in all of them: what it leaves out changes nothing where it does not stand."""
    model, (ids, mask) = encoder
    program = capture(model, (ids, mask))
    graph = analyze(program)
    pruning = plan(program, graph, keep_macs=0.5, criterion="l2", align=1)
    slim = cut(program, pruning, graph)
    assert macs(slim) <= 0.5 * macs(program)
    assert prove(program, slim, pruning, inputs=(ids, mask)) <= 1e-5
    export_onnx(slim, tmp_path / "slim.onnx", inputs=(ids, mask))
    session = onnxruntime.InferenceSession(tmp_path / "slim.onnx", providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    others = ids.clone()
    others[1, 9:] = (ids[1, 9:] + 1) % 200
    first, second = (
        session.run(None, dict(zip(names, (given.numpy(), mask.numpy()), strict=True)))[0] for given in (ids, others)
    )
    with torch.no_grad():
        expected = slim.module()(ids, mask).last_hidden_state
    torch.testing.assert_close(torch.from_numpy(first), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(first[1, :9], second[1, :9], rtol=0, atol=1e-6)
