"""Composite operators: what was worked out once gives the same program as PyTorch alone, and leaves nothing behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.export import exported_program
from torch.nn import functional as F

from edgeprune.graph.capture import capture
from edgeprune.graph.composites import composites_known

_aten = torch.ops.aten
_OPERATORS = (_aten.linear.default, _aten.einsum.default, _aten.conv2d.default, _aten.rms_norm.default)


class _Composed(nn.Module):
    """Composite operators that stay, that are taken apart and that are written in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu_(self.conv(x)).flatten(2).transpose(1, 2)
        return F.rms_norm(torch.einsum("blc,dc->bld", self.linear(x), self.linear.weight), (4,))


def _code(program: Any) -> str:
    return str(program.graph_module.code)


def _kernels() -> list[dict[Any, Any]]:
    return [dict(operator.py_kernels) for operator in _OPERATORS]


@pytest.mark.parametrize("table", [{}, None], ids=["kept", "taken apart"])
def test_a_decomposition_is_that_of_pytorch_each_time(table: Any) -> None:
    program = capture(_Composed(), torch.randn(2, 3, 8, 8))
    before = _kernels()
    want = _code(program.run_decompositions(table))
    for _ in range(2):
        with composites_known():
            got = program.run_decompositions(table)
        assert _code(got) == want
        assert _kernels() == before
    assert _code(program.run_decompositions(table)) == want
    assert ("aten.einsum.default" in want) == (table is not None)


def test_what_fails_leaves_pytorch_as_it_was() -> None:
    owner = vars(exported_program)
    names = ("_collect_all_valid_cia_ops", "_override_composite_implicit_decomp")
    own, before = [owner[name] for name in names], _kernels()
    with pytest.raises(ZeroDivisionError), composites_known():
        assert all(owner[name] is not one for name, one in zip(names, own, strict=True))
        with exported_program._override_composite_implicit_decomp({_aten.linear.default: len}):
            assert _aten.linear.default.py_kernels != before[0]
            raise ZeroDivisionError
    assert [owner[name] for name in names] == own
    assert _kernels() == before


def test_an_operator_that_is_added_later_is_kept_whole_too() -> None:
    with composites_known():
        capture(_Composed(), torch.randn(2, 3, 8, 8)).run_decompositions({})
    library = torch.library.Library("edgeprune_composites", "DEF")
    library.define("twice(Tensor x) -> Tensor")
    library.impl("twice", lambda x: x + x, "CompositeImplicitAutograd")

    class Twice(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.ops.edgeprune_composites.twice(x)

    program = capture(Twice(), torch.randn(2, 3))
    with composites_known():
        got = program.run_decompositions({})
    assert "edgeprune_composites.twice" in _code(got)
    assert _code(got) == _code(program.run_decompositions({}))
