"""C for microcontrollers: compiled strictly it gives what onnxruntime gives, in the arena that it states."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from target_nets import slim_program
from test_cheader import Gathering
from torch import Tensor, nn

from edgeprune.cost.activations import peak_activations
from edgeprune.data import first_inputs, open_data
from edgeprune.errors import InputError
from edgeprune.export.c.build import program_of
from edgeprune.export.c.expressions import BINARY, UNARY
from edgeprune.export.c.names import identifier
from edgeprune.export.c.runtime import Library, compiled
from edgeprune.export.c.text import Program as CProgram
from edgeprune.export.c.text import header_text, source_text
from edgeprune.export.contracts import write_contracts
from edgeprune.export.onnx import draft_onnx
from edgeprune.formats.load import load
from edgeprune.graph.capture import Program, capture
from edgeprune.records import ModelInfo, Normalization

MODELS = Path(__file__).parents[1] / "models"
STRICT = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic")
COMPILERS = [name for name in ("gcc", "clang") if shutil.which(name)] or [
    name for name in ("cc",) if shutil.which(name)
]
pytestmark = pytest.mark.skipif(not COMPILERS, reason="no C compiler")
# Fills every input with what stdin has, runs, and writes every output to stdout.
FIRMWARE = """
#include <stdio.h>
#include "{p}.h"
#include "{p}.h"
int main(void)
{{
    for (;;) {{
        if (fread({p}_input0(), sizeof({P}_INPUT0_TYPE), {P}_INPUT0_SIZE, stdin) != {P}_INPUT0_SIZE)
            return 0;
        {p}_run();
        fwrite({p}_output0(), sizeof({P}_OUTPUT0_TYPE), {P}_OUTPUT0_SIZE, stdout);
    }}
}}
"""


def written(network: Path, prefix: str = "net", front: Path | None = None) -> tuple[CProgram, Path]:
    program = program_of(network, prefix, front)
    source = network.parent / f"{prefix}.c"
    source.write_text(source_text(program), encoding="ascii")
    source.with_suffix(".h").write_text(header_text(program), encoding="ascii")
    return program, source


def made(net: nn.Module | Program, example: Any, folder: Path) -> tuple[CProgram, Path]:
    program = net if isinstance(net, Program) else capture(net.eval(), example)
    draft_onnx(program, folder / "net.onnx")
    return written(folder / "net.onnx")


def differs(network: Path, source: Path, n_samples: int = 3) -> float:
    """The largest error against onnxruntime, over the size of the output."""
    session, library = onnxruntime.InferenceSession(network), Library.of(source)
    chance, worst = np.random.default_rng(0), 0.0
    names = [value.name for value in session.get_inputs()]
    for _ in range(n_samples):
        given = [chance.standard_normal(place.shape, np.float32) for place in library.inputs]
        library.fill(given)
        for want, got in zip(session.run(None, dict(zip(names, given, strict=True))), library.run(), strict=True):
            assert want.shape == got.shape
            worst = max(worst, float(np.abs(want - got).max() / max(1e-3, float(np.abs(want).max()))))
    return worst


def peak(program: CProgram) -> int:
    return program.network.arena.peak_bytes


# --- networks


class Cells(nn.Module):
    """Depthwise and grouped convolutions, a residual, a concatenation and all kinds of pools."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8)
        self.deep, self.point = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8), nn.Conv2d(8, 8, 1)
        self.grouped, self.head = nn.Conv2d(16, 12, (3, 1), groups=4), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.norm(self.stem(x)))
        y = F.hardswish(self.point(self.deep(x))) + x
        z = self.grouped(torch.cat([F.max_pool2d(y, 2, ceil_mode=True), F.avg_pool2d(x, 2, ceil_mode=True)], 1))
        return self.head(F.silu(z).mean((2, 3)))


