"""The folder of `export --web`: what is written, and what is refused of a runtime that comes from anywhere."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import shutil
import sys
import tarfile
from collections.abc import Callable, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeprune.errors import InputError
from edgeprune.export.web import WebNetwork, WebProbe, check_web, write_web
from edgeprune.export.web.runtime import MODULES, web_runtime
from edgeprune.export.web.widths import WebWidths

FILES = {
    "package.json": json.dumps({"name": "onnxruntime-web", "version": "1.30.0"}).encode(),
    "dist/ort.wasm.min.mjs": b"export const InferenceSession = null;",
    "dist/ort-wasm-simd-threaded.mjs": b"export default null;",
    "dist/ort-wasm-simd-threaded.wasm": b"\0asm\x01\0\0\0",
    "dist/ort.all.min.mjs": b"not wanted",
}
SCRIPTS = ("page", "answers", "charts", "statistics", "worker", "measure", "networks", "widths")
PAGE = {"index.html", "page.css", *(f"{name}.js" for name in SCRIPTS)}


# --- networks and packages to work with


def linear(n_inputs: int, batch: int | str = "batch", kind: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """`(batch, n_inputs)` to logits `(batch, 3)` and their largest `(batch, 1)`."""
    weight = (
        np.random.default_rng(n_inputs).standard_normal((n_inputs, 3)).astype(helper.tensor_dtype_to_np_dtype(kind))
    )
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "weight"], ["logits"]),
            helper.make_node("ReduceMax", ["logits"], ["largest"], keepdims=1, axes=[1]),
        ],
        "linear",
        [helper.make_tensor_value_info("x", kind, [batch, n_inputs])],
        [
            helper.make_tensor_value_info("logits", kind, [batch, 3]),
            helper.make_tensor_value_info("largest", kind, [batch, 1]),
        ],
        [numpy_helper.from_array(weight, "weight")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[WebNetwork, WebNetwork]:
    """A dense network of 8 features and a slim one of 5 of them, with 40 samples."""
    inputs = np.random.default_rng(0).standard_normal((40, 8)).astype(np.float32)
    onnx.save(linear(8), tmp_path / "big.onnx")
    onnx.save(linear(5), tmp_path / "small.onnx")
    return WebNetwork(tmp_path / "big.onnx", inputs), WebNetwork(tmp_path / "small.onnx", inputs[:, :5])


def unpacked(folder: Path, files: Mapping[str, bytes] = FILES) -> Path:
    """An onnxruntime-web package as npm unpacks it."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def member(name: str, content: bytes = b"", **changes: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in changes.items():
        setattr(info, key, value)
    return info, content


def packed(path: Path, *extra: tuple[tarfile.TarInfo, bytes], files: Mapping[str, bytes] = FILES) -> Path:
    """An onnxruntime-web package as npm packs it, with `extra` members before its own."""
    with tarfile.open(path, "w:gz") as tar:
        for info, content in (*extra, *(member(f"package/{name}", content) for name, content in files.items())):
            tar.addfile(info, io.BytesIO(content) if info.isreg() else None)
    return path


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return unpacked(tmp_path / "onnxruntime-web")


def without(name: str) -> dict[str, bytes]:
    return {key: content for key, content in FILES.items() if key != name}


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def manifest_of(folder: Path) -> Any:
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


def array_of(folder: Path, tensor: Mapping[str, Any], runs: int) -> np.ndarray:
    content = (folder / tensor["file"]).read_bytes()
    assert len(content) == tensor["bytes"]
    return np.frombuffer(content, dtype=tensor["type"]).reshape(runs, *tensor["shape"])


# --- what is written


