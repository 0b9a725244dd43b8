"""What the page of `export --web` shows of answers, by the task, in a real browser with the real runtime."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chromium import EXECUTABLE, Chromium
from test_web_page import hidden, measured, page, runtime, served, text  # noqa: F401 - two of them are fixtures
from torch import Tensor, nn

from edgeprune.export.onnx import export_onnx
from edgeprune.export.web import WebNetwork, WebRuntime, WebTask, write_web
from edgeprune.graph.capture import capture

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(EXECUTABLE is None, reason="Chromium is not installed"),
    pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed"),
]
PIXELS = "[...document.querySelector('#answers canvas.mask').getContext('2d').getImageData(0, 0, 16, 12).data]"
SIZES = "[...document.querySelectorAll('#answers canvas.mask')].map(c => [c.width, c.height])"


class Pair(nn.Module):
    """Two outputs by name."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        inner = self.inner(x).relu()
        return {"scores": self.head(inner), "inner": inner}


NETWORKS = {
    "values": (lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1)), (6,)),
    "flags": (lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), (6,)),
    "masks": (lambda: nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 1)), (1, 12, 16)),
    "none": (Pair, (6,)),
}


def networks(kind: str) -> tuple[list[nn.Module], Tensor]:
    """A dense network, a slim one that is a little off, and inputs for both."""
    make, shape = NETWORKS[kind]
    torch.manual_seed(0)
    dense, slim = make().eval(), make().eval()
    slim.load_state_dict({name: value + 0.1 * torch.randn_like(value) for name, value in dense.state_dict().items()})
    return [dense, slim], torch.randn(6, *shape)


def outputs(kind: str) -> list[Tensor]:
    """What both give on the samples that the page shows."""
    pair, x = networks(kind)
    with torch.no_grad():
        return [module(x[:4]) for module in pair]


def shown(page: Chromium, runtime: WebRuntime, folder: Path, task: WebTask, kind: str) -> None:  # noqa: F811
    """Open the page of a task and wait until it is measured."""
    pair, x = networks(kind)
    files = []
    for name, module in zip(("dense", "slim"), pair, strict=True):
        export_onnx(capture(module, x[:2]), folder / f"{name}.onnx")
        files.append(WebNetwork(folder / f"{name}.onnx", x.numpy()))
    write_web(folder / "web", *files, title="<b>task</b>", task=task, runtime=runtime)
    with served(folder / "web") as url:
        measured(page, url)
        assert hidden(page, "error"), text(page, "error")
        assert text(page, "dense-parity").startswith("agrees on 6 inputs")
        assert "best class" not in text(page, "slim-parity")
        assert page.complaints() == []
        page.screenshot(folder / "page.png")


def cells(page: Chromium) -> list[list[str]]:  # noqa: F811
    return page.value(
        "[...document.querySelectorAll('#answers tbody tr')].map(row => [...row.children].map(cell => cell.innerText))"
    )


def number(said: str) -> float:
    return float(said.replace("\N{MINUS SIGN}", "-"))


def test_numbers_come_with_their_unit(page: Chromium, runtime: WebRuntime, tmp_path: Path) -> None:  # noqa: F811
    shown(page, runtime, tmp_path, WebTask("values", "MAE", "mmol"), "values")
    dense, slim = (one[:, 0].numpy() for one in outputs("values"))
    rows = [[number(cell) for cell in row] for row in cells(page)]
    np.testing.assert_allclose(rows, np.stack([np.arange(1, 5), dense, slim, slim - dense], axis=1), rtol=1e-3)
    said = text(page, "answers")
    assert "slim \N{MINUS SIGN} dense, mmol" in said
    assert f"both are {float(f'{np.abs(dense - slim).mean():.4g}'):g} mmol apart on average" in said


def test_labels_are_those_above_the_threshold(page: Chromium, runtime: WebRuntime, tmp_path: Path) -> None:  # noqa: F811
    labels = ("cat", "<i>dog</i>", "owl")
    shown(page, runtime, tmp_path, WebTask("flags", "mAP", "", labels), "flags")
    pair = outputs("flags")
    for logits, column in zip(pair, (1, 2), strict=True):
        for row, told in zip(logits.sigmoid().tolist(), cells(page), strict=True):
            held = sorted(((share, name) for share, name in zip(row, labels, strict=True) if share > 0.5), reverse=True)
            assert told[column] == (", ".join(f"{name} {share:.2f}" for share, name in held) or "none")
    alike = ((pair[0] > 0) == (pair[1] > 0)).sum().item()
    assert f"{alike} of 12 labels are the same" in text(page, "answers")


def test_masks_lie_over_the_input(page: Chromium, runtime: WebRuntime, tmp_path: Path) -> None:  # noqa: F811
    shown(page, runtime, tmp_path, WebTask("masks", "mIoU", "", ("sky", "sea", "land")), "masks")
    dense, slim = (one.argmax(1) for one in outputs("masks"))
    assert page.value(SIZES) == [[16, 12]] * 8
    captions = page.value("[...document.querySelectorAll('#answers figcaption')].map(one => one.innerText)")
    apart = (dense != slim).flatten(1).sum(1).tolist()
    assert captions == [f"input {i + 1}: {count} of 192 pixels differ" for i, count in enumerate(apart)]
    share = 100 * (dense == slim).double().mean().item()
    said = text(page, "answers")
    assert f"The masks lie over the input. On these 4 inputs {share:.1f} % of the pixels are given the same" in said
    assert "sky" in said and "land" in said
    colours = np.array(page.value(PIXELS)).reshape(12, 16, 4)
    assert (colours[..., 3] == 255).all() and len(np.unique(colours.reshape(-1, 4), axis=0)) > 3


