"""Export to ONNX: real files in onnxruntime, checked against PyTorch."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import edgeprune.compat  # noqa: F401 - makes torchvision importable
import edgeprune.export.onnx as exporter
from edgeprune.errors import InputError, ParityError
from edgeprune.export.contracts import write_contracts
from edgeprune.export.onnx import export_onnx
from edgeprune.export.onnxfile import samples_of_file
from edgeprune.export.parity import Sample, check_parity, error_on, samples_of
from edgeprune.graph.capture import Program, capture
from edgeprune.graph.groups import analyze
from edgeprune.graph.specs import input_specs
from edgeprune.pruning.planner import plan
from edgeprune.pruning.surgery import cut
from edgeprune.records import ModelInfo
from edgeprune.tasks.classification import CLASSIFICATION
from edgeprune.tasks.match import Match
from edgeprune.tasks.multilabel import Multilabel
from edgeprune.tasks.regression import Regression
from edgeprune.tasks.segmentation import Segmentation
from edgeprune.tasks.task import Task


class Residual(nn.Module):
    """A CNN with batch norm, a residual sum, squeeze-excite, dropout, and an index_select."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.BatchNorm2d(8), nn.SiLU())
        self.squeeze = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 4, 1), nn.ReLU(), nn.Conv2d(4, 8, 1))
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Linear(6 * 16, 5))
        self.register_buffer("order", torch.tensor([7, 0, 2, 3, 5, 6]))

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        h = h + self.body(h)
        h = h * torch.sigmoid(self.squeeze(h))
        h = torch.index_select(nn.functional.max_pool2d(h, 2), 1, self.order)
        return self.head(h.flatten(1))


class Several(nn.Module):
    """Two inputs of different types, two named outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.linear = nn.Embedding(4, 3), nn.Linear(5, 3)

    def forward(self, left: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        return {"scores": self.linear(left) + self.table(tokens).sum(1), "tokens_seen": self.table(tokens)}


class Eigenvalues(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.eigvalsh(x @ x.transpose(1, 2))


class BiasedAttention(nn.Module):
    """Self-attention of 4 heads over 6 tokens with a learned bias for each pair of tokens, as in BEiT."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.project = nn.Linear(32, 96), nn.Linear(32, 5)
        self.bias = nn.Parameter(torch.randn(4, 6, 6))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).reshape(x.shape[0], 6, 3, 4, 8).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=self.bias.unsqueeze(0))
        return self.project(mixed.transpose(1, 2).reshape(x.shape[0], 6, 32))


class Attention(nn.Module):
    """Attention of an input to itself, which is also the output."""

    def __init__(self, mask: tuple[int, ...] | None) -> None:
        super().__init__()
        self.mask = None if mask is None else nn.Parameter(torch.randn(mask))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=self.mask)


class Offset(nn.Module):
    """Gives `x + offset`; two programs of it disagree by the difference of their offsets."""

    def __init__(self, offset: float) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.full((3,), offset))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.offset


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 4))


