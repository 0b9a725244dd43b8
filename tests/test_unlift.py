"""A program's module, however deep: the same parameters and buffers, each found straight away."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import nn

from edgeprune import capture


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.tied = nn.BatchNorm1d(4), nn.ModuleDict({"a": nn.Linear(4, 4)})
        self.register_buffer("shift", torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.tied["a"](x)) + self.shift


def test_parameters_are_assigned_without_a_look_at_their_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(*[Block() for _ in range(30)]).eval()
    net[3].tied = net[1].tied  # one module in two places
    program = capture(net, torch.randn(2, 4))
    unflatten = importlib.import_module("torch.export.unflatten")  # its name is a function's too
    looks = []
    original = unflatten._is_call_name

    def counted(call: str, base: str) -> bool:
        looks.append(call)
        return bool(original(call, base))

    monkeypatch.setattr(unflatten, "_is_call_name", counted)
    module = program.module()
    assert len(looks) == 0
    assert module.state_dict().keys() == net.state_dict().keys()
    assert module.get_parameter("3.tied.a.weight") is module.get_parameter("1.tied.a.weight")
    x = torch.randn(5, 4)
    torch.testing.assert_close(module(x), net(x))
    assert set(dict(module.named_buffers())) == set(dict(net.named_buffers()))
