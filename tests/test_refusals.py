"""What cannot be captured is refused in one line that says what, where, what was expected and what came."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import edgeprune
from edgeprune.errors import CaptureError
from tests.nets import Net

X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
IMAGE = torch.zeros(2, 3, 8, 8)


def refusal(model: Any, inputs: Any, **options: Any) -> str:
    with pytest.raises(CaptureError) as caught:
        edgeprune.capture(model, inputs, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:  # stops here
            return x
        return -x


class Looping(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        for _ in range(int(x.abs().max().item())):  # stops here
            x = x + 1
        return x


class Sorting(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return sorted([x, -x], key=lambda part: float(part.sum()))[0]  # stops here


class InNumpy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(np.tanh(x.numpy()))  # stops here


@pytest.mark.parametrize("network", [Branching, Looping, Sorting, InNumpy])
def test_what_cannot_be_traced_is_refused_with_the_users_line(network: type[nn.Module]) -> None:
    message = refusal(network(), X)
    place = re.search(r"\(at (.+):(\d+) in \S+\)", message)
    assert message.startswith(f"{network.__name__} cannot be exported: ") and place is not None
    assert place[1] == __file__
    with open(__file__, encoding="utf-8") as file:
        assert "# stops here" in file.readlines()[int(place[2]) - 1]
    if network is not InNumpy:
        assert "depends on the values in a tensor" in message


def test_nothing_is_written_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    refusal(Looping(), X)
    refusal(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 2)), IMAGE)
    assert capfd.readouterr().err == ""


class Printing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        print("seen", x.shape)  # noqa: T201
        return x


def test_a_print_is_no_obstacle(capsys: pytest.CaptureFixture[str]) -> None:
    assert edgeprune.capture(Printing(), X).module()(X).equal(X)
    assert "seen" in capsys.readouterr().out


# -- example inputs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "inputs", "said"),
    [
        (nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), torch.zeros(2, 4, 9, 9),
         ["(input: (2, 4, 9, 9) float32)", "layer '0', Conv2d(3, 8", "to have 3 channels, but got 4"]),
        (nn.Sequential(nn.Flatten(), nn.Linear(8, 2)), IMAGE, ["layer '1', Linear(in_features=8", "2x192 and 8x2"]),
        (nn.Linear(4, 3), X.double(), ["(input: (2, 4) float64)", "the model's parameters are float32"]),
        (nn.Linear(4, 3), X.long(), ["(input: (2, 4) int64)", "the model's parameters are float32"]),
        (nn.Conv2d(3, 4, 3), IMAGE.double(), ["float64", "the model's parameters are float32"]),
        (nn.Embedding(4, 3), X, ["float32", "Expected tensor for argument #1 'indices'"]),
    ],
)  # fmt: skip
def test_inputs_that_the_model_does_not_take(model: nn.Module, inputs: Tensor, said: list[str]) -> None:
    message = refusal(model, inputs)
    assert message.startswith(f"{type(model).__name__} does not run on the example inputs ")
    assert all(part in message for part in said)


def test_integer_inputs_of_a_model_that_takes_them() -> None:
    tokens = torch.tensor([[0, 1], [2, 3]])
    model = nn.Sequential(nn.Embedding(4, 3), nn.Flatten(), nn.Linear(6, 2))
    torch.testing.assert_close(edgeprune.capture(model, tokens).module()(tokens), model(tokens))


class TwoInputs(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


class Keyword(nn.Module):
    def forward(self, x: Tensor, *, scale: Tensor) -> Tensor:
        return x * scale


@pytest.mark.parametrize(
    ("model", "inputs", "said"),
    [
        (TwoInputs(), X, "expected example inputs that it can be called with, got 1: missing a required argument: 'y'"),
        (TwoInputs(), (X, X, X), "got 3: too many positional arguments"),
        (Keyword(), X, "missing a required argument: 'scale'"),
        (Net(lambda m: torch.ones(2)), (), "expected at least one tensor among the example inputs, got none"),
        (nn.Linear(4, 3), {"input": X}, "expected a tensor or a sequence of positional arguments, got a dict"),
        (nn.Linear(4, 3), torch.zeros(0, 4), "input 'input': expected an example with elements, got shape (0, 4)"),
        (len, X, "expected an nn.Module, got a builtin_function_or_method"),
    ],
)  # fmt: skip
def test_arguments_that_do_not_fit(model: Any, inputs: Any, said: str) -> None:
    assert said in refusal(model, inputs)


class Mixed(nn.Module):
    """A dict and a list of tensors, an option and a number."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.last = nn.Linear(6, 2)

    def forward(self, parts: Any, more: Any, bias: Any = None, times: int = 1) -> Any:
        x = self.first(parts["a"] + more[0] * more[1]) * times
        return {"out": self.last(x.relu() if bias is None else x + bias)}