def test_the_folder_has_all_that_the_page_needs(
    tmp_path: Path, package: Path, pair: tuple[WebNetwork, WebNetwork]
) -> None:
    files = write_web(tmp_path / "web", *pair, title="linear", runtime=package)
    names = {str(Path(file.path).relative_to(tmp_path / "web")) for file in files}
    assert names == files_below(tmp_path / "web")
    assert names == {
        *PAGE,
        "manifest.json",
        *(
            f"{net}.{kind}"
            for net in ("dense", "slim")
            for kind in ("onnx", "input0.bin", "output0.bin", "output1.bin")
        ),
        *(f"runtime/{name}" for name in MODULES.values()),
    }
    assert all(file.size_bytes == Path(file.path).stat().st_size for file in files)
    assert (tmp_path / "web" / "dense.onnx").read_bytes() == pair[0].path.read_bytes()


def test_expected_outputs_are_those_of_onnxruntime_on_the_inputs_beside_them(
    tmp_path: Path, package: Path, pair: tuple[WebNetwork, WebNetwork]
) -> None:
    write_web(tmp_path / "web", *pair, title="linear", runtime=package)
    manifest = manifest_of(tmp_path / "web")
    for name, network in zip(("dense", "slim"), pair, strict=True):
        listed = manifest["networks"][name]
        assert (listed["batch"], listed["runs"]) == (1, 16)
        inputs = array_of(tmp_path / "web", listed["inputs"][0], 16)[:, 0]
        np.testing.assert_array_equal(inputs, network.inputs[:16])
        wanted = onnxruntime.InferenceSession(network.path).run(None, {"x": inputs})
        for tensor, want in zip(listed["outputs"], wanted, strict=True):
            np.testing.assert_allclose(array_of(tmp_path / "web", tensor, 16)[:, 0], want, rtol=1e-6)
        assert [tensor["name"] for tensor in listed["outputs"]] == ["logits", "largest"]


def test_a_fixed_batch_is_run_as_it_is(tmp_path: Path, package: Path) -> None:
    onnx.save(linear(8, batch=3), tmp_path / "three.onnx")
    network = WebNetwork(tmp_path / "three.onnx", np.ones((10, 8)))  # float64: taken as the network's type
    write_web(tmp_path / "web", network, network, title="three", runtime=package)
    listed = manifest_of(tmp_path / "web")["networks"]["slim"]
    assert (listed["batch"], listed["runs"], listed["inputs"][0]["shape"]) == (3, 3, [3, 8])


def test_large_inputs_are_cut_to_what_a_phone_should_fetch(tmp_path: Path, package: Path) -> None:
    onnx.save(linear(2**20), tmp_path / "wide.onnx")
    network = WebNetwork(tmp_path / "wide.onnx", np.ones((3, 2**20), np.float32))
    write_web(tmp_path / "web", network, network, title="wide", runtime=package)
    assert manifest_of(tmp_path / "web")["networks"]["dense"]["runs"] == 2


def test_raw_bytes_in_are_kept_as_bytes(tmp_path: Path, package: Path) -> None:
    model = linear(8)
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    model.graph.node.insert(0, helper.make_node("Cast", ["x"], ["float"], to=TensorProto.FLOAT))
    model.graph.node[1].input[0] = "float"
    onnx.save(model, tmp_path / "bytes.onnx")
    network = WebNetwork(tmp_path / "bytes.onnx", np.full((2, 8), 200, np.uint8))
    write_web(tmp_path / "web", network, network, title="bytes", runtime=package)
    listed = manifest_of(tmp_path / "web")["networks"]["dense"]
    assert listed["inputs"][0]["type"] == "uint8"
    assert (array_of(tmp_path / "web", listed["inputs"][0], 2) == 200).all()


