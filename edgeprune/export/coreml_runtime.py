"""Core ML's part: a program becomes a package by coremltools, and its MIL program is run by an interpreter of ours."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeprune.errors import InputError
from edgeprune.export.apart import Answer
from edgeprune.lines import first_line

KINDS = ("fp32", "fp16", "w8")


def convert(program: str, signature: dict[str, Any], outs: dict[str, str]) -> None:
    """Write a program (.pt2) as packages for iOS 17, traced once.

    Args:
        program: the file.
        signature: what all of them take and give, as JSON; floats and 32 bits alone.
        outs: the folder of each kind: `fp32`, `fp16` (computed in half precision too) and `w8` (weights of 8 bits).

    Raises:
        InputError: an operator that Core ML has not, by its name.
    """
    import coremltools as ct
    import torch
    from coremltools.optimize.coreml import OpLinearQuantizerConfig, OptimizationConfig, linear_quantize_weights

    from edgeprune.export.signature import Signature, Wrapped

    wanted = Signature.from_json(signature)
    samples = tuple(torch.zeros(value.shape, dtype=getattr(torch, value.type)) for value in wanted.inputs)
    with torch.no_grad():
        traced = torch.jit.trace(Wrapped(torch.export.load(program), wanted), samples, check_trace=False)
    inputs = [ct.TensorType(value.name, value.shape, np.dtype(value.type).type) for value in wanted.inputs]
    outputs = [ct.TensorType(value.name) for value in wanted.outputs]

    def converted(precision: Any) -> Any:
        try:
            return ct.convert(
                traced,
                inputs=inputs,
                outputs=outputs,
                minimum_deployment_target=ct.target.iOS17,
                compute_precision=precision,
            )
        except NotImplementedError as error:
            raise InputError(f"Core ML cannot express {_operator(error)}; replace it in the model") from error

    whole = converted(ct.precision.FLOAT32)
    whole.save(outs["fp32"])
    config = OptimizationConfig(OpLinearQuantizerConfig(mode="linear_symmetric", dtype="int8"))
    linear_quantize_weights(whole, config).save(outs["w8"])
    half = ct.transform.FP16ComputePrecision(op_selector=lambda operation: not _is_scaling(operation))
    converted(half).save(outs["fp16"])


def _is_scaling(operation: Any) -> bool:
    """Whether an operator is of what a file does to a raw input, which half precision cannot tell from its mean."""
    from coremltools.converters.mil.mil.scope import ScopeSource

    from edgeprune.export.signature import Taken

    return any(Taken.__name__ in kind for kind in operation.scopes.get(ScopeSource.TORCHSCRIPT_MODULE_TYPE, ()))


def _operator(error: NotImplementedError) -> str:
    """E.g. `special_bessel_j0`, of what coremltools says; where that names none, the network and what it says."""
    found = re.search(r"op(?: named)?,? '([\w:.]+)'", str(error))
    return found[1] if found else f"the network ({first_line(error).rstrip('.')})"


def load(file: Path, threads: int) -> Answer:
    """A package as the interpreter runs it, with its other kinds beside it: the outputs of all, one after another.

    Raises:
        InputError: an operator that the interpreter does not know.
    """
    from edgeprune.export.mil.program import MilProgram

    programs = [MilProgram(package) for package in packages(file)]

    def answer(inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [output for program in programs for output in program(inputs)]

    return answer


def packages(file: Path) -> list[Path]:
    """A package, that in half precision and that with 8-bit weights."""
    return [file if kind == KINDS[0] else file.with_name(f"{file.stem}.{kind}.mlpackage") for kind in KINDS]
