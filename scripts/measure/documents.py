"""The coverage documents: every record as JSON, and a summary with one row a network."""

from __future__ import annotations

import importlib.metadata
import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

Record = dict[str, Any]

SMALL = 100e6  # parameters: the limits on time are for networks below this
_OURS = ("traceback", "total_seconds")  # of the measuring run alone
_SHARES = (1.0, 0.95, 0.9, 0.75, 0.5, 0.0)


def tool_versions() -> dict[str, str]:
    """Versions of what only the measurements need."""
    return {name: importlib.metadata.version(name) for name in ("timm", "torch-pruning", "transformers")}


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


def write_documents(records: Iterable[Record], folder: Path) -> None:
    """Write results/coverage.json and COVERAGE.md below `folder` from the last record of each network."""
    from edgeprune.versions import versions
    from measure.machine import machine
    from measure.networks import quantized_networks

    done = sorted(latest(records).values(), key=lambda r: (r["source"], r["family"], r["name"]))
    found = {**versions(), **tool_versions()}
    document = {
        "summary": {"all": totals(done), **{source: totals(mine) for source, mine in by_source(done).items()}},
        "quantized_left_out": quantized_networks(),
        "machine": machine(),
        "versions": found,
        "networks": [{key: value for key, value in r.items() if key not in _OURS} for r in done],
    }
    (folder / "results").mkdir(parents=True, exist_ok=True)
    (folder / "results" / "coverage.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    (folder / "COVERAGE.md").write_text(_page(done, document), encoding="utf-8")


def by_source(records: Iterable[Record]) -> dict[str, list[Record]]:
    """The records of each source, in the order of the names."""
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(record["source"], []).append(record)
    return dict(sorted(found.items()))


def whole_seconds(record: Record) -> float:
    """Capture, analysis, plan and cut of one network."""
    return float(sum(record["seconds"][stage] for stage in ("capture", "analyze", "plan", "cut")))


def is_slow(record: Record, limit: float) -> bool:
    """Whether a network that the limits are for took longer than 1 s to analyse, or than this from capture to cut."""
    if record["status"] != "slim" or record["parameters"] >= SMALL:
        return False
    return record["seconds"]["analyze"] > 1.0 or whole_seconds(record) > limit


def totals(records: Sequence[Record]) -> Record:
    """What the figures to reach are about."""
    slim = [r for r in records if r["status"] == "slim"]
    small = [r for r in slim if r["parameters"] < SMALL]
    analysis = [r["seconds"]["analyze"] for r in small]
    whole = [whole_seconds(r) for r in small]
    families = {r["family"] for r in records}
    return {
        "networks": len(records),
        "slim": len(slim),
        "with_onnx": sum("onnx_error" in r for r in slim),
        "applied": sum(r.get("applied") == "yes" for r in slim),
        "refused": sum(r["status"] == "refused" for r in records),
        "failed": sum(r["status"] == "failed" for r in records),
        "families": len(families),
        "families_slim": len(families - {r["family"] for r in records if r["status"] != "slim"}),
        "prunable_at_least": {str(s): sum(r["prunable_share"] >= s for r in slim) for s in _SHARES},
        "proof_error_max": max((r["proof_error"] for r in slim), default=None),
        "double_error_max": max((r["double_error"] for r in slim if "double_error" in r), default=None),
        "onnx_error_max": max((r["onnx_error"] for r in slim if "onnx_error" in r), default=None),
        "masked_distance_min": min((r["masked_distance"] for r in slim), default=None),
        "analyze_median_seconds": statistics.median(analysis) if analysis else None,
        "analyze_max_seconds": max(analysis, default=None),
        "capture_to_cut_max_seconds": round(max(whole), 3) if whole else None,
    }


# -- the page --------------------------------------------------------------------------------------------------------


def _page(records: Sequence[Record], document: Record) -> str:
    versions = ", ".join(f"{k} {v}" for k, v in document["versions"].items() if k in _NAMED)
    return "\n".join(
        [
            "# Coverage: which architectures edgeprune prunes",
            "",
            "Made by `scripts/coverage`; the numbers are in [results/coverage.json](results/coverage.json). "
            f"Measured with {versions}.",
            "",
            *_METHOD,
            "",
            *_summary_table(document["summary"]),
            "",
            f"Left out: torchvision's {len(document['quantized_left_out'])} quantized variants. Their weights are "
            "packed integers, which edgeprune refuses: compress the float network, and quantize what comes out.",
            "",
            *_not_slim(records),
            *(line for source, mine in by_source(records).items() for line in _table(source, mine)),
            "",
        ]
    )


_NAMED = ("edgeprune", "torch", "torchvision", "timm", "transformers", "onnx", "onnxruntime", "onnxsim")
_METHOD = """
Every network is built with random weights; batch-norm statistics, affine parameters and layer scales are random too,
so that no branch is trivially zero. Detectors of torchvision go through their backbone; networks of transformers are
built small from a configuration, their token inputs with an attention mask. One thread, one process a network, two at a
time; the times of those that took long were taken again alone, and the faster run counts.

- **free**: share of the output channels of layers, the model's own outputs left out, that can be removed.
- **MACs**: what is left where half were to go (criterion l2, widths in multiples of 8). `r`: that many cannot go, so a
  random 40 % of the units of every group went instead; the least reachable share is in coverage.json.
- **proof**: largest difference between the slim network and the dense one with the removed channels set to zero,
  relative to the largest output; float32. **far**: how far that masked network is from the dense one.
- **float64**: the same difference with random 40 % of every group removed (networks below 150 M parameters).
- **ONNX**: largest difference between onnxruntime and PyTorch, relative to the largest output.
- **put back**: how many could also be put back into the user's own module (`slim.apply_to(model)`); where the class's
  forward has sizes written into it, coverage.json says so. torchvision's detectors are then run as a whole.
- **analysis**: labels to groups, in seconds; **whole**: capture, analysis, plan and cut, about half of it torch.export;
  **MB**: peak memory.
""".strip().splitlines()


def _summary_table(summary: Record) -> list[str]:
    lines = [
        "| | networks | slim | with ONNX | put back | refused | failed | families slim | free ≥ 95 % "
        "| analysis median, max (s) | whole max (s) | proof max | float64 max | ONNX max |",
        "|---|" + "---:|" * 13,
    ]
    for name, t in summary.items():
        cells = [
            name, t["networks"], t["slim"], t["with_onnx"], t["applied"], t["refused"], t["failed"],
            f"{t['families_slim']} of {t['families']}" if name == "timm" else "", t["prunable_at_least"]["0.95"],
            f"{_number(t['analyze_median_seconds'], '.2f')}, {_number(t['analyze_max_seconds'], '.2f')}",
            _number(t["capture_to_cut_max_seconds"], ".1f"), *(_number(t[f"{k}_error_max"], ".0e") for k in _ERRORS),
        ]  # fmt: skip
        lines.append(_row(cells))
    return [
        *lines,
        "",
        "Times are those of networks below 100 M parameters; a family counts where all of its networks are slim.",
    ]


_ERRORS = ("proof", "double", "onnx")


def _not_slim(records: Sequence[Record]) -> list[str]:
    rest = [r for r in records if r["status"] != "slim"]
    if not rest:
        return []
    lines = ["## Not slim", "", "| network | | at | reason |", "|---|---|---|---|"]
    lines += [_row([r["name"], r["status"], r.get("stage", ""), r.get("reason", "")]) for r in rest]
    return [*lines, ""]


def _table(source: str, records: Sequence[Record]) -> list[str]:
    lines = [
        f"## {source}",
        "",
        "| network | M params | groups | free | locked most | MACs | proof | far | float64 | ONNX | analysis | whole "
        "| MB |",
        "|---|---:|---:|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    return [*lines, *(_slim_row(r) if r["status"] == "slim" else _other_row(r) for r in records), ""]


def _slim_row(r: Record) -> str:
    seconds = r["seconds"]
    locked = "; ".join(f"{reason} ({count})" for reason, count in r["locks"][:2])
    return _row(
        [
            r["name"].partition(":")[2],
            f"{r['parameters'] / 1e6:.1f}",
            r["groups"],
            f"{100 * r['prunable_share']:.1f} %",
            locked if r["prunable_share"] < 0.95 else "",
            f"{100 * r['macs'][1] / r['macs'][0]:.0f} %" + (" r" if r["plan"] == "random" else ""),
            f"{r['proof_error']:.0e}",
            f"{r['masked_distance']:.2f}",
            _number(r.get("double_error"), ".0e"),
            _number(r.get("onnx_error"), ".0e"),
            f"{seconds['analyze']:.2f}",
            f"{whole_seconds(r):.1f}",
            f"{r['peak_bytes'] / 1e6:.0f}",
        ]
    )


def _other_row(r: Record) -> str:
    parameters = f"{r['parameters'] / 1e6:.1f}" if "parameters" in r else ""
    return _row([r["name"].partition(":")[2], parameters, r["status"], *[""] * 10])


def _row(cells: Sequence[object]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def _number(value: float | None, style: str) -> str:
    return "" if value is None else format(value, style)
