"""The page of `export --web` in a real browser, with the real runtime, served by `edgeprune serve`."""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from chromium import EXECUTABLE, Chromium
from filelock import FileLock
from onnx import TensorProto, helper, numpy_helper

from edgeprune.cost.device import read_device
from edgeprune.export.web import WebNetwork, WebProbe, WebTask, web_runtime, write_web
from edgeprune.export.web.runtime import MODULES, RUNTIME_VERSION, WebRuntime
from edgeprune.serving import open_server

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(EXECUTABLE is None, reason="Chromium is not installed"),
    pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed"),
]
TITLE = "digits <img src=x onerror=alert(1)>"
LAYER = "convolution kernel 1x1, stride 1x1, pads 0x0x0x0, dilation 1x1, size 40x40"
WIDTHS = (8, 16, 32)
FINISHED = "{done: 1, failed: 1}"


# --- what is served


def convolutions(width: int, kept: int | None) -> onnx.ModelProto:
    """Three 3x3 convolutions over (n, 1, 24, 24), or over the first `kept` of its 24 rows, to 10 logits."""
    rng = np.random.default_rng(0)
    nodes, constants, value, channels = [], [], "x", 1
    for i in range(3):
        weight = (rng.standard_normal((width, channels, 3, 3)) / np.sqrt(9 * channels)).astype(np.float32)
        constants.append(numpy_helper.from_array(weight, f"w{i}"))
        nodes += [
            helper.make_node("Conv", [value, f"w{i}"], [f"c{i}"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", [f"c{i}"], [f"r{i}"]),
        ]
        value, channels = f"r{i}", width
    head = rng.standard_normal((width, 10)).astype(np.float32)
    constants.append(numpy_helper.from_array(head, "head"))
    nodes += [
        helper.make_node("GlobalAveragePool", [value], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "head"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "convolutions",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1, kept or 24, 24])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def pointwise(width: int) -> bytes:
    """One 1x1 convolution of (1, 16, 40, 40) to `width` channels."""
    weight = np.full((width, 16, 1, 1), 0.1, np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"])],
        "pointwise",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 16, 40, 40])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, width, 40, 40])],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


@pytest.fixture(scope="session")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> WebRuntime:
    """onnxruntime-web from npm, fetched by the first process of this session that needs it."""
    shared = tmp_path_factory.getbasetemp()
    shared = (shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared) / "web-runtime"
    with FileLock(f"{shared}.lock"):
        if not shared.exists():
            taken = web_runtime()
            staged = shared.with_suffix(".part")
            (staged / "dist").mkdir(parents=True)
            (staged / "package.json").write_text(json.dumps({"name": "onnxruntime-web", "version": taken.version}))
            for place, name in MODULES.items():
                (staged / place).write_bytes(taken.files[name])
            staged.rename(shared)
    return web_runtime(shared)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, runtime: WebRuntime) -> Path:
    """A dense network, a slim one with fewer channels and fewer inputs, and one layer shape at three widths."""
    place = tmp_path_factory.mktemp("web")
    inputs = np.random.default_rng(0).standard_normal((20, 1, 24, 24)).astype(np.float32)
    onnx.save(convolutions(64, None), place / "dense.onnx")
    onnx.save(convolutions(16, 16), place / "slim.onnx")
    write_web(
        place / "page",
        WebNetwork(place / "dense.onnx", inputs),
        WebNetwork(place / "slim.onnx", inputs[:, :, :16]),
        title=TITLE,
        facts=[("MACs", "42.8 M", "1.8 M")],
        probes=[WebProbe(LAYER, 16, width, pointwise(width), {"x": (1, 16, 40, 40)}) for width in WIDTHS],
        task=WebTask("classes", "accuracy"),
        runtime=runtime,
    )
    return place / "page"


@contextlib.contextmanager
def answering(server: http.server.HTTPServer) -> Iterator[str]:
    """The address of a server that answers meanwhile."""
    with server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


def served(folder: Path) -> contextlib.AbstractContextManager[str]:
    return answering(open_server(folder, port=0))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    with Chromium(tmp_path_factory.mktemp("profile")) as page:
        yield page


def measured(page: Chromium, url: str) -> None:
    """Open the page and wait for the end of its first measurement."""
    page.open("about:blank")
    page.forget()  # what the page of another test complained of
    page.size(1280, 900)
    page.open(url)
    page.wait_for(f"document.getElementById('result')?.dataset.state in {FINISHED}", 120)


