"""The operators a .pt2 may name. PyTorch follows any dotted path from `torch`, so `torch.os.system` would do, too."""

from __future__ import annotations

import functools
import re

import torch

from edgeprune import compat  # noqa: F401  (torchvision's operators exist once it is imported)
from edgeprune.errors import InputError, UnsafeFileError

# Arithmetic on sizes; shifts are left out, as they make numbers of any size.
SIZE_OPERATORS = frozenset(
    [f"_operator.{name}" for name in "eq ne le ge lt gt neg pos and_ or_ mul add sub floordiv mod truediv pow".split()]
    + [f"math.{name}" for name in "ceil floor trunc sqrt".split()]
    + [f"torch.{name}" for name in "sym_int sym_float sym_not sym_ite sym_max sym_min sym_sum _sym_sqrt".split()]
)
_TARGET = re.compile(r"torch\.ops\.(aten|torchvision)\.(\w{1,100})\.(\w{1,100})", re.ASCII)
# Operators whose name starts with an underscore are internal; these are what networks export to.
_INTERNAL = frozenset(
    "_assert_scalar _assert_tensor_metadata _assert_async _adaptive_avg_pool2d _adaptive_avg_pool3d "
    "_batch_norm_no_update _batch_norm_with_update _cdist_forward _conj _conv_depthwise2d "
    "_convolution _fft_c2c _fft_c2r _fft_r2c "
    "_local_scalar_dense _log_softmax _native_batch_norm_legit _native_batch_norm_legit_functional "
    "_native_batch_norm_legit_no_training _neg_view _pad_circular _pad_enum _prelu_kernel _reshape_alias "
    "_scaled_dot_product_attention_math _scaled_dot_product_flash_attention_for_cpu _shape_as_tensor _softmax "
    "_stack _to_copy _trilinear _unsafe_view _upsample_bicubic2d_aa _upsample_bilinear2d_aa _upsample_nearest_exact1d "
    "_upsample_nearest_exact2d _upsample_nearest_exact3d _weight_norm _weight_norm_interface _safe_softmax "
    "__and__ __or__ __xor__ __lshift__ __rshift__ __iand__ __ior__ __ixor__".split()
)
# They read or write files, or swap the memory behind a tensor.
_FORBIDDEN = frozenset(
    "from_file save set_ set set_data data resize resize_ resize_as_ resize_as resize_as_sparse_ record_stream "
    "rename rename_ refine_names requires_grad_ retain_grad sym_storage_offset "
    "as_strided_ as_strided_scatter backward".split()
)
# String arguments that choose among built-in ways to compute, or name an assertion.
_STRING_OPTIONS = frozenset(
    "approximate rounding_mode equation mode pad_mode padding padding_mode padding_side indexing reduce ord p side "
    "UPLO driver norm interpolation assert_msg".split()
)
# Data types, layouts and memory formats are "int" in a schema.
_TYPES = re.compile(
    r"(?:Optional\[)?(?:List\[)?(?:Optional\[)?(Tensor|number|int|float|bool|complex|str|Device|Generator)\]*"
)


@functools.lru_cache(maxsize=4096)
def checked_operator(target: str) -> torch.FunctionSchema | None:
    """The schema of the operator `target`, or None for arithmetic on sizes.

    Example: `"torch.ops.aten.conv2d.default"`.

    Raises:
        UnsafeFileError: the target is no known operator of networks.
    """
    if target in SIZE_OPERATORS:
        return None
    match = _TARGET.fullmatch(target)
    if match is None:
        raise _refuse(target)
    namespace, name, overload = match.groups()
    if (name.startswith("_") and name not in _INTERNAL) or name in _FORBIDDEN:
        raise _refuse(target)
    operator = _find(namespace, name, overload)
    if operator is None:
        raise _refuse(target)
    if any(not _harmless(argument) for argument in operator._schema.arguments):
        raise _refuse(target)
    return operator._schema


def _refuse(target: str) -> UnsafeFileError:
    return UnsafeFileError(f"operator {target[:120]!r}: expected an ATen operator of networks, got one that is not")


def _find(namespace: str, name: str, overload: str) -> torch._ops.OpOverload | None:
    qualified = f"{namespace}::{name}" + ("" if overload == "default" else f".{overload}")
    packet = getattr(getattr(torch.ops, namespace), name, None)
    if not isinstance(packet, torch._ops.OpOverloadPacket) or overload not in packet.overloads():
        return None
    if not torch._C._dispatch_has_kernel(qualified):
        return None
    found: torch._ops.OpOverload = getattr(packet, overload)
    return found


def _harmless(argument: torch.Argument) -> bool:
    """No strings but options, no memory handles, no tensors to write the result into."""
    kind = _TYPES.fullmatch(str(argument.type))
    if kind is None or argument.is_out:
        return False
    return kind.group(1) != "str" or argument.name in _STRING_OPTIONS


def check_constant_exponent(target: str, arguments: list[object]) -> None:
    """A power of sizes has a small, fixed exponent: nothing else keeps numbers small.

    Raises:
        InputError: it has another one.
    """
    if target == "_operator.pow" and not (len(arguments) == 2 and type(arguments[1]) is int and abs(arguments[1]) <= 8):
        raise InputError(f"operator {target!r}: expected an exponent of at most 8, got another one")