@pytest.mark.parametrize("kind", ["none", "other"])
def test_raw_outputs_are_told_to_be_raw(
    page: Chromium,  # noqa: F811
    runtime: WebRuntime,  # noqa: F811
    tmp_path: Path,
    kind: str,
) -> None:
    shown(page, runtime, tmp_path, WebTask(kind, "agreement"), "none")  # type: ignore[arg-type]
    dense, slim = outputs("none")
    rows = cells(page)
    assert [row[1:3] for row in rows] == [["scores", "2"], ["inner", "8"]] * 4
    for i, row in enumerate(rows):
        want, got = dense[row[1]][i // 2], slim[row[1]][i // 2]
        assert number(row[3].split(",")[0]) == pytest.approx(want[0].item(), rel=1e-3, abs=1e-9)
        off = ((want - got).norm() / want.norm()).item()
        assert number(row[5].removesuffix(" %")) == pytest.approx(100 * off, abs=0.01)
    said = text(page, "answers")
    assert "raw outputs of both" in said and ("code that does not run here" in said) == (kind == "other")


# --- several inputs


class Two(nn.Module):
    """Two inputs, a picture and ids in their own type, to what a task wants."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.rows, self.picture = kind, nn.Embedding(9, 8), nn.Conv2d(1, 8, 3, padding=1)
        self.head, self.pixels = nn.Linear(8, 3), nn.Conv2d(8, 3, 1)

    def forward(self, ids: Tensor, image: Tensor) -> Tensor | dict[str, Tensor]:
        seen = self.picture(image).relu() + self.rows(ids).mean(1)[:, :, None, None]
        scores = self.head(seen.mean((2, 3)))
        if self.kind == "masks":
            return self.pixels(seen)
        return {"scores": scores, "best": scores.argmax(1)} if self.kind == "none" else scores


@pytest.fixture(params=["values", "flags", "masks", "none", "classes"])
def two(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path, list[Any]]:
    """The kind of a task, a folder with both networks' files and the page, and what each network gives."""
    kind = request.param
    torch.manual_seed(0)
    given = {"ids": torch.randint(0, 9, (6, 5)), "image": torch.randn(6, 1, 12, 16)}
    dense, slim = Two(kind).eval(), Two(kind).eval()
    slim.load_state_dict({name: value + 0.1 * torch.randn_like(value) for name, value in dense.state_dict().items()})
    files = []
    for name, module in (("dense", dense), ("slim", slim)):
        export_onnx(capture(module, tuple(given.values())), tmp_path / f"{name}.onnx", inputs=given)
        files.append(WebNetwork(tmp_path / f"{name}.onnx", {name: x.numpy() for name, x in given.items()}))
    labels = ("cat", "dog", "owl") if kind in ("flags", "masks", "classes") else ()
    task = WebTask(kind, "metric", "mmol" if kind == "values" else "", labels)
    write_web(tmp_path / "web", *files, title="image and ids", task=task, runtime=request.getfixturevalue("runtime"))
    with torch.no_grad():
        return kind, tmp_path, [module(given["ids"], given["image"]) for module in (dense, slim)]


def test_several_inputs_run_and_answer_as_one_does(page: Chromium, two: tuple[str, Path, list[Any]]) -> None:  # noqa: F811
    kind, folder, (dense, slim) = two
    with served(folder / "web") as url:
        measured(page, url)
        assert hidden(page, "error"), text(page, "error")
        assert page.complaints() == []
        page.screenshot(folder / "page.png")
    for name in ("dense", "slim"):
        said = text(page, f"{name}-parity")
        assert said.startswith("agrees on 6 inputs")
        assert said.endswith("the best class is the same for 6 of 6") == (kind == "classes")
    facts = page.value(
        "[...document.querySelectorAll('#facts tr')].map(row => [...row.children].map(c => c.textContent))"
    )
    assert facts[1:] == [["Input ids", "1×5 int64", "1×5 int64"], ["Input image", "1×1×12×16", "1×1×12×16"]]
    if kind == "classes":
        assert page.value("document.getElementById('answers') === null")
    elif kind == "masks":
        assert page.value(SIZES) == [[16, 12]] * 8
        assert "The masks lie over the input" in text(page, "answers")
    else:
        _check_cells(kind, cells(page), dense, slim)


def _check_cells(kind: str, rows: list[list[str]], dense: Any, slim: Any) -> None:
    """What the table says of both networks on the first four inputs."""
    if kind == "flags":
        held = [{"cat", "dog", "owl"} & set(row[1].replace(",", "").split()) for row in rows]
        wanted = [{name for name, logit in zip(("cat", "dog", "owl"), row, strict=True) if logit > 0} for row in dense]
        assert held == wanted[:4]
        return
    if kind == "none":
        assert [row[1:3] for row in rows] == [["scores", "3"], ["best", "1"]] * 4
        rows, dense, slim = [[row[0], row[3], row[4]] for row in rows[::2]], dense["scores"], slim["scores"]
    for column, want in ((1, dense), (2, slim)):
        got = [[number(part) for part in row[column].split(", ")] for row in rows]
        np.testing.assert_allclose(got, want[:4].numpy(), rtol=1e-3, atol=1e-6)
