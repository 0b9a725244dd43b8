"""A hostile .pt2 is refused, and nothing in it runs: each attack is built here, on a file that otherwise loads."""

from __future__ import annotations

import base64
import io
import json
import os
import pickle
import random
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from edgeprune.errors import InputError, UnsafeFileError
from edgeprune.formats.load import load
from edgeprune.formats.pt2 import read_program, write_program
from edgeprune.formats.pt2.archive import write_records
from edgeprune.formats.pt2.document import _metadata, checked, parsed
from edgeprune.formats.pt2.expressions import checked_expression
from edgeprune.formats.pt2.operators import checked_operator
from edgeprune.graph.capture import capture, example_inputs

MODEL = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"
SAMPLES = "data/sample_inputs/model.pt"


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.head = nn.Linear(4 * 4, 3)
        self.register_buffer("order", torch.tensor([2, 0, 1]), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.conv(x))
        x = x.reshape(x.shape[0] * 2, -1).reshape(x.shape[0], -1)
        return self.head(x)[:, self.order] * torch.tensor([1.0, 2.0, 3.0])


@pytest.fixture(scope="module")
def plain() -> dict[str, bytes]:
    """The records of a .pt2 that plain torch.export.save wrote."""
    torch.manual_seed(0)
    program = torch.export.export(Net().eval(), (torch.rand(2, 1, 4, 4),), dynamic_shapes=({0: torch.export.Dim("n")},))
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    with zipfile.ZipFile(buffer) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def _zip(records: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in records.items():
            archive.writestr(f"archive/{name}", content)
    return buffer.getvalue()


def _edit(records: dict[str, bytes], name: str, change: Callable[[Any], None]) -> dict[str, bytes]:
    content = json.loads(records[name])
    change(content)
    return {**records, name: json.dumps(content).encode()}


def _nodes(model: Any) -> Any:
    return model["graph_module"]["graph"]["nodes"]


def _payload(records: dict[str, bytes], name: str, number: int = 0) -> tuple[str, dict[str, Any]]:
    return list(json.loads(records[name])["config"].items())[number]


class Evil:
    """Unpickling it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return (open, (str(self.marker), "w"))


def _saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _refused(tmp_path: Path, data: bytes, kind: type[InputError] = UnsafeFileError) -> str:
    path = tmp_path / "hostile.pt2"
    path.write_bytes(data)
    with pytest.raises(kind) as caught:
        load(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path}: ")
    assert not (tmp_path / "marker").exists()
    return message


_PLAIN_LOAD = """
import contextlib, sys, torch
for path in sys.argv[1:]:
    with contextlib.suppress(Exception):
        torch.export.load(path)
"""


def test_the_untouched_file_loads(tmp_path: Path, plain: dict[str, bytes]) -> None:
    (tmp_path / "good.pt2").write_bytes(_zip(plain))
    x = torch.rand(5, 1, 4, 4)
    torch.manual_seed(0)
    assert torch.equal(load(tmp_path / "good.pt2").program.module()(x), Net().eval()(x))


# -- what torch.export.load would unpickle ---------------------------------------------------------------------------


def _with_samples(plain: dict[str, bytes], marker: Path) -> dict[str, bytes]:
    return {**plain, SAMPLES: _saved(((Evil(marker),), {}))}


def _with_pickled_weight(plain: dict[str, bytes], marker: Path) -> dict[str, bytes]:
    name, payload = _payload(plain, WEIGHTS)
    records = _edit(plain, WEIGHTS, lambda content: content["config"][name].update(use_pickle=True))
    return {**records, f"data/weights/{payload['path_name']}": _saved(Evil(marker))}


def _with_pickled_constant(plain: dict[str, bytes], marker: Path) -> dict[str, bytes]:
    name, payload = _payload(plain, CONSTANTS)
    records = _edit(plain, CONSTANTS, lambda content: content["config"][name].update(use_pickle=True))
    return {**records, f"data/constants/{payload['path_name']}": _saved(Evil(marker))}


def _with_opaque_object(plain: dict[str, bytes], marker: Path) -> dict[str, bytes]:
    payload = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
    records = _edit(plain, CONSTANTS, lambda content: content["config"].update(thing=payload))
    return {**records, "data/constants/opaque_obj_0": pickle.dumps(Evil(marker))}


def _with_custom_object(plain: dict[str, bytes], marker: Path) -> dict[str, bytes]:
    payload = {"path_name": "custom_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
    records = _edit(plain, CONSTANTS, lambda content: content["config"].update(thing=payload))
    return {**records, "data/constants/custom_obj_0": _saved(Evil(marker))}


def _with_unmarked_object(plain: dict[str, bytes], marker: Path) -> dict[str, bytes]:
    """The loader goes by the record's name, whatever `use_pickle` says."""
    name, payload = _payload(plain, CONSTANTS)
    records = _edit(plain, CONSTANTS, lambda content: content["config"][name].update(path_name="opaque_obj_0"))
    pickled = pickle.dumps(Evil(marker))
    return {**records, "data/constants/opaque_obj_0": pickled + b"\0" * (-len(pickled) % 8)}


def _with_legacy_weights(plain: dict[str, bytes], marker: Path) -> dict[str, bytes]:
    return {**plain, "data/weights/model.pt": _saved({"conv.weight": Evil(marker)})}


def _with_legacy_constants(plain: dict[str, bytes], marker: Path) -> dict[str, bytes]:
    return {**plain, "data/constants/model.pt": _saved({"lifted_tensor_0": Evil(marker)})}


PICKLES = {
    "sample inputs": _with_samples,
    "weight": _with_pickled_weight,
    "constant": _with_pickled_constant,
    "opaque object": _with_opaque_object,
    "custom object": _with_custom_object,
    "unmarked object": _with_unmarked_object,
    "legacy weights": _with_legacy_weights,
    "legacy constants": _with_legacy_constants,
}


@pytest.mark.parametrize("attack", PICKLES)
def test_nothing_is_unpickled(tmp_path: Path, plain: dict[str, bytes], attack: str) -> None:
    message = _refused(tmp_path, _zip(PICKLES[attack](plain, tmp_path / "marker")))
    assert "unpickling" in message


def test_the_format_of_older_releases_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("version", "8.1")
        for name in ("exported_program.json", "state_dict.pt", "constants.pt", "example_inputs.pt"):
            archive.writestr(f"serialized_{name}", _saved(Evil(tmp_path / "marker")))
    assert "export again" in _refused(tmp_path, buffer.getvalue())


def test_compiled_code_is_refused(tmp_path: Path, plain: dict[str, bytes]) -> None:
    records = {**plain, "data/aotinductor/model/x.so": b"\x7fELF"}
    assert "compiled code" in _refused(tmp_path, _zip(records))


# -- what torch.export.load would look up, evaluate, import or write into source code --------------------------------


@pytest.mark.parametrize(
    "target",
    [
        "torch.os.system",
        "torch.ops.aten.from_file.default",
        "torch.ops.aten.save.default",
        "torch.ops.aten.set_.source_Tensor",
        "torch.ops.aten.resize_.default",
        "torch.ops.aten.add.out",
        "torch.ops.aten._embedding_bag_forward_only.default",
        "torch.ops.aten.relu.__class__",
        "torch.ops.aten.__class__.default",
        "torch.ops.aten.relu",
        "torch.ops.aten.no_such_operator.default",
        "torch.ops.prims.add.default",
        "torch.ops.higher_order.cond",
        "torch.ops.load_library",
        "torch.hub.load",
        "torch.compile",
        "math.factorial",
        "_operator.methodcaller",
        "_operator.lshift",
        "#custom:thing",
        "builtins.exec",
        "",
    ],
)
def test_nodes_name_known_operators_only(tmp_path: Path, plain: dict[str, bytes], target: str) -> None:
    node = next(node for node in _nodes(json.loads(plain[MODEL])) if "relu" in node["target"])

    def change(model: Any) -> None:
        for other in _nodes(model):
            if other["name"] == node["name"]:
                other["target"] = target

    message = _refused(tmp_path, _zip(_edit(plain, MODEL, change)))
    assert f"operator {target!r}: expected an ATen operator" in message


def test_a_call_of_the_shell_is_not_even_resolved(tmp_path: Path, plain: dict[str, bytes]) -> None:
    def change(model: Any) -> None:
        command = {"name": "", "kind": 1, "arg": {"as_string": f"touch {tmp_path / 'marker'}"}}
        call = {"target": "torch.os.system", "inputs": [command], "outputs": [], "metadata": {}, "name": "x_1"}
        _nodes(model).insert(0, call)

    _refused(tmp_path, _zip(_edit(plain, MODEL, change)))


def test_argument_names_and_kinds_are_those_of_the_operator(tmp_path: Path, plain: dict[str, bytes]) -> None:
    def rename(model: Any) -> None:
        _nodes(model)[1]["inputs"][0]["name"] = "other"

    def graph(model: Any) -> None:
        _nodes(model)[1]["inputs"][0]["arg"] = {"as_graph": {"name": "g", "graph": {}}}

    def operator(model: Any) -> None:
        _nodes(model)[1]["inputs"][0]["arg"] = {"as_operator": "torch.os.system"}

    assert "expected the arguments" in _refused(tmp_path, _zip(_edit(plain, MODEL, rename)))
    assert "Argument: expected one of" in _refused(tmp_path, _zip(_edit(plain, MODEL, graph)))
    assert "Argument: expected one of" in _refused(tmp_path, _zip(_edit(plain, MODEL, operator)))


HOSTILE_EXPRESSIONS = [
    "__import__('os').system('true')",
    "().__class__.__base__.__subclasses__()",
    "Symbol('s0').__class__",
    "Symbol('__import__')",
    "Symbol(name='s0')",
    "Symbol('s0', **{})",
    "Symbol(*'s')",
    "exec('1')",
    "lambda: 1",
    "[1, 2]",
    "s0 if s1 else s2",
    "(s0 := 3)",
    "f'{s0}'",
    "Integer('1')",
    "Integer(99999999999999999999999)",
    "10**1000000000",
    "Pow(Pow(Integer(9), Integer(8)), Integer(8))",
    "(9**8)**8",
    "Pow(Integer(9), s0)",
    "2**-9",
    "u99999",
    "factorial(s0)",
    "Symbol('s0', evaluate=True)",
    "Float('1' * 9)",
    "Float('1.0', precision=100000)",
    "not_a_symbol",
    "s0; s1",
    "s0 and s1",
    "-" * 3000 + "1",
    "(" * 3000 + "1" + ")" * 3000,
    "s0 + " * 2000 + "1",
    "",
    "#",
    "\x00",
]


@pytest.mark.parametrize("text", HOSTILE_EXPRESSIONS, ids=range(len(HOSTILE_EXPRESSIONS)))
def test_symbolic_sizes_are_arithmetic_only(text: str) -> None:
    with pytest.raises(UnsafeFileError, match="symbolic size") as caught:
        checked_expression(text)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "text",
    [
        "Symbol('s77', positive=True, integer=True)",
        "Mul(Integer(2), Symbol('s0', integer=True))",
        "Add(Integer(-1), Symbol('u0', integer=True))",
        "FloorDiv(Add(Symbol('s0', integer=True), Integer(-1)), Integer(2))",
        "Pow(Symbol('s0'), Integer(2))",
        "Pow(Symbol('s0'), Integer(-1))",
        "Max(Integer(1), Mod(Symbol('s0'), Integer(8)))",
        "Eq(Symbol('s0'), Integer(4))",
        "2*s0 + 1",
        "Float('0.5', precision=53)",
        "true",
    ],
)
def test_symbolic_sizes_of_networks_pass_unchanged(text: str) -> None:
    assert checked_expression(text).replace(" ", "") == text.replace(" ", "")


