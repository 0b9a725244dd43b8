"""Library calls raise edgeprune's errors: a fault says its stage, node and line; lengths may depend on data."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import edgeprune
from edgeprune.errors import EdgepruneError, InputError, InternalError
from edgeprune.graph.faults import public
from edgeprune.graph.ops import registry
from tests.nets import Net, cnn, cut_randomly, mlp, randomized


def broken(analysis: Any, call: Any) -> None:
    raise StopIteration


def test_a_fault_says_stage_node_and_line(monkeypatch: pytest.MonkeyPatch) -> None:
    program = edgeprune.capture(randomized(mlp()), torch.randn(2, 8))
    monkeypatch.setitem(registry._TABLE, "linear", registry.Operator(registry.Kind.LINEAR, broken))
    with pytest.raises(
        InternalError, match=r"^analyze, at node 'linear'( \(.*\))?: StopIteration; .*report it"
    ) as told:
        edgeprune.analyze(program)
    assert told.value.exit_code == 3 and isinstance(told.value.__cause__, StopIteration)


def test_every_public_function_is_guarded() -> None:
    names = (
        "capture",
        "analyze",
        "plan",
        "plan_dead",
        "fold",
        "cut",
        "prove",
        "slim_contract",
        "export_onnx",
        "load_model",
    )
    for name in names:
        assert getattr(edgeprune, name).__wrapped__ is not None
    assert edgeprune.graph.capture.Program.apply_to.__wrapped__ is not None  # type: ignore[attr-defined]


def test_errors_of_edgeprune_and_of_the_machine_pass() -> None:
    for kind in (InputError, OSError, MemoryError):

        @public("try")
        def fails(kind: type[Exception] = kind) -> None:
            raise kind("as it is")

        with pytest.raises(kind, match="^as it is$"):
            fails()


def test_a_wrong_call_is_python_s_to_tell() -> None:
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        edgeprune.analyze()  # type: ignore[call-arg]


def test_a_module_in_the_place_of_a_program() -> None:
    with pytest.raises(InputError, match="^analyze: expected an exported program, .* got a Sequential$"):
        edgeprune.analyze(nn.Sequential(nn.Linear(2, 2)))  # type: ignore[arg-type]


def repeated(m: Any, x: Tensor) -> Tensor:
    hidden = m.a(x).relu()
    times = (m.b(hidden)[0, :, 0].abs() * 2).round().long().clamp(1, 3)
    return m.c(torch.repeat_interleave(hidden, times, dim=1))


def chosen(m: Any, x: Tensor) -> Tensor:
    return m.c(m.a(x)[x[..., 0] > 0].relu())


def cut_short(m: Any, x: Tensor) -> Tensor:
    n = x[0, 0, 0].abs().long().item()
    torch._check(n >= 0)
    torch._check(n < 5)
    return m.c(m.a(x)[:, :n].relu())


def found(m: Any, x: Tensor) -> Any:
    y = m.c(m.a(x).relu())
    return y, torch.nonzero(y[..., 0] > 0), torch.where(y[..., 1] > 0)[0]


def asked(m: Any, x: Tensor) -> Tensor:
    return m.c(m.a(x)) if x.sum() > 0 else m.c(m.a(x).relu())


@pytest.mark.parametrize("function", [repeated, chosen, cut_short, found, asked])
def test_what_depends_on_data_is_cut_or_refused(function: Any) -> None:
    """Never an exception of PyTorch's."""
    net = Net(function, a=nn.Linear(8, 16), b=nn.Linear(16, 1), c=nn.Linear(16, 4))
    torch.manual_seed(0)
    try:
        program = edgeprune.capture(randomized(net), torch.randn(2, 5, 8))
        graph = edgeprune.analyze(program)
        plan = edgeprune.plan(program, graph, keep_macs=0.8, align=1)
        slim = edgeprune.cut(program, plan, graph)
        assert edgeprune.prove(program, slim, plan) <= 1e-5
    except EdgepruneError as error:
        assert not isinstance(error, InternalError)
        told = {
            repeated: "repeats by a computed",
            chosen: "by computed indices",
            asked: "depends on the values in a tensor",
        }
        assert told[function] in str(error)


def test_a_model_is_as_it_was_after_a_capture() -> None:
    """What its forward sets, and the contents of its lists, dicts and buffers, are taken back."""

    class Remembering(nn.Module):
        seen: tuple[int, ...] = ()

        def __init__(self) -> None:
            super().__init__()
            self.inner = cnn()
            self.log: list[Any] = []
            self.known: dict[str, Any] = {"kept": 1}

        def forward(self, x: Tensor) -> Tensor:
            if tuple(x.shape) != self.seen:
                self.grid = torch.zeros(x.shape[0], 1, dtype=x.dtype) + 1
                self.seen = tuple(x.shape)
            self.log.append(x)
            self.known["last"] = x
            return self.inner(x) * self.grid

    net = randomized(Remembering()).train()
    before = dict(vars(net))
    edgeprune.capture(net, torch.randn(2, 3, 8, 8))
    assert vars(net) == before and net.training and net.log == [] and net.known == {"kept": 1}
    net.eval()(torch.randn(2, 3, 8, 8))
    program = edgeprune.capture(net, torch.randn(2, 3, 8, 8))  # it remembers the very batch that it is captured with
    assert net.seen == (2, 3, 8, 8) and len(net.log) == 1
    assert cut_randomly(program, edgeprune.analyze(program)).error <= 1e-5
