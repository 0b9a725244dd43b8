"""int8 of networks that mask values out: what is added to them, or put in their place, leaves no range for 8 bits."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from edgeprune.errors import NotFiniteError, ParityError
from edgeprune.export.floatfile import agreement, open_float
from edgeprune.export.judging import MIN_SNR_DB
from edgeprune.export.onnx import export_onnx
from edgeprune.export.quantize import check_quantizable, work_of, write_int8
from edgeprune.graph.capture import capture

N, LENGTH, WIDTH = 64, 10, 16


class Attending(nn.Module):
    """One attention over tokens, 0 for padding, whose scores a function masks; the mean of it is classified."""

    def __init__(self, mask: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.embed, self.mask = nn.Embedding(20, WIDTH, padding_idx=0), mask
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        scores = self.query(x) @ self.key(x).transpose(1, 2)
        weights = self.mask(scores, (ids == 0).unsqueeze(1)).softmax(-1)
        return self.head((weights @ self.value(x)).mean(1))


class Encoder(nn.Module):
    """PyTorch's own encoder with its mask of padding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, WIDTH, padding_idx=0)
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 32, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), nn.Linear(WIDTH, 5)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(ids), src_key_padding_mask=ids == 0).mean(1))


class Largest(nn.Module):
    """The largest of each feature over what is no padding."""

    def __init__(self, masked: float) -> None:
        super().__init__()
        self.embed, self.masked = nn.Embedding(20, WIDTH, padding_idx=0), masked
        self.mix, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 5)

    def forward(self, ids: Tensor) -> Tensor:
        behind = (ids == 0).unsqueeze(-1).float() * self.masked
        return self.head((self.mix(self.embed(ids)) + behind).amax(1))


def causal(scores: Tensor, _: Tensor) -> Tensor:
    return scores + torch.full((LENGTH, LENGTH), -math.inf).triu(1)


def added(least: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda scores, padding: scores + torch.zeros_like(scores).masked_fill(padding, least)


def times(least: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda scores, padding: scores + padding.float() * least


def filled(least: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda scores, padding: scores.masked_fill(padding, least)


LEAST = torch.finfo(torch.float32).min
NETS: dict[str, Callable[[], nn.Module]] = {
    "encoder": Encoder,
    "causal": lambda: Attending(causal),
    "added infinity": lambda: Attending(added(-math.inf)),
    "added least": lambda: Attending(added(LEAST)),
    "times least": lambda: Attending(times(LEAST)),
    "times 1e9": lambda: Attending(times(-1e9)),
    "times 1e4": lambda: Attending(times(-1e4)),
    "filled infinity": lambda: Attending(filled(-math.inf)),
    "filled 1e9": lambda: Attending(filled(-1e9)),
    "largest 1e9": lambda: Largest(-1e9),
    "largest 1e4": lambda: Largest(-1e4),
}


def tokens(n: int = N) -> Tensor:
    """Rows of 3 to 10 tokens, then padding."""
    made = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 20, (n, LENGTH), generator=made)
    lengths = torch.randint(3, LENGTH + 1, (n, 1), generator=made)
    return ids * (torch.arange(LENGTH) < lengths)


@pytest.mark.parametrize("name", NETS)
def test_what_masks_out_stays_in_float_and_the_rest_is_int8(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    source, ids = tmp_path / "net.onnx", tokens()
    export_onnx(capture(NETS[name]().eval(), (ids[:4],)), source, inputs=ids[:8])
    file = write_int8(source, tmp_path / "int8.onnx", ids, max_drop=10)
    assert file.excluded == () and file.snr_db > MIN_SNR_DB + 5
    operators = [node.op_type for node in onnx.load(file.path).graph.node]
    assert operators.count("QuantizeLinear") >= 2  # of what the layers read


@pytest.mark.parametrize(("name", "said"), [("encoder", True), ("filled infinity", False)])
def test_what_is_left_in_float_for_its_range_is_told(name: str, said: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    source, ids = tmp_path / "net.onnx", tokens()
    export_onnx(capture(NETS[name]().eval(), (ids[:4],)), source, inputs=ids[:8])
    assert ("no 8 bits hold their range" in write_int8(source, tmp_path / "int8.onnx", ids, max_drop=10).note) == said


# --- trials that come to nothing


def divided(path: Path, *, alone: bool = False) -> Path:
    """What one layer makes of `a`, by what another makes of `b`: small values of it are 0 in int8, and none divides.

    `alone` leaves the divided as it comes in.
    """
    rng = np.random.default_rng(0)
    weights = {"above.weight": rng.standard_normal((6, 6)), "below.weight": np.ones((1, 1))}
    nodes = [
        helper.make_node("Gemm", ["b", "below.weight"], ["under"], "gemm_below"),
        helper.make_node("Gemm", ["a", "above.weight"], ["over"], "gemm_above"),
        helper.make_node("Div", ["a" if alone else "over", "under"], ["logits"], "div"),
    ]
    if alone:
        del nodes[1], weights["above.weight"]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", n]) for name, n in (("a", 6), ("b", 1))],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 6])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def far_apart() -> list[np.ndarray]:
    """Inputs of `divided`: its divisors are 0.01 to 10,000."""
    rng = np.random.default_rng(1)
    return [
        rng.standard_normal((N, 6)).astype(np.float32),
        np.geomspace(1e-2, 1e4, N, dtype=np.float32)[:, None],
    ]


def test_a_trial_of_infinite_outputs_is_the_worst_and_ends_nothing(tmp_path: Path) -> None:
    source = divided(tmp_path / "net.onnx")
    with pytest.raises(NotFiniteError, match="expected finite outputs as the float network's, got NaN or infinity"):
        work = work_of(open_float(source, far_apart()), tmp_path, True)
        agreement(work.file, work.quantized((), "all"))
    check_quantizable(source, far_apart())  # some choice of layers may do
    file = write_int8(source, tmp_path / "int8.onnx", far_apart(), max_drop=10)
    assert file.excluded == ("below",) and file.within_budget and file.snr_db > MIN_SNR_DB


def test_infinite_outputs_of_every_choice_are_refused(tmp_path: Path) -> None:
    source = divided(tmp_path / "net.onnx", alone=True)
    for refused in (
        lambda: check_quantizable(source, far_apart()),
        lambda: write_int8(source, tmp_path / "int8.onnx", far_apart()),
    ):
        with pytest.raises(ParityError, match="expected finite outputs .*, got NaN or infinity"):
            refused()
    assert not (tmp_path / "int8.onnx").exists()
