"""`edgeprune certify`: real files in, shares and exit codes out."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import edgeprune
from edgeprune.certify.dropped import removed
from edgeprune.certify.ranges import valid_range
from edgeprune.cli.app import main
from edgeprune.commands.certify import certify
from edgeprune.data import open_data
from edgeprune.errors import InputError
from edgeprune.formats.save import save_program
from edgeprune.records import InputFeatures, ModelInfo, Normalization
from edgeprune.requests import CertifyRequest

DIGITS = open_data("digits")
Run = Callable[..., tuple[int, str, str]]
HOW = Normalization((8.0,), (4.0,))


def trained(n_hidden: int) -> nn.Module:
    """A quick least-squares classifier with a hidden layer, so that most digits are answered rightly."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.stack([pair[0] for pair in DIGITS.train]), torch.tensor([int(pair[1]) for pair in DIGITS.train]))
    x = ((x - 8) / 4).flatten(1)
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, n_hidden), nn.ReLU(), nn.Linear(n_hidden, 10))
    with torch.no_grad():
        module[1].weight.copy_(torch.randn(n_hidden, 64, generator=generator) / 8)
        module[1].bias.zero_()
        module[1].weight[:, ::4] *= 1e-4  # inputs that hardly matter
        hidden = torch.cat([module[:3](x), torch.ones(len(x), 1)], 1)
        target = nn.functional.one_hot(y, 10).float()
        solved = torch.linalg.solve(hidden.T @ hidden + torch.eye(n_hidden + 1), hidden.T @ target)
        module[3].weight.copy_(solved[:-1].T)
        module[3].bias.copy_(solved[-1])
    return module.eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """dense.pt2, and slim.pt2 that reads some of its inputs alone."""
    path = tmp_path_factory.mktemp("run")
    program = edgeprune.capture(trained(60), torch.randn(2, 1, 8, 8))
    info = ModelInfo((1, 8, 8), classes=DIGITS.classes, normalization=HOW)
    save_program(path / "dense.pt2", program, info)
    plan = edgeprune.plan(program, edgeprune.analyze(program, inputs=True), keep_macs=0.6)
    save_program(path / "slim.pt2", edgeprune.cut(program, plan), info)
    return path


def asked(folder: Path, name: str = "dense.pt2", **options: object) -> CertifyRequest:
    return replace(CertifyRequest(str(folder / name), "digits", samples=30, dense=str(folder / "dense.pt2")), **options)


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """The command: its exit code, stdout and stderr."""

    def command(*arguments: object) -> tuple[int, str, str]:
        code = main(["certify", *map(str, arguments)])
        return code, *capfd.readouterr()

    return command


def test_shares_are_in_order_and_the_methods_too(folder: Path) -> None:
    records = [certify(asked(folder, eps=0.4, method=method)) for method in ("interval", "crown", "sdp")]
    verified = [record.verified for record in records]
    assert verified == sorted(verified)
    for record in records:
        assert record.verified <= record.attacked_at_most <= record.clean
        assert len(record.samples) == 30 and record.clean > 0.8
    assert 0 < records[1].verified  # or the order would say nothing
    attacked = {s.index for s in records[0].samples if s.outcome == "attacked"}
    assert not attacked & {s.index for s in records[2].samples if s.outcome == "verified"}
    assert [s.index for s in records[0].samples] == [s.index for s in certify(asked(folder, eps=0.0)).samples]


def test_eps_is_in_raw_units(folder: Path) -> None:
    """Normalised by hand, 4 raw units are one; the attack's bound is checked on the raw inputs."""
    record = certify(asked(folder, eps=0.0, samples=60))
    raw = torch.stack([DIGITS.test[s.index][0] for s in record.samples])
    truth = torch.tensor([int(DIGITS.test[s.index][1]) for s in record.samples])
    right = trained(60)((raw - 8) / 4).argmax(1) == truth
    assert record.clean == pytest.approx(right.float().mean().item())
    assert record.verified == record.clean
    narrow, wide = (certify(asked(folder, eps=eps, samples=20)).verified for eps in (0.1, 4.0))
    assert wide < narrow


def test_removed_inputs_cannot_change_what_is_decided(folder: Path) -> None:
    record = certify(asked(folder, "slim.pt2", of="dropped-inputs", method="sdp"))
    assert record.n_inputs == 64 and 0 < record.n_removed < 64
    assert record.n_removed == removed_of(folder).sum()
    dense, gone = trained(60), torch.from_numpy(removed_of(folder)).reshape(1, 8, 8)
    generator = torch.Generator().manual_seed(0)
    for sample in record.samples:
        if sample.outcome != "verified":
            continue
        x = DIGITS.test[sample.index][0]
        drawn = torch.randint(0, 17, (50, 1, 8, 8), generator=generator).float()
        mixed = torch.where(gone, drawn, x)
        assert (dense((mixed - 8) / 4).argmax(1) == dense((x[None] - 8) / 4).argmax(1)).all()
    assert {sample.outcome for sample in record.samples} <= {"verified", "attacked", "open"}


def removed_of(folder: Path) -> np.ndarray:
    from edgeprune.pruning.slim_inputs import gathered

    features = gathered(edgeprune.load_model(folder / "slim.pt2").program)
    assert features is not None
    return removed(features, (1, 8, 8))


