"""What goes between server and clients: the weights that are in, and masks as bits; counted, and read with distrust."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from edgeprune.errors import InputError
from edgeprune.federated.masks import Global, Masks

Arrays = Mapping[str, np.ndarray]
_MASK = "#mask"  # at the end of a mask's name; no name of a tensor has such


@dataclass(frozen=True, slots=True, eq=False)
class Order:
    """What a client is asked in a round: to train this network, and to move so large a share of its weights."""

    number: int
    arrays: Arrays
    moved: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Reply:
    """What came of a client: arrays, over how many samples, the mean loss; or `problem`, where nothing came."""

    client: str
    arrays: Arrays | None = None
    n_samples: int = 0
    loss: float = 0.0
    problem: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Update:
    """A reply that can be used."""

    network: Global
    n_samples: int
    loss: float


def packed(network: Global, *, with_masks: bool = True) -> dict[str, np.ndarray]:
    """The network as arrays: of a layer with a mask the values `(n_kept,)` and the bits of the mask, eight a byte.

    Without the masks, only who has the same can read it.
    """
    found = {}
    for name, own in network.state.items():
        mask = network.masks.get(name)
        found[name] = _to_array(own if mask is None else own[mask])
        if mask is not None and with_masks:
            found[name + _MASK] = np.packbits(mask.numpy().reshape(-1))
    return found


def _to_array(tensor: Tensor) -> np.ndarray:
    plain = tensor.float() if tensor.dtype == torch.bfloat16 else tensor  # NumPy has no bfloat16
    return plain.contiguous().numpy()


def size_bytes(arrays: Arrays) -> int:
    """What the arrays hold."""
    return sum(array.nbytes for array in arrays.values())


def unpacked(arrays: Arrays, like: Global) -> Global:
    """The network that arrays hold; where they leave the masks out, with those of `like`.

    Raises:
        InputError: other names, shapes or types than those of `like`, NaN or infinity, or a mask that keeps another
            number of weights.
    """
    masks = _masks(arrays, like.masks)
    expected = set(like.state) | {name + _MASK for name in masks if name + _MASK in arrays}
    if set(arrays) != expected:
        name = min(set(arrays) ^ expected)
        raise InputError(f"{name}: expected {'it' if name in expected else 'no such array'}, got otherwise")
    state = {}
    for name, own in like.state.items():
        mask = masks.get(name)
        values = _values(name, arrays[name], own, None if mask is None else int(mask.sum()))
        state[name] = values if mask is None else torch.zeros_like(own).masked_scatter(mask, values)
    return Global(state, masks)


def _masks(arrays: Arrays, like: Masks) -> dict[str, Tensor]:
    return {
        name: _mask(name, arrays[name + _MASK], own) if name + _MASK in arrays else own for name, own in like.items()
    }


def _mask(name: str, bits: np.ndarray, like: Tensor) -> Tensor:
    n_bytes = -(-like.numel() // 8)
    if bits.dtype != np.uint8 or bits.shape != (n_bytes,):
        raise InputError(f"mask of {name}: expected {n_bytes} bytes, got {bits.dtype} {bits.shape}")
    mask = torch.from_numpy(np.unpackbits(bits, count=like.numel()).astype(bool)).view(like.shape)
    if mask.sum() != like.sum():
        raise InputError(f"mask of {name}: expected one that keeps {int(like.sum())} weights, got {int(mask.sum())}")
    return mask


def _values(name: str, array: np.ndarray, like: Tensor, n_kept: int | None) -> Tensor:
    shape = tuple(like.shape) if n_kept is None else (n_kept,)
    wanted = _to_array(like.new_empty(0)).dtype
    if array.dtype != wanted or array.shape != shape:
        raise InputError(f"{name}: expected {wanted} {shape}, got {array.dtype} {array.shape}")
    if not np.isfinite(array).all():
        raise InputError(f"{name}: expected finite numbers, got NaN or infinity")
    return torch.from_numpy(array.copy()).to(like.dtype)