def text(page: Chromium, name: str) -> Any:
    return page.value(f"document.getElementById('{name}').innerText")


def hidden(page: Chromium, name: str) -> Any:
    return page.value(f"document.getElementById('{name}').hidden")


def milliseconds(said: str) -> float:
    value, unit = said.replace("\N{NO-BREAK SPACE}", " ").replace("\n", " ").split()
    return float(value) * {"µs": 1e-3, "ms": 1.0, "s": 1e3}[unit]


# --- the comparison


def test_both_networks_run_agree_and_are_timed(page: Chromium, folder: Path) -> None:
    with served(folder) as url:
        measured(page, url)
        assert page.value("crossOriginIsolated")
        assert hidden(page, "error") and hidden(page, "status")
        for name in ("dense", "slim"):
            assert text(page, f"{name}-parity").startswith("agrees on 16 inputs: largest error ")
            assert text(page, f"{name}-parity").endswith("the best class is the same for 16 of 16")
            spaced = page.value(
                f"[...document.getElementById('{name}-p50').childNodes].map(n => n.textContent).join(' ')"
            )
            p50, p95 = milliseconds(spaced), milliseconds(text(page, f"{name}-p95"))
            assert 0 < p50 <= p95
        assert 0.0 < float(text(page, "ratio")) < 0.8  # 1/24 of the arithmetic
        assert "times as fast" in text(page, "headline")
        assert "significantly faster" in text(page, "badges")
        assert text(page, "runtime") == f"onnxruntime-web {RUNTIME_VERSION}"
        assert "interleaved rounds, 1 thread" in text(page, "method") or "threads" in text(page, "method")
        n_dots = page.value("document.querySelectorAll('#chart .dot').length")
        assert 10 <= n_dots <= 200
        assert page.value("document.querySelectorAll('img').length") == 0  # the title is text
        assert page.value("document.querySelector('h1').textContent") == TITLE
        assert page.complaints() == []


def test_it_measures_again_on_the_threads_that_are_asked_for(page: Chromium, folder: Path) -> None:
    with served(folder) as url:
        measured(page, url)
        options = page.value("[...document.getElementById('threads').options].map(o => o.value)")
        assert options[0] == "1"
        if len(options) < 2:
            pytest.skip("this machine has one core")
        page.value("document.getElementById('threads').value = '2'")
        page.value("document.getElementById('threads').dispatchEvent(new Event('change'))")
        assert page.value("document.getElementById('again').disabled")
        page.wait_for(f"document.getElementById('result').dataset.state in {FINISHED}", 120)
        assert hidden(page, "error"), text(page, "error")
        assert "2 threads" in text(page, "method")
        assert text(page, "slim-parity").startswith("agrees")


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize(("width", "height"), [(390, 844), (1280, 900)])
def test_it_fits_the_window(page: Chromium, folder: Path, tmp_path: Path, width: int, height: int, dark: bool) -> None:
    """The first figures stand in the first window, and nothing is wider than it."""
    with served(folder) as url:
        if page.value("document.querySelectorAll('#chart svg').length") == 0:
            measured(page, url)
        page.size(width, height, dark)
        page.wait_for(
            f"innerWidth === {width} && document.querySelector('#chart svg').getBoundingClientRect().width > 200"
        )
        time.sleep(0.1)  # the chart is drawn anew
        assert page.value("document.documentElement.scrollWidth") <= width
        assert page.value("document.getElementById('ratio').getBoundingClientRect().bottom + scrollY") < height
        background = page.value("getComputedStyle(document.body).backgroundColor")
        assert background == ("rgb(15, 21, 20)" if dark else "rgb(244, 246, 246)")
        page.screenshot(tmp_path / "page.png")
        assert (tmp_path / "page.png").stat().st_size > 10_000


# --- the staircase