def test_slim_and_dense_are_bounded_together(folder: Path) -> None:
    record = certify(asked(folder, "slim.pt2", of="equivalence", eps=0.2, samples=5, max_difference=1e-9))
    slim = edgeprune.load_model(folder / "slim.pt2").program.module()
    for one in record.differences:
        x = (DIGITS.test[one.index][0][None] - 8) / 4
        assert one.here == pytest.approx((slim(x) - trained(60)(x)).abs().max().item(), rel=1e-4)
        assert one.here <= one.found <= one.bound
    assert "difference" in record.failures[0]


@pytest.mark.parametrize(
    ("features", "shape", "gone"),
    [
        (InputFeatures(4, (0, 3)), (2, 2), [1, 2]),
        (InputFeatures(3, (1,), 1), (3, 2), [0, 1, 4, 5]),
    ],
)
def test_removed_elements_of_a_flat_input(features: InputFeatures, shape: tuple[int, ...], gone: list[int]) -> None:
    assert np.flatnonzero(removed(features, shape)).tolist() == gone


def test_boxes_stay_where_inputs_can_be() -> None:
    valid = valid_range(DIGITS)
    assert (valid.lower.min(), valid.upper.max()) == (0, 16) and "train split" in valid.words
    x = np.full(64, 15.5)
    box = valid.box(x, 1.0)
    assert (box.lower == 14.5).all() and (box.upper == 16).all()
    outside = valid_range(DIGITS, (0, 10)).box(x, 1.0)  # a sample itself is always a possible input
    assert (outside.upper == 15.5).all() and (outside.lower == 14.5).all()
    scaled = valid_range(replace(DIGITS, byte_scale=1 / 255))
    assert scaled.upper[0] == pytest.approx(1) and "byte" in scaled.words


# -- the command --------------------------------------------------------------------------------------------------


def test_json_says_all_and_a_missed_share_exits_1(folder: Path, run: Run) -> None:
    common = (folder / "dense.pt2", "--data", "digits", "--samples", 5)
    code, out, _ = run(*common, "--eps", 0.1, "--json", "--min-verified", 0)
    record = json.loads(out)
    assert code == 0 and record["eps"] == 0.1 and len(record["samples"]) == 5 and record["seconds"] >= 0
    code, _, error = run(*common, "--eps", 8, "--min-verified", 0.99)
    assert code == 1 and "at least 99.0% asked" in error
    code, out, _ = run(folder, "--data", "digits", "--samples", 5, "--dropped-inputs", "--dense", folder / "dense.pt2")
    assert code == 0 and "inputs removed" in out and "float64" in out
    code, out, _ = run(
        folder, "--data", "digits", "--samples", 2, "--equivalence", "--eps", 0.1, "--dense", folder / "dense.pt2"
    )
    assert code == 0 and "at most" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--eps", "-1"), "at least 0"),
        (("--eps", "nan"), "at least 0"),
        ((), "--eps: expected"),
        (("--eps", "1", "--samples", "0"), "at least 1"),
        (("--eps", "1", "--range", "1:0"), "LOW:HIGH"),
        (("--eps", "1", "--method", "milp"), "milp"),
        (("--eps", "1", "--min-verified", "2"), "from 0 to 1"),
        (("--eps", "1", "--dropped-inputs"), "no --eps"),
        (("--dropped-inputs",), "removes inputs"),
        (("--dropped-inputs", "--equivalence"), "both"),
        (("--eps", "1", "--equivalence"), "--dense"),
        (("--eps", "1", "--max-difference", "1"), "--equivalence"),
        (("--eps", "1", "--equivalence", "--min-verified", "1"), "--max-difference"),
    ],
)
def test_bad_usage_is_told_in_one_line(folder: Path, run: Run, arguments: tuple[str, ...], words: str) -> None:
    code, out, error = run(folder / "dense.pt2", "--data", "digits", *arguments)
    assert code == 2 and out == ""
    assert words in " ".join(error.split()) and len(error.strip().splitlines()) == 1


def test_data_and_networks_that_do_not_fit_are_refused(folder: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "twelve.npz", x=np.random.rand(60, 1, 8, 8).astype("float32"), y=np.arange(60) % 12)
    with pytest.raises(InputError, match="classes"):
        certify(asked(folder, data=f"npz:{tmp_path / 'twelve.npz'}", eps=0.1))
    np.savez(tmp_path / "values.npz", x=np.random.rand(60, 1, 8, 8).astype("float32"), y=np.random.rand(60, 10))
    with pytest.raises(InputError, match="classification"):
        certify(asked(folder, data=f"npz:{tmp_path / 'values.npz'}", eps=0.1))
    other = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Tanh())
    save_program(tmp_path / "tanh.pt2", edgeprune.capture(other, torch.randn(2, 1, 8, 8)), ModelInfo((1, 8, 8)))
    with pytest.raises(InputError, match="tanh"):
        certify(asked(tmp_path, "tanh.pt2", eps=0.1, normalize="none"))
    ids = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(20, 3))
    save_program(tmp_path / "ids.pt2", edgeprune.capture(ids, torch.randint(0, 9, (2, 5))), ModelInfo((5,)))
    np.savez(tmp_path / "ids.npz", x=np.random.randint(0, 9, (60, 5)), y=np.arange(60) % 3)
    with pytest.raises(InputError, match=r"one input of floats, got .* \(int64\)"):
        certify(asked(tmp_path, "ids.pt2", data=f"npz:{tmp_path / 'ids.npz'}", eps=0.1))
    with pytest.raises(InputError, match="no-such"):
        certify(asked(folder, "no-such.pt2", eps=0.1))