def _with_expression(plain: dict[str, bytes], text: str) -> dict[str, bytes]:
    def change(model: Any) -> None:
        for value in model["graph_module"]["graph"]["sym_int_values"].values():
            value["as_expr"]["expr_str"] = text

    return _edit(plain, MODEL, change)


def test_an_expression_with_code_does_not_run(tmp_path: Path, plain: dict[str, bytes]) -> None:
    code = f"__import__('pathlib').Path({str(tmp_path / 'marker')!r}).touch()"
    data = _zip(_with_expression(plain, code))
    assert "symbolic size" in _refused(tmp_path, data)


@pytest.mark.slow
def test_torch_itself_would_have_run_it(tmp_path: Path, plain: dict[str, bytes]) -> None:
    """The attacks are real: their markers appear when PyTorch loads the same bytes, in a process of its own."""
    code = "__import__('pathlib').Path('{}').touch()"
    attacks = {"expression": _with_expression(plain, code.format(tmp_path / "expression"))}
    for name, attack in PICKLES.items():
        if name != "custom object":
            attacks[name] = attack(plain, tmp_path / name)
    paths = []
    for number, records in enumerate(attacks.values()):
        paths.append(tmp_path / f"{number}.pt2")
        paths[-1].write_bytes(_zip(records))
    subprocess.run([sys.executable, "-c", _PLAIN_LOAD, *map(str, paths)], capture_output=True, timeout=120, check=False)
    assert [name for name in attacks if not (tmp_path / name).exists()] == []


