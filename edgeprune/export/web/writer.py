"""The folder of `export --web`: a page that runs the dense and the slim network where they will be used.

    index.html page.css *.js      the page; it fetches nothing from elsewhere, and shows answers as the task asks for
    dense.onnx slim.onnx          the networks
    *.input0.bin *.output0.bin    real inputs, and what onnxruntime makes of them here: raw little-endian arrays
    width-*.onnx weights.bin      several widths of one network, where there are, with the weights that they share
    probes.bin                    layers at several widths, each an ONNX file: their times are the device's staircase
    runtime/                      onnxruntime-web
    manifest.json                 what there is, for the page

It works from any server of plain files; one that isolates the page from other origins gives it threads as well.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from jinja2 import Environment, PackageLoader, StrictUndefined

from edgeprune.errors import InputError
from edgeprune.export import ort
from edgeprune.export.ort import Feed
from edgeprune.export.parity import PARITY_TOLERANCE
from edgeprune.export.web.runtime import PACKAGE, RUNTIME_VERSION, WebRuntime, web_runtime
from edgeprune.export.web.widths import WebWidths, copied_weights, told_width
from edgeprune.files import check_new, named_as, staged_folder
from edgeprune.lines import printable
from edgeprune.records import TargetKind
from edgeprune.results import ExportedFile

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

MANIFEST_FORMAT = "edgeprune-web/1"
_MODULES = (
    "page.js",
    "answers.js",
    "charts.js",
    "statistics.js",
    "worker.js",
    "measure.js",
    "networks.js",
    "widths.js",
)
_PAGE = ("page.css", *_MODULES)
_MAX_RUNS = 16
_FLOAT_BYTES = 4
_MAX_INPUT_BYTES = 8 * 2**20  # what a phone fetches for the check, for each network
_MAX_MODEL_BYTES = 2**31 - 1  # the largest file that browsers take in one piece
# By onnxruntime's name: the array's type, in the byte order of every browser, and onnxruntime-web's name.
_TYPES = {
    "tensor(float)": ("<f4", "float32"),
    "tensor(float16)": ("<f2", "float16"),
    "tensor(double)": ("<f8", "float64"),
    "tensor(int64)": ("<i8", "int64"),
    "tensor(int32)": ("<i4", "int32"),
    "tensor(int16)": ("<i2", "int16"),
    "tensor(int8)": ("i1", "int8"),
    "tensor(uint8)": ("u1", "uint8"),
    "tensor(uint16)": ("<u2", "uint16"),
    "tensor(bool)": ("?", "bool"),
}


@dataclass(frozen=True, slots=True, eq=False)
class WebNetwork:
    """One network of the page: its ONNX file, and real inputs `(n, ...)` as it takes them, by name of several."""

    path: Path
    inputs: Feed


@dataclass(frozen=True, slots=True)
class WebTask:
    """What the page shows of the answers of both networks, on the first inputs.

    `kind` is that of the targets: numbers in their `unit`, flags as the `labels` that hold, masks as pictures; "none"
    and "other" show the raw outputs. `metric` is the name of what is measured. Of "classes" the best ones are counted,
    which is said beside the outputs' errors.
    """

    kind: TargetKind
    metric: str
    unit: str = ""
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class WebProbe:
    """One layer at some widths: a step of the staircase.

    `layer` is the same for layers that differ in their widths alone; `model` is an ONNX file that takes float32
    `inputs` of these shapes, with `batch` samples.
    """

    layer: str
    width_in: int
    width_out: int
    model: bytes
    inputs: Mapping[str, tuple[int, ...]]
    batch: int = 1


def check_web(folder: str | Path, force: bool = False) -> None:
    """Refuse early what `write_web` would refuse of its place.

    Raises:
        InputError: there is one and `force` is not given, or it cannot be written to.
    """
    check_new(folder, force, "folder")


def write_web(  # noqa: PLR0913 - one argument a decision of the caller
    folder: str | Path,
    dense: WebNetwork,
    slim: WebNetwork,
    *,
    title: str,
    facts: Sequence[tuple[str, str, str]] = (),
    probes: Sequence[WebProbe] = (),
    task: WebTask | None = None,
    widths: WebWidths | None = None,
    runtime: str | Path | WebRuntime = RUNTIME_VERSION,
    tolerance: float = PARITY_TOLERANCE,
    force: bool = False,
) -> tuple[ExportedFile, ...]:
    """Write the page that runs `dense` and `slim` in a browser; the folder appears whole or not at all.

    Args:
        folder: new, or replaced with `force`.
        dense: its inputs are the same samples as those of `slim`, in its own contract; the first few are used.
        slim: see `dense`.
        title: of the page, e.g. the model's name.
        facts: (what, dense, slim) of both networks, e.g. ("MACs", "300.8 M", "150.1 M").
        probes: what the staircase is measured with; none leaves it out.
        task: what is shown of the answers; None shows how far the outputs are off alone.
        widths: several of one network, which a slider chooses among; none leaves it out.
        runtime: as for `web_runtime`, or what that gave.
        tolerance: largest allowed error of an output, times max(1, largest expected output).

    Raises:
        InputError: the place, the runtime, a network or its inputs are wrong.
    """
    check_web(folder, force)
    taken = runtime if isinstance(runtime, WebRuntime) else web_runtime(runtime)
    with staged_folder(folder, force) as staged:
        networks = {name: _network(staged, name, one) for name, one in (("dense", dense), ("slim", slim))}
        _check_pair(networks)
        manifest = {
            "format": MANIFEST_FORMAT,
            "title": title,
            "runtime": {"name": PACKAGE, "version": taken.version},
            "tolerance": tolerance,
            "networks": networks,
            "probes": _probes(staged, probes),
            "probe_batch": probes[0].batch if probes else 1,
        }
        if widths is not None:
            manifest["widths"] = _widths(staged, widths)
        if task is not None:
            manifest["task"] = asdict(task)
        _write_runtime(staged, taken)
        _write_page(staged, manifest, facts)
        names = sorted(path.relative_to(staged) for path in staged.rglob("*") if path.is_file())
        sizes = {name: (staged / name).stat().st_size for name in names}
    return tuple(ExportedFile(str(Path(folder) / name), size, None) for name, size in sizes.items())


# --- networks


def _network(staged: Path, name: str, network: WebNetwork) -> dict[str, Any]:
    """Copy one network, run it on its first inputs, and write both down; returns its part of the manifest."""
    file = _copied(staged, name, network.path)
    with named_as(network.path, file):
        session = ort.session(file)  # of the copy: one that needs files beside it fails here, not on the phone
    given, kinds = _given(network, session)
    batch = _batch(network.path, session)
    runs = _runs(network.path, given, batch)
    outputs = [_outputs(session, network.path, run) for run in runs]
    return {
        "file": file.name,
        "bytes": file.stat().st_size,
        "batch": batch,
        "runs": len(runs),
        "inputs": [
            _tensor(staged, f"{name}.input{index}.bin", (own, kinds[own]), [run[own] for run in runs])
            for index, own in enumerate(given)
        ],
        "outputs": [
            _output(staged, f"{name}.output{index}.bin", spec, network.path, [run[index] for run in outputs])
            for index, spec in enumerate(session.get_outputs())
        ],
    }


def _widths(staged: Path, widths: WebWidths) -> dict[str, Any]:
    """Copy the graphs of all widths and the weights that they share; returns their part of the manifest."""
    weights = copied_weights(staged, widths)
    networks = [
        {**_network(staged, f"width-{file.stem}", WebNetwork(file, widths.inputs)), **told_width(file)}
        for file in widths.files
    ]
    return {"weights": weights, "networks": networks}


def _given(network: WebNetwork, session: InferenceSession) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The inputs by name, in the file's order and in types of a browser, and the browser's names of these."""
    specs = {spec.name: spec for spec in session.get_inputs()}
    feed = network.inputs if isinstance(network.inputs, Mapping) else {next(iter(specs)): network.inputs}
    if set(feed) != set(specs):
        raise InputError(f"{network.path}: inputs: expected {', '.join(specs)}, got {', '.join(feed)}")
    types = {name: _type_of(network.path, spec) for name, spec in specs.items()}
    given = {name: feed[name].astype(array_type, copy=False) for name, (array_type, _) in types.items()}
    return given, {name: kind for name, (_, kind) in types.items()}


