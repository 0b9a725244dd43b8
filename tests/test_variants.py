"""Which variant to ship: the rule on given times, and once on real files."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgeprune.errors import InputError
from edgeprune.export.conversions import write_dynamic, write_half
from edgeprune.export.judging import QuantizedFile
from edgeprune.export.onnx import export_onnx
from edgeprune.export.quantize import write_int8
from edgeprune.export.variants import Measure, compare_variants
from edgeprune.graph.capture import capture
from edgeprune.measure.latency import measure_files, ratio_interval
from edgeprune.records import VariantKind
from edgeprune.results import LeftOut, VariantTable

X = np.zeros((1, 4), np.float32)
NO_HALF = LeftOut("fp16", "no half-precision kernels")


def times(*ratios: float, noise: float = 0.02) -> Measure:
    """Times of 10 ms for the float file and of `10 * ratio` for the others, 200 runs with a little noise."""

    def measure(paths: Sequence[Path], inputs: Sequence[np.ndarray]) -> np.ndarray:
        assert len(paths) == len(inputs) == len(ratios) + 1
        rng = np.random.default_rng(0)
        return 10 * np.array([1.0, *ratios]) * (1 + noise * rng.standard_normal((200, len(paths))))

    return measure


def made(folder: Path, kind: VariantKind, size: int, drop: float | None = 0.2, within: bool = True) -> QuantizedFile:
    path = folder / f"{kind}.onnx"
    path.write_bytes(b"0" * size)
    return QuantizedFile(kind, str(path), size, drop, 40.0, 0.99, (), 3, within, "")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "fp32.onnx"
    path.write_bytes(b"0" * 1000)
    return path


def table(source: Path, files: Sequence[QuantizedFile | LeftOut], *ratios: float, **options: object) -> VariantTable:
    return compare_variants(source, files, X, max_drop=1.0, measure=times(*ratios), interval=ratio_interval, **options)  # type: ignore[arg-type]


def test_fastest_within_the_budget_is_shipped(source: Path) -> None:
    folder = source.parent
    files = [made(folder, "int8", 300), made(folder, "dynamic", 250), NO_HALF]
    result = table(source, files, 0.5, 0.8)
    assert result.ship == "int8" and result.left_out == (NO_HALF,)
    assert "the fastest within the budget: 0.50 of fp32's time" in result.why
    assert [variant.name for variant in result.variants] == ["fp32", "int8", "dynamic"]
    fp32, int8, dynamic = result.variants
    assert (fp32.ratio, fp32.verdict, fp32.drop) == (1.0, "the reference", 0.0)
    assert int8.faster and int8.ratio == pytest.approx(0.5, abs=0.01) and int8.p50_ms == pytest.approx(5, abs=0.1)
    assert int8.p95_ms > int8.p50_ms and int8.size_bytes == 300
    assert int8.ratio_interval[0] < int8.ratio < int8.ratio_interval[1]
    assert int8.verdict.startswith("faster than fp32: 0.50 of fp32's time") and dynamic.faster


def test_out_of_budget_is_said_and_not_shipped(source: Path) -> None:
    files = [made(source.parent, "int8", 300, 2.5, within=False), made(source.parent, "dynamic", 250)]
    result = table(source, files, 0.5, 0.8)
    assert result.ship == "dynamic"
    assert result.variants[1].verdict.endswith("out of budget: drops 2.50 points (at most 1)")
    assert not result.variants[1].within_budget
    alone = table(source, files[:1], 0.5)
    assert (alone.ship, alone.why) == ("fp32", "no other keeps the accuracy budget")


def test_slower_is_said_and_not_shipped_however_small(source: Path) -> None:
    result = table(source, [made(source.parent, "int8", 300)], 1.3)
    assert result.variants[1].slower and result.variants[1].verdict.startswith("slower than fp32: 1.30")
    assert (result.ship, result.why) == ("fp32", "the others within the budget are slower or no smaller")


def test_smallest_where_none_is_faster_for_sure(source: Path) -> None:
    files = [made(source.parent, "int8", 300), made(source.parent, "dynamic", 250), made(source.parent, "fp16", 500)]
    result = table(source, files, 1.0, 1.4, 1.0)
    assert result.ship == "int8"
    assert result.variants[1].verdict.startswith("no significant gain in time")
    assert "the smallest, 0.30 of fp32's size, is not slower" in result.why
    larger = table(source, [made(source.parent, "int8", 1200)], 1.0)
    assert larger.ship == "fp32"


def test_accuracies_that_are_given_decide(source: Path) -> None:
    """E.g. of the test split, where the files were made on the validation split."""
    files = [made(source.parent, "int8", 300), made(source.parent, "dynamic", 250)]
    accuracies = {"fp32": 0.95, "int8": 0.93, "dynamic": 0.945}
    result = table(source, files, 0.5, 0.8, values=accuracies)
    assert result.ship == "dynamic"
    assert [variant.value for variant in result.variants] == [0.95, 0.93, 0.945]
    assert [round(variant.drop or 0, 6) for variant in result.variants] == [0, 2, 0.5]
    with pytest.raises(InputError, match=r"none for \['dynamic'\]"):
        table(source, files, 0.5, 0.8, values={"fp32": 0.95, "int8": 0.93})


def test_nothing_made(source: Path) -> None:
    result = table(source, [NO_HALF])
    assert (result.ship, result.why, len(result.variants)) == ("fp32", "nothing else was made", 1)
    twice = [made(source.parent, "int8", 300)] * 2
    with pytest.raises(InputError, match="expected each once"):
        table(source, twice, 0.5, 0.5)


@pytest.mark.slow
def test_real_files_are_timed_in_one_run(tmp_path: Path) -> None:
    """A convolution of 64 channels at 32x32 gains by int8 wherever the CPU has VNNI; elsewhere the table says so."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(8, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 4),
    )  # fmt: skip
    x = np.random.default_rng(0).standard_normal((8, 8, 32, 32)).astype(np.float32)
    source = tmp_path / "fp32.onnx"
    export_onnx(capture(net, torch.from_numpy(x[:2])), source, inputs=x)
    files = [
        write_int8(source, tmp_path / "int8.onnx", x, max_drop=100),
        write_dynamic(source, tmp_path / "dynamic.onnx", x, max_drop=100),
        write_half(source, tmp_path / "fp16.onnx", x, max_drop=100),
    ]
    result = compare_variants(
        source, files, x[:1], max_drop=100, measure=partial(measure_files, runs=60), interval=ratio_interval
    )
    names = [variant.name for variant in result.variants]
    assert names[:3] == ["fp32", "int8", "dynamic"] and result.ship in names
    shipped = next(variant for variant in result.variants if variant.name == result.ship)
    assert not shipped.slower and shipped.within_budget
    assert all(0 < variant.p50_ms <= variant.p95_ms for variant in result.variants)
    assert len(names) + len(result.left_out) == 4