def with_statistics(model: nn.Module) -> nn.Module:
    """Batch norm statistics and scales of a trained network, so that folding them wrongly shows."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.running_mean.uniform_(-0.5, 0.5, generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
    return model


def run(path: Path, *inputs: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, dict(zip([value.name for value in session.get_inputs()], inputs, strict=True)))


def in_torch(program: Program, *inputs: np.ndarray) -> Any:
    with torch.no_grad():
        return program.module()(*(torch.from_numpy(array) for array in inputs))


def shape_of(value: onnx.ValueInfoProto) -> list[str | int]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


@pytest.mark.parametrize(("build", "shape"), [(mlp, (1, 4, 4)), (Residual, (3, 8, 8))], ids=["mlp", "residual"])
def test_file_gives_what_pytorch_gives_at_any_batch(build: Any, shape: tuple[int, ...], tmp_path: Path) -> None:
    program = capture(with_statistics(build()), torch.randn(2, *shape))
    images = np.random.default_rng(1).standard_normal((20, *shape), dtype=np.float32)
    done = export_onnx(program, tmp_path / "net.onnx", inputs=images, metadata={"edgeprune.contract": "full"})
    assert done.parity <= 1e-5 and done.simplified and done.note == ""
    assert done.size_bytes == (tmp_path / "net.onnx").stat().st_size
    for n in (1, 3, 7, 20):
        np.testing.assert_allclose(run(tmp_path / "net.onnx", images[:n])[0], in_torch(program, images[:n]), atol=1e-5)
    proto = onnx.load(tmp_path / "net.onnx")
    assert [(value.name, shape_of(value)) for value in proto.graph.input] == [("input", ["batch", *shape])]
    assert [value.name for value in proto.graph.output] == ["logits"]
    assert {entry.key: entry.value for entry in proto.metadata_props} == {"edgeprune.contract": "full"}
    assert "BatchNormalization" not in {node.op_type for node in proto.graph.node}
    assert os.listdir(tmp_path) == ["net.onnx"]


class Padded(nn.Module):
    """Channels below zero, padded by a number, pooled."""

    def __init__(self, value: float, pool: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.value, self.pool = nn.Conv2d(3, 4, 1), value, pool
        nn.init.constant_(self.conv.bias, -5.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(nn.functional.pad(self.conv(x), (1, 1, 1, 1), value=self.value)).flatten(1)


@pytest.mark.parametrize("value", [0.0, 1.0, -7.0, float("-inf")])
def test_padding_ahead_of_a_max_pooling(value: float, tmp_path: Path) -> None:
    program = capture(Padded(value, nn.MaxPool2d(3, 2)), torch.randn(2, 3, 9, 9))
    assert export_onnx(program, tmp_path / "net.onnx", inputs=torch.randn(4, 3, 9, 9)).parity <= 1e-5


@pytest.mark.parametrize("padding", [0, 1])
def test_padding_ahead_of_a_mean(padding: int, tmp_path: Path) -> None:
    pool = nn.AvgPool2d(3, 2, padding, count_include_pad=False)
    program = capture(Padded(0.0, pool), torch.randn(2, 3, 9, 9))
    assert export_onnx(program, tmp_path / "net.onnx", inputs=torch.randn(4, 3, 9, 9)).parity <= 1e-5


def test_attention_with_a_trained_mask(tmp_path: Path) -> None:
    program = capture(BiasedAttention(), torch.randn(2, 6, 32))
    assert export_onnx(program, tmp_path / "net.onnx").parity <= 1e-5
    assert "Identity" not in {node.op_type for node in onnx.load(tmp_path / "net.onnx").graph.node}
    slim = cut(program, plan(program, analyze(program), keep_macs=0.6))
    assert export_onnx(slim, tmp_path / "slim.onnx").parity <= 1e-5


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "shape", [(6, 8), (4, 6, 8), (3, 4, 6, 8), (2, 3, 4, 6, 8)], ids=lambda shape: f"{len(shape)} dims"
)
@pytest.mark.parametrize("mask", [None, (6, 6), (1, 6, 6)], ids=["no mask", "mask", "mask with a head"])
def test_attention_over_any_number_of_dims(
    shape: tuple[int, ...], mask: tuple[int, ...] | None, tmp_path: Path
) -> None:
    program = capture(Attention(mask), torch.randn(2, *shape))
    assert export_onnx(program, tmp_path / "net.onnx", simplify=False).parity <= 1e-5


def test_attention_over_free_sizes(tmp_path: Path) -> None:
    program = capture(Attention(None), torch.randn(2, 3, 4, 6, 8), dynamic={"x": (0, 3)})
    assert export_onnx(program, tmp_path / "net.onnx", simplify=False).parity <= 1e-5


def test_torchvision_resnet18(tmp_path: Path) -> None:
    import torchvision

    program = capture(with_statistics(torchvision.models.resnet18(num_classes=7)), torch.randn(2, 3, 32, 32))
    done = export_onnx(program, tmp_path / "resnet18.onnx")
    images = np.random.default_rng(1).standard_normal((5, 3, 32, 32), dtype=np.float32)
    got, want = run(tmp_path / "resnet18.onnx", images)[0], in_torch(program, images).numpy()
    assert done.parity <= 1e-4
    assert np.abs(got - want).max() <= 1e-4 * max(1, np.abs(want).max())
    assert (got.argmax(1) == want.argmax(1)).all()


def test_several_inputs_and_outputs_keep_their_names(tmp_path: Path) -> None:
    program = capture(Several(), (torch.randn(2, 5), torch.tensor([[0, 1], [2, 3]])))
    inputs = (np.ones((4, 5), np.float32), np.arange(8).reshape(4, 2) % 4)
    done = export_onnx(program, tmp_path / "net.onnx", inputs=inputs)
    proto = onnx.load(tmp_path / "net.onnx")
    assert [value.name for value in proto.graph.input] == ["left", "tokens"]
    assert [value.name for value in proto.graph.output] == ["scores", "tokens_seen"]
    want = in_torch(program, *inputs)
    for got, name in zip(run(tmp_path / "net.onnx", *inputs), want, strict=True):
        np.testing.assert_allclose(got, want[name], atol=1e-5)
    assert done.parity <= 1e-5


def test_double_precision_stays(tmp_path: Path) -> None:
    program = capture(mlp().double(), torch.randn(2, 1, 4, 4).double())
    assert export_onnx(program, tmp_path / "net.onnx").parity <= 1e-12


@pytest.mark.parametrize("opset", [18, 21])
def test_opset_is_the_one_asked_for(opset: int, tmp_path: Path) -> None:
    export_onnx(capture(mlp(), torch.randn(2, 1, 4, 4)), tmp_path / "net.onnx", opset=opset)
    assert [(entry.domain, entry.version) for entry in onnx.load(tmp_path / "net.onnx").opset_import] == [("", opset)]


def test_opset_out_of_reach_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="opset 99"):
        export_onnx(capture(mlp(), torch.randn(2, 1, 4, 4)), tmp_path / "net.onnx", opset=99)
    assert os.listdir(tmp_path) == []


def test_operator_that_onnx_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ONNX cannot express aten\._linalg_eigh\.default"):
        export_onnx(capture(Eigenvalues(), torch.randn(2, 3, 3)), tmp_path / "net.onnx")
    assert os.listdir(tmp_path) == []


def test_wrong_graph_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exporter is given another network, as its bugs give another one than was asked."""
    good, wrong = (capture(Offset(offset), torch.randn(2, 3)) for offset in (0.0, 0.01))
    translate = exporter._translate
    monkeypatch.setattr(
        exporter, "_translate", lambda told, optimize: translate(replace(told, program=wrong), optimize)
    )
    with pytest.raises(ParityError, match=r"largest error expected at most .*, got 1\.0e-02"):
        export_onnx(good, tmp_path / "net.onnx")
    assert os.listdir(tmp_path) == []
    assert export_onnx(good, tmp_path / "net.onnx", tolerance=0.02).parity == pytest.approx(0.01, rel=1e-3)


