"""A .pt2's graph as JSON: every field is checked against this table and written anew; what is not in it is refused.

PyTorch turns several of these strings into source code (node, argument and weight names), evaluates others (symbolic
sizes, guards) and imports modules that others name (tree specs). So each has a kind of its own here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from edgeprune.errors import InputError, UnsafeFileError
from edgeprune.formats.pt2.expressions import SYMBOL, checked_expression
from edgeprune.formats.pt2.trees import IDENTIFIER, checked_argument, checked_input_tree, checked_output_tree, typed
from edgeprune.graph.lines import library_part
from edgeprune.lines import one_line, shown
from edgeprune.reading import parse_json

MAX_INTEGER = 2**63
MAX_JSON_BYTES = 2**28
# What may stand between the dots of a weight's name: letters of any script, but no quotes, backslashes or control
# characters, as PyTorch writes it into source code.
_PART = r"(?!__)[\w\-/ :+@#=,]{1,200}"
_WEIGHT_NAME = re.compile(rf"{_PART}(?:\.{_PART}){{0,63}}")
_MODULE_NAME = re.compile(r"[\w.\-/ :+@#=,]{0,1000}")
_PATH = re.compile(r'File "([^"\n]*)"')
_DEVICES = ("cpu", "cuda", "mps", "xpu")
_STRIDED = 7

# Fields by structure. "?": may be missing or null; "[X]": list; "{K:X}": mapping; "drop": accepted, not kept.
_STRUCTURES: dict[str, dict[str, str]] = {
    "Program": {
        "graph_module": "GraphModule",
        "opset_version": "{identifier:int}",
        "range_constraints": "{symbol:Range}",
        "schema_version": "Version",
        "verifiers": "[verifier]?",
        "torch_version": "text?",
        "guards_code": "drop",
    },
    "Version": {"major": "int", "minor": "int"},
    "Range": {"min_val": "int?", "max_val": "int?"},
    "GraphModule": {
        "graph": "Graph",
        "signature": "Signature",
        "module_call_graph": "[ModuleCall]",
        "metadata": "drop",
        "treespec_namedtuple_fields": "drop",
    },
    "Graph": {
        "inputs": "[Argument]",
        "outputs": "[Argument]",
        "nodes": "[Node]",
        "tensor_values": "{identifier:TensorMeta}",
        "sym_int_values": "{identifier:SymInt}",
        "sym_bool_values": "{identifier:SymBool}",
        "sym_float_values": "{identifier:SymFloat}?",
        "is_single_tensor_return": "bool?",
    },
    "Node": {
        "target": "text",
        "inputs": "[NamedArgument]",
        "outputs": "[Argument]",
        "metadata": "metadata",
        "is_hop_single_tensor_return": "drop",
        "name": "identifier?",
    },
    "NamedArgument": {"name": "argument_name", "arg": "Argument", "kind": "int?"},
    "TensorMeta": {
        "dtype": "int",
        "sizes": "[SymInt]",
        "requires_grad": "bool",
        "device": "device",
        "strides": "[SymInt]",
        "storage_offset": "SymInt",
        "layout": "layout",
    },
    "SymExpr": {"expr_str": "expression", "hint": "Hint?"},
    "Name": {"name": "identifier"},
    "Complex": {"real": "float", "imag": "float"},
    "Signature": {"input_specs": "[InputSpec]", "output_specs": "[OutputSpec]"},
    "UserInput": {"arg": "Argument"},
    "UserOutput": {"arg": "Argument"},
    "Parameter": {"arg": "Name", "parameter_name": "weight_name"},
    "Buffer": {"arg": "Name", "buffer_name": "weight_name", "persistent": "bool"},
    "TensorConstant": {"arg": "Name", "tensor_constant_name": "weight_name"},
    "ConstantInput": {"name": "identifier", "value": "Constant"},
    "BufferMutation": {"arg": "Name", "buffer_name": "weight_name"},
    "UserInputMutation": {"arg": "Name", "user_input_name": "identifier"},
    "ModuleCall": {"fqn": "module_name", "signature": "CallSignature?"},
    "CallSignature": {
        "inputs": "[Argument]",
        "outputs": "[Argument]",
        "in_spec": "input_tree",
        "out_spec": "output_tree",
        "forward_arg_names": "[argument]?",
    },
    "PayloadConfig": {"config": "{weight_name:Payload}"},
    "Payload": {"path_name": "identifier", "is_param": "bool", "use_pickle": "bool", "tensor_meta": "TensorMeta?"},
}
# Unions: exactly one of these. What is left out (graphs, script objects, operators as arguments) is refused.
_UNIONS: dict[str, dict[str, str]] = {
    "Hint": {"as_int": "int", "as_bool": "bool", "as_float": "float"},
    "SymInt": {"as_expr": "SymExpr", "as_int": "int"},
    "SymFloat": {"as_expr": "SymExpr", "as_float": "float"},
    "SymBool": {"as_expr": "SymExpr", "as_bool": "bool"},
    "SymIntArgument": {"as_name": "identifier", "as_int": "int"},
    "SymFloatArgument": {"as_name": "identifier", "as_float": "float"},
    "SymBoolArgument": {"as_name": "identifier", "as_bool": "bool"},
    "OptionalTensor": {"as_tensor": "Name", "as_none": "bool"},
    "Constant": {"as_none": "bool", "as_int": "int", "as_float": "float", "as_string": "text", "as_bool": "bool"},
    "Argument": {
        "as_none": "bool",
        "as_tensor": "Name",
        "as_tensors": "[Name]",
        "as_int": "int",
        "as_ints": "[int]",
        "as_float": "float",
        "as_floats": "[float]",
        "as_string": "text",
        "as_sym_int": "SymIntArgument",
        "as_sym_ints": "[SymIntArgument]",
        "as_scalar_type": "int",
        "as_memory_format": "int",
        "as_layout": "layout",
        "as_device": "device",
        "as_bool": "bool",
        "as_bools": "[bool]",
        "as_sym_bool": "SymBoolArgument",
        "as_sym_bools": "[SymBoolArgument]",
        "as_optional_tensors": "[OptionalTensor]",
        "as_optional_tensor": "OptionalTensor",
        "as_sym_float": "SymFloatArgument",
        "as_sym_floats": "[SymFloatArgument]",
        "as_complex": "Complex",
    },
    "InputSpec": {
        "user_input": "UserInput",
        "parameter": "Parameter",
        "buffer": "Buffer",
        "tensor_constant": "TensorConstant",
        "constant_input": "ConstantInput",
    },
    "OutputSpec": {
        "user_output": "UserOutput",
        "buffer_mutation": "BufferMutation",
        "user_input_mutation": "UserInputMutation",
    },
}


def parsed(data: bytes, where: str) -> Any:
    """What the JSON of a record says; errors as `reading.parse_json`."""
    if len(data) > MAX_JSON_BYTES:
        raise InputError(f"{where}: expected JSON of at most {MAX_JSON_BYTES} bytes, got {len(data)}")
    return parse_json(data, f"{where}: expected JSON")


def is_weight_name(name: str) -> bool:
    """Whether a weight may have this name."""
    return _WEIGHT_NAME.fullmatch(name) is not None


def checked(value: Any, kind: str, where: str = "graph") -> Any:
    """The same JSON value, made anew from the fields that `kind` of the tables above has.

    Raises:
        UnsafeFileError: a field that is unknown, or holds what it must not.
    """
    if kind.endswith("?"):
        return None if value is None else checked(value, kind[:-1], where)
    if kind.startswith("["):
        items = typed(value, list, where)
        return [checked(item, kind[1:-1], where) for item in items]
    if kind.startswith("{"):
        key_kind, _, value_kind = kind[1:-1].partition(":")
        mapping = typed(value, dict, where)
        return {checked(key, key_kind, where): checked(item, value_kind, where) for key, item in mapping.items()}
    if kind in _UNIONS:
        return _checked_union(typed(value, dict, where), kind)
    if kind in _STRUCTURES:
        return _checked_structure(typed(value, dict, where), kind)
    return _SCALARS[kind](value, where)


def _checked_union(value: dict[str, Any], kind: str) -> dict[str, Any]:
    members = _UNIONS[kind]
    if len(value) != 1 or next(iter(value)) not in members:
        got = one_line(", ".join(value), 80) or "nothing"
        raise UnsafeFileError(f"{kind}: expected one of {', '.join(members)}, got {got}")
    [(name, item)] = value.items()
    return {name: checked(item, members[name], f"{kind}.{name}")}


def _checked_structure(value: dict[str, Any], kind: str) -> dict[str, Any]:
    fields = _STRUCTURES[kind]
    for name, item in value.items():
        if name not in fields and item not in (None, [], {}, False, ""):
            raise UnsafeFileError(f"{kind}: expected the fields {', '.join(fields)}, got {shown(name)}")
    result = {}
    for name, field_kind in fields.items():
        if field_kind == "drop":
            continue
        if name in value:
            result[name] = checked(value[name], field_kind, f"{kind}.{name}")
        elif not field_kind.endswith("?"):
            raise UnsafeFileError(f"{kind}: expected the field {name!r}, got none")
    return result


def _int(value: Any, where: str) -> int:
    if type(value) is not int or abs(value) > MAX_INTEGER:
        raise UnsafeFileError(f"{where}: expected an integer of at most 64 bits, got {shown(value, 40)}")
    return value


def _bool(value: Any, where: str) -> bool:
    return bool(typed(value, bool, where))


def _float(value: Any, where: str) -> float | str:
    if type(value) is int and abs(value) <= MAX_INTEGER:
        return value
    if type(value) is float or (type(value) is str and value in ("Infinity", "-Infinity", "NaN")):
        return value
    raise UnsafeFileError(f"{where}: expected a number, got {shown(value, 40)}")


def _text(value: Any, where: str) -> str:
    if type(value) is not str or len(value) > 1000 or not value.isprintable():
        raise UnsafeFileError(f"{where}: expected a short line of text, got {shown(value, 40)}")
    return value


def _matching(pattern: re.Pattern[str], what: str) -> Callable[[Any, str], str]:
    def check(value: Any, where: str) -> str:
        if type(value) is not str or not pattern.fullmatch(value):
            raise UnsafeFileError(f"{where}: expected {what}, got {shown(value)}")
        return value

    return check


def _expression(value: Any, where: str) -> str:
    return checked_expression(typed(value, str, where))


def _device(value: Any, where: str) -> dict[str, Any]:
    """Wherever the network was exported, it is loaded on the CPU."""
    if typed(value, dict, where).get("type") not in _DEVICES:
        raise UnsafeFileError(f"{where}: expected one of {', '.join(_DEVICES)}, got {shown(value.get('type'), 40)}")
    return {"type": "cpu", "index": None}


def _layout(value: Any, where: str) -> int:
    if type(value) is not int or value != _STRIDED:
        raise UnsafeFileError(f"{where}: expected a strided tensor, got layout {shown(value, 20)}")
    return value


def _metadata(value: Any, where: str) -> dict[str, str]:
    """Only where a node came from; the rest of the metadata names functions that would be looked up."""
    kept = {}
    for name in ("stack_trace", "nn_module_stack"):
        item = typed(value, dict, where).get(name)
        if type(item) is str and len(item) < 100_000 and item.replace("\n", "").isprintable():
            if name == "stack_trace" or all(_is_stack_entry(entry) for entry in item.split(";")):
                kept[name] = _PATH.sub(_short_path, item)
    return kept


def _short_path(match: re.Match[str]) -> str:
    """Enough of a source file's path to know it by; where it lay on its machine is nobody's business."""
    path = match[1].replace("\\", "/")
    parts = path.split("/")
    known = library_part(path) or "/".join(parts[-2:])
    return f'File "{"/".join(parts[parts.index("site-packages") :]) if "site-packages" in parts else known}"'


def _is_stack_entry(entry: str) -> bool:
    """Three parts, split by the commas outside of brackets, e.g. `L__self__fc,fc,torch.nn.Linear`."""
    depth = commas = 0
    for character in entry:
        depth += (character in "[(") - (character in ")]")
        commas += character == "," and depth == 0
    return commas == 2


_SCALARS: dict[str, Callable[[Any, str], Any]] = {
    "int": _int,
    "bool": _bool,
    "float": _float,
    "text": _text,
    "identifier": _matching(IDENTIFIER, "an identifier"),
    "argument": checked_argument,
    "argument_name": _matching(re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}|"), "an argument's name"),
    "weight_name": _matching(_WEIGHT_NAME, "a dotted name"),
    "module_name": _matching(_MODULE_NAME, "a dotted name"),
    "symbol": _matching(SYMBOL, "a symbol"),
    "verifier": _matching(re.compile("TRAINING|ATEN"), "TRAINING or ATEN"),
    "expression": _expression,
    "device": _device,
    "layout": _layout,
    "metadata": _metadata,
    "input_tree": checked_input_tree,
    "output_tree": checked_output_tree,
}
