"""The ORT format, which minimal builds of onnxruntime load, and the operators that such a build needs.

The steps are those of `python -m onnxruntime.tools.convert_onnx_models_to_ort --optimization_style Fixed
--enable_type_reduction`, without its names and its prints:
https://onnxruntime.ai/docs/performance/model-optimizations/ort-format-models.html
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import onnxruntime
from torch.export import ExportedProgram

from edgeprune.errors import InputError
from edgeprune.export import ort
from edgeprune.export.feeds import repeated
from edgeprune.export.onnx import draft_onnx
from edgeprune.export.onnxfile import parity_with, samples_of_file
from edgeprune.export.parity import PARITY_TOLERANCE, quiet
from edgeprune.export.state import check_stateless
from edgeprune.export.target import Inputs, Material, Runner, Runtime
from edgeprune.files import check_new, kept_folder, named_as
from edgeprune.formats.onnx.file import read_onnx
from edgeprune.lines import error_reason
from edgeprune.progress import Progress
from edgeprune.results import ExportedFile
from edgeprune.tasks.task import Task

CONFIG_SUFFIX = ".required_operators_and_types.config"
Platform = Literal["arm", "amd64"]
_ERRORS_ONLY = 3


@dataclass(frozen=True, slots=True)
class OnnxRuntime:
    """onnxruntime, which runs ONNX files and those in its own format."""

    name: str = "onnxruntime"

    def draft(self, program: ExportedProgram, folder: Path, batch: int) -> Path:
        """An ONNX file, whose batch is as in the program."""
        draft_onnx(program, folder / "draft.onnx")
        return folder / "draft.onnx"

    def runner(self, file: Path, inputs: Inputs, threads: int = 1) -> Runner:
        """See `ort.runner`."""
        return ort.runner(file, inputs.file, threads)


@dataclass(frozen=True, slots=True)
class OrtFormat:
    """The ORT format as a target; `platform` as for `write_ort`."""

    platform: Platform | None = None
    name: str = "ort"
    runtime: Runtime | None = OnnxRuntime()
    free_batch: bool = False

    def files(self, model: str) -> tuple[str, ...]:
        """The network, and the operators that a build for it needs."""
        return f"{model}.ort", f"{model}{CONFIG_SUFFIX}"

    def check_installed(self) -> None:
        """It is a part of onnxruntime."""

    def check(self, program: ExportedProgram) -> None:
        """Raise InputError for a network with a state."""
        check_stateless(program, "--ort")

    def write(self, material: Material, told: Progress) -> tuple[ExportedFile, ...]:
        """Write both files; errors as `write_ort`."""
        told.stage("write the ORT format and run it")
        inputs = None if material.real is None else material.real.file
        if inputs is not None and material.batch is not None:  # as many rows as the file takes, whatever there are
            inputs = repeated(inputs, material.batch)
        made = write_ort(
            material.network,
            material.folder / f"{material.name}.ort",
            inputs,
            platform=self.platform,
            task=material.answering,
        )
        config = ExportedFile(made.config_path, Path(made.config_path).stat().st_size, None)
        return ExportedFile(made.path, made.size_bytes, made.parity), config


@dataclass(frozen=True, slots=True)
class OrtFile:
    """A written .ort file that was run, and what a build of onnxruntime for it needs.

    `parity` is the largest absolute error against the ONNX file that it was made of. `config_path` goes to
    onnxruntime's build as `--include_ops_by_config`; `operators` are those that it lists, e.g. `("Gemm", "Relu")`.
    """

    path: str
    size_bytes: int
    parity: float
    config_path: str
    operators: tuple[str, ...]


def write_ort(  # noqa: PLR0913 - two places, and a decision of the caller each
    source: Path,
    out: Path,
    inputs: Any = None,
    *,
    tolerance: float = PARITY_TOLERANCE,
    platform: Platform | None = None,
    task: Task | None = None,
) -> OrtFile:
    """Write an ONNX file in the ORT format, and the list of its operators and types beside it, after running it.

    Args:
        source: the ONNX file; its batch stays as it is, free or fixed.
        out: `NAME.ort`; the list is `NAME.required_operators_and_types.config`. Both appear, or neither.
        inputs: real inputs `(n, ...)` to check on (a sequence of them for several inputs); all are used. None draws
            seeded ones.
        tolerance: as for `export_onnx`.
        platform: where the file is to run. A file is optimised here and not again where it is loaded. `"amd64"` lays
            convolutions out for x86, without which ResNet18 takes 1.4 times as long there and MobileNetV2 2.5 times;
            `"arm"` fuses what is quantised to signed int8. None does neither, and runs on both.
        task: as for `export_onnx`.

    Raises:
        InputError: `source` cannot be read or run, or `out` has another name or cannot be written to.
        ParityError: the .ort file gives something else; nothing is written.

    Example: `write_ort(Path("slim.onnx"), Path("slim.ort"), images)`.
    """
    if out.suffix != ".ort":
        raise InputError(f"{out}: expected a name that ends in .ort, by which onnxruntime knows the format")
    config = out.with_name(out.stem + CONFIG_SUFFIX)
    for path in (out, config):
        check_new(path, force=True, kind="file")
    read_onnx(source)  # refuses what onnxruntime should not be handed
    samples = samples_of_file(source, inputs, task=task)
    with kept_folder(out.parent), tempfile.TemporaryDirectory(prefix=".edgeprune-", dir=out.parent) as staged:
        new, new_config = Path(staged) / out.name, Path(staged) / config.name
        with named_as(out.parent, os.path.abspath(staged)):
            _convert(source, new, platform)
            parity = parity_with(ort.session(new), samples, out.name, tolerance)
            operators = _write_config(new, new_config)
        size_bytes = new.stat().st_size
        for made, place in ((new_config, config), (new, out)):
            _sync(made)
            os.replace(made, place)
    return OrtFile(str(out), size_bytes, parity, str(config), operators)


def _convert(source: Path, out: Path, platform: Platform | None) -> None:
    """Let onnxruntime optimise `source` for its CPU kernels and save what it then runs."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(out)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = _ERRORS_ONLY
    options.add_session_config_entry("session.save_model_format", "ORT")
    options.add_session_config_entry("session.qdqisint8allowed", "1" if platform == "arm" else "0")
    # Blocked layouts are chosen for the CPU at hand: the file would not load on another.
    left_out = None if platform == "amd64" else ["NchwcTransformer"]
    try:
        onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"], disabled_optimizers=left_out)
    except Exception as error:  # onnxruntime's errors share no base class
        reason = error_reason(error)
        raise InputError(f"{source}: onnxruntime cannot write it in the ORT format: {reason}") from error