def mixed(batch: int | str = "batch") -> onnx.ModelProto:
    """A picture `(batch, 1, 2, 2)` float and ids `(batch, 3)` int64 to logits `(batch, 3)`."""
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["image"], ["mean"], keepdims=0, axes=[1, 2, 3]),
            helper.make_node("Unsqueeze", ["mean", "one"], ["column"]),
            helper.make_node("Cast", ["ids"], ["numbers"], to=TensorProto.FLOAT),
            helper.make_node("Add", ["column", "numbers"], ["logits"]),
        ],
        "mixed",
        [
            helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 1, 2, 2]),
            helper.make_tensor_value_info("ids", TensorProto.INT64, [batch, 3]),
        ],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 3])],
        [numpy_helper.from_array(np.array([1]), "one")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(("batch", "rows"), [("batch", 1), (2, 2)])
def test_several_inputs_lie_beside_each_other(tmp_path: Path, package: Path, batch: int | str, rows: int) -> None:
    """In the file's order, whatever that of the dict, each in its own type."""
    onnx.save(mixed(batch), tmp_path / "mixed.onnx")
    rng = np.random.default_rng(0)
    given = {"ids": rng.integers(0, 9, (12, 3)), "image": rng.random((12, 1, 2, 2), dtype=np.float32)}
    network = WebNetwork(tmp_path / "mixed.onnx", given)
    write_web(tmp_path / "web", network, network, title="two", runtime=package)
    listed = manifest_of(tmp_path / "web")["networks"]["dense"]
    assert [(one["name"], one["type"]) for one in listed["inputs"]] == [("image", "float32"), ("ids", "int64")]
    image, ids = (array_of(tmp_path / "web", one, listed["runs"]) for one in listed["inputs"])
    assert image.shape == (12 // rows, rows, 1, 2, 2) and ids.dtype == np.int64
    np.testing.assert_array_equal(ids.reshape(12, 3), given["ids"])
    logits = array_of(tmp_path / "web", listed["outputs"][0], listed["runs"])
    np.testing.assert_allclose(logits.reshape(12, 3), given["image"].mean((1, 2, 3))[:, None] + given["ids"], rtol=1e-6)
    page = (tmp_path / "web" / "index.html").read_text()
    assert "Input image" in page and "Input ids" in page and "int64" in page


def test_inputs_by_other_names_are_refused(tmp_path: Path, package: Path) -> None:
    onnx.save(mixed(), tmp_path / "mixed.onnx")
    given = {"image": np.zeros((2, 1, 2, 2), np.float32), "mask": np.zeros((2, 3), np.int64)}
    one = WebNetwork(tmp_path / "mixed.onnx", given)
    assert "inputs: expected image, ids, got image, mask" in refused(tmp_path, one, one, runtime=package)


def test_weights_of_widths_have_the_one_name_that_no_other_file_has(
    tmp_path: Path, package: Path, pair: tuple[WebNetwork, WebNetwork]
) -> None:
    folder = tmp_path / "widths"
    folder.mkdir()

    def page(location: str) -> WebWidths:
        for name in ("0.5", "1"):
            kept = {"save_as_external_data": True, "location": location, "size_threshold": 0}
            (folder / location).unlink(missing_ok=True)
            onnx.save(linear(8), folder / f"{name}.onnx", **kept)
        return WebWidths(folder, pair[0].inputs)

    for location in ("slim.input0.bin", "index.html"):
        told = rf"widths: expected the graphs' weights in weights.bin beside them alone, got '{location}'"
        with pytest.raises(InputError, match=told):
            write_web(tmp_path / "web", *pair, title="linear", widths=page(location), runtime=package)
        (folder / location).unlink()
    write_web(tmp_path / "web", *pair, title="linear", widths=page("weights.bin"), runtime=package)
    assert manifest_of(tmp_path / "web")["widths"]["weights"] == {"file": "weights.bin", "bytes": 96}


def test_widths_whose_weights_are_all_small_share_no_file(
    tmp_path: Path, package: Path, pair: tuple[WebNetwork, WebNetwork]
) -> None:
    folder = tmp_path / "widths"
    folder.mkdir()
    (folder / "weights.bin").touch()  # as a run has it
    for name in ("0.5", "1"):
        onnx.save(linear(8), folder / f"{name}.onnx")
    widths = WebWidths(folder, pair[0].inputs)
    write_web(tmp_path / "web", *pair, title="linear", widths=widths, runtime=package)
    told = manifest_of(tmp_path / "web")["widths"]
    assert told["weights"] is None and [one["name"] for one in told["networks"]] == ["0.5", "1"]
    assert not (tmp_path / "web" / "weights.bin").exists()


def test_probes_lie_in_one_file_that_the_manifest_lists(
    tmp_path: Path, package: Path, pair: tuple[WebNetwork, WebNetwork]
) -> None:
    probes = [WebProbe("linear <rows> 1", n, 3, linear(n, 1).SerializeToString(), {"x": (1, n)}) for n in (8, 16)]
    write_web(tmp_path / "web", *pair, title="linear", probes=probes, runtime=package)
    manifest = manifest_of(tmp_path / "web")
    content = (tmp_path / "web" / "probes.bin").read_bytes()
    assert manifest["probe_batch"] == 1
    for listed, probe in zip(manifest["probes"], probes, strict=True):
        assert (listed["layer"], listed["width_in"], listed["width_out"]) == (probe.layer, probe.width_in, 3)
        assert content[listed["offset"] :][: listed["bytes"]] == probe.model
        assert listed["inputs"] == [{"name": "x", "shape": [1, probe.width_in]}]
        assert listed["weight_bytes"] == 4 * 3 * probe.width_in


def test_weights_that_the_runtime_makes_count_too(
    tmp_path: Path, package: Path, pair: tuple[WebNetwork, WebNetwork]
) -> None:
    """A phone has to hold them, however small the file."""
    model = linear(100, 1)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.array([100, 3]), "shape"))
    model.graph.node.insert(0, helper.make_node("ConstantOfShape", ["shape"], ["weight"]))
    probe = WebProbe("linear rows 1", 100, 3, model.SerializeToString(), {"x": (1, 100)})
    write_web(tmp_path / "web", *pair, title="linear", probes=[probe], runtime=package)
    assert manifest_of(tmp_path / "web")["probes"][0]["weight_bytes"] == 4 * (100 * 3 + 2)