def test_wrong_optimised_graph_gives_way_to_the_plain_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good, wrong = (capture(Offset(offset), torch.randn(2, 3)) for offset in (0.0, 0.5))
    translate = exporter._translate
    monkeypatch.setattr(
        exporter,
        "_translate",
        lambda told, optimize: translate(replace(told, program=wrong if optimize else good), optimize),
    )
    done = export_onnx(good, tmp_path / "net.onnx")
    assert "optimised graph was left out" in done.note and done.parity <= 1e-6


@pytest.mark.parametrize("fault", ["wrong", "larger", "raises"])
def test_bad_simplified_graph_is_left_out(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxsim

    def simplify(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, bool]:
        if fault == "raises":
            raise RuntimeError("assertion failed\nin C++")
        changed = onnx.ModelProto.FromString(proto.SerializeToString())
        offset = next(tensor for tensor in changed.graph.initializer if list(tensor.dims) == [3])
        if fault == "wrong":
            offset.raw_data = np.ones(3, np.float32).tobytes()
        else:
            changed.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(99, np.float32), "unused"))
        return changed, True

    monkeypatch.setattr(onnxsim, "simplify", simplify)
    done = export_onnx(capture(Offset(0.25), torch.randn(2, 3)), tmp_path / "net.onnx")
    assert not done.simplified and "onnxsim" in done.note
    np.testing.assert_allclose(run(tmp_path / "net.onnx", np.zeros((1, 3), np.float32))[0], 0.25)


