"""An edited graph becomes the program that an export of it gives."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.nn import functional as F

import edgeprune
from edgeprune.graph.capture import Program, example_inputs, reexport, reexport_like
from edgeprune.graph.lift import lifted
from edgeprune.graph.sizes import free_ranges
from tests.nets import Net, cnn, cut_randomly, mlp, randomized, residual


class Counting(nn.Module):
    """Writes to a buffer as it runs, and uses a constant and a weight twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 8)
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("table", torch.rand(8), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.count.add_(1.0)
        hidden = F.relu(self.second(F.relu(self.first(x))) + torch.arange(8.0))
        return F.linear(F.relu(self.first(hidden)), self.second.weight) * self.table


def resized() -> nn.Module:
    return Net(
        lambda m, x: m.b(F.interpolate(m.a(x).relu(), size=x.shape[2:], mode="bilinear")),
        a=nn.Conv2d(3, 8, 3, padding=1, stride=2),
        b=nn.Conv2d(8, 4, 1),
    )


def recurrent() -> nn.Module:
    return Net(lambda m, x: m.head(m.lstm(x)[0]), lstm=nn.LSTM(6, 8, batch_first=True), head=nn.Linear(8, 3))


NETS: dict[str, tuple[Any, tuple[int, ...], bool]] = {
    "mlp": (mlp, (2, 8), False),
    "cnn": (cnn, (2, 3, 8, 8), False),
    "residual": (residual, (2, 3, 8, 8), False),
    "counting": (Counting, (2, 8), False),
    "any size": (resized, (2, 3, 16, 12), True),
    "attention": (lambda: nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), (2, 5, 16), False),
    "lstm": (recurrent, (2, 5, 6), False),
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", NETS)
def test_a_cut_graph_is_what_an_export_of_it_gives(name: str) -> None:
    build, shape, sizes = NETS[name]
    program = edgeprune.capture(randomized(build()), torch.randn(shape), dynamic_size=sizes)
    slim = cut_randomly(program, edgeprune.analyze(program)).slim
    exported = reexport(slim.module(), example_inputs(slim), free_ranges(slim))
    assert (free_ranges(exported), input_kinds(exported)) == (free_ranges(slim), input_kinds(slim))
    assert sizes_of(exported) == sizes_of(slim)
    assert set(exported.state_dict) >= set(slim.state_dict)  # an export makes every buffer persistent
    x = torch.randn(5, *shape[1:])
    torch.testing.assert_close(exported.module()(x), slim.module()(x))


def test_a_cut_is_not_traced_again(monkeypatch: pytest.MonkeyPatch) -> None:
    program = edgeprune.capture(randomized(cnn()), torch.randn(2, 3, 8, 8))
    graph = edgeprune.analyze(program)

    def no_export(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("traced again")

    monkeypatch.setattr(torch.export, "export", no_export)
    slim = cut_randomly(program, graph).slim
    assert slim.module()(torch.randn(3, 3, 8, 8)).shape[0] == 3


def test_the_dense_program_stays_as_it_is() -> None:
    program = edgeprune.capture(randomized(resized()), torch.randn(2, 3, 16, 12), dynamic_size=True)
    before = (program.graph_module.code, str(program.range_constraints), len(guards_of(program)))
    cut_randomly(program, edgeprune.analyze(program))
    assert (program.graph_module.code, str(program.range_constraints), len(guards_of(program))) == before


def test_new_weights_take_their_place() -> None:
    program = edgeprune.capture(randomized(mlp()), torch.randn(2, 8))
    module = program.module()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(2)
    changed = reexport_like(module, program)
    x = torch.randn(3, 8)
    torch.testing.assert_close(changed.module()(x), module(x))
    assert not torch.equal(changed.module()(x), program.module()(x))


def test_a_graph_within_the_graph_takes_an_export() -> None:
    program = edgeprune.capture(randomized(mlp()), torch.randn(2, 8))
    module = program.module()
    first = next(node for node in module.graph.nodes if node.op == "call_function")
    module.inner = fx.symbolic_trace(nn.ReLU())
    with module.graph.inserting_after(first):
        inner = module.graph.call_module("inner", (first,))
    first.replace_all_uses_with(inner, delete_user_cb=lambda user: user is not inner)
    module.recompile()
    assert lifted(module, program, example_inputs(program)) is None
    x = torch.randn(3, 8)
    torch.testing.assert_close(reexport_like(module, program).module()(x), module(x))


def input_kinds(program: ExportedProgram) -> set[tuple[Any, ...]]:
    return {(spec.kind, spec.target) for spec in program.graph_signature.input_specs}


def sizes_of(program: Program) -> list[tuple[Any, ...]]:
    """The operators with the sizes and types of their results, a name for each free size."""
    names: dict[str, str] = {}
    found: list[tuple[Any, ...]] = []
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if node.op == "call_function" and isinstance(value, Tensor) and node.target is not operator.getitem:
            sizes = [s if isinstance(s, int) else names.setdefault(str(s), f"s{len(names)}") for s in value.shape]
            found.append((str(node.target), sizes, value.dtype))
    return found


def guards_of(program: Program) -> list[Any]:
    value = next(node.meta["val"] for node in program.graph.nodes if node.op == "placeholder")
    return list(value.fake_mode.shape_env.guards)