class _Elements(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_text_is_escaped(tmp_path: Path, package: Path, pair: tuple[WebNetwork, WebNetwork]) -> None:
    evil = "\"><script>alert(1)</script><img src=x onerror='alert(2)'>"
    write_web(tmp_path / "web", *pair, title=evil, facts=[(evil, evil, evil)], runtime=package)
    elements = _Elements((tmp_path / "web" / "index.html").read_text(encoding="utf-8")).found
    assert [attributes.get("src") for tag, attributes in elements if tag == "script"] == ["page.js"]
    assert not [tag for tag, _ in elements if tag == "img"]
    assert manifest_of(tmp_path / "web")["title"] == evil


def test_the_page_needs_nothing_from_elsewhere_and_its_policy_says_so(
    tmp_path: Path, package: Path, pair: tuple[WebNetwork, WebNetwork]
) -> None:
    write_web(tmp_path / "web", *pair, title="linear", runtime=package)
    for name in PAGE:
        text = (tmp_path / "web" / name).read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|@import|innerHTML|insertAdjacentHTML|\beval\(", text), name
    elements = _Elements((tmp_path / "web" / "index.html").read_text(encoding="utf-8")).found
    for tag, attributes in elements:
        assert "style" not in attributes and not any(key.startswith("on") for key in attributes)
        assert not (tag == "style" or tag == "script" and "src" not in attributes)
    [policy] = [a["content"] or "" for _, a in elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe-inline" not in policy and "'unsafe-eval'" not in policy


def test_an_existing_folder_is_replaced_only_with_force(
    tmp_path: Path, package: Path, pair: tuple[WebNetwork, WebNetwork]
) -> None:
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "old").touch()
    with pytest.raises(InputError, match="--force replaces it"):
        check_web(tmp_path / "web")
    with pytest.raises(InputError, match="--force replaces it"):
        write_web(tmp_path / "web", *pair, title="linear", runtime=package)
    write_web(tmp_path / "web", *pair, title="linear", runtime=package, force=True)
    assert "old" not in files_below(tmp_path / "web")


# --- networks that are refused


def refused(folder: Path, *pair: WebNetwork, runtime: Path, **options: Any) -> str:
    """Why the export is refused; nothing is left of it."""
    before = set(folder.iterdir())
    dense, slim = pair
    with pytest.raises(InputError) as error:
        write_web(folder / "web", dense, slim, title="refused", runtime=runtime, **options)
    assert set(folder.iterdir()) == before
    return str(error.value)


def test_networks_that_a_browser_cannot_run_are_refused(
    tmp_path: Path, package: Path, pair: tuple[WebNetwork, WebNetwork]
) -> None:
    dense, slim = pair

    def told(network: WebNetwork) -> str:
        return refused(tmp_path, dense, network, runtime=package)

    assert "expected an ONNX file, got nothing there" in told(WebNetwork(tmp_path / "missing.onnx", slim.inputs))
    (tmp_path / "text.onnx").write_text("no network")
    assert f"{tmp_path / 'text.onnx'}: onnxruntime cannot load it" in told(
        WebNetwork(tmp_path / "text.onnx", slim.inputs)
    )
    assert "input 'x' of shape (1, 8): onnxruntime failed" in told(WebNetwork(slim.path, dense.inputs))
    assert "expected at least 1 for one batch" in told(WebNetwork(slim.path, slim.inputs[:0]))
    nan = np.full_like(slim.inputs, np.nan)
    assert "logits: expected numbers, got NaN" in told(WebNetwork(slim.path, nan))
    onnx.save(linear(5, batch=2), tmp_path / "two.onnx")
    assert "the same batch for both networks, got 1 and 2" in told(WebNetwork(tmp_path / "two.onnx", slim.inputs))


def test_a_network_in_several_files_is_refused(
    tmp_path: Path, package: Path, pair: tuple[WebNetwork, WebNetwork]
) -> None:
    """The page fetches one file; this one runs here, where the other lies beside it."""
    path = tmp_path / "split.onnx"
    onnx.save(linear(5), path, save_as_external_data=True, location="split.data", size_threshold=0)
    onnxruntime.InferenceSession(path)
    assert f"{path}: onnxruntime cannot load it" in refused(
        tmp_path, pair[0], WebNetwork(path, pair[1].inputs), runtime=package
    )


def test_types_that_browsers_lack_are_refused(
    tmp_path: Path, package: Path, pair: tuple[WebNetwork, WebNetwork]
) -> None:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "words",
        [helper.make_tensor_value_info("x", TensorProto.STRING, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.STRING, ["n"])],
    )
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "w.onnx")
    words = WebNetwork(tmp_path / "w.onnx", np.array(["a", "b"]))
    assert "x: expected a type that browsers have, got tensor(string)" in refused(
        tmp_path, words, words, runtime=package
    )


