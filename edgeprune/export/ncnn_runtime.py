"""ncnn's part: pnnx makes its .param and .bin of an ONNX file or of TorchScript, and ncnn runs them in float."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeprune.errors import InputError
from edgeprune.export.apart import Answer

_TYPES = {"float32": "f32", "float64": "f64", "int64": "i64", "int32": "i32", "uint8": "u8", "bool": "bool"}


def convert(source: str, signature: dict[str, Any], param: str, weights: str) -> None:
    """Write both files of an .onnx or TorchScript file whose inputs are those of a signature as JSON.

    Raises:
        InputError: pnnx fails; with its last words.
    """
    import pnnx

    shapes = ",".join(f"{list(map(int, one['shape']))}{_TYPES[one['type']]}" for one in signature["inputs"])
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as name:
        folder = Path(name)
        shutil.copy(source, folder)
        made = [folder / f"made.{kind}" for kind in ("param", "bin")]
        command = [pnnx.EXEC_PATH, Path(source).name, f"inputshape={shapes.replace(' ', '')}", "fp16=0"]
        command += [f"ncnnparam={made[0].name}", f"ncnnbin={made[1].name}"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace")
        if done.returncode or not all(file.is_file() for file in made):
            words = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
            raise InputError(f"pnnx ended with {done.returncode}: {words[-1] if words else 'it said nothing'}")
        for file, place in zip(made, (param, weights), strict=True):
            shutil.move(file, place)


def trace(program: str, signature: dict[str, Any], out: str) -> None:
    """Write a program (.pt2) as TorchScript that takes and gives what a signature as JSON says."""
    import torch

    from edgeprune.export.signature import Signature, Wrapped

    wanted = Signature.from_json(signature)
    samples = tuple(torch.zeros(value.shape, dtype=getattr(torch, value.type)) for value in wanted.inputs)
    with torch.no_grad():
        torch.jit.trace(Wrapped(torch.export.load(program), wanted), samples, check_trace=False).save(out)


def load(file: Path, threads: int) -> Answer:
    """A .param file with the .bin beside it, for one sample; outputs come with a first dim of 1.

    Raises:
        InputError: it has a layer that ncnn has not, or does not run.
    """
    import ncnn

    net = ncnn.Net()
    net.opt.num_threads = threads
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = net.opt.use_bf16_storage = False
    _check_layers(file)
    if net.load_param(str(file)) or net.load_model(str(file.with_suffix(".bin"))):
        raise InputError("ncnn cannot load it")
    n_outputs = len(set(re.findall(r"\bout\d+\b", file.read_text(encoding="utf-8"))))

    def answer(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        extractor = net.create_extractor()
        held = [ncnn.Mat(_taken(array), batch_index=0) for array in arrays]
        for place, mat in enumerate(held):
            extractor.input(f"in{place}", mat)
        return [_extracted(extractor, f"out{place}") for place in range(n_outputs)]

    return answer


def _taken(array: np.ndarray) -> np.ndarray:
    """Floats and 32 bits are all that it takes."""
    dtype = np.int32 if array.dtype.kind == "i" else np.float32
    return np.ascontiguousarray(array, dtype=dtype)


def _extracted(extractor: Any, name: str) -> np.ndarray:
    code, mat = extractor.extract(name)
    if code:
        raise InputError(f"ncnn cannot compute {name}: code {code}")
    return np.array(mat.numpy(batch_index=0))


def _check_layers(file: Path) -> None:
    """Refuse layers that ncnn has not, which it would name on stderr alone: pnnx leaves them as they were."""
    lines = file.read_text(encoding="utf-8").splitlines()[2:]
    kinds = dict.fromkeys(line.split()[0] for line in lines if line.strip())
    missing = [kind for kind in kinds if not _is_layer(kind)]
    if missing:
        names = {line.split()[0]: line.split()[1] for line in reversed(lines) if line.strip()}
        shown = ", ".join(f"{kind} ({names[kind]})" for kind in missing[:4])
        raise InputError(f"ncnn has no {shown}")


def _is_layer(kind: str) -> bool:
    import ncnn

    return ncnn.layer_to_index(kind) >= 0
