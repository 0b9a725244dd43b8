"""Writing models: a .pt2 with what is known about the model, or a checkpoint that carries its program."""

from __future__ import annotations

import io
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch.export import ExportedProgram

from edgeprune.files import write_atomically
from edgeprune.formats.info import CHECKPOINT_FORMAT, INFO_FILE, info_to_dict
from edgeprune.formats.pt2 import write_program
from edgeprune.formats.sharing import with_templates
from edgeprune.graph.given import check_untrained
from edgeprune.records import ModelInfo, Templates


def save_program(path: str | os.PathLike[str], program: ExportedProgram, info: ModelInfo) -> None:
    """Write the program as a .pt2 that also plain `torch.export.load` takes; `info` lies in it as edgeprune.json.

    Raises:
        InputError: the place cannot be written to, the program has what no .pt2 of edgeprune may have, or a module that
            its `.module()` gave has been trained since, see `Program.with_weights`.
    """
    check_untrained(program)
    content = write_program(program, {INFO_FILE: json.dumps(info_to_dict(info)).encode()})
    write_atomically(path, content)


def save_checkpoint(
    path: str | os.PathLike[str], program: ExportedProgram, info: ModelInfo, shared: Sequence[Templates] = ()
) -> None:
    """Write weights, info and program as a .pt that loads with `weights_only=True`, without the network's source.

    The program lies in it as the bytes of a .pt2 without weights, so that no weight is stored twice; but for those that
    are mixtures of templates, which stand beside them.

    Raises:
        InputError: as `save_program`.
    """
    check_untrained(program)
    stripped = write_program(program, {}, with_weights=False)
    checkpoint = {
        "format": CHECKPOINT_FORMAT,
        "state_dict": _compact(program.state_dict),
        **info_to_dict(info),
        "program": torch.frombuffer(bytearray(stripped), dtype=torch.uint8),
    }
    buffer = io.BytesIO()
    torch.save(with_templates(checkpoint, shared), buffer)
    write_atomically(path, buffer.getvalue())


def _compact(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Plain CPU tensors; one that views a larger memory alone is copied, as torch.save writes the whole memory."""
    plain = {name: tensor.detach().cpu() for name, tensor in state.items()}
    users = Counter(tensor.untyped_storage().data_ptr() for tensor in plain.values())
    for name, tensor in plain.items():
        storage = tensor.untyped_storage()
        if users[storage.data_ptr()] == 1 and storage.nbytes() != tensor.numel() * tensor.element_size():
            plain[name] = tensor.clone(memory_format=torch.contiguous_format)
    return plain