@pytest.mark.parametrize(
    ("probe", "told"),
    [
        (WebProbe("mul", 8, 4, b"\xff\xffno model", {"x": (1, 8)}), "probe mul of 8 and 4 channels: expected an ONNX"),
        (
            WebProbe("mul", 8, 3, linear(8).SerializeToString(), {"y": (1, 8)}),
            "expected float32 inputs ['y'], got ['x']",
        ),
        (
            WebProbe("mul", 8, 3, linear(8, kind=TensorProto.DOUBLE).SerializeToString(), {"x": (1, 8)}),
            "expected float32 inputs ['x']",
        ),
        (
            WebProbe("mul", 8, 3, linear(8).SerializeToString(), {"x": (2, 8)}, batch=2),
            "expected batch 1 as of the others",
        ),
    ],
)
def test_probes_that_are_none_are_refused(
    tmp_path: Path, package: Path, pair: tuple[WebNetwork, WebNetwork], probe: WebProbe, told: str
) -> None:
    fine = WebProbe("mul", 16, 3, linear(16, 1).SerializeToString(), {"x": (1, 16)})
    assert told in refused(tmp_path, *pair, runtime=package, probes=[fine, probe])


# --- the runtime


def test_a_package_is_read_from_wherever_it_lies(tmp_path: Path, package: Path) -> None:
    (tmp_path / "node_modules").mkdir()
    package.rename(tmp_path / "node_modules" / "onnxruntime-web")
    found = [
        web_runtime(tmp_path / "node_modules"),
        web_runtime(str(tmp_path / "node_modules" / "onnxruntime-web")),
        web_runtime(packed(tmp_path / "package.tgz")),
    ]
    for one in found:
        assert one.version == "1.30.0"
        assert one.files == {MODULES[name]: FILES[name] for name in MODULES}