def test_same_program_gives_the_same_bytes(tmp_path: Path) -> None:
    program = capture(with_statistics(Residual()), torch.randn(2, 3, 8, 8))
    for name in ("a.onnx", "b.onnx"):
        export_onnx(program, tmp_path / name)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_file_carries_no_paths_of_its_author(tmp_path: Path) -> None:
    program = capture(mlp(), torch.randn(2, 1, 4, 4))
    for simplify in (True, False):
        export_onnx(program, tmp_path / "net.onnx", simplify=simplify)
        content = (tmp_path / "net.onnx").read_bytes()
        for leak in (__file__, str(Path(torch.__file__).parent), "site-packages", "stack_trace", "Sequential", ".py"):
            assert leak.encode() not in content


def test_export_is_silent_and_puts_everything_back(tmp_path: Path) -> None:
    """In a process of its own: nothing on stdout or stderr, and the caller's logging and warnings are as they were."""
    code = """
import logging, sys, warnings
import torch
from torch import nn
from edgeprune.export.onnx import export_onnx
from edgeprune.graph.capture import capture
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    program = capture(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), torch.randn(2, 4))
logging.basicConfig(level=logging.DEBUG)
before = (sys.stdout, list(warnings.filters), logging.getLogger("onnxscript").level)
export_onnx(program, sys.argv[1], opset=17)
assert before == (sys.stdout, list(warnings.filters), logging.getLogger("onnxscript").level)
"""
    path = tmp_path / "net.onnx"
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert path.stat().st_size > 0


def test_failed_export_puts_logging_back(tmp_path: Path) -> None:
    logger = logging.getLogger("onnxscript")
    logger.setLevel(logging.INFO)
    try:
        with warnings.catch_warnings(record=True), pytest.raises(InputError):
            export_onnx(capture(Eigenvalues(), torch.randn(2, 3, 3)), tmp_path / "net.onnx")
        assert logger.level == logging.INFO
    finally:
        logger.setLevel(logging.NOTSET)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (np.zeros((4, 1, 5, 4), np.float32), r"expected \(\*, 1, 4, 4\), got \(4, 1, 5, 4\)"),
        (np.zeros((0, 1, 4, 4), np.float32), r"got \(0, 1, 4, 4\)"),
        ((np.zeros((1, 1, 4, 4)),) * 2, r"expected 1 array \(input\), got 2"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(inputs: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        export_onnx(capture(mlp(), torch.randn(2, 1, 4, 4)), tmp_path / "net.onnx", inputs=inputs)
    assert os.listdir(tmp_path) == []


def test_fixed_batch_stays_fixed(tmp_path: Path) -> None:
    fixed = torch.export.export(mlp().eval(), (torch.randn(2, 1, 4, 4),))
    export_onnx(fixed, tmp_path / "net.onnx")
    (value,) = onnx.load(tmp_path / "net.onnx").graph.input
    assert [dim.dim_value for dim in value.type.tensor_type.shape.dim] == [2, 1, 4, 4]


def test_network_that_gives_nan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ParityError, match="gives NaN in PyTorch"):
        export_onnx(capture(Offset(float("nan")), torch.randn(2, 3)), tmp_path / "net.onnx")
    assert os.listdir(tmp_path) == []


def test_weights_beyond_one_file_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter, "MAX_BYTES", 500)
    with pytest.raises(InputError, match="one ONNX file holds at most"):
        export_onnx(capture(mlp(), torch.randn(2, 1, 4, 4)), tmp_path / "net.onnx")


def test_bfloat16_is_refused(tmp_path: Path) -> None:
    program = capture(mlp().bfloat16(), torch.randn(2, 1, 4, 4).bfloat16())
    with pytest.raises(InputError, match="weights are bfloat16"):
        export_onnx(program, tmp_path / "net.onnx")
    with pytest.raises(InputError, match="weights are bfloat16"):
        write_contracts(program, ModelInfo((1, 4, 4)), tmp_path)


class Doubled(nn.Module):
    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part, self.head = part.double(), nn.Linear(6, 2).double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.part(x)
        return self.head(y[0] if isinstance(y, tuple) else y)


