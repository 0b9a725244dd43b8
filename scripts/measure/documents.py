"""The coverage documents: every record as JSON, and a summary with one row a network."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def read_records(path: Path) -> list[Record]:
    """The records of a .jsonl file, none where there is no such file."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def latest(records: Iterable[Record]) -> dict[str, Record]:
    """The last record of each network by its name."""
    return {record["name"]: record for record in records}


def in_short(record: Record) -> str:
    """One line for the terminal."""
    seconds = record.get("seconds", {})
    start = f"{record['status']:8} {record['name']:50}"
    if record["status"] == "slim":
        times = " ".join(
            f"{name} {seconds[name]:.1f}" for name in ("capture", "analyze", "plan", "cut", "onnx") if name in seconds
        )
        double = f"{record['double_error']:.0e}" if "double_error" in record else "-"
        onnx = f"{record['onnx_error']:.0e}" if "onnx_error" in record else "-"
        return (
            f"{start} free {record['prunable_share']:.2f} proof {record['proof_error']:.0e} double {double} "
            f"far {record['masked_distance']:.2f} onnx {onnx} plan {record['plan']} | {times}"
        )
    return f"{start} {record.get('stage', '')}: {record.get('reason', '')[:300]}"


def write_documents(records: Sequence[Record], folder: Path) -> None:
    raise NotImplementedError
