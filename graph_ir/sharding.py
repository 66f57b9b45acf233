"""How a rank's own tensor is cut out of the whole one: one record per mesh axis that splits it.

A graph of one rank is the same for all ranks of its class. What differs between them, which part of a
tensor is theirs and at which row it starts, follows from the rank's index along each mesh axis: of a
tensor it is in `Value.shards`, of an attribute in the node's attribute `by_rank`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Shard:
    """A split of one dim over one mesh axis."""

    axis: str
    """Name of the mesh axis."""
    parts: int
    stride: int
    """Distance in ranks between the holders of neighbouring parts."""
    dim: int | None
    """The dim that is split; None: the tensor is flat, padded to a multiple of `parts`."""
    major: int = 1
    """Product of the dim's factors before the one that is split."""
    minor: int = 1
    """Product of those after it."""
    zigzag: bool = False
    """Part i holds the chunks i and 2 parts - 1 - i of 2 parts: under a causal mask all parts then have
    the same work (Llama 3, arXiv 2407.21783, section 3.3.2)."""

    def index_of(self, rank: int) -> int:
        """Which part a rank holds."""
        return rank // self.stride % self.parts

    def cut(self, whole: Array, index: int) -> Array:
        """One part.

        Raises:
            ValueError: if the parts are uneven.
        """
        if self.dim is None:
            flat = whole.reshape(-1)
            size = -(-flat.size // self.parts)
            padded = np.pad(flat, (0, size * self.parts - flat.size))
            return padded[index * size : (index + 1) * size]
        shape = whole.shape
        chunks = 2 * self.parts if self.zigzag else self.parts
        size, rest = divmod(shape[self.dim], self.major * chunks * self.minor)
        if rest:
            raise ValueError(f"{shape} does not split evenly: {self}")
        kept = [index, chunks - 1 - index] if self.zigzag else [index]
        before, after = shape[: self.dim], shape[self.dim + 1 :]
        split = whole.reshape(*before, self.major, chunks, size, self.minor, *after)
        return split.take(kept, axis=self.dim + 1).reshape(*before, -1, *after)

    def join(self, parts: Sequence[Array], shape: Sequence[int]) -> Array:
        """The whole tensor of a shape from all its parts in order."""
        if self.dim is None:
            return np.concatenate([p.reshape(-1) for p in parts])[: prod(shape)].reshape(shape)
        own = parts[0].shape
        before, after = own[: self.dim], own[self.dim + 1 :]
        split = [p.reshape(*before, self.major, -1, self.minor, *after) for p in parts]
        if self.zigzag:
            halves = [np.split(p, 2, axis=self.dim + 1) for p in split]
            split = [h[0] for h in halves] + [h[1] for h in reversed(halves)]
        return np.concatenate(split, axis=self.dim + 1).reshape(shape)


@dataclass(frozen=True)
class ByRank:
    """An attribute that grows with the rank's index along a mesh axis."""

    parts: int
    stride: int
    step: int
    """What the attribute grows by from one index to the next."""
    shift: int = 0
    """The index counts from here, around the group: who held what this rank holds after some hops."""

    def of(self, rank: int) -> int:
        """What to add on a rank."""
        return (rank // self.stride - self.shift) % self.parts * self.step


def attrs_of_rank(attrs: Mapping[str, Any], rank: int) -> dict[str, Any]:
    """A node's attributes on one rank."""
    own = dict(attrs)
    for name, terms in own.pop("by_rank", {}).items():
        own[name] = own.get(name, 0) + sum(term.of(rank) for term in terms)
    return own