def _write_config(model: Path, config: Path) -> tuple[str, ...]:
    """Write the operators and types that `model` needs; return the operators' names."""
    with _logging_kept():
        from onnxruntime.tools.ort_format_model import create_config_from_models

    with quiet():
        create_config_from_models([model], config, enable_type_reduction=True)
    lines = [line for line in config.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    head = (
        f"# What {model.name} needs of onnxruntime. A build for it alone:\n"
        f"#   build.sh --minimal_build --include_ops_by_config {config.name} --enable_reduced_operator_type_support\n"
    )
    config.write_text(head + "".join(f"{line}\n" for line in lines), encoding="utf-8")
    return tuple(sorted({name for line in lines for name in _operators(line)}))


def _operators(line: str) -> list[str]:
    """The operators of a line, e.g. `ai.onnx;13;Gemm{"inputs": {"0": ["float"]}},Relu` gives Gemm and Relu."""
    names, depth = line.split(";", 2)[2], 1
    while depth:
        names, depth = re.subn(r"\{[^{}]*\}", "", names)
    return names.split(",")


@contextlib.contextmanager
def _logging_kept() -> Iterator[None]:
    """onnxruntime's tools give the whole process a log on stderr when they are imported: take it back."""
    handlers = logging.root.handlers[:]
    try:
        yield
    finally:
        logging.root.handlers[:] = handlers
        logging.getLogger("ort_format_model.utils").setLevel(logging.ERROR)


def _sync(path: Path) -> None:
    """Make the content last before its name does."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