def test_a_package_behind_a_link_is_read(tmp_path: Path, package: Path) -> None:
    """As pnpm lays packages out."""
    (tmp_path / "node_modules").mkdir()
    (tmp_path / "node_modules" / "onnxruntime-web").symlink_to(package)
    assert web_runtime(tmp_path / "node_modules").version == "1.30.0"


@pytest.mark.parametrize(
    ("files", "told"),
    [
        (without("package.json"), "expected the npm package onnxruntime-web, got no package.json that says so"),
        ({**FILES, "package.json": b"{"}, "got no package.json that says so"),
        ({**FILES, "package.json": b"[" * 100_000}, "got no package.json that says so"),
        (
            {**FILES, "package.json": b'{"name": "left-pad", "version": "1.30.0"}'},
            "expected the npm package onnxruntime-web",
        ),
        (
            {**FILES, "package.json": b'{"name": "onnxruntime-web", "version": "<script>"}'},
            "version: expected one such as 1.30.0, got '<script>'",
        ),
        (
            {**FILES, "package.json": b'{"name": "onnxruntime-web", "version": 1}'},
            "expected one such as 1.30.0, got 1",
        ),
        (without("dist/ort.wasm.min.mjs"), "expected dist/ort.wasm.min.mjs in onnxruntime-web 1.30.0, got none"),
        ({**FILES, "dist/ort-wasm-simd-threaded.wasm": b"MZ"}, "expected WebAssembly, got something else"),
    ],
)
def test_other_packages_are_refused(tmp_path: Path, files: dict[str, bytes], told: str) -> None:
    for source in (unpacked(tmp_path / "folder", files), packed(tmp_path / "package.tgz", files=files)):
        with pytest.raises(InputError, match=re.escape(told)) as error:
            web_runtime(source)
        assert str(source) in str(error.value)


def test_a_link_out_of_a_package_is_not_followed(tmp_path: Path, package: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (package / "dist" / "ort.wasm.min.mjs").unlink()
    (package / "dist" / "ort.wasm.min.mjs").symlink_to(tmp_path / "secret")
    with pytest.raises(InputError, match="expected a file of the package, got a link that leaves it"):
        web_runtime(package)


def test_members_that_would_leave_the_folder_are_never_written(
    tmp_path: Path, pair: tuple[WebNetwork, WebNetwork]
) -> None:
    evil = [
        member("../../evil", b"x"),
        member("/tmp/edgeprune-evil", b"x"),
        member("package/dist/../../../evil", b"x"),
        member("package/dist", type=tarfile.SYMTYPE, linkname=str(tmp_path)),
        member("package/README.md", b"x"),
    ]
    write_web(tmp_path / "web", *pair, title="linear", runtime=packed(tmp_path / "package.tgz", *evil))
    assert {path.name for path in (tmp_path / "web" / "runtime").iterdir()} == set(MODULES.values())
    assert {path.name for path in tmp_path.iterdir()} == {"web", "package.tgz", "big.onnx", "small.onnx"}
    assert not os.path.lexists("/tmp/edgeprune-evil")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE])