def sensors() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(6, 10, 5, stride=2, padding=2), nn.BatchNorm1d(10), nn.LeakyReLU(0.1),
        nn.Conv1d(10, 10, 3, padding="same", dilation=2, groups=10), nn.GELU(), nn.AvgPool1d(3, 2, 1), nn.Flatten(),
        nn.Linear(70, 4), nn.Softmax(1),
    )  # fmt: skip


def shallow() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3))


class Two(nn.Module):
    """Two inputs and two outputs, one of which is shown as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.table, self.head = nn.Conv2d(1, 4, 3), nn.Linear(6, 4), nn.Linear(8, 3)

    def forward(self, image: Tensor, table: Tensor) -> dict[str, Tensor]:
        y = torch.cat([self.image(image).sigmoid().amax((2, 3)), self.table(table).relu()], 1)
        return {"scores": self.head(y), "table": table}


NETS: dict[str, tuple[Any, Any]] = {
    "mlp": (shallow, torch.randn(2, 1, 4, 6)),
    "cells": (Cells, torch.randn(2, 3, 17, 14)),
    "sensors": (sensors, torch.randn(2, 6, 28)),
    "two": (Two, (torch.randn(2, 1, 5, 5), torch.randn(2, 6))),
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", NETS)
def test_a_slim_network_gives_what_onnxruntime_gives(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, example = NETS[name]
    slim = slim_program(net(), *example if isinstance(example, tuple) else (example,))
    program, source = made(slim, example, tmp_path)
    for compiler, level in itertools.product(COMPILERS, ("-O0", "-O2")):
        flags = [*STRICT, level, "-c", "-o", str(tmp_path / "net.o"), str(source)]
        told = subprocess.run([compiler, *flags], capture_output=True, text=True)
        assert not told.returncode and not told.stderr, told.stderr
    assert differs(tmp_path / "net.onnx", source) < 1e-5
    arena = program.arena_bytes
    assert arena == peak(program) and arena <= peak_activations(slim).n_bytes
    assert f"_ARENA_BYTES {arena} " in header_text(program) and f"float arena[{arena // 4}];" in source_text(program)
    given = {view.value for view in program.network.made.inputs}
    made_values = {step.writes for step in program.network.arena.steps}
    assert arena <= sum(program.network.made.sizes[value] for value in given | made_values)


def pointwise(path: Path) -> None:
    """Every function of one number and of two, of a value and of constants on either side, in one graph."""
    held = {"row": np.linspace(0.5, 2, 12), "two": np.array(2.0), "none": np.array(0.0)}
    make = helper.make_node
    nodes = [make("Abs", ["x"], ["size"]), make("Add", ["size", "two"], ["above"]), make("Sigmoid", ["x"], ["gate"])]
    nodes += [make(kind, ["above" if kind in ("Log", "Sqrt") else "x"], [kind]) for kind in UNARY if kind != "Swish"]
    pairs = {"row": ("above", "row"), "right": ("above", "two"), "left": ("two", "above"), "both": ("above", "size")}
    for kind in BINARY:
        nodes += [make(kind, pair, [f"{kind}_{name}"]) for name, pair in pairs.items() if kind != "PRelu"]
    nodes += [make("PRelu", ["x", name], [f"PRelu_{name}"]) for name in ("row", "two")]
    nodes += [make("Greater", ["x", "none"], ["is_above"]), make("LessOrEqual", ["x", "none"], ["is_below"])]
    nodes += [make("Where", ["is_above", "x", "two"], ["up"]), make("Where", ["is_below", "none", "x"], ["down"])]
    nodes += [make("Clip", ["x", "", "none"], ["cut"]), make("Mul", ["gate", "x"], ["gated"])]
    nodes += [make("Gelu", ["x"], ["near"], approximate="tanh"), make("Softmax", ["x"], ["share"], axis=0)]
    inner = {"size", "above", "gate", "is_above", "is_below"}
    outputs = [name for node in nodes for name in node.output if name not in inner]
    x, *results = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [3, 12]) for name in ("x", *outputs))
    stored = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in held.items()]
    graph = helper.make_graph(nodes, "pointwise", [x], results, stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10), path)


class Moved(nn.Module):
    """Numbers that only move: parts of a tensor, other orders, padding, and parts that lie side by side."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        a, b, c = (2 * x).split([1, 3, 2], 1)
        gathered = torch.index_select(x, 2, torch.tensor([4, 0, 0, 3])), torch.index_select(x, 1, torch.tensor([1, 2]))
        moved = x.permute(0, 2, 3, 1), x.flip(1), x[:, 1::2, :-1], F.channel_shuffle(x, 3), *gathered
        odd = F.pad(x, (1, 2, 2, 0), "reflect"), F.interpolate(x, scale_factor=2), F.pixel_shuffle(x[:, 2:], 2)
        still = x.sum(1), x.amax(3), x.mean((1, 3)), x[:, 2], x[:, [3, 0, 1]]
        return torch.cat([c, a, b], 1), F.pad(x, (1, 0, 0, 2), value=0.5), *still, *moved, *odd


