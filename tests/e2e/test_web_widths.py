"""The slider of the page of `export --web` over several widths and the gate, in a real browser and runtime."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from chromium import EXECUTABLE, Chromium
from commands import done
from test_web_page import hidden, measured, page, runtime, served, text  # noqa: F401 - two of them are fixtures

from edgeprune.data import open_data
from edgeprune.export.gated import OneByOne
from edgeprune.export.web import WebRuntime
from edgeprune.export.web.runtime import MODULES, PACKAGE
from edgeprune.measure.networkfile import opened
from edgeprune.tasks.classification import CLASSIFICATION

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(EXECUTABLE is None, reason="Chromium is not installed"),
    pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed"),
]
CNN = Path(__file__).parents[2] / "models" / "digits_cnn.pt"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, runtime: WebRuntime) -> Path:  # noqa: F811
    """A run of three widths with a gate, exported with its page."""
    place = tmp_path_factory.mktemp("widths")
    asked = ("--widths", "0.25,0.5,1", "--gate", "0.6", "--finetune-epochs", "0", "--align", "8")
    done(place, "compress", CNN, "--data", "digits", *asked, "--out", "run")
    package = place / PACKAGE
    (package / "dist").mkdir(parents=True)
    (package / "package.json").write_text(json.dumps({"name": PACKAGE, "version": runtime.version}))
    for file, name in MODULES.items():
        (package / file).write_bytes(runtime.files[name])
    done(
        place,
        "export",
        "--web",
        "run/slim.pt2",
        "--web-runtime",
        package,
        "--dense",
        CNN,
        "--data",
        "digits",
        "--out",
        "run",
    )
    return place / "run"


def chosen(page: Chromium, number: int) -> None:  # noqa: F811
    """Move the slider, and wait until that width is measured."""
    page.value("document.getElementById('widths').dataset.state = ''")
    page.value(
        f"{{ const slider = document.getElementById('width'); slider.value = {number}; "
        "slider.dispatchEvent(new Event('input')); slider.dispatchEvent(new Event('change')); }"
    )
    page.wait_for("document.getElementById('widths').dataset.state in {done: 1, failed: 1}", 120)


def test_the_slider_runs_each_width_and_the_gate(run: Path, page: Chromium) -> None:  # noqa: F811
    manifest = json.loads((run / "web" / "manifest.json").read_text())
    networks = manifest["widths"]["networks"]
    assert [one["name"] for one in networks] == ["0.25", "0.5", "1", "by the gate"]
    assert (
        sum(path.stat().st_size for path in (run / "web").glob("*.onnx"))
        < 3 * (run / "widths/weights.bin").stat().st_size
    )
    with served(run / "web") as url:
        measured(page, url)
        assert hidden(page, "error"), text(page, "error")
        assert text(page, "width-names") == "0.25, 0.5, 1, by the gate"
        for number, one in enumerate(networks):
            chosen(page, number)
            assert hidden(page, "width-error"), text(page, "width-error")
            assert text(page, "width-name") == one["name"]
            assert text(page, "width-parity").startswith(f"agrees on {one['runs']} inputs")
            assert float(text(page, "width-ratio").split()[0]) > 0 and text(page, "width-p50")[-1] == "s"
            assert hidden(page, "width-picks") == ("picks" not in one)
        assert text(page, "width-picks") == _picks(run, networks[-1]["runs"])
        assert page.complaints() == []
        page.size(390, 800)
        assert page.value("document.documentElement.scrollWidth <= 390")


def _picks(run: Path, n: int) -> str:
    """What the gate picks for the first inputs of the page, in onnxruntime here."""
    data = open_data("digits")
    file = opened(run / "widths" / "gate.onnx", data, CLASSIFICATION)
    assert isinstance(file.session, OneByOne)
    file.answers(torch.stack([data.test[index][0] for index in range(n)]))
    counts = np.bincount(file.session.picked[-n:], minlength=3)
    return ", ".join(
        f"{name} for {count} input{'' if count == 1 else 's'}"
        for name, count in zip(("1", "0.5", "0.25"), counts, strict=True)
    )