@pytest.mark.parametrize(
    ("part", "name"),
    [
        (nn.Conv1d(4, 8, 3, padding=1), "Conv"),
        (nn.ConvTranspose1d(4, 8, 3, padding=1), "ConvTranspose"),
        (nn.PReLU(), "PRelu"),
        (nn.GRU(6, 6, batch_first=True), "GRU"),
    ],
)
def test_what_onnxruntime_lacks_in_float64_is_refused_with_a_way_out(
    tmp_path: Path, part: nn.Module, name: str
) -> None:
    net, x = Doubled(part), torch.randn(2, 4, 6)
    advice = f"the weights are float64, for which onnxruntime has no {name} on a CPU: convert with model.float\\(\\)"
    with pytest.raises(InputError, match=f"^{advice}$"):
        export_onnx(capture(net, x.double()), tmp_path / "net.onnx")
    assert os.listdir(tmp_path) == []
    export_onnx(capture(net.float(), x), tmp_path / "net.onnx")


def test_linear_layers_in_float64_are_written(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    assert export_onnx(capture(net, torch.randn(2, 6).double()), tmp_path / "net.onnx").parity < 1e-12


def test_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="file/net.onnx"):
        export_onnx(capture(Offset(0.0), torch.randn(2, 3)), tmp_path / "file" / "net.onnx")


def test_program_is_left_as_it_was(tmp_path: Path) -> None:
    program = capture(with_statistics(Residual()), torch.randn(2, 3, 8, 8))
    code, weights = program.graph_module.code, {name: tensor.clone() for name, tensor in program.state_dict.items()}
    export_onnx(program, tmp_path / "net.onnx")
    assert program.graph_module.code == code
    assert all(torch.equal(weights[name], tensor) for name, tensor in program.state_dict.items())


def test_input_specs() -> None:
    specs = input_specs(capture(Several(), (torch.randn(2, 5), torch.tensor([[0, 1], [2, 3]]))))
    assert [(spec.name, spec.shape, spec.dtype) for spec in specs] == [
        ("left", (None, 5), torch.float32),
        ("tokens", (None, 2), torch.int64),
    ]


@pytest.mark.parametrize(
    ("want", "got", "error"),
    [
        ([[1.0, 2.0]], [[1.0, 2.00005]], None),
        ([[1.0, 2.0]], [[1.0, 2.1]], "largest error"),
        ([[1.0, 2.0]], [[1.0, float("nan")]], "largest error"),
        ([[1.0, 20000.0]], [[0.5, 20000.5]], None),  # 5e-1 is 2.5e-5 of the largest logit
        ([[1.0, float("-inf")]], [[1.0, float("-inf")]], None),
        ([[1.0, 1.00015]], [[1.00009, 1.00006]], "1 answers of the task classification changed that were clear"),
        ([[1.0, 1.00001]], [[1.00001, 1.0]], None),  # too close to call
        ([[1.0, 2.0]], [[1.0]], "output shape"),
    ],
)
def test_parity_rule(want: list[list[float]], got: list[list[float]], error: str | None) -> None:
    if error is None:
        assert check_parity(np.array(want), np.array(got), "ONNX", task=CLASSIFICATION) >= 0
    else:
        with pytest.raises(ParityError, match=error):
            check_parity(np.array(want), np.array(got), "ONNX", task=CLASSIFICATION)


CLOSE = np.array([[1.0, 1.00015], [0.9, 0.2]])
OTHER = np.array([[1.00009, 1.00006], [0.9, 0.2]])
PIXELS, OTHERS = (np.stack([scores, np.zeros_like(scores)], axis=2)[..., None] for scores in (CLOSE, OTHER))
LOGITS = np.array([[1.5e-4, -0.5], [5e-5, -0.5]])  # the first label is clear of one sample alone


@pytest.mark.parametrize(
    ("task", "want", "got", "changed"),
    [
        (CLASSIFICATION, CLOSE, OTHER, 1),
        (None, CLOSE, OTHER, 0),
        (Regression(), CLOSE, OTHER, 0),
        (Match(), CLOSE, OTHER, 0),
        (Multilabel(), CLOSE, OTHER, 0),
        (Multilabel(), LOGITS, LOGITS - [[2e-4, 0.0], [2e-4, 0.0]], 1),
        (Segmentation(), CLOSE, OTHER, 0),
        (Segmentation(), PIXELS, OTHERS, 1),
        (Segmentation(), PIXELS[:, 1:] - 1, OTHERS[:, 1:] - 1, 0),  # one logit: both say class 1 or 0
        (Segmentation(), np.full((1, 1, 1, 2), 1.5e-4), np.full((1, 1, 1, 2), -5e-5), 2),
    ],
)
def test_what_decides_is_the_task_s_to_say(task: Task | None, want: np.ndarray, got: np.ndarray, changed: int) -> None:
    """Two columns of numbers are no classes: which of them is larger changes by rounding, and means nothing."""
    assert (0 if task is None else task.n_changed(want, got, 1e-4)) == changed
    if abs(want - got).max() <= 1e-4 * max(1.0, abs(want).max()):
        if changed:
            with pytest.raises(ParityError, match=f"{changed} answers of the task"):
                check_parity(want, got, "ONNX", task=task)
        else:
            assert check_parity(want, got, "ONNX", task=task) <= 1e-3


