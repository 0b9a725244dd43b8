"""The machine that a file of docs/results was measured on."""

from __future__ import annotations

import torch

from edgeprune.versions import processor


def machine() -> dict[str, str]:
    """The processor and the instructions that PyTorch takes of it: others round otherwise, and trainings end elsewhere.

    Example: `{"cpu": "Intel(R) Xeon(R) Processor", "instructions": "AVX512"}`.
    """
    return {"cpu": processor(), "instructions": torch.backends.cpu.get_cpu_capability()}