def test_nested_inputs_and_numbers_are_kept(tmp_path: Path) -> None:
    model = Mixed().eval()
    args = ({"a": X}, [X + 1, X * 2], None, 3)
    program = edgeprune.capture(model, args)
    batch = torch.randn(5, 4)
    expected = model({"a": batch}, [batch, batch], None, 3)["out"]
    torch.testing.assert_close(program.module()({"a": batch}, [batch, batch], None, 3)["out"], expected)
    graph = edgeprune.analyze(program)
    plan = edgeprune.plan(program, graph, keep_macs=0.6, align=1)
    slim = edgeprune.cut(program, plan)
    assert edgeprune.prove(program, slim, plan) <= 1e-5
    assert edgeprune.export_onnx(slim, tmp_path / "slim.onnx", simplify=False).parity <= 1e-5


def test_text_may_be_an_argument() -> None:
    program = edgeprune.capture(Net(lambda m, x, mode: x if mode == "plain" else -x), (X, "plain"))
    assert program.module()(X, "plain").equal(X)


def test_models_without_parameters_and_with_scalar_outputs() -> None:
    assert edgeprune.capture(nn.ReLU(), X).module()(X).equal(X.relu())
    torch.testing.assert_close(edgeprune.capture(Net(lambda m, x: x.sum()), X).module()(X), X.sum())


@pytest.mark.parametrize("function", [lambda m, x: x.shape[1], lambda m, x: None])
def test_a_model_must_return_a_tensor(function: Callable[..., Any]) -> None:
    assert "expected a network that returns a tensor, got none" in refusal(Net(function), X)


class Choosing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Any:
        return torch.cond(x.sum() > 0, lambda x: self.a(x), lambda x: self.b(x), (x,))


def test_branches_in_the_graph_are_refused() -> None:
    message = refusal(Choosing(), X)
    assert message.startswith("Choosing cannot be exported as one graph: cond runs parts of it by the data (at ")
    assert message.endswith("--module NAME, with one of a, b")
    with pytest.raises(CaptureError, match="expected a program of operators alone"):
        edgeprune.analyze(torch.export.export(Choosing(), (X,)))


# -- tensors that are not handled -------------------------------------------------------------------------------------


def with_buffer(tensor: Tensor) -> nn.Module:
    model = nn.Linear(4, 3)
    model.register_buffer("extra", tensor)
    return model


def sparse() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 3))
    model[0].weight = nn.Parameter(model[0].weight.detach().to_sparse())
    return model


@pytest.mark.parametrize(
    ("model", "inputs", "said"),
    [
        (nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2).half()), X,
         "tensor '1.weight': expected float32 as '0.weight' is, got float16; convert the model to one precision"),
        (nn.Sequential(nn.Linear(4, 3).double(), nn.Linear(3, 2)), X, "expected float64 as '0.weight' is, got float32"),
        (nn.Linear(4, 3).to(torch.complex64), X, "tensor 'weight': expected real numbers, got complex64"),
        (nn.Linear(4, 3), X.to(torch.complex64), "input 'input': expected real numbers, got complex64"),
        (sparse(), X, "tensor '0.weight': expected a dense tensor, got torch.sparse_coo"),
        (nn.Linear(4, 3), X.to_sparse(), "input 'input': expected a dense tensor, got torch.sparse_coo"),
        (nn.Linear(4, 3, device="meta"), X, "tensor 'weight': expected values, got a meta tensor"),
        (nn.Linear(4, 3), X.to("meta"), "input 'input': expected values, got a meta tensor"),
        (torch.jit.script(nn.Linear(4, 3)), X, "expected a module with its Python code, got a TorchScript module"),
    ],
)  # fmt: skip
def test_tensors_that_are_refused(model: nn.Module, inputs: Tensor, said: str) -> None:
    assert said in refusal(model, inputs)


def test_quantised_models_are_refused() -> None:
    layer = torch.ao.nn.quantized.dynamic.Linear(4, 3)
    message = refusal(nn.Sequential(layer), X)
    assert message.startswith("layer '0': expected a float layer, got a quantised one (Linear)")
    assert "compress the float model" in message


def test_quantised_tensors_are_refused() -> None:
    tensor = torch.quantize_per_tensor(X, 0.1, 0, torch.qint8)
    assert "tensor 'extra': expected floats, got a quantised tensor" in refusal(with_buffer(tensor), X)


def test_quantised_graphs_are_refused() -> None:
    import torch.ao.quantization.fx._decomposed  # noqa: F401  (registers the operators)

    quantize = torch.ops.quantized_decomposed.quantize_per_tensor.default
    net = Net(lambda m, x: quantize(m.l(x), 0.1, 0, -128, 127, torch.int8).float(), l=nn.Linear(4, 3))
    assert "got a quantised one (operator quantized_decomposed.quantize_per_tensor.default)" in refusal(net, X)
