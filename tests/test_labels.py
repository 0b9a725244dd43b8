"""Labels of values: where they vary, and how they are laid out."""

from __future__ import annotations

import pytest
import torch

from edgeprune.graph.labels import (
    Layer,
    Value,
    core,
    pack,
    pending_labels,
    remainder,
    reshape_labels,
    spread,
    without_overlaps,
)


def channels(n: int, shape: tuple[int, ...], dim: int = 1) -> Layer:
    return pack(spread(torch.arange(1, n + 1), (dim,), shape), zero=True)


def test_pack_finds_the_dims_that_vary() -> None:
    dense = torch.arange(1, 5).reshape(1, 4, 1).expand(2, 4, 3).contiguous()
    layer = pack(dense, zero=False)
    assert layer.dims == (1,)
    assert layer.labels.stride() == (0, layer.labels.stride(1), 0)
    assert torch.equal(layer.labels, dense)


def test_core_and_spread_are_inverse() -> None:
    grid = torch.arange(1, 7).reshape(2, 3)
    labels = spread(grid, (3, 1), (4, 3, 5, 2))
    assert labels.shape == (4, 3, 5, 2)
    assert torch.equal(core(Layer(labels, False)), grid.T)
    assert int(labels[0, 2, 0, 1]) == int(grid[1, 2])


def test_sizes_of_one_never_vary() -> None:
    assert pack(torch.tensor([[7]]), zero=True).dims == ()


def test_pending_labels_are_distinct_and_negative() -> None:
    labels = pending_labels((2, 3))
    assert labels.unique().numel() == 6
    assert Layer(labels, False).pending
    assert not channels(3, (2, 3)).pending


def test_remainder_keeps_what_is_mapped() -> None:
    layer = channels(4, (2, 4, 5))
    kept = remainder(layer, {1: 0}, (4,))
    assert kept is not None and kept.zero and core(kept).tolist() == [1, 2, 3, 4]
    assert remainder(layer, {2: 0}, (5,)) is None


def test_remainder_of_an_unresolved_layer_is_pending() -> None:
    both = pack(torch.arange(1, 7).reshape(1, 2, 3).expand(4, 2, 3), zero=True)
    kept = remainder(both, {1: 0}, (2,))
    assert kept is not None and kept.pending and not kept.zero


def test_overlapping_layers_become_pending_over_all_dims() -> None:
    one = pack(torch.arange(1, 7).reshape(2, 3, 1).expand(2, 3, 4), zero=True)
    other = pack(torch.arange(7, 10).reshape(1, 3, 1).expand(2, 3, 4), zero=True)
    apart = pack(torch.arange(10, 14).reshape(1, 1, 4).expand(2, 3, 4), zero=True)
    merged = without_overlaps([one, other, apart])
    assert sorted(layer.dims for layer in merged) == [(0, 1), (2,)]
    assert [layer.pending for layer in merged if layer.dims == (0, 1)] == [True]


def test_values_compare_by_what_rules_see() -> None:
    value = Value((2, 4), (channels(4, (2, 4)),))
    assert value.same_as(Value((2, 4), (channels(4, (2, 4)),)))
    assert not value.same_as(Value((2, 4), (channels(4, (2, 4)),), raw=True))
    assert not value.same_as(Value((2, 4)))
    assert not value.same_as(Value((2, 4), (pack(channels(4, (2, 4)).labels, zero=False),)))
    assert value.on(1) and not value.on(0)


RESHAPES = [
    ((2, 6, 4), (2, 2, 3, 4)), ((2, 6, 4), (12, 4)), ((2, 6, 4), (2, 24)), ((2, 1, 6), (2, 6)),
    ((2, 6), (1, 2, 1, 6, 1)),
    ((4, 3), (2, 6)), ((1, 1), ()), ((6, 1, 4), (2, 3, 4, 1)), ((2, 3, 4), (24,)), ((2, 3, 4), (3, 2, 4)),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new"), RESHAPES)
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_reshaped_labels_are_what_a_reshape_gives(old: tuple[int, ...], new: tuple[int, ...], dim: int) -> None:
    dim %= len(old)
    labels = spread(torch.arange(1, old[dim] + 1), (dim,), old)
    assert torch.equal(reshape_labels(labels, new), labels.reshape(new))


def test_reshaping_keeps_what_does_not_vary_small() -> None:
    labels = spread(torch.arange(1, 9), (3,), (2, 1000, 4, 8))  # tokens, heads: two dims in a row that do not vary
    assert Layer(reshape_labels(labels, (2, 10, 100, 32)), False).dims == (3,)
    assert Layer(reshape_labels(labels, (2000, 4, 8)), False).dims == (2,)
