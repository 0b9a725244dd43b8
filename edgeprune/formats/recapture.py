"""A program in a file that fixes sizes which are asked for free: captured anew, where its architecture is named."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from edgeprune.errors import InputError
from edgeprune.formats import architectures
from edgeprune.graph.capture import Program, capture, captured_with
from edgeprune.graph.comparison import outputs, relative_error
from edgeprune.graph.drawn import drawn_arguments, first_accepted
from edgeprune.graph.renaming import own_name
from edgeprune.graph.sizes import Asked, by_own_names, free_dims, free_ranges
from edgeprune.lines import error_line, one_line
from edgeprune.records import ModelInfo

_BATCH = 3
_TOLERANCE = 1e-4  # of the largest output: what one network's outputs differ by when it is exported twice


def check_size_free(program: ExportedProgram, dynamic_size: bool) -> None:
    """Raise InputError where height and width are asked for free and a program fixes them."""
    if dynamic_size and not _has_free_size(program):
        raise InputError(
            "--dynamic-size: expected weights beside --arch, or a program that was captured with dynamic_size=True, "
            "got a program of fixed height and width"
        )


def with_free(
    program: ExportedProgram,
    info: ModelInfo,
    arch: str | None,
    dynamic_size: bool,
    dynamic: Mapping[str, Asked],
) -> Program:
    """A file's program, or a new one of its weights in the architecture that the user names, where it fixes dims.

    Its graph may hold numbers that were made of a size, so that what it fixes stays fixed. What a file records of an
    architecture is code, which runs only where the user names it.

    Args:
        program: as it stands in the file.
        info: what the file says of it.
        arch: the architecture that the user names; it is known to be the recorded one.
        dynamic_size: whether height and width are to be free.
        dynamic: the dims that are to be free, by the input's name.

    Raises:
        InputError: no architecture is named, or it does not take the weights, or computes something else of them.
    """
    dynamic = by_own_names(dynamic, _names(program))
    fixed = _fixed(program, dynamic)
    if dynamic_size and not _has_free_size(program):
        fixed = {"--dynamic-size": "a height and a width that are free", **fixed}
    if not fixed:
        return Program.adopt(program)
    if arch is not None:
        return _recaptured(program, info, arch, dynamic_size, dynamic)
    option, wanted = next(iter(fixed.items()))
    way = "give the network's state_dict and --arch, or capture it with these free"
    if info.arch is not None:
        way = f"--arch {one_line(info.arch, 120)} beside it captures its weights anew"
    raise InputError(f"{option}: expected a program with {wanted}, got one that was captured with others; {way}")


def _has_free_size(program: ExportedProgram) -> bool:
    return any(dims - {0} for dims in free_dims(program))


def _fixed(program: ExportedProgram, dynamic: Mapping[str, Asked]) -> dict[str, str]:
    """What is asked for free and is not: the option, and what it wants."""
    found = {}
    for name, dims in dynamic.items():
        known = [free for leaf, free in zip(_names(program), free_dims(program), strict=True) if _is_of(leaf, name)]
        if not known:
            raise InputError(f"--dynamic: expected names of inputs ({', '.join(_names(program))}), got {name}")
        if not all(free.issuperset(dims) for free in known):
            listed = " and ".join(map(str, sorted(dims)))
            found[f"--dynamic {name}"] = f"dims {listed} of {name} free"
    return found


def _names(program: ExportedProgram) -> list[str]:
    """The name of each leaf of the inputs."""
    specs = program.graph_signature.input_specs
    return [spec.arg.name for spec in specs if spec.kind is InputKind.USER_INPUT]


def _is_of(leaf: str, name: str) -> bool:
    """Whether a leaf is the input of this name, or a tensor in the list or dict that it is."""
    return leaf == name or leaf.startswith(f"{name}_")


def _recaptured(
    program: ExportedProgram, info: ModelInfo, arch: str, dynamic_size: bool, dynamic: Mapping[str, Asked]
) -> Program:
    """The program of an architecture with the weights of another program, which is seen to compute the same."""
    advice = "keeps the sizes that it was cut with: give --dynamic where it is cut"
    model = rebuilt(program, info, arch, "--dynamic", advice)
    stated = {
        name: ranges
        for name, ranges in zip(_names(program), free_ranges(program), strict=True)
        if set(ranges) != {0} and name not in dynamic
    }
    fresh = capture(model, captured_with(program), dynamic_size=dynamic_size, dynamic={**stated, **dynamic})
    check_same(program, fresh.module(), arch)
    return fresh


def rebuilt(program: ExportedProgram, info: ModelInfo, arch: str, option: str, advice: str) -> nn.Module:
    """The network of an architecture, or its part that the program is of, with the weights of the program.

    Args:
        option: what asks for it.
        advice: what a network that was cut does, which has other weights, and what to do about it.

    Raises:
        InputError: the architecture has other weights.
    """
    model = architectures.build(arch)
    if info.module is not None:
        model = architectures.part_of(model, info.module)
    weights = {own_name(name): tensor for name, tensor in program.state_dict.items()}
    if {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()} == {torch.float64}:
        model = model.double()
    try:
        model.load_state_dict(weights)
    except Exception as error:
        raise InputError(
            f"{option}: expected the weights that --arch {arch} has, to capture them anew, got {error_line(error)}; a "
            f"network that was cut {advice}"
        ) from error
    return model


def check_same(program: ExportedProgram, module: nn.Module, arch: str) -> None:
    """Raise InputError unless both compute the same: a file of code may have been changed since."""
    networks = program.module(), module
    args = first_accepted(networks[0], drawn_arguments(program, _BATCH))
    if relative_error(*(outputs(network, args) for network in networks)) <= _TOLERANCE:
        return
    raise InputError(
        f"--arch {arch}: expected the network that the file holds, to capture it anew, got one that computes something "
        "else of its weights"
    )
