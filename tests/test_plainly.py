"""What the exporter's decomposition makes of a network is known without tracing it: the file is the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeprune import capture
from edgeprune.export import plainly
from edgeprune.export.onnx import draft_onnx, export_onnx


class Usual(nn.Module):
    """Every operator of which it is known what becomes of it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.one, self.other = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self.norm(self.stem(x)), inplace=True)
        left, right = y.chunk(2, 1)
        left = self.one(left)
        left += right  # a residual sum in place
        y = torch.cat([left, F.hardswish(self.other(right), inplace=True)], 1)
        y = y.unflatten(1, (2, 4)).swapaxes(1, 2).contiguous().flatten(1, 2)  # a channel shuffle
        y = y * ((y > 0) & (y < 9)).to(y.dtype).expand_as(y)
        y = F.dropout(F.adaptive_avg_pool2d(y, 1).flatten(1), 0.2, self.training)
        return cast(Tensor, self.head(y.unflatten(1, (2, 4)).transpose(1, 2).reshape(-1, 8).contiguous()))


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function, self.head = function, nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.head(self.function(x)))


def written(y: Tensor) -> Tensor:
    z = y * 2
    part = z[:, :4]
    part.relu_()  # is seen in z
    return z


def seen(y: Tensor) -> Tensor:
    z = y * 2
    w = z.relu_()
    return w + z  # both are what was written


UNKNOWN: dict[str, Callable[[Tensor], Tensor]] = {
    "a write to a view": written,
    "a write that is seen": seen,
    "a write of ones": lambda y: (y * 2).fill_(torch.tensor(1.0)) + y,
    "parts of different size": lambda y: F.adaptive_avg_pool1d(y.unsqueeze(1), 3).flatten(1).repeat(1, 3)[:, :8],
}


def set_ones(node: onnx.NodeProto) -> list[onnx.AttributeProto]:
    """The attributes; some of the exporter's functions write what a size of 0 would mean, which none is here."""
    return [one for one in node.attribute if one.name != "allowzero"]


def canonical(path: Path) -> list[Any]:
    """The graph without the names of its values."""
    graph = onnx.load(path).graph
    numbers: dict[str, int] = {"": -1}
    tensors = {t.name: onnx.numpy_helper.to_array(t).tobytes() for t in graph.initializer}

    def told(name: str) -> Any:
        return tensors.get(name) or numbers.setdefault(name, len(numbers))

    inputs = [told(value.name) for value in graph.input]
    nodes = [
        (n.op_type, [*map(told, n.input)], [*map(told, n.output)], sorted(a.SerializeToString() for a in set_ones(n)))
        for n in graph.node
    ]
    return [inputs, *nodes, [told(value.name) for value in graph.output]]


def test_the_file_is_that_of_a_traced_decomposition(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    program = capture(Usual().eval(), torch.randn(2, 3, 8, 8))
    known: list[bool] = []
    plain = plainly._plain

    def counted(*told: Any) -> Any:
        result = plain(*told)
        known.append(result is not None)
        return result

    monkeypatch.setattr(plainly, "_plain", counted)
    draft_onnx(program, tmp_path / "known.onnx")
    assert known == [True]
    monkeypatch.setattr(plainly, "_plain", lambda *told: None)
    draft_onnx(program, tmp_path / "traced.onnx")
    assert canonical(tmp_path / "known.onnx") == canonical(tmp_path / "traced.onnx")


@pytest.mark.parametrize("name", list(UNKNOWN))
def test_what_is_not_known_is_traced(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    program = capture(Function(UNKNOWN[name]).eval(), torch.randn(2, 8))
    assert export_onnx(program, tmp_path / "net.onnx").parity < 1e-6