def test_the_staircase_is_a_file_to_download(page: Chromium, folder: Path, tmp_path: Path) -> None:
    with served(folder) as url:
        measured(page, url)
        assert hidden(page, "download")
        page.value("document.getElementById('measure-staircase').click()")
        page.wait_for(f"document.getElementById('staircase').dataset.state in {FINISHED}", 120)
        assert hidden(page, "staircase-error"), text(page, "staircase-error")
        assert text(page, "stairs").startswith("convolution, 16 in\nkernel 1x1, stride 1x1, size 40x40\n")
        page.send("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
        page.value("document.getElementById('download').click()")
        deadline = time.monotonic() + 20
        while not (tmp_path / "device.json").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert page.complaints() == []
    assert [point.width_out for point in read_device(tmp_path / "device.json").points] == list(WIDTHS)
    device = json.loads((tmp_path / "device.json").read_text(encoding="utf-8"))
    assert set(device) == {"format", "runtime", "cpu", "threads", "batch", "points"}
    assert device["format"] == "edgeprune-device/1"
    assert device["runtime"] == f"onnxruntime-web {RUNTIME_VERSION}"
    assert "Chrome" in device["cpu"]
    assert device["threads"] >= 1 and device["batch"] == 1
    times = [point.pop("ms") for point in device["points"]]
    assert device["points"] == [{"layer": LAYER, "width_in": 16, "width_out": width} for width in WIDTHS]
    assert 0 < times[0] < times[-1]


# --- what can go wrong


def broken(folder: Path, tmp_path: Path) -> Path:
    """A copy of the page to break; the large files are linked."""
    return Path(shutil.copytree(folder, tmp_path / "broken", copy_function=os.link))


def replaced(path: Path, content: bytes) -> None:
    path.unlink()  # the original shares its content
    path.write_bytes(content)


def test_a_network_that_gives_something_else_is_told(page: Chromium, folder: Path, tmp_path: Path) -> None:
    copy = broken(folder, tmp_path)
    expected = np.frombuffer((copy / "slim.output0.bin").read_bytes(), np.float32).copy()
    expected[3] += 0.5
    replaced(copy / "slim.output0.bin", expected.tobytes())
    with served(copy) as url:
        measured(page, url)
        assert "slim gives other outputs" in text(page, "badges")
        assert "dense gives what it should" in text(page, "badges")
        assert text(page, "slim-parity").startswith("DISAGREES on 16 inputs: largest error 5.0·10⁻¹, ")


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("slim.onnx", b"cut", r"slim.onnx ends after 3 of \d+ bytes. Export or upload it again."),
        ("dense.onnx", None, r"dense.onnx could not be fetched: the server answered 404."),
        ("runtime/ort.wasm.min.js", None, r"onnxruntime-web could not be loaded: "),
        ("runtime/ort-wasm-simd-threaded.wasm", None, r"onnxruntime-web cannot load dense.onnx: "),
        ("dense.onnx", "noise", r"onnxruntime-web cannot load dense.onnx: "),
        ("manifest.json", None, r"The page could not start: manifest.json could not be fetched"),
    ],
)
def test_errors_are_told_in_words(
    page: Chromium, folder: Path, tmp_path: Path, name: str, content: bytes | str | None, told: str
) -> None:
    copy = broken(folder, tmp_path)
    size = (copy / name).stat().st_size
    if content is None:
        (copy / name).unlink()
    else:
        replaced(copy / name, content if isinstance(content, bytes) else b"\xff" * size)
    with served(copy) as url:
        measured(page, url)
        assert not hidden(page, "error")
        assert page.value(f"new RegExp({json.dumps(told)}).test(document.getElementById('error').innerText)"), text(
            page, "error"
        )
        assert hidden(page, "figures") and hidden(page, "status")


def test_any_host_will_do_on_one_thread(page: Chromium, folder: Path) -> None:
    """A static host that sends none of the headers: no threads, and the page says why."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    handler = functools.partial(Quiet, directory=str(folder))
    with answering(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)) as url:
        measured(page, url)
        assert hidden(page, "error"), text(page, "error")
        assert not page.value("crossOriginIsolated")
        assert "One thread, and a coarse clock: the server sends no Cross-Origin-Opener-Policy" in text(
            page, "isolation"
        )
        assert page.value("document.getElementById('threads').options.length") == 1
        assert text(page, "dense-parity").startswith("agrees")
        assert float(text(page, "ratio")) < 0.8


# --- its figures


def test_its_statistics_are_those_of_numpy(page: Chromium, folder: Path) -> None:
    values = np.random.default_rng(0).gamma(2.0, size=101)
    slim = 0.5 * values
    with served(folder) as url:
        page.open(f"{url}statistics.js")
        found = page.value(
            f"""import('{url}statistics.js').then(({{quantile, ratioInterval}}) => {{
                const dense = {values.tolist()}, slim = {slim.tolist()};
                return [quantile(dense, 0.5), quantile(dense, 0.95), quantile([3], 0.95), ratioInterval(dense, slim)];
            }})"""
        )
    np.testing.assert_allclose(found[:2], np.quantile(values, [0.5, 0.95]), rtol=1e-12)
    assert found[2] == 3
    np.testing.assert_allclose(found[3], [0.5, 0.5], rtol=1e-12)
