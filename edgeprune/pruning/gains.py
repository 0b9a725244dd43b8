"""Weights as large as a fresh network's should be: they let a signal through where the network's own do not."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn
from torch.export import ExportedProgram

from edgeprune.graph.capture import Program


def gains(program: ExportedProgram, slim: ExportedProgram) -> dict[str, float]:
    """For each weight of both programs what makes it as large as He et al. (2015, eq. 10) start it; 1 at least.

    Weights are the float parameters of two dims or more. What is scaled as a whole is scaled in each of its slices, so
    that a slim network with these weights must compute what the dense one with them does.
    """
    found = {}
    for name, weight in program.state_dict.items():
        if _is_weight(weight) and name in slim.state_dict:
            size = float(weight.detach().double().square().mean().sqrt())
            usual = math.sqrt(2 / max(1, math.prod(weight.shape[1:])))
            if 0 < size < usual:
                found[name] = usual / size
    return found


def _is_weight(tensor: torch.Tensor) -> bool:
    return isinstance(tensor, nn.Parameter) and tensor.is_floating_point() and tensor.dim() > 1


def amplified(program: ExportedProgram, by: Mapping[str, float]) -> Program:
    """A copy of a program whose named weights are multiplied; what is tied stays so, or it would be another network."""
    made: dict[int, nn.Parameter] = {}
    with torch.no_grad():
        for name, gain in by.items():
            weight = program.state_dict[name]
            made.setdefault(id(weight), nn.Parameter(weight * gain))
    return Program.adopt(program).with_tensors({name: made[id(program.state_dict[name])] for name in by})