class Pools(nn.Module):
    """What lies in the padding counts, or does not."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        average = [(3, 2, 1, False, True), (3, 2, 1, False, False), (3, 2, 1, True, True), (2, 2, 0, True, False)]
        pools = [F.avg_pool2d(x, *told) for told in average]
        pools += [F.max_pool2d(x, 3, 2, 1), F.max_pool2d(x, 2, 1, dilation=2), F.max_pool2d(x, (3, 2), (1, 2), (1, 0))]
        return *pools, F.adaptive_avg_pool2d(x, 1), F.adaptive_avg_pool2d(x, (3, 4)), F.adaptive_max_pool2d(x, 1)


def test_every_function_gives_what_onnxruntime_gives(tmp_path: Path) -> None:
    pointwise(tmp_path / "net.onnx")
    program, source = written(tmp_path / "net.onnx")
    compiled(source, tmp_path / "strict.so", (*STRICT, "-O2", "-fPIC", "-shared"))
    assert differs(tmp_path / "net.onnx", source) < 1e-5
    assert program.arena_bytes == peak(program)


@pytest.mark.parametrize(("net", "shape"), [(Moved, (6, 5, 4)), (Pools, (2, 9, 7))], ids=["moved", "pools"])
def test_every_move_and_pool_gives_what_onnxruntime_gives(net: Any, shape: tuple[int, ...], tmp_path: Path) -> None:
    program, source = made(net(), torch.randn(2, *shape), tmp_path)
    compiled(source, tmp_path / "strict.so", (*STRICT, "-O2", "-fPIC", "-shared"))
    assert differs(tmp_path / "net.onnx", source) < 1e-5
    assert program.arena_bytes <= sum(program.network.made.sizes)


@pytest.mark.parametrize("model", ["digits_mlp.pt", "digits_cnn.pt"])
def test_all_digits_are_told_apart_as_onnxruntime_does(model: str, tmp_path: Path) -> None:
    found = load(MODELS / model)
    write_contracts(found.program, found.info, tmp_path)
    _, source = written(tmp_path / "slim.onnx", "slim", tmp_path / "preprocess.onnx")
    library = Library.of(source)
    front, session = (onnxruntime.InferenceSession(tmp_path / f"{name}.onnx") for name in ("preprocess", "slim"))
    raw = first_inputs(open_data("digits").test, None)
    assert isinstance(raw, np.ndarray) and len(raw) == 359
    [wants] = session.run(None, {"input": front.run(None, {"input": raw})[0]})
    gots = []
    for one in raw:
        library.load([one])
        gots.append(library.run()[0][0])
    np.testing.assert_array_equal(np.argmax(gots, 1), wants.argmax(1))
    assert np.abs(np.array(gots) - wants).max() < 1e-4 * np.abs(wants).max()


def sanitized(source: Path, given: np.ndarray) -> np.ndarray:
    """What a program of its own gives, under the sanitizers for addresses and undefined behaviour."""
    folder, p = source.parent, source.stem
    (folder / "main.c").write_text(FIRMWARE.format(p=p, P=p.upper()))
    checks = ("-fsanitize=undefined,address", "-fno-sanitize-recover=all", "-g", "-O1")
    command = [COMPILERS[0], *STRICT, *checks, f"-I{folder}", "-o", folder / "main", folder / "main.c", source, "-lm"]
    subprocess.run(command, check=True)
    env = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    told = subprocess.run([folder / "main"], input=given.tobytes(), capture_output=True, env=env)
    assert not told.returncode, told.stderr.decode()
    return np.frombuffer(told.stdout, np.float32)


def test_nothing_is_undefined(tmp_path: Path) -> None:
    torch.manual_seed(0)
    _, source = made(Cells(), torch.randn(2, 3, 17, 14), tmp_path)
    given = np.random.default_rng(0).standard_normal((3, 3, 17, 14), np.float32)
    [want] = onnxruntime.InferenceSession(tmp_path / "net.onnx").run(None, {"input": given})
    np.testing.assert_allclose(sanitized(source, given).reshape(3, 5), want, rtol=1e-4, atol=1e-6)


# --- both contracts


@pytest.mark.sampled(2)
@pytest.mark.parametrize("preprocess", ["apart", "fold"])
@pytest.mark.parametrize("byte_scale", [None, 1 / 255])
def test_raw_inputs_are_gathered_and_scaled(preprocess: Any, byte_scale: float | None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tail = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5))
    program = capture(Gathering((0, 2), tail, flat=False), torch.randn(2, 3, 6, 6))
    info = ModelInfo((3, 6, 6), normalization=Normalization((0.5, 0.4, 0.3), (0.25, 0.2, 0.3)))
    write_contracts(program, info, tmp_path, preprocess=preprocess, byte_scale=byte_scale)
    made_of, source = written(tmp_path / "slim.onnx", "slim", tmp_path / "preprocess.onnx")
    compiled(source, tmp_path / "strict.so", (*STRICT, "-O2", "-fPIC", "-shared"))
    is_bytes = byte_scale is not None and preprocess == "fold"
    raw = np.random.default_rng(0).integers(0, 256, (1, 3, 6, 6)).astype(np.uint8)
    taken = raw if is_bytes else (raw / 255).astype(np.float32)
    library = Library.of(source)
    library.load([taken])
    [got] = library.run()
    full, chain = (onnxruntime.InferenceSession(tmp_path / f"{name}.onnx") for name in ("full", "preprocess"))
    normalised = (raw / 255 - np.reshape([0.5, 0.4, 0.3], (3, 1, 1))) / np.reshape([0.25, 0.2, 0.3], (3, 1, 1))
    [want] = full.run(None, {"input": taken if preprocess == "fold" else normalised.astype(np.float32)})
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    library.fill(chain.run(None, {chain.get_inputs()[0].name: taken}))  # the slim contract
    np.testing.assert_allclose(library.run()[0], want, rtol=1e-4, atol=1e-5)
    assert made_of.front is not None and made_of.arena_bytes == peak(made_of)


# --- names, refusals


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("slim", "slim"), ("2-fast", "net_2_fast"), ("a.b c", "a_b_c"), ("größe", "gruf6udfe"), ("math", "net_math"),
        ("Features", "net_Features"), ("strings", "net_strings"),
        ('x"; int y; /*', "x_int_y"), ("__", "net"), ("温", "u6e29"), ("\udcff", "udcff"),
    ],
)  # fmt: skip
def test_names_become_identifiers(name: str, plain: str) -> None:
    assert identifier(name) == plain


def test_hostile_names_stay_in_literals(tmp_path: Path) -> None:
    name = '*/ "\\ ??/\n größe'
    made(shallow(), torch.randn(2, 1, 4, 6), tmp_path)
    proto = onnx.load(tmp_path / "net.onnx")
    for values in (proto.graph.input, proto.graph.output):
        old, values[0].name = values[0].name, f"{name}{values[0].name}"
        for node in proto.graph.node:
            for names in (node.input, node.output):
                names[:] = [values[0].name if one == old else one for one in names]
    for node in proto.graph.node:
        node.name = f"{name}{node.name}"
    onnx.save(proto, tmp_path / "net.onnx")
    _, source = written(tmp_path / "net.onnx", identifier(name))
    (tmp_path / "main.c").write_text(
        f'#include <stdio.h>\n#include "{source.stem}.h"\n'
        f"int main(void) {{ return fputs({source.stem.upper()}_INPUT0_NAME, stdout) < 0; }}\n"
    )
    command = [COMPILERS[0], *STRICT, "-o", tmp_path / "main", tmp_path / "main.c", source, "-lm"]
    subprocess.run(command, check=True)
    told = subprocess.run([tmp_path / "main"], capture_output=True, check=True).stdout
    assert told.decode().startswith(name)
    assert differs(tmp_path / "net.onnx", source) < 1e-5


class Summed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.cumsum(1)


class Signs(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x > 0


@pytest.mark.parametrize(
    ("net", "shape", "message"),
    [
        (Summed, (5, 6), r"^C has no CumSum \(\w+\)$"),
        (lambda: nn.Conv3d(1, 2, 2), (1, 3, 3, 3), r"^C has no Conv \(\w+\) over 3 dims$"),
        (lambda: nn.Upsample(scale_factor=2, mode="bicubic"), (1, 3, 3), r"^C has no Resize \(\w+\) of mode cubic$"),
        (Signs, (1, 3, 3), r"^C has no Greater \(\w+\) that gives bool$"),
    ],
    ids=["sums", "volume", "bicubic", "bool"],
)
def test_what_there_is_no_c_for_is_named(net: Any, shape: tuple[int, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        made(net(), torch.randn(2, *shape), tmp_path)


class Causal(nn.Module):
    """Each step attends to those before it alone: by what is added, or put in the place, of scores."""

    def __init__(self, is_added: bool) -> None:
        super().__init__()
        self.queries, self.keys, self.values, self.last = (nn.Linear(6, 6) for _ in range(4))
        later = torch.ones(5, 5, dtype=torch.bool).triu(1)
        self.register_buffer("later", torch.zeros(5, 5).masked_fill(later, -torch.inf) if is_added else later)
        self.is_added = is_added

    def forward(self, x: Tensor) -> Tensor:
        scores = self.queries(x) @ self.keys(x).transpose(1, 2)
        scores = scores + self.later if self.is_added else scores.masked_fill(self.later, -torch.inf)
        return self.last(scores.softmax(2) @ self.values(x))


@pytest.mark.parametrize("is_added", [True, False], ids=["added", "put"])
def test_scores_that_are_masked_by_infinity(is_added: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    _, source = made(Causal(is_added), torch.randn(2, 5, 6), tmp_path)
    assert "-INFINITY" in source.read_text() and differs(tmp_path / "net.onnx", source) < 1e-5
    command = [COMPILERS[0], *STRICT, "-c", "-o", str(tmp_path / "net.o"), str(source)]
    told = subprocess.run(command, capture_output=True, text=True)
    assert not told.returncode and not told.stderr, told.stderr


class Doubled(nn.Module):
    def forward(self, ids: Tensor) -> Tensor:
        return ids * 2


class Masked(nn.Module):
    def forward(self, ids: Tensor) -> Tensor:
        return torch.where(ids >= ids, 1.0, 0.5)


def test_arithmetic_of_ids_and_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^C has no Mul \(\w+\) of int64$"):
        made(Doubled(), torch.randint(0, 11, (2, 5)), tmp_path)
    with pytest.raises(InputError, match=r"^C: expected functions of float32, got one of int64 input$"):
        made(Masked(), torch.randint(0, 11, (2, 5)), tmp_path)
    net = shallow()
    with torch.no_grad():
        net[1].weight[0, 0] = torch.nan
    with pytest.raises(InputError, match=r"^C: expected weights that are numbers, got NaN$"):
        made(net, torch.randn(2, 1, 4, 6), tmp_path)