def _batch(path: Path, session: InferenceSession) -> int:
    """The samples of one run: as many as a file with a fixed batch takes, else one."""
    fixed = {spec.shape[0] for spec in session.get_inputs() if spec.shape and isinstance(spec.shape[0], int)}
    if len(fixed) > 1:
        raise InputError(
            f"{path}: inputs: expected one batch for all of them, got {', '.join(map(str, sorted(fixed)))}"
        )
    return next(iter(fixed), 1)


def _copied(staged: Path, name: str, path: Path) -> Path:
    if not path.is_file():
        raise InputError(f"{path}: expected an ONNX file, got {'a folder' if path.is_dir() else 'nothing there'}")
    if path.stat().st_size > _MAX_MODEL_BYTES:
        raise InputError(f"{path}: expected at most 2 GiB, which is all that a browser takes, got more")
    return Path(shutil.copyfile(path, staged / f"{name}.onnx"))


def _type_of(path: Path, spec: Any) -> tuple[str, str]:
    if spec.type not in _TYPES:
        raise InputError(f"{path}: {spec.name}: expected a type that browsers have, got {spec.type}")
    return _TYPES[spec.type]


def _runs(path: Path, given: Mapping[str, np.ndarray], batch: int) -> list[dict[str, np.ndarray]]:
    """The first inputs, batch by batch: as many as a phone should fetch."""
    for name, array in given.items():
        if array.ndim == 0 or len(array) < batch:
            raise InputError(f"{path}: {name}: expected at least {batch} for one batch, got shape {array.shape}")
    run_bytes = max(1, sum(array[:batch].nbytes for array in given.values()))
    n_rows = min(len(array) for array in given.values())
    n_runs = max(1, min(_MAX_RUNS, n_rows // batch, _MAX_INPUT_BYTES // run_bytes))
    chunks = [slice(i * batch, (i + 1) * batch) for i in range(n_runs)]
    return [{name: np.ascontiguousarray(array[rows]) for name, array in given.items()} for rows in chunks]


def _outputs(session: InferenceSession, path: Path, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    try:
        return ort.run_by_name(session, feed)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _output(staged: Path, file: str, spec: Any, path: Path, runs: Sequence[np.ndarray]) -> dict[str, Any]:
    array_type, web_type = _type_of(path, spec)
    if any(run.shape != runs[0].shape for run in runs):
        raise InputError(
            f"{path}: {spec.name}: expected one shape for every input, got {sorted({r.shape for r in runs})}"
        )
    if any(np.isnan(run).any() for run in runs):
        raise InputError(f"{path}: {spec.name}: expected numbers, got NaN; the page could check nothing against it")
    return _tensor(staged, file, (spec.name, web_type), [run.astype(array_type) for run in runs])


def _tensor(staged: Path, file: str, named: tuple[str, str], runs: Sequence[np.ndarray]) -> dict[str, Any]:
    """Write the arrays of all runs one after the other; `named` is the tensor's name and its type in the browser."""
    content = b"".join(run.tobytes() for run in runs)
    (staged / file).write_bytes(content)
    name, kind = named
    return {"name": name, "type": kind, "shape": list(runs[0].shape), "file": file, "bytes": len(content)}


def _check_pair(networks: Mapping[str, Mapping[str, Any]]) -> None:
    """Both are timed side by side, so they take the same batch; the check may use as many inputs as each allows."""
    batches = [networks[name]["batch"] for name in ("dense", "slim")]
    if batches[0] != batches[1]:
        raise InputError(f"expected the same batch for both networks, got {batches[0]} and {batches[1]}")


# --- the staircase


def _probes(staged: Path, probes: Sequence[WebProbe]) -> list[dict[str, Any]]:
    """Write the layers one after the other; returns their part of the manifest."""
    listed: list[dict[str, Any]] = []
    offset = 0
    for probe in probes:
        if probe.batch != probes[0].batch:
            raise InputError(f"{_named(probe)}: expected batch {probes[0].batch} as of the others, got {probe.batch}")
        place = {"layer": probe.layer, "width_in": probe.width_in, "width_out": probe.width_out}
        inputs = [{"name": name, "shape": list(shape)} for name, shape in probe.inputs.items()]
        size = {"offset": offset, "bytes": len(probe.model), "weight_bytes": _weight_bytes(probe)}
        listed.append({**place, **size, "inputs": inputs})
        offset += len(probe.model)
    if probes:
        (staged / "probes.bin").write_bytes(b"".join(probe.model for probe in probes))
    return listed


def _weight_bytes(probe: WebProbe) -> int:
    """What a layer's weights take in memory, those included that the runtime makes itself from their shape."""
    try:
        graph = onnx.load_model_from_string(probe.model).graph
    except Exception as error:  # protobuf's class of it is not public
        raise InputError(f"{_named(probe)}: expected an ONNX model, got something else") from error
    constants = {tensor.name: tensor for tensor in graph.initializer}
    _check_inputs(probe, graph)
    shapes = [list(tensor.dims) for tensor in constants.values()]
    shapes += [
        onnx.numpy_helper.to_array(constants[node.input[0]]).tolist()
        for node in graph.node
        if node.op_type == "ConstantOfShape" and node.input[0] in constants
    ]
    return sum(map(math.prod, shapes)) * _FLOAT_BYTES


def _check_inputs(probe: WebProbe, graph: onnx.GraphProto) -> None:
    held = {tensor.name for tensor in graph.initializer}
    inputs = {value.name: value.type.tensor_type.elem_type for value in graph.input if value.name not in held}
    if set(inputs) != set(probe.inputs) or set(inputs.values()) - {onnx.TensorProto.FLOAT}:
        raise InputError(f"{_named(probe)}: expected float32 inputs {sorted(probe.inputs)}, got {sorted(inputs)}")


def _named(probe: WebProbe) -> str:
    return f"probe {probe.layer} of {probe.width_in} and {probe.width_out} channels"


# --- the page


def _write_runtime(staged: Path, runtime: WebRuntime) -> None:
    (staged / "runtime").mkdir()
    for name, content in runtime.files.items():
        (staged / "runtime" / name).write_bytes(content)


def _inputs(networks: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, Any, Any]]:
    """(name, dense, slim) of each input, None where a network has none of that name; a single one needs no name."""
    dense, slim = (networks[name]["inputs"] for name in ("dense", "slim"))
    if len(dense) == len(slim) == 1:
        return [("", dense[0], slim[0])]
    others = {one["name"]: one for one in slim}
    return [(one["name"], one, others.get(one["name"])) for one in dense]


def _write_page(staged: Path, manifest: Mapping[str, Any], facts: Sequence[tuple[str, str, str]]) -> None:
    environment = Environment(
        loader=PackageLoader("edgeprune.export.web", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template, inputs = environment.get_template("index.html.j2"), _inputs(manifest["networks"])
    page = printable(template.render(manifest=manifest, facts=facts, inputs=inputs))
    (staged / "index.html").write_text(page, encoding="utf-8")
    (staged / "manifest.json").write_text(json.dumps(manifest, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    for name in _PAGE:
        (staged / name).write_bytes(resources.files("edgeprune.export.web").joinpath("page", name).read_bytes())