def _tree(kind: str, context: Any, children: int = 1) -> str:
    leaf = {"type": None, "context": None, "children_spec": []}
    return json.dumps([1, {"type": kind, "context": json.dumps(context), "children_spec": [leaf] * children}])


@pytest.mark.parametrize("field", ["in_spec", "out_spec"])
@pytest.mark.parametrize(
    "tree",
    [
        _tree("collections.defaultdict", {"default_factory_module": "antigravity", "default_factory_name": "fly"}),
        _tree("builtins.dict", [{"__enum__": True, "fqn": "antigravity:geohash", "name": "x"}]),
        _tree("builtins.dict", ["a\nimport os"]),
        _tree("builtins.dict", ["a", "b"]),
        _tree("collections.defaultdict", ["a"]),
        _tree("builtins.tuple", {"a": 1}),
        _tree("transformers.ModelOutput", ["a\nimport os"]),
        _tree("transformers.ModelOutput", ["a", "a"], 2),
        _tree("user.Answer", [["a'"], ["b"]]),
        json.dumps([2, {}]),
        json.dumps([1, []]),
        "{",
        "[" * 100_000,
    ],
    ids=range(13),
)
def test_trees_are_containers_with_plain_names(tmp_path: Path, plain: dict[str, bytes], field: str, tree: str) -> None:
    def change(model: Any) -> None:
        model["graph_module"]["module_call_graph"][0]["signature"][field] = tree

    _refused(tmp_path, _zip(_edit(plain, MODEL, change)), InputError)
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize(
    ("tree", "kind"),
    [
        (_tree("antigravity.Fly", ["a"]), dict),
        (_tree("antigravity.Fly", [["a"], ["nothing"]]), dict),
        (_tree("antigravity.Fly", None), tuple),
        (_tree("antigravity.Fly", {"__enum__": True, "fqn": "antigravity:geohash", "name": "x"}), tuple),
        (_tree("collections.namedtuple", "antigravity.Fly"), tuple),
    ],
    ids=range(5),
)
def test_a_class_is_neither_imported_nor_looked_up(
    tmp_path: Path, plain: dict[str, bytes], tree: str, kind: type
) -> None:
    def change(model: Any) -> None:
        model["graph_module"]["module_call_graph"][0]["signature"]["out_spec"] = tree

    path = tmp_path / "model.pt2"
    path.write_bytes(_zip(_edit(plain, MODEL, change)))
    out = load(path).program.module()(torch.rand(2, 1, 4, 4))
    assert type(out) is kind
    assert len(out) == 1
    assert "antigravity" not in sys.modules


