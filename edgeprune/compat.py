"""Importing this module makes torchvision importable beside a CPU build of PyTorch.

A torchvision wheel built for CUDA cannot load its compiled operators next to a CPU build of PyTorch, and its import
then fails with "operator torchvision::nms does not exist". The schemas it looks for are registered here, with
a plain PyTorch implementation of non-maximum suppression behind them, and only when they are missing.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os

import torch

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_libraries: list[torch.library.Library] = []  # a Library unregisters its operators when it is collected


def nms(dets: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """Indices of the boxes kept by greedy non-maximum suppression, best score first.

    `dets` is `(n, 4)` as x1, y1, x2, y2; `scores` is `(n,)`; the result is int64 `(n_kept,)`.
    """
    order = scores.argsort(descending=True, stable=True)
    areas = (dets[:, 2] - dets[:, 0]) * (dets[:, 3] - dets[:, 1])
    kept: list[int] = []
    while order.numel() > 0:
        best, rest = order[0], order[1:]
        kept.append(int(best))
        top_left = torch.maximum(dets[best, :2], dets[rest, :2])
        bottom_right = torch.minimum(dets[best, 2:], dets[rest, 2:])
        overlap = (bottom_right - top_left).clamp(min=0).prod(dim=1)
        iou = overlap / (areas[best] + areas[rest] - overlap)
        order = rest[~(iou > iou_threshold)]
    return torch.tensor(kept, dtype=torch.int64, device=dets.device)


def _nms_fake(dets: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    n_kept = torch.library.get_ctx().new_dynamic_size()
    return dets.new_empty((n_kept,), dtype=torch.int64)


def _load_compiled_operators(package_folder: str) -> None:
    """Load torchvision's own operators as its import would; where they do not load, leave it at that.

    Registering first and importing torchvision later would define the operators twice, which aborts that import.
    """
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = os.path.join(package_folder, "_C" + suffix)
        if os.path.isfile(path):
            try:
                torch.ops.load_library(path)
            except (OSError, RuntimeError):
                continue
            return


def _exists(name: str) -> bool:
    return bool(torch._C._dispatch_has_kernel(f"torchvision::{name}"))


def register_missing_schemas() -> tuple[str, ...]:
    """Register `torchvision::nms` and `qnms` where torchvision is installed and cannot; return the names registered."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return ()
    if not _exists("nms"):
        _load_compiled_operators(os.path.dirname(spec.origin))
    missing = tuple(name for name in _SCHEMAS if not _exists(name))
    # torchvision's own library brings nms and much else; where it has loaded, nothing is added to it.
    if "nms" not in missing:
        return ()
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in missing:
        library.define(_SCHEMAS[name])
        library.impl(name, nms, "CompositeExplicitAutograd")
        torch.library.register_fake(f"torchvision::{name}", _nms_fake, lib=library)
    _libraries.append(library)
    return missing


register_missing_schemas()
