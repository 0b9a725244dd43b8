"""QNN's part, in its own process: what onnxruntime's provider gives Qualcomm's Hexagon, by its library's rules."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path


def check(file: str, out: str) -> None:
    """Write which nodes of an ONNX file QNN takes as JSON to `out`; see `qnn.QnnCheck`."""
    import onnxruntime
    import onnxruntime_qnn

    name = onnxruntime_qnn.get_ep_name()
    onnxruntime.register_execution_provider_library(name, onnxruntime_qnn.get_library_path())
    devices = [device for device in onnxruntime.get_ep_devices() if device.ep_name == name]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    options.add_provider_for_devices(devices, {"backend_path": onnxruntime_qnn.get_qnn_htp_path()})
    session = onnxruntime.InferenceSession(file, options)
    parts = [
        {"qnn": part.ep_name == name, "nodes": [[node.name, node.op_type] for node in part.get_nodes()]}
        for part in session.get_provider_graph_assignment_info()
    ]
    found = {"version": importlib.metadata.version("onnxruntime-qnn"), "parts": parts}
    Path(out).write_text(json.dumps(found), encoding="utf-8")