def test_a_user_s_task_and_several_outputs_are_held_to_the_error_alone() -> None:
    sample = Sample((), (CLOSE, CLOSE), task=CLASSIFICATION)
    assert error_on(sample, (OTHER, OTHER), "two") <= 1e-4
    with pytest.raises(ParityError, match="that were clear"):
        error_on(replace(sample, outputs=(CLOSE,)), (OTHER,), "one")


# -- whole numbers, half precision, choices ---------------------------------------------------------------------------


class Scores(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 32), nn.Linear(32, 20)

    def forward(self, x: torch.Tensor) -> Any:
        values, places = self.b(self.a(x).relu()).relu().topk(12, 1)
        return {"values": values, "places": places}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_places_of_equal_scores_may_be_others(dtype: torch.dtype, tmp_path: Path) -> None:
    program = capture(Scores().to(dtype), torch.randn(2, 6).to(dtype))
    assert export_onnx(program, tmp_path / "scores.onnx").parity <= 1e-2


def test_half_precision_is_allowed_its_own_rounding(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers = [part for _ in range(4) for part in (nn.Linear(256, 256), nn.LayerNorm(256), nn.GELU())]
    program = capture(nn.Sequential(*layers, nn.Linear(256, 8)).half(), torch.randn(2, 256).half())
    done = export_onnx(program, tmp_path / "half.onnx")
    assert 1e-5 < done.parity <= 1e-2


def test_whole_numbers_must_be_the_same() -> None:
    want = np.array([30_000, 4])
    with pytest.raises(ParityError, match="same whole numbers, got others in 1 of 2 places"):
        check_parity(want, want + np.array([1, 0]), "this")


def test_an_error_beyond_half_precision_is_found() -> None:
    want = np.linspace(-1, 1, 10, dtype=np.float16).reshape(2, 5)
    assert check_parity(want, want + np.float16(4e-3), "this") <= 5e-3
    with pytest.raises(ParityError, match="largest error expected at most"):
        check_parity(want, want + np.float16(5e-2), "this")


def test_rounding_that_float64_shows_is_no_error(tmp_path: Path) -> None:
    class Cancelling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 64), nn.Linear(64, 8)

        def forward(self, x: torch.Tensor) -> Any:
            h = self.a(x).relu() * 1e5
            return self.b(h) - self.b(h + 1e-3)

    torch.manual_seed(0)
    program = capture(Cancelling(), torch.randn(2, 6))
    assert export_onnx(program, tmp_path / "net.onnx").parity > 1e-4
    sample = samples_of(program)[0]
    with pytest.raises(ParityError, match="largest error expected at most"):
        error_on(sample, [sample.outputs[0] + 1.0], "this")


def test_drawn_tokens_and_masks_are_ones_that_the_network_takes(tmp_path: Path) -> None:
    """A causal text tower: a row that is masked from its start on has no place to look at."""

    class Tower(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.e, self.q, self.k = nn.Embedding(50, 8), nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> Any:
            h, low = self.e(ids), torch.finfo(torch.float32).min
            causal = torch.full((6, 6), low).triu(1) + torch.where(mask[:, None, :].bool(), 0.0, low)
            return ((self.q(h) @ self.k(h).transpose(1, 2) + causal).softmax(-1) @ h).mean(1)

    program = capture(Tower(), (torch.ones(2, 6).long(), torch.ones(2, 6).long()))
    assert export_onnx(program, tmp_path / "tower.onnx").parity <= 1e-5
    samples = samples_of_file(tmp_path / "tower.onnx")
    assert max(int(sample.inputs[0].max()) for sample in samples) > 1
    assert all((sample.inputs[1].sum(1) > 0).all() for sample in samples)
