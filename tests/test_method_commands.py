"""`edgeprune train --method` and `edgeprune methods`, as a user types them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from edgeprune import catalog
from edgeprune.cli.app import main
from edgeprune.errors import InputError
from edgeprune.formats.info import info_from_dict, info_to_dict
from edgeprune.formats.load import load
from edgeprune.optim.prox import PENALTIES
from edgeprune.records import ModelInfo
from edgeprune.settings import TrainSettings

NETS = Path(__file__).parents[1] / "models" / "digits.py"
TRAIN = ("train", "--arch", f"{NETS}:mlp", "--data", "digits", "--epochs", "3", "--threads", "1", "--optimizer", "sgd")


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("options", "share"),
    [
        (("gradual", "--sparsity", "0.8", "--prune-schedule", "one-cycle", "--prune-every", "2"), 0.8),
        (("gradual", "--sparsity", "0.5", "--structure", "input-column", "--criterion", "l2"), 0.5),
        (("weight-mom", "--sparsity", "0.7"), 0.7),
        (("regrow", "--sparsity", "0.6", "--regrow", "random"), 0.6),
        (("n-m", "--n-m", "1:4"), 0.75),
        (("halo", "--lam", "0.03", "--structure", "element"), None),
        (("gumbel-gates", "--gates", "inputs", "--sparsity", "0.5"), None),
        (("feature-selection", "--n-features", "20", "--prune-schedule", "linear"), None),
        (("shared-budget", "--keep-params", "0.3", "--feature-price", "2", "--align", "4"), None),
    ],
    ids=lambda options: options[0] if isinstance(options, tuple) else "",
)
def test_every_method_trains_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], share: float | None
) -> None:
    out = tmp_path / "m.pt"
    assert main([*TRAIN, "--method", *options, "--out", str(out), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    if share is None:
        assert 0 < record["zero_share"] < 1
    else:
        assert record["zero_share"] == pytest.approx(share, abs=0.002)
    assert record["best_epoch"] == 3
    model = load(out)
    training = model.info.training
    assert training is not None and training.method == options[0]
    assert {f"--{name.replace('_', '-')}" for name in training.options} == set(options[1::2])
    assert training.for_finetuning().method is None and training.for_finetuning().options == {}
    weights = [p for p in model.program.module().parameters() if p.dim() > 1]
    assert [layer["zeros"] for layer in record["layers"]] == [int((w == 0).sum()) for w in weights]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--method", "prune"), "'--method': 'prune' is not one of gradual, weight-mom"),
        (("--method", "gradual", "--sparsity", "1"), "'--sparsity': expected a number in (0, 1), got 1.0"),
        (
            ("--method", "gradual", "--prune-every", "0"),
            "'--prune-every': expected a whole number of at least 1, got 0",
        ),
        (("--method", "gradual", "--prune-every", "2.5"), "'--prune-every': expected a whole number of at least 1"),
        (("--method", "gradual", "--prune-schedule", "x"), "'--prune-schedule': 'x' is not one of one-shot, linear"),
        (("--method", "gradual", "--n-m", "2:4"), "n_m: belongs to n-m, got optimizer sgd and method gradual"),
        (("--sparsity", "0.5"), "sparsity: belongs to gradual, weight-mom, regrow, gumbel-gates, got optimizer sgd"),
        (("--method", "n-m", "--n-m", "4:2"), "n_m: expected N:M with 1 <= N < M, such as 2:4, got 4:2"),
        (("--method", "n-m", "--n-m", "3:7"), "expected inputs that 7 divides, got 64"),
        (("--method", "halo", "--optimizer", "xrda"), "method halo: expected the optimizer adamw or sgd, got xrda"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], message: str
) -> None:
    assert main([*TRAIN, *options, "--out", str(tmp_path / "m.pt")]) == 2
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    assert printed.out == "" and message in lines[-1]
    if "expected inputs that" not in message:  # which depends on the network
        assert len(lines) == 1
    assert not list(tmp_path.iterdir())


def test_what_is_left_out_is_assumed_aloud(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TRAIN, "--method", "gradual", "--sparsity", "0.5", "--out", str(tmp_path / "m.pt")]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("assumed: ")]
    assert lines == [f"assumed: --{option}" for option in ("criterion l1", "structure element", "prune-schedule cubic")]


def test_the_listing_has_everything_with_its_paper(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["entries"]
    assert [(entry["kind"], entry["name"]) for entry in listed] == [(e.kind, e.name) for e in catalog.ENTRIES]
    assert {entry["kind"] for entry in listed} == set(catalog.ASKED_BY)
    for entry in listed:
        assert entry["summary"] and entry["produces"]
        assert entry["paper"] or entry["name"] in ("random", "linear", "constant")
    assert main(["methods"]) == 0
    table = capsys.readouterr().out
    for entry in catalog.ENTRIES:
        assert entry.name in table
    for option in catalog.OPTIONS:
        assert f"--{option.replace('_', '-')}" in table


def test_the_listing_needs_no_torch() -> None:
    code = (
        "import sys; from edgeprune.cli.app import main; main(['methods']); main(['methods', '--json']);"
        "main(['train', '--help']); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_help_says_what_options_belong_to(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "For xrda, rda, rmda, prox-sgd, halo." in text and "For n-m." in text


def test_the_catalog_and_the_library_agree() -> None:
    assert catalog.OPTIONS["penalty"].choices == PENALTIES
    assert {name for entry in catalog.ENTRIES for name in entry.options} == set(catalog.OPTIONS)
    for entry in catalog.ENTRIES:
        assert set(entry.defaults) <= set(entry.options)
        catalog.check_options(entry.defaults, [entry])
        if entry.kind == "method":
            assert set(entry.options) - set(entry.defaults) <= {
                "prune_every",
                "n_features",
                "keep_macs",
                "keep_params",
                "feature_price",
            }


def test_a_method_survives_a_checkpoint() -> None:
    settings = TrainSettings(method="regrow", options={"sparsity": 0.5, "prune_every": 3, "regrow": "random"})
    fields = info_to_dict(ModelInfo(input_shape=(4,), training=settings))
    assert info_from_dict(fields).training == settings
    del fields["training"]["method"]
    assert info_from_dict(fields).training.method is None
    with pytest.raises(InputError, match="expected training's method to be known, got 'prune'"):
        info_from_dict({**fields, "training": {**fields["training"], "method": "prune"}})


def test_what_was_trained_by_a_method_is_compressed(tmp_path: Path) -> None:
    """Finetuning of what is left goes by the dense recipe."""
    model = tmp_path / "m.pt"
    assert (
        main([*TRAIN, "--method", "gradual", "--structure", "channel-group", "--sparsity", "0.5", "--out", str(model)])
        == 0
    )
    options = ["--keep-macs", "0.5", "--finetune-epochs", "1", "--threads", "1", "--input-features", "off"]
    assert main(["compress", str(model), *options, "--criterion", "lamp", "--out", str(tmp_path / "run")]) == 0
    assert torch.export.load(tmp_path / "run" / "slim.pt2")