INJECTION = "x=__import__('os').system('true')"


def _rename_everywhere(model: Any, old: str, new: str) -> Any:
    return json.loads(json.dumps(model).replace(json.dumps(old), json.dumps(new)))


@pytest.mark.parametrize("name", [INJECTION, "a b", "a\n", "é", "1a", "__class__", "a" * 600, ""])
def test_names_that_become_source_code_are_identifiers(tmp_path: Path, plain: dict[str, bytes], name: str) -> None:
    records = {**plain, MODEL: json.dumps(_rename_everywhere(json.loads(plain[MODEL]), "relu", name)).encode()}
    assert "expected an identifier" in _refused(tmp_path, _zip(records))


@pytest.mark.parametrize("name", ['head"), exit(), ("', "head\\", "a'b", "__class__.weight", "a..b", "", ".", "a\nb"])
def test_weight_names_cannot_leave_their_quotes(tmp_path: Path, plain: dict[str, bytes], name: str) -> None:
    records = dict(plain)
    for record in (MODEL, WEIGHTS):
        records[record] = json.dumps(_rename_everywhere(json.loads(plain[record]), "head.weight", name)).encode()
    assert "expected a dotted name" in _refused(tmp_path, _zip(records))


@pytest.mark.parametrize(
    "name", ["x=print(1)", "a b", "a\n", "a.b", "1a", "", "__class__", "class", "None", "ｅval", "x" * 600]
)
def test_argument_names_of_the_forward_are_identifiers(tmp_path: Path, plain: dict[str, bytes], name: str) -> None:
    def change(model: Any) -> None:
        model["graph_module"]["module_call_graph"][0]["signature"]["forward_arg_names"] = [name]

    assert "expected an identifier" in _refused(tmp_path, _zip(_edit(plain, MODEL, change)))


