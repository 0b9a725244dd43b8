"""ExecuTorch: real .pte files in its own runtime, checked against PyTorch."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from target_nets import of_sensors, raw_sensors, saved_sensors
from torch import Tensor, nn

import edgeprune.export.executorch as exporter
from edgeprune.commands.export import export
from edgeprune.errors import InputError, ParityError
from edgeprune.export.attention_steps import write_out_attention
from edgeprune.export.executorch import ExecutorchFile, write_executorch
from edgeprune.export.executorch_runtime import check_installed, executorch_runner
from edgeprune.formats.load import load
from edgeprune.graph.capture import Program, capture
from edgeprune.graph.groups import analyze
from edgeprune.pruning.planner import plan
from edgeprune.pruning.surgery import cut
from edgeprune.requests import ExportRequest

MODELS = Path(__file__).parents[1] / "models"


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "executorch", None)  # what Python takes for a package that is not there
    with pytest.raises(InputError, match=r"^ExecuTorch is not installed: pip install 'edgeprune\[executorch\]'$"):
        check_installed()
    with pytest.raises(InputError, match="ExecuTorch is not installed"):
        write_executorch(capture(nn.ReLU(), torch.randn(2, 3)), tmp_path / "x.pte")
    with pytest.raises(InputError, match="ExecuTorch is not installed"):
        executorch_runner(tmp_path / "x.pte", torch.randn(1, 3))


# --- attention written out


class Attention(nn.Module):
    """Attention of an input `(batch, ..., positions, 8)` to itself, with a trained mask if there is one."""

    def __init__(self, mask: tuple[int, ...] | None = None, **options: object) -> None:
        super().__init__()
        self.mask, self.options = None if mask is None else nn.Parameter(torch.randn(mask)), options

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.scaled_dot_product_attention(x, 2 * x, x + 1, attn_mask=self.mask, **self.options)
        return y.transpose(1, 2).flatten(2)


@pytest.mark.parametrize("mask", [None, (6, 6), (1, 3, 6, 6)], ids=["no mask", "mask", "mask of each head"])
@pytest.mark.parametrize("scale", [None, 0.7])
def test_attention_is_what_it_was(mask: tuple[int, ...] | None, scale: float | None) -> None:
    x = torch.randn(2, 3, 6, 8)
    program = torch.export.export(Attention(mask, scale=scale), (x,))
    want = program.module()(x)
    write_out_attention(program)
    assert not any("attention" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(x), want)


def test_causal_attention_is_left_as_it_is() -> None:
    program = torch.export.export(Attention(is_causal=True), (torch.randn(2, 3, 6, 8),))
    write_out_attention(program)
    assert any("attention" in str(node.target) for node in program.graph.nodes)


# --- with the package


@pytest.fixture
def executorch() -> None:
    pytest.importorskip("executorch", reason="edgeprune[executorch] is not installed")


@pytest.fixture(scope="module")
def slim_mlp(tmp_path_factory: pytest.TempPathFactory) -> tuple[Program, Path, ExecutorchFile, np.ndarray]:
    """A pruned digits network, its .pte at batch 2, and the images it was checked on."""
    pytest.importorskip("executorch", reason="edgeprune[executorch] is not installed")
    program = load(MODELS / "digits_mlp.pt").program
    slim = cut(program, plan(program, analyze(program), keep_macs=0.3))
    images = np.random.default_rng(0).standard_normal((7, 1, 8, 8), dtype=np.float32)
    path = tmp_path_factory.mktemp("pte") / "slim.pte"
    return slim, path, write_executorch(slim, path, images, batch=2), images


def in_runtime(path: Path, *inputs: Tensor) -> list[Tensor]:
    """The outputs of a file, by ExecuTorch's own Python interface alone."""
    from executorch.runtime import Runtime

    return Runtime.get().load_program(path).load_method("forward").execute(list(inputs))


