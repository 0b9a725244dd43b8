"""Weights that are mixtures of templates: which tensors are cut into which tiles, and what they come to.

    weight (64, 32, 3, 3), tiles (16, 16, 3, 3) -> 4 x 2 tiles, each the sum of N templates times N coefficients

A weight is laid out in tiles row by row, and its coefficients are `(n_tiles, N)`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from edgeprune.records import Templates

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Tiling:
    """A weight of `shape` as `rows` times `columns` tiles of the shape `tile`, cut along its first two dims."""

    shape: Shape
    tile: Shape

    @property
    def rows(self) -> int:
        """Tiles along the first dim."""
        return self.shape[0] // self.tile[0]

    @property
    def columns(self) -> int:
        """Tiles along the second dim."""
        return self.shape[1] // self.tile[1]

    @property
    def n_tiles(self) -> int:
        """How many there are."""
        return self.rows * self.columns

    @property
    def fits(self) -> bool:
        """Whether the tiles cover the weight and nothing beside."""
        alike = len(self.shape) == len(self.tile) >= 2 and self.shape[2:] == self.tile[2:]
        return alike and not any(size % part for size, part in zip(self.shape, self.tile, strict=True))

    def cut(self, weight: Tensor) -> Tensor:
        """The tiles `(n_tiles, tile's size)` of a weight of this shape."""
        height, width, *kernel = self.tile
        parts = weight.reshape(self.rows, height, self.columns, width, *kernel).transpose(1, 2)
        return parts.reshape(self.n_tiles, math.prod(self.tile))

    def joined(self, tiles: Tensor) -> Tensor:
        """The weight whose tiles these are."""
        height, width, *kernel = self.tile
        return tiles.reshape(self.rows, self.columns, height, width, *kernel).transpose(1, 2).reshape(self.shape)


@dataclass(frozen=True, slots=True)
class Family:
    """Weights by name that are cut into tiles of one shape."""

    tile: Shape
    members: Mapping[str, Tiling]

    @property
    def n_tiles(self) -> int:
        """Of all its weights."""
        return sum(tiling.n_tiles for tiling in self.members.values())

    @property
    def size(self) -> int:
        """Numbers in its weights."""
        return self.n_tiles * math.prod(self.tile)

    def size_of(self, n_templates: int) -> int:
        """Numbers in so many templates and their coefficients."""
        return n_templates * (math.prod(self.tile) + self.n_tiles)

    def saved(self, n_templates: int) -> int:
        """How many numbers fewer the templates and coefficients are than the weights."""
        return self.size - self.size_of(n_templates)

    @property
    def most_templates(self) -> int:
        """The largest number of templates that saves anything; 0 where none does."""
        return max(0, (self.size - 1) // (math.prod(self.tile) + self.n_tiles))


def families(shapes: Mapping[str, Shape], n_templates: int) -> tuple[Family, ...]:
    """The weights that share templates, in families, chosen so that most is saved with so many templates.

    Weights can be cut into tiles of the shape of one of them where that divides theirs along the first two dims and the
    rest of the shape, the kernel, is the same. Of all these shapes the one is taken that saves most, the larger tile
    among equals; one of fewer numbers than there are tiles only where no other saves anything, as it would be made of
    coefficients rather than of templates. Then of the weights that are left, until nothing is saved.

    Args:
        shapes: of the weights, by name.
        n_templates: of each family.
    """
    left, found = dict(shapes), []
    while best := max(_candidates(left), key=lambda family: _worth(family, n_templates), default=None):
        if best.saved(n_templates) <= 0:
            break
        found.append(best)
        left = {name: shape for name, shape in left.items() if name not in best.members}
    return tuple(found)


def _worth(family: Family, n_templates: int) -> tuple[bool, int, Shape]:
    saved = family.saved(n_templates)
    return saved > 0 and family.n_tiles <= math.prod(family.tile), saved, family.tile


def _candidates(shapes: Mapping[str, Shape]) -> Iterator[Family]:
    for tile in dict.fromkeys(shapes.values()):
        tilings = {name: Tiling(shape, tile) for name, shape in shapes.items()}
        members = {name: tiling for name, tiling in tilings.items() if tiling.fits}
        if len(members) > 1:
            yield Family(tile, members)


@dataclass(frozen=True, slots=True, eq=False)
class Mixture:
    """A family's templates `(N, *tile)`, and the coefficients `(n_tiles, N)` of each of its weights."""

    family: Family
    templates: Tensor
    coefficients: Mapping[str, Tensor]

    @classmethod
    def of(cls, family: Family, weights: Mapping[str, Tensor], n_templates: int) -> Mixture:
        """The mixtures nearest to weights, each tile as long as it is there.

        The templates are the first principal directions of all tiles, in float64, and as long as the tiles are in the
        mean. What they lack of a tile is made good in length, so that signals keep their size: of weights drawn at
        random they lack the most.
        """
        tiles = torch.cat([tiling.cut(weights[name].detach().double()) for name, tiling in family.members.items()])
        n = min(n_templates, *tiles.shape)
        left, lengths, right = torch.linalg.svd(tiles, full_matrices=False)
        unit = tiles.square().sum(dim=1).mean().sqrt().clamp_min(torch.finfo(torch.float64).tiny)
        mixed = left[:, :n] * lengths[:n]
        had, have = tiles.norm(dim=1, keepdim=True), mixed.norm(dim=1, keepdim=True)
        mixed = torch.where(have > 0, mixed * had / have, mixed) / unit
        like = next(iter(weights.values()))
        parts = mixed.to(like.dtype).split([tiling.n_tiles for tiling in family.members.values()])
        templates = (right[:n] * unit).to(like.dtype).reshape(n, *family.tile)
        return cls(family, templates, {name: part.clone() for name, part in zip(family.members, parts, strict=True)})

    @property
    def n_templates(self) -> int:
        """How many there are."""
        return len(self.templates)

    def weight(self, name: str) -> Tensor:
        """The weight of this name."""
        return self.family.members[name].joined(self.coefficients[name] @ self.templates.flatten(1))

    def gradients(self, gradients: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Those of the templates and of each weight's coefficients, by those of the weights that have any."""
        flat = self.templates.flatten(1)
        of_templates, of_coefficients = torch.zeros_like(flat), {}
        for name, gradient in gradients.items():
            tiles = self.family.members[name].cut(gradient)
            of_coefficients[name] = tiles @ flat.t()
            of_templates += self.coefficients[name].t() @ tiles
        return of_templates.reshape(self.templates.shape), of_coefficients

    @classmethod
    def told(cls, own: Templates, shapes: Mapping[str, Shape]) -> Mixture:
        """Of templates and the shapes of all weights, by name."""
        tile = tuple(own.templates.shape[1:])
        return cls(
            Family(tile, {name: Tiling(shapes[name], tile) for name in own.coefficients}),
            own.templates,
            own.coefficients,
        )

    @property
    def plain(self) -> Templates:
        """Copies of its tensors on the CPU."""
        own = {name: own.detach().cpu().clone() for name, own in self.coefficients.items()}
        return Templates(self.templates.detach().cpu().clone(), own)

    def __str__(self) -> str:
        family, n = self.family, self.n_templates
        return (
            f"{len(family.members)} weights of {n} template{'s' * (n > 1)} of {'x'.join(map(str, family.tile))}: "
            f"{family.size_of(n):,} numbers in place of {family.size:,}"
        )