def test_guards_and_metadata_are_left_behind(tmp_path: Path, plain: dict[str, bytes]) -> None:
    """Guards are source code, and metadata names functions; neither reaches PyTorch."""

    def change(model: Any) -> None:
        model["guards_code"] = [f"open({str(tmp_path / 'marker')!r}, 'w')"]
        for node in _nodes(model):
            node["metadata"].update(source_fn_stack="a,torch.os.system", torch_fn="a;b;c", custom="[", from_node="[")

    (tmp_path / "f.pt2").write_bytes(_zip(_edit(plain, MODEL, change)))
    program = load(tmp_path / "f.pt2").program
    assert program._guards_code == []
    kept = {key for node in program.graph.nodes if node.op == "call_function" for key in node.meta}
    assert not kept & {"source_fn_stack", "torch_fn", "custom", "from_node"}
    assert any("forward" in node.meta.get("stack_trace", "") for node in program.graph.nodes)
    program.module(check_guards=True)(torch.rand(2, 1, 4, 4))
    assert not (tmp_path / "marker").exists()


# -- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"sizes": [{"as_int": 10**9}]}, "stride for each size"),
        ({"sizes": [{"as_int": 4}, {"as_int": 1}, {"as_int": 3}, {"as_int": 10**6}]}, "inside of its record"),
        ({"storage_offset": {"as_int": 1}}, "inside of its record"),
        ({"storage_offset": {"as_int": -4}}, "0 or more"),
        ({"strides": [{"as_int": s} for s in (9, 9, -3, 1)]}, "0 or more"),
        ({"strides": [{"as_int": s} for s in (9, 9, 3, 1000)]}, "inside of its record"),
        ({"sizes": [{"as_int": 2**31}] * 4, "strides": [{"as_int": 0}] * 4}, "inside of its record"),
        ({"sizes": [{"as_expr": {"expr_str": "s0", "hint": None}}] * 4}, "fixed sizes"),
        ({"dtype": 99}, "known data type"),
        ({"layout": 1}, "strided"),
        ({"device": {"type": "meta", "index": None}}, "cpu, cuda"),
        ({"dtype": "7"}, "expected an integer"),
        ({"sizes": "4"}, "expected a list"),
        ({"dtype": 8}, "inside of its record"),
    ],
)
def test_tensors_stay_inside_their_records(
    tmp_path: Path, plain: dict[str, bytes], change: dict[str, Any], expected: str
) -> None:
    def edit(content: Any) -> None:
        content["config"]["conv.weight"]["tensor_meta"].update(change)

    assert expected in _refused(tmp_path, _zip(_edit(plain, WEIGHTS, edit)))


def test_a_missing_record_and_a_missing_weight(tmp_path: Path, plain: dict[str, bytes]) -> None:
    path = json.loads(plain[WEIGHTS])["config"]["conv.weight"]["path_name"]
    records = {name: content for name, content in plain.items() if not name.endswith(path)}
    assert f"expected the record 'data/weights/{path}', got none" in _refused(tmp_path, _zip(records), InputError)
    records = _edit(plain, WEIGHTS, lambda content: content["config"].pop("conv.weight"))
    assert "'conv.weight': expected it among the weights" in _refused(tmp_path, _zip(records), InputError)


def test_a_huge_value_in_the_graph(tmp_path: Path, plain: dict[str, bytes]) -> None:
    def change(model: Any) -> None:
        model["graph_module"]["graph"]["tensor_values"]["relu"]["sizes"] = [{"as_int": 2**40}]

    assert "value 'relu': expected at most" in _refused(tmp_path, _zip(_edit(plain, MODEL, change)))


def test_a_huge_input_is_not_made(tmp_path: Path, plain: dict[str, bytes]) -> None:
    def change(model: Any) -> None:
        model["graph_module"]["graph"]["tensor_values"]["x"]["sizes"][1:] = [{"as_int": 2**10}] * 3

    assert "input: expected at most" in _refused(tmp_path, _zip(_edit(plain, MODEL, change)), InputError)