@pytest.mark.slow
def test_a_slim_network_gives_what_pytorch_gives(slim_mlp: tuple[Program, Path, ExecutorchFile, np.ndarray]) -> None:
    slim, path, done, images = slim_mlp
    rows = torch.from_numpy(images[:2])
    with torch.no_grad():
        want = slim.module()(rows)
    torch.testing.assert_close(in_runtime(path, rows)[0], want, atol=1e-4, rtol=1e-4)
    assert done.path == str(path) and done.size_bytes == path.stat().st_size and 0 <= done.parity <= 1e-4
    assert done.batch == 2 and done.share == 1.0 and not done.portable
    assert dict(done.delegated)["linear"] == 3 and done.n_partitions == 1
    n_operators = sum(count for _, count in done.delegated)
    assert done.words == f"XNNPACK runs all {n_operators} operators in 1 partition; batch fixed at 2"
    assert os.listdir(path.parent) == ["slim.pte"]
    assert str(MODELS.parent).encode() not in path.read_bytes() and b"site-packages" not in path.read_bytes()


@pytest.mark.slow
@pytest.mark.usefixtures("executorch")
def test_it_takes_what_preprocess_makes_of_raw_sensors(tmp_path: Path) -> None:
    net, raw = saved_sensors(tmp_path), raw_sensors(4)
    out = tmp_path / "out"
    export(ExportRequest(model=str(net), out=str(out), targets=("executorch",), batch=4))
    [made] = onnxruntime.InferenceSession(out / "preprocess.onnx").run(None, {"input": raw})
    [got] = in_runtime(out / "net.pte", torch.from_numpy(made))
    np.testing.assert_allclose(got.numpy(), of_sensors(net, raw), atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_timing_a_file(slim_mlp: tuple[Program, Path, ExecutorchFile, np.ndarray], tmp_path: Path) -> None:
    _, path, _, images = slim_mlp
    one = executorch_runner(path, images[:2])
    assert isinstance(one, Callable) and one() is None  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"slim\.pte: ExecuTorch cannot run it: .*Expected shape \(2, 1, 8, 8\)"):
        executorch_runner(path, images[:3])
    with pytest.raises(InputError, match="threads: expected at least 1, got 0"):
        executorch_runner(path, images[:2], threads=0)
    for content in (b"", b"no program" * 99, path.read_bytes()[:999]):
        (tmp_path / "x.pte").write_bytes(content)
        with pytest.raises(InputError, match=r"x\.pte: (expected a \.pte file|ExecuTorch cannot load it)"):
            executorch_runner(tmp_path / "x.pte", images[:2])


