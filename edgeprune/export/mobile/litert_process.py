"""LiteRT's part, in its own process: what XNNPACK takes of a .tflite file, and what the analyzer says of GPUs."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any

from edgeprune.export.mobile.places import Fingerprint, fingerprint

_NO_GPU_HAS_IT = 10  # HASHTABLE_LOOKUP, of the schema's BuiltinOperator


def check(file: str, out: str) -> None:
    """Write what LiteRT says of a file (.tflite) as JSON to `out`; see `litert.LitertCheck`."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    plain = Interpreter(model_path=file, experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES)
    plain.allocate_tensors()
    operators = _operators(plain)
    delegated = Interpreter(model_path=file)  # with XNNPACK, which is its default
    delegated.allocate_tensors()
    found = {
        "version": importlib.metadata.version("ai-edge-litert"),
        "operators": operators,
        "delegates": [one for one in _operators(delegated) if one["kind"] == "DELEGATE"],
        "constants": _constants(plain, operators),
        "analyses": _analyses(file, Path(out).parent / "probe.tflite"),
    }
    Path(out).write_text(json.dumps(found), encoding="utf-8")


def _operators(model: Any) -> list[dict[str, Any]]:
    """Its operators in order, those that hold a part of the graph for a delegate last."""
    return [
        {
            "kind": str(one["op_name"]),
            "inputs": [int(value) for value in one["inputs"]],
            "outputs": [int(value) for value in one["outputs"]],
        }
        for one in model._get_ops_details()
    ]


def _constants(model: Any, operators: list[dict[str, Any]]) -> dict[str, Fingerprint]:
    """What tells the weights, by the number of their tensor: what is read, and neither made nor put in."""
    made = {value for one in operators for value in one["outputs"]}
    made |= {one["index"] for one in model.get_input_details()}
    read = {value for one in operators for value in one["inputs"] if value >= 0} - made
    floats = (value for value in read if model._get_tensor_details(value, 0)["dtype"].__name__ == "float32")
    return {str(value): fingerprint(model.get_tensor(value)) for value in floats}


def _analyses(file: str, probe: Path) -> list[str]:
    """What the analyzer says of a file, and of the same with operators that no GPU has: 2.3 is for those too."""
    from ai_edge_litert import _pywrap_analyzer_wrapper as analyzer
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model(file)
    for code in model.operatorCodes:
        code.builtinCode = code.deprecatedBuiltinCode = _NO_GPU_HAS_IT
    probe.write_bytes(bytes(flatbuffer_utils.convert_object_to_bytearray(model)))
    return [str(analyzer.ModelAnalyzer(str(one), True, True)) for one in (file, probe)]