def test_a_zip_bomb_is_refused_before_it_unpacks(tmp_path: Path, plain: dict[str, bytes]) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in plain.items():
            archive.writestr(f"archive/{name}", content)
        archive.writestr("archive/extra/bomb", b"\0" * 50_000_000)
    assert "expected it uncompressed" in _refused(tmp_path, buffer.getvalue())


def test_a_bomb_in_the_sample_inputs(tmp_path: Path, plain: dict[str, bytes]) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 50_000_000)
    assert "sample inputs" in _refused(tmp_path, _zip({**plain, SAMPLES: buffer.getvalue()}))


def test_overlapping_records_are_refused(tmp_path: Path, plain: dict[str, bytes]) -> None:
    """Many entries of the directory point at the same bytes."""
    data = _zip({**plain, "extra/big": b"x" * 200_000})
    end = data.rindex(b"PK\x05\x06")
    n, size, start = struct.unpack("<HII", data[end + 10 : end + 20])
    last = data.rindex(b"PK\x01\x02", start, end)
    copies = b"".join(data[last:end].replace(b"extra/big", b"extra/%03d" % index) for index in range(100))
    total = n + 100
    tail = data[end : end + 8] + struct.pack("<HHII", total, total, size + len(copies), start) + data[end + 20 :]
    assert "the file's size" in _refused(tmp_path, data[:end] + copies + tail)


@pytest.mark.parametrize("name", ["../../x", "/x", "a/../../x", "a\\..\\x", "a//b", "./x", "a/\x01", "x" * 2000])
def test_record_names_stay_inside(tmp_path: Path, plain: dict[str, bytes], name: str) -> None:
    buffer = io.BytesIO(_zip(plain))
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr(name, b"x")
    assert "expected a plain relative name" in _refused(tmp_path, buffer.getvalue())


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_duplicate_records_are_refused(tmp_path: Path, plain: dict[str, bytes]) -> None:
    buffer = io.BytesIO(_zip(plain))
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr(f"archive/{MODEL}", plain[MODEL])
    assert "expected it once, got it twice" in _refused(tmp_path, buffer.getvalue())


def test_more_than_one_root_or_model(tmp_path: Path, plain: dict[str, bytes]) -> None:
    buffer = io.BytesIO(_zip(plain))
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("other/archive_format", b"pt2")
    assert "under one folder" in _refused(tmp_path, buffer.getvalue())
    records = {**plain, "models/second.json": plain[MODEL]}
    assert "expected one exported program" in _refused(tmp_path, _zip(records), InputError)


# -- JSON -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 200_000,
        b'{"a":' * 100_000,
        b"1" * 10_000,
        b"NaN",
        b"{}",
        b"1e999",
    ],
    ids=range(11),
)
@pytest.mark.parametrize("record", [MODEL, WEIGHTS, CONSTANTS])
def test_odd_json(tmp_path: Path, plain: dict[str, bytes], record: str, content: bytes) -> None:
    _refused(tmp_path, _zip({**plain, record: content}), InputError)


def test_unknown_fields_are_refused_unless_empty() -> None:
    with pytest.raises(UnsafeFileError, match="got 'surprise'"):
        checked({"major": 8, "minor": 1, "surprise": "code"}, "Version")
    assert checked({"major": 8, "minor": 1, "surprise": None}, "Version") == {"major": 8, "minor": 1}


@pytest.mark.parametrize("value", [True, 1.0, "1", None, 2**70, [1]])
def test_integers_are_integers(value: Any) -> None:
    with pytest.raises(UnsafeFileError, match="expected an integer"):
        checked({"major": value, "minor": 1}, "Version")


def test_numbers_that_json_cannot_say_are_texts() -> None:
    assert checked({"as_float": "-Infinity"}, "Argument") == {"as_float": "-Infinity"}
    with pytest.raises(UnsafeFileError, match="expected a number"):
        checked({"as_float": "1.0"}, "Argument")
    with pytest.raises(InputError, match="the number NaN"):
        parsed(b"[NaN]", "graph")


def test_another_schema_version_is_one_line(tmp_path: Path, plain: dict[str, bytes]) -> None:
    records = _edit(plain, MODEL, lambda model: model["schema_version"].update(major=99))
    assert "that PyTorch" in _refused(tmp_path, _zip(records), InputError)
    assert "archive version 0" in _refused(tmp_path, _zip({**plain, "archive_version": b"9"}), InputError)