@pytest.mark.sweep
def test_nothing_reaches_the_terminal(tmp_path: Path) -> None:
    pytest.importorskip("executorch", reason="edgeprune[executorch] is not installed")
    code = (
        "import torch; from pathlib import Path; from edgeprune.graph.capture import capture\n"
        "from edgeprune.export.executorch import write_executorch\n"
        f"print(write_executorch(capture(torch.nn.ReLU(), torch.randn(2, 3)), Path({str(tmp_path / 'x.pte')!r})).words)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stderr == "" and run.stdout == "XNNPACK runs 1 of 1 operator in 1 partition; batch fixed at 1\n"


class Mixed(nn.Module):
    """Tokens, biased attention, a layer norm and two outputs: some of it no kernel of XNNPACK."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm, self.project = nn.Embedding(5, 8), nn.LayerNorm(8), nn.Linear(8, 3)
        self.attention = Attention((4, 4))

    def forward(self, x: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        h = self.norm(x + self.table(tokens)).unsqueeze(1)
        h = self.attention(h)
        return {"scores": self.project(h.mean(1)), "mean": x.mean()}


@pytest.mark.slow
@pytest.mark.usefixtures("executorch")
def test_what_stays_portable_is_named(tmp_path: Path) -> None:
    program = capture(Mixed(), (torch.randn(2, 4, 8), torch.randint(0, 5, (2, 4))))
    done = write_executorch(program, tmp_path / "mixed.pte")
    portable = dict(done.portable)
    assert portable["embedding"] == 1 and portable["native_layer_norm"] == 1 and dict(done.delegated)["bmm"] == 2
    assert 0 < done.share < 1 and done.parity <= 1e-5
    assert f"XNNPACK runs {sum(dict(done.delegated).values())} of " in done.words
    assert "embedding (1)" in done.words and "stay portable, which is slower" in done.words


class Conv3d(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).flatten(1)


class Sort(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sort(x, dim=1).values


class Bessel(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x)


@pytest.mark.slow
@pytest.mark.usefixtures("executorch")
@pytest.mark.parametrize(
    ("net", "shape", "said"),
    [
        (Bessel(), (4,), r"ExecuTorch cannot express aten\.special_bessel_j0\.default; replace it in the model"),
        pytest.param(
            *(Sort(), (4,), r"ExecuTorch cannot express aten\.sort\.values; replace it"), marks=pytest.mark.sweep
        ),
        (Conv3d(), (1, 4, 4, 4), r"x\.pte: ExecuTorch cannot run it: aten\.convolution\.out: .*3-D or 4-D"),
    ],
    ids=["no core operator", "no kernel", "no kernel for such inputs"],
)
def test_an_operator_that_cannot_be_expressed_is_named(
    net: nn.Module, shape: tuple[int, ...], said: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=said):
        write_executorch(capture(net, torch.randn(2, *shape)), tmp_path / "x.pte")
    assert os.listdir(tmp_path) == []


@pytest.mark.sweep
@pytest.mark.usefixtures("executorch")
def test_prelu_off_images_does_not_stop_the_partitioner(tmp_path: Path) -> None:
    program = capture(nn.Sequential(nn.Linear(4, 3), nn.PReLU()), torch.randn(2, 4))
    done = write_executorch(program, tmp_path / "x.pte", torch.randn(5, 4))
    assert done.parity <= 1e-6 and ("linear", 1) in done.delegated and ("where", 1) in done.portable


@pytest.mark.slow
@pytest.mark.usefixtures("executorch")
def test_a_file_that_is_off_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "x.pte"
    out.write_bytes(b"an earlier file")
    program, other = (capture(nn.Linear(4, 3), torch.randn(2, 4)) for _ in range(2))
    fixed = exporter._with_fixed_sizes
    monkeypatch.setattr(exporter, "_with_fixed_sizes", lambda _, batch: fixed(other, batch))
    with pytest.raises(ParityError, match=r"x\.pte in ExecuTorch: largest error expected at most"):
        write_executorch(program, out, torch.randn(5, 4))
    assert out.read_bytes() == b"an earlier file" and os.listdir(tmp_path) == ["x.pte"]


@pytest.mark.slow
@pytest.mark.usefixtures("executorch")
def test_requests_that_make_no_sense_are_refused_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = capture(nn.Linear(4, 3), torch.randn(2, 4))
    for out, inputs, batch, said in (
        ("x.bin", None, 1, r"expected a name that ends in \.pte"),
        ("x.pte", None, 0, "batch: expected at least 1, got 0"),
        ("x.pte", np.zeros((2, 5), np.float32), 1, r"expected \(\*, 4\), got \(2, 5\)"),
        ("x.pte", [np.zeros((2, 4), np.float32)] * 2, 1, r"expected 1 array \(input\), got 2"),
    ):
        with pytest.raises(InputError, match=said):
            write_executorch(program, tmp_path / out, inputs, batch=batch)
    with pytest.raises(InputError, match="the weights are bfloat16"):
        write_executorch(capture(nn.Linear(4, 3).bfloat16(), torch.randn(2, 4).bfloat16()), tmp_path / "x.pte")
    monkeypatch.setattr(exporter, "MAX_BYTES", 10)
    with pytest.raises(InputError, match=r"the weights take 0\.00 GB: one \.pte file holds at most"):
        write_executorch(program, tmp_path / "x.pte")
    assert os.listdir(tmp_path) == []


@pytest.mark.sweep
@pytest.mark.usefixtures("executorch")
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_torchvision(name: str, tmp_path: Path) -> None:
    import edgeprune.compat  # noqa: F401 - makes torchvision importable

    torchvision = pytest.importorskip("torchvision")
    program = capture(getattr(torchvision.models, name)(num_classes=10), torch.randn(2, 3, 64, 64))
    slim = cut(program, plan(program, analyze(program), keep_macs=0.5))
    done = write_executorch(slim, tmp_path / "x.pte")
    assert done.share == 1.0 and done.n_partitions == 1 and done.parity <= 1e-4