def test_a_wanted_file_that_is_a_link_is_refused(tmp_path: Path, kind: bytes) -> None:
    link = member("package/dist/ort.wasm.min.mjs", type=kind, linkname="/etc/passwd")
    with pytest.raises(InputError, match="expected a file, got a link or something else"):
        web_runtime(packed(tmp_path / "package.tgz", link))


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A member's header alone, whatever follows."""
    return member(name, size=size, type=kind)[0].tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (header("package/package.json", 2**40), "expected a file of at most 64 MiB"),
        (header("package/other", 2**40), "expected at most 1024 MiB unpacked"),
        (header("././@LongLink", 2**40, tarfile.GNUTYPE_LONGNAME), "expected a file of at most 64 MiB"),
        (header("pax", 2**40, tarfile.XHDTYPE), "expected a file of at most 64 MiB"),
        (header("package/package.json", 1000) + b"{", "damaged"),
        (b"".join(header(f"package/{i}", 0) for i in range(10_001)), "expected at most 10,000 files"),
        (b"no archive" * 200, "damaged"),
        (b"", "damaged"),
    ],
)
def test_archives_that_claim_too_much_or_are_damaged_are_refused(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "package.tgz"
    path.write_bytes(gzip.compress(content))
    with pytest.raises(InputError, match=told):
        web_runtime(path)


def test_an_archive_that_grows_without_end_is_refused(tmp_path: Path) -> None:
    """70 MB of zeros in 70 kB: more than any file of the package has."""
    path = tmp_path / "package.tgz"
    with gzip.open(path, "wb") as file:
        file.write(header("package/package.json", 70 << 20))
        for _ in range(70):
            file.write(bytes(1 << 20))
    with pytest.raises(InputError, match="expected a file of at most 64 MiB"):
        web_runtime(path)


@pytest.mark.parametrize("damage", [lambda raw: raw[:-5], lambda raw: raw[:-6] + b"\0\0" + raw[-4:]])
def test_an_archive_that_came_damaged_is_refused(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    """Though all that is wanted can be read: it may not be what was sent."""
    path = packed(tmp_path / "package.tgz")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=r"package.tgz: expected the .tgz of an npm package, got a damaged"):
        web_runtime(path)


# --- npm


@pytest.fixture
def no_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder as PATH."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path / "bin"


def test_without_npm_the_advice_is_a_path(no_commands: Path) -> None:
    with pytest.raises(InputError, match="expected npm .* got none .* install Node.js, or give --web-runtime the path"):
        web_runtime()


def as_npm(folder: Path, script: str) -> None:
    """A command of that name."""
    (folder / "npm").write_text(f"#!{sys.executable}\n{script}")
    (folder / "npm").chmod(0o755)


def test_a_registry_that_gives_another_version_is_refused(tmp_path: Path, no_commands: Path) -> None:
    archive = packed(tmp_path / "package.tgz")
    as_npm(
        no_commands,
        f"import shutil, sys; shutil.copy({str(archive)!r}, sys.argv[sys.argv.index('--pack-destination') + 1])",
    )
    assert web_runtime("1.30").version == "1.30.0"
    with pytest.raises(InputError, match="expected version 1.29.0, got 1.30.0"):
        web_runtime("1.29.0")


def test_what_npm_says_is_told_without_addresses(no_commands: Path) -> None:
    as_npm(
        no_commands,
        "import sys\n"
        "sys.exit('npm error code E404\\nnpm error 404 Not Found - GET https://u:secret@host.example/x - gone')",
    )
    with pytest.raises(InputError, match="npm cannot fetch it: E404, Not Found - GET the registry - gone; ") as error:
        web_runtime("1.30.0")
    assert "secret" not in str(error.value) and "host.example" not in str(error.value)


@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")
def test_a_registry_that_does_not_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9/")
    monkeypatch.setenv("npm_config_fetch_retries", "0")
    with pytest.raises(InputError, match="npm cannot fetch it: E.*; give --web-runtime the path"):
        web_runtime("1.28.77")


@pytest.mark.parametrize("source", ["latest", "1", "1.30.0; rm -rf /", "--registry=x", "../../x", "1.30.0@evil"])
def test_only_versions_and_paths_are_taken(source: str) -> None:
    with pytest.raises(InputError, match="expected a version such as 1.30.0 or a path, got nothing there"):
        web_runtime(source)