def _mutated(value: Any, choose: random.Random) -> Any:
    """The value with one of its parts replaced by something else."""
    if isinstance(value, (dict, list)) and value and choose.random() < 0.93:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key = choose.choice(keys)
        changed = value.copy()
        changed[key] = _mutated(value[key], choose)
        return changed
    return choose.choice(
        [None, -1, 0, 2**62, 1.5, "", "x", "torch.os.system", "s0*2", [], {}, True, [None], {"as_int": 3}]
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_mutated_graphs_load_or_are_refused(plain: dict[str, bytes]) -> None:
    """Whatever part of the JSON is replaced: a program or one of our errors, never another exception."""
    choose = random.Random(0)
    refused = 0
    for _ in range(300):
        record = choose.choice([MODEL, MODEL, WEIGHTS, CONSTANTS])
        content = json.dumps(_mutated(json.loads(plain[record]), choose)).encode()
        try:
            read_program(_zip({**plain, record: content}))
        except InputError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 200


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_flipped_bytes_load_or_are_refused(plain: dict[str, bytes]) -> None:
    data = _zip(plain)
    choose = random.Random(1)
    for _ in range(300):
        changed = bytearray(data)
        for _ in range(choose.randint(1, 4)):
            changed[choose.randrange(len(data))] = choose.randrange(256)
        try:
            read_program(bytes(changed))
        except InputError as error:
            assert "\n" not in str(error)


# -- what must keep working -------------------------------------------------------------------------------------------


def test_every_operator_of_common_networks_is_known() -> None:
    names = (
        "conv1d.default conv2d.default conv2d.padding conv3d.default conv_transpose2d.input "
        "linear.default matmul.default bmm.default "
        "addmm.default einsum.default scaled_dot_product_attention.default batch_norm.default layer_norm.default "
        "group_norm.default instance_norm.default rms_norm.default relu.default relu_.default gelu.default "
        "silu.default "
        "hardswish_.default hardtanh_.default sigmoid.default softmax.int log_softmax.int dropout.default "
        "feature_dropout.default max_pool2d.default avg_pool2d.default adaptive_avg_pool2d.default "
        "adaptive_max_pool2d.default cat.default stack.default split.Tensor split_with_sizes.default chunk.default "
        "unbind.int view.default reshape.default permute.default transpose.int flatten.using_ints slice.Tensor "
        "select.int index.Tensor index_select.default gather.default embedding.default pad.default roll.default "
        "flip.default expand.default repeat.default unsqueeze.default squeeze.dim mean.dim sum.dim_IntList "
        "amax.default "
        "add.Tensor add_.Tensor sub.Tensor mul.Scalar div.Tensor_mode pow.Tensor_Scalar rsqrt.default clamp.default "
        "where.self masked_fill.Scalar arange.default zeros.default ones_like.default full.default to.dtype "
        "sym_size.int pixel_shuffle.default upsample_bilinear2d.vec upsample_nearest2d.vec grid_sampler.default "
        "lstm.input gru.input _assert_tensor_metadata.default lift_fresh_copy.default detach_.default "
        "scatter.src cumsum.default topk.default meshgrid.indexing im2col.default col2im.default copy_.default"
    )
    for name in names.split():
        assert checked_operator(f"torch.ops.aten.{name}") is not None


def test_a_cuda_program_loads_on_the_cpu(plain: dict[str, bytes]) -> None:
    text = plain[MODEL].replace(b'{"type": "cpu", "index": null}', b'{"type": "cuda", "index": 0}')
    assert text != plain[MODEL]
    program, _ = read_program(_zip({**plain, MODEL: text}))
    assert {
        node.meta["val"].device.type
        for node in program.graph.nodes
        if "val" in node.meta and hasattr(node.meta["val"], "device")
    } == {"cpu"}


def test_what_we_write_passes_plain_torch_and_ourselves() -> None:
    program = capture(Net(), torch.rand(2, 1, 4, 4))
    data = write_program(program, {"note.txt": b"hello"})
    extra = {"note.txt": ""}
    loaded = torch.export.load(io.BytesIO(data), extra_files=extra)
    assert extra["note.txt"] == "hello"
    x = torch.rand(3, 1, 4, 4)
    assert torch.equal(loaded.module()(x), program.module()(x))
    again, files = read_program(data)
    assert files == {"note.txt": b"hello"}
    assert write_program(again, files) == data


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rows, self.head = nn.Embedding(5, 4), nn.Linear(4, 3)

    def forward(self, image: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.head(self.rows(ids)) * image.mean((1, 2, 3))[:, None] * mask[:, None]


def test_a_file_holds_no_example_inputs_but_their_shapes() -> None:
    """Plain torch gets inputs that fit; a program that edgeprune read has none that could be taken for real ones."""
    given = (torch.rand(2, 3, 224, 224), torch.tensor([4, 2]), torch.tensor([True, False]))
    program = capture(Mixed(), given)
    data = write_program(program, {})
    assert len(data) < 20_000 < 2 * 3 * 224 * 224
    (args, kwargs) = torch.export.load(io.BytesIO(data)).example_inputs
    assert [(x.shape, x.dtype) for x in args] == [(x.shape, x.dtype) for x in given]
    assert kwargs == {}
    read, _ = read_program(data)
    assert read.example_inputs is None
    made = example_inputs(read)
    assert [(x.shape, x.dtype) for x in made] == [(x.shape, x.dtype) for x in given]
    with torch.no_grad():
        torch.testing.assert_close(read.module()(*given), program.module()(*given))
        assert read.module()(*made).shape == (2, 3)


def test_older_files_with_example_inputs_of_their_own_load(tmp_path: Path, plain: dict[str, bytes]) -> None:
    older = {**plain, SAMPLES: _saved(((torch.linspace(-1, 1, 32).reshape(2, 1, 4, 4),), {}))}
    read, _ = read_program(_zip(older))
    assert read.example_inputs is None
    assert [tuple(x.shape) for x in example_inputs(read)] == [(2, 1, 4, 4)]


def test_dict_outputs_and_several_inputs_keep_their_structure() -> None:
    class Heads(nn.Module):
        def forward(self, x: torch.Tensor, rest: list[torch.Tensor]) -> dict[str, Any]:
            return {"sum": x + rest[0], "pair": (rest[1], [x])}

    program = torch.export.export(Heads(), (torch.rand(2), [torch.rand(2), torch.rand(2)]))
    loaded, _ = read_program(write_program(program, {}))
    x, y, z = torch.rand(2), torch.rand(2), torch.rand(2)
    out = loaded.module()(x, [y, z])
    assert torch.equal(out["sum"], x + y)
    assert torch.equal(out["pair"][0], z)
    assert torch.equal(out["pair"][1][0], x)


def test_a_program_that_could_not_be_read_again_is_not_written() -> None:
    class Scoped(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return x @ x

    program = torch.export.export(Scoped(), (torch.rand(2, 2),))
    with pytest.raises(InputError):
        write_program(program, {})


def test_the_marker_attack_is_not_vacuous(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Evil(tmp_path / "marker"))).close()
    assert (tmp_path / "marker").exists()


def test_write_records_is_deterministic() -> None:
    records = {"models/model.json": b"{}", "data/weights/weight_0": base64.b64decode(b"AAAA")}
    assert write_records(records) == write_records(dict(records))


def test_paths_of_the_machine_that_exported_it_stay_there() -> None:
    program = capture(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), torch.zeros(2, 4))
    root = os.path.dirname(torch.__file__)
    assert any(root in str(node.meta.get("stack_trace")) for node in program.graph.nodes)
    data = write_program(program, {})
    assert os.path.dirname(root).encode() not in data
    loaded, _ = read_program(data)
    traces = [str(node.meta["stack_trace"]) for node in loaded.graph.nodes if node.name == "linear"]
    assert 'File "site-packages/torch/nn/modules/linear.py"' in traces[0]


@pytest.mark.parametrize(
    ("path", "kept"),
    [
        ("/home/me/edgeprune/edgeprune/formats/onnxin/network.py", "edgeprune/formats/onnxin/network.py"),
        ("/src/pytorch/torch/nn/modules/rnn.py", "torch/nn/modules/rnn.py"),
        (r"C:\py\Lib\site-packages\timm\layers\mlp.py", "site-packages/timm/layers/mlp.py"),
        ("/home/me/torch/nets/net.py", "nets/net.py"),
    ],
)
def test_a_file_of_a_library_is_told_by_its_whole_place_in_it(path: str, kept: str) -> None:
    trace = f'File "{path}", line 177, in forward'
    assert _metadata({"stack_trace": trace}, "node")["stack_trace"] == f'File "{kept}", line 177, in forward'
